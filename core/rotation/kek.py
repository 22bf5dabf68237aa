"""The KEK changes: every wrapped key of a tenant, retired ones too, is wrapped again under the current master key.

Before: give every process the new ``CHARTHOLD_MASTER_KEY`` and the old one in ``CHARTHOLD_RETIRED_MASTER_KEYS``, so
that each unwraps both. After: when nothing is wrapped by an old key, take it out of the settings and destroy it. No
data is touched, and no search changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.crypto.keyring import WrappedKey
from core.engine import engine
from core.rotation.owner import Progress, Target, acting, key_lock, noting, owner_connection, record, silent, sweep

__all__ = ["Rewrapped", "rewrap"]


@dataclass
class Rewrapped:
    """What became of one tenant's wrapped keys."""

    slug: str
    versions: int = 0
    problem: str = ""


async def rewrap(targets: Sequence[Target], *, progress: Progress = silent) -> tuple[list[Rewrapped], bool]:
    """Wrap the tenants' keys under the current KEK; and whether the old wrappings are gone from the table's file."""
    keyring = engine().keyring
    kek = keyring.kek
    outcomes = []
    async with owner_connection() as connection:
        for done, target in enumerate(targets):
            outcome = Rewrapped(target.slug)
            outcomes.append(outcome)
            progress(target.slug, done, len(targets))
            with noting(outcome):
                # One transaction a tenant: killed in between, the rest is found by its KEK the next time.
                async with key_lock(connection, target), acting(connection, target, "new key-encrypting key"):
                    rows = await connection.fetch(
                        "select version, wrapped, kek, status from public.tenant_key"
                        " where tenant_id = $1 and wrapped is not null and kek <> $2 order by version"
                        " for no key update",
                        target.tenant,
                        kek,
                    )
                    for row in rows:
                        key = await keyring.rewrap(target.tenant, WrappedKey(**row))
                        await connection.execute(
                            "update public.tenant_key set wrapped = $3, kek = $4 where tenant_id = $1 and version = $2",
                            target.tenant,
                            key.version,
                            key.wrapped,
                            key.kek,
                        )
                    if rows:
                        await record(
                            connection,
                            "key_rotation",
                            {"step": "kek", "kek": kek, "versions": [row["version"] for row in rows]},
                        )
                    outcome.versions = len(rows)
        return outcomes, await sweep(connection)
