"""Shredding: a tenant's PHI is destroyed by destroying the keys that open it, in tables and in the audit log alike.

Threat: a slip, or a stolen admin account, destroys a clinic's records. So it takes the schema's owner (no role of the
application can write where the request stands), a request, ``CHARTHOLD_SHRED_DAYS`` of waiting in which everybody works
on and the request can be withdrawn, and the deed, each recorded in the tenant's own log. And the other way round: a key
that was destroyed lives on somewhere. Nothing copies a wrapped key into the log; the table is written anew, so that no
old tuple holds it; processes that have it unwrapped lose it with their cache. What stays is said in the README: WAL and
backups from before, which the key-encrypting key opens, until that is destroyed too.

The log itself does not change, so its seals verify as before: what is gone is what the envelopes in it say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from core.engine import engine
from core.errors import ChartholdError
from core.rotation import Target, acting, key_lock, owner_connection, sweep
from core.rotation.owner import REMAINS, record

__all__ = ["Shredded", "cancel", "due", "request", "shred"]

REASON = "shredding"


@dataclass(frozen=True)
class Shredded:
    """Which versions were destroyed; ``swept``: the wrapped keys are gone from the table's file."""

    versions: tuple[int, ...]
    swept: bool


async def due(target: Target) -> datetime | None:
    """From when on the tenant's keys may be destroyed; None when nobody asked for that."""
    async with owner_connection() as connection:
        return await _due(connection, target)


async def request(target: Target) -> datetime:
    """Ask for the tenant's keys to be destroyed; returns from when on. Everything goes on working until then."""
    async with owner_connection() as connection, acting(connection, target, REASON):
        await _refuse_without_keys(connection, target)
        asked = await connection.fetchval(
            "update charthold.tenant_directory set shred_requested_at = clock_timestamp()"
            " where tenant_id = $1 and shred_requested_at is null returning shred_requested_at",
            target.tenant,
        )
        if asked is None:
            raise ChartholdError(f"The keys of {target.slug} wait to be destroyed already.")
        when: datetime = asked + timedelta(days=engine().settings.shred_days)
        await record(connection, "key_shredding", {"step": "requested", "not_before": when})
        return when


async def cancel(target: Target) -> None:
    """Withdraw the request."""
    async with owner_connection() as connection, acting(connection, target, REASON):
        cancelled = await connection.fetchval(
            "update charthold.tenant_directory set shred_requested_at = null"
            " where tenant_id = $1 and shred_requested_at is not null returning tenant_id",
            target.tenant,
        )
        # Asked now: whoever was destroying them held that row.
        await _refuse_without_keys(connection, target)
        if cancelled is None:
            raise ChartholdError(f"Nobody asked for the keys of {target.slug} to be destroyed.")
        await record(connection, "key_shredding", {"step": "withdrawn"})


async def shred(target: Target) -> Shredded:
    """Destroy every version of the tenant's keys and close the tenant, in one transaction. There is no way back."""
    async with owner_connection() as connection:
        async with key_lock(connection, target), acting(connection, target, REASON):
            versions = await _destroy(connection, target) if await _has_keys(connection, target) else None
        engine().keyring.forget(target.tenant)
        # Also for keys that were destroyed before: the run that did it may have been killed before it came to this.
        swept = await sweep(connection)
    if versions is None:
        raise ChartholdError(f"{_destroyed(target)}{'' if swept else f' {REMAINS}'}")
    return Shredded(versions, swept)


async def _destroy(connection: asyncpg.Connection[Any], target: Target) -> tuple[int, ...]:
    """The versions that are destroyed now."""
    # Locked, so that a request that is withdrawn at this moment is either seen or too late.
    await connection.execute(
        "select from charthold.tenant_directory where tenant_id = $1 for no key update", target.tenant
    )
    when = await _due(connection, target)
    if when is None:
        raise ChartholdError(f"Nobody asked for the keys of {target.slug} to be destroyed. Ask first.")
    if await connection.fetchval("select clock_timestamp() < $1", when):
        raise ChartholdError(
            f"The keys of {target.slug} can be destroyed from {when:%Y-%m-%d %H:%M} UTC on, not before."
        )
    rows = await connection.fetch(
        "update public.tenant_key set wrapped = null, status = 'shredded'"
        " where tenant_id = $1 and status <> 'shredded' returning version",
        target.tenant,
    )
    versions = tuple(sorted(row["version"] for row in rows))
    await record(connection, "key_shredding", {"step": "destroyed", "versions": versions})
    await connection.execute(
        "update public.tenant set status = 'closed' where id = $1 and status <> 'closed'", target.tenant
    )
    return versions


async def _due(connection: asyncpg.Connection[Any], target: Target) -> datetime | None:
    asked: datetime | None = await connection.fetchval(
        "select shred_requested_at from charthold.tenant_directory where tenant_id = $1", target.tenant
    )
    return None if asked is None else asked + timedelta(days=engine().settings.shred_days)


async def _has_keys(connection: asyncpg.Connection[Any], target: Target) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from public.tenant_key where tenant_id = $1 and status <> 'shredded')", target.tenant
    )
    return found


async def _refuse_without_keys(connection: asyncpg.Connection[Any], target: Target) -> None:
    if not await _has_keys(connection, target):
        raise ChartholdError(_destroyed(target))


def _destroyed(target: Target) -> str:
    return f"The keys of {target.slug} were destroyed already; nothing of its PHI opens."
