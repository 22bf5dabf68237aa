"""The tenants that key work is done to, one or all, and what became of each."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from core.commands.family import SKIPPED, Failure, errors
from core.commands.options import ALL, by_slug, existing_tenant, resolve_actor
from core.engine import engine
from core.errors import ChartholdError, ConfigurationError
from core.rotation import Target, owner_connection
from core.rotation.owner import REMAINS

__all__ = ["check_master_key", "chosen_tenants", "say_what_remains", "target_of", "tell"]

# What a command leaves as it is, and reports.
LEFT = ("twins", "altered", "held")


async def target_of(slug: str, actor: str) -> Target:
    """The tenant of that slug, whatever its status, and in whose name its keys are worked on."""
    found = await existing_tenant(slug)
    return Target(found.tenant_id, slug, await resolve_actor(found.tenant_id, actor))


async def chosen_tenants(tenant: str, actor: str) -> tuple[list[Target], list[dict[str, Any]]]:
    """The tenants that a command works on, and why it cannot work on others."""
    chosen: list[Target] = []
    problems: list[dict[str, Any]] = []
    for slug, tenant_id in (await by_slug(tenant, actor)).items():
        try:
            chosen.append(Target(tenant_id, slug, await resolve_actor(tenant_id, actor)))
        except ChartholdError as error:
            if tenant != ALL:
                raise
            problems.append({"slug": slug, "problem": str(error)})
    return chosen, problems


async def check_master_key() -> None:
    """Threat: a key that is wrapped under a master key which the application does not have shuts the tenant out."""
    ours = engine().token_key.id  # follows from the master key, and the application's was installed
    async with owner_connection() as connection:
        known = await connection.fetchval(
            "select exists (select from charthold.token_key where id = $1"
            " and (retired_at is null or retired_at > now()))",
            ours,
        )
    if not known:
        raise ConfigurationError(
            "CHARTHOLD_MASTER_KEY is not the one that the database knows, so no key was touched. Set the one that the "
            "application has; if it was changed on purpose, run first: piccolo core install_token_key"
        )


def tell(
    outcomes: Iterable[Any],
    problems: list[dict[str, Any]],
    tenant: str,
    show: Callable[[list[dict[str, Any]]], None],
    said: Mapping[str, Any],
    *,
    json: bool,
) -> int:
    """Tell what became of each tenant, and return the command's status."""
    # Among all tenants, one without keys leaves nothing to do, and that is no mistake.
    found = map(asdict, outcomes)
    results = [result for result in found if tenant != ALL or not result.get("shredded")] + problems
    if json:
        print(jsonlib.dumps({**said, "tenants": results}))
    else:
        show([result for result in results if tenant == ALL or not result["problem"]])
    failed = [result for result in results if result["problem"]]
    if failed and tenant != ALL:
        raise Failure(failed[0]["problem"])
    return SKIPPED if failed or any(result.get(what) for result in results for what in LEFT) else 0


def say_what_remains() -> None:
    """Where an older transaction kept ``sweep`` from its work."""
    errors().print(REMAINS)
