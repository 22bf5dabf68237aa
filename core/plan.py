"""A planned statement: SQL whose sensitive arguments are bound when it runs, and what to do with its rows.

Query classes plan, the engine executes. The tenant, the token, ciphertext and blind indexes are bound at execution,
never compiled in: ``freeze()`` keeps arguments for ever, and a token or a tenant kept so would cross tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from piccolo.querystring import QueryString
from piccolo.utils.encoding import JSONDict

from core.crypto.values import Kind

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys

__all__ = [
    "TENANT",
    "Deferred",
    "Late",
    "Opened",
    "Plan",
    "RawPlan",
    "Sealed",
    "bind",
    "needs_keys",
    "open_rows",
    "row_alias",
]


class Late(Protocol):
    """An argument that is known only when the statement runs."""

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> Any: ...


class _Tenant:
    """The open scope's tenant."""

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> UUID:
        return tenant

    def __repr__(self) -> str:
        return "<tenant>"


TENANT = _Tenant()


class Sealed:
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


class Deferred:
    """An argument made by a function of the tenant's keys: a blind index, a column of sealed values."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[TenantKeys], Any]) -> None:
        self.make = make

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> Any:
        assert keys is not None
        return self.make(keys)

    def __repr__(self) -> str:
        return "<encrypted>"


@dataclass(frozen=True)
class Opened:
    """One output position that holds envelopes.

    ``position`` counts from 0 in the rows that come back; ``row`` is the position of the id of the row that the
    envelope is bound to.
    """

    position: int
    row: int
    table: str
    column: str
    kind: Kind
    json: bool = False


class Plan(QueryString):
    """A statement of ours.

    ``outputs``: how many of the columns that come back are the caller's; the ids behind them are ours.
    ``opened``: the positions to open, each recorded as read.
    ``returns``: False for a statement without rows, such as an update without RETURNING.
    ``trusted``: False when the caller wrote a piece of the SQL; the connection is then closed after use.
    """

    __slots__ = ("keep", "opened", "outputs", "returns", "sealed_sql", "trusted")

    def __init__(
        self,
        template: str,
        *args: Any,
        opened: Sequence[Opened] = (),
        outputs: int | None = None,
        returns: bool = True,
        trusted: bool = True,
        keep: Callable[[Sequence[Any]], bool] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(template, *args, **kwargs)
        self.opened = tuple(opened)
        self.outputs = outputs
        self.returns = returns
        self.trusted = trusted
        self.keep = keep
        self.sealed_sql: tuple[str, str] | None = None

    def wrapped(self, sql: str, arguments: int) -> str:
        """The statement inside its gate.

        The gate is a one-time filter, which runs before the first row is looked for. Should a planner ever run it too
        late, the policies find no scope and raise: closed, not open. ``materialized`` keeps the statement from being
        merged into the outer query, where its sub-selects could be evaluated before the gate.
        """
        if self.sealed_sql is not None and self.sealed_sql[0] == sql:
            return self.sealed_sql[1]
        gate = f"(select pg_catalog.set_config('charthold.scope', ${arguments + 1}, true)) is not null"
        if not self.returns:
            wrapped = f"with r as ({sql} returning 1) select count(*) from r where {gate}"
        else:
            materialized = " materialized" if sql.lstrip()[:6].lower() == "select" else ""
            records = "".join(
                f" and (select charthold.record_read('{table}', (select array_agg(r.\"{row_alias(position)}\") from r),"
                f" '{{{','.join(columns)}}}')) is not null"
                for table, position, columns in self.records()
            )
            wrapped = f"with r as{materialized} ({sql}) select * from r where {gate}{records}"
        self.sealed_sql = (sql, wrapped)
        return wrapped

    def records(self) -> list[tuple[str, int, list[str]]]:
        """What to record as read: table, position of the rows' ids, the columns that are opened."""
        columns: dict[tuple[str, int], list[str]] = {}
        for opened in self.opened:
            columns.setdefault((opened.table, opened.row), []).append(opened.column)
        return [(table, row, sorted(set(names))) for (table, row), names in columns.items()]


LATE = (_Tenant, Sealed, Deferred)


class RawPlan(QueryString):
    """SQL that a person wrote for a tenant's table."""


def bind(arguments: Sequence[Any], tenant: UUID, keys: TenantKeys | None) -> list[Any]:
    """The arguments as they go on the wire."""
    return [a.bind(tenant, keys) if isinstance(a, LATE) else a for a in arguments]


def needs_keys(arguments: Sequence[Any]) -> bool:
    """Whether any argument is made with the tenant's keys."""
    return any(isinstance(a, (Sealed, Deferred)) for a in arguments)


def open_rows(plan: Plan, rows: Sequence[Any], keys: TenantKeys | None) -> list[dict[str, Any]]:
    """Rows as dicts, opened by position, without the ids that were fetched for that."""
    if not rows:
        return []
    names = list(rows[0].keys())[: plan.outputs]
    if not plan.opened:
        return [dict(zip(names, row, strict=False)) for row in rows]
    assert keys is not None
    values = [list(row) for row in rows]
    for opened in plan.opened:
        at, row_at = opened.position, opened.row
        sealer = keys.sealer(opened.table, opened.column, opened.kind)
        for row, value in zip(values, sealer.open_many([(row[row_at], row[at]) for row in values]), strict=True):
            # Piccolo takes a plain dict for a nested row.
            row[at] = JSONDict(**value) if opened.json and type(value) is dict else value
    return [dict(zip(names, row, strict=False)) for row in values]


def row_alias(position: int) -> str:
    """The name under which a statement returns the id that an envelope is bound to."""
    return f"charthold_row_{position}"
