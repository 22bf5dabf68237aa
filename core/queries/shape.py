"""The shape of a query, by which its compiled statement is kept.

Piccolo takes a fifth of a millisecond to build the SQL of a query, and most queries of a program have few shapes. A
shape is made of names, operators and counts, never of Columns (``==`` on them builds a condition) and never of values.
Whatever is not known to be safe has no shape and is compiled each time, as Piccolo does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from piccolo.columns import Column
from piccolo.columns.combination import UNDEFINED, And, Or, Where
from piccolo.custom_types import Combinable
from piccolo.querystring import QueryString

from core.columns import TenantForeignKey
from core.plan import Plan, Statement

__all__ = ["NO_SHAPE", "SHAPES", "Shapes", "column_shape", "columns_shape", "where_shape"]

MOST = 4_096


class NoShapeError(Exception):
    """The query is compiled each time."""


NO_SHAPE = NoShapeError


class Shapes:
    """Compiled statements by shape."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Statement] = {}

    def find(self, shape: Hashable, arguments: list[Any]) -> Plan | None:
        """The plan for these arguments, if the shape was met before."""
        statement = self._kept.get(shape)
        return None if statement is None else Plan.of(statement, arguments)

    def keep(self, shape: Hashable, plan: Plan, arguments: Sequence[Any], *, single: bool = False) -> Plan:
        """Keep what the plan compiles to, if Piccolo's arguments are those that we found: then our order is right.

        ``single``: it is about one row at most.
        """
        plan.single = single and not plan.looked_at
        statement, theirs = plan.compiled()
        if len(theirs) == len(arguments) and all(a is b for a, b in zip(theirs, arguments, strict=True)):
            if len(self._kept) >= MOST:
                self._kept.clear()  # a program with that many shapes writes them itself; begin again
            self._kept[shape] = statement
        return plan


SHAPES = Shapes()


def where_shape(where: Combinable | None, arguments: list[Any]) -> Hashable:
    """The shape of a condition; its values are appended to ``arguments`` in the order in which Piccolo binds them."""
    if where is None:
        return None
    if isinstance(where, (And, Or)):
        return type(where), where_shape(where.first, arguments), where_shape(where.second, arguments)
    if type(where) is not Where:
        raise NoShapeError
    count = 0
    # Either one value or several; never both.
    several: Any = where.values
    single = () if where.value is UNDEFINED else (where.value,)
    for values in (single, () if several is UNDEFINED else several):
        if isinstance(values, QueryString):
            raise NoShapeError
        for value in values:
            if isinstance(value, (QueryString, Column)):
                raise NoShapeError
            arguments.append(value)
            count += 1
    return column_shape(where.column), where.operator, count


def column_shape(column: Any) -> Hashable:
    """A column by the names that lead to it."""
    if not isinstance(column, Column):
        raise NoShapeError
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
