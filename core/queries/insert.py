"""Inserts: every value that is PHI is sealed for the row it goes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from piccolo.columns import Column
from piccolo.query import Insert
from piccolo.query.mixins import OnConflictAction, OnConflictItem, Returning
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.access.minimum import shown_to
from core.columns import FIXED, BlindIndex, Encrypted, RowId, TenantId
from core.crypto.derive import forgetful
from core.errors import ProtectedQueryError, ScopeError
from core.queries.cells import PLAIN, Cells, Values, indexes_of
from core.queries.quiet import Kept
from core.queries.returning import refuse_fixed, returning_plan, returning_shape
from core.queries.searches import looks_of
from core.queries.shape import SHAPES, NoShapeError, is_computed
from core.queries.where import exact, protect
from core.scope import current_scope, open_scope
from core.statements.failure import unique_by_hash
from core.statements.plan import Plan
from core.statements.shown import Look

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["TenantInsert"]

UUID7 = 7
LEFT_OUT = "Not every row was inserted: a trigger of the table left some out, so none was kept. Insert the others."
CHUNK = 100  # rows: enough to make a statement cheap, few enough to go into a socket at once

_cells: dict[type[Table], Cells] = {}


class TenantInsert(Kept, Insert[Any]):
    """``Table.insert`` of a tenant's table: all rows or none.

    Several rows are a transaction of as many statements as they need: while one is on the wire, the next is sealed.
    When a trigger leaves one row out, all are rolled back.
    """

    # What the rows held when the statement was made.
    _values: Sequence[Values] = ()

    @property
    @forgetful
    def default_querystrings(self) -> Sequence[QueryString]:
        if not self.add_delegate._add:
            raise ProtectedQueryError("There is nothing to insert. Give insert() at least one row.")
        added: list[Any] = self.add_delegate._add
        for row in added:
            check_identity(row)
        # What is written is what the rows hold now, whatever is set while it is on its way.
        rows = self._values = [row._held() for row in added]
        returning, conflict = self.returning_delegate._returning, self._conflict()
        key, cells = self.table._meta.primary_key, cells_of(self.table)
        returns_ids = returning is not None and len(returning.columns) == 1 and returning.columns[0] is key
        together = len(rows) == 1 or cells.go_together(rows)
        if not together and (conflict is not None or not returns_ids):
            raise ProtectedQueryError(
                "What the database computes, and arrays of what has no text form, are inserted a row at a time: insert "
                "each by itself, or leave on_conflict() and returning() out."
            )
        if conflict is not None:
            template, arguments = _values(self.table, rows)
            statement = QueryString("{}{}", QueryString(template, *arguments), conflict)
            return [returning_plan(statement, returning, looks=self._looks())]
        # We made the ids. To have them returned is to read, and the policies would be asked about that too.
        if not returns_ids:
            return [self._plan(rows, returning)]
        size = 1 if not together else len(rows) if cells.refers_to_itself else CHUNK
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        plan = self._plan(chunks[0], None)
        plan.answer = [{"id": row["id"]} for row in rows]
        plan.expected = len(rows), LEFT_OUT
        if len(rows) > 1:
            plan.more = lambda: (self._plan(chunk, None) for chunk in chunks[1:])
        return [plan]

    def _plan(self, rows: Sequence[Values], returning: Returning | None) -> Plan:
        template, arguments = _values(self.table, rows)
        if any(type(value) not in PLAIN and is_computed(value) for value in arguments):
            return returning_plan(QueryString(template, *arguments), returning)
        try:
            shape = (self.table, "insert", len(rows) == 1, returning_shape(returning))
        except NoShapeError:
            return returning_plan(QueryString(template, *arguments), returning, joined="where")
        plan = SHAPES.find(shape, arguments)
        if plan is None:
            plan = returning_plan(QueryString(template, *arguments), returning, joined="where")
            SHAPES.keep(shape, plan, arguments, single=len(rows) == 1 and not plan.returns)
        return plan

    def _looks(self) -> list[Look]:
        """The searches that it is: whether there is a conflict tells whether the value is there.

        Threat: who names the sealed column, or adds a condition, is told which row has the value. So these are asked
        for their role; that a value is taken is told to whoever may write it.
        """
        item = self.on_conflict_delegate._on_conflict.on_conflict_items[0]
        table: Any = self.table
        columns, named = unique_by_hash(table), _sealed_in(table, item.target)
        looks = [Look.search(table, columns, shown_to=shown_to(named))] if columns else []
        return looks + (looks_of(protect(item.where)) if item.where else [])

    def _conflict(self) -> QueryString | None:
        items = self.on_conflict_delegate._on_conflict.on_conflict_items
        if not items:
            return None
        item = items[0]
        target = item.target
        columns = (target,) if isinstance(target, Column) else target
        values = item.values
        if isinstance(columns, tuple):
            columns = tuple(_unique(c) if isinstance(c, Encrypted) else c for c in columns)
            # Every unique index of a tenant's table starts with tenant_id.
            tenant = [c for c in self.table._meta.columns if isinstance(c, TenantId)]
            columns = (*tenant, *(c for c in columns if not isinstance(c, TenantId)))
        if item.action is OnConflictAction.do_update:
            by_id = isinstance(columns, tuple) and len(columns) <= 2 and isinstance(columns[-1], RowId)
            values = self._conflict_values(values or (), by_id=by_id)
        where = item.where and exact(protect(item.where), "ON CONFLICT")
        return OnConflictItem(target=columns, action=item.action, values=values, where=where).querystring

    def _conflict_values(self, values: Sequence[Any], *, by_id: bool) -> list[Any]:
        chosen: list[Any] = []
        for value in values:
            column = value[0] if isinstance(value, tuple) else value
            if column is value and isinstance(column, FIXED):
                continue  # one of all_columns(): it stays as it is
            refuse_fixed(column)
            if isinstance(column, Encrypted):
                if not by_id or isinstance(value, tuple):
                    raise ProtectedQueryError(
                        f"{column._meta.name} is sealed for the id of the new row, so on_conflict cannot write it into "
                        "another row. Conflict on the id, or find the row and save it."
                    )
                chosen += indexes_of(column._meta.table, column._meta.name)
            chosen.append(value)
        return chosen

    def _raw_response_callback(self, results: list[Any]) -> None:
        items = self.on_conflict_delegate._on_conflict.on_conflict_items
        returned = [row.get("id") for row in results] if items else []
        updated = bool(items) and items[0].action is OnConflictAction.do_update and len(returned) == len(self._values)
        # The rows are inserted, whether the scope has expired since or not.
        tenant = open_scope().tenant
        table: Any = self.table
        made: Values = table._layout.made
        added: list[Any] = self.add_delegate._add
        for at, (row, values) in enumerate(zip(added, self._values, strict=True)):
            if not items or values["id"] in returned:
                # What was given for these columns was not written; refresh() fetches what was made instead.
                row.__dict__.update(made)
                row.remember(values | made)
            elif updated and returned[at]:
                # The row that was there was updated, and the instance may hold other values.
                row.id = returned[at]
                row._stored = {}
            else:
                continue
            row._exists_in_db = True
            row.tenant_id = tenant


def check_identity(row: Table) -> None:
    """Refuse a row that claims another tenant, or an id that we did not make."""
    tenant, row_id = getattr(row, "tenant_id", None), getattr(row, "id", None)
    if not isinstance(row_id, UUID) or row_id.version != UUID7:
        raise ProtectedQueryError(f"Leave the id of a new {type(row).__name__} to Charthold: it makes a UUIDv7.")
    if tenant is not None and tenant != current_scope().tenant:
        raise ScopeError("The row belongs to another tenant than the open scope.")


def _unique(column: Encrypted[Any]) -> Column:
    """What a unique index of the encrypted column holds."""
    table: type[Table] = column._meta.table
    exact_ones = [i for i in indexes_of(table, column._meta.name) if i.spec.kind in ("exact", "folded")]
    return exact_ones[0] if exact_ones else column.refuse("find a conflict on it")


def _sealed_in(table: type[TenantTable], target: str | Column | tuple[Column, ...] | None) -> Iterator[Column]:
    """The encrypted columns by whose values a conflict is found."""
    if isinstance(target, str):
        yield from map(table._meta.get_column_by_name, unique_by_hash(table, target))
        return
    for column in target if isinstance(target, tuple) else (target,):
        if isinstance(column, Encrypted):
            yield column
        elif isinstance(column, BlindIndex):
            yield from map(table._meta.get_column_by_name, column.of)


def _values(table: type[Table], rows: Sequence[Values]) -> tuple[str, list[Any]]:
    """The INSERT of these rows, and its arguments."""
    cells = cells_of(table)
    return (cells.one, cells.of_one(rows[0])) if len(rows) == 1 else (cells.many, cells.of_many(rows))


def cells_of(table: type[Table]) -> Cells:
    """The table's cells, worked out when first asked for."""
    cells = _cells.get(table)
    if cells is None:
        cells = _cells[table] = Cells(table)
    return cells
