"""Records of what was shown, written again when a rollback has taken them away: what was seen stays seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg

from core.crypto.derive import forgetful_later
from core.explain import explain

if TYPE_CHECKING:
    from core.engine import ChartholdEngine
    from core.pool import Link
    from core.scope import Scope
    from core.shown import Record

__all__ = ["record_after", "record_again", "record_late"]


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
    connection. Then they are written on another connection.
    """
    if not shown or scope is None:
        return
    if link.dirty or link.connection.is_closed():
        async with engine.spare() as other, other.connection.transaction():
            await record_again(engine, other, scope, shown)
    else:
        async with link.connection.transaction():
            await record_again(engine, link, scope, shown)


async def record_late(engine: ChartholdEngine, scope: Scope, records: Sequence[Record]) -> None:
    """Write records outside of every transaction, in the name of a user who may be locked."""
    async with engine.outside() as link, link.connection.transaction():
        await record_again(engine, link, scope, records)
