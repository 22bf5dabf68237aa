"""What the tables are like right now, as far as a step must know before it touches them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import asyncpg

from core.plural import plural
from core.schema.quoting import split_table

__all__ = ["LiveTable", "live_tables"]


class LiveTable(NamedTuple):
    """``populated`` errs on the side of yes: rows that were deleted leave pages behind."""

    populated: bool
    partitioned: bool
    estimate: int = 0
    bytes: int = 0

    @property
    def counted(self) -> str:
        """How many rows it holds, as far as PostgreSQL knows without looking."""
        if self.estimate <= 0:
            return "rows that PostgreSQL has not counted"
        return f"about {plural(self.estimate, 'row')}"


async def live_tables(connection: asyncpg.Connection[Any], tables: Iterable[str]) -> dict[str, LiveTable]:
    """Those of the tables that exist. Asked of the storage, because row-level security hides rows from the owner."""
    names = sorted(set(tables))
    rows = await connection.fetch(
        """
        select wanted.name,
            pg_catalog.pg_relation_size(c.oid) > 0 or exists (
                select from pg_catalog.pg_partition_tree(c.oid) as p
                where p.isleaf and pg_catalog.pg_relation_size(p.relid) > 0
            ) as populated,
            c.relkind = 'p' as partitioned, whole.estimate, whole.bytes
        from unnest($1::text[], $2::text[], $3::text[]) as wanted (name, nspname, relname)
        join pg_catalog.pg_namespace as n on n.nspname = wanted.nspname
        join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = wanted.relname
        cross join lateral (
            select sum(greatest(pg_catalog.pg_stat_get_live_tuples(p.oid), p.reltuples))::bigint as estimate,
                sum(pg_catalog.pg_total_relation_size(p.oid))::bigint as bytes
            from pg_catalog.pg_class as p
            where p.oid = c.oid or p.oid in (select tree.relid from pg_catalog.pg_partition_tree(c.oid) as tree)
        ) as whole
        where c.relkind in ('r', 'p', 'm')
        """,
        names,
        [split_table(name)[0] for name in names],
        [split_table(name)[1] for name in names],
    )
    return {row["name"]: LiveTable(*row[1:]) for row in rows}
