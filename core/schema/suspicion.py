"""What the text of a statement says about tables that may hold rows, from PostgreSQL's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pglast
from pglast import ast
from pglast.enums import AlterTableType, ConstrType, ObjectType, ReindexObjectType

from core.schema.quoting import full_name

__all__ = ["Names", "Suspect", "suspicions"]

SERIAL = frozenset({"serial", "serial2", "serial4", "serial8", "smallserial", "bigserial"})
REWRITES = frozenset(
    {
        AlterTableType.AT_SetLogged,
        AlterTableType.AT_SetUnLogged,
        AlterTableType.AT_SetTableSpace,
        AlterTableType.AT_SetAccessMethod,
    }
)
SET_NOT_NULL, ADD_CONSTRAINT = "O", "C"  # what ALTER DOMAIN calls them


@dataclass(frozen=True)
class Suspect:
    """What the text alone says; the catalog says whether it is so.

    ``type`` is a column's new type, or the domain or index that the statement names instead of a table; ``converts``
    says that a column's values are computed anew, or sorted in another way.
    """

    kind: str
    table: str
    statement: str
    column: str = ""
    functions: tuple[tuple[str, ...], ...] = ()
    type: str = ""
    converts: bool = False


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
    return full_name(relation.schemaname, relation.relname)


def suspicions(statement: str, names: Names) -> Iterator[Suspect]:
    """What may be wrong with a statement."""
    try:
        parsed = pglast.parse_sql(statement)
    except pglast.parser.ParseError as error:
        yield Suspect("unread", "", statement, type=str(error.args[0]))
        return
    for raw in parsed:
        yield from suspicions_of(raw.stmt, names, statement)


def suspicions_of(node: Any, names: Names, statement: str) -> Iterator[Suspect]:
    if isinstance(node, ast.CreateStmt):
        names.made(node.relation)
    elif isinstance(node, ast.RenameStmt) and node.renameType == ObjectType.OBJECT_TABLE:
        yield Suspect("sealed_rename", names.live(node.relation), statement)
        names.moved(node.relation, full_name(node.relation.schemaname, node.newname))
    elif isinstance(node, ast.RenameStmt) and node.renameType == ObjectType.OBJECT_COLUMN:
        yield Suspect("sealed_rename", names.live(node.relation), statement, node.subname)
    elif isinstance(node, ast.AlterObjectSchemaStmt) and node.objectType == ObjectType.OBJECT_TABLE:
        names.moved(node.relation, full_name(node.newschema, node.relation.relname))
    elif isinstance(node, ast.IndexStmt) and not node.concurrent:
        yield Suspect("blocking_index", names.live(node.relation), statement)
    elif isinstance(node, ast.ClusterStmt) and node.relation:
        yield Suspect("rewrite", names.live(node.relation), statement)
    elif isinstance(node, ast.DropStmt) and node.removeType == ObjectType.OBJECT_TABLE:
        for parts in node.objects:
            schema, name = ([None, *(part.sval for part in parts)])[-2:]
            relation = ast.RangeVar(relname=name, schemaname=schema)
            yield Suspect("drop_populated", names.live(relation), statement)
    elif isinstance(node, ast.TruncateStmt):
        for relation in node.relations:
            yield Suspect("drop_populated", names.live(relation), statement)
    elif isinstance(node, ast.RefreshMatViewStmt) and not node.concurrent:
        yield Suspect("refresh", names.live(node.relation), statement)
    elif (
        isinstance(node, ast.ReindexStmt)
        and node.relation
        and not any(p.defname == "concurrently" for p in node.params or ())
    ):
        of_index = node.kind == ReindexObjectType.REINDEX_OBJECT_INDEX
        table = "" if of_index else names.live(node.relation)
        yield Suspect("reindex", table, statement, type=full(node.relation) if of_index else "")
    elif isinstance(node, ast.AlterDomainStmt):
        adds = node.subtype == ADD_CONSTRAINT and not node.def_.skip_validation
        if adds or node.subtype == SET_NOT_NULL:
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
        of_type = type_name(command.def_.typeName)
        converts = bool(command.def_.collClause) or computes(command.def_.raw_default, command.name, of_type)
        yield Suspect("type_change", table, statement, command.name, type=of_type, converts=converts)
    elif subtype == AlterTableType.AT_DropColumn:
        yield Suspect("sealed_drop", table, statement, command.name)
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


def computes(using: Any, column: str, of_type: str) -> bool:
    """Whether USING says more than the column's own value in its new type."""
    if isinstance(using, ast.TypeCast) and type_name(using.typeName) == of_type:
        using = using.arg
    return using is not None and not (
        isinstance(using, ast.ColumnRef) and getattr(using.fields[-1], "sval", None) == column
    )


def calls(expression: Any) -> tuple[tuple[str, ...], ...]:
    """The functions that an expression calls."""
    from pglast.visitors import Visitor  # brings all of its printers, a tenth of a second that each command would wait

    found: list[tuple[str, ...]] = []

    class Calls(Visitor):
        def visit_FuncCall(self, _ancestors: Any, node: Any) -> None:  # noqa: N802  # the visitor's protocol
            found.append(tuple(part.sval for part in node.funcname))

    Calls()(expression)
    return tuple(found)
