"""The application: what it connects to is the database that is looked at, and as whom."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.engine import engine
from core.errors import ConfigurationError

__all__: list[str] = []

SECONDS = 10  # for one connection

HERE = """select current_database()::text as database, session_user::text as login, pg_is_in_recovery() as standby,
    (select system_identifier from pg_control_system()) as server"""


@check("164.312(a)(1)")
async def application(live: Live, notes: Notes) -> None:
    """Threat: evidence about a database that the application does not use."""
    named = live.settings.named_by or "the embedded server's login"
    mend = f"Set {named} to a login for this database, and run this where the application runs."
    try:
        async with asyncio.timeout(SECONDS):
            there = await _asked()
    except TimeoutError:
        notes.fail(f"{named} leads to a server that did not answer in {SECONDS} s.", subject="application", mend=mend)
        return
    except (ConfigurationError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        told = isinstance(error, ConfigurationError)  # which says itself what to do
        why = str(error) if told else f"{type(error).__name__}."
        notes.fail(f"The application cannot connect: {why}", subject="application", mend="" if told else mend)
        return
    here = await live.connection.fetchrow(HERE)
    assert here is not None
    if (there["server"], there["database"]) != (here["server"], here["database"]):
        other = "of another server" if there["server"] != here["server"] else "of this server"
        notes.fail(
            f"{named} leads to the database {there['database']} {other}, and what was looked at is "
            f"{here['database']}: nothing here is evidence of what the application does.",
            subject="application",
            mend=mend,
        )
    elif there["standby"] != here["standby"]:
        notes.fail(f"{named} leads to a standby: nothing can be written there.", subject="application", mend=mend)
    elif there["login"] == here["login"] != live.login and not live.settings.embedded:
        notes.warn(
            f"The application and the migrations are both {there['login']} to the server, whatever their URLs say.",
            subject="application",
            mend="Let the pooler log the application in as itself.",
        )
    notes.seen(f"Connected once as the application: the login {there['login']}, acting as {live.runtime}, here.")


async def _asked() -> Any:
    connection = await engine().connect(owner=False)
    try:
        return await connection.fetchrow(HERE)
    finally:
        connection.terminate()
