"""What a step's transaction left to be done outside of it, and a crash left undone.

The bookkeeping says that the step ran; the catalog says what is missing. Comparing the two at each ``forwards`` needs
no table of its own, and is right whatever stopped the last run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from core.schema.constraint import Constraint
from core.schema.index import Index
from core.schema.migration import MigrationManager
from core.schema.quoting import split_table

__all__ = ["unfinished"]


async def unfinished(connection: asyncpg.Connection[Any], ran: Sequence[MigrationManager]) -> list[str]:
    """The statements that finish the steps that ran: invalid indexes are dropped and rebuilt, constraints validated."""
    from core.schema.autogenerate import SchemaSnapshot  # late: it imports the manager's module

    if not ran:
        return []
    objects = SchemaSnapshot(list(ran)).objects()
    statements: list[str] = []
    for index in (item for item in objects if isinstance(item, Index) and item.concurrently):
        schema, _ = split_table(index.table)
        valid = await connection.fetchval(
            "select i.indisvalid from pg_catalog.pg_index as i"
            " join pg_catalog.pg_class as c on c.oid = i.indexrelid"
            " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
            " where n.nspname = $1 and c.relname = $2",
            schema,
            index.name,
        )
        if valid is False:
            statements.append(f"drop index concurrently {index.qualified_name}")
        if not valid:
            statements.append(index.statement(concurrently=True))
    rows = await connection.fetch(
        "select n.nspname, t.relname, c.conname from pg_catalog.pg_constraint as c"
        " join pg_catalog.pg_class as t on t.oid = c.conrelid"
        " join pg_catalog.pg_namespace as n on n.oid = t.relnamespace"
        " where not c.convalidated and c.contype in ('c', 'f')"
    )
    unchecked = {(row["nspname"], row["relname"], row["conname"]) for row in rows}
    for item in objects:
        if isinstance(item, Constraint) and (*split_table(item.table), item.name) in unchecked:
            statements += item.validate()
    return statements
