"""What all key work shares: the owner's connection, one worker a tenant, and a signed actor.

Threat: key work that nobody answers for, or two workers that undo each other's steps. Each transaction carries a scope
that the database itself signs for a named admin, so policies, triggers and the audit log treat it as any other; and a
session's advisory lock, which PostgreSQL drops when the process dies, lets one worker in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from core.crypto.keyring import TenantKeys, WrappedKey
from core.engine import engine
from core.errors import ChartholdError
from core.statements.explain import explain, lost, refusal

__all__ = [
    "REMAINS",
    "Progress",
    "Target",
    "acting",
    "key_lock",
    "noting",
    "open_keys",
    "owner_connection",
    "record",
    "silent",
    "stored_keys",
    "sweep",
]

LOCK = "pg_catalog.hashtextextended('charthold keys of ' || $1::text, 0)"
PATIENCE, POLL = 3.0, 0.1  # seconds: the session of a killed process ends a moment after it
# Milliseconds. To wait longer for a table's lock would hold up the application; and whoever gives up before
# deadlock_timeout, 1 s, never makes the application's transaction the one that is sacrificed.
LOCK_TIMEOUT = 500

# What is to be said where ``sweep`` was kept from its work.
REMAINS = (
    "An older transaction still looks at tenant_key, so the old wrapped keys still lie in the table's file. When "
    "it has ended, as the owner: VACUUM FULL tenant_key"
)

# Told what is done now, how much of it is done, and of how much.
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Target:
    """A tenant whose keys are worked on, and the admin in whose name."""

    tenant: UUID
    slug: str
    actor: UUID


@contextlib.asynccontextmanager
async def owner_connection() -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection as the schema's owner, which may sit idle while key caches expire."""
    async with engine().as_owner() as connection:
        await connection.execute(f"set idle_session_timeout = 0; set lock_timeout = {LOCK_TIMEOUT}")
        yield connection


@contextlib.asynccontextmanager
async def acting(connection: asyncpg.Connection[Any], target: Target, reason: str) -> AsyncIterator[None]:
    """One transaction in the target's tenant, in the name of its actor; for a minute at most.

    Nobody can write in a suspended or closed tenant. In this transaction, unseen by any other, the actor can.
    """
    async with connection.transaction():
        was_closed = await connection.fetchval(
            "update charthold.principal set tenant_open = true"
            " where tenant_id = $1 and user_id = $2 and not tenant_open returning true",
            target.tenant,
            target.actor,
        )
        await connection.execute(
            "select pg_catalog.set_config('charthold.scope', charthold.sign($1, $2, $3), true)",
            target.tenant,
            target.actor,
            reason,
        )
        yield
        if was_closed:
            await connection.execute(
                "update charthold.principal as p set tenant_open = d.status in ('trial', 'active')"
                " from charthold.tenant_directory as d"
                " where d.tenant_id = $1 and p.tenant_id = $1 and p.user_id = $2",
                target.tenant,
                target.actor,
            )


async def stored_keys(connection: asyncpg.Connection[Any], target: Target) -> list[asyncpg.Record]:
    """Every version of the tenant's key, the oldest first, locked; ``age``: seconds since it was last changed."""
    return await connection.fetch(
        "select version, wrapped, kek, status, extract(epoch from clock_timestamp() - updated_at)::float8 as age"
        " from public.tenant_key where tenant_id = $1 order by version for no key update",
        target.tenant,
    )


async def open_keys(target: Target, keys: Iterable[asyncpg.Record]) -> TenantKeys:
    """Those of the stored keys that were not destroyed, unwrapped."""
    stored = [
        WrappedKey(key["version"], key["wrapped"], key["status"], key["kek"])
        for key in keys
        if key["wrapped"] is not None
    ]
    return await engine().keyring.open_keys(target.tenant, stored)


async def record(connection: asyncpg.Connection[Any], action: str, said: Mapping[str, Any]) -> None:
    """Write an audit record about the tenant's keys in the transaction of ``acting``."""
    await connection.execute(
        "select charthold.record($1, 'tenant_key', null, null, $2::jsonb)", action, json.dumps(said, default=str)
    )


@contextlib.asynccontextmanager
async def key_lock(connection: asyncpg.Connection[Any], target: Target) -> AsyncIterator[None]:
    """Be the only one who works on the tenant's keys. Raises ``ChartholdError`` when somebody else is at it."""
    for _ in range(int(PATIENCE / POLL)):
        if await connection.fetchval(f"select pg_catalog.pg_try_advisory_lock({LOCK})", str(target.tenant)):
            break
        await asyncio.sleep(POLL)
    else:
        raise ChartholdError(
            f"Somebody else is working on the keys of {target.slug}. Wait until that is done, then look again."
        )
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(f"select pg_catalog.pg_advisory_unlock({LOCK})", str(target.tenant))


async def sweep(connection: asyncpg.Connection[Any]) -> bool:
    """Write ``tenant_key`` anew, without the old versions of its rows; False when somebody still needs one of them.

    An UPDATE leaves the old tuple, and a plain VACUUM its bytes in the page: a wrapped key that was destroyed would lie
    in the file. VACUUM FULL makes a new file. It says nothing of the WAL and of backups, which hold what they hold.
    """
    horizon = await connection.fetchval("select pg_snapshot_xmax(pg_current_snapshot())::xid::text")
    for _ in range(int(PATIENCE / POLL)):
        # VACUUM FULL copies what an older snapshot may still look at.
        needed = await connection.fetchval(
            "select exists (select from pg_catalog.pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and age(backend_xmin) > age($1::text::xid))",
            horizon,
        )
        if not needed:
            break
        await asyncio.sleep(POLL)
    try:
        await connection.execute("vacuum (full) public.tenant_key")
    except asyncpg.LockNotAvailableError:
        return False
    # CHECKPOINT needs more than the owner's rights on some servers; without it the new file is written a little later.
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        await connection.execute("checkpoint")
    return not needed


class Noted(Protocol):
    """What became of one tenant's keys."""

    problem: str


@contextlib.contextmanager
def noting(outcome: Noted) -> Iterator[None]:
    """Keep one tenant's failure from the others. A lost connection is everybody's."""
    try:
        yield
    except ChartholdError as error:
        if lost(error):
            raise
        outcome.problem = str(error)
    except asyncpg.PostgresError as error:
        if lost(error):
            raise
        explained = explain(error)
        outcome.problem = str(explained) if isinstance(explained, ChartholdError) else refusal(error)


def silent(_what: str, _done: float, _total: float) -> None:
    """Progress that nobody looks at."""
