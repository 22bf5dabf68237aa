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
from typing import Any
from uuid import UUID

import asyncpg

from core.crypto.keyring import WrappedKey
from core.engine import engine
from core.errors import ChartholdError, SealedValueError
from core.ids import uuid7
from core.rotation.owner import Progress, Target, acting, key_lock, noting, owner_connection, record, silent
from core.rotation.rows import SealedTable, check_actor, check_declared, sealed_tables

__all__ = ["Outcome", "Rotation", "rotate", "shortest_wait"]

TOGETHER = 100  # tenants that wait for the caches at the same time
AGAIN = 0.2  # seconds between two looks at what others hold
REASON = "key rotation"


@dataclass
class Outcome:
    """What became of one tenant's rotation.

    ``twins`` are rows that a unique index does not let be indexed anew; ``altered`` those that no key opens.
    """

    slug: str
    version: int = 0
    retired: list[int] = field(default_factory=list)
    resumed: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    twins: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    shredded: bool = False
    problem: str = ""


def shortest_wait() -> float:
    """No process may still use a key that it cached before: as long as a cache, and a statement's wait for a link."""
    configured = engine().settings
    return configured.key_cache_seconds + configured.pool_seconds


class Rotation:
    """One tenant's rotation, in steps, so that many can wait together."""

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
        self._connection = connection
        self._target = target
        self._tables = tables
        self._wait = wait
        self._size = batch
        self._progress = progress
        self._switched = False
        self.outcome = Outcome(target.slug)

    async def begin(self) -> float:
        """Make the next version, or find the one that was made; returns how long to wait from now on."""
        tenant = self._target.tenant
        async with acting(self._connection, self._target, REASON):
            await check_actor(self._connection, self._tables)
            rows = await self._keys()
            by_status = {row["status"]: row for row in rows}
            if "next" in by_status or "previous" in by_status:
                self._switched = "next" not in by_status
                row = by_status["current" if self._switched else "next"]
                self.outcome.version, self.outcome.resumed = row["version"], True
                return 0.0 if self._switched else self._rest(row)
            if "current" not in by_status:
                self.outcome.shredded = True
                raise ChartholdError(f"{self._target.slug} has no key in use: its keys were destroyed.")
            await self._check_master_key(by_status["current"])
            version = self.outcome.version = rows[-1]["version"] + 1
            key = await engine().keyring.make_key(tenant, version, "next")
            await self._connection.execute(
                "insert into public.tenant_key (id, tenant_id, version, wrapped, kek, status)"
                " values ($1, $2, $3, $4, $5, 'next')",
                uuid7(),
                tenant,
                version,
                key.wrapped,
                key.kek,
            )
            await record(self._connection, "key_rotation", {"step": "next", "version": version})
        engine().keyring.forget(tenant)
        return self._wait

    async def switch(self) -> float:
        """Write under the next version from now on; returns how long to wait."""
        tenant = self._target.tenant
        async with acting(self._connection, self._target, REASON):
            if not self._switched:
                # In this order: there is at most one current key at any time.
                for now, then in (("current", "previous"), ("next", "current")):
                    await self._connection.execute(
                        "update public.tenant_key set status = $3 where tenant_id = $1 and status = $2",
                        tenant,
                        now,
                        then,
                    )
                await record(self._connection, "key_rotation", {"step": "current", "version": self.outcome.version})
            current = next(row for row in await self._keys() if row["status"] == "current")
        engine().keyring.forget(tenant)
        return self._rest(current)

    async def reseal(self) -> None:
        """Bring every row to the current key."""
        async with acting(self._connection, self._target, REASON):
            stored = [
                WrappedKey(row["version"], row["wrapped"], row["status"], row["kek"])
                for row in await self._keys()
                if row["wrapped"] is not None
            ]
            self._total, self._done = sum([await self._older(t) for t in self._tables]), 0
        self._keys_open = await engine().keyring.open_keys(self._target.tenant, stored)
        await self._pass()
        # A statement from before could still stand in an open transaction, its row seen by nobody.
        await self._old_transactions_end()
        left = await self._pass()
        while left > len(self.outcome.twins) + len(self.outcome.altered):
            await asyncio.sleep(AGAIN)
            left = await self._pass()

    async def finish(self) -> None:
        """Retire what came before, unless rows are left that need it."""
        if self.outcome.twins:
            return
        async with acting(self._connection, self._target, REASON):
            rows = await self._connection.fetch(
                "update public.tenant_key set status = 'retired' where tenant_id = $1 and status = 'previous'"
                " returning version",
                self._target.tenant,
            )
            self.outcome.retired = sorted(row["version"] for row in rows)
            said = {"step": "retired", "version": self.outcome.version, "retired": self.outcome.retired}
            await record(self._connection, "key_rotation", said | {"rows": self.outcome.rows})
        engine().keyring.forget(self._target.tenant)

    async def _check_master_key(self, current: asyncpg.Record) -> None:
        # Threat: a key wrapped under a wrong master key, which no process can unwrap, would lock the tenant out.
        key = WrappedKey(current["version"], current["wrapped"], current["status"], current["kek"])
        await engine().keyring.open_keys(self._target.tenant, [key])

    async def _keys(self) -> list[asyncpg.Record]:
        return await self._connection.fetch(
            "select version, wrapped, kek, status, extract(epoch from clock_timestamp() - updated_at)::float8 as age"
            " from public.tenant_key where tenant_id = $1 order by version for no key update",
            self._target.tenant,
        )

    def _rest(self, row: asyncpg.Record) -> float:
        """How much of the wait is left for a step that was made, perhaps by a run before this one."""
        return max(0.0, self._wait - float(row["age"]) + 0.1)

    async def _older(self, table: SealedTable) -> int:
        return await table.count(self._connection, self._target.tenant, self.outcome.version)

    async def _pass(self) -> int:
        """Take every table's older rows once; returns how many are left, because others held them."""
        self.outcome.twins, self.outcome.altered = [], []
        left = 0
        for table in self._tables:
            await self._pass_table(table)
            async with acting(self._connection, self._target, REASON):
                left += await self._older(table)
        return left

    async def _pass_table(self, table: SealedTable) -> None:
        after, alone = UUID(int=0), 0
        while True:
            rows: list[asyncpg.Record] = []
            try:
                async with acting(self._connection, self._target, REASON):
                    most = 1 if alone else self._size
                    rows = await table.lock(self._connection, self._target.tenant, after, self.outcome.version, most)
                    if not rows:
                        return
                    await table.reseal(self._connection, rows, self._keys_open)
            except asyncpg.UniqueViolationError:
                # The same value was written under both keys, which no index could see. One by one, to find the row.
                if not alone:
                    alone = self._size
                    continue
                self.outcome.twins.append(f"{table.name} {rows[0]['id']}")
            except SealedValueError:
                # Threat: who may write a row writes what no key opens, and the old key could never be retired.
                if not alone:
                    alone = self._size
                    continue
                self.outcome.altered.append(f"{table.name} {rows[0]['id']}")
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                if not rows:  # the table itself is locked: somebody migrates
                    await asyncio.sleep(AGAIN)
                    continue
            else:
                self.outcome.rows[table.name] = self.outcome.rows.get(table.name, 0) + len(rows)
                self._done += len(rows)
                self._progress(f"{self._target.slug}: {table.name}", self._done, max(self._total, self._done))
            after, alone = rows[-1]["id"], max(0, alone - 1)

    async def _old_transactions_end(self) -> None:
        horizon = await self._connection.fetchval("select pg_snapshot_xmax(pg_current_snapshot())::text")
        while not await self._connection.fetchval(
            "select pg_snapshot_xmin(pg_current_snapshot())::text::numeric >= $1::text::numeric", horizon
        ):
            self._progress(f"{self._target.slug}: older transactions end", self._done, max(self._total, 1))
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
    if batch < 1:
        raise ChartholdError("A batch has at least one row. Give --batch a number of rows, 1 or more.")
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
                await locks.enter_async_context(key_lock(connection, rotation._target))
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
