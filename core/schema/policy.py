"""Row-level security: the switch, and the policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from core.errors import MigrationError
from core.schema.object import Kind, Named, SchemaObject, sql_text
from core.schema.quoting import quote_ident, role

__all__ = ["Policy", "RowSecurity"]


@dataclass(frozen=True, kw_only=True)
class RowSecurity(SchemaObject):
    """Switches row-level security on.

    Threat: without FORCE the table's owner, and every definer function of the owner, reads all tenants.
    """

    kind: ClassVar[str] = "row_security"
    rank: ClassVar[int] = Kind.ROW_SECURITY

    forced: bool = True

    @property
    def title(self) -> str:
        return ""

    def __str__(self) -> str:
        return f"row security on {self.table}"

    def create(self) -> tuple[str, ...]:
        enabled = f"alter table {self.on} enable row level security"
        return (enabled, f"alter table {self.on} force row level security") if self.forced else (enabled,)

    def drop(self) -> tuple[str, ...]:
        disabled = f"alter table {self.on} disable row level security"
        return (f"alter table {self.on} no force row level security", disabled) if self.forced else (disabled,)


@dataclass(frozen=True, kw_only=True)
class Policy(Named):
    """``Policy("isolation", using="tenant_id = (select charthold.tenant_id())", restrictive=True)``."""

    kind: ClassVar[str] = "policy"
    rank: ClassVar[int] = Kind.POLICY

    command: Literal["all", "select", "insert", "update", "delete"] = "all"
    using: str | None = None
    check: str | None = None
    restrictive: bool = False
    to: tuple[str, ...] = ("public",)

    def __post_init__(self) -> None:
        sql_text(self, "using", "check")
        if self.command not in {"all", "select", "insert", "update", "delete"}:
            raise MigrationError(f"{self.name}: a policy is for all, select, insert, update or delete.")
        if self.command in {"select", "delete"} and self.check is not None:
            raise MigrationError(f"{self.name}: a policy for {self.command} has using, and no check.")
        if self.command == "insert" and self.using is not None:
            raise MigrationError(f"{self.name}: a policy for insert has check, and no using.")
        if self.using is None and self.check is None:
            raise MigrationError(f"{self.name}: a policy without a condition hides nothing. Write using or check.")

    def create(self) -> tuple[str, ...]:
        return (
            f"create policy {quote_ident(self.name)} on {self.on}\n"
            f"    as {'restrictive' if self.restrictive else 'permissive'}\n"
            f"    for {self.command}\n"
            f"    to {', '.join(map(role, self.to))}"
            + (f"\n    using ({self.using})" if self.using else "")
            + (f"\n    with check ({self.check})" if self.check else ""),
        )

    def drop(self) -> tuple[str, ...]:
        return (f"drop policy {quote_ident(self.name)} on {self.on}",)

    def rename(self, new: str) -> tuple[str, ...]:
        return (f"alter policy {quote_ident(self.name)} on {self.on} rename to {quote_ident(new)}",)
