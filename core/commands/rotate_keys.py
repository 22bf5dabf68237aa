"""``piccolo core rotate_keys``: new data keys or a new KEK, for one tenant or all, online; the end of old versions."""

from __future__ import annotations

import contextlib
import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.commands.family import SKIPPED, Failure, command, console, errors, resolve_actor, slug_of
from core.errors import ChartholdError
from core.provision import find_tenant
from core.rotation import Target, owner_connection, rewrap, rotate, targets, used_in_log
from core.rotation import retire as destroy
from core.rotation.owner import Progress as Report

__all__ = ["confirmed", "rotate_keys", "target_of"]

FROM_THE_SETTINGS = -1.0
NONE = 0


@command(stopped="Stopped. Nothing is lost: the same command goes on from here.")
async def rotate_keys(
    tenant: str = "",
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
    CHARTHOLD_RETIRED_MASTER_KEYS. Exit status: 0 done, 1 a mistake in the call, 2 it failed half-way, 3 some tenants or
    rows were left as they are and reported, 130 stopped with Ctrl-C.

    Examples: piccolo core rotate_keys --tenant=lakeside
              piccolo core rotate_keys --tenant=all --what=kek
              piccolo core rotate_keys --tenant=lakeside --retire=1

    :param tenant:
        The tenant's slug, or all.
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
    :param actor:
        In whose name, by e-mail or id; left out, the tenant's first admin.
    :param json:
        Print the result as JSON.
    :param quiet:
        Print nothing but problems.

    """
    if what not in {"data", "kek"}:
        raise Failure("--what is data or kek.")
    if not tenant:
        raise Failure("Name the tenant, --tenant=SLUG, or say --tenant=all.")
    if retire:
        if tenant == "all" or what != "data":
            raise Failure("--retire destroys one version of one tenant's data key: --tenant=SLUG --retire=VERSION.")
        return await _retire(await target_of(tenant, actor), retire, confirm, json=json, quiet=quiet)
    chosen, problems = await _chosen(tenant, actor)
    results: list[dict[str, Any]]
    with _bar(show=not (json or quiet)) as report:
        if what == "kek":
            rewrapped, swept = await rewrap(chosen, progress=report)
            results = [asdict(outcome) for outcome in rewrapped]
        else:
            swept = True
            seconds = None if wait == FROM_THE_SETTINGS else float(wait)
            outcomes = await rotate(chosen, wait=seconds, batch=batch, progress=report)
            results = [asdict(outcome) for outcome in outcomes]
    # Among all tenants, one without keys has nothing to rotate, and that is no mistake.
    results = [result for result in results if tenant != "all" or not result.get("shredded")] + problems
    if json:
        print(jsonlib.dumps({"what": what, "swept": swept, "tenants": results}))
    else:
        _print([r for r in results if tenant == "all" or not r["problem"]], swept=swept, quiet=quiet)
    failed = [result for result in results if result["problem"]]
    if failed and tenant != "all":
        raise Failure(failed[0]["problem"])
    return SKIPPED if failed or any(result.get("twins") for result in results) else 0


async def target_of(slug: str, actor: str) -> Target:
    """The tenant of that slug, whatever its status, and in whose name its keys are worked on."""
    found = await find_tenant(slug_of(slug))
    if found is None:
        raise Failure(f"There is no tenant {slug}.")
    return Target(found.tenant_id, slug, await resolve_actor(found.tenant_id, actor))


def confirmed(slug: str, given: str, what: str) -> None:
    """Have the slug typed, or raise: what follows cannot be undone."""
    if not given:
        if not sys.stdin.isatty():
            raise Failure(f"{what} Nobody can type the slug here; confirm with --confirm={slug}.")
        errors().print(f"{what} Type the slug to confirm:", end=" ")
        given = sys.stdin.readline().strip()
    if given != slug:
        raise Failure("That is not the slug. Nothing was done.")


async def _chosen(tenant: str, actor: str) -> tuple[list[Target], list[dict[str, Any]]]:
    if tenant != "all":
        return [await target_of(tenant, actor)], []
    if actor:
        raise Failure("--actor is a user of one tenant. Leave it out with --tenant=all.")
    chosen: list[Target] = []
    problems: list[dict[str, Any]] = []
    async with owner_connection() as connection:
        everybody = await targets(connection)
    for tenant_id, slug in everybody:
        try:
            chosen.append(Target(tenant_id, slug, await resolve_actor(tenant_id, "")))
        except ChartholdError as error:
            problems.append({"slug": slug, "problem": str(error)})
    return chosen, problems


async def _retire(target: Target, version: int, confirm: str, *, json: bool, quiet: bool) -> int:
    records = await used_in_log(target, version)
    confirmed(
        target.slug,
        confirm,
        f"Key version {version} of {target.slug} is destroyed for good: {records:,} records of its audit log keep who, "
        "when and which columns, and lose the old or new values that were sealed under it.",
    )
    done = await destroy(target, version)
    if json:
        print(jsonlib.dumps({"tenant": target.slug, **asdict(done)}))
    elif not quiet:
        console().print(
            f"{target.slug}: version {version} is destroyed; {done.records:,} records of the log hold values that "
            "nothing opens any more. Backups from before hold the wrapped key."
        )
    if not done.swept:
        errors().print("An older transaction still looks at tenant_key. Later, as the owner: VACUUM FULL tenant_key")
    return 0


@contextlib.contextmanager
def _bar(*, show: bool) -> Iterator[Report]:
    out = errors()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not (show and out.is_terminal),
    )
    task = bar.add_task("looking", total=1)

    def report(what: str, done: float, total: float) -> None:
        bar.update(task, description=what, completed=done, total=total)

    with bar:
        yield report


def _print(results: list[dict[str, Any]], *, swept: bool, quiet: bool) -> None:
    out = console()
    for result in results:
        slug = result["slug"]
        if result["problem"]:
            errors().print(f"{slug}: {result['problem']}")
        elif "versions" in result:
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
        errors().print("An older transaction still looks at tenant_key. Later, as the owner: VACUUM FULL tenant_key")
