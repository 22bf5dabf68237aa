"""Hashes for rows that are older than their blind index: filled a batch at a time, beside writers.

Threat: an index that is added to rows with values, or changed, holds nothing of them, and searches pass them over
without a word. Each row is opened and its hashes are compared with those of today's declarations; only what differs is
written. A hash changes with its value only, so the value is sealed anew with it, and the log has who did it.

Nothing is kept of how far it came: killed at any point, the next run finds what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from core.crypto.keyring import TenantKeys, WrappedKey
from core.engine import engine
from core.errors import ChartholdError, SealedValueError
from core.rotation.owner import Progress, Target, acting, key_lock, noting, owner_connection, record, silent
from core.rotation.rows import SealedTable, check_actor, check_declared, sealed_tables

__all__ = ["Reindexed", "reindex"]

AGAIN = 0.2  # seconds between two looks at rows that others hold
ROUNDS = 50  # looks at them; what is held for longer is for the next run
HASH_OF_NOTHING = "CH016"  # a hash beside a value that is null, which only somebody's SQL leaves
REASON = "index rows anew"


@dataclass
class Reindexed:
    """What became of one tenant's rows: how many were written, by table.

    ``twins`` are rows that a unique index does not let be indexed; ``altered`` those that no key opens, or that have
    hashes of no value; ``held`` those that somebody did not let go.
    """

    slug: str
    rows: dict[str, int] = field(default_factory=dict)
    twins: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    shredded: bool = False
    problem: str = ""


async def reindex(targets: Sequence[Target], *, batch: int = 500, progress: Progress = silent) -> list[Reindexed]:
    """Bring the hashes of the tenants' rows to today's declarations. What goes wrong for one is in its ``problem``."""
    if batch < 1:
        raise ChartholdError("A batch has at least one row. Give --batch a number of rows, 1 or more.")
    outcomes = []
    async with owner_connection() as connection:
        tables = [table for table in sealed_tables() if table.indexes]
        await check_declared(connection, sealed_tables())
        for target in targets:
            work = Reindexing(connection, target, tables, batch, progress)
            with noting(work.outcome):
                async with key_lock(connection, target):
                    await work.run()
            outcomes.append(work.outcome)
    return outcomes


@dataclass
class Reindexing:
    """One tenant's rows, ``size`` of them at a time."""

    connection: asyncpg.Connection[Any]
    target: Target
    tables: Sequence[SealedTable]
    size: int
    progress: Progress
    seen: int = 0
    outcome: Reindexed = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Reindexed(self.target.slug)

    async def run(self) -> None:
        """Look at every row, and write those whose hashes are not right."""
        async with acting(self.connection, self.target, REASON):
            await check_actor(self.connection, self.tables)
            self._keys = await self._open_keys()
        for table in self.tables:
            await self._pass_table(table)
        if self.outcome.rows:
            async with acting(self.connection, self.target, REASON):
                await record(self.connection, "key_rotation", {"step": "indexed", "rows": self.outcome.rows})

    async def _open_keys(self) -> TenantKeys:
        rows = await self.connection.fetch(
            "select version, wrapped, kek, status from public.tenant_key where tenant_id = $1 order by version",
            self.target.tenant,
        )
        if not any(row["status"] == "current" for row in rows):
            self.outcome.shredded = True
            raise ChartholdError(f"{self.target.slug} has no key in use: its keys were destroyed.")
        stored = [
            WrappedKey(row["version"], row["wrapped"], row["status"], row["kek"])
            for row in rows
            if row["wrapped"] is not None
        ]
        return await engine().keyring.open_keys(self.target.tenant, stored)

    async def _pass_table(self, table: SealedTable) -> None:
        after, held = UUID(int=0), set[UUID]()
        while True:
            async with acting(self.connection, self.target, REASON):
                ids = await table.page(self.connection, self.target.tenant, after, self.size)
            if not ids:
                break
            held |= await self._some(table, ids)
            after = ids[-1]
            self.seen += len(ids)
            self.progress(f"{self.target.slug}: {table.name}", self.seen, self.seen)
        for _ in range(ROUNDS):
            if not held:
                return
            await asyncio.sleep(AGAIN)
            held = await self._some(table, sorted(held))
        self.outcome.held += [f"{table.name} {row}" for row in sorted(held)]

    async def _some(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        """Index these rows; returns those that somebody else held."""
        try:
            async with acting(self.connection, self.target, REASON):
                return await self._write(table, ids)
        except asyncpg.UniqueViolationError:
            if len(ids) == 1:
                self.outcome.twins.append(f"{table.name} {ids[0]}")
                return set()
        except SealedValueError:
            if len(ids) == 1:
                self.outcome.altered.append(f"{table.name} {ids[0]}")
                return set()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            return set(ids)
        except asyncpg.PostgresError as error:
            if error.sqlstate != HASH_OF_NOTHING:
                raise
            if len(ids) == 1:
                self.outcome.altered.append(f"{table.name} {ids[0]}")
                return set()
        # One by one, to find the row.
        return {row for each in ids for row in await self._some(table, [each])}

    async def _write(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        tenant = self.target.tenant
        stale = table.stale(await table.some(self.connection, tenant, ids), self._keys)
        if not stale:
            return set()
        locked = await table.some(self.connection, tenant, stale, locked=True)
        # As they are now that nobody can change them.
        changed = table.stale(locked, self._keys)
        if rows := [row for row in locked if row["id"] in changed]:
            await table.reseal(self.connection, rows, self._keys, set().union(*changed.values()))
            self.outcome.rows[table.name] = self.outcome.rows.get(table.name, 0) + len(rows)
        return stale.keys() - {row["id"] for row in locked}
