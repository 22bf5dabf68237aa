"""The scripts that outsiders verify proofs with: whatever they are given, they end with a status and a sentence."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from core.audit.head import SealKey
from core.audit.merkle import leaf_hash

DOCS = Path(__file__).parent.parent / "docs"
KEY = SealKey(bytes(32))
TENANT, RECORD = UUID(int=1), UUID(int=2)
HOSTILE = "client\nrecord_id: 0198c0de\x1b[8m\u202e"
DEEP = "[" * 100_000


def canonical(**said: str) -> bytes:
    """A record as docs/audit-log.md defines it, with these texts in it."""
    fields: list[tuple[int, bytes | None]] = [
        (2950, RECORD.bytes), (2950, TENANT.bytes), (1184, struct.pack("!q", 0)), (2950, UUID(int=3).bytes),
        (25, said.get("action", "login").encode()), (25, said.get("table", "client").encode()), (2950, RECORD.bytes),
        (3802, None), (3802, b"\x01" + said.get("new", "{}").encode()), (1009, None),
        (25, said.get("reason", "treatment").encode()), (25, None), (869, None), (20, struct.pack("!q", 7)),
    ]  # fmt: skip
    record = struct.pack("!I", len(fields))
    for kind, value in fields:
        record += struct.pack("!Ii", kind, -1 if value is None else len(value)) + (value or b"")
    return record


def head(record: bytes, size: int = 1, tenant: UUID = TENANT) -> dict[str, Any]:
    return KEY.sign(
        tenant_id=tenant, version=1, tree_size=size, root_hash=leaf_hash(record), era=1, cluster=-5, horizon=9,
        sealed_at=datetime(2026, 1, 1, tzinfo=UTC), leaf_list=bytes(32), previous=bytes(32),
    ).to_json()  # fmt: skip


def proof(**said: str) -> dict[str, Any]:
    record = canonical(**said)
    return {"record": record.hex(), "leaf": 0, "path": [], "head": head(record), "public_key": KEY.public.hex()}


def growth() -> dict[str, Any]:
    one = head(canonical())
    return {"first": one, "second": one, "path": [], "public_keys": {KEY.id: KEY.public.hex()}}


def run(script: str, *arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DOCS / script), *arguments], capture_output=True, encoding="utf-8", timeout=60,
        env=os.environ | {"PYTHONIOENCODING": encoding}, check=False,
    )  # fmt: skip


def test_a_record_cannot_forge_lines_or_hide_what_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    file.write_text(json.dumps(proof(table=HOSTILE, new='{"a": "\u202eb\x9b"}', reason="für Zoë")), encoding="utf-8")
    done = run("verify_proof.py", str(file), KEY.public.hex())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 14
    assert r"table_name: 'client\nrecord_id: 0198c0de\x1b[8m\u202e'" in lines
    assert "reason: 'für Zoë'" in lines
    assert r'new_values: {"a": "\u202eb\x9b"}' in lines
    assert "old_values: None" in lines
    assert "\x1b" not in done.stdout


def test_a_terminal_without_the_letters_of_a_record_shows_it_escaped(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    file.write_text(json.dumps(proof(reason="Zoë")), encoding="utf-8")
    done = run("verify_proof.py", str(file), KEY.public.hex(), encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"reason: 'Zo\xeb'" in done.stdout


MISSHAPEN = [
    "", "7", "[]", '"x"', "{}", DEEP, '{"head": 1, "record": "", "public_key": ""}', "1" * 5000,
]  # fmt: skip
WRONG = [
    ("head", 7), ("head", {}), ("record", "0g"), ("record", 3), ("path", 5), ("path", ["xyz"]), ("leaf", "0"),
    ("leaf", None), ("public_key", "00"), ("public_key", None),
]  # fmt: skip
WRONG_HEAD = [
    ("tree_size", -1), ("tree_size", 1.5), ("tree_size", "1"), ("tree_size", 2**70), ("tenant_id", "x"),
    ("sealed_at", "soon"), ("sealed_at", "2026-01-01T00:00:00"), ("sealed_at", 1), ("root_hash", "zz"),
    ("key_id", 1), ("signature", "no"), ("signature", None), ("era", None), ("version", "1"), ("previous", []),
]  # fmt: skip


@pytest.mark.parametrize("text", MISSHAPEN, ids=lambda text: text[:20])
@pytest.mark.parametrize("script", ["verify_proof.py", "verify_growth.py"])
def test_what_is_no_proof_is_a_sentence_and_status_2(tmp_path: Path, script: str, text: str) -> None:
    file = tmp_path / "proof.json"
    file.write_text(text, encoding="utf-8")
    kept = [str(file)] if script == "verify_growth.py" else []
    done = run(script, str(file), *kept)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("There is no")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    [*({name: value} for name, value in WRONG), *({"head": {name: value}} for name, value in WRONG_HEAD)],
    ids=str,
)
def test_a_proof_with_a_part_that_cannot_be_read_is_status_2(tmp_path: Path, given: dict[str, Any]) -> None:
    whole = proof()
    for name, value in given.items():
        deeper = name == "head" and isinstance(value, dict) and value
        whole[name] = whole[name] | value if deeper else value
    file = tmp_path / "proof.json"
    file.write_text(json.dumps(whole), encoding="utf-8")
    done = run("verify_proof.py", str(file))
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({}, ["[1]", "7", DEEP]),
        ({"second": 7}, []),
        ({"second": {}}, []),
        ({"path": ["zz"]}, []),
        ({"path": 7}, []),
        ({"first": {}}, []),
        ({"public_keys": 7, "second": {"key_id": "other"}}, []),
    ],
    ids=str,
)
def test_a_growth_with_a_part_that_cannot_be_read_is_status_2(
    tmp_path: Path, given: dict[str, Any], lines: list[str]
) -> None:
    whole = growth() | given
    file, kept = tmp_path / "growth.json", tmp_path / "heads.jsonl"
    file.write_text(json.dumps(whole), encoding="utf-8")
    line = json.dumps(growth()["first"] | {"public_key": KEY.public.hex()})
    kept.write_text("\n".join([line, *lines]), encoding="utf-8")
    done = run("verify_growth.py", str(file), str(kept))
    assert (done.returncode, done.stderr) == (2, ""), done.stdout


def test_a_growth_is_proved_beside_lines_that_are_no_heads(tmp_path: Path) -> None:
    file, kept = tmp_path / "growth.json", tmp_path / "heads.jsonl"
    file.write_text(json.dumps(growth()), encoding="utf-8")
    line = json.dumps(growth()["first"] | {"public_key": KEY.public.hex()})
    kept.write_text("\n".join(["[1]", "7", "null", line, line[:50]]), encoding="utf-8")
    done = run("verify_growth.py", str(file), str(kept))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PROVED: the 1 records")
    assert run("verify_growth.py").returncode == run("verify_proof.py").returncode == 2


def test_a_wrong_key_is_what_is_blamed_and_not_the_file(tmp_path: Path) -> None:
    file, kept, other = tmp_path / "proof.json", tmp_path / "heads.jsonl", SealKey(b"o" * 32).public.hex()
    file.write_text(json.dumps(proof()), encoding="utf-8")
    for key in ("00", "no key", f"{other}0"):
        done = run("verify_proof.py", str(file), key)
        assert (done.returncode, done.stderr) == (2, "")
        assert done.stdout == "That is no key (ValueError): PROOF.json [64 HEX]\n"
    done = run("verify_proof.py", str(file), other)
    assert (done.returncode, done.stderr) == (1, "NOT PROVED: the head is not signed with the key given.\n")
    file.write_text(json.dumps(proof() | {"public_key": "00"}), encoding="utf-8")
    assert run("verify_proof.py", str(file)).stdout.startswith("There is no proof (ValueError)")
    assert run("verify_proof.py", str(kept), other).stdout.startswith("There is no proof (FileNotFound")
    file.write_text(json.dumps(growth()), encoding="utf-8")
    kept.write_text(json.dumps(growth()["first"] | {"public_key": other}), encoding="utf-8")
    done = run("verify_growth.py", str(file), str(kept))
    assert (done.returncode, "is not signed with the public key beside it" in done.stderr) == (1, True)


def test_a_head_of_another_tenant_is_told_as_that_and_not_as_unsigned(tmp_path: Path) -> None:
    file, kept, one = tmp_path / "growth.json", tmp_path / "heads.jsonl", head(canonical())
    kept.write_text(json.dumps(one | {"public_key": KEY.public.hex()}), encoding="utf-8")
    file.write_text(json.dumps(growth() | {"second": head(canonical(), tenant=UUID(int=9))}), encoding="utf-8")
    done = run("verify_growth.py", str(file), str(kept))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "NOT PROVED: the second head is of another tenant than the first.\n"
