"""Schemas, called namespaces here because 'schema' already means the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.schema.object import Kind, Named
from core.schema.quoting import quote_ident

__all__ = ["Namespace"]


@dataclass(frozen=True, kw_only=True)
class Namespace(Named):
    """A schema in which only its owner may do anything, until a ``SchemaGrant`` says otherwise."""

    kind: ClassVar[str] = "namespace"
    rank: ClassVar[int] = Kind.NAMESPACE
    of_table: ClassVar[bool] = False

    def create(self) -> tuple[str, ...]:
        return (
            f"create schema {quote_ident(self.name)}",
            f"revoke all on schema {quote_ident(self.name)} from public",
        )

    def drop(self) -> tuple[str, ...]:
        return (f"drop schema {quote_ident(self.name)}",)

    def rename(self, new: str) -> tuple[str, ...]:
        return (f"alter schema {quote_ident(self.name)} rename to {quote_ident(new)}",)
