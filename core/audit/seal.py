"""Sealing: what finished since the last head is added to the tenant's tree, and a new head is signed.

Threats:
- A transaction that ends late has old ids. So only records below the oldest running transaction are taken, all of
  them, and the bound (``horizon``) is signed: below it nothing can appear any more that is not an attack.
- Two sealers could sign two pasts. One waits for the other, and a tree size exists once.
- A head that was slipped in would be built upon. The last head must verify before it is extended.
- Transaction ids begin again when a dump is restored on a new server. Then a new ``era`` begins, in which records are
  told apart by their ids.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from core.audit.canonical import VERSION
from core.audit.head import HEAD_COLUMNS, NO_HEAD, SealKey, TreeHead, leaf_list_hash, public_keys
from core.audit.merkle import Frontier
from core.audit.stream import Connection, in_scope, leaves_of
from core.crypto.kms import master_key
from core.errors import ChartholdError
from core.ids import uuid7
from core.scope import current_scope
from core.settings import settings
from core.statements.explain import explain

__all__ = ["MOST", "Sealed", "seal"]

LEAVES = 65_536  # of one head: its lists of ids and hashes are 3 MB
MOST = 1_000_000  # records of one transaction, or somewhat more: a transaction's records are sealed together
NEVER = 2**63 - 1  # a transaction id that no server reaches

# The oldest running transaction, the first future one, and which server says so.
NOW = """select pg_snapshot_xmin(s)::text::bigint as oldest, pg_snapshot_xmax(s)::text::bigint as future,
    c.system_identifier as cluster, clock_timestamp() as now
from pg_current_snapshot() as s, pg_control_system() as c"""

LAST = f"select {HEAD_COLUMNS}, frontier from public.audit_seal where tenant_id = $1 order by tree_size desc limit 1"

UNSEALED = "tenant_id = $1 and transaction_id >= $2 and transaction_id < $3"
# In a later era a low transaction id may be of an earlier one, so records are told apart by their own ids. At the era's
# beginning, a transaction id that the server has not reached yet surely is of an earlier one, and is sealed too.
UNSEALED_LATER = """tenant_id = $1 and (transaction_id >= $2 and transaction_id < $3 or transaction_id >= $4)
    and not exists (
        select from (select unnest(record_ids) as id from public.audit_seal where tenant_id = $1) as sealed
        where sealed.id = user_action_audit_log.id
    )"""

# Where to stop when more than MOST wait: behind the transaction of the record after them.
STOP = f"""select transaction_id + 1 from public.user_action_audit_log where {UNSEALED}
order by transaction_id offset $4 limit 1"""

INSERT = f"""insert into public.audit_seal (id, {HEAD_COLUMNS}, frontier, record_ids, leaf_hashes)
values ({", ".join(f"${place}" for place in range(1, 17))})"""


@dataclass(frozen=True)
class Sealed:
    """What a sealing did."""

    added: int
    heads: tuple[TreeHead, ...]
    newest: TreeHead | None


async def seal(*, most: int = MOST, leaves: int = LEAVES) -> Sealed:
    """Seal the finished records of the open scope's tenant; its actor must be an admin, an auditor or the system.

    At most about ``most`` records; call it again while it adds any. Raises ``ChartholdError`` when the last head does
    not verify: then the log is first to be looked into.
    """
    key = SealKey(master_key(settings()))
    try:
        async with in_scope() as connection:
            return await _seal(connection, current_scope().tenant, key, most, leaves)
    except asyncpg.LockNotAvailableError:
        raise ChartholdError("Another process is sealing this tenant's log. Try again when it is done.") from None
    except asyncpg.UniqueViolationError:
        raise ChartholdError(
            "Another process has sealed this tenant's log meanwhile. Try again; if it stays so, a row that nobody "
            "signed is in the way, and piccolo core verify_audit names it."
        ) from None
    except asyncpg.PostgresError as error:
        raise explain(error) from None


async def _queue(connection: Connection, tenant: UUID) -> None:
    """Wait for whoever is sealing the tenant's log. Writers take no such lock, so they never wait for it.

    Threat: anybody can take the lock, of another tenant too, and keep it. So after a while nobody is waited for: no two
    heads have one predecessor, and whoever comes second fails.
    """
    lock = "select pg_advisory_xact_lock(hashtextextended('charthold.seal.' || $1, 0))"
    with contextlib.suppress(asyncpg.LockNotAvailableError):
        async with connection.transaction():
            await connection.execute(lock, str(tenant))


async def _seal(connection: Connection, tenant: UUID, key: SealKey, most: int, leaves: int) -> Sealed:
    await connection.execute("set local lock_timeout = '10s'")
    await _queue(connection, tenant)
    # A head must not be handed out and then be lost in a crash.
    await connection.execute(
        "select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'"
    )
    row = await connection.fetchrow(LAST, tenant)
    last = _believed(row) if row else None
    now = await connection.fetchrow(NOW)
    assert now is not None
    condition, arguments, era, stop = await _unsealed(connection, tenant, last, now, most)

    tree = Frontier.from_bytes(last.tree_size, row["frontier"]) if last and row else Frontier()
    heads: list[TreeHead] = []
    ids: list[UUID] = []
    hashes: list[bytes] = []
    newest, added, reached = last, 0, 0

    async def flush(horizon: int) -> None:
        nonlocal newest, added
        joined = b"".join(hashes)
        tree.extend(hashes)
        newest = key.sign(
            tenant_id=tenant,
            version=VERSION,
            tree_size=tree.size,
            root_hash=tree.root(),
            era=era,
            cluster=now["cluster"],
            horizon=horizon,
            sealed_at=_not_before(now["now"], newest),
            leaf_list=leaf_list_hash(ids, joined),
            previous=newest.digest() if newest else NO_HEAD,
        )
        said = [getattr(newest, name) for name in HEAD_COLUMNS.split(", ")]
        await connection.execute(INSERT, uuid7(), *said, tree.to_bytes(), ids, joined)
        heads.append(newest)
        added += len(ids)
        ids.clear()
        hashes.clear()

    async for batch in leaves_of(connection, condition, *arguments):
        for leaf in batch:
            if len(ids) == leaves:
                await flush(min(reached, stop))
            ids.append(leaf.id)
            hashes.append(leaf.hash)
            reached = leaf.transaction_id
    if ids:
        await flush(stop)
    return Sealed(added, tuple(heads), newest)


async def _unsealed(
    connection: Connection, tenant: UUID, last: TreeHead | None, now: Any, most: int
) -> tuple[str, list[Any], int, int]:
    """Which records to add: a condition and its arguments, the era, and the new horizon."""
    oldest: int = now["oldest"]
    if last and (last.cluster != now["cluster"] or oldest < last.horizon):
        return UNSEALED_LATER, [tenant, 0, oldest, now["future"]], last.era + 1, oldest
    if last and last.era > 1:
        return UNSEALED_LATER, [tenant, last.horizon, oldest, NEVER], last.era, oldest
    start = last.horizon if last else 0
    stop = await connection.fetchval(STOP, tenant, start, oldest, most) or oldest
    return UNSEALED, [tenant, start, stop], 1, stop


def _believed(row: Any) -> TreeHead:
    """The last head, if it is signed and its right edge is that of the signed tree."""
    head = TreeHead.from_row(row)
    if not head.is_signed_by(public_keys(settings())) or not head.fits(row["frontier"]):
        raise ChartholdError(
            f"The head of size {head.tree_size} does not verify, so nothing is built upon it. Run: piccolo core "
            "verify_audit. If it was signed under another master key, add that to CHARTHOLD_RETIRED_MASTER_KEYS, or "
            "the public key to CHARTHOLD_RETIRED_SEAL_KEYS."
        )
    return head


def _not_before(now: datetime, last: TreeHead | None) -> datetime:
    """Clocks go back; heads do not."""
    return max(now, last.sealed_at) if last else now
