"""Sealed values that are taken: who is refused one by a unique index knows that somebody has it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import asyncpg

from core import registered
from core.columns import BlindIndex
from core.schema import Index, Unique
from core.schema.quoting import catalog_name
from core.statements.shown import Look, Record

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["told_by", "unique_by_hash"]


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


def told_by(refused: asyncpg.UniqueViolationError) -> Record | None:
    """The search that a refusal amounts to; None where the index is of nothing sealed."""
    name = f"{refused.schema_name}.{refused.table_name}"
    for table in registered.tenant_tables():
        if catalog_name(table) == name and (columns := unique_by_hash(table, refused.constraint_name)):
            return Look("search", table._meta.tablename, columns).record(1)
    return None
