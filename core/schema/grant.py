"""What a role may do with a table or a schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.errors import MigrationError
from core.schema.object import Kind, SchemaObject
from core.schema.quoting import columns_list, quote_ident, role

__all__ = ["Grant", "SchemaGrant"]


def refuse_public(to: str, what: object) -> None:
    """Threat: what PUBLIC holds, every login of the server holds."""
    if to.lower() == "public":
        raise MigrationError(f"The {what} would go to everybody. Name a role.")


@dataclass(frozen=True, kw_only=True)
class Grant(SchemaObject):
    """``Grant(privileges=("select", "insert"), to="app_runtime")``; with ``columns``, on those only."""

    kind: ClassVar[str] = "grant"
    rank: ClassVar[int] = Kind.GRANT

    privileges: tuple[str, ...] = ("select",)
    to: str
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_public(self.to, self)
        if not self.privileges:
            raise MigrationError(f"A grant to {self.to} gives nothing. Name the privileges, or leave it out.")

    @property
    def title(self) -> str:
        columns = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"{', '.join(self.privileges)}{columns} to {self.to}"

    @property
    def what(self) -> str:
        """The privileges, each with the columns that it is confined to."""
        columns = f" ({columns_list(self.columns)})" if self.columns else ""
        return ", ".join(privilege + columns for privilege in self.privileges)

    def create(self) -> tuple[str, ...]:
        return (f"grant {self.what} on table {self.on} to {role(self.to)}",)

    def drop(self) -> tuple[str, ...]:
        return (f"revoke {self.what} on table {self.on} from {role(self.to)}",)


@dataclass(frozen=True, kw_only=True)
class SchemaGrant(SchemaObject):
    """``SchemaGrant(schema="charthold", to="app_runtime")``: without usage, no name in the schema resolves."""

    kind: ClassVar[str] = "schema_grant"
    rank: ClassVar[int] = Kind.SCHEMA_GRANT
    of_table: ClassVar[bool] = False

    schema: str
    privileges: tuple[str, ...] = ("usage",)
    to: str

    def __post_init__(self) -> None:
        refuse_public(self.to, self)
        if not self.privileges:
            raise MigrationError(f"A grant to {self.to} gives nothing. Name the privileges, or leave it out.")

    @property
    def title(self) -> str:
        # Without the privileges: another set of them is a change of this grant, taken back before it is given.
        return f"on {self.schema} to {self.to}"

    def create(self) -> tuple[str, ...]:
        return (f"grant {', '.join(self.privileges)} on schema {quote_ident(self.schema)} to {role(self.to)}",)

    def drop(self) -> tuple[str, ...]:
        return (f"revoke {', '.join(self.privileges)} on schema {quote_ident(self.schema)} from {role(self.to)}",)
