"""``piccolo core rotate_keys``: new data keys or a new KEK, for one tenant or all, online; the end of old versions."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from core.commands.bar import bar
from core.commands.family import Failure, command, console, errors
from core.commands.options import ALL, confirmed
from core.commands.targets import check_master_key, chosen_tenants, say_what_remains, target_of, tell
from core.rotation import Target, rewrap, rotate, used_in_log
from core.rotation import retire as destroy
from core.rotation.data import TOGETHER, shortest_wait

__all__ = ["rotate_keys"]

FROM_THE_SETTINGS = -1.0
NONE = 0
NOTICED = 5.0  # seconds; a shorter rest nobody asks about


@command(stopped="Stopped. Nothing is lost: the same command goes on from here.")
async def rotate_keys(
    *,
    tenant: str = ALL,
    what: str = "data",
    batch: int = 500,
    wait: float = FROM_THE_SETTINGS,
    retire: int = NONE,
    confirm: str = "",
    actor: str = "",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Rotate a tenant's keys while the application runs. Killed at any point, the same command goes on from there.

    data: a new data key, and with it new encryption and index keys; every row is sealed and indexed anew. kek: every
    key is wrapped again under CHARTHOLD_MASTER_KEY; first give each process the new master key, and the old one in
    CHARTHOLD_RETIRED_MASTER_KEYS. Tenants and rows that are left as they are are reported.

    Examples: piccolo core rotate_keys --tenant=lakeside
              piccolo core rotate_keys --tenant=all --what=kek
              piccolo core rotate_keys --tenant=lakeside --retire=1

    :param tenant:
        A tenant's slug, or all.
    :param what:
        data or kek.
    :param batch:
        How many rows are sealed anew in one transaction.
    :param wait:
        Seconds until every process has loaded its keys again: at least the longest CHARTHOLD_KEY_CACHE_SECONDS of
        any of them. Left out: that of this process, and its CHARTHOLD_POOL_SECONDS.
    :param retire:
        Destroy this old version of the data key instead. Old values in the audit log that need it open no more.
    :param confirm:
        The slug again, for --retire where nobody can type it.

    """
    if what not in {"data", "kek"}:
        raise Failure("--what is data or kek.")
    if retire:
        if tenant == ALL or what != "data":
            raise Failure("--retire destroys one version of one tenant's data key: --tenant=SLUG --retire=VERSION.")
        return await _retire(await target_of(tenant, actor), retire, confirm, json=json, quiet=quiet)
    await check_master_key()
    chosen, problems = await chosen_tenants(tenant, actor)
    outcomes: Sequence[Any]
    with bar("looking", show=not quiet) as report:
        if what == "kek":
            outcomes, swept = await rewrap(chosen, progress=report)
        else:
            swept = True
            seconds = None if wait == FROM_THE_SETTINGS else float(wait)
            _say_that_it_rests(shortest_wait() if seconds is None else seconds, quiet=quiet)
            outcomes = await rotate(chosen, wait=seconds, batch=batch, progress=report)
    said = {"what": what, "swept": swept}
    return tell(outcomes, problems, tenant, partial(_print, swept=swept, quiet=quiet), said, json=json)


def _say_that_it_rests(seconds: float, *, quiet: bool) -> None:
    """Where no bar moves, a command that rests for minutes looks like one that hangs."""
    out = errors()
    if seconds >= NOTICED and not quiet and not out.is_interactive:
        out.print(
            f"Before and after the change of keys, of up to {TOGETHER} tenants at once, it rests for {seconds:,.0f} "
            "seconds, until each process of the application has loaded them; see CHARTHOLD_KEY_CACHE_SECONDS."
        )


async def _retire(target: Target, version: int, confirm: str, *, json: bool, quiet: bool) -> int:
    records = await used_in_log(target, version)
    confirmed(
        target.slug,
        confirm,
        f"Key version {version} of {target.slug} is destroyed for good: {records:,} records of its audit log keep who, "
        "when and which columns, and lose the old or new values that were sealed under it.",
    )
    with bar("destroying", show=not quiet):
        done = await destroy(target, version)
    if json:
        print(jsonlib.dumps({"tenant": target.slug, **asdict(done)}))
    elif not quiet:
        console().print(
            f"{target.slug}: version {version} is destroyed; {done.records:,} records of the log hold values that "
            "nothing opens any more. Backups from before hold the wrapped key."
        )
    if not done.swept:
        say_what_remains()
    return 0


def _print(results: list[dict[str, Any]], *, swept: bool, quiet: bool) -> None:
    out = console()
    for result in results:
        slug = result["slug"]
        if result["problem"]:
            errors().print(f"{slug}: {result['problem']}")
            continue
        for row in result.get("altered", ()):
            errors().print(
                f"{slug}: {row} holds an envelope that no key opens, and was left as it is. Its history tells who "
                "wrote it, and what it was."
            )
        if "versions" in result:
            if not quiet:
                out.print(f"{slug}: {result['versions']} keys were wrapped anew.")
        elif result["twins"]:
            for twin in result["twins"]:
                errors().print(
                    f"{slug}: {twin} has a value that another row holds under the new key, where it is to be unique. "
                    "Both open and are found. Mend one, and run this again: until then the old key stays in use."
                )
        elif not quiet:
            rows = ", ".join(f"{count:,} of {table}" for table, count in result["rows"].items()) or "none"
            again = ", begun by an earlier run" if result["resumed"] else ""
            old = ", ".join(map(str, result["retired"]))
            out.print(f"{slug}: version {result['version']}{again}; rows sealed anew: {rows}; retired: {old}.")
    if not swept:
        say_what_remains()
