"""What a failure tells: who is refused a sealed value by a unique index knows that somebody has it; and who is
refused an emergency, that an id is no client's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from core import registered
from core.columns import BlindIndex
from core.schema import Index, Unique
from core.schema.quoting import catalog_name
from core.statements.explain import tells
from core.statements.shown import Look, Record

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["told_by", "unique_by_hash"]

# What refuses an emergency of an id that is no client's: charthold.break_glass().
NO_CLIENT = "emergency_access_client_id_fkey"


@functools.cache
def unique_by_hash(table: type[TenantTable], constraint: str | None = None) -> tuple[str, ...]:
    """The encrypted columns that are unique by their blind indexes; ``constraint``: by this one."""
    indexes = {c._meta.db_column_name: c.of for c in table._meta.columns if isinstance(c, BlindIndex)}
    unique = [
        name
        for o in table.schema_objects()
        if (isinstance(o, Unique) or (isinstance(o, Index) and o.unique)) and constraint in (None, o.name)
        for name in o.columns
    ]
    return tuple(sorted({column for name in unique for column in indexes.get(name.partition(" ")[0], ())}))


def told_by(failed: Exception, looks: Sequence[Look] = ()) -> list[Record]:
    """The searches that a failure amounts to; ``looks``: those that the statement makes.

    Threat: a value is asked for by a statement that fails if somebody has it, or a client's id by one that fails if it
    is nobody's, and takes its own record along.
    """
    if not tells(failed):
        return []
    records = [look.record(None) for look in looks]
    if isinstance(failed, asyncpg.UniqueViolationError):
        name = f"{failed.schema_name}.{failed.table_name}"
        records += [
            Look.search(table, columns).record(1)
            for table in registered.tenant_tables()
            if catalog_name(table) == name and (columns := unique_by_hash(table, failed.constraint_name))
        ]
    elif isinstance(failed, asyncpg.ForeignKeyViolationError) and failed.constraint_name == NO_CLIENT:
        records.append(Record.of_action("search", "client", _id(failed.column_name), '{"emergency": true, "rows": 0}'))
    return records


def _id(written: str | None) -> UUID | None:
    """The id that was tried. Whoever runs SQL can raise such an error too, and write anything there."""
    try:
        return UUID(written or "")
    except ValueError:
        return None
