"""Updates: every value that is PHI is sealed for the row it goes to."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from piccolo.columns import Column
from piccolo.custom_types import Combinable
from piccolo.engine.base import Engine
from piccolo.query import Query, Update
from piccolo.querystring import QueryString
from piccolo.table import Table
from piccolo.utils.sql_values import convert_to_sql_value

from core.columns import FIXED, BlindIndex, CreatedAt, Encrypted, RowId, TenantId, UpdatedAt
from core.crypto.derive import forgetful, forgetful_later
from core.crypto.values import Kind
from core.errors import ProtectedQueryError
from core.queries.cells import PLAIN, index_argument, indexes_of, placeholder, plain, source
from core.queries.quiet import Kept, QuietValues
from core.queries.returning import refuse_fixed, returning_plan, returning_shape
from core.queries.searches import looks_of
from core.queries.shape import SHAPES, NoShapeError, is_computed, where_shape
from core.queries.where import exact, finds_one, pin, pinned_id
from core.scope import current_scope
from core.statements.arguments import Deferred
from core.statements.plan import Plan

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable

__all__ = ["TenantUpdate"]

GONE = "Nothing was saved: the row is gone, or not yours to see or change. Fetch it again."


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
        # Beside other columns created_at is let through: the database refuses one that differs.
        if type(column) is not CreatedAt or len(columns) == 1:
            refuse_fixed(column)
    sealed = tuple(column for column in columns if isinstance(column, Encrypted))
    indexes = indexes_of(table, *(column._meta.name for column in sealed))
    parts = {name for index in indexes for name in index.of} - {column._meta.name for column in sealed}
    missing: Any = tuple(table._meta.get_column_by_name(name) for name in sorted(parts))
    kinds = {column._meta.db_column_name: column.kind for column in sealed}
    return Written(sealed, kinds, indexes, missing, _assignments([*columns, *indexes]))


class TenantUpdate(Kept, Update[Any]):
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
        values = self._checked()
        written = self._meaning(values)
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
                arguments.append(_sealed(self.table._meta.tablename, name, kind, row_id, value))
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
            return [self._plan(where, written.assignments, arguments)]
        plan = SHAPES.find(shape, bound)
        if plan is None:
            plan = self._plan(where, written.assignments, arguments, joined="and")
            SHAPES.keep(shape, plan, bound, single=finds_one(self.table, where) and not plan.returns)
        if self.saves is not None:
            plan.expected = 1, GONE
        return [plan]

    @property
    def _returning_shape(self) -> Hashable:
        return returning_shape(self.returning_delegate._returning)

    def _plan(
        self,
        where: Combinable,
        assignments: str,
        arguments: list[Any],
        *,
        source: str = "",
        of_source: str = "",
        joined: Literal["", "and"] = "",
    ) -> Plan:
        statement = QueryString(
            f"UPDATE {self.table._meta.get_formatted_tablename()} SET {assignments}{source} WHERE {of_source}{{}}",
            *arguments,
            where.querystring_for_update_and_delete,
        )
        looks = [] if source else looks_of(where)  # reading the ids has recorded it
        return returning_plan(statement, self.returning_delegate._returning, joined=joined, looks=looks)

    def _meaning(self, values: dict[Column, Any]) -> Written:
        table: type[Table] = self.table
        return written_of(table, tuple(column._meta.name for column in values))

    def _to_write(self) -> dict[Column, Any]:
        """The values without what the row has anyway, which is among them when a whole row is written back."""
        values = self.values_delegate._values
        if not any(is_fixed(type(column)) for column in values):
            return values
        return {column: value for column, value in values.items() if not self._stands(column, value)} or values

    def _stands(self, column: Column, value: Any) -> bool:
        if isinstance(column, RowId):
            return bool(value == pinned_id(self.table, self.where_delegate._where))
        if isinstance(column, TenantId):
            return bool(value == current_scope().tenant)
        # The database moves updated_at; of a hash everybody is shown null.
        return isinstance(column, UpdatedAt) or (isinstance(column, BlindIndex) and value is None)

    def _checked(self) -> dict[Column, Any]:
        values = self._to_write()
        for column, value in values.items():
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
        return values

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
        written = self._meaning(self._to_write())
        if written.sealed and (written.missing or pinned_id(self.table, self.where_delegate._where) is None):
            return await self._update_locked_rows(self._checked(), written, self.table._meta.db)
        return await super()._run(node=node, in_pool=in_pool)

    async def _update_locked_rows(self, values: dict[Column, Any], written: Written, engine: Engine[Any]) -> Any:
        key = self.table._meta.primary_key
        where = exact(pin(self.table, self.where_delegate._where), "UPDATE")
        async with engine.transaction():
            # By the names that indexes know them by, whatever the database calls them.
            missing = [column.as_alias(column._meta.name) for column in written.missing]
            chosen = self.table.select(key, *missing).lock_rows("NO KEY UPDATE", of=(self.table,))
            chosen.where_delegate._where = self.where_delegate._where
            found: Any = chosen.querystrings[0]
            # They are opened for the indexes, and shown to nobody.
            found.opened = tuple(replace(opened, shown_to=()) for opened in found.opened)
            rows = await engine.run_querystring(found)
            if not rows:
                if self.saves is not None:
                    raise ProtectedQueryError(GONE)
                return []
            ids = [row["id"] for row in rows]
            # Names of ours: the table's own would be ambiguous in RETURNING.
            assignments: list[str] = []
            arguments: list[Any] = []
            arrays: list[Any] = [ids]
            casts = ["uuid[]"]
            for column, value in values.items():
                name = column._meta.db_column_name
                if isinstance(column, Encrypted) and value is not None:
                    assignments.append(f'"{name}" = charthold_written.value_{len(casts)}')
                    arrays.append(self._sealed_for(column, ids, value))
                    casts.append("bytea[]")
                else:
                    assignments.append(f'"{name}" = {placeholder(column)}')
                    arguments.append(convert_to_sql_value(value, column))
            given = {c._meta.name: v for c, v in values.items()}
            for index in written.indexes:
                name = index._meta.db_column_name
                assignments.append(f'"{name}" = charthold_written.value_{len(casts)}')
                arrays.append(self._hashes_for(index, [{**row, **given} for row in rows]))
                casts.append("bytea[]")
            unnested = ", ".join(f"{{}}::{cast}" for cast in casts)
            aliases = ", ".join(f"value_{n}" for n in range(len(casts)))
            plan = self._plan(
                where,
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


@functools.cache
def is_fixed(kind: type[Column]) -> bool:
    """Asked of the type, once: Piccolo's columns are abstract classes, whose ``isinstance`` takes long."""
    return issubclass(kind, FIXED)


def _sealed(table: str, name: str, kind: Kind, row_id: UUID, value: Any) -> Deferred:
    return Deferred(lambda keys: keys.sealer(table, name, kind).seal(row_id, value))


def written_shape(column: Column, value: Any) -> str:
    """The shape of an assignment; one of an expression has none."""
    if is_computed(value):
        raise NoShapeError
    return column._meta.name


def _assignments(columns: Sequence[Column]) -> str:
    return ", ".join(f'"{column._meta.db_column_name}" = {placeholder(column)}' for column in columns)
