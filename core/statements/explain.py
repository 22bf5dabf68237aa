"""What PostgreSQL said, without the values that it said it with.

Threat: constraint violations print the row in DETAIL, and type errors print the value in the message. Both end in logs.
The class, the SQLSTATE, the table, the column and the constraint stay; whatever could be a value goes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import asyncpg

from core.errors import ChartholdError, ConfigurationError, ProtectedQueryError, ScopeError, UnreachableError
from core.wire.pooler import SEE

__all__ = ["GONE", "explain", "lost", "refusal", "tells"]

# How the driver begins when it cannot encode an argument; the value follows.
UNFIT = re.compile(r"invalid input for query argument \$(\d+):")

# Where an INSERT of ours names its columns and their values: an array a column, or one row.
ARRAYS = re.compile(r"FROM unnest\((?P<values>.*?)\) AS u\((?P<names>.*?)\)")
ROW = re.compile(r"INSERT INTO \S+ \((?P<names>.*?)\) SELECT (?P<values>.*)")

# What charthold.scope() and its sisters raise, and what to do about it.
OURS: dict[str, tuple[type[ChartholdError], str]] = {
    "CH001": (
        ScopeError,
        "No scope reached the database. Write: async with scope(tenant=..., actor=..., reason=...): ...",
    ),
    "CH002": (
        ScopeError,
        (
            "The database knows no key that signed this scope: CHARTHOLD_MASTER_KEY or CHARTHOLD_TOKEN_GENERATION is "
            "another than it was. Set it as it was; after a change that is meant, run as the owner: "
            "piccolo core install_token_key"
        ),
    ),
    "CH003": (
        ScopeError,
        "The scope has expired. Open a new one. If that has expired too, this machine's clock is behind the server's.",
    ),
    "CH004": (
        ScopeError,
        "The scope belongs to another connection. Behind a transaction pooler set CHARTHOLD_BIND_BACKEND=off.",
    ),
    "CH005": (
        ScopeError,
        "The actor is not an active user of this tenant, is locked_until later, or the tenant is suspended or closed.",
    ),
    "CH006": (
        ScopeError,
        "The actor, or the key of the scope, was changed since this statement or transaction began. Begin it anew.",
    ),
    "CH007": (
        ConfigurationError,
        "CHARTHOLD_MASTER_KEY is not the one that the database knows. Set it, or run: piccolo core install_token_key",
    ),
    "CH010": (
        ProtectedQueryError,
        "id, tenant_id and created_at of a row cannot be updated. Insert a new row instead.",
    ),
    "CH011": (
        ProtectedQueryError,
        "An audited table cannot be truncated. Delete its rows instead; each leaves a record.",
    ),
    "CH012": (ProtectedQueryError, "The audit log is append-only. A further record puts right what is wrong."),
    "CH013": (ScopeError, "A tenant is provisioned outside of every scope. Leave the scope first."),
    "CH014": (
        ProtectedQueryError,
        "The database alone records changes, reads and emergencies. core.record() takes the other kinds.",
    ),
    "CH016": (
        ProtectedQueryError,
        "A blind index is written with the value that it is made of. Update the encrypted column, not its index.",
    ),
    "CH017": (
        ProtectedQueryError,
        "A time lies in the years 1 to 9999, a blind index has the length of its hashes, no number has 100,000 digits.",
    ),
    "CH025": (
        ProtectedQueryError,
        (
            "The change does not fit into one record of the log: 64 MB as text, and no numbers of a hundred thousand "
            "digits. Change fewer columns at a time; before a row is deleted that grew beyond that, empty its largest "
            "columns."
        ),
    ),
    "CH018": (
        ProtectedQueryError,
        "You see the whole tenant, so there is no glass to break. Open the chart; the reading is recorded.",
    ),
    "CH019": (ProtectedQueryError, "An emergency lasts 1 to 240 minutes."),
    "CH008": (ScopeError, "The emergency has ended. Declare another if it lasts: break_glass()."),
    "CH009": (ScopeError, "One statement is one user's. Let each run statements of their own."),
    "CH023": (ScopeError, "The tenant has no such user."),
    "CH015": (
        ScopeError,
        "The row belongs to another tenant than the scope. Change each tenant's rows in a scope of its own.",
    ),
}
DENIED, NOT_SHOWN, SYNTAX, NO_STATEMENT = "42501", "CH024", "42601", "26000"
# What is said before the first row is looked for, or of the scope alone.
BEFORE_ROWS = frozenset((*(f"CH00{n}" for n in range(1, 10)), "CH023", NOT_SHOWN, SYNTAX, NO_STATEMENT))
# What PostgreSQL itself says of a document, or a text in it, that is too long to be made.
TOO_LONG = "54000"
# Messages of these classes name objects, never values.
NAMES_ONLY = ("23", "40", "42", "25", "53", "55", "57", "08", "0A", "28", "3D", "3F")


# What only an operator can do something about.
OPERATORS = {
    "25006": "The server is read-only, as a standby is. Name the primary in DATABASE_URL and DATABASE_OWNER_URL.",
    "53100": "The disk of the database server is full. What was committed stays; make room there, and run it again.",
    "53300": "The server has no connection left. Close some, raise its max_connections, or lower CHARTHOLD_POOL_SIZE.",
}


# The server ends the session, or does not take another now: it is stopped, or starts, or another process of it crashed.
GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # it ended the idle session a moment ago, and the driver has not seen the socket close
    ConnectionError,
    UnreachableError,
)


def lost(error: Exception) -> bool:
    """Whether the database is out of reach, and with it all that would come next."""
    return isinstance(error, GONE)


def refusal(error: asyncpg.PostgresError) -> str:
    """What a command says of an error of PostgreSQL that nothing else explains."""
    state = getattr(error, "sqlstate", None) or ""
    named = getattr(error, "constraint_name", None) or type(error).__name__
    return OPERATORS.get(state, f"The database refused: {named} (SQLSTATE {state}).")


def _column(sql: str, place: str) -> str:
    """The column that the argument is written to or compared with, as far as the SQL says, and its place."""
    if compared := re.search(rf'"(\w+)" [^\w"$,()]*(?:[A-Z]+ )*\${place}\b', sql):
        return f'"{compared[1]}", ${place}'
    if inserted := ARRAYS.search(sql) or ROW.search(sql):
        names, values = inserted["names"].split(", "), inserted["values"].split(", ")
        # More where a value is computed of several.
        for name, value in zip(names, values, strict=True) if len(names) == len(values) else ():
            if re.match(rf"\${place}\b", value):
                return f"{name}, ${place}"
    return f"${place}"


def tells(error: Exception) -> bool:
    """Whether an error may be of a row that a statement found, so that it tells that there is one."""
    state = getattr(error, "sqlstate", None)
    sent = not isinstance(error, asyncpg.DataError) or getattr(error, "severity", None) is not None
    return state is not None and state not in BEFORE_ROWS and sent and not lost(error)


def _asked(error: asyncpg.PostgresError) -> str:
    """What the check that refused asks of a row, as its table declares it: its name alone helps nobody."""
    from core import registered, schema  # late: the tables need an engine

    declared = [item for table in registered.tables() for item in getattr(table, "declares", ())]
    checks = [item for item in declared if isinstance(item, schema.Check) and item.name == error.constraint_name]
    return f", which asks for: {checks[0].condition}" if len(checks) == 1 else ""


def explain(error: asyncpg.PostgresError, arguments: Sequence[Any] = (), sql: str = "") -> Exception:
    """The error to raise instead: ours with a remedy, or PostgreSQL's own with every value taken out.

    ``arguments`` and ``sql``: those of the statement, of which one may be named by its column, its type and its place.
    """
    explained = _explained(error, arguments, sql)
    if isinstance(explained, ChartholdError):
        explained.sqlstate = error.sqlstate
    return explained


def _explained(error: asyncpg.PostgresError, arguments: Sequence[Any], sql: str) -> Exception:
    state = getattr(error, "sqlstate", None) or ""
    if state == TOO_LONG and "charthold.capture_" in (getattr(error, "context", None) or ""):
        state = "CH025"
    if state in OURS:
        kind, remedy = OURS[state]
        return kind(remedy)
    said = error.args[0] if error.args else state
    if state == NOT_SHOWN:
        return ScopeError(
            f"The scope's role is not shown what was asked for ({said}), nor told who has it. Select the columns that "
            "it needs; shown_to on the table's class says which."
        )
    if state == DENIED and "permission denied" not in said:
        return ScopeError(
            f"The scope's role may not do that: {said}. The permission matrix is core/access/permissions.py."
        )
    if state == DENIED:
        return ScopeError(
            f"The application's role may not do that: {said}. What may be done with a table of tenants its permissions "
            'say; any other is for the application when its schema_objects hold Grant(privileges=("select",), '
            'to="app_runtime"); see docs/applications.md.'
        )
    if state == NO_STATEMENT:
        return ConfigurationError(f"A prepared statement is gone. If a pooler stands before the database: {SEE}")
    for attribute in ("detail", "context", "internal_query", "query", "hint"):
        if hasattr(error, attribute):
            setattr(error, attribute, None)
    # A client-side DataError carries the class's SQLSTATE but no severity: it was never sent.
    if state == SYNTAX and said.startswith("cannot insert multiple commands"):
        error.args = ("One statement at a time. Run several in turn; inside of transaction() all or none are kept.",)
    elif state == SYNTAX:
        # It quotes the place: a name with an apostrophe that somebody put into the text, and did not bind.
        error.args = (f"PostgreSQL cannot read the SQL (SQLSTATE {state}). Values belong into its arguments, {{}}.",)
    elif not state.startswith(NAMES_ONLY):
        place = UNFIT.match(said)
        which = f" of type {type(arguments[int(place[1]) - 1]).__name__}," if place and arguments else ""
        which += f" for {_column(sql, place[1])}," if which and place else ""
        error.args = (f"A value{which} does not fit its column or its operation (SQLSTATE {state or '22000'}).",)
    elif isinstance(error, asyncpg.CheckViolationError):
        error.args = (f"{said}{_asked(error)}",)
    error.message = error.args[0] if error.args else state  # another copy of the text
    return error
