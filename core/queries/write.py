"""Queries that write: insert, update, delete. What is PHI is sealed for the row it goes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from piccolo.columns import Array, Column
from piccolo.engine.base import Engine
from piccolo.query import Delete, Insert, Update
from piccolo.query.mixins import OnConflictAction, OnConflictItem, Returning
from piccolo.querystring import QueryString
from piccolo.table import Table
from piccolo.utils.sql_values import convert_to_sql_value

from core.columns import BlindIndex, CreatedAt, Encrypted, RowId, TenantId
from core.crypto.keyring import TenantKeys
from core.errors import ProtectedQueryError, ScopeError
from core.plan import TENANT, Deferred, Plan, Sealed
from core.queries.read import opened_columns
from core.queries.where import blind_index_value, pin, pinned_id, writes_sql
from core.scope import current_scope

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable

__all__ = ["TenantDelete", "TenantInsert", "TenantUpdate"]

UUID7 = 7


class TenantInsert(Insert):  # type: ignore[type-arg]
    """``Table.insert`` of a tenant's table: one statement, whatever the number of rows."""

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        rows = self.add_delegate._add
        if not rows:
            raise ProtectedQueryError("There is nothing to insert. Give insert() at least one row.")
        columns = [c for c in self.table._meta.columns if not isinstance(c, CreatedAt)]
        for row in rows:
            check_identity(row)
        names = ", ".join(f'"{c._meta.db_column_name}"' for c in columns)
        template = f"INSERT INTO {self.table._meta.get_formatted_tablename()} ({names}) "
        if len(rows) == 1:
            # The casts keep the driver from asking the server about our domain.
            template += f"VALUES ({', '.join(_placeholder(c) for c in columns)})"
            arguments = [cell(rows[0], c) for c in columns]
        else:
            # One array a column: the text of the statement does not depend on the number of rows.
            listed = [c for c in columns if not isinstance(c, TenantId)]
            arrays = ", ".join(f"{{}}::{_array_type(c)}" for c in listed)
            values = ", ".join(
                "{}" if isinstance(c, TenantId) else f'u."{c._meta.db_column_name}"{_element_cast(c)}' for c in columns
            )
            aliases = ", ".join(f'"{c._meta.db_column_name}"' for c in listed)
            template += f"SELECT {values} FROM unnest({arrays}) AS u({aliases})"
            arguments = [TENANT, *(_column_of_cells(rows, c) for c in listed)]
        statement = QueryString(template, *arguments)
        conflict = self._conflict()
        if conflict is not None:
            statement = QueryString("{}{}", statement, conflict)
        return [returning_plan(statement, self.returning_delegate._returning, trusted=True)]

    def _conflict(self) -> QueryString | None:
        items = self.on_conflict_delegate._on_conflict.on_conflict_items
        if not items:
            return None
        item = items[0]
        target = item.target
        columns = (target,) if isinstance(target, Column) else target
        values = item.values
        if isinstance(columns, tuple):
            # Every unique index of a tenant's table starts with tenant_id.
            tenant = self.table._meta.get_column_by_name("tenant_id")
            columns = (tenant, *(c for c in columns if not isinstance(c, TenantId)))
        if item.action is OnConflictAction.do_update:
            by_id = isinstance(columns, tuple) and len(columns) == 2 and isinstance(columns[1], RowId)
            values = self._conflict_values(values or (), by_id=by_id)
        return OnConflictItem(target=columns, action=item.action, values=values, where=item.where).querystring

    def _conflict_values(self, values: Sequence[Any], *, by_id: bool) -> list[Any]:
        chosen: list[Any] = []
        for value in values:
            column = value[0] if isinstance(value, tuple) else value
            refuse_fixed(column)
            if isinstance(column, Encrypted):
                if not by_id or isinstance(value, tuple):
                    raise ProtectedQueryError(
                        f"{column._meta.name} is sealed for the id of the new row, so on_conflict cannot write it into "
                        "another row. Conflict on the id, or find the row and save it."
                    )
                chosen += _indexes_of(self.table, [column])
            chosen.append(value)
        return chosen

    def _raw_response_callback(self, results: list[Any]) -> None:
        tenant = current_scope().tenant
        inserted = {row["id"] for row in results if "id" in row}
        partly = bool(self.on_conflict_delegate._on_conflict.on_conflict_items) and inserted
        for row in self.add_delegate._add:
            if not partly or row.id in inserted:  # type: ignore[attr-defined]
                row._exists_in_db = True
                row.remember()  # type: ignore[attr-defined]
                row.tenant_id = tenant  # type: ignore[attr-defined]


class TenantUpdate(Update):  # type: ignore[type-arg]
    """``Table.update`` of a tenant's table.

    A sealed value belongs to one row. When the condition does not name the row by its id, the ids are read and locked
    first, in the same transaction, and each row gets its own envelope.
    """

    # The instance whose ``save()`` this is.
    saves: ProtectedTable | None = None

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        row_id = pinned_id(self.table, self.where_delegate._where)
        values = self._checked()
        sealed = [c for c in values if isinstance(c, Encrypted)]
        if sealed and (row_id is None or self._missing_parts(sealed)):
            raise ProtectedQueryError(
                "An update of encrypted columns of several rows is more than one statement, so it cannot be frozen or "
                "printed. Run it as it is."
            )
        assignments, arguments = [], []
        for column, value in values.items():
            assignments.append(f'"{column._meta.db_column_name}" = {_placeholder(column)}')
            if isinstance(column, Encrypted) and value is not None:
                assert row_id is not None
                arguments.append(
                    Sealed(self.table._meta.tablename, column._meta.db_column_name, row_id, value, column.kind)
                )
            else:
                arguments.append(convert_to_sql_value(value, column))
        for index in _indexes_of(self.table, sealed):
            assignments.append(f'"{index._meta.db_column_name}" = {_placeholder(index)}')
            arguments.append(_index_cell(index, {c._meta.name: v for c, v in values.items()}))
        return [self._plan(", ".join(assignments), arguments)]

    def _plan(self, assignments: str, arguments: list[Any], source: str = "", joined: str = "") -> Plan:
        where = pin(self.table, self.where_delegate._where).querystring_for_update_and_delete
        statement = QueryString(
            f"UPDATE {self.table._meta.get_formatted_tablename()} SET {assignments}{source} WHERE {joined}{{}}",
            *arguments,
            where,
        )
        trusted = not writes_sql(self.where_delegate._where) and not any(
            type(v) is QueryString and not v.columns for v in self.values_delegate._values.values()
        )
        return returning_plan(statement, self.returning_delegate._returning, trusted=trusted)

    def _checked(self) -> dict[Column, Any]:
        for column, value in self.values_delegate._values.items():
            refuse_fixed(column)
            if isinstance(column, Encrypted) and isinstance(value, (Column, QueryString)):
                column._refuse("compute its new value")
        return self.values_delegate._values

    def _missing_parts(self, sealed: Sequence[Encrypted[Any]]) -> list[Encrypted[Any]]:
        """The other columns of compound indexes that must be read before the index can be computed."""
        named = {c._meta.name for c in sealed}
        parts = {name for index in _indexes_of(self.table, sealed) for name in index.of} - named
        return [self.table._meta.get_column_by_name(name) for name in sorted(parts)]

    async def _run(self, node: str | None = None, in_pool: bool = True) -> Any:
        if self.saves is not None and not self.values_delegate._values:
            return []
        outcome = await self._run_update(node, in_pool=in_pool)
        if self.saves is not None:
            self.saves.remember(self.values_delegate._values)
        return outcome

    async def _run_update(self, node: str | None, *, in_pool: bool) -> Any:
        if self._frozen_querystrings is None:
            self._validate()  # type: ignore[no-untyped-call]  # Piccolo's
            sealed = [c for c in self._checked() if isinstance(c, Encrypted)]
            row_id = pinned_id(self.table, self.where_delegate._where)
            if sealed and (row_id is None or self._missing_parts(sealed)):
                return await self._run_row_by_row(sealed, self.table._meta.db)
        return await super()._run(node=node, in_pool=in_pool)

    async def _run_row_by_row(self, sealed: list[Encrypted[Any]], engine: Engine[Any]) -> Any:
        key, parts = self.table._meta.primary_key, self._missing_parts(sealed)
        async with engine.transaction():
            chosen = self.table.select(key, *parts).lock_rows("NO KEY UPDATE")
            chosen.where_delegate._where = self.where_delegate._where
            rows = await chosen
            if not rows:
                return []
            ids = [row["id"] for row in rows]
            assignments, arguments, arrays, aliases = [], [], [ids], ['"id"']
            casts = ["uuid[]"]
            for column, value in self.values_delegate._values.items():
                name = column._meta.db_column_name
                if isinstance(column, Encrypted) and value is not None:
                    assignments.append(f'"{name}" = u."{name}"')
                    arrays.append(self._sealed_for(column, ids, value))  # type: ignore[arg-type]
                    aliases.append(f'"{name}"')
                    casts.append("bytea[]")
                else:
                    assignments.append(f'"{name}" = {_placeholder(column)}')
                    arguments.append(convert_to_sql_value(value, column))
            given = {c._meta.name: v for c, v in self.values_delegate._values.items()}
            for index in _indexes_of(self.table, sealed):
                name = index._meta.db_column_name
                assignments.append(f'"{name}" = u."{name}"')
                arrays.append(self._hashes_for(index, [{**row, **given} for row in rows]))  # type: ignore[arg-type]
                aliases.append(f'"{name}"')
                casts.append("bytea[]")
            unnested = ", ".join(f"{{}}::{cast}" for cast in casts)
            plan = self._plan(
                ", ".join(assignments),
                [*arguments, *arrays],
                source=f" FROM unnest({unnested}) AS u({', '.join(aliases)})",
                joined=f'"{self.table._meta.tablename}"."id" = u."id" AND ',
            )
            return await self._process_results(await engine.run_querystring(plan))

    def _sealed_for(self, column: Encrypted[Any], ids: list[UUID], value: Any) -> Deferred:
        table, name, kind = self.table._meta.tablename, column._meta.db_column_name, column.kind
        return Deferred(lambda keys: [keys.sealer(table, name, kind).seal(row_id, value) for row_id in ids])

    def _hashes_for(self, index: BlindIndex, rows: list[dict[str, Any]]) -> Deferred:
        label, spec = index.label, index.spec
        return Deferred(lambda keys: [keys.blind(label, spec, _source(index, row)) for row in rows])


class TenantDelete(Delete):
    """``Table.delete`` of a tenant's table."""

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        where = pin(self.table, self.where_delegate._where).querystring_for_update_and_delete
        statement = QueryString(f"DELETE FROM {self.table._meta.get_formatted_tablename()} WHERE {{}}", where)
        trusted = not writes_sql(self.where_delegate._where)
        return [returning_plan(statement, self.returning_delegate._returning, trusted=trusted)]


def returning_plan(statement: QueryString, returning: Returning | None, *, trusted: bool) -> Plan:
    """The statement with its RETURNING clause; what it returns is opened and recorded as any other read."""
    if returning is None:
        return Plan("{}", statement, returns=False, trusted=trusted)
    columns = list(returning.columns)
    opened, rows = opened_columns(columns)
    clause = Returning(columns=[*columns, *rows]).querystring
    return Plan("{}{}", statement, clause, opened=opened, outputs=len(columns), trusted=trusted)


def check_identity(row: Table) -> None:
    """Refuse a row that claims another tenant, or an id that we did not make."""
    tenant, row_id = getattr(row, "tenant_id", None), getattr(row, "id", None)
    if not isinstance(row_id, UUID) or row_id.version != UUID7:
        raise ProtectedQueryError(f"Leave the id of a new {type(row).__name__} to Charthold: it makes a UUIDv7.")
    if tenant is not None and tenant != current_scope().tenant:
        raise ScopeError("The row belongs to another tenant than the open scope.")


def refuse_fixed(column: Column) -> None:
    """Refuse to write what a row is."""
    if isinstance(column, (RowId, TenantId, CreatedAt, BlindIndex)):
        raise ProtectedQueryError(
            f"{column._meta.name} is kept by Charthold and cannot be set. Leave it out of the update."
        )


def cell(row: Table, column: Column) -> Any:
    """The argument for one column of a row to insert."""
    if isinstance(column, TenantId):
        return TENANT
    if isinstance(column, BlindIndex):
        return _index_cell(column, row.__dict__)
    value = row.__dict__.get(column._meta.name)
    if isinstance(column, Encrypted):
        if value is None:
            return None
        return Sealed(row._meta.tablename, column._meta.db_column_name, row.id, value, column.kind)  # type: ignore[attr-defined]
    return convert_to_sql_value(value, column)


def _column_of_cells(rows: Sequence[Table], column: Column) -> Any:
    """The array for one column of many rows."""
    name = column._meta.name
    if isinstance(column, BlindIndex):
        label, spec = column.label, column.spec
        sources = [_source(column, row.__dict__) for row in rows]
        return Deferred(lambda keys: [keys.blind(label, spec, source) for source in sources])
    if isinstance(column, Encrypted):
        table, db_name, kind = column._meta.table._meta.tablename, column._meta.db_column_name, column.kind
        pairs = [(row.id, row.__dict__.get(name)) for row in rows]  # type: ignore[attr-defined]

        def seal(keys: TenantKeys) -> list[bytes | None]:
            sealer = keys.sealer(table, db_name, kind)
            return [None if value is None else sealer.seal(row_id, value) for row_id, value in pairs]

        return Deferred(seal)
    values = [convert_to_sql_value(row.__dict__.get(name), column) for row in rows]
    if isinstance(column, Array):
        return [_array_literal(value) for value in values]
    return values


def _index_cell(index: BlindIndex, values: dict[str, Any]) -> Any:
    source = _source(index, values)
    return None if source is None else blind_index_value(index, source if isinstance(source, tuple) else (source,))


def _source(index: BlindIndex, values: dict[str, Any]) -> Any:
    """What the index hashes: one value, or for a compound index all of them; None when any is missing."""
    parts = tuple(values.get(name) for name in index.of)
    if any(part is None for part in parts):
        return None
    return parts if index.spec.kind == "compound" else parts[0]


def _indexes_of(table: type[Table], columns: Sequence[Column]) -> list[BlindIndex]:
    names = {column._meta.name for column in columns}
    return [c for c in table._meta.columns if isinstance(c, BlindIndex) and names & set(c.of)]


def _placeholder(column: Column) -> str:
    return "{}::bytea" if isinstance(column, (Encrypted, BlindIndex)) else "{}"


def _array_type(column: Column) -> str:
    if isinstance(column, (Encrypted, BlindIndex)):
        return "bytea[]"
    # unnest() would flatten an array of arrays, so each travels as its literal.
    return "text[]" if isinstance(column, Array) else f"{column.column_type.lower()}[]"


def _element_cast(column: Column) -> str:
    return f"::{column.column_type.lower()}" if isinstance(column, Array) else ""


def _array_literal(values: Sequence[Any] | None) -> str | None:
    if values is None:
        return None
    quoted = (str(v).replace("\\", "\\\\").replace('"', '\\"') for v in values)
    return "{" + ",".join(f'"{v}"' for v in quoted) + "}"
