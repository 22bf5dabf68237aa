"""The audit log's months: making the next ones, and taking one out to be archived."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import asyncpg

from core.audit.head import HEAD_COLUMNS, TreeHead, public_keys
from core.audit.retention import kept_since
from core.engine import engine
from core.errors import ChartholdError
from core.settings import settings
from core.statements.explain import explain

__all__ = ["archive_partition", "make_partitions"]

BUSY = (
    "Somebody's transaction has held the log for five seconds, so nothing was done: all tenants would have waited. Try "
    "again; for a transaction that stays open look into pg_stat_activity."
)


async def archive_partition(part: str) -> int:
    """Detach a month of the audit log for archiving, as the schema's owner; how many records it holds.

    Refused for a month that must still be kept, 164.316(b)(2)(i), or that holds records which were not sealed for as
    long: ``verify`` takes for archived only what was sealed so long ago.
    """
    async with engine().as_owner() as connection:
        try:
            async with connection.transaction():
                # Threat: somebody's open transaction is in the way, and all tenants wait behind this.
                await connection.execute("set local lock_timeout = '5s'")
                sealed = await _horizons(connection)
                return cast(
                    "int",
                    await connection.fetchval(
                        "select charthold.archive_partition($1, $2, $3)", part, list(sealed), list(sealed.values())
                    ),
                )
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            raise ChartholdError(BUSY) from None
        except asyncpg.PostgresError as error:
            if (getattr(error, "sqlstate", "") or "").startswith("CH02"):
                raise ChartholdError(f"{error}.") from None
            raise explain(error) from None


async def _horizons(connection: asyncpg.Connection[Any]) -> dict[UUID, int]:
    """Below which transaction each tenant's records are sealed, by the last head that is signed and old enough.

    Threat: whoever may seal can write a head; only the master key signs one, and with it the moment of sealing.
    """
    keys, horizons = public_keys(settings()), {}
    kept = await connection.fetch("select tenant_id, retention_years from charthold.tenant_directory")
    since = {row["tenant_id"]: kept_since(row["retention_years"]) for row in kept}
    # The owner is bound by the policies too; it looks past them here, while nobody else can use the table.
    await connection.execute("alter table public.audit_seal no force row level security")
    async for row in connection.cursor(f"select {HEAD_COLUMNS} from public.audit_seal order by tenant_id, tree_size"):
        head = TreeHead.from_row(row)
        if head.is_signed_by(keys) and head.tenant_id in since and head.sealed_at < since[head.tenant_id]:
            horizons[head.tenant_id] = head.horizon
    await connection.execute("alter table public.audit_seal force row level security")
    return horizons


async def make_partitions(ahead: int = 3) -> list[str]:
    """Make the audit log's partitions for this month and ``ahead`` more, as the schema's owner; the new ones' names."""
    async with engine().as_owner() as connection:
        try:
            rows = await connection.fetch("select charthold.ensure_partitions($1) as name", ahead)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            raise ChartholdError(BUSY) from None
    return [row["name"] for row in rows]
