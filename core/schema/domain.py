"""Domains: types with a check that no role can go around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from core.schema.object import Kind, Named, sql_text
from core.schema.quoting import qualified, quote_ident, split_table

__all__ = ["Domain"]


@dataclass(frozen=True, kw_only=True)
class Domain(Named):
    """``Domain("charthold.envelope", type="bytea", check="octet_length(value) > 30")``."""

    kind: ClassVar[str] = "domain"
    rank: ClassVar[int] = Kind.DOMAIN
    of_table: ClassVar[bool] = False

    type: str
    check: str | None = None

    def __post_init__(self) -> None:
        sql_text(self, "type", "check")

    @property
    def _constraint(self) -> str:
        return quote_ident(f"{split_table(self.name)[1]}_check")

    def create(self) -> tuple[str, ...]:
        check = f"\n    constraint {self._constraint} check ({self.check})" if self.check else ""
        return (f"create domain {qualified(self.name)} as {self.type}{check}",)

    def drop(self) -> tuple[str, ...]:
        return (f"drop domain {qualified(self.name)}",)

    def replace(self, old: Self) -> tuple[str, ...] | None:
        """A domain that columns use cannot be dropped; its check changes in place, and existing values are checked."""
        if old.type != self.type or old.name != self.name:
            return None
        alter = f"alter domain {qualified(self.name)}"
        dropped = (f"{alter} drop constraint {self._constraint}",) if old.check else ()
        added = (f"{alter} add constraint {self._constraint} check ({self.check})",) if self.check else ()
        return dropped + added
