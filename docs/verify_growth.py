# ruff: noqa: INP001
"""Verify that an audit log only grew since a head of it was kept: python verify_growth.py PROOF.json HEADS.jsonl

Needs Python 3.11 and the package "cryptography", nothing of Charthold. The formats are those of audit-log.md.
HEADS.jsonl is your own file of exported heads, which the owner of the database never could write: the tree and the
public key in it are what is believed.

Exit status: 0 proved, 1 not proved, 2 there is nothing to look at, or it is malformed.
"""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def is_signed(head: dict, public_key: str) -> bool:
    parts = [b"charthold.v1.tree-head", UUID(head["tenant_id"]).bytes, head["version"].to_bytes(8, "big")]
    parts += [head["tree_size"].to_bytes(8, "big"), bytes.fromhex(head["root_hash"])]
    parts += [head[name].to_bytes(8, "big", signed=name == "cluster") for name in ("era", "cluster", "horizon")]
    sealed_at = datetime.fromisoformat(head["sealed_at"]) - datetime(1970, 1, 1, tzinfo=UTC)
    parts += [(sealed_at // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)]
    parts += [bytes.fromhex(head["leaf_list"]), bytes.fromhex(head["previous"]), head["key_id"].encode()]
    signed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(head["signature"]), signed)
    except InvalidSignature:
        return False
    return True


def begins_with(m: int, n: int, first_root: bytes, second_root: bytes, path: list[bytes]) -> bool:
    """RFC 9162, section 2.1.4.2: the tree of n leaves begins with that of m."""
    if m == n:
        return not path and first_root == second_root
    path = [first_root, *path] if m & (m - 1) == 0 else path
    if not 0 < m < n or not path:
        return False
    fn, sn = m - 1, n - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = sha256(b"\1" + sibling + old).digest(), sha256(b"\1" + sibling + new).digest()
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = sha256(b"\1" + new + sibling).digest()
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and (old, new) == (first_root, second_root)


def verify(path: str, heads: str) -> str:
    proof = json.load(open(path, encoding="utf-8"))  # noqa: SIM115, PTH123
    kept = []
    for line in open(heads, encoding="utf-8-sig", errors="replace"):  # noqa: SIM115, PTH123
        with suppress(ValueError):  # a crash may have torn one
            kept += [head for head in [json.loads(line)] if isinstance(head, dict)]
    first, second = proof["first"], proof["second"]

    # 1. The first head is one that was kept, and the second is signed, for the same tenant: by the same key, or by one
    #    that the proof brings along, which is said.
    found = [head for head in kept if all(head.get(name) == first[name] for name in first)]
    if not found:
        sys.exit("NOT PROVED: the first head is none of those that were kept.")
    if not is_signed(first, found[0]["public_key"]):
        sys.exit("NOT PROVED: the first head was kept, and is not signed with the public key beside it in your file.")
    keys = {head.get("key_id"): head.get("public_key") for head in kept}
    known = second["key_id"] in keys
    key = keys.get(second["key_id"]) or proof["public_keys"][second["key_id"]]
    if second["tenant_id"] != first["tenant_id"]:
        sys.exit("NOT PROVED: the second head is of another tenant than the first.")
    if not is_signed(second, key):
        sys.exit(
            f"NOT PROVED: the second head is not signed with the key that {'your file' if known else 'the proof'} has."
        )

    # 2. The first tree is the beginning of the second.
    m, n = first["tree_size"], second["tree_size"]
    roots = (bytes.fromhex(head["root_hash"]) for head in (first, second))
    if not begins_with(m, n, *roots, [bytes.fromhex(node) for node in proof["path"]]):
        sys.exit("NOT PROVED: the second tree does not begin with the first.")

    then, now = (datetime.fromisoformat(head["sealed_at"]) for head in (first, second))
    said = f"PROVED: the {m} records sealed at {then} are the first of the {n} sealed at {now}"
    if known:
        return said
    brought = bytes.fromhex(key).hex()
    return (
        f"{said}\nThe second head is signed by a key that your file does not have: {brought}. Ask whether it changed."
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(verify(*sys.argv[1:]))
    except MALFORMED as error:
        print(f"There is nothing to look at ({type(error).__name__}): verify_growth.py PROOF.json HEADS.jsonl")
        sys.exit(2)
