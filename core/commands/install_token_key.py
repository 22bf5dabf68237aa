"""``piccolo core install_token_key``: lets the database check the scopes that this configuration signs."""

from __future__ import annotations

import json as jsonlib

from core.commands.family import Failure, command, console
from core.engine import engine
from core.tokenkeys import install_token_key as install

__all__ = ["install_token_key"]

KEEP = -1


@command()
async def install_token_key(*, retire_after: int = KEEP, json: bool = False, quiet: bool = False) -> None:
    """Put the key that signs scopes where the database reads it.

    The key follows from CHARTHOLD_MASTER_KEY and CHARTHOLD_TOKEN_GENERATION: run this after a change of either, before
    the application restarts. Several keys are valid at once, so nobody is interrupted. ``forwards`` runs it too.

    Example: piccolo core install_token_key --retire_after=900

    :param retire_after:
        Seconds until other keys stop being valid; 0 at once. Left out, they stay valid.

    """
    if retire_after < KEEP:
        raise Failure("--retire_after takes a number of seconds, 0 or more.")
    new = await install(retire_others_after=None if retire_after == KEEP else retire_after)
    if json:
        print(jsonlib.dumps({"key": engine().token_key.id, "new": new}))
    elif not quiet:
        console().print(f"Token key {engine().token_key.id} {'is installed' if new else 'was there already'}.")
