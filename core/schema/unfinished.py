"""What a step's transaction leaves to be done outside of it: building indexes, validating constraints.

The bookkeeping says that the step ran; the catalog says what is missing. Comparing the two at each ``forwards`` needs
no table of its own, and is right whatever stopped the last run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

from core.schema.constraint import Constraint
from core.schema.index import Index
from core.schema.object import SchemaObject
from core.schema.quoting import split_table

__all__ = ["unfinished", "whole"]


def whole(item: Index | Constraint) -> tuple[str, ...]:
    """The statements that finish an object which nobody has begun to finish."""
    return (item.statement(concurrently=True),) if isinstance(item, Index) else item.validate()


async def unfinished(connection: asyncpg.Connection[Any], objects: Iterable[SchemaObject]) -> list[str]:
    """The statements that finish these objects; none for those that are as they should be.

    A crash in the middle of CREATE INDEX CONCURRENTLY leaves an invalid index, which is dropped and built again.
    """
    wanted = list(objects)
    indexes = [item for item in wanted if isinstance(item, Index) and item.concurrently]
    constraints = [item for item in wanted if isinstance(item, Constraint)]
    return await missing_indexes(connection, indexes) + await unchecked(connection, constraints)


async def missing_indexes(connection: asyncpg.Connection[Any], indexes: Sequence[Index]) -> list[str]:
    """Those that are not there, or there and invalid, and whose table is."""
    statements: list[str] = []
    for index in indexes:
        schema, table = split_table(index.table)
        row = await connection.fetchrow(
            "select t.oid is not null as there, ("
            "   select i.indisvalid from pg_catalog.pg_index as i"
            "   join pg_catalog.pg_class as c on c.oid = i.indexrelid"
            "   where c.relnamespace = n.oid and c.relname = $3) as valid"
            " from pg_catalog.pg_namespace as n"
            " left join pg_catalog.pg_class as t on t.relnamespace = n.oid and t.relname = $2 and t.relkind = 'r'"
            " where n.nspname = $1",
            schema,
            table,
            index.name,
        )
        if row is None or not row["there"] or row["valid"]:
            continue
        if row["valid"] is False:
            statements.append(f"drop index concurrently {index.qualified_name}")
        statements.append(index.statement(concurrently=True))
    return statements


async def unchecked(connection: asyncpg.Connection[Any], constraints: Sequence[Constraint]) -> list[str]:
    """Those that were added without looking at the rows, and not validated since."""
    rows = await connection.fetch(
        "select n.nspname, t.relname, c.conname from pg_catalog.pg_constraint as c"
        " join pg_catalog.pg_class as t on t.oid = c.conrelid"
        " join pg_catalog.pg_namespace as n on n.oid = t.relnamespace"
        " where not c.convalidated and c.contype in ('c', 'f')"
    )
    found = {(row["nspname"], row["relname"], row["conname"]) for row in rows}
    return [
        statement
        for item in constraints
        if (*split_table(item.table), item.name) in found
        for statement in item.validate()
    ]
