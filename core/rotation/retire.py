"""Destroys one old version of a data key, and with it what only it opens: old values in the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from core.crypto.envelope import envelope_header
from core.engine import engine
from core.errors import ChartholdError
from core.rotation.owner import REMAINS, Target, acting, key_lock, owner_connection, record, sweep
from core.rotation.rows import SealedTable, check_declared, sealed_tables

__all__ = ["Destroyed", "retire", "used_in_log"]


@dataclass(frozen=True)
class Destroyed:
    """``records`` of the audit log no longer open; ``swept``: the wrapped key is gone from the table's file."""

    version: int
    records: int
    swept: bool


async def used_in_log(target: Target, version: int) -> int:
    """How many audit records hold an envelope under that version, which would not open any more.

    Refused for a version that is in use or that nobody has: nothing is announced that will not be done.
    """
    async with owner_connection() as connection, acting(connection, target, "look at an old key"):
        await _status(connection, target, version)
        return await _records(connection, target, version)


async def retire(target: Target, version: int) -> Destroyed:
    """Destroy a retired version. Refused while it is in use, or any row of any table holds an envelope under it."""
    async with owner_connection() as connection:
        tables = sealed_tables()
        await check_declared(connection, tables)
        async with key_lock(connection, target), acting(connection, target, "destroy an old key"):
            records = await _destroy(connection, target, version, tables)
        engine().keyring.forget(target.tenant)
        # Also for a version that was destroyed before: the run that did it may have been killed before it came to this.
        swept = await sweep(connection)
    if records is None:
        remains = "" if swept else f" {REMAINS}"
        raise ChartholdError(f"Key version {version} of {target.slug} was destroyed already.{remains}")
    return Destroyed(version, records, swept)


async def _destroy(
    connection: asyncpg.Connection[Any], target: Target, version: int, tables: Sequence[SealedTable]
) -> int | None:
    """How many records of the log no longer open; None when the version was destroyed already."""
    if await _status(connection, target, version) == "shredded":
        return None
    for table in tables:
        if await table.uses(connection, target.tenant, version):
            raise ChartholdError(
                f"Rows of {table.name} are sealed under version {version}, so it is not destroyed. Rotate "
                "again: it seals them anew."
            )
    records = await _records(connection, target, version)
    await connection.execute(
        "update public.tenant_key set wrapped = null, status = 'shredded' where tenant_id = $1 and version = $2",
        target.tenant,
        version,
    )
    await record(connection, "key_shredding", {"version": version, "unreadable_records_of_the_log": records})
    return records


async def _status(connection: asyncpg.Connection[Any], target: Target, version: int) -> str:
    """Whether the version is retired or shredded; any other is refused."""
    status = await connection.fetchval(
        "select status from public.tenant_key where tenant_id = $1 and version = $2 for no key update",
        target.tenant,
        version,
    )
    if status is None:
        known = await connection.fetch(
            "select version from public.tenant_key where tenant_id = $1 order by version", target.tenant
        )
        there = ", ".join(str(row["version"]) for row in known)
        raise ChartholdError(f"{target.slug} has no key version {version}. It has {there or 'none'}.")
    if status not in {"retired", "shredded"}:
        raise ChartholdError(
            f"Key version {version} of {target.slug} is in use ({status}). Rotate first: piccolo core "
            f"rotate_keys --tenant={target.slug}"
        )
    return str(status)


async def _records(connection: asyncpg.Connection[Any], target: Target, version: int) -> int:
    # In the log's JSON an envelope is the text "\x01..." in quotes, its backslash doubled.
    start = f'"\\\\x{envelope_header(version).hex()}'
    found: int = await connection.fetchval(
        "select count(*) from public.user_action_audit_log where tenant_id = $1"
        " and (strpos(old_values::text, $2) > 0 or strpos(new_values::text, $2) > 0)",
        target.tenant,
        start,
    )
    return found
