"""Whether a column's new type changes more than the catalog, by PostgreSQL's own rules as far as they are simple."""

from __future__ import annotations

import re
from typing import Any

import asyncpg

from core.schema.quoting import split_table

__all__ = ["changes_storage"]

# A type of which a wider form holds the narrower one's values as they are; and the widest precision of times.
WIDENS = ("bit varying", "character varying", "numeric")
TIMES = ("timestamp", "time")
MOST_DIGITS = 6

COLUMN = """
select pg_catalog.format_type(a.atttypid, null) as was, pg_catalog.format_type(a.atttypid, a.atttypmod) as was_whole,
    pg_catalog.format_type(new.type, null) as new,
    exists (
        select from pg_catalog.pg_cast as c
        where c.castsource = a.atttypid and c.casttarget = new.type and c.castmethod = 'b'
    ) as coercible
from pg_catalog.pg_attribute as a, (select to_regtype($4)::oid as type) as new
where a.attrelid = to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) and a.attname = $3"""


async def changes_storage(connection: asyncpg.Connection[Any], table: str, column: str, of_type: str) -> bool:
    """False where PostgreSQL changes the catalog only: the type that it has, a wider one, one of the same bytes."""
    name, _, _ = of_type.partition("(")
    row = await connection.fetchrow(
        COLUMN, *split_table(table), column, name + ("[]" if of_type.endswith("[]") and "(" in of_type else "")
    )
    if row is None or row["new"] is None:
        return row is not None
    old, new = modifiers(row["was_whole"]), modifiers(of_type)
    if row["was"] != row["new"]:
        return not row["coercible"] or bool(new)
    return old != new and not widens(row["new"], old, new)


def widens(of_type: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether each value of the old modifiers is one of the new, as it is."""
    if of_type.startswith(TIMES):
        return (new or (MOST_DIGITS,))[0] >= (old or (MOST_DIGITS,))[0]
    if of_type not in WIDENS:
        return False
    # Of a numeric the scale stays: its other digits would be rounded, or written.
    return not new or (bool(old) and new[0] >= old[0] and new[1:] == old[1:])


def modifiers(of_type: str) -> tuple[int, ...]:
    """``numeric(10,2)`` -> ``(10, 2)``."""
    found = re.search(r"\(([-0-9, ]+)\)", of_type)
    return tuple(int(part) for part in found[1].split(",")) if found else ()
