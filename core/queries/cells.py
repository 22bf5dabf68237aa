"""How the columns of a row become the arguments of a statement. Worked out once a table: rows come by the thousand."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from piccolo.columns import JSON, Array, Column
from piccolo.table import Table
from piccolo.utils.sql_values import convert_to_sql_value

from core.columns import ActorId, BlindIndex, CreatedAt, Encrypted, TenantId
from core.crypto.keyring import TenantKeys
from core.queries.shape import is_computed
from core.statements.arguments import TENANT, Deferred

__all__ = ["PLAIN", "Cells", "Values", "index_argument", "indexes_of", "placeholder", "plain", "source"]

# Types that go on the wire as they are; Piccolo converts the others.
PLAIN = frozenset({type(None), str, int, bool, float, bytes, UUID, date, datetime, Decimal})

# What a row holds, by the names of its columns.
Values = dict[str, Any]
# Types that have length one when no length is given, and what each is without a limit.
UNBOUNDED = {"char": "bpchar", "character": "bpchar", "bit": "varbit"}
# Types whose text PostgreSQL reads as the driver would write them.
TEXT_FORM = (str, int, float, bool, bytes, UUID, date, datetime, Decimal)
Cell = Callable[[Values], Any]


class Cells:
    """The columns of a table that an INSERT writes."""

    def __init__(self, table: type[Table]) -> None:
        self.table = table
        self.columns = [c for c in table._meta.columns if not isinstance(c, (ActorId, CreatedAt))]
        # Whether a row may name another that is written later.
        self.refers_to_itself = any(
            key._foreign_key_meta.resolved_references is table for key in table._meta.foreign_key_columns
        )
        self.listed = [c for c in self.columns if not isinstance(c, TenantId)]
        self._sealed = [c for c in self.columns if isinstance(c, Encrypted)]
        self._indexes = [c for c in self.columns if isinstance(c, BlindIndex)]
        # What is made with the tenant's keys, in the order in which of_one() makes it; a cell makes the rest.
        self._late = [c._meta.name for c in (*self._sealed, *self._indexes)]
        self._cells = [(c._meta.name, None if c._meta.name in self._late else _cell(c)) for c in self.columns]
        self._arrays = [(c, _element_type(c)) for c in self.columns if isinstance(c, Array)]
        self._sealed_names = [c._meta.name for c in self._sealed]
        self._sealed_place = tuple((c._meta.db_column_name, c.kind) for c in self._sealed)
        names = ", ".join(f'"{c._meta.db_column_name}"' for c in self.columns)
        into = f"INSERT INTO {table._meta.get_formatted_tablename()} ({names}) "
        # The casts keep the driver from asking the server about our domain.
        self.one = into + f"SELECT {', '.join(placeholder(c) for c in self.columns)}"
        # One array a column: the text of the statement does not depend on the number of rows.
        values = ", ".join(
            "{}" if isinstance(c, TenantId) else f'u."{c._meta.db_column_name}"{_element_cast(c)}' for c in self.columns
        )
        arrays = ", ".join(f"{{}}::{_array_type(c)}" for c in self.listed)
        aliases = ", ".join(f'"{c._meta.db_column_name}"' for c in self.listed)
        self.many = into + f"SELECT {values} FROM unnest({arrays}) AS u({aliases})"

    def of_one(self, values: Values) -> list[Any]:
        """The arguments of ``one``."""
        late = iter([*self._sealed_cells(values), *self._hashed_cells(values)])
        made = {column: next(late) for column in self._late}
        return [made[name] if cell is None else cell(values) for name, cell in self._cells]

    def _hashed_cells(self, values: Values) -> list[Any]:
        """Hashes all blind indexes when the first of them is bound."""
        wanted = [(index.label, index.spec, source(index, values)) for index in self._indexes]
        done: list[tuple[TenantKeys, list[bytes | None]]] = []

        def hashes(keys: TenantKeys) -> list[bytes | None]:
            # As in ``_seal_together``.
            if not done or done[0][0] is not keys:
                done[:] = [(keys, keys.blind_row(wanted))]
            return done[0][1]

        return [
            None if value is None else Deferred(lambda keys, at=at: hashes(keys)[at])  # type: ignore[misc]  # at is an int
            for at, (_, _, value) in enumerate(wanted)
        ]

    def _sealed_cells(self, values: Values) -> list[Any]:
        together = self._seal_together((values,))
        return [
            None if values[name] is None else Deferred(lambda keys, at=at: together(keys)[at][0])  # type: ignore[misc]  # at is an int
            for at, name in enumerate(self._sealed_names)
        ]

    def go_together(self, rows: Sequence[Values]) -> bool:
        """Whether ``many`` can write the rows: no value is computed by the database, and each array has a text form."""
        if any(type(value) not in PLAIN and is_computed(value) for row in rows for value in row.values()):
            return False
        return all(_has_text(plain(row[c._meta.name], c), kind) for c, kind in self._arrays for row in rows)

    def of_many(self, rows: Sequence[Values]) -> list[Any]:
        """The arguments of ``many``: the tenant, and an array a column."""
        sealed = self._seal_together(rows)
        return [TENANT, *(self._array(column, rows, sealed) for column in self.listed)]

    def _seal_together(self, rows: Sequence[Values]) -> Callable[[TenantKeys], list[list[bytes | None]]]:
        """Seals all encrypted columns, row by row, when the first of them is bound: one ``urandom`` a row."""
        table, place, names = self.table._meta.tablename, self._sealed_place, self._sealed_names
        done: list[tuple[TenantKeys, list[list[bytes | None]]]] = []

        def columns(keys: TenantKeys) -> list[list[bytes | None]]:
            # A query that is run again may meet other keys; digests and envelopes of a row are of one version.
            if not done or done[0][0] is not keys:
                pairs = [(row["id"], [row[name] for name in names]) for row in rows]
                sealed = [list(column) for column in zip(*keys.row(table, place).seal_many(pairs), strict=True)]
                done[:] = [(keys, sealed)]
            return done[0][1]

        return columns

    def _array(
        self, column: Column, rows: Sequence[Values], sealed: Callable[[TenantKeys], list[list[bytes | None]]]
    ) -> Any:
        name = column._meta.name
        if isinstance(column, Encrypted):
            at = self._sealed_names.index(name)
            return Deferred(lambda keys: sealed(keys)[at])
        if isinstance(column, BlindIndex):
            label, spec = column.label, column.spec
            return Deferred(lambda keys: keys.blind_column(label, spec, [source(column, row) for row in rows]))
        values = [plain(row[name], column) for row in rows]
        return [_array_literal(value) for value in values] if isinstance(column, Array) else values


def _element_type(column: Column) -> type | None:
    """The type of an array's elements whose text PostgreSQL reads as the driver would write them; None for others."""
    while isinstance(column, Array):
        column = column.base_column
    return column.value_type if column.value_type in TEXT_FORM and not isinstance(column, JSON) else None


def _has_text(value: Any, kind: type | None) -> bool:
    if value is None:
        return True
    if isinstance(value, (list, tuple)):
        return all(_has_text(item, kind) for item in value)
    if type(value) is not kind and not (kind is UUID and isinstance(value, UUID)):
        return False
    return not isinstance(value, date) or 1 < value.year < 9999  # the first and the last are infinity to the driver


def plain(value: Any, column: Column) -> Any:
    """A value as the driver takes it."""
    return value if type(value) in PLAIN and not _holds_json(type(column)) else convert_to_sql_value(value, column)


@functools.cache
def _holds_json(kind: type[Column]) -> bool:
    return issubclass(kind, JSON)


def source(index: BlindIndex, values: Values) -> Any:
    """What the index hashes: one value, or for a compound index all of them; None when any is missing."""
    if len(index.of) == 1:
        return values.get(index.of[0])
    parts = tuple(values.get(name) for name in index.of)
    return None if any(part is None for part in parts) else parts


def index_argument(index: BlindIndex, values: Values) -> Any:
    """The hash to store: under the index key that is current."""
    value = source(index, values)
    if value is None:
        return None
    label, spec = index.label, index.spec
    return Deferred(lambda keys: keys.blind(label, spec, value))


@functools.cache
def indexes_of(table: type[Table], *names: str) -> tuple[BlindIndex, ...]:
    """The blind indexes that hash any of the columns of these names."""
    return tuple(c for c in table._meta.columns if isinstance(c, BlindIndex) and set(names) & set(c.of))


def placeholder(column: Column) -> str:
    """Where an argument for the column stands."""
    return "{}::bytea" if isinstance(column, (Encrypted, BlindIndex)) else "{}"


def _cell(column: Column) -> Cell:
    name = column._meta.name
    if isinstance(column, TenantId):
        return lambda _: TENANT
    return lambda values: plain(values[name], column)


def _array_type(column: Column) -> str:
    if isinstance(column, (Encrypted, BlindIndex)):
        return "bytea[]"
    # unnest() would flatten an array of arrays, so each travels as its literal.
    return "text[]" if isinstance(column, Array) else f"{_without_length(column)}[]"


def _without_length(column: Column) -> str:
    """The column's type for a cast. A cast to varchar(3) cuts; what is assigned to such a column and too long fails."""
    name = re.sub(r"\([^)]*\)", "", column.column_type.lower())
    return re.sub(r"^(char|character|bit)\b(?! varying)", lambda kind: UNBOUNDED[kind[1]], name)


def _element_cast(column: Column) -> str:
    return f"::{_without_length(column)}" if isinstance(column, Array) else ""


def _array_literal(values: Sequence[Any] | None) -> str | None:
    """PostgreSQL's text form of an array."""
    return None if values is None else "{" + ",".join(map(_element, values)) + "}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(map(_element, value)) + "}"
    text = "\\x" + value.hex() if isinstance(value, bytes) else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
