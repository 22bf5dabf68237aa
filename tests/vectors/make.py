"""Makes ``envelope.json``: ``python -m tests.vectors.make``. Every byte is fixed; a change of the file is a change of format."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from core.crypto import kms
from core.crypto.blind import BlindSpec, fold
from core.crypto.datakey import ENCRYPT_LABEL, INDEX_LABEL, DataKey
from core.crypto.derive import hkdf
from core.crypto.envelope import aad_prefix
from core.crypto.values import Kind
from tests.reference import encode, seal

PATH = Path(__file__).with_name("envelope.json")
TENANT = UUID("0190c3f0-0000-7000-8000-00000000000a")
OTHER_TENANT = UUID("0190c3f0-0000-7000-8000-00000000000b")
ROW = UUID("0190c3f0-0000-7000-8000-000000000001")
OTHER_ROW = UUID("0190c3f0-0000-7000-8000-000000000002")
VERSION = 3

VALUES: list[tuple[str, Kind, Any]] = [
    ("empty text", Kind.TEXT, ""),
    ("ascii name", Kind.TEXT, "Nguyen"),
    ("accented name", Kind.TEXT, "Nguyễn Thị Ánh"),
    ("14 bytes, one block", Kind.TEXT, "a" * 14),
    ("15 bytes, two blocks", Kind.TEXT, "a" * 15),
    ("62 bytes, four blocks", Kind.TEXT, "a" * 62),
    ("63 bytes, the next step", Kind.TEXT, "a" * 63),
    ("1022 bytes, the last of the middle steps", Kind.TEXT, "a" * 1022),
    ("1023 bytes, the first of the large steps", Kind.TEXT, "a" * 1023),
    ("text that ends like padding", Kind.TEXT, "\x00\u0080\x00\x00"),
    ("leap day", Kind.DATE, date(1980, 2, 29)),
    ("first date", Kind.DATE, date(1, 1, 1)),
    ("zero", Kind.INTEGER, 0),
    ("negative integer", Kind.INTEGER, -42),
    ("more than 64 bits", Kind.INTEGER, 2**70),
    ("decimal with a scale", Kind.DECIMAL, Decimal("12.50")),
    ("decimal with an exponent", Kind.DECIMAL, Decimal("-1.5E+10")),
    ("negative zero", Kind.DECIMAL, Decimal("-0.0")),
    ("json object", Kind.JSON, {"zip": "02134", "city": "Boston", "lines": ["1 Main St", None, True, 2.5]}),
    ("json text", Kind.JSON, "é"),
]
SPECS: list[tuple[str, BlindSpec, list[Any]]] = [
    (
        "last_name_exact",
        BlindSpec("exact", 128),
        ["Nguyen", "e\u0301", date(1980, 2, 29), 150, Decimal("150.0"), Decimal("-0.05")],
    ),
    ("last_name_index", BlindSpec("folded"), ["Nguyễn", " NGUYEN ", "O\u2019Brien", "Straße", ""]),
    ("last_name_prefix", BlindSpec("prefix", 32, 3), ["Nguyen", "Ng", "Ánh "]),
    ("ssn_last4", BlindSpec("last", 16, 4), ["123-45-6789", "６７８９", "123"]),
    ("birth_year", BlindSpec("year", 16), [date(1980, 2, 29), 1980]),
    ("birth_month", BlindSpec("month", 24), [date(1980, 2, 29), "1980-02"]),
    (
        "name_birth",
        BlindSpec("compound", 64, None, (BlindSpec("folded"), BlindSpec("exact"))),
        [("Nguyễn", date(1980, 2, 29)), ("Nguyen", None)],
    ),
]
FOLDS = [
    "Nguyễn",
    "ĐẶNG",
    "İpek",
    "ＦＵＬＬ",
    "a\u00a0\u2003b",
    "O\u00b4Brien",
    "Jean\u2011Luc",
    "カ\u3099",
    "ﬁ",
    "soft\u00adhyphen",
]


def fixed(name: str, length: int = 32) -> bytes:
    """Bytes that look random and are the same for ever."""
    return hashlib.sha256(f"charthold test vector: {name}".encode()).digest()[:length]


def shown(value: Any) -> Any:
    """A value as JSON has it; the kind says what it was."""
    if isinstance(value, tuple):
        return [shown(part) for part in value]
    return value.isoformat() if isinstance(value, date) else str(value) if isinstance(value, Decimal) else value


def make() -> dict[str, Any]:
    """The whole document."""
    key = DataKey(TENANT, VERSION, fixed("data key"))
    sealed = [envelope(key, name, kind, value) for name, kind, value in VALUES]
    return {
        "specification": "docs/envelope.md, version 1. Bytes are hexadecimal; keys are for tests only.",
        "key": {
            "tenant": str(TENANT),
            "version": VERSION,
            "data_key": fixed("data key").hex(),
            "encryption_key": derived(ENCRYPT_LABEL),
        },
        "envelopes": sealed,
        "refused_envelopes": refused(sealed[1]),
        "wrapped_keys": wrapped(),
        "folds": [{"text": text, "folded": fold(text)} for text in FOLDS],
        "blind_indexes": [index(key, column, spec, values) for column, spec, values in SPECS],
    }


def derived(label: bytes) -> str:
    return hkdf(fixed("data key"), label, TENANT.bytes, VERSION.to_bytes(4, "big")).hex()


def envelope(key: DataKey, name: str, kind: Kind, value: Any) -> dict[str, Any]:
    nonce, plaintext = fixed(f"nonce of {name}", 12), encode(value, kind)
    aad = aad_prefix(key.sealing().header, TENANT, "client", "last_name") + ROW.bytes
    return {
        "name": name,
        "kind": kind.name.lower(),
        "value": shown(value),
        "tenant": str(TENANT),
        "table": "client",
        "column": "last_name",
        "row": str(ROW),
        "nonce": nonce.hex(),
        "aad": aad.hex(),
        "plaintext": plaintext.hex(),
        "envelope": seal(key.sealing(), aad, plaintext, nonce).hex(),
    }


def refused(good: dict[str, Any]) -> list[dict[str, Any]]:
    """What must not open, each one change away from the good one."""
    place = {name: good[name] for name in ("tenant", "table", "column", "row", "kind")}
    data = bytes.fromhex(good["envelope"])
    aad = bytes.fromhex(good["aad"])
    key = DataKey(TENANT, VERSION, fixed("data key")).sealing()
    other_key = DataKey(TENANT, VERSION, fixed("another data key")).sealing()

    def case(name: str, envelope: bytes = data, **changes: str) -> dict[str, Any]:
        return {"name": name, **place, **changes, "envelope": envelope.hex()}

    def sealed(plaintext: bytes) -> bytes:
        return seal(key, aad, plaintext, fixed("nonce of a refusal", 12))

    def flipped(at: int, bit: int = 0) -> bytes:
        return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]

    return [
        case("bit 0 of the version flipped", flipped(0)),
        case("bit 0 of the key version flipped", flipped(4)),
        case("bit 7 of the nonce flipped", flipped(5, 7)),
        case("bit 0 of the ciphertext flipped", flipped(17)),
        case("bit 0 of the tag flipped", flipped(len(data) - 1)),
        case("another row", row=str(OTHER_ROW)),
        case("another column", column="first_name"),
        case("another table", table="facility"),
        case("another tenant", tenant=str(OTHER_TENANT)),
        case("table and column run together", table="clientl", column="ast_name"),
        case(
            "another data key",
            seal(other_key, aad, bytes.fromhex(good["plaintext"]), fixed("nonce of another key", 12)),
        ),
        case("another envelope version", b"\x02" + data[1:]),
        case("key version zero", data[:1] + bytes(4) + data[5:]),
        case("last byte missing", data[:-1]),
        case("last block missing", data[:-16]),
        case("a byte too many", data + b"\0"),
        case("a block too many", data + bytes(16)),
        case("header only", data[:5]),
        case("empty", b""),
        case("plaintext", b"Nguyen"),
        case("no padding", sealed(b"\x01" + b"a" * 15)),
        case("nothing but zeros", sealed(bytes(16))),
        case("padding only", sealed(b"\x80".ljust(16, b"\0"))),
        case("unknown type", sealed(b"\x06a\x80".ljust(16, b"\0"))),
        case("text that is not UTF-8", sealed(b"\x01\xff\x80".ljust(16, b"\0"))),
        case("a date in a text column", sealed(encode(date(1980, 2, 29), Kind.DATE))),
        case("a day that does not exist", sealed(b"\x021981-02-29\x80".ljust(16, b"\0")), kind="date"),
        case("a week date", sealed(b"\x021981-W09-1\x80".ljust(16, b"\0")), kind="date"),
        case("an integer with a leading zero", sealed(b"\x0307\x80".ljust(16, b"\0")), kind="integer"),
        case("a decimal with an underscore", sealed(b"\x041_0\x80".ljust(16, b"\0")), kind="decimal"),
        case("an infinite decimal", sealed(b"\x04Infinity\x80".ljust(16, b"\0")), kind="decimal"),
        case("json with NaN", sealed(b"\x05NaN\x80".ljust(16, b"\0")), kind="json"),
        case("json cut short", sealed(b"\x05{\x80".ljust(16, b"\0")), kind="json"),
    ]


def wrapped() -> dict[str, Any]:
    master, nonce = fixed("master key"), fixed("nonce of the wrapping", 12)
    kek = kms._Kek(master)
    header = b"\x01" + kek.id
    blob = header + nonce + kek.cipher.encrypt(nonce, fixed("data key"), kms._aad(header, TENANT, VERSION))
    place = {"tenant": str(TENANT), "version": VERSION, "wrapped": blob.hex()}
    return {
        "master_key": master.hex(),
        "kek_id": kek.id.hex(),
        "wrapping_key": hkdf(master, kms.KEK_LABEL).hex(),
        "unwraps": {**place, "data_key": fixed("data key").hex()},
        "refused": [
            {"name": "another tenant", **place, "tenant": str(OTHER_TENANT)},
            {"name": "another version", **place, "version": VERSION + 1},
            {"name": "unknown KEK", **place, "wrapped": (blob[:1] + bytes(8) + blob[9:]).hex()},
            {"name": "another format", **place, "wrapped": (b"\x02" + blob[1:]).hex()},
            {"name": "last byte missing", **place, "wrapped": blob[:-1].hex()},
            {"name": "a bit flipped", **place, "wrapped": (blob[:-1] + bytes((blob[-1] ^ 1,))).hex()},
        ],
    }


def index(key: DataKey, column: str, spec: BlindSpec, values: list[Any]) -> dict[str, Any]:
    label = spec.label("client", column)
    rows = [(value, spec._normalised(value), spec.digest(key.index(label), value)) for value in values]
    return {
        "label": label,
        "kind": spec.kind,
        "length": spec.length,
        "parts": [part.kind for part in spec.parts],
        "bits": spec.bits,
        "index_key": derived(INDEX_LABEL + label.encode()),
        "digests": [
            {
                "type": type(value).__name__,
                "value": shown(value),
                "normalised": None if normalised is None else normalised.hex(),
                "digest": None if digest is None else digest.hex(),
            }
            for value, normalised, digest in rows
        ],
    }


def text() -> str:
    return json.dumps(make(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
