"""The specification (docs/envelope.md) once more, written from its text: imports nothing of Charthold.

The vectors are checked against this, so that a mistake made twice in ``core`` still shows.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from datetime import date
from decimal import Decimal
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


class Refused(Exception):
    pass


def mac(key, message):
    h = hmac.HMAC(key, hashes.SHA256())
    h.update(message)
    return h.finalize()


def lp(*parts):
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def hkdf(key, *info, length=32):
    """RFC 5869 by hand: one block of output is enough."""
    return mac(mac(bytes(32), key), lp(*info) + b"\x01")[:length]


def encryption_key(data_key, tenant, version):
    return hkdf(data_key, b"charthold/v1/encrypt", UUID(tenant).bytes, struct.pack(">I", version))


def index_key(data_key, tenant, version, label):
    return hkdf(data_key, b"charthold/v1/index/" + label.encode(), UUID(tenant).bytes, struct.pack(">I", version))


def gcm_open(key, nonce, body, aad):
    decryptor = Cipher(algorithms.AES(key), modes.GCM(nonce, body[-16:])).decryptor()
    decryptor.authenticate_additional_data(aad)
    try:
        return decryptor.update(body[:-16]) + decryptor.finalize()
    except InvalidTag:
        raise Refused from None


def gcm_seal(key, nonce, plaintext, aad):
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(aad)
    return encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag


def associated(header, tenant, table, column, row):
    return lp(b"charthold.v1", header, UUID(tenant).bytes, table.encode(), column.encode(), UUID(row).bytes)


def step(length):
    return 16 if length <= 64 else 64 if length <= 1024 else 1024


def pad(content):
    content += b"\x80"
    while len(content) % step(len(content)):
        content += b"\0"
    return content


def value_bytes(kind, value):
    """From the JSON of the vectors, where dates and decimals are text already."""
    if kind == "json":
        return b"\x05" + json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    tag = {"text": b"\x01", "date": b"\x02", "integer": b"\x03", "decimal": b"\x04"}[kind]
    return tag + str(value).encode()


def open_envelope(keys, tenant, table, column, row, kind, envelope):
    """``keys`` maps key versions to data keys. The value, as the vectors' JSON has it."""
    length = len(envelope) - 33
    if len(envelope) < 49 or envelope[0] != 1 or length % step(length):
        raise Refused
    (version,) = struct.unpack(">I", envelope[1:5])
    if version not in keys:
        raise Refused
    key = encryption_key(keys[version], tenant, version)
    plaintext = gcm_open(key, envelope[5:17], envelope[17:], associated(envelope[:5], tenant, table, column, row))
    content = plaintext.rstrip(b"\0")
    if content[-1:] != b"\x80" or len(content) < 2:
        raise Refused
    try:
        return value_of(kind, content[0], content[1:-1].decode())
    except ValueError:
        raise Refused from None


def value_of(kind, tag, text):
    if kind != {1: "text", 2: "date", 3: "integer", 4: "decimal", 5: "json"}.get(tag):
        raise Refused
    if kind == "date":
        match = re.fullmatch("([0-9]{4})-([0-9]{2})-([0-9]{2})", text)
        if not match:
            raise Refused
        return date(*map(int, match.groups())).isoformat()
    if kind == "integer":
        if not re.fullmatch("0|-?[1-9][0-9]*", text):
            raise Refused
        return int(text)
    if kind == "decimal" and not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(E[+-][0-9]+)?", text):
        raise Refused
    if kind == "json":
        if re.search("NaN|Infinity", re.sub('"[^"]*"', "", text)):
            raise Refused
        return json.loads(text)
    return text


def unwrap(masters, tenant, version, wrapped):
    if len(wrapped) != 69 or wrapped[0] != 1:
        raise Refused
    for master in masters:
        if hkdf(master, b"charthold/v1/kek-id", length=8) == wrapped[1:9]:
            aad = lp(b"charthold.v1.data-key", wrapped[:9], UUID(tenant).bytes, struct.pack(">I", version))
            return gcm_open(hkdf(master, b"charthold/v1/kek"), wrapped[9:21], wrapped[21:], aad)
    raise Refused


REMOVED = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f\u00ad\u200b-\u200d\u2060\ufeff]"
)
LETTERS = {"đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "ø": "o", "ŧ": "t", "æ": "ae", "œ": "oe", "þ": "th"}


def fold(text):
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFC", text).replace("\u00b4", "'")).casefold()
    text = REMOVED.sub("", unicodedata.normalize("NFKD", text).casefold())
    text = "".join(LETTERS.get(character, character) for character in text)
    text = re.sub("[\u2018\u2019\u201b\u02bc\u2032`]", "'", text)
    text = unicodedata.normalize("NFKC", re.sub("[\u2010-\u2015\u2212]", "-", text))
    return re.sub(r"\s+", " ", text).strip()


def normalise(kind, length, parts, types, value):
    """``types`` is the Python type that the vector names, a list of them for a compound."""
    if value is None:
        return None
    if kind == "compound":
        found = [normalise(part, None, [], None, v) for part, v in zip(parts, value, strict=True)]
        return None if None in found else lp(*found)
    if kind in {"year", "month"}:
        return str(value)[: 4 if kind == "year" else 7].encode()
    if kind == "folded":
        return fold(value).encode()
    if kind == "prefix":
        return fold(value)[:length].encode() if len(fold(value)) >= length else None
    if kind == "last":
        digits = "".join(re.findall("[0-9]", unicodedata.normalize("NFKC", value)))
        return digits[-length:].encode() if len(digits) >= length else None
    if types in {"int", "Decimal"}:
        return number(Decimal(value))
    return unicodedata.normalize("NFC", value).encode()


def number(value):
    if not value:
        return b"0"
    exponent, sign, value = 0, "-" if value < 0 else "", abs(value)
    while value != int(value):
        value, exponent = value * 10, exponent - 1
    value = int(value)
    while value % 10 == 0:
        value, exponent = value // 10, exponent + 1
    return f"{sign}{value}E{exponent}".encode()
