"""A transaction pooler between us and the server: what it is to be told, and how we notice that it was not.

A pooler connects for us, and each transaction may meet another of its sessions. It drops the settings that we connect
with, so it has to set them itself.

Threat: whoever runs SQL leaves something in a session, a setting, a prepared statement, a temporary table, and the next
tenant's transaction meets it there. We close a connection on which somebody's SQL ran, but the pooler keeps the session
behind it; so it has to reset each session after each transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg

from core.errors import ConfigurationError

__all__ = ["MARK", "SEE", "configuration", "examine", "refused"]

# A setting that nothing reads, and that only we give a value: a session that shows it is the one that we began.
MARK = "charthold.session"
SEE = "Give it the lines that piccolo core pooler prints."

# What DISCARD ALL does, which cannot stand in one message with anything else.
RESET = (
    "close all; set session authorization default; reset all; deallocate all; unlisten *; "
    "select pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences"
)


def configuration(role: str, settings: Iterable[str]) -> dict[str, str]:
    """What ``pgbouncer.ini`` must say, by name; ``connect_query`` belongs to the line of the database.

    ``settings``: the names of those that our connections send. A text of PgBouncer's may have some 500 bytes.
    """
    begin = f"set role {role}; select charthold.begin_session()"
    return {
        "connect_query": begin,
        "pool_mode": "transaction",
        "max_prepared_statements": "200",
        "ignore_startup_parameters": ", ".join(("role", *settings, MARK)),
        "server_reset_query": f"{RESET}; {begin}",
        "server_reset_query_always": "1",
    }


def refused(named_by: str | None, said: str, *, owner: bool) -> str:
    """What to say when something took the connection and not what it is to begin with."""
    return f"What answers at {named_by} is not PostgreSQL itself, or one too old: {said}. " + (
        "Name the server itself in DATABASE_OWNER_URL." if owner else f"If it is a pooler: {SEE}"
    )


async def examine(connection: asyncpg.Connection[Any], wanted: Mapping[str, str], *, bound: bool) -> None:
    """Raise ``ConfigurationError`` unless a pooler's sessions begin as ``wanted``, and keep nothing.

    ``bound``: whether tokens name a backend, which they cannot when there are many.
    """
    if bound:
        raise ConfigurationError(
            "A connection pooler stands before the database. Name the server itself in DATABASE_URL: the application "
            "has a pool of its own. Or set CHARTHOLD_BIND_BACKEND=off and see piccolo core pooler."
        )
    found = await connection.fetch(
        "select name, pg_catalog.current_setting(name, true) as setting from unnest($1::text[]) as name", list(wanted)
    )
    for name, setting in found:
        if (setting or "") != wanted[name]:
            raise ConfigurationError(f"The pooler's sessions have {name} = {setting}, not {wanted[name]}. {SEE}")
    # It may answer from another session, so this can miss what is wrong; what it finds is wrong.
    trace = secrets.token_hex(8)
    await connection.fetchval("select pg_catalog.set_config($1, $2, false)", MARK, trace)
    if await connection.fetchval("select pg_catalog.current_setting($1, true)", MARK) == trace:
        raise ConfigurationError(
            f"The pooler leaves its sessions as the last transaction left them, a trap in one for the next. {SEE}"
        )
