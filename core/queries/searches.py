"""The searches that a statement makes by blind indexes: what is recorded of them, and to whom they tell anything."""

from __future__ import annotations

from collections.abc import Iterator

from piccolo.columns.combination import And, Or, Where
from piccolo.custom_types import Combinable
from piccolo.table import Table

from core.access.minimum import shown_to
from core.columns import BlindIndex
from core.statements.shown import Look

__all__ = ["looks_of"]


def looks_of(where: Combinable, *, shows_rows: bool = False) -> list[Look]:
    """The searches that a statement makes: what it changes or returns tells whether the value is there.

    ``shows_rows``: each row that it finds is recorded as shown, which is record enough of a search among these rows. Of
    what they refer to it is not: that row is not shown with them, or there is none.
    """
    return [
        Look.search(
            table,
            names,
            unless_shown=unless_shown,
            shown_to=shown_to(table._meta.get_column_by_name(name) for name in names),
        )
        for (table, unless_shown), names in _searched(where, shows_rows=shows_rows).items()
    ]


def _searched(where: Combinable | None, *, shows_rows: bool) -> dict[tuple[type[Table], bool], tuple[str, ...]]:
    """The encrypted columns that a protected condition searches by their blind indexes, of each table."""
    found: dict[tuple[type[Table], bool], set[str]] = {}
    for leaf in _leaves(where):
        if isinstance(leaf, Where) and isinstance(leaf.column, BlindIndex):
            meta = leaf.column._meta
            found.setdefault((meta.table, shows_rows and not meta.call_chain), set()).update(leaf.column.of)
    return {key: tuple(sorted(names)) for key, names in found.items()}


def _leaves(where: Combinable | None) -> Iterator[Combinable]:
    if isinstance(where, (And, Or)):
        yield from _leaves(where.first)
        yield from _leaves(where.second)
    elif where is not None:
        yield where
