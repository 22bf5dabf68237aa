"""One tenant's rows, written anew a batch at a time: what rotating keys and indexing anew have in common.

When a batch fails, each of its rows is tried by itself, to find the one that cannot be written, which is reported and
left as it is.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

import asyncpg

from core.errors import ChartholdError, SealedValueError
from core.rotation.owner import Progress, Target, acting
from core.rotation.rows import SealedTable

__all__ = ["AGAIN", "Work", "Written", "check_batch"]

AGAIN = 0.2  # seconds between two looks at what others hold


def check_batch(rows: int) -> None:
    """Raise ``ChartholdError`` for a batch without rows."""
    if rows < 1:
        raise ChartholdError("A batch has at least one row. Give --batch a number of rows, 1 or more.")


@dataclass
class Written:
    """What became of one tenant's rows: how many were written, by table.

    ``twins`` are rows that a unique index does not let be indexed anew; ``altered`` are rows that no key opens.
    ``shredded``: the tenant has no key in use any more. ``problem``: what stopped the work.
    """

    slug: str
    rows: dict[str, int] = field(default_factory=dict)
    twins: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    shredded: bool = False
    problem: str = ""

    def count(self, table: SealedTable, rows: int) -> None:
        """Note that rows of the table were written."""
        self.rows[table.name] = self.rows.get(table.name, 0) + rows


class Work(ABC):
    """Work on one tenant's rows, in transactions that give ``reason``, of at most ``batch`` rows each."""

    reason: ClassVar[str]
    outcome: Written

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        target: Target,
        tables: Sequence[SealedTable],
        *,
        batch: int,
        progress: Progress,
    ) -> None:
        self.connection = connection
        self.target = target
        self.tables = tables
        self.batch = batch
        self.progress = progress

    @abstractmethod
    async def write(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        """Write these rows, in the transaction of the caller; returns those that somebody else held."""

    async def write_each(self, table: SealedTable, ids: Sequence[UUID]) -> set[UUID]:
        """Write these rows in one transaction, or else one by one; returns those that somebody else held."""
        try:
            async with acting(self.connection, self.target, self.reason):
                return await self.write(table, ids)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            return set(ids)
        except asyncpg.UniqueViolationError:
            unwritten = self.outcome.twins
        except SealedValueError:
            # Threat: whoever may write a row writes what no key opens, so that no old key can ever be retired.
            unwritten = self.outcome.altered
        if len(ids) == 1:
            unwritten.append(f"{table.name} {ids[0]}")
            return set()
        return {row for each in ids for row in await self.write_each(table, [each])}

    async def pages(self, table: SealedTable, *, older_than: int | None = None) -> AsyncIterator[list[UUID]]:
        """The ids of the table's rows, in order; only of those that hold another key version, if one is given."""
        after = UUID(int=0)
        while True:
            try:
                async with acting(self.connection, self.target, self.reason):
                    ids = await table.page(self.connection, self.target.tenant, after, self.batch, older_than)
            except asyncpg.LockNotAvailableError:  # somebody migrates the table
                await asyncio.sleep(AGAIN)
                continue
            if not ids:
                return
            yield ids
            after = ids[-1]

    def refuse_shredded(self, keys: Sequence[asyncpg.Record]) -> None:
        """Raise ``ChartholdError`` when none of the tenant's keys is in use."""
        if not any(key["status"] == "current" for key in keys):
            self.outcome.shredded = True
            raise ChartholdError(f"{self.target.slug} has no key in use: its keys were destroyed.")
