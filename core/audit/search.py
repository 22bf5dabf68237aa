"""Searching the audit log by user, action, table, record, reason and time, a page at a time, by an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from core.audit.history import check_reader, check_times
from core.audit.record import record
from core.engine import engine
from core.errors import ProtectedQueryError
from core.scope import current_scope
from core.statements.plan import Plan

__all__ = ["Filter", "search"]

MOST = 10_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = 10**14  # milliseconds: the year 5138

CONDITIONS = {
    "user_id": "user_id = {}",
    "action": "action_type = {}",
    "table": "table_name = {}",
    "record_id": "record_id = {}",
    "reason": "reason = {}",
    "since": "occurred_at >= {}::timestamptz",
    "until": "occurred_at <= {}::timestamptz",
    # What the page before ended with; ids alone do not order records of one instant.
    "before": "(occurred_at, id) < ({}::timestamptz, {}::uuid)",
}
# An id is made when its record is, so it tells in which part of the log to look.
MADE = (timedelta(minutes=-1), timedelta(days=1))


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What to look for; None means anything. ``before`` is the id of the last record of the page before."""

    user_id: UUID | None = None
    action: str | None = None
    table: str | None = None
    record_id: UUID | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: UUID | None = None


async def search(wanted: Filter, *, limit: int = 100) -> list[dict[str, Any]]:
    """The records that fit, the latest first. Values stay out: ``history`` opens them. Recorded as ``audit_read``."""
    if not 0 < limit <= MOST:
        raise ProtectedQueryError(f"A page of the audit log has 1 to {MOST} records.")
    check_times(wanted.since, wanted.until)
    given = {name: [value] for name in CONDITIONS if (value := getattr(wanted, name)) is not None}
    conditions = "".join(f" and {CONDITIONS[name]}" for name in given)
    async with engine().transaction():
        await check_reader()
        await record("audit_read", new={"search": sorted(given)})
        if wanted.before is not None:
            given["before"] = [await _moment(wanted.before), wanted.before]
        values = [value for found in given.values() for value in found]
        return await engine().run_plan(_page(conditions, values, limit))


def _page(conditions: str, values: list[Any], limit: int) -> Plan:
    return Plan(
        "select id, occurred_at, user_id, action_type as action, table_name as table, record_id,"
        " array_to_string(changed_columns, ', ') as columns, reason, request_id, host(source_ip) as source_ip"
        f" from public.user_action_audit_log where case when tenant_id = {{}} then true end{conditions}"
        " order by tenant_id desc, occurred_at desc, id desc limit {}::bigint",
        current_scope().tenant,
        *values,
        limit,
    )


async def _moment(before: UUID) -> datetime:
    """When the record with that id was made. Raises ``ProtectedQueryError`` when there is none in sight."""
    # Of an id that is none of the log's these bits may say any year.
    made = EPOCH + timedelta(milliseconds=min(before.int >> 80, LATEST))
    plan = Plan(
        "select occurred_at from public.user_action_audit_log where case when tenant_id = {} then true end"
        " and occurred_at >= {}::timestamptz and occurred_at < {}::timestamptz and id = {}",
        current_scope().tenant,
        *(made + moved for moved in MADE),
        before,
    )
    rows = await engine().run_plan(plan)
    if not rows:
        raise ProtectedQueryError("There is no record of that id. The next page is before the last record of this one.")
    moment: datetime = rows[0]["occurred_at"]
    return moment
