"""A raw SQL step, for what has no noun of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from core.errors import MigrationError
from core.schema.object import Kind, Named, sql_text

__all__ = ["Statement"]


@dataclass(frozen=True, kw_only=True)
class Statement(Named):
    """SQL with its way back. ``irreversible`` gives the reason when there is none: then no step back passes it.

    It runs before the tables are made, or after everything else with ``after_tables``. ``declared`` stands in generated
    steps: what a person wrote into a step, and no table declares, is not undone by the next generated one.
    """

    kind: ClassVar[str] = "statement"
    rank: ClassVar[int] = Kind.STATEMENT
    of_table: ClassVar[bool] = False

    forwards: str
    backwards: str | None = None
    irreversible: str | None = None
    after_tables: bool = False
    declared: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.backwards is None and not self.irreversible:
            raise MigrationError(
                f"The statement {self.name} has no way back. Write backwards, or say why not: irreversible='reason'."
            )
        sql_text(self, "forwards", "backwards")

    @property
    def place(self) -> int:
        return Kind.STATEMENT_LATE if self.after_tables else self.rank

    def create(self) -> tuple[str, ...]:
        return (self.forwards,)

    def drop(self) -> tuple[str, ...]:
        if self.backwards is None:
            raise MigrationError(f"The statement {self.name} cannot be undone: {self.irreversible}")
        return (self.backwards,)
