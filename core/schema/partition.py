"""How a table is stored: partitioned, and with which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from core.errors import MigrationError
from core.schema.object import Kind, SchemaObject, literal, sql_text
from core.schema.quoting import quote_ident, quote_literal

__all__ = ["Partitions", "StorageParameters"]


@dataclass(frozen=True, kw_only=True)
class Partitions(SchemaObject):
    """``Partitions(by="range (occurred_at)")``: part of CREATE TABLE, so decided once."""

    kind: ClassVar[str] = "partitions"
    rank: ClassVar[int] = Kind.PARTITIONS

    by: str = field(kw_only=False)

    def __post_init__(self) -> None:
        sql_text(self, "by")

    @property
    def title(self) -> str:
        return ""

    def create(self) -> tuple[str, ...]:
        raise MigrationError(
            f"{self.table} exists, and PostgreSQL cannot partition a table that exists. "
            "Declare Partitions when the table is new, or copy the rows to a new table."
        )

    def drop(self) -> tuple[str, ...]:
        raise MigrationError(f"PostgreSQL cannot take partitioning off {self.table}. Copy the rows to a new table.")


@dataclass(frozen=True, kw_only=True)
class StorageParameters(SchemaObject):
    """``StorageParameters({"fillfactor": 80})``."""

    kind: ClassVar[str] = "storage_parameters"
    rank: ClassVar[int] = Kind.STORAGE

    parameters: Mapping[str, Any] | tuple[tuple[str, Any], ...] = field(kw_only=False)

    def __post_init__(self) -> None:
        # Kept sorted and hashable.
        object.__setattr__(self, "parameters", tuple(sorted(dict(self.parameters).items())))
        if not self.parameters:
            raise MigrationError("StorageParameters names at least one parameter.")

    @property
    def title(self) -> str:
        return ", ".join(name for name, _ in self._pairs)

    @property
    def _pairs(self) -> tuple[tuple[str, Any], ...]:
        return tuple(dict(self.parameters).items())

    def arguments(self) -> str:
        return f"table={literal(self.table)}, parameters={dict(self.parameters)!r}"

    def create(self) -> tuple[str, ...]:
        values = ", ".join(f"{parameter(name)} = {quote_literal(str(value).lower())}" for name, value in self._pairs)
        return (f"alter table {self.on} set ({values})",)

    def drop(self) -> tuple[str, ...]:
        return (f"alter table {self.on} reset ({', '.join(parameter(name) for name, _ in self._pairs)})",)


def parameter(name: str) -> str:
    """``toast.autovacuum_enabled`` is two identifiers."""
    return ".".join(quote_ident(part) for part in name.split("."))
