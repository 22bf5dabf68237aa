"""Refuses steps that would rewrite a table full of rows, lock it for long, or lose what it holds.

PostgreSQL's own parser reads the statements that are about to run, so that what is judged is what happens: generated
or written by hand. What a DO block or a function does inside is not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import asyncpg

from core.errors import MigrationError
from core.schema.live import live_tables
from core.schema.quoting import qualified
from core.schema.step import Step
from core.schema.storage import changes_storage
from core.schema.suspicion import Names, Suspect, suspicions
from core.settings import settings

__all__ = ["KINDS", "Finding", "findings", "refuse_unsafe"]

# kind -> what it does to a table that holds rows, and the safe form
KINDS: dict[str, tuple[str, str]] = {
    "volatile_default": (
        "a volatile default is computed for every row, so the table is rewritten while nobody can read it",
        "Add the column without a default, set the default in a second step, and fill old rows in batches.",
    ),
    "type_change": (
        "the table and its indexes are rewritten while nobody can read it",
        "Add a new column of that type, fill it in batches, and drop the old one in a later step.",
    ),
    "not_null": (
        "all rows are scanned while nobody can read the table",
        "In an earlier step declare Check(name, condition='{column} is not null'): SET NOT NULL then needs no scan.",
    ),
    "blocking_index": (
        "writers wait until the index is built",
        "Declare Index(..., concurrently=True). For a unique constraint use Index(unique=True, concurrently=True).",
    ),
    "unchecked_constraint": (
        "all rows are checked while writers wait",
        "Declare it as Check or References beside the table: it is then added NOT VALID, and validated after the step.",
    ),
    "rewrite": (
        "the table is rewritten while nobody can read it",
        "Make a new table, or a column of a type without checks, and move the rows in batches.",
    ),
    "sealed_column": (
        "the table is rewritten for the type's check, and nobody can read it for some {seconds} seconds",
        "Keep what is new in a table of its own that refers to this one, or run the step in a quiet hour.",
    ),
    "domain_check": (
        "all rows of the tables that use the domain are checked while writers wait",
        "Make a new domain for new columns, or run the step in a quiet hour.",
    ),
    "reindex": (
        "writers wait until the index is built, and readers who would use it",
        "Outside of a step, which is a transaction, run REINDEX ... CONCURRENTLY by hand.",
    ),
    "refresh": (
        "nobody can read the view until it is made anew",
        "Give it a unique index, and refresh it CONCURRENTLY.",
    ),
    "sealed_rename": (
        "what is encrypted is bound to the names of its table and column, and opens under no other",
        "Rename it in Python only, and keep its name here: db_column_name on the column, tablename on the class.",
    ),
    "sealed_type": (
        "no statement can seal or open what the rows hold",
        "Add a new column, fill it in a scope of each tenant, with save(), and drop the old one in a later step.",
    ),
    "sealed_drop": (
        "what is sealed in {column} is gone for good, {rows}",
        "Take a backup, and see that it can be restored.",
    ),
    "drop_populated": (
        "what the rows hold is gone for good, {rows}",
        "Take a backup, and see that it can be restored.",
    ),
    "unread": (
        "nobody knows what it does: {reason}",
        "Read it yourself: does it rewrite a table that has rows, or lock it for long?",
    ),
}
ENVELOPE = "charthold.envelope"
# Bytes of a table and its indexes that are rewritten in a second: half of what a slow machine of two cores did.
RATE = 50_000_000


@dataclass(frozen=True)
class Finding:
    """One statement, one reason."""

    kind: str
    table: str
    statement: str
    column: str = ""
    rows: str = ""
    seconds: int = 0
    reason: str = ""

    def __str__(self) -> str:
        told = dataclasses.asdict(self)
        consequence, safe = (text.format(**told) for text in KINDS[self.kind])
        statement = " ".join(self.statement.split())
        on = f" on {self.table}" if self.table else ""
        return f"{self.kind}{on}: {consequence}.\n    {statement[:200]}\n    Safe form: {safe}"


async def refuse_unsafe(connection: asyncpg.Connection[Any], step: Step, allowed: Collection[str] = ()) -> None:
    """Raise ``MigrationError`` for everything unsafe in the step that no setting, and not the caller, allows."""
    allowed = {*allowed, *settings().allow_unsafe}
    found = [f for f in await findings(connection, step.statements) if f.kind not in allowed]
    if found:
        kinds = ",".join(sorted({finding.kind for finding in found}))
        listed = "\n".join(f"  {finding}" for finding in found)
        raise MigrationError(
            f"Step {step.migration_id} is unsafe on tables that hold rows, and was not run:\n{listed}\n"
            f"To run it all the same set CHARTHOLD_ALLOW_UNSAFE={kinds}."
        )


async def findings(connection: asyncpg.Connection[Any], statements: list[str]) -> list[Finding]:
    """Everything unsafe in the statements, given the tables as they are now."""
    names = Names()
    suspects = [suspect for statement in statements for suspect in suspicions(statement, names)]
    found = [Finding("unread", "", s.statement, reason=s.type) for s in suspects if s.kind == "unread"]
    on = [(suspect, table) for suspect in suspects for table in await tables_of(connection, suspect)]
    live = await live_tables(connection, {table for _, table in on})
    for suspect, table in on:
        if table not in live or not live[table].populated or not (kind := await guilt(connection, suspect)):
            continue
        seconds = live[table].bytes // RATE
        # Whoever comes while a step waits for its locks waits as long.
        if kind != "sealed_column" or seconds >= settings().lock_timeout:
            rows = live[table].counted
            found.append(Finding(kind, table, suspect.statement, suspect.column, rows=rows, seconds=seconds))
    return list(dict.fromkeys(found))


async def tables_of(connection: asyncpg.Connection[Any], suspect: Suspect) -> list[str]:
    """The tables that a statement is about: the one that it names, or those behind its domain or its index."""
    if suspect.kind == "domain_check":
        return await users(connection, suspect.type)
    if suspect.kind == "reindex" and suspect.type:
        return await indexed(connection, suspect.type)
    return [suspect.table] if suspect.table else []


async def guilt(connection: asyncpg.Connection[Any], suspect: Suspect) -> str:
    """What the text cannot say, asked of the catalog: the kind, or an empty string."""
    guilty = True
    if suspect.functions:
        guilty = await any_volatile(connection, suspect.functions)
    elif suspect.kind == "rewrite" and suspect.type:
        guilty = await checks_values(connection, suspect.type)
        return "" if not guilty else "sealed_column" if suspect.type == ENVELOPE else "rewrite"
    elif suspect.kind in {"sealed_rename", "sealed_drop"}:
        guilty = await holds_envelopes(connection, suspect)
    elif suspect.kind == "type_change":
        if suspect.type == ENVELOPE or await holds_envelopes(connection, suspect):
            return "sealed_type"
        guilty = suspect.converts or await changes_storage(connection, suspect.table, suspect.column, suspect.type)
    elif suspect.kind == "not_null":
        guilty = not await never_null(connection, suspect)
    return suspect.kind if guilty else ""


async def holds_envelopes(connection: asyncpg.Connection[Any], suspect: Suspect) -> bool:
    """Whether the column, or any of the table's, is encrypted."""
    return bool(
        await connection.fetchval(
            "select exists (select from pg_catalog.pg_attribute where attrelid = to_regclass($1)"
            " and atttypid = to_regtype($2)::oid and not attisdropped and $3::text in ('', attname))",
            qualified(suspect.table),
            ENVELOPE,
            suspect.column,
        )
    )


async def any_volatile(connection: asyncpg.Connection[Any], functions: tuple[tuple[str, ...], ...]) -> bool:
    return bool(
        await connection.fetchval(
            "select coalesce(pg_catalog.bool_or(provolatile = 'v'), true) from pg_catalog.pg_proc"
            " where proname = any($1)",
            [name[-1] for name in functions],
        )
    )


async def checks_values(connection: asyncpg.Connection[Any], of_type: str) -> bool:
    """Whether it is a domain with a check: PostgreSQL then writes every row anew."""
    return bool(
        await connection.fetchval(
            "select exists (select from pg_catalog.pg_constraint where contypid = to_regtype($1)::oid)"
            " or exists ("
            "   select from pg_catalog.pg_type where oid = to_regtype($1)::oid and typtype = 'd' and typnotnull)",
            of_type,
        )
    )


async def never_null(connection: asyncpg.Connection[Any], suspect: Suspect) -> bool:
    """Whether a validated check, or the column itself, says so already."""
    return bool(
        await connection.fetchval(
            "select exists (select from pg_catalog.pg_attribute where attrelid = t.oid and attname = $2 and attnotnull)"
            " or exists (select from pg_catalog.pg_constraint as c where conrelid = t.oid and contype = 'c'"
            "   and convalidated and pg_catalog.pg_get_constraintdef(c.oid)"
            "   = pg_catalog.format('CHECK ((%I IS NOT NULL))', $2::text))"
            " from (select to_regclass($1) as oid) as t",
            qualified(suspect.table),
            suspect.column,
        )
    )


async def users(connection: asyncpg.Connection[Any], domain: str) -> list[str]:
    """The tables with a column of the domain."""
    rows = await connection.fetch(
        "select distinct n.nspname || '.' || c.relname as name from pg_catalog.pg_attribute as a"
        " join pg_catalog.pg_class as c on c.oid = a.attrelid and c.relkind in ('r', 'p')"
        " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
        " where a.atttypid = to_regtype($1)::oid and not a.attisdropped order by 1",
        domain,
    )
    return [row["name"] for row in rows]


async def indexed(connection: asyncpg.Connection[Any], index: str) -> list[str]:
    """The table of an index."""
    rows = await connection.fetch(
        "select n.nspname || '.' || t.relname as name from pg_catalog.pg_index as i"
        " join pg_catalog.pg_class as t on t.oid = i.indrelid"
        " join pg_catalog.pg_namespace as n on n.oid = t.relnamespace where i.indexrelid = to_regclass($1)",
        qualified(index),
    )
    return [row["name"] for row in rows]
