"""The searches that a statement makes by blind indexes: what is recorded of them, and to whom they tell anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from piccolo.columns.combination import And, Or, Where
from piccolo.custom_types import Combinable
from piccolo.table import Table

from core.access.minimum import shown_to
from core.columns import BlindIndex
from core.statements.shown import Look

__all__ = ["looks_of"]


def looks_of(where: Combinable, *, shown: Collection[str] = ()) -> list[Look]:
    """The searches that a statement makes: what it changes or returns tells whether the value is there.

    ``shown``: the tables whose rows it opens, each of which is recorded as read.
    """
    return [
        Look(
            "search",
            table._meta.tablename,
            names,
            unless_shown=table._meta.tablename in shown,
            shown_to=shown_to(table._meta.get_column_by_name(name) for name in names),
        )
        for table, names in _searched(where).items()
    ]


def _searched(where: Combinable | None) -> dict[type[Table], tuple[str, ...]]:
    """The encrypted columns that a protected condition searches by their blind indexes, of each table."""
    found: dict[type[Table], set[str]] = {}
    for leaf in _leaves(where):
        if isinstance(leaf, Where) and isinstance(leaf.column, BlindIndex):
            found.setdefault(leaf.column._meta.table, set()).update(leaf.column.of)
    return {table: tuple(sorted(names)) for table, names in found.items()}


def _leaves(where: Combinable | None) -> Iterator[Combinable]:
    if isinstance(where, (And, Or)):
        yield from _leaves(where.first)
        yield from _leaves(where.second)
    elif where is not None:
        yield where
