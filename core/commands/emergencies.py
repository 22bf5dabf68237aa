"""``piccolo core emergencies`` and ``sign_off``: who broke the glass and why, and that somebody looked at it."""

from __future__ import annotations

import json as jsonlib
from datetime import UTC, datetime

from core.commands.answers import a_limit, a_time, an_id, emails_of, reading, show
from core.commands.family import Failure, command, console
from core.commands.options import existing_tenant, resolve_actor
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import FINDINGS, ActivityReview
from core.errors import ScopeError
from core.scope import scope

__all__ = ["emergencies", "sign_off"]


@command()
async def emergencies(
    *,
    tenant: str,
    actor: str = "",
    open: bool = False,  # noqa: A002  # the option's name
    since: str = "",
    limit: int = 100,
    json: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> None:
    """Who broke the glass, for which client and why, the latest first, and what a reviewer found, 164.312(a)(2)(ii).

    What was read in one, audit_search answers: --user, --since and --reason="break-glass: ...".

    Example: piccolo core emergencies --tenant=lakeside --open

    :param open:
        Only those that nobody has signed off.
    :param since:
        From when on, as 2026-01-31 or 2026-01-31T08:00.
    :param limit:
        The most rows; that there are more is said.

    """
    most, start = a_limit(limit), a_time(since)
    async with reading(tenant, actor, quiet=quiet):
        query = EmergencyAccess.select().order_by(EmergencyAccess.created_at, ascending=False).limit(most)
        if start:
            query = query.where(EmergencyAccess.created_at >= start)
        if open:
            signed = ActivityReview.select(ActivityReview.emergency_id).where(ActivityReview.emergency_id.is_not_null())
            query = query.where(EmergencyAccess.id.not_in(signed))
        found = await query
        ids = [row["id"] for row in found]
        reviews = (
            await ActivityReview.select(ActivityReview.emergency_id, ActivityReview.reviewed_by, ActivityReview.finding)
            .where(ActivityReview.emergency_id.is_in(ids))
            .order_by(ActivityReview.created_at)
            if ids
            else []
        )
        emails = await emails_of([row["user_id"] for row in found] + [review["reviewed_by"] for review in reviews])
    last = {review["emergency_id"]: review for review in reviews}
    rows = [
        {
            "id": row["id"],
            "declared": row["created_at"],
            "until": row["until"],
            "user": emails.get(row["user_id"]),
            "user_id": row["user_id"],
            "client_id": row["client_id"],
            "reason": row["reason"],
            "finding": review["finding"] if review else None,
            "reviewed_by": emails.get(review["reviewed_by"], review["reviewed_by"]) if review else None,
        }
        for row in found
        for review in (last.get(row["id"]),)
    ]
    columns = ("id", "declared", "until", "user", "user_id", "client_id", "reason", "finding", "reviewed_by")
    show(rows, columns, json=json, csv=csv, quiet=quiet, limit=limit)


@command()
async def sign_off(
    *,
    tenant: str,
    actor: str,
    emergency: str = "",
    since: str = "",
    until: str = "",
    finding: str = "in_order",
    note: str = "",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Sign that one emergency, or all that was done in a time, was reviewed, 164.308(a)(1)(ii)(D).

    Nobody signs off their own emergency, and what is signed is not changed: sign again.

    Examples: piccolo core sign_off --tenant=lakeside --actor=ada@lakeside.example --since=2026-01-01 --until=2026-02-01

    :param actor:
        Who reviewed it, by e-mail or id: an admin or an auditor.
    :param emergency:
        The id of the emergency; left out, a time is signed off, from --since to --until.
    :param since:
        From when on, as 2026-01-31 or 2026-01-31T08:00.
    :param until:
        Until when, written likewise: before it, not with it.
    :param finding:
        in_order, follow_up or violation.
    :param note:
        What the reviewer says of it, without PHI.

    """
    if finding not in FINDINGS:
        raise Failure(f"--finding takes one of {', '.join(FINDINGS)}.")
    if bool(emergency) == bool(since and until) or bool(since) != bool(until):
        raise Failure("Sign off one emergency, --emergency=ID, or a time, --since=2026-01-01 --until=2026-02-01.")
    found = await existing_tenant(tenant)
    who = await resolve_actor(found.tenant_id, actor)
    start, end = a_time(since), a_time(until)
    if start and end and not start < end <= datetime.now(UTC):
        raise Failure("A time that is signed off is over: --since lies before --until, and that not in the future.")
    review = ActivityReview(
        emergency_id=an_id(emergency) if emergency else None, since=start, until=end, finding=finding, note=note or None
    )
    async with scope(tenant=found.tenant_id, actor=who, reason="review"):
        if emergency and not await EmergencyAccess.exists().where(EmergencyAccess.id == review.emergency_id):
            raise Failure("There is no emergency with that id that the actor may see.")
        try:
            await review.save()
        except ScopeError:
            raise Failure(
                "An admin or an auditor signs off who is bound to no facility; an emergency when it has ended, and not "
                "who declared it."
            ) from None
    if json:
        print(jsonlib.dumps({"id": str(review.id), "finding": finding}))
    elif not quiet:
        what = f"The emergency {emergency}" if emergency else f"What was done from {since} until {until}"
        console().print(f"{what} is signed off: {finding}.")
