"""Queries that read: select, objects, count, exists, raw."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from piccolo.columns import Column, ForeignKey
from piccolo.columns.m2m import M2MSelect
from piccolo.columns.readable import Readable
from piccolo.custom_types import Combinable, TableInstance
from piccolo.query import Count, Exists, Objects, Select
from piccolo.query.functions.aggregate import Count as CountFunction
from piccolo.query.methods.raw import Raw
from piccolo.query.methods.select import SelectJSON, SelectList
from piccolo.query.mixins import (
    ColumnsDelegate,
    LockRows,
    LockRowsDelegate,
    OrderBy,
    OrderByDelegate,
    OrderByItem,
    WhereDelegate,
)
from piccolo.querystring import QueryString, Selectable
from piccolo.table import Table

from core.access.minimum import shown_to
from core.columns import BlindIndex, Encrypted
from core.crypto.derive import forgetful_later
from core.errors import ProtectedQueryError
from core.queries.quiet import Kept, QuietCreate, QuietGetOrCreate, QuietJSON, QuietList
from core.queries.searches import looks_of
from core.queries.shape import SHAPES, NoShapeError, columns_shape, where_shape
from core.queries.where import (
    Approximate,
    approximate,
    exact,
    finds_one,
    pin,
    refuse_computed,
    refuse_encrypted,
)
from core.schema import Index
from core.statements.plan import Plan, RawPlan
from core.statements.shown import Look, Opened, row_alias

__all__ = ["TenantCount", "TenantExists", "TenantObjects", "TenantRaw", "TenantSelect", "opened_columns"]


class TenantSelect(Kept, Select[Any]):
    """``Table.select`` of a tenant's table."""

    if not TYPE_CHECKING:  # Piccolo's says what comes of it

        def output(self, **kwargs: bool) -> Any:
            answer = super().output(**kwargs)
            if isinstance(answer, SelectList):
                return QuietList(query=self)
            return QuietJSON(query=self) if isinstance(answer, SelectJSON) else answer

    @forgetful_later
    async def _process_results(self, results: Any) -> Any:
        with _no_deeper():
            return await super()._process_results(results)

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        if not self.columns_delegate.selected_columns:
            # Piccolo's result handling reads this attribute too, so the default is written to it, as Piccolo does.
            self.columns_delegate.selected_columns = self.table.all_columns()
        where = pin(self.table, self.where_delegate._where)
        arguments: list[Any] = []
        try:
            # A search that finds too much has no shape, so it ends up in _compile too.
            shape = self._shape(where, arguments)
        except NoShapeError:
            return [self._compile(where)]
        plan = SHAPES.find(shape, arguments)
        if plan is None:
            single = finds_one(self.table, where)
            plan = SHAPES.keep(shape, self._compile(where), arguments, single=single)
        return [plan]

    def _shape(self, where: Combinable, arguments: list[Any]) -> Hashable:
        """What tells this query from others that compile to other SQL."""
        if self.group_by_delegate._group_by or self.distinct_delegate._distinct.enabled or self.having_delegate._where:
            raise NoShapeError
        columns = columns_shape(self.columns_delegate.selected_columns)
        return (self.table, self.exclude_secrets, columns, where_shape(where, arguments), _rows_shape(self))

    def _compile(self, where: Combinable) -> Plan:
        selected = list(self.columns_delegate.selected_columns)
        if self.exclude_secrets:
            selected = [c for c in selected if not isinstance(c, Column) or not c._meta.secret]
        self._refuse_what_ciphertext_cannot_do(selected)
        refuse_encrypted(self.having_delegate._where)
        found = approximate(where)
        if found:
            self._refuse_what_cannot_be_judged_later(found[0], selected)
        # Behind the caller's columns, what the rows are judged by.
        hidden = [c.as_alias(f"charthold_judged_{n}") for n, c in enumerate(c for f in found for c in f.sources)]
        opened, rows = opened_columns([*selected, *hidden])

        planned = copy.copy(self)
        planned.exclude_secrets = False  # they are left out already, and what the rows are judged by is not
        planned.columns_delegate = ColumnsDelegate(selected_columns=[*selected, *hidden, *rows])
        planned.where_delegate = WhereDelegate(_where=where)
        planned.order_by_delegate = self._ordered_by_tenant()
        if lock := self.lock_rows_delegate._lock_rows:
            how = Lock(lock.lock_strength, lock.nowait, lock.skip_locked, lock.of)
            planned.lock_rows_delegate = LockRowsDelegate(how)
        theirs: Any = Select.default_querystrings
        statement = theirs.fget(planned)[0]
        keep = _judge(found, len(selected)) if found else None
        shows_rows = any(isinstance(c, Encrypted) and not c._meta.call_chain for c in (*selected, *hidden))
        looks = looks_of(where, shows_rows=shows_rows)
        if getattr(self.table, "reading_is_recorded", False):
            looks.append(Look("audit_read", self.table._meta.tablename))
        count = len(selected) == 1 and isinstance(selected[0], CountFunction) and selected[0]._alias == "count"
        return Plan(
            "{}", statement, opened=opened, outputs=len(selected), keep=keep, looks=looks, told="count" if count else ""
        )

    def _ordered_by_tenant(self) -> OrderByDelegate:
        """The order, with the tenant put before it, so that an index which begins with the tenant is read in its order.

        There is only one tenant; its direction says in which direction the index is read.
        """
        items = self.order_by_delegate._order_by.order_by_items
        distinct, grouped = self.distinct_delegate._distinct, self.group_by_delegate._group_by
        first = items[0].columns[0] if items and not distinct.enabled and not grouped else None
        if not isinstance(first, Column) or first._meta.call_chain or not isinstance(items[0], OrderByItem):
            return self.order_by_delegate
        if not any(column._meta.name == "tenant_id" for column in self.table._meta.columns):
            return self.order_by_delegate
        descending = any(
            f"{first._meta.db_column_name} desc" in declared.columns
            for declared in getattr(self.table, "declares", ())
            if isinstance(declared, Index)
        )
        tenant = OrderByItem(
            columns=[self.table._meta.get_column_by_name("tenant_id")], ascending=items[0].ascending != descending
        )
        return OrderByDelegate(_order_by=OrderBy(order_by_items=[tenant, *items]))

    def _refuse_what_cannot_be_judged_later(self, found: Approximate, selected: Sequence[Selectable]) -> None:
        for asked, what in (
            (self.limit_delegate._limit, "LIMIT (as in first() and get())"),
            (self.offset_delegate._offset, "OFFSET"),
            (self.distinct_delegate._distinct.enabled, "DISTINCT"),
            (self.group_by_delegate._group_by, "GROUP BY"),
            (any(isinstance(c, CountFunction) for c in selected), "COUNT"),
            (any(not isinstance(c, Column) for c in selected), "what is computed from the rows"),
        ):
            if asked:
                found.refuse(what)

    def _refuse_what_ciphertext_cannot_do(self, selected: Sequence[Selectable]) -> None:
        for item in self.order_by_delegate._order_by.order_by_items:
            for column in item.columns:
                refuse_computed(column, "order by it")
        distinct, grouped = self.distinct_delegate._distinct, self.group_by_delegate._group_by
        compared: list[Any] = [*(distinct.on or ()), *(grouped.columns if grouped else ())]
        if distinct.enabled and not distinct.on:
            compared += selected
        for column in compared:
            refuse_computed(column, "group it or tell equal values apart")
        for output in selected:
            if isinstance(output, BlindIndex):
                output.refuse("show them")
            if isinstance(output, CountFunction):
                continue  # counting asks whether a value is there, not what it is
            inner: Sequence[Any] = ()
            if isinstance(output, Readable):
                inner = output.columns
            elif isinstance(output, M2MSelect):
                inner = output.columns if output.as_list else ()
            elif isinstance(output, QueryString):
                inner = output.columns
            for column in inner:
                if isinstance(column, (Encrypted, BlindIndex)):
                    column.refuse("compute with it")


class Lock(LockRows):
    """Names tables without their schema, as they are known within the statement; Piccolo's own would name it."""

    __slots__ = ()

    @property
    def querystring(self) -> QueryString:
        of = ", ".join(f'"{table._meta.tablename}"' for table in self.of)
        wait = " NOWAIT" if self.nowait else " SKIP LOCKED" if self.skip_locked else ""
        return QueryString(f" FOR {self.lock_strength.value}{of and f' OF {of}'}{wait}")


class TenantObjects(Kept, Objects[TableInstance]):
    """``Table.objects`` of a tenant's table."""

    def get_or_create(
        self, where: Combinable, defaults: dict[Any, Any] | None = None
    ) -> QuietGetOrCreate[TableInstance]:
        made = super().get_or_create(where, defaults)
        return QuietGetOrCreate(made.query, made.table_class, made.where, made.defaults)

    def create(self, **columns: Any) -> QuietCreate[TableInstance]:
        return QuietCreate(self.table, columns)

    @forgetful_later
    async def _process_results(self, results: Any) -> Any:
        output = self.output_delegate._output
        if output.load_json or output.nested or self.prefetch_delegate.fk_columns:
            with _no_deeper():
                found: Any = await super()._process_results(results)
            for row in found if isinstance(found, list) else ():
                # Piccolo made the instances as a caller does, so they do not know yet what is stored.
                for each in (row, *row._brought_along()):
                    each._stored = each._held()
            return found
        table: Any = self.table
        return [table.of_row(row) for row in results]

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        if self.prefetch_delegate.fk_columns:
            return self._select().querystrings
        # Most queries of most programs: whole rows, by a shape that was met before. Nothing is built for them.
        where = pin(self.table, self.where_delegate._where)
        arguments: list[Any] = []
        try:
            shape = (self.table, "objects", where_shape(where, arguments), _rows_shape(self))
        except NoShapeError:
            return self._select().querystrings
        plan = SHAPES.find(shape, arguments)
        if plan is None:
            select = self._select()
            select.columns(*self.table.all_columns())
            single = finds_one(self.table, where)
            plan = SHAPES.keep(shape, select._compile(where), arguments, single=single)
        return [plan]

    def _select(self) -> TenantSelect:
        """The select that fetches the objects' rows."""
        select = TenantSelect(table=self.table)
        for delegate in (
            "as_of_delegate",
            "limit_delegate",
            "where_delegate",
            "offset_delegate",
            "output_delegate",
            "order_by_delegate",
            "lock_rows_delegate",
        ):
            setattr(select, delegate, getattr(self, delegate))
        if self.prefetch_delegate.fk_columns:
            select.columns(*self.table.all_columns())
            for foreign_key in self.prefetch_delegate.fk_columns:
                if not isinstance(foreign_key, ForeignKey):
                    raise ProtectedQueryError(f"objects() prefetches foreign keys, not {foreign_key!r}.")
                # Every object on the way is loaded whole.
                for step in (*foreign_key._meta.call_chain, foreign_key):
                    select.columns(*step.all_columns())
            select.output_delegate.output(nested=True)
        return select


class TenantCount(Kept, Count):
    """``Table.count`` of a tenant's table."""

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        for column in self._distinct or ():
            if isinstance(column, (Encrypted, BlindIndex)):
                column.refuse("tell equal values apart")
        return super().default_querystrings


class TenantExists(Kept, Exists[Any]):
    """``Table.exists`` of a tenant's table."""

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        select = TenantSelect(table=self.table, columns_list=[self.table._meta.primary_key])
        select.where_delegate._where = self.where_delegate._where
        exact(pin(self.table, self.where_delegate._where), "EXISTS")
        inner = select.querystrings[0]
        assert isinstance(inner, Plan)
        return [Plan('SELECT EXISTS({}) AS "exists"', inner, told="exists")]


class TenantRaw(Kept, Raw):
    """``Table.raw``: SQL that a person wrote, in the open scope. Policies hold; envelopes stay closed."""

    @property
    def default_querystrings(self) -> Sequence[QueryString]:
        return [RawPlan("{}", self.querystring)]


@contextlib.contextmanager
def _no_deeper() -> Iterator[None]:
    """Around what loads JSON: PostgreSQL keeps documents that are deeper than Python's recursive parsers go."""
    too_deep = False
    try:
        yield
    except RecursionError:
        too_deep = True  # its frames hold the document
    if too_deep:
        raise ProtectedQueryError(
            "A JSON document is nested too deeply to be loaded. Leave load_json out: read it as text."
        )


def _rows_shape(query: TenantSelect | TenantObjects[Any]) -> Hashable:
    """The shape of what chooses among the rows that a condition finds."""
    if query.lock_rows_delegate._lock_rows or query.as_of_delegate._as_of:
        raise NoShapeError
    limit, offset = query.limit_delegate._limit, query.offset_delegate._offset
    order = tuple(
        (columns_shape(item.columns), item.ascending) for item in query.order_by_delegate._order_by.order_by_items
    )
    # Numbers stay in the text: a generic plan that does not know how few rows are wanted sorts them all.
    return order, limit and limit.number, offset and offset.number


def opened_columns(selected: Sequence[Any]) -> tuple[list[Opened], list[Column]]:
    """What to open in the output, and the ids to fetch behind it: each envelope is bound to the row it stands in."""
    places: dict[str, list[tuple[int, Encrypted[Any]]]] = {}
    for position, column in enumerate(selected):
        if isinstance(column, Encrypted):
            chain = column._meta.call_chain
            places.setdefault(chain[-1].table_alias if chain else "", []).append((position, column))
    opened: list[Opened] = []
    rows: list[Column] = []
    for found in places.values():
        first = found[0][1]
        chain = first._meta.call_chain
        table: type[Table] = first._meta.table
        at = len(selected) + len(rows)
        key = getattr(chain[-1], "id") if chain else table._meta.primary_key  # noqa: B009  # a proxy column
        rows.append(key.as_alias(row_alias(at)))
        opened.append(
            Opened(
                table=table._meta.tablename,
                row=at,
                positions=tuple(position for position, _ in found),
                columns=tuple((column._meta.db_column_name, column.kind) for _, column in found),
                shown_to=shown_to(column for _, column in found),
            )
        )
    return opened, rows


def _judge(found: Sequence[Approximate], start: int) -> Callable[[Sequence[Any]], bool]:
    """Whether the opened values that begin at ``start`` are those that were searched."""
    places: list[tuple[Approximate, slice]] = []
    for search in found:
        end = start + len(search.sources)
        places.append((search, slice(start, end)))
        start = end
    return lambda row: all(search.matches(row[place]) for search, place in places)
