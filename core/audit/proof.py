"""Proofs for somebody who has neither our database nor our package: that a record is in the signed tree, and that the
tree which was signed once is the beginning of the one that is signed now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from core.audit.canonical import decode
from core.audit.head import HEAD_COLUMNS, TreeHead, public_keys
from core.audit.merkle import (
    HASH_BYTES,
    Range,
    Ranges,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from core.audit.record import record as record_action
from core.audit.stream import Connection, canonical_record, in_scope
from core.errors import ChartholdError
from core.scope import current_scope
from core.settings import settings
from core.statements.explain import explain

__all__ = ["prove", "prove_growth"]

INCLUSION = "charthold.inclusion-proof.v1"
CONSISTENCY = "charthold.consistency-proof.v1"

NEWEST = f"select {HEAD_COLUMNS} from public.audit_seal where tenant_id = $1 order by tree_size desc limit 1"
PLACE = """select tree_size - cardinality(record_ids) + array_position(record_ids, $2) - 1
from public.audit_seal where tenant_id = $1 and $2 = any (record_ids)"""
LEAVES = "select leaf_hashes from public.audit_seal where tenant_id = $1 order by tree_size"


async def prove(record: UUID) -> dict[str, Any]:
    """The proof that the record is in the tree of the newest head, as JSON data; ``docs/verify_proof.py`` verifies it.

    It holds the record itself, with PHI as the ciphertext that the log holds; that it was taken out is recorded. Raises
    ``ChartholdError`` when the record is not sealed, or is not what was sealed.
    """
    tenant = current_scope().tenant
    await record_action("audit_read", new={"proved": str(record)})
    try:
        async with in_scope(snapshot=True) as connection:
            found = await canonical_record(connection, tenant, record)
            row = await connection.fetchrow(NEWEST, tenant)
            index = await connection.fetchval(PLACE, tenant, record)
            if found is None:
                raise ChartholdError(f"The log of this tenant has no record {record}.")
            if row is None or index is None:
                raise ChartholdError(f"Record {record} is not sealed yet. Run: piccolo core seal_audit")
            head, keys = TreeHead.from_row(row), public_keys(settings())
            path = await _hashes(connection, tenant, inclusion_ranges(index, head.tree_size))
    except asyncpg.PostgresError as error:
        raise explain(error) from None
    if not head.is_signed_by(keys) or not verify_inclusion(
        leaf_hash(found), index, head.tree_size, path, head.root_hash
    ):
        raise ChartholdError(f"Record {record} or its tree is not what was sealed. Run: piccolo core verify_audit")
    return {
        "format": INCLUSION,
        "says": decode(found),
        "record": found.hex(),
        "leaf": index,
        "path": [node.hex() for node in path],
        "head": head.to_json(),
        "public_key": keys[head.key_id].hex(),
    }


async def prove_growth(first: TreeHead) -> dict[str, Any]:
    """The proof that the tree of the newest head begins with the tree of ``first``, a head that was exported before.

    JSON data; ``docs/verify_growth.py`` verifies it. Raises ``ChartholdError`` when it does not, or when one of the
    heads is not signed by a key of ours.
    """
    tenant = current_scope().tenant
    try:
        async with in_scope(snapshot=True) as connection:
            row = await connection.fetchrow(NEWEST, tenant)
            if row is None:
                raise ChartholdError("Nothing of this tenant's log is sealed. Run: piccolo core seal_audit")
            newest, keys = TreeHead.from_row(row), public_keys(settings())
            for head, whose in ((first, "exported"), (newest, "newest")):
                if head.tenant_id != tenant or not head.is_signed_by(keys):
                    raise ChartholdError(
                        f"The {whose} head is not signed for this tenant by a master key that is configured. "
                        "Set CHARTHOLD_RETIRED_MASTER_KEYS or CHARTHOLD_RETIRED_SEAL_KEYS, or run: piccolo core "
                        "verify_audit"
                    )
            path: list[bytes] = []
            if 0 < first.tree_size <= newest.tree_size:
                path = await _hashes(connection, tenant, consistency_ranges(first.tree_size, newest.tree_size))
    except asyncpg.PostgresError as error:
        raise explain(error) from None
    if not verify_consistency(first.tree_size, newest.tree_size, first.root_hash, newest.root_hash, path):
        raise ChartholdError(
            f"The tree did not grow out of the exported head of {first.tree_size} records: the past was rewritten, or "
            "taken back. Run: piccolo core verify_audit --heads=FILE"
        )
    return {
        "format": CONSISTENCY,
        "first": first.to_json(),
        "second": newest.to_json(),
        "path": [node.hex() for node in path],
        "public_keys": {head.key_id: keys[head.key_id].hex() for head in (first, newest)},
    }


async def _hashes(connection: Connection, tenant: UUID, ranges: Sequence[Range]) -> list[bytes]:
    """The hashes of these ranges of the tenant's leaves, as the lists beside the heads have them."""
    found = Ranges(ranges)
    async for (hashes,) in connection.cursor(LEAVES, tenant, prefetch=1):
        found.extend([hashes[place : place + HASH_BYTES] for place in range(0, len(hashes), HASH_BYTES)])
    return found.hashes()
