"""Triggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from core.errors import MigrationError
from core.schema.object import Kind, Named, sql_text
from core.schema.quoting import columns_list, qualified, quote_ident, quote_literal

__all__ = ["Trigger"]


@dataclass(frozen=True, kw_only=True)
class Trigger(Named):
    """``Trigger("touch", timing="before", events=("update",), function="charthold.touch")``.

    ``columns`` narrows the update event; ``old_table`` and ``new_table`` name the transition tables.
    """

    kind: ClassVar[str] = "trigger"
    rank: ClassVar[int] = Kind.TRIGGER

    timing: Literal["before", "after"]
    events: tuple[str, ...]
    level: Literal["row", "statement"] = "row"
    function: str
    args: tuple[str, ...] = ()
    when: str | None = None
    columns: tuple[str, ...] = ()
    old_table: str | None = None
    new_table: str | None = None

    def __post_init__(self) -> None:
        sql_text(self, "when")
        if not self.events or not set(self.events) <= {"insert", "update", "delete", "truncate"}:
            raise MigrationError(f"{self.name}: a trigger's events are among insert, update, delete and truncate.")
        if self.timing not in {"before", "after"} or self.level not in {"row", "statement"}:
            raise MigrationError(f"{self.name}: a trigger fires before or after, for each row or statement.")

    def create(self) -> tuple[str, ...]:
        events = " or ".join(
            f"update of {columns_list(self.columns)}" if event == "update" and self.columns else event
            for event in self.events
        )
        transition = (f" old table as {quote_ident(self.old_table)}" if self.old_table else "") + (
            f" new table as {quote_ident(self.new_table)}" if self.new_table else ""
        )
        return (
            f"create trigger {quote_ident(self.name)}\n"
            f"    {self.timing} {events} on {self.on}"
            + (f"\n    referencing{transition}" if transition else "")
            + f"\n    for each {self.level}"
            + (f"\n    when ({self.when})" if self.when else "")
            + f"\n    execute function {qualified(self.function)}({', '.join(map(quote_literal, self.args))})",
        )

    def drop(self) -> tuple[str, ...]:
        return (f"drop trigger {quote_ident(self.name)} on {self.on}",)

    def rename(self, new: str) -> tuple[str, ...]:
        return (f"alter trigger {quote_ident(self.name)} on {self.on} rename to {quote_ident(new)}",)
