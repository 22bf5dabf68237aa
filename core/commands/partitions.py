"""``piccolo core partitions``: the audit log's months, made ahead of time."""

from __future__ import annotations

import json as jsonlib
import re

from core.audit.partitions import archive_partition, make_partitions
from core.commands.bar import bar
from core.commands.family import Failure, command, console

__all__ = ["partitions"]

MOST = 120


@command()
async def partitions(*, ahead: int = 3, archive: str = "", json: bool = False, quiet: bool = False) -> None:
    """Make the audit log's partitions for this month and the months ahead. Safe to run from cron, as often as you like.

    Example: piccolo core partitions --ahead=6

    :param ahead:
        How many months after this one, 0 to 120.
    :param archive:
        Detach this month instead, as 2019-03, to be dumped and kept elsewhere. Only a month older than the longest
        retention of the tenants in it, and only a sealed one.

    """
    if not 0 <= ahead <= MOST:
        raise Failure("--ahead takes a number of months from 0 to 120.")
    if archive:
        if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", archive):
            raise Failure("--archive takes a month, as 2019-03.")
        part = f"user_action_audit_log_{archive.replace('-', '_')}"
        with bar("detaching", show=not quiet):
            kept = await archive_partition(part)
        if json:
            print(jsonlib.dumps({"detached": part, "records": kept}))
        elif not quiet:
            console().print(f"Detached {part} with {kept} records. Dump it with pg_dump, check the dump, then drop it.")
        return
    with bar("making partitions", show=not quiet):
        made = await make_partitions(ahead)
    if json:
        print(jsonlib.dumps({"made": made}))
    elif not quiet:
        console().print("\n".join(f"made {name}" for name in made) or "Every month asked for has its partition.")
