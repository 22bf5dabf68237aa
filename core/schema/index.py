"""Indexes: composite, partial, on expressions, covering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from core.schema.object import Kind, Named, sql_text
from core.schema.quoting import columns_list, quote_ident, split_table

__all__ = ["Index"]


@dataclass(frozen=True, kw_only=True)
class Index(Named):
    """``Index("client_newest", columns=("tenant_id", "created_at desc"), where="status = 'active'")``.

    A column is a name or an ``"(expression)"``, with an optional ordering behind it. ``concurrently`` matters only when
    the index is added to a table that holds rows: it is then built outside of the step's transaction.
    """

    kind: ClassVar[str] = "index"
    rank: ClassVar[int] = Kind.INDEX

    columns: tuple[str, ...]
    unique: bool = False
    where: str | None = None
    include: tuple[str, ...] = ()
    method: str = "btree"
    concurrently: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        sql_text(self, "where")

    @property
    def qualified_name(self) -> str:
        """Its name with the schema of its table, where it lives."""
        return f"{quote_ident(split_table(self.table)[0])}.{quote_ident(self.name)}"

    def statement(self, *, concurrently: bool) -> str:
        """``create index``, in one of its two forms."""
        return (
            f"create {'unique ' if self.unique else ''}index {'concurrently ' if concurrently else ''}"
            f"{quote_ident(self.name)}\n"
            f"    on {self.on} using {quote_ident(self.method)} ({', '.join(map(element, self.columns))})"
            + (f"\n    include ({columns_list(self.include)})" if self.include else "")
            + (f"\n    where {self.where}" if self.where else "")
        )

    def create(self) -> tuple[str, ...]:
        return (self.statement(concurrently=False),)

    def drop(self) -> tuple[str, ...]:
        return (f"drop index {self.qualified_name}",)

    def rename(self, new: str) -> tuple[str, ...]:
        return (f"alter index {self.qualified_name} rename to {quote_ident(new)}",)


def element(column: str) -> str:
    """A column, quoted, or an expression as it is; what stands behind it (``desc``, an operator class) is kept."""
    if column.startswith("("):
        return column
    name, space, ordering = column.partition(" ")
    return quote_ident(name) + space + ordering
