"""What people look at afterwards: emergencies, and what was done in the last weeks; and whether they did."""

from __future__ import annotations

from typing import Any

from core.compliance.emergencies import LONGEST
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.plural import plural

__all__: list[str] = []

DAYS = 30  # of activity, for the plot
REVIEWED = 7  # days after which an emergency should have been reviewed
SIGNED = 35  # days that may pass between two sign-offs: a month, and some

# However long ago it was declared: who lengthens it opens it again.
EMERGENCIES = """
select count(*) filter (where e.recent) as declared,
    count(*) filter (where e.recent and e.until < now() - make_interval(days => $2) and r.reviews = 0) as waiting,
    count(*) filter (where e.recent and r.violations > 0) as violations,
    count(*) filter (where p.until <> e.until or p.user_id <> e.user_id or p.client_id <> e.client_id
        or e.until > e.created_at + make_interval(mins => $3)) as altered
from (select *, created_at > now() - interval '1 year' as recent from public.emergency_access) as e
left join charthold.emergency as p on p.tenant_id = e.tenant_id and p.id = e.id
cross join lateral (select count(*) as reviews, count(*) filter (where a.finding = 'violation') as violations
    from public.activity_review as a where a.tenant_id = e.tenant_id and a.emergency_id = e.id) as r
where ($1::uuid is null or e.tenant_id = $1)"""

# Of a client that is gone nothing can be seen.
UNDECLARED = """
select count(*) as emergencies from charthold.emergency as p
where ($1::uuid is null or p.tenant_id = $1) and not exists (
    select from public.emergency_access as e where e.tenant_id = p.tenant_id and e.id = p.id
) and exists (select from public.client as c where c.tenant_id = p.tenant_id and c.id = p.client_id)"""

ACTIVITY = """
select (occurred_at at time zone 'UTC')::date as day, action_type as action, count(*) as records
from public.user_action_audit_log
where ($1::uuid is null or tenant_id = $1) and occurred_at > now() - make_interval(days => $2)
group by 1, 2"""

# A tenant that is younger than that has nothing to sign off yet.
SIGNED_OFF = """
select count(*) as due, count(*) filter (where exists (
    select from public.activity_review as a
    where a.tenant_id = t.id and a.emergency_id is null and a.until > now() - make_interval(days => $2)
)) as signed
from public.tenant as t
where ($1::uuid is null or t.id = $1) and t.created_at < now() - make_interval(days => $2)"""


@check("164.312(a)(2)(ii)")
async def emergency_access(live: Live, notes: Notes) -> None:
    """Threat: the glass is broken by hand in the database, or broken often, and nobody asks why."""
    counted = await live.ask(EMERGENCIES, REVIEWED, LONGEST)
    declared, waiting, violations, altered = (
        sum(row[name] for row in counted) for name in ("declared", "waiting", "violations", "altered")
    )
    undeclared = sum(row["emergencies"] for row in await live.ask(UNDECLARED))
    if altered or undeclared:
        notes.fail(
            f"{emergencies(altered + undeclared)} in charthold.emergency that nobody declared so: made, moved or "
            "lengthened by hand, by whoever owns the schema.",
            subject="table charthold.emergency",
            mend="Find out who did it, from the server's own log; then delete them from charthold.emergency.",
        )
    if waiting:
        notes.warn(
            f"{emergencies(waiting)} of more than {REVIEWED} days ago nobody has reviewed.",
            mend="List them with piccolo core emergencies --tenant=SLUG --open, and sign each off: "
            "piccolo core sign_off --tenant=SLUG --actor=REVIEWER --emergency=ID.",
        )
    found = f", {violations} of them found to be a violation" if violations else ""
    notes.end(
        "A clinician who is bound to facilities can read one client's chart elsewhere, for "
        f"{LONGEST // 60} hours at most, with a reason and on record; {emergencies(declared)} in the last year{found}"
        f"{live.unseen()}. When that is right your procedure says, which the rule wants in writing."
    )


@check("164.308(a)(1)(ii)(D)")
async def activity_review(live: Live, notes: Notes) -> None:
    """What happened lately, for whoever reviews it; and whether somebody signed that they did."""
    rows = await live.ask_or_warn(notes, "The count of the last month's records", ACTIVITY, DAYS)
    seen = ""
    if rows is not None:
        counts: dict[tuple[Any, str], int] = {}
        for row in rows:
            key = (row["day"], row["action"])
            counts[key] = counts.get(key, 0) + row["records"]
        live.shown["activity"] = {"days": DAYS, "counts": counts}
        seen = f"; {plural(sum(counts.values()), 'record')} in the last {DAYS} days"
    asked = await live.ask(SIGNED_OFF, SIGNED)
    due, signed = (sum(row[name] for row in asked) for name in ("due", "signed"))
    if due > signed:
        notes.warn(
            f"Of {plural(due, 'tenant')}, {due - signed} have no sign-off that reaches into the last {SIGNED} days.",
            mend="Look at audit_search and audit_who_saw, then sign: piccolo core sign_off --tenant=SLUG "
            "--actor=REVIEWER --since=DAY --until=DAY.",
        )
    notes.end(
        f"In {plural(signed, 'tenant')} somebody signed off what was done, into the last {SIGNED} days"
        f"{seen}{live.unseen()}; what is younger than that has nothing to sign off yet."
        if signed
        else f"No tenant is old enough for a sign-off, which is due after {SIGNED} days{seen}{live.unseen()}."
    )


def emergencies(count: int) -> str:
    return plural(count, "emergency", "emergencies")
