"""Inclusion proofs: one record's place in a signed tree, for somebody who has neither our database nor our package."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg

from core.audit.canonical import decode
from core.audit.head import HEAD_COLUMNS, TreeHead, public_keys
from core.audit.merkle import HASH_BYTES, Frontier, inclusion_ranges, leaf_hash, verify_inclusion
from core.audit.stream import in_scope, records
from core.errors import ChartholdError
from core.explain import explain
from core.scope import current_scope
from core.settings import settings

__all__ = ["prove"]

FORMAT = "charthold.inclusion-proof.v1"

NEWEST = f"select {HEAD_COLUMNS} from public.audit_seal where tenant_id = $1 order by tree_size desc limit 1"
PLACE = """select tree_size - cardinality(record_ids) + array_position(record_ids, $2) - 1
from public.audit_seal where tenant_id = $1 and $2 = any (record_ids)"""
LEAVES = "select leaf_hashes from public.audit_seal where tenant_id = $1 order by tree_size"


async def prove(record: UUID) -> dict[str, Any]:
    """The proof that the record is in the tree of the newest head, as JSON data; ``docs/verify_proof.py`` verifies it.

    It holds the record itself, with PHI as the ciphertext that the log holds. Raises ``ChartholdError`` when the record
    is not sealed, or is not what was sealed.
    """
    tenant = current_scope().tenant
    try:
        async with in_scope(snapshot=True) as connection:
            found = [
                data
                async for batch in records(connection, "tenant_id = $1 and id = $2", tenant, record)
                for data in batch
            ]
            row = await connection.fetchrow(NEWEST, tenant)
            index = await connection.fetchval(PLACE, tenant, record)
            if not found:
                raise ChartholdError(f"The log of this tenant has no record {record}.")
            if row is None or index is None:
                raise ChartholdError(f"Record {record} is not sealed yet. Run: piccolo core seal_audit")
            head, keys = TreeHead.from_row(row), public_keys(settings())
            ranges = inclusion_ranges(index, head.tree_size)
            parts = {part: Frontier() for part in ranges}
            at = 0
            async for (hashes,) in connection.cursor(LEAVES, tenant, prefetch=1):
                leaves = [hashes[place : place + HASH_BYTES] for place in range(0, len(hashes), HASH_BYTES)]
                for (start, end), tree in parts.items():
                    tree.extend(leaves[max(start - at, 0) : max(end - at, 0)])
                at += len(leaves)
    except asyncpg.PostgresError as error:
        raise explain(error) from None
    path = [parts[part].root() for part in ranges]
    if not head.is_signed_by(keys) or not verify_inclusion(
        leaf_hash(found[0]), index, head.tree_size, path, head.root_hash
    ):
        raise ChartholdError(f"Record {record} or its tree is not what was sealed. Run: piccolo core verify_audit")
    return {
        "format": FORMAT,
        "says": decode(found[0]),
        "record": found[0].hex(),
        "leaf": index,
        "path": [node.hex() for node in path],
        "head": head.to_json(),
        "public_key": keys[head.key_id].hex(),
    }
