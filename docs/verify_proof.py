# ruff: noqa: INP001
"""Verify that a record stands in a signed audit log: python verify_proof.py PROOF.json [PUBLIC_KEY_HEX]

Needs Python 3.11 and "cryptography", nothing of Charthold; see audit-log.md. Without a key a proof only proves itself.

Exit status: 0 proved, 1 not proved, 2 there is no proof to look at.
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
    25: bytes.decode,
    20: lambda b: struct.unpack("!q", b)[0],
    3802: lambda b: b[1:].decode(),
}

try:
    proof = json.load(open(sys.argv[1], encoding="utf-8"))  # noqa: SIM115, PTH123
    head, record = proof["head"], bytes.fromhex(proof["record"])
    public_key = bytes.fromhex(sys.argv[2] if len(sys.argv) > 2 else proof["public_key"])
    key = Ed25519PublicKey.from_public_bytes(public_key)
except (IndexError, OSError, ValueError, KeyError, TypeError) as error:
    print(f"There is no proof to look at ({type(error).__name__}): verify_proof.py PROOF.json [PUBLIC_KEY_HEX]")
    sys.exit(2)

# 1. The head is signed.
parts = [b"charthold.v1.tree-head", UUID(head["tenant_id"]).bytes]
parts += [head["version"].to_bytes(8, "big"), head["tree_size"].to_bytes(8, "big"), bytes.fromhex(head["root_hash"])]
parts += [head[name].to_bytes(8, "big", signed=name == "cluster") for name in ("era", "cluster", "horizon")]
sealed_at = datetime.fromisoformat(head["sealed_at"]) - datetime(1970, 1, 1, tzinfo=UTC)
parts += [(sealed_at // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)]
parts += [bytes.fromhex(head["leaf_list"]), bytes.fromhex(head["previous"]), head["key_id"].encode()]
signed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
try:
    key.verify(bytes.fromhex(head["signature"]), signed)
except InvalidSignature:
    sys.exit("NOT PROVED: the head is not signed with this key.")

# 2. The record is a leaf of the tree with that root: RFC 9162, section 2.1.3.2.
node, fn, sn = sha256(b"\0" + record).digest(), proof["leaf"], head["tree_size"] - 1
for sibling in map(bytes.fromhex, proof["path"]):
    left = fn & 1 or fn == sn
    node = sha256(b"\1" + (sibling + node if left else node + sibling)).digest()
    while left and not fn & 1 and fn:
        fn, sn = fn >> 1, sn >> 1
    fn, sn = fn >> 1, sn >> 1
if (
    sn
    or not 0 <= proof["leaf"] < head["tree_size"]
    or node.hex() != head["root_hash"]
    or record[36:52] != UUID(head["tenant_id"]).bytes
):
    sys.exit("NOT PROVED: the record is not in the signed tree.")

# 3. What the record says.
whose = "the key given," if len(sys.argv) > 2 else "ITS OWN key,"
print(f"PROVED under {whose} {public_key.hex()}:")
print(f"leaf {proof['leaf']} of {head['tree_size']}, sealed at {head['sealed_at']}")
at = 4
for name in FIELDS:
    kind, length = struct.unpack_from("!Ii", record, at)
    at += 8 + max(length, 0)
    print(f"{name}: {None if length < 0 else SHOW.get(kind, bytes.hex)(record[at - length : at])}")
