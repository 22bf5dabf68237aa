"""The connections of one event loop: those for anything, and the lanes of group commit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import asyncpg

from core.errors import ConfigurationError
from core.scope import Scope
from core.wire.group_commit import LANES, LOCK_TIMEOUT, GroupCommit
from core.wire.pool import Link, Pool

__all__ = ["Connections"]

# Whether the database has a trigger that would run under another member's scope in a group: one that waits for the
# commit, or that fires before a whole statement (in tgtype 1: for each row, 2: before, 28: insert, delete or update),
# and so before the statement's gate.
MISPLACED = """select exists (select from pg_catalog.pg_trigger
where not tgisinternal and (tginitdeferred or tgtype & 1 = 0 and tgtype & 2 > 0 and tgtype & 28 > 0))"""


class Connect(Protocol):
    """Makes a connection."""

    async def __call__(self, *, owner: bool, lock_timeout: str | None = None) -> asyncpg.Connection[Any]: ...


class Connections:
    """At most ``size`` connections; below four there are no lanes. ``token`` makes a scope's token for one."""

    __slots__ = ("lanes", "pool")

    def __init__(self, connect: Connect, token: Callable[[Scope, Link], str], *, size: int, seconds: float) -> None:
        few = min(LANES, size // 4)
        self.pool = Pool(functools.partial(connect, owner=False), size=size - few, seconds=seconds)
        self.lanes: GroupCommit | None = None
        if few:
            lanes = Pool(functools.partial(_connect_lane, connect), size=few, seconds=seconds)
            self.lanes = GroupCommit(lanes, self.pool, token)

    async def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        await self.pool.close()
        if self.lanes is not None:
            await self.lanes.close()


async def _connect_lane(connect: Connect) -> asyncpg.Connection[Any]:
    connection = await connect(owner=False, lock_timeout=LOCK_TIMEOUT)
    try:
        misplaced = await connection.fetchval(MISPLACED)
    except BaseException:
        connection.terminate()  # cancelled half-way, nobody else would close it
        raise
    if misplaced:
        await connection.close()
        raise ConfigurationError(
            "A trigger waits for the commit, or comes before a whole statement, so several requests cannot share one."
        )
    return connection
