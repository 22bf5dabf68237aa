"""Answers from the audit log: what happened to a row, what it was at a time, and who saw it.

The log holds PHI as the envelopes that stood in the row. They open here, and only here, and each opening is recorded as
a read of the row: the history of a record is the record.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from uuid import UUID

from core.access.minimum import shown_to
from core.audit.record import record
from core.audit.recorded import ALTERED, DESTROYED, WITHHELD, Opener, sealed_anew
from core.audit.stream import NOT_A_READER, READS_THE_LOG
from core.columns import Encrypted
from core.crypto.keyring import MissingKeyError
from core.engine import engine
from core.errors import ChartholdError, ProtectedQueryError, ScopeError
from core.scope import current_scope
from core.statements.plan import Plan
from core.statements.shown import Record

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = [
    "Change",
    "Sighting",
    "as_of",
    "check_reader",
    "check_times",
    "history",
    "revert",
    "rows_as_of",
    "who_saw",
]

Row = TypeVar("Row", bound="TenantTable")

PAGE = 500  # records a statement
EVER = datetime(1, 1, 2, tzinfo=UTC)
FOREVER = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Change:
    """One insert, update or delete of a row. ``old`` and ``new`` hold Python values, PHI opened; they do not print."""

    id: UUID
    occurred_at: datetime
    action: str
    user_id: UUID
    reason: str
    request_id: str | None
    source_ip: str | None
    transaction_id: int
    old: Mapping[str, Any] = field(repr=False)
    new: Mapping[str, Any] = field(repr=False)

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the columns whose values changed."""
        return tuple(sorted({*self.old, *self.new}))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ChartholdError("A Change may hold PHI and is not pickled. Pass the row's id, and ask again.")


@dataclass(frozen=True)
class Sighting:
    """One time that somebody was shown a row: who, when, which PHI columns, and why, 164.312(b)."""

    id: UUID
    occurred_at: datetime
    user_id: UUID
    columns: tuple[str, ...]
    reason: str
    request_id: str | None
    source_ip: str | None


async def history(
    table: type[TenantTable],
    row_id: UUID,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Change]:
    """What happened to the row, oldest first, field by field, PHI opened. It is itself recorded as a read of the row.

    Works for a row that was deleted. The scope's role must be allowed to read the log, and the row while it exists.
    A field that was sealed anew, as by a rotation of keys, keeps its value and is left out; the log itself has it. What
    was sealed under a key that is destroyed is told as ``DESTROYED``, what was never sealed as ``ALTERED``, and what is
    not shown to the scope's role as ``WITHHELD``.
    A value whose blind index was changed by hand is told, though it is the same before and after.
    """
    check_times(since, until)
    async with aclosing(_changes(table, row_id, since=since, until=until)) as changes:
        told = [_told(change, anew) async for change, anew in changes]
    return [change for change in told if change is not None]


async def as_of(table: type[TenantTable], row_id: UUID, time: datetime) -> dict[str, Any] | None:
    """The row's values at that time, from the log; None before its insert and after its delete."""
    check_times(time)
    values: dict[str, Any] | None = None
    async with aclosing(_changes(table, row_id, until=time)) as changes:
        async for change, _ in changes:
            values = None if change.action == "delete" else {**(values or {}), **change.new}
    return values


async def rows_as_of(table: type[Row], time: datetime) -> list[Row]:
    """Every row of the table as it was at that time, from the log, deleted ones included. Each is recorded as read."""
    check_times(time)
    scope, name = current_scope(), table._meta.tablename
    # Later values win; a row whose last change is a delete is gone.
    plan = Plan(
        "select record_id, jsonb_object_agg(v.key, v.value order by occurred_at, id) as document"
        " from public.user_action_audit_log"
        " cross join lateral jsonb_each(new_values) as v"
        " where tenant_id = {} and table_name = {} and action_type in ('insert', 'update') and occurred_at <= {}"
        " and not exists (select from public.user_action_audit_log as d where d.tenant_id = {} and d.table_name = {}"
        " and d.action_type = 'delete' and d.occurred_at <= {} and d.record_id = user_action_audit_log.record_id)"
        " group by record_id order by record_id",
        scope.tenant, name, time, scope.tenant, name, time,
    )  # fmt: skip
    async with engine().transaction():
        await check_reader()
        await record("audit_read", table=table)
        rows = await engine().run_plan(plan)
        opener = await _recorded(table, [row["record_id"] for row in rows], await _withheld(table))
        return [
            table(id=row["record_id"], _exists_in_db=True, **await opener.values(row["record_id"], row["document"]))
            for row in rows
        ]


async def revert(row: TenantTable, to: datetime) -> None:
    """Give the row the values that it had at that time, as an ordinary update, which is recorded as any other.

    Raises ``ProtectedQueryError`` when there was no such row then, or is none now, or a value of then opens no more;
    ``ScopeError`` for who may not read the log.
    """
    check_times(to)
    table: Any = type(row)
    mine = table._meta.primary_key == row.id
    async with engine().transaction():
        # Nobody changes it meanwhile. What it holds now the log says too; the instance may be older.
        if not await table.select(table._meta.primary_key).where(mine).lock_rows("NO KEY UPDATE"):
            raise ProtectedQueryError(
                "Nothing was reverted: the row is gone, or not yours to see. Make a new one of what as_of() tells."
            )
        past: dict[str, Any] | None = None
        now: dict[str, Any] = {}
        async with aclosing(_changes(table, row.id)) as changes:
            async for change, _ in changes:
                now |= change.new
                if change.occurred_at <= to:
                    past = dict(now)
        if withheld := sorted(name for name, value in (past or {}).items() if value is WITHHELD):
            raise ScopeError(
                f"Nothing was reverted: your role is not shown {', '.join(withheld)}. Let somebody do it who is."
            )
        if past is None:
            raise ProtectedQueryError(
                f"There was no such {table.__name__} at that time, so there is nothing to go back to."
            )
        columns = {column._meta.name: column for column in table._meta.columns}
        changed = {columns[name]: value for name, value in past.items() if value != now[name]}
        if lost := sorted(column._meta.name for column, value in changed.items() if value in (DESTROYED, ALTERED)):
            raise ProtectedQueryError(f"What {', '.join(lost)} held at that time opens no more: there is no way back.")
        if changed:
            await table.update(changed).where(mine)
        row.__dict__.update(past)
        row.remember({name: row._held()[name] for name in past})


async def who_saw(
    table: type[TenantTable],
    row_id: UUID,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 1_000,
) -> list[Sighting]:
    """Who was shown the row's PHI, the latest first. Asking is recorded as ``audit_read``."""
    check_times(since, until)
    plan = Plan(
        "select id, occurred_at, user_id, changed_columns, reason, request_id, host(source_ip) as source_ip"
        " from public.user_action_audit_log where case when tenant_id = {} then true end and record_id = {}"
        " and action_type = 'read'"
        " and table_name = {} and occurred_at >= {}::timestamptz and occurred_at <= {}::timestamptz"
        " order by tenant_id desc, occurred_at desc limit {}::bigint",
        current_scope().tenant,
        row_id,
        table._meta.tablename,
        since or EVER,
        until or FOREVER,
        limit,
    )
    async with engine().transaction():
        await check_reader()
        await record("audit_read", table=table, record_id=row_id)
        rows = await engine().run_plan(plan)
    return [Sighting(columns=tuple(row.pop("changed_columns") or ()), **row) for row in rows]


async def _changes(
    table: type[TenantTable], row_id: UUID, *, since: datetime | None = None, until: datetime | None = None
) -> AsyncGenerator[tuple[Change, set[str]], None]:
    """The row's changes in pages, each with the columns that it may only have sealed anew.

    The reading is recorded first, in the same transaction: no record, no history.
    """
    scope, name = current_scope(), table._meta.tablename
    after_time, after_id = since or EVER, UUID(int=0)
    async with engine().transaction():
        await check_reader()
        withheld = await _withheld(table)
        if not _sealed(table, withheld):
            await record("audit_read", table=table, record_id=row_id)
        opener = await _recorded(table, [row_id], withheld)
        while True:
            plan = Plan(
                "select id, occurred_at, action_type as action, user_id, reason, request_id,"
                " host(source_ip) as source_ip, transaction_id, old_values as old, new_values as new, changed_columns"
                " from public.user_action_audit_log where case when tenant_id = {} then true end and record_id = {}"
                " and table_name = {}"
                " and action_type in ('insert', 'update', 'delete')"
                " and (occurred_at, id) > ({}::timestamptz, {}::uuid) and occurred_at <= {}::timestamptz"
                " order by tenant_id, occurred_at, id limit {}::bigint",
                scope.tenant, row_id, name, after_time, after_id, until or FOREVER, PAGE,
            )  # fmt: skip
            rows = await engine().run_plan(plan)
            for row in rows:
                anew = sealed_anew(table, row["old"], row["new"], row.pop("changed_columns") or (), withheld)
                # Nothing opened gets a name here: it would stand in the frame of an error about the next record.
                yield Change(**row | {end: await opener.values(row_id, row[end]) for end in ("old", "new")}), anew
            if len(rows) < PAGE:
                return
            after_time, after_id = rows[-1]["occurred_at"], rows[-1]["id"]


async def check_reader() -> None:
    """Raise ``ScopeError`` for who may not read the log: an empty answer would say that nothing happened."""
    [row] = await engine().run_plan(Plan(f"select {READS_THE_LOG} as may"))
    if not row["may"]:
        raise ScopeError(NOT_A_READER)


def check_times(*times: datetime | None) -> None:
    if any(time is not None and not isinstance(time, datetime) for time in times):
        raise ProtectedQueryError("A time is a datetime with a zone, such as datetime(2026, 1, 31, tzinfo=UTC).")
    if any(time is not None and time.tzinfo is None for time in times):
        raise ProtectedQueryError("A time without a zone is another moment elsewhere. Give it one: tzinfo=UTC.")


def _told(change: Change, anew: set[str]) -> Change | None:
    """The change without the fields whose values it only sealed anew; None when nothing is left of it."""
    if change.action != "update":
        return change
    moved = [n for n in change.changed if n not in anew or change.old.get(n) != change.new.get(n)]
    if len(moved) == len(change.changed):
        return change
    old, new = ({name: end[name] for name in moved} for end in (change.old, change.new))
    return replace(change, old=old, new=new) if moved else None


async def _withheld(table: type[TenantTable]) -> set[str]:
    """The columns that are not shown to the scope's role."""
    asked = shown_to(column for column in table._meta.columns if isinstance(column, Encrypted))
    if not asked:
        return set()
    [row] = await engine().run_plan(Plan("select charthold.actor_role() as role"))
    return {name for columns, roles in asked if row["role"] not in roles for name in columns}


def _sealed(table: type[TenantTable], withheld: Collection[str]) -> list[str]:
    """The encrypted columns that are opened, as the database calls them."""
    columns = [c for c in table._meta.columns if isinstance(c, Encrypted) and c._meta.name not in withheld]
    return sorted(column._meta.db_column_name for column in columns)


async def _recorded(table: type[TenantTable], rows: list[UUID], withheld: Collection[str]) -> Opener:
    """Record that the rows are shown; only then what opens them."""
    sealed, scope = _sealed(table, withheld), current_scope()
    if not sealed or not rows:
        return Opener(table, scope, None, withheld)
    name = table._meta.tablename
    await engine().run_plan(
        Plan("select charthold.record_read({}, {}::uuid[], {}::text[]) as shown", name, rows, sealed)
    )
    engine().note(Record.of_rows(name, rows, sealed))
    try:
        return Opener(table, scope, await engine().keys_of(scope), withheld)
    except MissingKeyError:  # the tenant is shredded; who did what and when remains
        return Opener(table, scope, None, withheld)
