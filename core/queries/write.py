"""Queries that write: insert, update, delete. What is PHI is sealed for the row it goes to."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from piccolo.columns import Column
from piccolo.custom_types import Combinable
from piccolo.engine.base import Engine
from piccolo.query import Delete, Insert, Query, Update
from piccolo.query.mixins import OnConflictAction, OnConflictItem, Returning
from piccolo.querystring import QueryString
from piccolo.table import Table
from piccolo.utils.sql_values import convert_to_sql_value

from core.arguments import Deferred, Sealed
from core.columns import ActorId, BlindIndex, CreatedAt, Encrypted, RowId, TenantId
from core.crypto.derive import forgetful, forgetful_later
from core.crypto.values import Kind
from core.errors import ProtectedQueryError, ScopeError
from core.plan import Plan
from core.queries.cells import PLAIN, Cells, Values, index_argument, indexes_of, placeholder, plain, source
from core.queries.quiet import Kept, QuietValues
from core.queries.read import opened_columns
from core.queries.shape import SHAPES, NoShapeError, columns_shape, is_computed, where_shape
from core.queries.where import exact, finds_one, pin, pinned_id, protect, searched
from core.schema import Index
from core.scope import current_scope, open_scope
from core.shown import Look

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable

__all__ = ["TenantDelete", "TenantInsert", "TenantUpdate"]

UUID7 = 7
LEFT_OUT = "Not every row was inserted: a trigger of the table left some out, so none was kept. Insert the others."
GONE = "Nothing was saved: the row is gone, or not yours to see or change. Fetch it again."
CHUNK = 100  # rows: enough to make a statement cheap, few enough to go into a socket at once

_cells: dict[type[Table], Cells] = {}


class TenantInsert(Kept, Insert):  # type: ignore[type-arg]
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
        for row in self.add_delegate._add:
            check_identity(row)
        # What is written is what the rows hold now, whatever is set while it is on its way.
        rows = self._values = [row._held() for row in self.add_delegate._add]  # type: ignore[attr-defined]
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
            # Whether there is a conflict tells whether the value is there.
            table: Any = self.table
            columns = unique_by_hash(table)
            look = Look("search", self.table._meta.tablename, columns) if columns else None
            return [returning_plan(statement, returning, look=look)]
        # We made the ids. To have them returned would be to read, and the policies would ask for that too.
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
                chosen += indexes_of(self.table, [column])
            chosen.append(value)
        return chosen

    def _raw_response_callback(self, results: list[Any]) -> None:
        items = self.on_conflict_delegate._on_conflict.on_conflict_items
        returned = [row.get("id") for row in results] if items else []
        updated = bool(items) and items[0].action is OnConflictAction.do_update and len(returned) == len(self._values)
        # It is done, so the scope that it was done in is not asked whether it has expired since.
        tenant = open_scope().tenant
        for at, (row, values) in enumerate(zip(self.add_delegate._add, self._values, strict=True)):
            if not items or values["id"] in returned:
                row.remember(values)  # type: ignore[attr-defined]
            elif updated and returned[at]:
                # It is the row that was there, of which the instance may hold other values.
                row.id = returned[at]  # type: ignore[attr-defined]
                row._stored = {}  # type: ignore[attr-defined]
            else:
                continue
            row._exists_in_db = True
            row.tenant_id = tenant  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Written:
    """What it means to write some columns of a table, worked out once for each choice of columns."""

    sealed: tuple[Encrypted[Any], ...]
    kinds: dict[str, Kind]
    # The blind indexes that change with them, and the columns that must be read before an index can be computed.
    indexes: tuple[BlindIndex, ...]
    missing: tuple[Encrypted[Any], ...]
    assignments: str


@functools.lru_cache(maxsize=4_096)
def written_of(table: type[Table], names: tuple[str, ...]) -> Written:
    """Raises ``ProtectedQueryError`` for a column that is kept by Charthold."""
    columns = [table._meta.get_column_by_name(name) for name in names]
    for column in columns:
        refuse_fixed(column)
    sealed = tuple(column for column in columns if isinstance(column, Encrypted))
    indexes = indexes_of(table, sealed) if sealed else ()
    parts = {name for index in indexes for name in index.of} - {column._meta.name for column in sealed}
    missing: Any = tuple(table._meta.get_column_by_name(name) for name in sorted(parts))
    kinds = {column._meta.db_column_name: column.kind for column in sealed}
    return Written(sealed, kinds, indexes, missing, _assignments([*columns, *indexes]))


class TenantUpdate(Kept, Update):  # type: ignore[type-arg]
    """``Table.update`` of a tenant's table.

    A sealed value belongs to one row. When the condition does not name the row by its id, the ids are read and locked
    first, in the same transaction, and each row gets its own envelope.
    """

    # The instance whose ``save()`` this is.
    saves: ProtectedTable | None = None

    def __init__(self, table: type[Table], **kwargs: Any) -> None:
        super().__init__(table=table, **kwargs)
        self.values_delegate = QuietValues(table=table)

    @property
    @forgetful
    def default_querystrings(self) -> Sequence[QueryString]:
        row_id = pinned_id(self.table, self.where_delegate._where)
        values, written = self._checked(), self._written()
        if written.sealed and (row_id is None or written.missing):
            raise ProtectedQueryError(
                "An update of encrypted columns of several rows, or of a part of a compound index, is more than one "
                "statement, so it cannot be frozen or printed. Run it as it is."
            )
        arguments: list[Any] = []
        for column, value in values.items():
            name = column._meta.db_column_name
            kind = written.kinds.get(name)
            if value is not None and kind is not None:
                assert row_id is not None
                arguments.append(Sealed(self.table._meta.tablename, name, row_id, value, kind))
            else:
                arguments.append(plain(value, column))
        if written.indexes:
            given = {c._meta.name: v for c, v in values.items()}
            arguments += [index_argument(index, given) for index in written.indexes]
        where = exact(pin(self.table, self.where_delegate._where), "UPDATE")
        bound = list(arguments)
        try:
            names = tuple(written_shape(column, value) for column, value in values.items())
            shape = (self.table, "update", names, where_shape(where, bound), self._returning_shape)
        except NoShapeError:
            return [self._plan(written.assignments, arguments)]
        plan = SHAPES.find(shape, bound)
        if plan is None:
            plan = self._plan(written.assignments, arguments, joined="and")
            SHAPES.keep(shape, plan, bound, single=finds_one(self.table, where) and not plan.returns)
        if self.saves is not None:
            plan.expected = 1, GONE
        return [plan]

    @property
    def _returning_shape(self) -> Hashable:
        return returning_shape(self.returning_delegate._returning)

    def _plan(
        self,
        assignments: str,
        arguments: list[Any],
        *,
        source: str = "",
        of_source: str = "",
        joined: Literal["", "and"] = "",
    ) -> Plan:
        where = exact(pin(self.table, self.where_delegate._where), "UPDATE")
        statement = QueryString(
            f"UPDATE {self.table._meta.get_formatted_tablename()} SET {assignments}{source} WHERE {of_source}{{}}",
            *arguments,
            where.querystring_for_update_and_delete,
        )
        look = None if source else look_of(self.table, where)  # who read the ids first has said so
        return returning_plan(statement, self.returning_delegate._returning, joined=joined, look=look)

    def _written(self) -> Written:
        table: type[Table] = self.table
        return written_of(table, tuple(column._meta.name for column in self.values_delegate._values))

    def _checked(self) -> dict[Column, Any]:
        for column, value in self.values_delegate._values.items():
            if type(value) in PLAIN:
                continue
            if isinstance(column, Encrypted) and isinstance(value, (Column, QueryString)):
                column.refuse("compute its new value")
            if isinstance(value, Query):
                raise ProtectedQueryError("The result of a query is written by running it first.")
            for read in [value] if isinstance(value, Column) else getattr(value, "columns", ()):
                if isinstance(read, Encrypted):
                    raise ProtectedQueryError(
                        f"{read._meta.name} is sealed for its own column, so it cannot be written into another column "
                        "by the database. Select it, and write what it holds."
                    )
        return self.values_delegate._values

    @forgetful_later
    async def _run(self, node: str | None = None, in_pool: bool = True) -> Any:
        if self.saves is not None and not self.values_delegate._values:
            return []
        outcome = await self._run_update(node, in_pool=in_pool)
        if self.saves is not None:
            # What was written: somebody may have set another value since.
            wrote = {c._meta.name: value for c, value in self.values_delegate._values.items() if not is_computed(value)}
            self.saves.remember(wrote)
            for column in self.table._meta.auto_update_columns:  # as Piccolo's save() does
                if column._meta.name in wrote:
                    self.saves.__dict__[column._meta.name] = wrote[column._meta.name]
        return outcome

    async def _run_update(self, node: str | None, *, in_pool: bool) -> Any:
        if self._frozen_querystrings is not None:
            # What was frozen keeps its statement, not the values that Piccolo would look for.
            plan = self._frozen_querystrings[0]
            return await self._process_results(await self.table._meta.db.run_querystring(plan))
        self._validate()  # type: ignore[no-untyped-call]  # Piccolo's
        written = self._written()
        if written.sealed and (written.missing or pinned_id(self.table, self.where_delegate._where) is None):
            self._checked()
            return await self._update_locked_rows(written, self.table._meta.db)
        return await super()._run(node=node, in_pool=in_pool)

    async def _update_locked_rows(self, written: Written, engine: Engine[Any]) -> Any:
        key = self.table._meta.primary_key
        exact(pin(self.table, self.where_delegate._where), "UPDATE")
        async with engine.transaction():
            # By the names that indexes know them by, whatever the database calls them.
            missing = [column.as_alias(column._meta.name) for column in written.missing]
            chosen = self.table.select(key, *missing).lock_rows("NO KEY UPDATE", of=(self.table,))
            chosen.where_delegate._where = self.where_delegate._where
            rows = await chosen
            if not rows:
                if self.saves is not None:
                    raise ProtectedQueryError(GONE)
                return []
            ids = [row["id"] for row in rows]
            # Names of ours: the table's own would be ambiguous in RETURNING.
            assignments, arguments, arrays = [], [], [ids]
            casts = ["uuid[]"]
            for column, value in self.values_delegate._values.items():
                name = column._meta.db_column_name
                if isinstance(column, Encrypted) and value is not None:
                    assignments.append(f'"{name}" = charthold_written.value_{len(casts)}')
                    arrays.append(self._sealed_for(column, ids, value))  # type: ignore[arg-type]
                    casts.append("bytea[]")
                else:
                    assignments.append(f'"{name}" = {placeholder(column)}')
                    arguments.append(convert_to_sql_value(value, column))
            given = {c._meta.name: v for c, v in self.values_delegate._values.items()}
            for index in written.indexes:
                name = index._meta.db_column_name
                assignments.append(f'"{name}" = charthold_written.value_{len(casts)}')
                arrays.append(self._hashes_for(index, [{**row, **given} for row in rows]))  # type: ignore[arg-type]
                casts.append("bytea[]")
            unnested = ", ".join(f"{{}}::{cast}" for cast in casts)
            aliases = ", ".join(f"value_{n}" for n in range(len(casts)))
            plan = self._plan(
                ", ".join(assignments),
                [*arguments, *arrays],
                source=f" FROM unnest({unnested}) AS charthold_written({aliases})",
                of_source=f'"{self.table._meta.tablename}"."id" = charthold_written.value_0 AND ',
            )
            return await self._process_results(await engine.run_querystring(plan))

    def _sealed_for(self, column: Encrypted[Any], ids: list[UUID], value: Any) -> Deferred:
        table, name, kind = self.table._meta.tablename, column._meta.db_column_name, column.kind
        return Deferred(lambda keys: [keys.sealer(table, name, kind).seal(row_id, value) for row_id in ids])

    def _hashes_for(self, index: BlindIndex, rows: list[dict[str, Any]]) -> Deferred:
        label, spec = index.label, index.spec
        return Deferred(lambda keys: keys.blind_column(label, spec, [source(index, row) for row in rows]))


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
        look = look_of(self.table, where)
        return returning_plan(statement, self.returning_delegate._returning, joined=joined, look=look)


def look_of(table: type[Table], where: Combinable) -> Look | None:
    """That a write looks for a value, and by what it changes or returns tells whether it is there."""
    columns = searched(where)
    return Look("search", table._meta.tablename, columns) if columns else None


def returning_plan(
    statement: QueryString,
    returning: Returning | None,
    *,
    joined: Literal["", "where", "and"] = "",
    look: Look | None = None,
) -> Plan:
    """The statement with its RETURNING clause; what it returns is opened and recorded as any other read."""
    if returning is None:
        return Plan("{}", statement, returns=False, joined=joined, look=look)
    columns = list(returning.columns)
    for column in columns:
        if isinstance(column, BlindIndex):
            column.refuse("show them")
    opened, rows = opened_columns(columns)
    clause = Returning(columns=[*columns, *rows]).querystring
    return Plan("{}{}", statement, clause, opened=opened, outputs=len(columns), look=look)


def check_identity(row: Table) -> None:
    """Refuse a row that claims another tenant, or an id that we did not make."""
    tenant, row_id = getattr(row, "tenant_id", None), getattr(row, "id", None)
    if not isinstance(row_id, UUID) or row_id.version != UUID7:
        raise ProtectedQueryError(f"Leave the id of a new {type(row).__name__} to Charthold: it makes a UUIDv7.")
    if tenant is not None and tenant != current_scope().tenant:
        raise ScopeError("The row belongs to another tenant than the open scope.")


@functools.cache
def unique_by_hash(table: type[Table]) -> tuple[str, ...]:
    """The encrypted columns that are unique by their blind indexes."""
    indexes = {c._meta.db_column_name: c.of for c in table._meta.columns if isinstance(c, BlindIndex)}
    unique = [name for o in getattr(table, "declares", ()) if isinstance(o, Index) and o.unique for name in o.columns]
    return tuple(sorted({column for name in unique for column in indexes.get(name, ())}))


def _unique(column: Encrypted[Any]) -> Column:
    """What a unique index of the encrypted column holds."""
    exact_ones = [i for i in indexes_of(column._meta.table, [column]) if i.spec.kind in ("exact", "folded")]
    return exact_ones[0] if exact_ones else column.refuse("find a conflict on it")


FIXED = (RowId, TenantId, ActorId, CreatedAt, BlindIndex)


def refuse_fixed(column: Column) -> None:
    """Refuse to write what a row is."""
    if isinstance(column, FIXED):
        raise ProtectedQueryError(
            f"{column._meta.name} is kept by Charthold and cannot be set. Leave it out of the update."
        )


def written_shape(column: Column, value: Any) -> str:
    """The shape of an assignment; one of an expression has none."""
    if is_computed(value):
        raise NoShapeError
    return column._meta.name


def returning_shape(returning: Returning | None) -> Hashable:
    """The shape of a RETURNING clause."""
    return None if returning is None else columns_shape(returning.columns)


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


def _assignments(columns: Sequence[Column]) -> str:
    return ", ".join(f'"{column._meta.db_column_name}" = {placeholder(column)}' for column in columns)
