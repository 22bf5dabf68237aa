"""Blind indexes without hashes of rows that have a value."""

from __future__ import annotations

from collections.abc import Sequence

from piccolo.table import Table

from core.columns import BlindIndex
from core.crypto.blind import BlindSpec
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.plural import plural
from core.schema.quoting import name_of, quote_ident

__all__ = ["unfilled"]

# So many values are not all too short for their index.
MANY = 100


@check("164.312(c)(1)")
async def blind_indexes(live: Live, notes: Notes) -> None:
    """Threat: an index that was added to rows with values. Searches pass the patient over, and nobody is told."""
    total = 0
    for name, table in live.declared().items():
        there = info.columns if (info := live.relations.get(name)) else []
        indexes = [
            column
            for column in table._meta.columns
            if isinstance(column, BlindIndex) and {column._meta.db_column_name, *values_of(column)} <= {*there}
        ]
        if not indexes:
            continue
        total += len(indexes)
        rows = await live.ask_or_warn(notes, f"The search for rows without hashes in {name}", unfilled(table, indexes))
        for place, index in enumerate(indexes):
            most = max((row[place] for row in rows or ()), default=0)
            called = f"{name}.{index._meta.db_column_name}"
            if most and leaves_out(index.spec) and most < MANY:
                notes.warn(
                    f"{called} holds nothing of rows that have a value: each of these is too short for it,"
                    f" or searches by {', '.join(index.of)} miss them.",
                    subject=f"column {called}",
                    mend="piccolo core reindex, which indexes none anew when they are too short",
                )
            elif most:
                notes.fail(
                    f"{called} holds nothing of rows that have a value: searches by {', '.join(index.of)} miss them.",
                    subject=f"column {called}",
                    mend="piccolo core reindex",
                )
    notes.end(f"{plural(total, 'blind index', 'blind indexes')} hold a hash of every row with a value{live.unseen()}.")


def values_of(index: BlindIndex) -> list[str]:
    """The encrypted columns that an index is of, as the database calls them."""
    return [index._meta.table._meta.get_column_by_name(name)._meta.db_column_name for name in index.of]


def unfilled(table: type[Table], indexes: Sequence[BlindIndex]) -> str:
    """For each of the indexes how many rows with a value it has no hash of, in one look at the rows.

    A value that is too short for its prefix or its last digits has no hash: then only an index without any is empty.
    """
    asked = []
    for index in indexes:
        own = quote_ident(index._meta.db_column_name)
        valued = " and ".join(f"{quote_ident(column)} is not null" for column in values_of(index))
        if leaves_out(index.spec):
            asked.append(f"case when count({own}) = 0 then count(*) filter (where {valued}) else 0 end")
        else:
            asked.append(f"count(*) filter (where {valued} and {own} is null)")
    return f"select {', '.join(asked)} from {name_of(table)} where $1::uuid is null or tenant_id = $1"


def leaves_out(spec: BlindSpec) -> bool:
    """Whether some values have no hash in such an index."""
    return spec.kind in {"prefix", "last"} or any(map(leaves_out, spec.parts))
