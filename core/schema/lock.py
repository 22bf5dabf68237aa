"""One migrator at a time, as the owner of the schema.

The lock is a session's advisory lock on a connection of its own: it lives as long as the migrating process, whatever
its transactions do, and PostgreSQL drops it when the process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import asyncpg
from piccolo.engine import engine_finder

from core.errors import MigrationError

__all__ = ["STEP_LOCK", "engine", "migrating", "owner"]

# Advisory locks belong to a database; the name tells ours from those of other programs in it.
SESSION_LOCK = "pg_catalog.hashtextextended('charthold migrations of ' || pg_catalog.current_database(), 0)"

# Taken again by each step's transaction: should the session's connection be lost in the middle of a step,
# another migrator still waits for that step to end.
STEP_LOCK = (
    "select pg_catalog.pg_advisory_xact_lock("
    "pg_catalog.hashtextextended('charthold migration step of ' || pg_catalog.current_database(), 0))"
)

POLL = 0.1  # seconds between two tries for the lock

_session: ContextVar[asyncpg.Connection[Any] | None] = ContextVar("charthold_migrating", default=None)


def engine() -> Any:
    """The engine of piccolo_conf."""
    found = engine_finder()
    if found is None:
        raise MigrationError("There is no piccolo_conf.py with a DB on the path. Run this where piccolo_conf.py is.")
    return found


@contextlib.contextmanager
def owner() -> Iterator[None]:
    """Let the engine connect as the owner of the schema."""
    from core.engine import owner_mode  # late: the engine imports half of the package

    token = owner_mode.set(True)
    try:
        yield
    finally:
        owner_mode.reset(token)


@contextlib.asynccontextmanager
async def migrating(*, locked: bool = True) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The migrator's own connection, with the lock held. Within itself it yields the same connection."""
    held = _session.get()
    if held is not None and not held.is_closed():
        yield held
        return
    with owner():
        connection = await engine().get_new_connection()
        token = _session.set(connection)
        try:
            # It sits idle while the steps run elsewhere.
            await connection.execute("set idle_session_timeout = 0")
            if locked:
                await take(connection)
            yield connection
        finally:
            _session.reset(token)
            await connection.close()


async def take(connection: asyncpg.Connection[Any]) -> None:
    """Take the lock, asking again and again.

    A session that waits inside of a statement holds a snapshot, and CREATE INDEX CONCURRENTLY waits for snapshots:
    the holder of the lock and its waiter would wait for each other.
    """
    told = False
    while not await connection.fetchval(f"select pg_catalog.pg_try_advisory_lock({SESSION_LOCK})"):
        if not told:
            print("Another process is migrating this database; waiting for it.", file=sys.stderr)
            told = True
        await asyncio.sleep(POLL)
