"""Recording what no trigger sees: a login, an export, a search by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from piccolo.table import Table

from core.engine import engine
from core.errors import ProtectedQueryError
from core.scope import scope
from core.statements.late import record_late
from core.statements.plan import Plan
from core.statements.shown import Record

__all__ = ["record", "record_failed_login"]


async def record(
    action: str,
    *,
    table: type[Table] | None = None,
    record_id: UUID | None = None,
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
) -> UUID:
    """Write one audit record of ``action`` in the open scope and return its id, 164.312(b).

    ``action`` is one of ``core.tables.ACTION_TYPES``; insert, update, delete, read and break_glass are the database's
    own to write and are refused. ``old`` and ``new`` are stored as they are given: never put PHI into them.
    """
    from core.tables import ACTION_TYPES  # late: the tables need an engine

    if action not in ACTION_TYPES:
        raise ProtectedQueryError(f"There is no such kind of record. There are {', '.join(ACTION_TYPES)}.")
    plan = Plan(
        "select charthold.record({}, {}, {}, {}::jsonb, {}::jsonb) as id",
        action,
        table._meta.tablename if table else None,
        record_id,
        None if old is None else json.dumps(old, default=str),
        None if new is None else json.dumps(new, default=str),
    )
    rows = await engine().run_plan(plan)
    if action in ("audit_read", "export"):
        # What was shown, or taken away, a rollback does not bring back.
        name, row, _, said = plan.args[1:]
        engine().note(Record.of_action(action, name, row, said))
    return cast("UUID", rows[0]["id"])


async def record_failed_login(
    *,
    tenant: UUID,
    user: UUID,
    reason: str = "login",
    request_id: str | None = None,
    source_ip: str | None = None,
) -> None:
    """Record that somebody failed to log in as that user, 164.308(a)(5)(ii)(C): outside of every scope, locked or not.

    Raises ``ScopeError`` when the tenant has no such user, or inside a transaction.
    """
    failed = scope(tenant=tenant, actor=user, reason=reason, request_id=request_id, source_ip=source_ip)
    await record_late(engine(), failed, [Record.of_action("login_failed", None, None, None)])
