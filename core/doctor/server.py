"""The server: its version, its settings, and what it writes into its own log."""

from __future__ import annotations

from datetime import date
from typing import Any

from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.schema.quoting import quote_ident

__all__ = ["LATEST", "judge_version"]

# The newest minor release of each major version that Charthold runs on, and when this was looked up.
LATEST = {15: 19, 16: 15, 17: 11, 18: 6}
LOOKED_UP = date(2026, 8, 15)
ENDS = {15: date(2027, 11, 11), 16: date(2028, 11, 9), 17: date(2029, 11, 8), 18: date(2030, 11, 14)}

SETTINGS = """select name, setting, source from pg_settings
where name in ('log_statement', 'log_min_duration_statement', 'log_min_duration_sample', 'log_transaction_sample_rate',
    'log_min_messages', 'log_min_error_statement', 'log_error_verbosity', 'log_parameter_max_length',
    'log_parameter_max_length_on_error', 'auto_explain.log_min_duration', 'pgaudit.log', 'pgaudit.log_parameter')"""

# Settings that a role or a database has for itself; a new session of that role may log what ours does not.
FOR_OTHERS = (
    "log_statement",
    "log_min_duration_statement",
    "log_min_duration_sample",
    "log_transaction_sample_rate",
    "log_parameter_max_length_on_error",
    "log_min_messages",
)
# Of log_min_messages: from here on each statement that is parsed is a message.
VERBOSE = ("debug", "debug2", "debug3", "debug4", "debug5")


@check("164.308(a)(5)(ii)(B)")
async def server_version(live: Live, notes: Notes) -> None:
    """A minor release mends bugs that lose data or let people in."""
    number = await live.connection.fetchval("select current_setting('server_version_num')::int")
    judge_version(number, date.today(), notes)  # noqa: DTZ011 -- a day is exact enough


def judge_version(number: int, today: date, notes: Notes) -> None:
    """``number`` as the server gives it: 180006 is 18.6."""
    major, minor = divmod(number, 10_000)
    latest = LATEST.get(major)
    mend = "Install the newest minor release and restart; nothing is to be converted."
    if latest is None and major < min(LATEST):
        notes.fail(f"PostgreSQL {major} is older than Charthold needs.", mend="Upgrade to a supported major version.")
    elif today > ENDS.get(major, today):
        notes.warn(f"PostgreSQL {major} gets no more fixes.", mend="Upgrade to a supported major version.")
    elif latest is not None and minor < latest:
        notes.warn(f"PostgreSQL {major}.{minor} is behind {major}.{latest}.", mend=mend)
    newest = (
        f"the newest minor release known on {LOOKED_UP} was {major}.{latest}" if latest else "unknown to this version"
    )
    notes.end(f"PostgreSQL {major}.{minor}; {newest}.")


# What a session may begin with, and what it then does without.
WEAKENING = {
    "session_replication_role": ("origin", "no trigger runs, so nothing is recorded and no reference is checked"),
    "row_security": ("on", "queries that policies would narrow fail"),
    "fsync": ("on", "a crash may lose or spoil what was committed"),
    "full_page_writes": ("on", "a crash may leave torn pages"),
    "ignore_checksum_failure": ("off", "spoilt pages are read as if they were whole"),
    "password_encryption": ("scram-sha-256", "new passwords are kept as hashes that are easily broken"),
}

# Whatever the application's roles begin with.
SET_FOR = """select pg_get_userbyid(setrole)::text as role, setdatabase <> 0 as here,
    split_part(c, '=', 1) as name, substr(c, strpos(c, '=') + 1) as setting
from pg_db_role_setting, unnest(setconfig) as c
where setdatabase in (0, (select oid from pg_database where datname = current_database()))
    and setrole <> 0 and pg_get_userbyid(setrole) = any($1) order by 1, 3"""

SET_SOMEWHERE = """select coalesce(pg_get_userbyid(nullif(setrole, 0)), '') as role, setdatabase <> 0 as here,
    split_part(c, '=', 1) as name, substr(c, strpos(c, '=') + 1) as setting
from pg_db_role_setting, unnest(setconfig) as c
where setdatabase in (0, (select oid from pg_database where datname = current_database()))
    and split_part(c, '=', 1) = any($1)"""


@check("164.312(c)(1)")
async def server_settings(live: Live, notes: Notes) -> None:
    """Threat: a setting of the server, the database or a login takes the ground from under triggers or the disk."""
    # The embedded server has these on its command line.
    names = [name for name in WEAKENING if not (live.settings.embedded and name in ("fsync", "full_page_writes"))]
    # Of the server's file: this connection has values of its own.
    for row in await live.connection.fetch(
        "select name, coalesce(reset_val, setting) as setting, source from pg_settings where name = any($1)", names
    ):
        good, what = WEAKENING[row["name"]]
        if row["setting"] != good and row["source"] in ("configuration file", "command line", "environment variable"):
            notes.fail(
                f"{row['name']} is {row['setting']}: {what}.",
                subject=f"setting {row['name']}",
                sql=f"alter system reset {row['name']};\nselect pg_reload_conf();",
            )
    for row in await live.connection.fetch(SET_SOMEWHERE, names):
        good, what = WEAKENING[row["name"]]
        if row["setting"] == good:
            continue
        whose = f"Sessions of {row['role']}" if row["role"] else "Sessions of this database"
        notes.fail(
            f"{whose} have {row['name']} = {row['setting']}: {what}.",
            subject=f"setting {row['name']} of {row['role'] or 'the database'}",
            sql=reset(live, row["name"], row["role"], here=row["here"]),
        )
    await _of_the_application(live, notes)
    encoding = await live.connection.fetchval("select current_setting('server_encoding')")
    if encoding != "UTF8":
        notes.fail(
            f"The database's encoding is {encoding}: a record with a character that is not in it cannot be sealed.",
            subject="setting server_encoding",
            mend="Dump it, and restore it into a database that is made with template0 and encoding 'UTF8'.",
        )
    disk = ", and what is committed is on the disk" if "fsync" in names else ""
    notes.seen(f"No setting keeps triggers from running{disk}.")


async def _of_the_application(live: Live, notes: Notes) -> None:
    """Threat: whoever runs SQL as the application can change its login's defaults, and so stop every later session."""
    whose = {name for name in (live.runtime, live.login) if name not in (None, live.owner)}
    told = (*WEAKENING, *FOR_OTHERS)
    for row in await live.connection.fetch(SET_FOR, list(whose)):
        if row["name"] not in told:
            notes.warn(
                f"Sessions of {row['role']} begin with {row['name']} = {row['setting']}; whoever runs SQL as it can "
                "set that.",
                subject=f"setting {row['name']} of {row['role']}",
                mend="Unless you have set it:",
                sql=reset(live, row["name"], row["role"], here=row["here"]),
            )


def reset(live: Live, name: str, role: str, *, here: bool) -> str:
    """What takes a default of a role, of this database, or of a role in this database, back."""
    database = quote_ident(live.database)
    if not role:
        return f"alter database {database} reset {name};" if here else f"alter role all reset {name};"
    return f"alter role {quote_ident(role)}{f' in database {database}' if here else ''} reset {name};"


@check("164.312(a)(2)(iv)")
async def statement_logging(live: Live, notes: Notes) -> None:
    """Threat: the server's own log, in plaintext: statements, parameters (a scope's token is one), rows in errors."""
    rows = await live.connection.fetch(SETTINGS)
    found = {row["name"]: row["setting"] for row in rows}
    source = {row["name"]: row["source"] for row in rows}

    def mend(name: str, value: str) -> str:
        if source.get(name) in ("database", "global"):
            return reset(live, name, "", here=source[name] == "database")
        if source.get(name) in ("user", "database user"):
            return reset(live, name, live.owner, here=source[name] != "user")
        return f"alter system set {name} = '{value}';\nselect pg_reload_conf();"

    def off(name: str) -> bool:
        return found.get(name, "0") in ("0", "none", "")

    if found.get("log_statement") not in ("none", "ddl"):
        notes.fail(
            f"log_statement is {found.get('log_statement')}: the server writes statements, with what stands in them.",
            subject="setting log_statement",
            sql=mend("log_statement", "none"),
        )
    for name, harmless in (
        ("log_min_duration_statement", "-1"),
        ("log_min_duration_sample", "-1"),
        ("auto_explain.log_min_duration", "-1"),
    ):
        if found.get(name, "-1") != "-1":
            notes.fail(
                f"{name} is {found[name]}: slow statements are written, with what stands in them and with their "
                "parameters.",
                subject=f"setting {name}",
                sql=mend(name, harmless),
            )
    if not off("log_transaction_sample_rate"):
        notes.fail(
            "log_transaction_sample_rate is set: the server writes all statements of some transactions.",
            subject="setting log_transaction_sample_rate",
            sql=mend("log_transaction_sample_rate", "0"),
        )
    if not off("log_parameter_max_length_on_error"):
        notes.fail(
            "log_parameter_max_length_on_error is not 0: a failing statement is written with its parameters.",
            subject="setting log_parameter_max_length_on_error",
            sql=mend("log_parameter_max_length_on_error", "0"),
        )
    if found.get("log_min_messages") in VERBOSE:
        notes.fail(
            f"log_min_messages is {found['log_min_messages']}: the server writes statements, with what stands in them.",
            subject="setting log_min_messages",
            sql=mend("log_min_messages", "warning"),
        )
    if not off("pgaudit.log") and found.get("pgaudit.log_parameter") == "on":
        notes.fail(
            "pgaudit writes parameters.",
            subject="setting pgaudit.log_parameter",
            sql=mend("pgaudit.log_parameter", "off"),
        )
    failed = {finding.subject.removeprefix("setting ") for finding in notes.findings}
    for row in await live.connection.fetch(SET_SOMEWHERE, FOR_OTHERS):
        # Of a duration -1 is none, and 0 is each; of a length -1 is the whole.
        none = ("none", "ddl", "-1" if "duration" in row["name"] else "0")
        quiet = row["setting"] not in VERBOSE if row["name"] == "log_min_messages" else row["setting"] in none
        # This connection has what is set for everybody and for the owner, unless a setting of the owner's hides it.
        told = row["role"] in ("", live.owner) and row["name"] in failed
        if not quiet and not told:
            notes.fail(
                f"Sessions of {row['role'] or 'this database'} have {row['name']} = {row['setting']}.",
                subject=f"setting {row['name']} of {row['role'] or 'the database'}",
                sql=reset(live, row["name"], row["role"], here=row["here"]),
            )
    _errors(found, notes)
    notes.end("The server writes no statement, no parameter and no row into its log.")


def _errors(found: dict[str, Any], notes: Notes) -> None:
    if found.get("log_min_error_statement") not in ("fatal", "panic"):
        notes.warn(
            "A failing statement is written into the server's log, with constants that stand in it.",
            subject="setting log_min_error_statement",
            sql="alter system set log_min_error_statement = 'panic';\nselect pg_reload_conf();",
        )
    if found.get("log_error_verbosity") != "terse":
        notes.warn(
            "Errors are written with their details, which quote the row that was refused.",
            subject="setting log_error_verbosity",
            sql="alter system set log_error_verbosity = 'terse';\nselect pg_reload_conf();",
        )
