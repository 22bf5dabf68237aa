"""``piccolo core shred_tenant``: asks for a tenant's keys to be destroyed, and after the waiting period does it."""

from __future__ import annotations

import json as jsonlib
from datetime import UTC, datetime
from typing import Any

from core.commands.bar import bar
from core.commands.family import command, console
from core.commands.options import confirmed
from core.commands.targets import say_what_remains, target_of
from core.shredding import cancel as withdraw
from core.shredding import due, request, shred

__all__ = ["shred_tenant"]


@command(stopped="Stopped. Run the command again to see how far it came.")
async def shred_tenant(
    tenant: str,
    *,
    cancel: bool = False,
    confirm: str = "",
    actor: str = "",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Destroy a tenant's keys, so that nothing of its PHI opens again, in tables, log or backups taken later.

    The first run asks for it; from CHARTHOLD_SHRED_DAYS later on the same command does it. Until then everything works,
    and --cancel withdraws the request. The slug must be typed each time. Backups taken before hold the wrapped keys:
    destroy those, or change the master key (rotate_keys --tenant=all --what=kek) and destroy the old one.

    Example: piccolo core shred_tenant --tenant=lakeside

    :param cancel:
        Withdraw the request.
    :param confirm:
        The slug again, where nobody can type it.

    """
    target = await target_of(tenant, actor)

    def say(sentence: str, **result: Any) -> None:
        if json:
            print(jsonlib.dumps({"tenant": tenant, **result}, default=str))
        elif not quiet:
            console().print(sentence)

    if cancel:
        await withdraw(target)
        say(f"The keys of {tenant} stay.", step="withdrawn")
        return
    when = await due(target)
    if when is None:
        confirmed(tenant, confirm, f"This asks for the keys of {tenant} to be destroyed, and with them all of its PHI.")
        when = await request(target)
        if when > datetime.now(UTC):
            say(
                f"Asked. From {when:%Y-%m-%d %H:%M} UTC on the same command destroys the keys of {tenant}; "
                "--cancel withdraws the request.",
                step="requested",
                not_before=when,
            )
            return
    elif when <= datetime.now(UTC):
        confirmed(tenant, confirm, f"This destroys the keys of {tenant}, and with them all of its PHI, for good.")
    with bar("destroying", show=not quiet):
        done = await shred(target)
    say(
        f"The keys of {tenant} are destroyed and the tenant is closed. Running processes forget them within "
        "CHARTHOLD_KEY_CACHE_SECONDS; restart those that must forget at once. WAL and backups from before still hold "
        "the wrapped keys: let them expire, or destroy the master key that wraps them.",
        step="destroyed",
        versions=done.versions,
        swept=done.swept,
    )
    if not done.swept:
        say_what_remains()
