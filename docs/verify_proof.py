# ruff: noqa: INP001
"""Verify that a record stands in a signed audit log: python verify_proof.py PROOF.json [PUBLIC_KEY_HEX]

Needs Python 3.11 and "cryptography", nothing of Charthold; see audit-log.md. Without a key a proof only proves itself.
Exit status: 0 proved, 1 not proved, 2 there is no proof to look at, or it or the key is malformed.
"""

import json
import struct
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIELDS = ["id", "tenant_id", "occurred_at", "user_id", "action_type", "table_name", "record_id", "old_values"]
FIELDS += ["new_values", "changed_columns", "reason", "request_id", "source_ip", "transaction_id"]
SHOW = {
    2950: lambda b: str(UUID(bytes=b)),
    1184: lambda b: str(datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=struct.unpack("!q", b)[0])),
    # As Python writes text: a line break or an escape sequence in it cannot look like another line.
    25: lambda b: repr(b.decode()),
    20: lambda b: struct.unpack("!q", b)[0],
    3802: lambda b: "".join(c if c.isprintable() else ascii(c)[1:-1] for c in b[1:].decode()),
}
MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, struct.error)


def verify(path: str, *keys: str) -> str:
    proof = json.load(open(path, encoding="utf-8"))  # noqa: SIM115, PTH123
    head, record = proof["head"], bytes.fromhex(proof["record"])
    public_key = bytes.fromhex(*keys or [proof["public_key"]])
    key, signature = Ed25519PublicKey.from_public_bytes(public_key), bytes.fromhex(head["signature"])

    # 1. The head is signed.
    parts = [b"charthold.v1.tree-head", UUID(head["tenant_id"]).bytes, head["version"].to_bytes(8, "big")]
    parts += [head["tree_size"].to_bytes(8, "big"), bytes.fromhex(head["root_hash"])]
    parts += [head[name].to_bytes(8, "big", signed=name == "cluster") for name in ("era", "cluster", "horizon")]
    sealed_at = datetime.fromisoformat(head["sealed_at"])
    microseconds = (sealed_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    parts += [microseconds.to_bytes(8, "big", signed=True), bytes.fromhex(head["leaf_list"])]
    parts += [bytes.fromhex(head["previous"]), head["key_id"].encode()]
    try:
        key.verify(signature, b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    except InvalidSignature:
        sys.exit(f"NOT PROVED: the head is not signed with {'the key given' if keys else 'its own key'}.")

    # 2. The record is a leaf of the tree with that root: RFC 9162, section 2.1.3.2.
    node, fn, sn = sha256(b"\0" + record).digest(), proof["leaf"], head["tree_size"] - 1
    for sibling in map(bytes.fromhex, proof["path"]):
        left = fn & 1 or fn == sn
        node = sha256(b"\1" + (sibling + node if left else node + sibling)).digest()
        while left and not fn & 1 and fn:
            fn, sn = fn >> 1, sn >> 1
        fn, sn = fn >> 1, sn >> 1
    placed = not sn and 0 <= proof["leaf"] < head["tree_size"] and node.hex() == head["root_hash"]
    if not placed or record[36:52] != UUID(head["tenant_id"]).bytes:
        sys.exit("NOT PROVED: the record is not in the signed tree.")

    # 3. What the record says.
    said = [f"PROVED under {'the key given,' if keys else 'ITS OWN key,'} {public_key.hex()}:"]
    said += [f"leaf {proof['leaf']} of {head['tree_size']}, sealed at {sealed_at}"]
    at = 4
    for name in FIELDS:
        kind, length = struct.unpack_from("!Ii", record, at)
        at += 8 + max(length, 0)
        said += [f"{name}: {None if length < 0 else SHOW.get(kind, bytes.hex)(record[at - length : at])}"]
    return "\n".join(said)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(verify(*sys.argv[1:]))
    except MALFORMED as error:
        keyed = all([c in "0123456789abcdefABCDEF" for c in key] == [True] * 64 for key in sys.argv[2:3])
        print(f"{'There is no proof' if keyed else 'That is no key'} ({type(error).__name__}): PROOF.json [64 HEX]")
        sys.exit(2)
