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
from typing import Any, ClassVar
from uuid import UUID

import asyncpg

from core.errors import SealedValueError
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

__all__ = ["Reindexed", "reindex"]

ROUNDS = 50  # looks at rows that others hold; what is held for longer is for the next run
HASH_OF_NOTHING = "CH016"  # a hash beside a value that is null, which only somebody's SQL leaves


@dataclass
class Reindexed(Written):
    """What became of one tenant's indexes. ``held`` are rows that somebody did not let go.

    ``altered`` are also rows with hashes of no value.
    """

    held: list[str] = field(default_factory=list)


async def reindex(targets: Sequence[Target], *, batch: int = 500, progress: Progress = silent) -> list[Reindexed]:
    """Bring the hashes of the tenants' rows to today's declarations. What goes wrong for one is in its ``problem``."""
    check_batch(batch)
    outcomes = []
    async with owner_connection() as connection:
        tables = [table for table in sealed_tables() if table.indexes]
        await check_declared(connection, sealed_tables())
        for target in targets:
            work = Reindexing(connection, target, tables, batch=batch, progress=progress)
            with noting(work.outcome):
                async with key_lock(connection, target):
                    await work.run()
            outcomes.append(work.outcome)
    return outcomes


class Reindexing(Work):
    """One tenant's rows, compared with today's declarations."""

    reason: ClassVar[str] = "index rows anew"
    outcome: Reindexed

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        target: Target,
        tables: Sequence[SealedTable],
        *,
        batch: int,
        progress: Progress,
    ) -> None:
        super().__init__(connection, target, tables, batch=batch, progress=progress)
        self.outcome = Reindexed(target.slug)
        self._seen = 0

    async def run(self) -> None:
        """Look at every row, and write those whose hashes are not right."""
        async with acting(self.connection, self.target, self.reason):
            await check_actor(self.connection, self.tables)
            stored = await stored_keys(self.connection, self.target)
            self.refuse_shredded(stored)
            self._keys = await open_keys(self.target, stored)
        for table in self.tables:
            await self._pass(table)
        if self.outcome.rows:
            async with acting(self.connection, self.target, self.reason):
                await record(self.connection, "key_rotation", {"step": "indexed", "rows": self.outcome.rows})

    async def _pass(self, table: SealedTable) -> None:
        held: set[UUID] = set()
        async for ids in self.pages(table):
            held |= await self.write_each(table, ids)
            self._seen += len(ids)
            self.progress(f"{self.target.slug}: {table.name}", self._seen, self._seen)
        for _ in range(ROUNDS):
            if not held:
                return
            await asyncio.sleep(AGAIN)
            held = await self.write_each(table, sorted(held))
        self.outcome.held += [f"{table.name} {row}" for row in sorted(held)]

    async def write(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        """Write those of these rows whose hashes are not right."""
        tenant = self.target.tenant
        stale = table.stale(await table.some(self.connection, tenant, ids), self._keys)
        if not stale:
            return set()
        locked = await table.some(self.connection, tenant, stale, locked=True)
        # Once more, now that nobody can change them.
        changed = table.stale(locked, self._keys)
        if rows := [row for row in locked if row["id"] in changed]:
            try:
                await table.reseal(self.connection, rows, self._keys, set().union(*changed.values()))
            except asyncpg.PostgresError as error:
                if error.sqlstate == HASH_OF_NOTHING:
                    raise SealedValueError("A row has a hash of no value.") from None
                raise
            self.outcome.count(table, len(rows))
        return stale.keys() - {row["id"] for row in locked}
