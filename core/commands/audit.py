"""``piccolo core audit_history``, ``audit_who_saw``, ``audit_search``: the log's answers, for an auditor."""

from __future__ import annotations

from dataclasses import replace
from typing import cast
from uuid import UUID

from core import registered
from core.audit.history import history, who_saw
from core.audit.search import Filter, search
from core.commands.answers import a_limit, a_time, an_id, emails_of, reading, show
from core.commands.family import Failure, command
from core.tables import ACTION_TYPES, TenantTable, User

__all__ = ["audit_history", "audit_search", "audit_who_saw"]


@command()
async def audit_history(
    record: str,
    *,
    tenant: str,
    table: str = "client",
    actor: str = "",
    since: str = "",
    json: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> None:
    """What happened to a record, oldest first, field by field. Reading it is itself recorded.

    Example: piccolo core audit_history 0198c0de-0000-7000-8000-000000000001 --tenant=lakeside

    :param record:
        The record's id.
    :param table:
        The record's table: client, facility, app_user, tenant_key, or one of your own.
    :param since:
        From when on, as 2026-01-31 or 2026-01-31T08:00.

    """
    async with reading(tenant, actor, quiet=quiet):
        changes = await history(_table(table), an_id(record), since=a_time(since))
        emails = await emails_of(c.user_id for c in changes)
    rows = [
        {
            "occurred_at": c.occurred_at,
            "action": c.action,
            "user": emails.get(c.user_id),
            "user_id": c.user_id,
            "field": name,
            "old": c.old.get(name),
            "new": c.new.get(name),
            "reason": c.reason,
        }
        for c in changes
        for name in (c.changed or ("",))
    ]
    columns = ("occurred_at", "action", "user", "user_id", "field", "old", "new", "reason")
    show(rows, columns, json=json, csv=csv, quiet=quiet)


@command()
async def audit_who_saw(
    record: str,
    *,
    tenant: str,
    table: str = "client",
    actor: str = "",
    since: str = "",
    limit: int = 1000,
    json: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> None:
    """Who was shown a record's PHI, the latest first, 164.312(b). Asking is itself recorded.

    Example: piccolo core audit_who_saw 0198c0de-0000-7000-8000-000000000001 --tenant=lakeside --since=2026-01-01

    :param record:
        The record's id.
    :param table:
        The record's table: client, facility, app_user, tenant_key, or one of your own.
    :param since:
        From when on, as 2026-01-31 or 2026-01-31T08:00.
    :param limit:
        The most rows; that there are more is said.

    """
    most = a_limit(limit)
    async with reading(tenant, actor, quiet=quiet):
        seen = await who_saw(_table(table), an_id(record), since=a_time(since), limit=most)
        emails = await emails_of(s.user_id for s in seen)
    rows = [
        {
            "occurred_at": s.occurred_at,
            "user": emails.get(s.user_id),
            "user_id": s.user_id,
            "columns": ", ".join(s.columns),
            "reason": s.reason,
            "request_id": s.request_id,
            "source_ip": s.source_ip,
        }
        for s in seen
    ]
    columns = ("occurred_at", "user", "user_id", "columns", "reason", "request_id", "source_ip")
    show(rows, columns, json=json, csv=csv, quiet=quiet, limit=limit)


@command()
async def audit_search(
    *,
    tenant: str,
    actor: str = "",
    user: str = "",
    action: str = "",
    table: str = "",
    record: str = "",
    reason: str = "",
    since: str = "",
    until: str = "",
    before: str = "",
    limit: int = 100,
    json: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> None:
    """Search the audit log, the latest first, a page at a time. Searching is itself recorded.

    Example: piccolo core audit_search --tenant=lakeside --action=read --since=2026-01-01 --limit=50

    :param user:
        Only what this user did: an e-mail address or an id.
    :param action:
        Only this action: insert, update, delete, read, login ...
    :param table:
        Only this table.
    :param record:
        Only this record: an id.
    :param reason:
        Only this reason.
    :param since:
        From when on, as 2026-01-31 or 2026-01-31T08:00.
    :param until:
        Until when, written likewise.
    :param before:
        The id of the last record of the page before: the next page.
    :param limit:
        How many records a page has, at most 10000.

    """
    if action and action not in ACTION_TYPES:
        raise Failure(f"--action takes one of {', '.join(ACTION_TYPES)}.")
    named = sorted({known._meta.tablename for known in registered.tables()})
    if table and table not in named:
        raise Failure(f"--table takes one of {', '.join(named)}.")
    wanted = Filter(
        user_id=an_id(user) if user and "@" not in user else None,
        action=action or None,
        table=table or None,
        record_id=an_id(record) if record else None,
        reason=reason or None,
        since=a_time(since),
        until=a_time(until),
        before=an_id(before) if before else None,
    )
    async with reading(tenant, actor, quiet=quiet):
        if "@" in user:
            wanted = replace(wanted, user_id=await _user(user))
        found = await search(wanted, limit=limit)
        emails = await emails_of(row["user_id"] for row in found)
    rows = [row | {"user": emails.get(row["user_id"])} for row in found]
    columns = ("id", "occurred_at", "user", "user_id", "action", "table", "record_id", "columns", "reason")
    # A table on a terminal has no room for what few ask for.
    show(rows, (*columns, "request_id", "source_ip") if csv else columns, json=json, csv=csv, quiet=quiet)


async def _user(email: str) -> UUID:
    found = await User.select(User.id).where(User.email == email.strip().lower()).first()
    if found is None:
        raise Failure("The tenant has no user with the e-mail that --user names.")
    return cast("UUID", found["id"])


def _table(name: str) -> type[TenantTable]:
    known = {table._meta.tablename: table for table in registered.tenant_tables() if table.audited}
    if name not in known:
        raise Failure(f"--table takes one of {', '.join(known)}.")
    return known[name]
