"""The audit log's months: making the next ones, and taking one out to be archived."""

from __future__ import annotations

from typing import cast

import asyncpg

from core.engine import engine
from core.errors import ChartholdError
from core.explain import explain

__all__ = ["archive_partition", "make_partitions"]


async def archive_partition(part: str) -> int:
    """Detach a month of the audit log for archiving, as the schema's owner; how many records it holds.

    Refused for a month that must still be kept, 164.316(b)(2)(i), or that holds records which are not sealed.
    """
    connection = await engine().connect(owner=True)
    try:
        return cast("int", await connection.fetchval("select charthold.archive_partition($1)", part))
    except asyncpg.PostgresError as error:
        if (getattr(error, "sqlstate", "") or "").startswith("CH02"):
            raise ChartholdError(f"{error}.") from None
        raise explain(error) from None
    finally:
        await connection.close()


async def make_partitions(ahead: int = 3) -> list[str]:
    """Make the audit log's partitions for this month and ``ahead`` more, as the schema's owner; the new ones' names."""
    connection = await engine().connect(owner=True)
    try:
        rows = await connection.fetch("select charthold.ensure_partitions($1) as name", ahead)
    finally:
        await connection.close()
    return [row["name"] for row in rows]
