"""What ``--tenant``, ``--actor`` and a typed confirmation mean, the same in every command."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import cast
from uuid import UUID

import asyncpg

from core.commands.family import Failure, errors
from core.errors import ConfigurationError
from core.provision import FoundTenant, find_admin, find_tenant, list_tenants
from core.scope import scope
from core.tables import User

__all__ = [
    "ALL",
    "by_slug",
    "confirmed",
    "existing_tenant",
    "interruptible",
    "known_tenants",
    "reason_for",
    "resolve_actor",
    "slug_of",
    "unknown_tenant",
]

ALL = "all"
SLUG = re.compile(r"[a-z][a-z0-9-]{1,62}")
MOST = 10  # tenants that a sentence names


def slug_of(tenant: str) -> str:
    """The ``--tenant`` argument where it names one tenant, checked."""
    if tenant == ALL:
        raise Failure("This is done to one tenant at a time. Name it, as in --tenant=lakeside.")
    if not SLUG.fullmatch(tenant):
        raise Failure(
            "--tenant takes a slug: 2 to 63 small letters, digits and hyphens, a letter first, as in --tenant=lakeside."
        )
    return tenant


async def existing_tenant(tenant: str) -> FoundTenant:
    """The tenant of that slug, whatever its status."""
    found = await find_tenant(slug_of(tenant))
    if found is None:
        raise await unknown_tenant(tenant)
    return found


async def by_slug(tenant: str, actor: str) -> dict[str, UUID]:
    """The tenant of that slug, or all of them, the suspended and the closed too: their keys and logs last as long."""
    if tenant != ALL:
        return {tenant: (await existing_tenant(tenant)).tenant_id}
    if actor:
        raise Failure("--actor is a user of one tenant. Name the tenant too, as in --tenant=lakeside.")
    return {listed.slug: listed.tenant_id for listed in await list_tenants()}


async def known_tenants() -> list[str]:
    """The slugs of all open tenants. Only the schema's owner may see them together; for others there are none."""
    try:
        return [listed.slug for listed in await list_tenants() if listed.is_open]
    except ConfigurationError:
        return []


async def unknown_tenant(tenant: str) -> Failure:
    """What to say of a slug that nobody has."""
    there = await known_tenants()
    if tenant in there:
        return Failure(
            f"There is a tenant {tenant} where DATABASE_OWNER_URL leads, and none where DATABASE_URL leads. Name the "
            "same database in both."
        )
    some = ", ".join(there[:MOST]) + (", ..." if len(there) > MOST else "")
    return Failure(f"There is no tenant {tenant}." + (f" Choose one with --tenant=SLUG: {some}." if there else ""))


async def resolve_actor(tenant: UUID, actor: str) -> UUID:
    """The user that a command acts as: named by id or e-mail, or else the tenant's first admin."""
    try:
        return UUID(actor)
    except ValueError:
        pass
    try:
        admin = await find_admin(tenant)
    except asyncpg.InsufficientPrivilegeError:
        raise ConfigurationError(
            "Name the actor by id, --actor=UUID. Looking one up takes the owner's login: set DATABASE_OWNER_URL."
        ) from None
    if not actor:
        return admin
    async with scope(tenant=tenant, actor=admin, reason="look up the actor of a command"):
        found = await User.select(User.id).where(User.email == actor.strip().lower()).first()
    if found is None:
        raise Failure("The tenant has no user with the e-mail or id that --actor names.")
    return cast("UUID", found["id"])


def reason_for(what: str, actor: str) -> str:
    """Why a command acts, for its records. Where no actor was named they say who ran it instead.

    Threat: an admin who was asleep is on record as having read a chart, 164.312(a)(2)(i).
    """
    if actor:
        return what
    try:
        login = getpass.getuser()
    except (KeyError, OSError):
        login = str(os.getuid())
    return f"{what}; run by the system's user {ascii(login)[1:-1]}, who named no actor"


def confirmed(slug: str, given: str, what: str) -> None:
    """Have the slug typed, or raise: what follows cannot be undone."""
    if not given:
        if not sys.stdin.isatty():
            raise Failure(f"{what} Nobody can type the slug here; confirm with --confirm={slug}.")
        with interruptible():
            errors().print(f"{what} Type the slug to confirm:", end=" ")
            given = sys.stdin.readline().strip()
    if given != slug:
        raise Failure("That is not the slug. Nothing was done.")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a question at once: asyncio would act on it only when the question is answered."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
