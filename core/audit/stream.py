"""The log in the order of the tree: leaf after leaf, in bounded memory.

The order is (transaction id, time, id). Transaction ids, unlike times, say what is finished: a record whose id is below
the oldest transaction still running is visible or will never be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from core.access.permissions import roles_for
from core.audit.canonical import COLUMNS_SQL, PROBE, PROBE_SQL, RECORD_SQL, encode
from core.audit.merkle import leaf_hash
from core.engine import engine
from core.errors import ScopeError
from core.scope import current_scope

__all__ = ["NOT_A_READER", "READS_THE_LOG", "Connection", "Leaf", "canonical_record", "in_scope", "leaves_of"]

BATCH = 4096  # leaves; some hundred kilobytes
FEW = 16  # records, each of which may have many megabytes
HASHED_SQL = f"id, pg_catalog.sha256('\\x00'::bytea || {RECORD_SQL}) as hash, transaction_id"

Connection: TypeAlias = "asyncpg.Connection[Any]"

READERS = roles_for("user_action_audit_log", "select")

# Whether the scope's user may read the log, all of it: to anybody else the policies show an empty one, in which nothing
# is ever wrong, and nobody saw anything.
READS_THE_LOG = (
    f"charthold.tenant_as({', '.join(map(repr, READERS))}) is not null and charthold.tenant_everywhere() is not null"
)
NOT_A_READER = f"The log is for users with one of the roles {', '.join(READERS)} who are bound to no facility."

# For our long statements: plans that know their arguments, and more memory to sort in than a web request gets.
SETTINGS = "set local plan_cache_mode = force_custom_plan; set local work_mem = '64MB'"


@asynccontextmanager
async def in_scope(*, snapshot: bool = False) -> AsyncIterator[Connection]:
    """A transaction of the application's role in the open scope: policies hold for us as for anybody.

    ``snapshot``: read only, and everything that is read is of one moment.
    """
    async with engine().transaction(allow_nested=False) as transaction:
        connection = transaction.link.connection
        if snapshot:
            await connection.execute("set transaction isolation level repeatable read, read only")
        await connection.execute(SETTINGS)
        transaction.keep_scope(current_scope())
        await engine().set_scope(transaction.link, current_scope())
        if not await connection.fetchval(f"select {READS_THE_LOG}"):
            raise ScopeError(NOT_A_READER)
        yield connection


class Leaf(NamedTuple):
    """What the tree holds of a record, and what says where it stands."""

    id: UUID
    hash: bytes
    transaction_id: int


async def leaves_of(connection: Connection, condition: str, *arguments: Any) -> AsyncIterator[list[Leaf]]:
    """The leaves of the records that meet the condition, in batches.

    Threat: somebody's records are so large that nobody has the memory for a batch of them, and no tenant's log is
    sealed. So the server, which writes the bytes, also hashes them.
    """
    theirs = await _writes_our_form(connection)
    # A policy that fails is an error; one that hides rows would show as missing records.
    cursor = await connection.cursor(
        f"select {HASHED_SQL if theirs else COLUMNS_SQL} from public.user_action_audit_log where {condition}"
        " order by transaction_id, occurred_at, id",
        *arguments,
    )
    while rows := await cursor.fetch(BATCH if theirs else FEW):
        yield (
            [Leaf(*row) for row in rows]
            if theirs
            else [Leaf(row["id"], leaf_hash(encode(row)), row["transaction_id"]) for row in rows]
        )


async def canonical_record(connection: Connection, tenant: UUID, record: UUID) -> bytes | None:
    """The canonical bytes of one record; None when there is none."""
    theirs = await _writes_our_form(connection)
    row = await connection.fetchrow(
        f"select {RECORD_SQL if theirs else COLUMNS_SQL} from public.user_action_audit_log"
        " where tenant_id = $1 and id = $2 order by transaction_id, occurred_at limit 1",
        tenant,
        record,
    )
    return None if row is None else row[0] if theirs else encode(row)


async def _writes_our_form(connection: Connection) -> bool:
    """Threat: a server of another version could write a record in other bytes, and every leaf would look changed. It is
    tried on one record first; a server that differs is only asked for the columns.
    """
    return bool(await connection.fetchval(PROBE_SQL, *PROBE.values()) == encode(PROBE))
