"""Who gets in: users and what they log in with, tenants that somebody answers for, keys that sign scopes."""

from __future__ import annotations

from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.engine import engine
from core.plural import plural

__all__: list[str] = []

USERS = """
select tenant_id, count(*) filter (where status = 'active') as active,
    count(*) filter (where status = 'active' and not mfa_enrolled) as without_mfa,
    count(*) filter (where status = 'locked' or locked_until > now()) as locked,
    count(last_login_at) as logged_in
from public.app_user where ($1::uuid is null or tenant_id = $1) group by 1"""

# charthold.principal is what scope() believes; it must be a copy of the active users, and of tenants that are open.
UNLIKE = """
select count(*) as rows from charthold.principal as p full join public.app_user as u
    on u.tenant_id = p.tenant_id and u.id = p.user_id
left join charthold.tenant_directory as d on d.tenant_id = p.tenant_id
where ($1::uuid is null or coalesce(p.tenant_id, u.tenant_id) = $1) and (
    p.user_id is null and u.status = 'active'
    or p.user_id is not null and (
        u.id is null or u.status <> 'active' or u.role <> p.role or u.facility_scope is distinct from p.facility_scope
        or u.locked_until is distinct from p.locked_until
        or p.tenant_open is distinct from d.status in ('trial', 'active')
        or p.standing is distinct from
            charthold.standing(p.tenant_id, p.user_id, p.role, p.facility_scope, p.tenant_open))
)"""

# charthold.tenant_directory is what the commands and the doctor believe about tenants; it must be a copy of them.
DIRECTORY = """
select count(*) as rows from charthold.tenant_directory as d full join public.tenant as t on t.id = d.tenant_id
where ($1::uuid is null or coalesce(d.tenant_id, t.id) = $1)
    and (d.slug, d.status, d.retention_years) is distinct from (t.slug, t.status, t.retention_years)"""

# Where policies bind the owner, a tenant that the directory does not know cannot be looked at; its users are known.
UNKNOWN = """
select (select count(distinct p.tenant_id) from charthold.principal as p
    where not exists (select from charthold.tenant_directory as d where d.tenant_id = p.tenant_id))
    + (pg_relation_size('public.tenant') > 0 and not exists (select from charthold.tenant_directory))::int"""

LOGINS = """select count(*) as records from public.user_action_audit_log
where ($1::uuid is null or tenant_id = $1) and action_type in ('login', 'login_failed', 'logout')
    and occurred_at > now() - interval '30 days'"""

SIGNERS = """select id, inner_pad, outer_pad, retired_at is not null and retired_at <= now() as retired, retired_at
from charthold.token_key order by created_at"""


@check("164.312(d)")
async def admins(live: Live, notes: Notes) -> None:
    """A tenant without an admin is one whose keys, users and log nobody can look after."""
    for tenant in live.tenants:
        if tenant.admin is None and tenant.is_open:
            notes.fail(
                f"{tenant.slug} is open and has no active admin who sees all of it and is not locked.",
                subject=f"tenant {tenant.slug}",
                mend="As the owner, make one of its users an active admin.",
            )
    rows = await live.ask(UNLIKE)
    unlike = sum(row["rows"] for row in rows)
    if unlike:
        notes.fail(
            f"charthold.principal, which says who may act, disagrees with app_user in {plural(unlike, 'row')}.",
            subject="table charthold.principal",
            mend="Find out who wrote there: only triggers do.",
        )
    known = sum(row["rows"] for row in await live.ask(DIRECTORY)) if live.tenants or live.bypasses else 0
    if known + await live.connection.fetchval(UNKNOWN):
        notes.fail(
            "charthold.tenant_directory, where the commands look tenants up, disagrees with the tenants: one that is "
            "missing there is neither examined nor verified.",
            subject="table charthold.tenant_directory",
            mend="Find out who wrote there: only triggers do. An update of the tenant's row by its admin writes it.",
        )
    open_ = [tenant for tenant in live.tenants if tenant.is_open]
    notes.end(
        f"{plural(len(open_), 'open tenant')}, each with an active admin; charthold.principal, which says who may act, "
        "agrees with app_user."
        if open_
        else "There is no open tenant."
    )


@check("164.312(d)")
async def users(live: Live, notes: Notes) -> None:
    """Second factors and lockouts, as the application keeps them."""
    rows = await live.ask(USERS)
    total = {key: sum(row[key] for row in rows) for key in ("active", "without_mfa", "locked", "logged_in")}
    live.shown["users"] = total
    if total["without_mfa"]:
        notes.warn(
            f"Without a second factor: {total['without_mfa']:,} of {plural(total['active'], 'active user')}.",
            mend="Enrol them at their next login, and set mfa_enrolled.",
        )
    if total["locked"]:
        notes.warn(
            f"{plural(total['locked'], 'user is', 'users are')} locked.",
            mend="Ask each why; then unlock or deactivate.",
        )
    logins = await live.ask(LOGINS)
    records = sum(row["records"] for row in logins)
    if not total["active"] or not records:
        some = f"{plural(total['active'], 'active user')}, and" if total["active"] else "No user is active:"
        notes.unbuilt(
            f"{some} the log has no login of the last 30 days. Charthold authenticates nobody: the application does, "
            "and says who acts.",
            mend="Let the application record each login and logout with core.record(), and each failed login with "
            "core.record_failed_login().",
        )
    else:
        kinds = plural(records, "login, failed login or logout", "logins, failed logins and logouts")
        notes.seen(
            f"{plural(total['active'], 'active user')}, whom the application authenticates, not Charthold; of the last "
            f"30 days the log has {kinds}."
        )


@check("164.312(d)")
async def token_keys(live: Live, notes: Notes) -> None:
    """The keys whose scopes the database believes."""
    rows = await live.connection.fetch(SIGNERS)
    valid = [row["id"] for row in rows if not row["retired"]]
    mine = engine().token_key.id
    live.shown["token_keys"] = [
        {"id": row["id"], "retired_at": row["retired_at"], "valid": not row["retired"], "ours": row["id"] == mine}
        for row in rows
    ]
    if mine not in valid:
        notes.fail(
            f"The database does not know token key {mine}, which follows from this configuration: no scope opens.",
            subject=f"token key {mine}",
            mend="piccolo core install_token_key",
        )
    ours = engine().token_key
    for row in rows:
        # Threat: whoever writes this table signs for anybody, under an id that everybody trusts.
        if row["id"] == mine and (row["inner_pad"], row["outer_pad"]) != (ours.inner_pad, ours.outer_pad):
            notes.fail(
                f"Token key {mine} is not the one that follows from this configuration: somebody else can sign.",
                subject=f"token key {mine}",
                mend="Find out who wrote there; then delete the row, and run piccolo core install_token_key.",
            )
    for other in (key for key in valid if key != mine):
        notes.warn(
            f"Token key {other}, of another master key or generation, still signs scopes.",
            subject=f"token key {other}",
            mend="After such a change: piccolo core install_token_key --retire_after=900",
        )
    retired = len(rows) - len(valid)
    notes.seen(f"{plural(len(valid), 'token key')} valid, {retired} retired; scopes are signed by {mine}.")
