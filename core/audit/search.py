"""Searching the audit log by user, action, table, record, reason and time, a page at a time, by an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.audit.record import record
from core.engine import engine
from core.errors import ProtectedQueryError
from core.plan import Plan
from core.scope import current_scope

__all__ = ["Filter", "search"]

MOST = 10_000

CONDITIONS = {
    "user_id": "user_id = {}",
    "action": "action_type = {}",
    "table": "table_name = {}",
    "record_id": "record_id = {}",
    "reason": "reason = {}",
    "since": "occurred_at >= {}::timestamptz",
    "until": "occurred_at <= {}::timestamptz",
    # The record that the page before ended with; ids alone do not order records of one instant.
    "before": "(occurred_at, id) < (select l.occurred_at, l.id from public.user_action_audit_log as l where l.id = {})",
}


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
    given = {name: value for name in CONDITIONS if (value := getattr(wanted, name)) is not None}
    conditions = "".join(f" and {CONDITIONS[name]}" for name in given)
    plan = Plan(
        "select id, occurred_at, user_id, action_type as action, table_name as table, record_id,"
        " array_to_string(changed_columns, ', ') as columns, reason, request_id, host(source_ip) as source_ip"
        f" from public.user_action_audit_log where case when tenant_id = {{}} then true end{conditions}"
        " order by tenant_id desc, occurred_at desc, id desc limit {}::bigint",
        current_scope().tenant,
        *given.values(),
        limit,
    )
    async with engine().transaction():
        await record("audit_read", new={"search": sorted(given)})
        return await engine().run_plan(plan)
