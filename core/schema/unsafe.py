"""Steps that would rewrite a table full of rows, or lock it for long, are named before they run.

PostgreSQL's own parser reads the statements that are about to run, so that what is judged is what happens: generated
or written by hand. What a DO block or a function does inside is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pglast
from pglast import ast
from pglast.enums import AlterTableType, ConstrType, ObjectType
from pglast.visitors import Visitor

from core.errors import MigrationError
from core.schema.live import live_tables
from core.schema.step import Step
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
        "Make a new table or column, and move the rows in batches. A column of a domain with a check counts too.",
    ),
    "domain_check": (
        "all rows of the tables that use the domain are checked while writers wait",
        "Make a new domain for new columns, or run the step in a quiet hour.",
    ),
}

SERIAL = frozenset({"serial", "serial2", "serial4", "serial8", "smallserial", "bigserial"})
REWRITES = frozenset(
    {
        AlterTableType.AT_SetLogged,
        AlterTableType.AT_SetUnLogged,
        AlterTableType.AT_SetTableSpace,
        AlterTableType.AT_SetAccessMethod,
    }
)


@dataclass(frozen=True)
class Finding:
    """One statement, one reason."""

    kind: str
    table: str
    statement: str
    column: str = ""

    def __str__(self) -> str:
        consequence, safe = KINDS[self.kind]
        statement = " ".join(self.statement.split())
        return (
            f"{self.kind} on {self.table}: {consequence}.\n    {statement[:200]}\n"
            f"    Safe form: {safe.format(column=self.column)}"
        )


@dataclass(frozen=True)
class Suspect:
    """What the text alone says; ``functions`` and ``type`` still have to be looked up."""

    kind: str
    table: str
    statement: str
    column: str = ""
    functions: tuple[tuple[str, ...], ...] = ()
    type: str = ""


async def refuse_unsafe(connection: asyncpg.Connection[Any], step: Step) -> None:
    """Raise ``MigrationError`` for everything unsafe in the step that no setting allows."""
    found = [f for f in await findings(connection, step.statements) if f.kind not in settings().allow_unsafe]
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
    live = await live_tables(connection, {suspect.table for suspect in suspects if suspect.table})
    found = []
    for suspect in suspects:
        if suspect.kind == "domain_check":
            guilty = await populated_users(connection, suspect.type)
            found += [Finding(suspect.kind, table, suspect.statement) for table in guilty]
        elif suspect.table in live and live[suspect.table].populated and await is_guilty(connection, suspect):
            found.append(Finding(suspect.kind, suspect.table, suspect.statement, suspect.column))
    return found


class Names:
    """Tables by the name that they have in the database now, whatever the step has renamed before."""

    def __init__(self) -> None:
        self._was: dict[str, str] = {}
        self._new: set[str] = set()

    def live(self, relation: Any) -> str:
        """The name to look up, or an empty string for a table that the step itself makes."""
        name = full(relation)
        return "" if name in self._new else self._was.get(name, name)

    def made(self, relation: Any) -> None:
        self._new.add(full(relation))

    def moved(self, relation: Any, new: str) -> None:
        old = full(relation)
        if old in self._new:
            self._new.add(new)
        else:
            self._was[new] = self._was.pop(old, old)


def full(relation: Any) -> str:
    """``facility`` or ``charthold.token_key``."""
    schema = relation.schemaname
    return str(relation.relname) if schema in {None, "public"} else f"{schema}.{relation.relname}"


def suspicions(statement: str, names: Names) -> Iterator[Suspect]:
    """What may be wrong with a statement, from its parse tree."""
    try:
        parsed = pglast.parse_sql(statement)
    except pglast.parser.ParseError:
        return  # syntax of a newer server, or none at all: PostgreSQL itself will say
    for raw in parsed:
        node: Any = raw.stmt
        if isinstance(node, ast.CreateStmt):
            names.made(node.relation)
        elif isinstance(node, ast.RenameStmt) and node.renameType == ObjectType.OBJECT_TABLE:
            schema = node.relation.schemaname
            names.moved(node.relation, node.newname if schema in {None, "public"} else f"{schema}.{node.newname}")
        elif isinstance(node, ast.AlterObjectSchemaStmt) and node.objectType == ObjectType.OBJECT_TABLE:
            name, schema = node.relation.relname, node.newschema
            names.moved(node.relation, name if schema == "public" else f"{schema}.{name}")
        elif isinstance(node, ast.IndexStmt) and not node.concurrent:
            yield Suspect("blocking_index", names.live(node.relation), statement)
        elif isinstance(node, ast.ClusterStmt) and node.relation:
            yield Suspect("rewrite", names.live(node.relation), statement)
        elif isinstance(node, ast.AlterDomainStmt) and node.subtype == "C" and not node.def_.skip_validation:
            yield Suspect("domain_check", "", statement, type=".".join(part.sval for part in node.typeName))
        elif isinstance(node, ast.AlterTableStmt) and node.objtype == ObjectType.OBJECT_TABLE:
            for command in node.cmds:
                yield from table_suspicions(command, names.live(node.relation), statement)


def table_suspicions(command: Any, table: str, statement: str) -> Iterator[Suspect]:
    """The same for one part of ALTER TABLE."""
    subtype = command.subtype
    if subtype == AlterTableType.AT_AddColumn:
        yield from column_suspicions(command.def_, table, statement)
    elif subtype == AlterTableType.AT_AlterColumnType:
        yield Suspect("type_change", table, statement, command.name, type=type_name(command.def_.typeName))
    elif subtype == AlterTableType.AT_SetNotNull:
        yield Suspect("not_null", table, statement, command.name)
    elif subtype == AlterTableType.AT_AddConstraint:
        kind = constraint_kind(command.def_)
        if kind:
            yield Suspect(kind, table, statement)
    elif subtype in REWRITES:
        yield Suspect("rewrite", table, statement)


def column_suspicions(column: Any, table: str, statement: str) -> Iterator[Suspect]:
    """A new column: its default, its constraints, its type."""
    name, of_type = column.colname, type_name(column.typeName)
    if of_type in SERIAL:
        yield Suspect("volatile_default", table, statement, name)
    else:
        yield Suspect("rewrite", table, statement, name, type=of_type)
    for constraint in column.constraints or ():
        if constraint.contype == ConstrType.CONSTR_DEFAULT:
            if functions := calls(constraint.raw_expr):
                yield Suspect("volatile_default", table, statement, name, functions=functions)
        elif constraint.contype in {ConstrType.CONSTR_GENERATED, ConstrType.CONSTR_IDENTITY}:
            yield Suspect("rewrite", table, statement, name)
        elif kind := constraint_kind(constraint):
            yield Suspect(kind, table, statement, name)


def constraint_kind(constraint: Any) -> str:
    """Which kind of unsafe a constraint on rows that are there already is, or an empty string."""
    if constraint.contype in {ConstrType.CONSTR_PRIMARY, ConstrType.CONSTR_UNIQUE, ConstrType.CONSTR_EXCLUSION}:
        return "" if constraint.indexname else "blocking_index"
    if constraint.contype in {ConstrType.CONSTR_CHECK, ConstrType.CONSTR_FOREIGN}:
        return "" if constraint.skip_validation else "unchecked_constraint"
    return ""


def type_name(node: Any) -> str:
    """A type as PostgreSQL's to_regtype and format_type know it."""
    names = [part.sval for part in node.names]
    if names[0] == "pg_catalog":
        names = names[1:]
    modifiers = [str(modifier.val.ival) for modifier in node.typmods or () if isinstance(modifier.val, ast.Integer)]
    bounds = "[]" if node.arrayBounds else ""
    return ".".join(names) + (f"({','.join(modifiers)})" if modifiers else "") + bounds


def calls(expression: Any) -> tuple[tuple[str, ...], ...]:
    """The functions that an expression calls."""
    found: list[tuple[str, ...]] = []

    class Calls(Visitor):
        def visit_FuncCall(self, _ancestors: Any, node: Any) -> None:  # noqa: N802  # the visitor's protocol
            found.append(tuple(part.sval for part in node.funcname))

    Calls()(expression)
    return tuple(found)


async def is_guilty(connection: asyncpg.Connection[Any], suspect: Suspect) -> bool:
    """What the text cannot say, asked of the catalog."""
    if suspect.functions:
        return await any_volatile(connection, suspect.functions)
    if suspect.kind == "rewrite" and suspect.type:
        return await checks_values(connection, suspect.type)
    if suspect.kind == "type_change":
        return await changes_storage(connection, suspect)
    if suspect.kind == "not_null":
        return not await never_null(connection, suspect)
    return True


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


async def changes_storage(connection: asyncpg.Connection[Any], suspect: Suspect) -> bool:
    """False where PostgreSQL changes the catalog only: a longer varchar, varchar to text, the type that it has."""
    schema, _, table = suspect.table.rpartition(".")
    was = await connection.fetchval(
        "select pg_catalog.format_type(atttypid, atttypmod) from pg_catalog.pg_attribute"
        " where attrelid = to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) and attname = $3",
        schema or "public",
        table,
        suspect.column,
    )
    new = suspect.type.lower().replace("varchar", "character varying")
    if was is None or was == new:
        return False
    if was.startswith("character varying"):
        if new in {"text", "character varying"}:
            return False
        if new.startswith("character varying(") and was.startswith("character varying("):
            return int(new[18:-1]) < int(was[18:-1])
    return True


async def never_null(connection: asyncpg.Connection[Any], suspect: Suspect) -> bool:
    """Whether a validated check, or the column itself, says so already."""
    schema, _, table = suspect.table.rpartition(".")
    return bool(
        await connection.fetchval(
            "select exists (select from pg_catalog.pg_attribute where attrelid = t.oid and attname = $3 and attnotnull)"
            " or exists (select from pg_catalog.pg_constraint as c where conrelid = t.oid and contype = 'c'"
            "   and convalidated and pg_catalog.pg_get_constraintdef(c.oid)"
            "   = pg_catalog.format('CHECK ((%I IS NOT NULL))', $3::text))"
            " from (select to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text)) as oid) as t",
            schema or "public",
            table,
            suspect.column,
        )
    )


async def populated_users(connection: asyncpg.Connection[Any], domain: str) -> list[str]:
    """The populated tables with a column of the domain."""
    rows = await connection.fetch(
        "select distinct n.nspname || '.' || c.relname as name from pg_catalog.pg_attribute as a"
        " join pg_catalog.pg_class as c on c.oid = a.attrelid and c.relkind in ('r', 'p')"
        " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
        " where a.atttypid = to_regtype($1)::oid and not a.attisdropped order by 1",
        domain,
    )
    live = await live_tables(connection, [row["name"] for row in rows])
    return [name for name, table in sorted(live.items()) if table.populated]
