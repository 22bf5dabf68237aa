"""``piccolo core partitions``: the audit log's months, made ahead of time."""

from __future__ import annotations

import json as jsonlib

from core.commands.family import Failure, command, console
from core.provision import make_partitions

__all__ = ["partitions"]

MOST = 120


@command()
async def partitions(ahead: int = 3, json: bool = False, quiet: bool = False) -> None:
    """Make the audit log's partitions for this month and the months ahead. Safe to run from cron, as often as you like.

    Example: piccolo core partitions --ahead=6

    :param ahead:
        How many months after this one, 0 to 120.
    :param json:
        Print the names of the new partitions as JSON.
    :param quiet:
        Print nothing.

    """
    if not 0 <= ahead <= MOST:
        raise Failure("--ahead takes a number of months from 0 to 120.")
    made = await make_partitions(ahead)
    if json:
        print(jsonlib.dumps({"made": made}))
    elif not quiet:
        console().print("\n".join(f"made {name}" for name in made) or "Every month asked for has its partition.")
