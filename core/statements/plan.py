"""A planned statement: SQL whose sensitive arguments are bound when it runs (``core.statements.arguments``).

Query classes plan, the engine executes, and the rows are opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from piccolo.querystring import QueryString
from piccolo.utils.encoding import JSONDict

from core.crypto.derive import forgetful
from core.crypto.values import Kind
from core.errors import ProtectedQueryError
from core.statements.residue import answers_only, is_one_statement, leaves_nothing
from core.statements.shown import Look, Opened

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys

__all__ = ["Plan", "RawPlan", "Statement", "open_rows"]


@dataclass(frozen=True, slots=True)
class Statement:
    """What a plan compiles to, without its arguments: the same for every query of the same shape, so it is kept.

    ``template`` is the SQL as Piccolo writes it, for use inside another query; ``gated`` is what is sent;
    ``relaxed`` is the same for a read by itself whose records need not be on disk before it is answered; ``grouped``
    are these two as they are sent with those of other requests, or empty (``core.wire.group_commit``).
    ``outputs``: how many of the columns that come back are the caller's; the ids behind them are ours.
    ``returns``: False for a statement without rows, such as an update without RETURNING; ``counted``: its tag says how
    many rows it wrote.
    ``looks``: what is recorded once each, whatever is shown.
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
    looks: tuple[Look, ...]
    trusted: bool


class Plan(QueryString):
    """A statement of ours with its arguments, as a QueryString of Piccolo's."""

    __slots__ = (
        "_statement",
        "answer",
        "expected",
        "joined",
        "keep",
        "looks",
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
        joined: Literal["", "where", "and"] = "",
        keep: Callable[[Sequence[Any]], bool] | None = None,
        looks: Sequence[Look] = (),
        told: Literal["", "count", "exists"] = "",
    ) -> None:
        super().__init__(template, *args)
        # What is recorded when asking is itself an action: reading the log, or searching for a value that is not shown.
        # Threat: a search beneath another finds out as much, so each is recorded.
        self.looks = tuple(dict.fromkeys(replace(look, told=told) for look in (*looks, *_looks_beneath(self))))
        # Which rows are shown, judged by their opened values; None: all.
        self.keep = keep
        self.opened = tuple(opened)
        self.outputs = outputs
        self.returns = returns
        # The word that joins the gate to a statement without rows, whose tag then says how many it wrote: "where" for
        # an INSERT .. SELECT, which has no condition yet. Empty: the gate stands around the statement.
        self.joined = joined
        # How many rows it must write, and what to say when it does not.
        self.expected: tuple[int, str] | None = None
        # What a statement without rows answers.
        self.answer: list[dict[str, Any]] = []
        # The plans that follow it, each made when it is its turn; all of them are run, or none.
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
        plan.joined = ""  # it is compiled
        plan.expected = None
        plan.keep = None
        plan.answer = []
        plan.more = None
        plan.looks = statement.looks
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
                grouped=self._grouped(sql, len(arguments)) if single and trusted and not self.looks else ("", ""),
                opened=self.opened,
                outputs=self.outputs,
                returns=self.returns,
                counted=bool(self.joined) and not self.looks,
                looks=self.looks,
                trusted=trusted,
            )
        return self._statement, arguments

    @property
    def gates(self) -> list[str]:
        """What asks whether the role is shown what the statement opens or searches by."""
        return _gates_of((*self.opened, *self.looks))

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

        ``member``: the column that says whose a row of a group is. Each statement of a group first forgets what was
        found out about the scope of the one before.
        """
        forget = " || pg_catalog.set_config('charthold.granted', '', true)" if member else ""
        gate = f"(select pg_catalog.set_config('charthold.scope', ${arguments + 1}, true){forget}) is not null"
        allowed = "".join(f" and {asked}" for asked in self.gates)
        if not self.returns:
            # A write that searches for a value records the search, and how many rows it found.
            if self.looks:
                looked = " and ".join(f"{look.call} is not null" for look in self.looks)
                return f"with r as ({sql}\n returning 1) select count(*) from r where {gate}{allowed} having {looked}"
            if self.joined:
                # Policies look at the rows that an INSERT's select made, or that were found for an update or delete,
                # which is when the context is set: a filter that no row can change is asked first.
                return f"{sql}\n {self.joined} {gate}" + (f" returning {member}" if member else "")
            # Nothing refers to r, so PostgreSQL runs it after the outer statement, when the context is set. It would
            # run even if the gate were shut, but set_config() is never null.
            return f"with r as ({sql}\n) select {member or '1'} where {gate}"
        materialized = " materialized" if sql.lstrip()[:6].lower() == "select" else ""
        records = "".join(f" and {opened.call(single=single)} is not null" for opened in self.opened)
        records += "".join(f" and {look.call} is not null" for look in self.looks)
        if relaxed and materialized and records and answers_only(sql):
            records = " and (select pg_catalog.set_config('synchronous_commit', 'off', true)) is not null" + records
        shown = f"*, {member}" if member else "*"
        return f"with r as{materialized} ({sql}\n) select {shown} from r where {gate}{allowed}{records}"


class RawPlan(QueryString):
    """SQL that a person wrote for a tenant's table. What the ORM's queries in it look at is recorded before it runs."""

    @property
    def looks(self) -> tuple[Look, ...]:
        """The searches that it makes."""
        return tuple(dict.fromkeys(_looks_beneath(self)))

    @property
    def gates(self) -> list[str]:
        """What asks whether the role is shown what it searches by."""
        return _gates_of(self.looks)


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


def _gates_of(asked: Iterable[Opened | Look]) -> list[str]:
    return list(dict.fromkeys(gate for each in asked for gate in each.gates))


def _looks_beneath(query: QueryString) -> Iterator[Look]:
    """What the queries inside this one look at. Their rows are not shown."""
    for argument in query.args:
        if isinstance(argument, Plan):
            yield from (replace(look, unless_shown=False) for look in argument.looks)
        elif isinstance(argument, QueryString):
            yield from _looks_beneath(argument)
