"""When a column gets another type, what sessions remember of the table's trigger functions is wrong.

PL/pgSQL keeps the plan of each expression for the session's life, with the types that NEW had: after the change every
write of a running application would fail, until it is restarted. A function whose catalog row is new is compiled anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pglast
from pglast import ast
from pglast.enums import AlterTableType

from core.schema.quoting import quote_ident, quote_literal
from core.schema.step import Raw

__all__ = ["forgetting"]


def forgetting(pieces: Sequence[str | Raw]) -> Iterator[str | Raw]:
    """The pieces of a step; behind those that give columns another type, what makes sessions forget."""
    for piece, following in zip_longest(pieces, pieces[1:], fillvalue=""):
        yield piece
        # Piccolo changes a column in several statements; the last of them is enough.
        yield from (forget(table) for table in retyped(piece) if table not in retyped(following))


def retyped(piece: str | Raw) -> dict[str, None]:
    """The tables of which a column gets another type, in order."""
    tables: dict[str, None] = {}
    with contextlib.suppress(pglast.parser.ParseError):
        for raw in pglast.parse_sql(piece) if isinstance(piece, str) else ():
            node: Any = raw.stmt
            if isinstance(node, ast.AlterTableStmt) and any(
                command.subtype == AlterTableType.AT_AlterColumnType for command in node.cmds
            ):
                relation = node.relation
                tables[f"{quote_ident(relation.schemaname or 'public')}.{quote_ident(relation.relname)}"] = None
    return tables


def forget(table: str) -> str:
    """Writes the catalog rows of the table's trigger functions, and changes nothing in them."""
    return f"""do $forget$
declare
    known record;
begin
    for known in
        select distinct p.oid::regprocedure as called, p.procost as cost
        from pg_catalog.pg_trigger as t
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
        join pg_catalog.pg_language as l on l.oid = p.prolang
        where t.tgrelid = to_regclass({quote_literal(table)}) and not t.tgisinternal
            and l.lanname = 'plpgsql' and pg_catalog.pg_has_role(p.proowner, 'usage')
    loop
        execute pg_catalog.format('alter function %s cost %s', known.called, known.cost);
    end loop;
end
$forget$"""
