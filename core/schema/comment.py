"""Comments on tables and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from core.schema.object import Kind, SchemaObject, sql_text
from core.schema.quoting import quote_ident, quote_literal

__all__ = ["Comment"]


@dataclass(frozen=True, kw_only=True)
class Comment(SchemaObject):
    """``Comment("Who was seen, and where.")``, of the table or of one column."""

    kind: ClassVar[str] = "comment"
    rank: ClassVar[int] = Kind.COMMENT

    text: str = field(kw_only=False)
    column: str = ""

    def __post_init__(self) -> None:
        sql_text(self, "text")

    @property
    def title(self) -> str:
        return self.column

    @property
    def target(self) -> str:
        return f"column {self.on}.{quote_ident(self.column)}" if self.column else f"table {self.on}"

    def create(self) -> tuple[str, ...]:
        return (f"comment on {self.target} is {quote_literal(self.text)}",)

    def drop(self) -> tuple[str, ...]:
        return (f"comment on {self.target} is null",)
