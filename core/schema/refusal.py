"""What a migration cannot do is told in one sentence: not with a traceback, nor with the whole help of the command."""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from piccolo.apps.migrations.commands.base import MigrationResult

from core.errors import ChartholdError
from core.settings import settings
from core.statements.explain import GONE

__all__ = ["EXPLAINED", "one_sentence", "refused"]

LOST = "The connection to the database was lost. Steps that are told as ok stay; run the command again."
EXPLAINED = (ChartholdError, asyncpg.InsufficientPrivilegeError, *GONE)


def explained(error: Exception) -> str:
    """What to do about one of ``EXPLAINED``."""
    if isinstance(error, ChartholdError):
        return str(error)
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        named = settings().owner_named_by or "the embedded server"
        return f"Migrations are the owner's, and {named} names another: {error}. Set DATABASE_OWNER_URL to the owner."
    return LOST


def one_sentence(create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """For a mistake that its message explains, the command line would print the whole help as well."""

    @functools.wraps(create)
    async def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return await create(*arguments, **options)
        except EXPLAINED as error:
            sys.exit(explained(error))

    return wrapped


def refused(error: Exception) -> MigrationResult:
    """A mistake that can be explained: one sentence, and exit status 1."""
    message = explained(error)
    print(message, file=sys.stderr)
    return MigrationResult(success=False, message=message)
