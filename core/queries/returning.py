"""What all statements that write share: RETURNING, the record of a search, and the columns that nobody sets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from piccolo.columns import Column
from piccolo.query.mixins import Returning
from piccolo.querystring import QueryString

from core.columns import FIXED, BlindIndex, Inet
from core.errors import ProtectedQueryError
from core.queries.read import opened_columns
from core.queries.shape import columns_shape
from core.statements.plan import Plan
from core.statements.shown import Look

__all__ = ["refuse_fixed", "returning_plan", "returning_shape"]


def refuse_fixed(column: Column) -> None:
    """Refuse to write a column that Charthold keeps."""
    if isinstance(column, FIXED):
        raise ProtectedQueryError(
            f"{column._meta.name} is kept by Charthold and cannot be set. Leave it out of the update."
        )


class Returned(Returning):
    """Shows an address as a select does."""

    __slots__ = ()

    @property
    def querystring(self) -> QueryString:
        shown = (
            c.as_text(f'"{c._meta.db_column_name}"')
            if isinstance(c, Inet)
            else f'"{c._meta.db_column_name}"' + (f' AS "{c._alias}"' if c._alias else "")
            for c in self.columns
        )
        return QueryString(f" RETURNING {', '.join(shown)}")


def returning_plan(
    statement: QueryString,
    returning: Returning | None,
    *,
    joined: Literal["", "where", "and"] = "",
    looks: Sequence[Look] = (),
) -> Plan:
    """The statement with its RETURNING clause; what it returns is opened and recorded as any other read."""
    if returning is None:
        return Plan("{}", statement, returns=False, joined=joined, looks=looks)
    columns = list(returning.columns)
    for column in columns:
        if isinstance(column, BlindIndex):
            column.refuse("show them")
    opened, rows = opened_columns(columns)
    clause = Returned(columns=[*columns, *rows]).querystring
    return Plan("{}{}", statement, clause, opened=opened, outputs=len(columns), looks=looks)


def returning_shape(returning: Returning | None) -> Hashable:
    """The shape of a RETURNING clause."""
    return None if returning is None else columns_shape(returning.columns)
