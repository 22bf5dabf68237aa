"""Deletes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from piccolo.custom_types import Combinable
from piccolo.query import Delete
from piccolo.querystring import QueryString

from core.crypto.derive import forgetful
from core.queries.quiet import Kept
from core.queries.returning import returning_plan, returning_shape
from core.queries.searches import looks_of
from core.queries.shape import SHAPES, NoShapeError, where_shape
from core.queries.where import exact, pin
from core.statements.plan import Plan

__all__ = ["TenantDelete"]


class TenantDelete(Kept, Delete):
    """``Table.delete`` of a tenant's table."""

    def _validate(self) -> None:
        if self._frozen_querystrings is None:  # what was frozen keeps its statement, not the condition in it
            super()._validate()  # type: ignore[no-untyped-call]  # Piccolo's

    @property
    @forgetful
    def default_querystrings(self) -> Sequence[QueryString]:
        where = exact(pin(self.table, self.where_delegate._where), "DELETE")
        arguments: list[Any] = []
        try:
            returning = returning_shape(self.returning_delegate._returning)
            shape = (self.table, "delete", where_shape(where, arguments), returning)
        except NoShapeError:
            return [self._compile(where)]
        plan = SHAPES.find(shape, arguments)
        return [plan or SHAPES.keep(shape, self._compile(where, joined="and"), arguments)]

    def _compile(self, where: Combinable, *, joined: Literal["", "and"] = "") -> Plan:
        table = self.table._meta.get_formatted_tablename()
        statement = QueryString(f"DELETE FROM {table} WHERE {{}}", where.querystring_for_update_and_delete)
        looks = looks_of(where)
        return returning_plan(statement, self.returning_delegate._returning, joined=joined, looks=looks)
