"""What every declared database object has in common: a key, its SQL, its reverse, and its Python source."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

from core.errors import MigrationError
from core.schema.quoting import full_name, qualified, tidy

__all__ = ["Key", "Kind", "Named", "SchemaObject", "literal", "sql_text"]


class Key(NamedTuple):
    """What makes two declarations the same object. Equal keys and unequal fields: the object was changed."""

    kind: str
    table: str
    name: str


class Kind:
    """Creation order: an object is made after all of lower rank, and gone before them. The tables stand at 60."""

    ROLE, NAMESPACE, SCHEMA_GRANT, DOMAIN, FUNCTION, STATEMENT = 10, 20, 30, 40, 50, 55
    TABLES = 60
    PARTITIONS, STORAGE = 61, 62
    PRIMARY_KEY, UNIQUE, CHECK, INDEX, REFERENCES = 70, 75, 80, 90, 95
    FUNCTION_LATE, TRIGGER, ROW_SECURITY, POLICY, GRANT, COMMENT, STATEMENT_LATE = (
        110,
        120,
        130,
        140,
        150,
        160,
        170,
    )


def sql_text(instance: SchemaObject, *names: str) -> None:
    """Strip the indentation of SQL fields of a frozen object, and refuse empty ones."""
    for name in names:
        value = getattr(instance, name)
        if value is not None:
            if not value.strip():
                raise MigrationError(f"{instance} has an empty {name}. Write the SQL, or leave it out.")
            object.__setattr__(instance, name, tidy(value))


@dataclass(frozen=True, kw_only=True)
class SchemaObject(ABC):
    """A database object beside Piccolo's tables and columns. Compared by value; ``create`` and ``drop`` are its SQL."""

    kind: ClassVar[str]
    rank: ClassVar[int]
    of_table: ClassVar[bool] = True

    table: str = ""

    @property
    def place(self) -> int:
        """Its place in the creation order: its kind's rank, mostly."""
        return self.rank

    @property
    @abstractmethod
    def title(self) -> str:
        """What tells it from others of its kind on the same table."""

    @abstractmethod
    def create(self) -> tuple[str, ...]:
        """The statements that make it."""

    @abstractmethod
    def drop(self) -> tuple[str, ...]:
        """The statements that undo ``create``, exactly."""

    def replace(self, old: Self) -> tuple[str, ...] | None:
        """The statements that turn ``old`` into this in place, or None: drop the old and create the new."""
        return None

    def rename(self, new: str) -> tuple[str, ...] | None:
        """The statements that give it another name, or None when its kind has no such thing."""
        return None

    def __str__(self) -> str:
        on = f" on {self.table}" if self.table else ""
        return f"{self.kind.replace('_', ' ')} {self.title}{on}"

    @property
    def key(self) -> Key:
        """What makes it the same object as another declaration."""
        return Key(self.kind, self.table, self.title)

    @property
    def on(self) -> str:
        """Its table, quoted, with the schema."""
        if not self.table:
            raise MigrationError(f"The {self} belongs to a table. Bind it first: bind(schema, tablename).")
        return qualified(self.table)

    def bind(self, schema: str | None, tablename: str) -> Self:
        """A copy that belongs to a table; shared objects stay as they are."""
        if not self.of_table:
            return self
        return dataclasses.replace(self, table=full_name(schema, tablename))

    def moved(self, tables: Mapping[str, str]) -> Self:
        """A copy for tables that were renamed: old name -> new name."""
        return dataclasses.replace(self, table=tables[self.table]) if self.table in tables else self

    def fields(self) -> dict[str, Any]:
        """The fields that differ from their defaults, in order."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        }

    def as_python(self) -> str:
        """Python that makes an equal object."""
        return f"{type(self).__name__}({self.arguments()})"

    def arguments(self) -> str:
        """Its fields as Python keyword arguments."""
        return ", ".join(f"{name}={literal(value)}" for name, value in self.fields().items())


@dataclass(frozen=True, kw_only=True)
class Named(SchemaObject):
    """An object that its name tells from others of its kind."""

    name: str = field(kw_only=False)

    @property
    def title(self) -> str:
        return self.name


def literal(value: Any) -> str:
    """Python source of a value; SQL of several lines stays readable, in triple quotes."""
    if isinstance(value, str) and "\n" in value:
        plain = value.replace("\n", "").isprintable() and '"""' not in value and not value.endswith(('"', "\\"))
        if plain:
            return f'{"r" if chr(92) in value else ""}"""{value}"""'
    if isinstance(value, tuple):
        inner = ", ".join(literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)
