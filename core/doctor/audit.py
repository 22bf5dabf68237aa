"""The log: everything is captured, by somebody, and nothing of it can be changed or get lost."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from core.audit.retention import kept_since
from core.doctor.check import Notes, check
from core.doctor.live import LOG, Live
from core.plural import plural
from core.schema.declarations import objects_of
from core.schema.quoting import quote_ident
from core.schema.trigger import Trigger

__all__ = ["detached", "month_after"]

MONTHS = 2  # partitions ahead; fewer is a warning, none a failure
CAPTURE = ("audit_insert", "audit_update", "audit_delete", "audit_truncate")
GUARDS = ("append_only", "append_only_truncate")

# Every trigger, also those that PostgreSQL makes for foreign keys and for partitions.
TRIGGERS = """
select format('%I.%I', n.nspname, c.relname) as on, t.tgname::text as name, t.tgenabled::text as enabled,
    t.tgisinternal as internal, c.relispartition as part
from pg_trigger as t join pg_class as c on c.oid = t.tgrelid join pg_namespace as n on n.oid = c.relnamespace
where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 1, 2"""

STRAY = """select count(*) as rows from public.user_action_audit_log
where ($1::uuid is null or tenant_id = $1) and tableoid = 'public.user_action_audit_log_default'::regclass"""


@check("164.312(b)")
async def triggers(live: Live, notes: Notes) -> None:
    """Threat: a trigger that is gone or switched off records nothing, and nobody notices."""
    there = {(row["on"], row["name"]): row for row in await live.connection.fetch(TRIGGERS)}
    wanted = [
        (name, item.name)
        for name, table in live.declared().items()
        if name in live.relations
        for item in objects_of(table)
        if isinstance(item, Trigger)
    ]
    for name, trigger in wanted:
        if (name, trigger) not in there:
            subject = f"trigger {named(trigger)} on {name}"
            notes.fail(f"The trigger {trigger} on {name} is missing.", subject=subject)
    for (name, trigger), row in there.items():
        if row["enabled"] in ("O", "A"):
            continue
        notes.fail(
            f"The trigger {trigger} on {name} {'runs on replicas only' if row['enabled'] == 'R' else 'is disabled'}.",
            subject=f"trigger {named(trigger)} on {name}",
            sql=f"alter table {name} enable trigger {quote_ident(trigger)};",
        )
    ours = sum(not row["internal"] and not row["part"] for row in there.values())
    notes.end(f"{plural(ours, 'trigger')}, those of foreign keys and of partitions too, are there and enabled.")


@check("164.312(b)")
async def capture(live: Live, notes: Notes) -> None:
    """Every table of tenants records inserts, updates and deletes, and refuses TRUNCATE."""
    recorded, exempt = [], []
    for name, info in live.isolated().items():
        if name == LOG:
            continue
        table = live.declared().get(name)
        if table is not None and not getattr(table, "audited", True):
            exempt.append(name)
            continue
        recorded.append(name)
        on = {value["ident"] for value in live.catalog["trigger"].values() if value["on"] == name}
        # Of a declared table ``triggers`` has told which one is missing.
        if table is None and not on.issuperset(CAPTURE):
            notes.fail(
                f"{name} has rows of tenants, and what happens to them is not recorded.",
                subject=f"table {name}",
                mend="Declare it as a TenantTable and let a migration make it.",
            )
        if table is None:
            continue
        exempt += [f"{name}.{column}" for column in getattr(table, "unrecorded", ())]
        known = {column._meta.db_column_name for column in table._meta.columns}
        for column in info.columns:
            if column in known or live.catalog["column"][f"{name}.{named(column)}"]["generated"]:
                continue  # what is generated follows from what is recorded
            notes.fail(
                f"{name}.{column} is no column of {table.__name__}, and what happens to it is not recorded.",
                subject=f"column {name}.{named(column)}",
                mend="Declare it as a column of the class, whose record then holds it, or drop it.",
            )
    if not live.settings.durable_reads:
        notes.warn(
            "CHARTHOLD_READ_RECORDS is relaxed, as this configuration says: a crash of the server loses the records of "
            "what was read in its last moments.",
            mend="Unset CHARTHOLD_READ_RECORDS, unless your risk analysis allows it.",
        )
    notes.seen(
        f"Triggers record inserts, updates and deletes on {plural(len(recorded), 'table')}, raw SQL included; reads of "
        f"PHI are recorded by the statement that reads. Not recorded: {', '.join(exempt) or 'none'}."
    )


@check("164.312(b)")
async def append_only(live: Live, notes: Notes) -> None:
    """Threat: whoever may write to the log directly can write what did not happen, or take out what did."""
    places = [name for name, info in live.relations.items() if LOG in {name, info.parent}]
    rights = []
    for name in places:
        for grant in live.grants(name):
            if grant["privilege"] == "select" and grant["to"] in (live.runtime, live.auditor) and name == LOG:
                rights.append(grant)
                continue
            what = f"{grant['to'] if grant['to'] != 'public' else 'Everybody'} may {grant['privilege']} on {name}"
            notes.fail(
                f"{what}{', where no policy applies' if name != LOG else ''}.",
                subject=f"{grant['kind']} {grant['name']}",
                sql=f"revoke {grant['privilege']} on table {name} from {grant['to']};",
            )
    for name in places:
        on = {value["ident"] for value in live.catalog["trigger"].values() if value["on"] == name}
        # Of the log itself ``triggers`` has told. TRUNCATE of one month its triggers do not hear of.
        for guard in (guard for guard in GUARDS if name != LOG and guard not in on):
            like = live.catalog["trigger"].get(f"{guard} on {LOG}")
            notes.fail(
                f"The trigger {guard} on {name} is missing.",
                subject=f"trigger {guard} on {name}",
                mend="" if like else f"Mend the log's own trigger {guard} first.",
                sql=f"{like['definition'].replace(f' ON {LOG} ', f' ON {name} ')};" if like else "",
            )
    notes.end(
        f"Nobody but the owner holds INSERT, UPDATE, DELETE or TRUNCATE on the log or its "
        f"{plural(len(places) - 1, 'partition')}; {plural(len(rights), 'role')} may read it, within policies"
        f"{'; triggers refuse its change by the owner too' if guarded(live) else ''}."
    )


def guarded(live: Live) -> bool:
    """Whether the triggers that refuse UPDATE, DELETE and TRUNCATE are there and on, for the log and for each month."""
    places = [name for name, info in live.relations.items() if LOG in {name, info.parent}]
    found = [live.catalog["trigger"].get(f"{guard} on {name}") for name in places for guard in GUARDS]
    return all(trigger is not None and trigger["enabled"] in ("O", "A") for trigger in found)


@check("164.312(b)")
async def partitions(live: Live, notes: Notes) -> None:
    """A month without its partition fills the default one, and then takes a lock to make room."""
    pattern = re.compile(rf"{re.escape(LOG)}_(\d{{4}})_(\d{{2}})")
    months = {
        (int(match[1]), int(match[2]))
        for name, info in live.relations.items()
        if info.parent == LOG and (match := pattern.fullmatch(name))
    }
    for year, number in months:
        name = f"{LOG}_{year}_{number:02}"
        following = month_after((year, number))
        bound = str(live.catalog["table"][name]["bound"])
        if not all(f"'{y:04}-{m:02}-01 00:00:00+00'" in bound for y, m in ((year, number), following)):
            notes.fail(
                f"{name} does not hold the month that its name says, but {bound.removeprefix('FOR VALUES ').lower()}.",
                subject=f"table {name}",
                mend="Find out who attached it so; detach it, and run piccolo core partitions.",
            )
    now = datetime.now(UTC)
    month, ahead = (now.year, now.month), 0
    for name, info in live.relations.items():
        if (match := pattern.fullmatch(name)) and info.parent != LOG:
            apart = (int(match[1]), int(match[2]))
            notes.fail(
                f"{name} was detached from the log: what it holds is missing there.",
                subject=f"table {name}",
                mend=detached(apart),
                sql=attached(name, apart),
            )
            months.add(apart)  # and is told of here
    if month not in months:
        notes.fail(
            "This month has no partition of the log.",
            subject=f"partition {month[0]}-{month[1]:02}",
            mend="piccolo core partitions",
            sql="select charthold.ensure_partitions(3);",
        )
    while (month := month_after(month)) in months:
        ahead += 1
    if ahead < MONTHS:
        tell = notes.warn if ahead else notes.fail
        tell(
            f"The log has partitions for {plural(ahead, 'month')} ahead.",
            subject=f"partition {month[0]}-{month[1]:02}",
            mend="Run piccolo core partitions from cron, once a week.",
            sql="select charthold.ensure_partitions(3);",
        )
    default, empty = live.relations.get(f"{LOG}_default"), True
    if default is None:
        notes.fail(
            "The log has no default partition: a record of an unforeseen month is refused, and its work with it.",
            subject=f"table {LOG}_default",
            mend="piccolo core partitions makes it.",
            sql="select charthold.ensure_partitions(3);",
        )
    elif default.bytes:
        rows = await live.ask_or_warn(notes, "The count of records in the default partition", STRAY)
        if stray := sum(row["rows"] for row in rows or []):
            notes.fail(
                f"The default partition holds {plural(stray, 'record')} of months without a partition.",
                subject=f"table {LOG}_default",
                mend="piccolo core partitions makes these months, and moves the records there.",
                sql="select charthold.ensure_partitions(3);",
            )
        empty = rows is not None
    notes.seen(
        f"{plural(len(months), 'month has a partition', 'months have partitions')}, {ahead} of them ahead"
        f"{'; the default partition is empty' if empty else ''}."
    )


def detached(month: tuple[int, int]) -> str:
    """What to do about a month that is no part of the log: one that is old may have been archived."""
    if month >= (kept_since(0).year, kept_since(0).month):
        return "Find out who detached it."
    return "If it was archived, dump it, check the dump and drop it; else find out who detached it."


def attached(name: str, month: tuple[int, int]) -> str:
    """What makes a table the log's partition of that month again, guarded as the others are."""
    first, beyond = (f"'{year:04}-{number:02}-01 00:00:00+00'" for year, number in (month, month_after(month)))
    return (
        f"select charthold.keep_partition('{name.removeprefix('public.')}');\n"
        f"alter table {LOG} attach partition {name} for values from ({first}) to ({beyond});"
    )


def named(trigger: str) -> str:
    """A name as PostgreSQL's own quote_ident writes it, so that it is the one that drift gives."""
    return trigger if re.fullmatch("[a-z_][a-z0-9_]*", trigger) else quote_ident(trigger)


def month_after(month: tuple[int, int]) -> tuple[int, int]:
    """December is followed by January of the next year."""
    year, number = month
    return (year + 1, 1) if number == 12 else (year, number + 1)


@check("164.312(a)(2)(i)")
async def actors(live: Live, notes: Notes) -> None:
    """One person, one user: each record names its actor, and nobody can share an e-mail within a tenant."""
    log = live.relations.get(LOG)
    for column in ("user_id", "tenant_id", "reason", "occurred_at"):
        if log is not None and column not in log.required:
            notes.fail(
                f"A record of the log may be without {column}.",
                subject=f"column {LOG}.{column}",
                sql=f"alter table {LOG} alter column {column} set not null;",
            )
    unique = any(
        value["on"] == "public.app_user" and "UNIQUE (tenant_id, email)" in value["definition"]
        for value in live.catalog["constraint"].values()
    )
    if not unique:
        notes.fail(
            "Two users of a tenant can have one e-mail address, and so share a login.",
            subject="constraint app_user_email_key on public.app_user",
        )
    notes.end("Each record of the log names its user and the reason; an e-mail address is one user's within a tenant.")


@check("164.316(b)(2)(i)")
async def retention(live: Live, notes: Notes) -> None:
    """Six years, whatever a tenant asks for."""
    name = "tenant_retention_years_possible on public.tenant"
    rule = live.catalog["constraint"].get(name)
    if rule is None or not rule["validated"] or "retention_years >= 6" not in rule["definition"]:
        notes.fail("A tenant may ask for less than six years.", subject=f"constraint {name}")
    rows = await live.ask(
        "select min(retention_years) as least, max(retention_years) as most from public.tenant"
        " where ($1::uuid is null or id = $1)"
    )
    years = [row["least"] for row in rows if row["least"] is not None]
    notes.end(
        f"No tenant may ask for less than six years (now: {f'{min(years)} at least' if years else 'no tenant'})"
        f"{'; the log refuses DELETE and TRUNCATE' if guarded(live) else ''}. Policies and procedures, which the rule "
        "wants kept too, are not here."
    )
