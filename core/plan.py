"""A planned statement: SQL whose sensitive arguments are bound when it runs, and what to do with its rows.

Query classes plan, the engine executes. The tenant, the token, ciphertext and blind indexes are bound at execution,
never compiled in: ``freeze()`` keeps arguments for ever, and a token or a tenant kept so would cross tenants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from piccolo.querystring import QueryString
from piccolo.utils.encoding import JSONDict

from core.crypto.derive import Secret, forgetful
from core.crypto.values import Kind
from core.errors import ProtectedQueryError
from core.residue import answers_only, is_one_statement, leaves_nothing

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys

__all__ = [
    "TENANT",
    "Deferred",
    "Look",
    "Opened",
    "Plan",
    "RawPlan",
    "Sealed",
    "Statement",
    "bind",
    "needs_keys",
    "open_rows",
]


class _Tenant:
    """The open scope's tenant."""

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> UUID:
        return tenant

    def __repr__(self) -> str:
        return "<tenant>"


TENANT = _Tenant()


class Sealed(Secret):
    """A value to be sealed for one row. Its repr shows nothing."""

    __slots__ = ("column", "kind", "row_id", "table", "value")

    def __init__(self, table: str, column: str, row_id: UUID, value: Any, kind: Kind) -> None:
        self.table = table
        self.column = column
        self.row_id = row_id
        self.value = value
        self.kind = kind

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> bytes | None:
        assert keys is not None
        return keys.sealer(self.table, self.column, self.kind).seal(self.row_id, self.value)

    def __repr__(self) -> str:
        return "<encrypted>"


class Deferred(Secret):
    """An argument made by a function of the tenant's keys: a blind index, a column of sealed values."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[TenantKeys], Any]) -> None:
        self.make = make

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> Any:
        assert keys is not None
        return self.make(keys)

    def __repr__(self) -> str:
        return "<encrypted>"


LATE = (_Tenant, Sealed, Deferred)


@dataclass(frozen=True, slots=True)
class Opened:
    """The output positions that hold envelopes of one row of one table.

    Positions count from 0 in the rows that come back; ``row`` is the position of the id of the row that the envelopes
    are bound to; ``columns`` are their names and kinds, in the order of ``positions``.
    """

    table: str
    row: int
    positions: tuple[int, ...]
    columns: tuple[tuple[str, Kind], ...]

    @property
    def names(self) -> list[str]:
        """The columns, as the audit log names them."""
        return sorted({name for name, _ in self.columns})

    @property
    def row_alias(self) -> str:
        """The name under which the statement returns the row's id."""
        return row_alias(self.row)


@dataclass(frozen=True, slots=True)
class Look:
    """That somebody looked, which is recorded once and not for each row: at the log, or for values that stay closed.

    Threat: who asks often enough whether a row has this value or that knows the value, and was never shown it.
    """

    action: Literal["audit_read", "search"]
    table: str
    columns: tuple[str, ...] = ()

    @property
    def call(self) -> str:
        """The condition of a statement over ``r`` that records it."""
        columns = "".join(f", 'columns', '{json.dumps(self.columns)}'::jsonb" for _ in self.columns[:1])
        return (
            f"(select charthold.record('{self.action}', '{self.table}', null, null,"
            f" jsonb_build_object('rows', (select count(*) from r){columns}))) is not null"
        )

    def again(self, rows: int | None) -> tuple[Any, ...]:
        """The arguments of ``core.transactions.RECORD_LOOK``."""
        said: dict[str, Any] = {} if rows is None else {"rows": rows}
        if self.columns:
            said["columns"] = self.columns
        return self.action, self.table, None, json.dumps(said) if said else None


@dataclass(frozen=True, slots=True)
class Statement:
    """What a plan compiles to, without its arguments: the same for every query of the same shape, so it is kept.

    ``template`` is the SQL as Piccolo writes it, for use inside another query; ``gated`` is what is sent;
    ``relaxed`` is the same for a read by itself whose records need not be on disk before it is answered; ``grouped``
    are these two as they are sent with those of other requests, or empty (``core.group_commit``).
    ``outputs``: how many of the columns that come back are the caller's; the ids behind them are ours.
    ``returns``: False for a statement without rows, such as an update without RETURNING; ``counted``: an INSERT whose
    tag says how many rows it wrote.
    ``look``: what is recorded once, whatever is shown; or None.
    ``trusted``: False when it could leave something in its session; the connection is then closed after use.
    """

    template: str
    sql: str
    gated: str
    relaxed: str
    grouped: tuple[str, str]
    opened: tuple[Opened, ...]
    outputs: int | None
    returns: bool
    counted: bool
    look: Look | None
    trusted: bool


class Plan(QueryString):
    """A statement of ours with its arguments, as a QueryString of Piccolo's."""

    __slots__ = (
        "_statement",
        "answer",
        "counted",
        "keep",
        "look",
        "more",
        "opened",
        "outputs",
        "returns",
    )

    def __init__(
        self,
        template: str,
        *args: Any,
        opened: Sequence[Opened] = (),
        outputs: int | None = None,
        returns: bool = True,
        counted: bool = False,
        keep: Callable[[Sequence[Any]], bool] | None = None,
        look: Look | None = None,
    ) -> None:
        super().__init__(template, *args)
        # When to ask is an action of its own to be recorded: of the log, or for a value that is not shown.
        self.look = look or _look_of(self)
        # Which rows are shown, judged by their opened values; None: all.
        self.keep = keep
        self.opened = tuple(opened)
        self.outputs = outputs
        self.returns = returns
        # Whether it is an INSERT .. SELECT whose rows are counted.
        self.counted = counted
        # What a statement without rows answers.
        self.answer: list[dict[str, Any]] = []
        # What belongs to it and is made when it is its turn: all of it is run, or none.
        self.more: Callable[[], Iterable[Plan]] | None = None
        self._statement: Statement | None = None

    @classmethod
    def of(cls, statement: Statement, arguments: list[Any]) -> Plan:
        """A plan of a shape that was compiled before. Skips Piccolo's constructor, which would parse it again."""
        plan = cls.__new__(cls)
        plan.template = statement.template
        plan.args = arguments
        plan.columns = []
        plan.query_type = "generic"
        plan.table = None
        plan._alias = None
        plan._frozen_compiled_strings = (statement.sql, arguments)
        plan.opened = statement.opened
        plan.outputs = statement.outputs
        plan.returns = statement.returns
        plan.counted = statement.counted
        plan.keep = None
        plan.answer = []
        plan.more = None
        plan.look = statement.look
        plan._statement = statement
        return plan

    def compiled(self, *, single: bool = False) -> tuple[Statement, list[Any]]:
        """The statement and its arguments. ``single``: it is about one row at most, and no person wrote any of it."""
        sql, arguments = self.compile_string()
        if self._statement is None:
            trusted = leaves_nothing(sql)
            if not trusted and not is_one_statement(sql):
                raise ProtectedQueryError(
                    "A fragment of SQL in the query does not stand by itself: with it the query is not one statement."
                )
            template = "".join(
                fragment.prefix.replace("{", "{{").replace("}", "}}") + ("" if fragment.no_arg else "{}")
                for fragment in self.bundle(start_index=1, bundled=[], combined_args=[])[1]
            )
            self._statement = Statement(
                template=template,
                sql=sql,
                gated=self._gated(sql, len(arguments), single=single),
                relaxed=self._gated(sql, len(arguments), single=single, relaxed=True),
                grouped=self._grouped(sql, len(arguments)) if single and trusted and not self.look else ("", ""),
                opened=self.opened,
                outputs=self.outputs,
                returns=self.returns,
                counted=self.counted and not self.look,
                look=self.look,
                trusted=trusted,
            )
        return self._statement, arguments

    def _grouped(self, sql: str, arguments: int) -> tuple[str, str]:
        member = f"${arguments + 2}::int4 as charthold_member"
        durable = self._gated(sql, arguments, single=True, member=member)
        return durable, self._gated(sql, arguments, single=True, relaxed=True, member=member)

    def _gated(self, sql: str, arguments: int, *, single: bool = False, relaxed: bool = False, member: str = "") -> str:
        """The statement inside its gate.

        The gate is a one-time filter, which runs before the first row is looked for. Should a planner ever run it too
        late, the policies find no scope and raise: closed, not open. ``materialized`` keeps the statement from being
        merged into the outer query, where its sub-selects could be evaluated before the gate.

        The line break ends a comment that a fragment may have begun.

        What is shown is recorded by the same statement: when the record fails, nothing is shown.

        ``member``: what each row of a group says about whose it is. A group's next statement forgets what was found out
        about the last one's scope.
        """
        forget = " || pg_catalog.set_config('charthold.granted', '', true)" if member else ""
        gate = f"(select pg_catalog.set_config('charthold.scope', ${arguments + 1}, true){forget}) is not null"
        if not self.returns:
            # What a write asks of the log it may write down.
            if self.look is not None:
                return f"with r as ({sql}\n returning 1) select count(*) from r where {gate} having {self.look.call}"
            if self.counted:
                # INSERT .. SELECT: policies look at the rows that the select made, which is when the context is set.
                return f"{sql}\n where {gate}" + (f" returning {member}" if member else "")
            # Nobody refers to r, so it runs behind the outer statement, when the context is set; it would run if the
            # gate were shut too, but set_config() is never null.
            return f"with r as ({sql}\n) select {member or '1'} where {gate}"
        materialized = " materialized" if sql.lstrip()[:6].lower() == "select" else ""
        records = "".join(f" and {_record(opened, single=single)} is not null" for opened in self.opened)
        if self.look is not None:
            records += f" and {self.look.call}"
        if relaxed and materialized and records and answers_only(sql):
            records = " and (select pg_catalog.set_config('synchronous_commit', 'off', true)) is not null" + records
        shown = f"*, {member}" if member else "*"
        return f"with r as{materialized} ({sql}\n) select {shown} from r where {gate}{records}"


class RawPlan(QueryString):
    """SQL that a person wrote for a tenant's table."""


@forgetful  # what the arguments are made of is plaintext
def bind(arguments: Sequence[Any], tenant: UUID, keys: TenantKeys | None) -> list[Any]:
    """The arguments as they go on the wire."""
    return [a.bind(tenant, keys) if isinstance(a, LATE) else a for a in arguments]


def needs_keys(arguments: Sequence[Any]) -> bool:
    """Whether any argument is made with the tenant's keys."""
    return any(isinstance(a, (Sealed, Deferred)) for a in arguments)


@forgetful
def open_rows(plan: Plan, rows: Sequence[Any], keys: TenantKeys | None) -> list[dict[str, Any]]:
    """Rows as dicts, opened by position, without the ids that were fetched for that."""
    if not rows:
        return []
    names = list(rows[0].keys())[: plan.outputs]
    if not plan.opened:
        return [dict(zip(names, row, strict=False)) for row in rows]
    assert keys is not None
    shown: Iterable[Sequence[Any]] = (
        (_opened_row(plan, rows[0], keys),) if len(rows) == 1 else zip(*_opened_columns(plan, rows, keys), strict=True)
    )
    if plan.keep is not None:
        shown = filter(plan.keep, shown)
    return [dict(zip(names, row, strict=False)) for row in shown]


def _opened_columns(plan: Plan, rows: Sequence[Any], keys: TenantKeys) -> list[Sequence[Any]]:
    """The columns of the rows, opened."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for opened in plan.opened:
        sealed = [columns[position] for position in opened.positions]
        plain = keys.row(opened.table, opened.columns).open_columns(columns[opened.row], sealed)
        for position, (_, kind), values in zip(opened.positions, opened.columns, plain, strict=True):
            # Piccolo takes a plain dict for a nested row.
            columns[position] = [_document(value) for value in values] if kind is Kind.JSON else values
    return columns


def _opened_row(plan: Plan, row: Any, keys: TenantKeys) -> list[Any]:
    """One row, which is what is asked for most, opened."""
    values = list(row)
    for opened in plan.opened:
        sealed = [values[position] for position in opened.positions]
        plain = keys.row(opened.table, opened.columns).open(values[opened.row], sealed)
        for position, value in zip(opened.positions, plain, strict=True):
            values[position] = _document(value)
    return values


def _document(value: Any) -> Any:
    return JSONDict(**value) if type(value) is dict else value


def _record(opened: Opened, *, single: bool) -> str:
    """The call that records what is shown: all rows at once, or the one that there is."""
    row = f'r."{opened.row_alias}"'
    ids = f"array[{row}]" if single else f"(select array_agg({row}) from r)"
    call = f"charthold.record_read('{opened.table}', {ids}, '{{{','.join(opened.names)}}}')"
    return call if single else f"(select {call})"


def _look_of(query: QueryString) -> Look | None:
    """What a query inside this one looks at."""
    for argument in query.args:
        if isinstance(argument, QueryString):
            found = argument.look if isinstance(argument, Plan) else _look_of(argument)
            if found is not None:
                return found
    return None


def row_alias(position: int) -> str:
    """The name under which a statement returns the id that an envelope is bound to."""
    return f"charthold_row_{position}"
