"""What could go round the policies: roles, grants, functions, views; and how long a request lives."""

from __future__ import annotations

from time import time as now
from typing import Any

from core.access.permissions import COMMANDS
from core.doctor.check import Notes, check
from core.doctor.live import LOG, Live
from core.plural import plural
from core.schema.quoting import quote_ident

__all__: list[str] = []

LOGINS = """
select r.rolname::text as name, r.rolcanlogin as login, r.rolsuper as superuser, r.rolbypassrls as bypasses,
    r.rolcreaterole as makes_roles, r.rolcreatedb as makes_databases, r.rolreplication as replicates,
    r.rolname <> $1 and pg_has_role(r.oid, $1::name, 'member') as owner,
    pg_has_role(r.oid, 'pg_read_all_data', 'member') as reads_all
from pg_roles as r where r.rolname !~ '^pg_' order by 1"""

DEFINERS = """
select p.oid::regprocedure::text as name, p.prosecdef as definer, pg_get_userbyid(p.proowner) as owner,
    exists (select from unnest(p.proconfig) as c where c like 'search_path=%') as pinned
from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and not exists (
    select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
order by 1"""


# What a role of the application's may not be, and what it may not belong to, directly or through another role.
POWERS = {
    "superuser": ("is a superuser: no policy binds it", "nosuperuser"),
    "bypasses": ("has BYPASSRLS: no policy binds it", "nobypassrls"),
    "makes_roles": ("may make roles, and give them what it likes", "nocreaterole"),
    "makes_databases": ("may make databases", "nocreatedb"),
    "replicates": ("may read the whole WAL as a replica", "noreplication"),
}
STRONG = """select g.rolname::text as name from pg_roles as g where g.rolname in (
    'pg_read_all_data', 'pg_write_all_data', 'pg_read_server_files', 'pg_write_server_files',
    'pg_execute_server_program', 'pg_maintain', 'pg_create_subscription'
) and pg_has_role($1::name, g.oid, 'member') order by 1"""

# Settings that were granted to it, by itself or with everybody.
PARAMETERS = """select p.parname as name, way from pg_parameter_acl as p, unnest(array['set', 'alter system']) as way,
    pg_roles as r
where r.rolname = $1 and not r.rolsuper and has_parameter_privilege(r.oid, p.parname, way) and exists (
    select from aclexplode(p.paracl) as a
    where a.privilege_type = upper(way) and (a.grantee = 0 or pg_has_role(r.oid, a.grantee, 'member')))
order by 1, 2"""

# Who may make others the application: its owner and superusers may, whatever is granted.
ADMINS = """select pg_get_userbyid(m.member)::text as member, g.rolname::text as role
from pg_auth_members as m join pg_roles as g on g.oid = m.roleid join pg_roles as r on r.oid = m.member
where g.rolname = any($1) and m.admin_option and not r.rolsuper and r.rolname <> $2 order by 1, 2"""

OWNED = """select pg_get_userbyid(d.refobjid)::text as owner, i.type, i.identity
from pg_shdepend as d, pg_identify_object(d.classid, d.objid, d.objsubid) as i
where d.deptype = 'o' and d.refclassid = 'pg_authid'::regclass
    and d.dbid = (select oid from pg_database where datname = current_database())
    and (i.schema = any($1) or i.type = 'schema' and i.identity = any($1)) and pg_get_userbyid(d.refobjid) <> $2
order by 1, 2, 3"""

# Which statement gives an object to another owner, where the kind's name is not what pg_identify_object says.
ALTERED_AS = {"function": "routine", "procedure": "routine", "aggregate": "aggregate", "toast table": ""}


@check("164.312(a)(1)")
async def owners(live: Live, notes: Notes) -> None:
    """Threat: whoever owns a table, a function or a schema of ours switches policies off, or puts another in place."""
    schemas = live.schemas()
    rows = await live.connection.fetch(OWNED, schemas, live.owner)
    for row in rows:
        kind = ALTERED_AS.get(row["type"], row["type"])
        sql = f"alter {kind} {row['identity']} owner to {quote_ident(live.owner)};" if kind else ""
        notes.fail(
            f"{row['owner']} owns the {row['type']} {row['identity']}, and may do with it what it likes.",
            subject=f"{row['type']} {row['identity']}",
            sql=sql,
        )
    notes.end(f"All that is in {', '.join(schemas)} belongs to {live.owner}.")


@check("164.312(a)(1)")
async def roles(live: Live, notes: Notes) -> None:
    """Threat: a role that is the owner, a superuser or BYPASSRLS goes round every policy."""
    found = {row["name"]: row for row in await live.connection.fetch(LOGINS, live.owner)}
    login = live.login
    ours = [name for name in (live.runtime, live.auditor, login) if name is not None and name in found]
    for name in dict.fromkeys(ours):
        if name == live.owner:  # that they are one is told below
            continue
        row, ident = found[name], quote_ident(name)
        for power, (what, way) in POWERS.items():
            if row[power]:
                notes.fail(f"{name} {what}.", subject=f"role {name}", sql=f"alter role {ident} {way};")
        groups = [group["name"] for group in await live.connection.fetch(STRONG, name)]
        for group in [live.owner] * row["owner"] + groups:
            # What a login has through our role is told of the role.
            inherited = name == login and live.runtime in found and await live.connection.fetchval(
                "select pg_has_role($1::name, $2::name, 'member')", live.runtime, group
            )  # fmt: skip
            if not row["superuser"] and not inherited:
                notes.fail(
                    f"{name} is a member of {group}, directly or through another role.",
                    subject=f"membership {name} in {group}",
                    sql=f"revoke {quote_ident(group)} from {ident};",
                )
    for name in (live.runtime, live.auditor):
        value = live.catalog["role"].get(name)
        if value is None:
            notes.fail(f"The role {name} is missing.", subject=f"role {name}")
    await _who_makes_members(live, notes)
    live.shown["bypass"] = [
        {"role": row["name"], "why": why}
        for row in found.values()
        if (why := _why(row, live.owner)) and (row["login"] or row["name"] == live.owner)
    ]
    _of_the_owner(live, found[live.owner], notes)
    others = [
        row["name"]
        for row in found.values()
        if row["login"]
        and row["name"] not in {*ours, live.owner}
        and (row["superuser"] or row["bypasses"] or row["owner"])
    ]
    if others:
        notes.warn(
            f"Beside the owner, {plural(len(others), 'login')} could read past the policies: {', '.join(others)}.",
            mend="Keep such logins for administrators, one person each, and audit them on the server.",
        )
    notes.seen(f"{live.runtime} and {live.auditor} bypass nothing and are members of nothing that does.")


async def _who_makes_members(live: Live, notes: Notes) -> None:
    """Threat: whoever may make others members of our roles makes them the application."""
    for row in await live.connection.fetch(ADMINS, [live.runtime, live.auditor], live.owner):
        # From PostgreSQL 16 on whoever made a role may do so, and that was an administrator.
        tell = notes.fail if row["member"] == live.login else notes.warn
        tell(
            f"{row['member']} may make others members of {row['role']}.",
            subject=f"admin option of {row['member']} in {row['role']}",
            sql=f"revoke admin option for {quote_ident(row['role'])} from {quote_ident(row['member'])};",
        )


def _of_the_owner(live: Live, owner: Any, notes: Notes) -> None:
    """An owner whom FORCE does not bind, or as whom the application logs in."""
    if not live.settings.embedded and live.login == live.owner:
        notes.warn(
            "The application and the migrations share one login, which owns the tables. The pool does SET ROLE, and "
            "whoever injects SQL can undo that.",
            mend="Set DATABASE_OWNER_URL to the owner, and DATABASE_URL to a login that is in app_runtime only.",
        )
    if owner["superuser"]:
        notes.warn(
            f"{live.owner}, which owns the tables, is a superuser, so FORCE does not bind it"
            + (" (so it is on the embedded server)." if live.settings.embedded else "."),
            mend="In production let an ordinary role own the tables; migrations need no superuser.",
        )
    elif owner["bypasses"]:
        notes.warn(
            f"{live.owner}, which owns the tables, has BYPASSRLS, so FORCE does not bind it.",
            mend="Let another login, which nobody uses for anything else, make dumps.",
            sql=f"alter role {quote_ident(live.owner)} nobypassrls;",
        )


def _why(row: Any, owner: str) -> str:
    why = [
        text
        for key, text in (
            ("superuser", "superuser"),
            ("bypasses", "BYPASSRLS"),
            ("owner", f"member of {owner}"),
            ("reads_all", "pg_read_all_data"),
        )
        if row[key] and not (key != "superuser" and row["superuser"])
    ]
    if row["name"] == owner:
        why.append("owns the tables")
    return ", ".join(why)


@check("164.312(a)(1)")
async def grants(live: Live, notes: Notes) -> None:
    """Rights on tables: only our roles, and none of them more than select, insert, update and delete."""
    checked = 0
    for name in live.relations:
        # The log's are looked at by ``append_only``.
        if name == LOG or live.relations[name].parent == LOG:
            continue
        for grant in live.grants(name):
            checked += 1
            may = f"{grant['to']} may {grant['privilege']} on {name}"
            ours = grant["to"] in (live.runtime, live.auditor)
            machinery = live.machinery(name)
            if ours and grant["privilege"] in COMMANDS and not machinery:
                continue
            if grant["to"] == "public":
                why = f"Everybody who can connect may {grant['privilege']} on {name}."
            else:
                why = f"{may}, past policies and triggers." if ours else f"{may}, and is no role of ours."
            if machinery:
                why = f"{may}, which is the owner's alone."
            notes.fail(
                why,
                subject=f"{grant['kind']} {grant['name']}",
                sql=f"revoke {grant['privilege']} on table {name} from {grant['to']};",
            )
    # Threat: whoever writes what a session remembers of its scope is granted whatever they like.
    for name, grant in live.catalog["grant"].items():
        if grant["object"].startswith("sequence charthold.") and grant["to"] != "owner":
            checked += 1
            notes.fail(
                f"{grant['to']} may {grant['privilege']} on the {grant['object']}, which is the owner's alone.",
                subject=f"grant {name}",
                sql=f"revoke {grant['privilege']} on {grant['object']} from {grant['to']};",
            )
    told = set()  # of the role; the login, a member of it, may the same
    for role in (live.runtime, live.login):
        for row in await live.connection.fetch(PARAMETERS, role) if role != live.owner else ():
            parameter = (row["name"], row["way"])
            if parameter in told:
                continue
            told.add(parameter)
            why = ", which switches triggers off" if row["name"] == "session_replication_role" else ""
            notes.fail(
                f"{role} may {row['way']} {row['name']}, a setting that is a superuser's{why}.",
                subject=f"parameter {row['name']} to {role}",
                sql=f"revoke {row['way']} on parameter {row['name']} from public, {quote_ident(str(role))};",
            )
    notes.end(f"{plural(checked, 'right')} on tables, all of them to {live.runtime} and {live.auditor}.")


@check("164.312(a)(1)")
async def functions(live: Live, notes: Notes) -> None:
    """Threat: a definer function acts as its owner: with an open search path, for whoever plants a name in it."""
    found = await live.connection.fetch(DEFINERS)
    definers = [row for row in found if row["definer"]]
    for row in definers:
        if not row["pinned"]:
            notes.fail(
                f"{row['name']} runs as {row['owner']} with the caller's search_path.",
                subject=f"function {row['name']}",
                sql=f"alter function {row['name']} set search_path = pg_catalog, pg_temp;",
            )
    for title, grant in live.catalog["function_grant"].items():
        if grant["to"] == "public":
            name = grant["object"].removeprefix("function ")
            notes.fail(
                f"Everybody who can connect may call {name}.",
                subject=f"function_grant {title}",
                sql=f"revoke execute on function {name} from public;",
            )
    notes.end(
        f"{len(definers)} of {plural(len(found), 'function')} run as their owner, each with a pinned search_path; "
        "PUBLIC may call none."
    )


@check("164.312(a)(1)")
async def event_triggers(live: Live, notes: Notes) -> None:
    """Threat: what runs at each change of the schema can undo it."""
    rows = await live.connection.fetch(
        "select quote_ident(evtname) as name, evtfoid::regprocedure::text as function from pg_event_trigger as e"
        " where evtenabled <> 'D' and not exists (select from pg_depend as d"
        " where d.classid = 'pg_event_trigger'::regclass and d.objid = e.oid and d.deptype = 'e') order by 1"
    )
    for row in rows:
        notes.warn(
            f"The event trigger {row['name']} runs {row['function']} at changes of the schema, and is none of ours.",
            mend="Only a superuser makes one. Drop it, unless it belongs to your database's provider.",
            sql=f"drop event trigger {row['name']};",
        )
    notes.end("No event trigger runs at changes of the schema.")


@check("164.312(a)(1)")
async def views(live: Live, notes: Notes) -> None:
    """Threat: a view reads as its owner, past the policies of whoever asks it."""
    rows = await live.connection.fetch(
        "select c.oid::regclass::text as name, c.relkind = 'm' as stored,"
        " 'security_invoker=true' = any(coalesce(c.reloptions, '{}')) as invoker"
        " from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where c.relkind in ('v', 'm') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"
        " and not exists (select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid"
        " and d.deptype = 'e') order by 1"
    )
    for row in rows:
        name = row["name"] if "." in row["name"] else f"public.{row['name']}"
        if row["stored"]:
            notes.fail(f"The materialized view {name} holds rows of all tenants.", subject=f"view {name}")
        elif not row["invoker"]:
            notes.fail(
                f"The view {name} reads as its owner.",
                subject=f"view {name}",
                sql=f"alter view {name} set (security_invoker = true);",
            )
    notes.end(f"{plural(len(rows), 'view')}, each reading as whoever asks." if rows else "There is no view.")


LEEWAY = 30  # seconds that two clocks may be apart


@check("164.312(a)(2)(iii)")
async def scope_expiry(live: Live, notes: Notes) -> None:
    """Sessions are the application's. What the database ends is one request."""
    seconds = live.settings.scope_seconds
    if seconds > 3600:
        notes.warn(
            f"What one request signed is believed for {seconds:,} seconds, as this configuration says.",
            mend="Set CHARTHOLD_SCOPE_SECONDS to 900, or to what your risk analysis says.",
        )
    if not live.settings.bind_backend:
        notes.warn(
            "Tokens are not bound to a connection, as this configuration says: one that leaks works on every "
            "connection until it expires.",
            mend="Unset CHARTHOLD_BIND_BACKEND, unless a transaction pooler needs it off.",
        )
    ahead = round(now() - await live.connection.fetchval("select extract(epoch from clock_timestamp())::float8"))
    if abs(ahead) > LEEWAY:
        notes.warn(
            f"This machine's clock is {abs(ahead):,} seconds {'ahead of' if ahead > 0 else 'behind'} the server's. "
            "The server believes a scope for as much longer or shorter; one that is too short has expired at once.",
            mend="Set both clocks by the same source, such as NTP.",
        )
    notes.unbuilt(
        "Charthold ends no session after inactivity: sessions are your application's. A scope is one request, and the "
        f"database refuses it {seconds:,} seconds after it began, as this configuration says.",
        mend="Let the application end a session after the minutes of inactivity that your risk analysis says.",
    )
