"""The shape of a query, by which its compiled statement is kept.

Piccolo takes a fifth of a millisecond to build the SQL of a query, and most queries of a program have few shapes. A
shape is made of names, operators and counts, never of Columns (``==`` on them builds a condition) and never of values.
Whatever is not known to be safe has no shape and is compiled each time, as Piccolo does.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any

from piccolo.columns import Column
from piccolo.columns.combination import UNDEFINED, And, Or, Where
from piccolo.custom_types import Combinable
from piccolo.querystring import QueryString

from core.columns import TenantForeignKey
from core.statements.plan import Plan, Statement

__all__ = ["SHAPES", "NoShapeError", "Shapes", "columns_shape", "is_computed", "where_shape"]

MOST = 4_096
LARGEST = 8_000_000  # characters of all of them, each of which stands in some five texts
OURS = ("piccolo.columns.column_types", "core.columns")  # whose columns are their names, but for an array's element


class NoShapeError(Exception):
    """The query is compiled each time."""


class Shapes:
    """Compiled statements by shape."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Statement] = {}
        self._size = 0
        self._lock = threading.Lock()  # each thread may have an event loop, and compile the same as another

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._kept.clear()
            self._size = 0

    def find(self, shape: Hashable, arguments: list[Any]) -> Plan | None:
        """The plan for these arguments, if the shape was met before."""
        statement = self._kept.get(shape)
        return None if statement is None else Plan.of(statement, arguments)

    def keep(self, shape: Hashable, plan: Plan, arguments: Sequence[Any], *, single: bool = False) -> Plan:
        """Keep what the plan compiles to, if Piccolo's arguments are those that we found: then our order is right.

        ``single``: it is about one row at most.
        """
        statement, theirs = plan.compiled(single=single)
        if len(theirs) == len(arguments) and all(a is b for a, b in zip(theirs, arguments, strict=True)):
            with self._lock:
                if shape in self._kept:
                    return plan
                self._kept[shape] = statement
                self._size += len(statement.sql)
                # The oldest go: pages have numbers and lists have lengths, which come from requests.
                while len(self._kept) > MOST or self._size > LARGEST:
                    self._size -= len(self._kept.pop(next(iter(self._kept))).sql)
        return plan


SHAPES = Shapes()


# Types of values and of columns, met before.
_given: set[type] = set()
_columns: set[type] = set()


def is_computed(value: Any) -> bool:
    """Whether the database computes the value. Piccolo's classes are abstract ones, whose ``isinstance`` takes long."""
    kind = type(value)
    if kind in _given:
        return False
    if isinstance(value, (QueryString, Column)):
        return True
    _given.add(kind)
    return False


def where_shape(where: Combinable | None, arguments: list[Any]) -> Hashable:
    """The shape of a condition; its values are appended to ``arguments`` in the order in which Piccolo binds them."""
    if where is None:
        return None
    if isinstance(where, (And, Or)):
        return type(where), where_shape(where.first, arguments), where_shape(where.second, arguments)
    if type(where) is not Where:
        raise NoShapeError
    # Either one value or several; never both.
    values: Any = where.values
    if values is UNDEFINED:
        values = () if where.value is UNDEFINED else (where.value,)
    elif where.value is not UNDEFINED or is_computed(values):
        raise NoShapeError
    for value in values:
        if is_computed(value):
            raise NoShapeError
        arguments.append(value)
    return column_shape(where.column), where.operator, len(values)


def column_shape(column: Any) -> Hashable:
    """A column by the names that lead to it."""
    kind = type(column)
    if kind not in _columns:
        # A column of somebody's own kind may hold more that makes its SQL than we look at here.
        if not isinstance(column, Column) or kind.__module__ not in OURS:
            raise NoShapeError
        _columns.add(kind)
    if column.__dict__.get("index") is not None:
        raise NoShapeError  # an element of an array
    meta = column._meta
    chain = meta.call_chain
    if chain:
        if any(type(key) is not TenantForeignKey for key in chain):
            raise NoShapeError  # join_on() joins on any column
        return meta._table, meta._name, column._alias, tuple((key._meta._table, key._meta._name) for key in chain)
    return meta._table, meta._name, column._alias


def columns_shape(columns: Sequence[Any]) -> Hashable:
    """Several columns."""
    return tuple(map(column_shape, columns))
