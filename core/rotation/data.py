"""A new data key for a tenant, and with it new encryption and index keys.

Threat: a process that does not know of a key yet writes or searches under the old one, and a row is there that nobody
finds. Keys are cached, so every step waits until each cache has been loaded again:

    next      every process learns to search under the new key; nobody writes under it
    current   writers turn to it, one by one; everybody searches under both
    (waiting, then all rows are sealed and indexed anew, and nothing older is left in an open transaction)
    retired   the old key opens what the audit log holds, and is searched under no more

The state is in ``tenant_key`` and in the envelopes themselves: killed at any point, the next run goes on from there. A
run finishes what was begun before it begins anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

import asyncpg

from core.engine import engine
from core.errors import ChartholdError
from core.ids import uuid7
from core.rotation.owner import (
    Progress,
    Target,
    acting,
    key_lock,
    noting,
    open_keys,
    owner_connection,
    record,
    silent,
    stored_keys,
)
from core.rotation.rows import SealedTable, check_actor, check_declared, sealed_tables
from core.rotation.work import AGAIN, Work, Written, check_batch

__all__ = ["TOGETHER", "Outcome", "Rotation", "rotate", "shortest_wait"]

# Tenants that wait for the caches at the same time. Each holds a lock, of which a small server has some thousands.
TOGETHER = 500


@dataclass
class Outcome(Written):
    """What became of one tenant's rotation."""

    version: int = 0
    retired: list[int] = field(default_factory=list)
    resumed: bool = False


def shortest_wait() -> float:
    """Until no process uses a key that it cached before: a cache's life, and a statement's wait for a connection."""
    configured = engine().settings
    return configured.key_cache_seconds + configured.pool_seconds


class Rotation(Work):
    """One tenant's rotation, in steps, so that many can wait together."""

    reason: ClassVar[str] = "key rotation"
    outcome: Outcome

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        target: Target,
        tables: Sequence[SealedTable],
        *,
        wait: float,
        batch: int,
        progress: Progress,
    ) -> None:
        super().__init__(connection, target, tables, batch=batch, progress=progress)
        self.outcome = Outcome(target.slug)
        self._wait = wait
        self._switched = False

    async def begin(self) -> float:
        """Make the next version, or find the one that was made; returns how long to wait from now on."""
        tenant = self.target.tenant
        async with acting(self.connection, self.target, self.reason):
            await check_actor(self.connection, self.tables)
            rows = await stored_keys(self.connection, self.target)
            by_status = {row["status"]: row for row in rows}
            if "next" in by_status or "previous" in by_status:
                self._switched = "next" not in by_status
                row = by_status["current" if self._switched else "next"]
                self.outcome.version, self.outcome.resumed = row["version"], True
                return 0.0 if self._switched else self._rest(row)
            self.refuse_shredded(rows)
            # Threat: a key wrapped under a wrong master key, which no process can unwrap, would lock the tenant out.
            await open_keys(self.target, [by_status["current"]])
            version = self.outcome.version = rows[-1]["version"] + 1
            key = await engine().keyring.make_key(tenant, version, "next")
            await self.connection.execute(
                "insert into public.tenant_key (id, tenant_id, version, wrapped, kek, status)"
                " values ($1, $2, $3, $4, $5, 'next')",
                uuid7(),
                tenant,
                version,
                key.wrapped,
                key.kek,
            )
            await record(self.connection, "key_rotation", {"step": "next", "version": version})
        engine().keyring.forget(tenant)
        return self._wait

    async def switch(self) -> float:
        """Write under the next version from now on; returns how long to wait."""
        tenant = self.target.tenant
        async with acting(self.connection, self.target, self.reason):
            if not self._switched:
                # In this order: there is at most one current key at any time.
                for now, then in (("current", "previous"), ("next", "current")):
                    await self.connection.execute(
                        "update public.tenant_key set status = $3 where tenant_id = $1 and status = $2",
                        tenant,
                        now,
                        then,
                    )
                await record(self.connection, "key_rotation", {"step": "current", "version": self.outcome.version})
            rows = await stored_keys(self.connection, self.target)
            current = next(row for row in rows if row["status"] == "current")
        engine().keyring.forget(tenant)
        return self._rest(current)

    async def reseal(self) -> None:
        """Bring every row to the current key."""
        async with acting(self.connection, self.target, self.reason):
            stored = await stored_keys(self.connection, self.target)
            self._total, self._done = sum([await self._older(t) for t in self.tables]), 0
        self._keys = await open_keys(self.target, stored)
        await self._pass()
        # A transaction that began before may still be open, with a row under the old key that nobody sees yet.
        await self._old_transactions_end()
        left = await self._pass()
        while left > len(self.outcome.twins) + len(self.outcome.altered):
            await asyncio.sleep(AGAIN)
            left = await self._pass()

    async def finish(self) -> None:
        """Retire what came before, unless rows are left that need it."""
        if self.outcome.twins:
            return
        async with acting(self.connection, self.target, self.reason):
            rows = await self.connection.fetch(
                "update public.tenant_key set status = 'retired' where tenant_id = $1 and status = 'previous'"
                " returning version",
                self.target.tenant,
            )
            self.outcome.retired = sorted(row["version"] for row in rows)
            said = {"step": "retired", "version": self.outcome.version, "retired": self.outcome.retired}
            await record(self.connection, "key_rotation", said | {"rows": self.outcome.rows})
        engine().keyring.forget(self.target.tenant)

    def _rest(self, row: asyncpg.Record) -> float:
        """How much of the wait is left for a step that was made, perhaps by a run before this one."""
        return max(0.0, self._wait - float(row["age"]) + 0.1)

    async def _older(self, table: SealedTable) -> int:
        return await table.count(self.connection, self.target.tenant, self.outcome.version)

    async def _pass(self) -> int:
        """Take every table's older rows once; returns how many are left, because others held them."""
        self.outcome.twins, self.outcome.altered = [], []
        left = 0
        for table in self.tables:
            async for ids in self.pages(table, older_than=self.outcome.version):
                await self.write_each(table, ids)  # what others held is for the next pass
            async with acting(self.connection, self.target, self.reason):
                left += await self._older(table)
        return left

    async def write(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        """Seal and index these rows under the current key."""
        rows = await table.some(self.connection, self.target.tenant, ids, locked=True)
        if rows:
            await table.reseal(self.connection, rows, self._keys)
            self.outcome.count(table, len(rows))
            self._done += len(rows)
            self.progress(f"{self.target.slug}: {table.name}", self._done, max(self._total, self._done))
        return set(ids) - {row["id"] for row in rows}

    async def _old_transactions_end(self) -> None:
        horizon = await self.connection.fetchval("select pg_snapshot_xmax(pg_current_snapshot())::text")
        while not await self.connection.fetchval(
            "select pg_snapshot_xmin(pg_current_snapshot())::text::numeric >= $1::text::numeric", horizon
        ):
            self.progress(f"{self.target.slug}: older transactions end", self._done, max(self._total, 1))
            await asyncio.sleep(AGAIN)


async def rotate(
    targets: Sequence[Target],
    *,
    wait: float | None = None,
    batch: int = 500,
    progress: Progress = silent,
) -> list[Outcome]:
    """Rotate the data keys of the tenants, online. What goes wrong for one is in its ``problem``; the others go on.

    ``wait`` in seconds is at least the longest ``CHARTHOLD_KEY_CACHE_SECONDS`` of any process of the application.
    """
    least = engine().settings.key_cache_seconds
    seconds = shortest_wait() if wait is None else wait
    if seconds < least:
        raise ChartholdError(f"Waiting for less than {least:g} seconds would leave processes that know no new key.")
    check_batch(batch)
    outcomes = []
    async with owner_connection() as connection:
        tables = sealed_tables()
        await check_declared(connection, tables)
        for at in range(0, len(targets), TOGETHER):
            group = [
                Rotation(connection, target, tables, wait=seconds, batch=batch, progress=progress)
                for target in targets[at : at + TOGETHER]
            ]
            await _together(connection, group, progress)
            outcomes += [rotation.outcome for rotation in group]
    return outcomes


async def _together(connection: asyncpg.Connection[Any], group: list[Rotation], progress: Progress) -> None:
    async with contextlib.AsyncExitStack() as locks:
        for rotation in group:
            with noting(rotation.outcome):
                await locks.enter_async_context(key_lock(connection, rotation.target))
        for step in (Rotation.begin, Rotation.switch):
            longest = 0.0
            for rotation in _sound(group):
                with noting(rotation.outcome):
                    longest = max(longest, await step(rotation))
            await _sleep(longest, progress)
        for rotation in _sound(group):
            with noting(rotation.outcome):
                await rotation.reseal()
                await rotation.finish()


async def _sleep(seconds: float, progress: Progress) -> None:
    left = seconds
    while left > 0:
        progress("every process loads its keys again", seconds - left, seconds)
        await asyncio.sleep(min(left, 1.0))
        left -= 1.0


def _sound(group: list[Rotation]) -> Iterator[Rotation]:
    return (rotation for rotation in group if not rotation.outcome.problem)
