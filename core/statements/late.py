"""Records of what was shown, written again when a rollback has taken them away: what was seen stays seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import asyncpg

from core.crypto.derive import forgetful_later
from core.errors import ConfigurationError
from core.statements.explain import explain
from core.wire.pool import LOST

if TYPE_CHECKING:
    from core.engine import ChartholdEngine
    from core.scope import Scope
    from core.statements.shown import Record
    from core.wire.pool import Link

__all__ = ["record_after", "record_again", "record_late"]

# What passes: the server ends sessions, or takes no other for now.
PASSES = (
    *LOST,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    ConfigurationError,
)
PATIENCE = 10.0  # seconds for which what was shown waits for a connection to be recorded on


@forgetful_later
async def record_again(engine: ChartholdEngine, link: Link, scope: Scope, shown: Sequence[Record]) -> None:
    """Write the records again, in the link's transaction, for the scope's user, even if the scope has ended."""
    token = scope.last_token(engine.token_key, link.backend)
    try:
        for record in shown:
            await record.write_late(link, token)
    except asyncpg.PostgresError as error:
        raise explain(error) from None


async def record_after(engine: ChartholdEngine, link: Link, scope: Scope | None, shown: Sequence[Record]) -> None:
    """Write the records again, after the link's transaction was rolled back.

    Threat: SQL that a person wrote in it took the names that the driver gives to its statements, or broke the
    connection. Then they are written on another connection. The server may end that one too, or restart: then on a new
    one, for as long as a rollback may last. What was written by then may stand there twice, which harms nobody.
    """
    if not shown or scope is None:
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE
    for way in _ways(engine, link):
        try:
            async with way as here, here.connection.transaction():
                await record_again(engine, here, scope, shown)
            break
        except PASSES:
            if loop.time() > until:
                raise
            link.dirty = True
        await asyncio.sleep(0.05)


def _ways(engine: ChartholdEngine, link: Link) -> Iterator[contextlib.AbstractAsyncContextManager[Link]]:
    if not link.dirty and not link.connection.is_closed():
        yield contextlib.nullcontext(link)
    yield engine.spare()
    while True:
        yield engine.spare(fresh=True)


async def record_late(engine: ChartholdEngine, scope: Scope, records: Sequence[Record]) -> None:
    """Write records outside of every transaction, in the name of a user who may be locked."""
    async with engine.outside() as link, link.connection.transaction():
        await record_again(engine, link, scope, records)
