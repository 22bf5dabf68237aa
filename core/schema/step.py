"""A step, worked out: the statements of its transaction, and those that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.schema.constraint import Constraint
from core.schema.index import Index
from core.schema.quoting import quote_literal

__all__ = ["Raw", "Step"]


@dataclass(frozen=True)
class Raw:
    """Python that a person wrote into a step. Its SQL is known only when it runs."""

    function: Callable[[], Any]

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


@dataclass
class Step:
    """``pieces`` run in one transaction with the bookkeeping row.

    ``after`` stands outside of any: indexes to build, constraints to validate.
    """

    migration_id: str
    app_name: str
    backwards: bool = False
    pieces: list[str | Raw] = field(default_factory=list)
    after: list[Index | Constraint] = field(default_factory=list)

    @property
    def bookkeeping(self) -> str:
        """The statement that records the step, or strikes it out."""
        name, app = quote_literal(self.migration_id), quote_literal(self.app_name)
        if self.backwards:
            return f"delete from public.migration where name = {name} and app_name = {app}"
        return f"insert into public.migration (name, app_name, ran_on) values ({name}, {app}, clock_timestamp())"

    @property
    def statements(self) -> list[str]:
        """The SQL that is known before it runs."""
        return [piece for piece in self.pieces if isinstance(piece, str)]
