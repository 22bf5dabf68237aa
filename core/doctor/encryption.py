"""PHI at rest: the envelope that the database insists on, and the keys: known, not too old, not used up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from piccolo.table import Table

from core.columns import Encrypted
from core.crypto.envelope import ENVELOPE_CHECK_SQL
from core.crypto.kms import KeyProvider, provider_from_settings
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.errors import KeyProviderError
from core.plural import plural

__all__ = ["LIMIT"]

# NIST SP 800-38D, 8.3: with random nonces, no more than 2^32 invocations of AES-GCM under one key.
LIMIT = 2**32
SPENT = 0.25  # of the limit; then there is time to rotate
OLD = 365  # days

KEYS = """
select k.tenant_id, k.version, k.status, k.kek, k.created_at, k.wrapped
from public.tenant_key as k where ($1::uuid is null or k.tenant_id = $1) order by k.tenant_id, k.version"""

# Inserts and updates of rows with PHI since the tenant's current key was made. Each seals its columns at most once.
USES = """
select k.tenant_id, (
    select count(*) from public.user_action_audit_log as l
    where l.tenant_id = k.tenant_id and l.occurred_at >= k.created_at
        and l.action_type in ('insert', 'update') and l.table_name = any($2)
) as records
from public.tenant_key as k where k.status = 'current' and ($1::uuid is null or k.tenant_id = $1)"""


def encrypted_columns(tables: Sequence[type[Table]]) -> dict[str, list[Encrypted[Any]]]:
    """Each table's encrypted columns, by the table's name."""
    found = {
        table._meta.tablename: [column for column in table._meta.columns if isinstance(column, Encrypted)]
        for table in tables
    }
    return {name: columns for name, columns in found.items() if columns}


@check("164.312(a)(2)(iv)")
async def envelope(live: Live, notes: Notes) -> None:
    """Threat: plaintext in a column for PHI, by whatever hand. The column's type refuses what is no envelope."""
    domain = live.catalog["domain"].get("charthold.envelope")
    if domain is None or not domain["checks"]:
        notes.fail(
            "The type charthold.envelope accepts any bytes: plaintext can be stored.",
            subject="domain charthold.envelope",
            sql=f"alter domain charthold.envelope add constraint envelope_check check ({ENVELOPE_CHECK_SQL});",
        )
    total = 0
    for name, table in live.declared().items():
        info = live.relations.get(name)
        for column in table._meta.columns:
            if not isinstance(column, Encrypted) or info is None:
                continue
            total += 1
            called = column._meta.db_column_name
            if (kind := info.type_of.get(called, "missing")) != "charthold.envelope":
                notes.fail(
                    f"{name}.{called} is declared encrypted, and its type in the database is {kind}.",
                    subject=f"column {name}.{called}",
                    mend="Seal its values first, then give it the type charthold.envelope.",
                )
    notes.end(f"The type charthold.envelope, of {plural(total, 'column')} of PHI, refuses anything unsealed.")


@check("164.312(a)(2)(iv)")
async def keys(live: Live, notes: Notes) -> None:
    """Each tenant's data keys: one in use, wrapped by a KEK that is configured, young, and far from its limit."""
    provider = provider_from_settings(live.settings)
    told = provider.describe()
    known = {told["kek"], *told["retired"].split()}
    now = datetime.now(UTC)
    rows = await live.ask(KEYS)
    sealed = encrypted_columns(live.tables)
    widest = max(map(len, sealed.values()), default=0)
    counted = await live.ask_or_warn(notes, "The count of each key's uses", USES, list(sealed))
    uses = {row["tenant_id"]: row["records"] * widest for row in counted or []}
    slugs = {tenant.id: tenant.slug for tenant in live.tenants}
    shown: list[dict[str, Any]] = []
    for row in rows:
        slug, days = slugs.get(row["tenant_id"], "?"), (now - row["created_at"]).days
        used = uses.get(row["tenant_id"]) if row["status"] == "current" else None
        shown.append(
            {"tenant": slug, "days": days, "uses": used, "known": row["wrapped"] is None or row["kek"] in known}
            | {name: row[name] for name in ("version", "status", "kek")}
        )
        subject = f"key {slug} version {row['version']}"
        if row["wrapped"] is not None and row["kek"] not in known:
            notes.fail(
                f"Key {row['version']} of {slug} is wrapped by the master key {row['kek'] or '(unnamed)'}, which is "
                "not configured here: what it sealed does not open.",
                subject=subject,
                mend="Add that master key to CHARTHOLD_RETIRED_MASTER_KEYS, or find out who wrote the row.",
            )
        elif row["wrapped"] is not None and not await _unwraps(provider, row):
            notes.fail(
                f"Key {row['version']} of {slug} does not unwrap: it was altered, or is another tenant's or version's. "
                "What it sealed does not open.",
                subject=subject,
                mend="Find out who wrote the row, and restore it from a backup.",
            )
        if row["status"] == "current" and days > OLD:
            notes.warn(
                f"The current key of {slug} is {days} days old.",
                subject=subject,
                mend=f"piccolo core rotate_keys --tenant={slug}",
            )
        if used is not None and used >= LIMIT * SPENT:
            tell = notes.fail if used >= LIMIT else notes.warn
            tell(
                f"The current key of {slug} has sealed up to {used:,} values, {used / LIMIT:.0%} of AES-GCM's 2^32.",
                subject=subject,
                mend=f"piccolo core rotate_keys --tenant={slug}",
            )
    live.shown["keys"] = shown
    current = {row["tenant_id"] for row in rows if row["status"] == "current"}
    for tenant in live.seen():
        if tenant.id not in current and tenant.is_open:
            notes.fail(
                f"{tenant.slug} has no current data key: nothing can be sealed.",
                subject=f"key {tenant.slug}",
                mend="Restore tenant_key from a backup; without its keys the tenant's PHI is gone.",
            )
    most = max(uses.values(), default=0)
    used = f"the most used has sealed at most {most:,} values, {most / LIMIT:.5%} of 2^32"
    notes.seen(
        f"{plural(len(rows), 'key version')} of {plural(len(current), 'tenant')}, wrapped by master key {told['kek']}"
        f"{' or a retired one' if told['retired'] else ''}; "
        f"{'their uses were not counted' if counted is None else used}{live.unseen()}."
    )


async def _unwraps(provider: KeyProvider, row: Any) -> bool:
    try:
        await provider.unwrap(row["tenant_id"], row["wrapped"], version=row["version"])
    except KeyProviderError:
        return False
    return True
