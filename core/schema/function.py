"""Functions, and who may call them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import pglast

from core.errors import MigrationError
from core.schema.object import Kind, SchemaObject, sql_text
from core.schema.quoting import qualified, role

__all__ = ["Function"]

# A comment may stand above the statement.
OPENING = re.compile(r"\A((?:\s*--[^\n]*\n)*\s*)create\s+(?:or\s+replace\s+)?function\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Function(SchemaObject):
    """``Function("charthold.touch", source="create function charthold.touch() returns trigger ...")``.

    ``signature`` is its argument types, ``execute_to`` the roles that may call it. It is made before the tables, which
    its body may name all the same; with ``after_tables``, after them, for a table's row type among its arguments.

    Threat: EXECUTE goes to PUBLIC by default, and a definer function would run for everybody. It is revoked at once.
    """

    kind: ClassVar[str] = "function"
    rank: ClassVar[int] = Kind.FUNCTION
    of_table: ClassVar[bool] = False

    name: str = field(kw_only=False)
    signature: str = "()"
    source: str
    execute_to: tuple[str, ...] = ()
    after_tables: bool = False

    def __post_init__(self) -> None:
        sql_text(self, "source")
        object.__setattr__(self, "source", self.source.rstrip(";").rstrip())
        if not OPENING.match(self.source):
            raise MigrationError(f"The source of {self.name} does not begin with 'create function'.")
        if "public" in self.execute_to:
            raise MigrationError(f"{self.name} would be callable by everybody. Name the roles.")

    @property
    def place(self) -> int:
        return Kind.FUNCTION_LATE if self.after_tables else self.rank

    @property
    def title(self) -> str:
        return f"{self.name}{self.signature}"

    @property
    def _called(self) -> str:
        return f"function {qualified(self.name)}{self.signature}"

    def _source(self, verb: str) -> str:
        return OPENING.sub(lambda found: f"{found[1]}{verb} function", self.source, count=1)

    def _access(self, verb: str, preposition: str, roles: tuple[str, ...]) -> tuple[str, ...]:
        return (f"{verb} execute on {self._called} {preposition} {', '.join(map(role, roles))}",) if roles else ()

    def create(self) -> tuple[str, ...]:
        return (
            self._source("create"),
            f"revoke all on {self._called} from public",
            *self._access("grant", "to", self.execute_to),
        )

    def drop(self) -> tuple[str, ...]:
        return (f"drop {self._called}",)

    def replace(self, old: Self) -> tuple[str, ...] | None:
        """In place when PostgreSQL can: policies and triggers hang on the function, and would go with it."""
        if shape(old.source) != shape(self.source):
            return None
        return (
            *((self._source("create or replace"),) if old.source != self.source else ()),
            *self._access("revoke", "from", tuple(r for r in old.execute_to if r not in self.execute_to)),
            *self._access("grant", "to", tuple(r for r in self.execute_to if r not in old.execute_to)),
        )


def shape(source: str) -> tuple[Any, ...]:
    """What CREATE OR REPLACE cannot change: the arguments with their names and defaults, and the result."""
    try:
        [statement] = pglast.parse_sql(source)
    except (ValueError, pglast.parser.ParseError) as error:
        raise MigrationError(f"A function's source is not one SQL statement: {error}") from None
    node: Any = statement.stmt
    parameters = tuple(plain(p(skip_none=True)) for p in node.parameters or ())
    returned = plain(node.returnType(skip_none=True)) if node.returnType else None
    return node.is_procedure, parameters, returned


def plain(tree: Any) -> Any:
    """A parse tree without the positions in the text."""
    if isinstance(tree, dict):
        return tuple((key, plain(value)) for key, value in tree.items() if key != "location")
    return tuple(map(plain, tree)) if isinstance(tree, list | tuple) else tree
