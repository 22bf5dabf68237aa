"""``piccolo core reindex``: hashes for rows that are older than a blind index, so that searches find them."""

from __future__ import annotations

from functools import partial
from typing import Any

from core.commands.bar import bar
from core.commands.family import command, console, errors
from core.commands.options import ALL
from core.commands.targets import check_master_key, chosen_tenants, tell
from core.rotation import reindex as reindex_rows

__all__ = ["reindex"]


@command(stopped="Stopped. Nothing is lost: the same command goes on from here.")
async def reindex(
    *,
    tenant: str = ALL,
    batch: int = 500,
    actor: str = "",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Fill blind indexes that were added to rows with values, or changed, while the application runs.

    Every process of the application must have the new declarations first: what an older one writes has old hashes.
    Rows that are right are left as they are, so it can be killed and run again. What is left as it is is reported.

    Examples: piccolo core reindex
              piccolo core reindex --tenant=lakeside

    :param tenant:
        A tenant's slug, or all.
    :param batch:
        How many rows are looked at in one transaction.

    """
    await check_master_key()
    chosen, problems = await chosen_tenants(tenant, actor)
    with bar("looking", show=not quiet) as report:
        outcomes = await reindex_rows(chosen, batch=batch, progress=report)
    return tell(outcomes, problems, tenant, partial(_print, quiet=quiet), {}, json=json)


def _print(results: list[dict[str, Any]], *, quiet: bool) -> None:
    for result in results:
        slug = result["slug"]
        if result["problem"]:
            errors().print(f"{slug}: {result['problem']}")
            continue
        for row in result["altered"]:
            errors().print(f"{slug}: {row} holds an envelope that no key opens, or a hash of nothing, and was left.")
        for row in result["held"]:
            errors().print(f"{slug}: {row} was held by somebody all the time, and was left. Run this again.")
        for twin in result["twins"]:
            errors().print(
                f"{slug}: {twin} has a value that another row has, where it is to be unique, and is not found by it. "
                "Mend one, and run this again."
            )
        if not quiet:
            rows = ", ".join(f"{count:,} of {table}" for table, count in result["rows"].items()) or "none"
            console().print(f"{slug}: rows indexed anew: {rows}.")
