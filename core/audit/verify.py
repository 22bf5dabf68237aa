"""Verification: the tree computed again from the records themselves, and held against every signed head.

Threats: a superuser can change records, take them out or put them in; change the lists and hashes that we keep;
rewrite, delete or roll back heads. Nothing stored is believed before a signature covers it. A list of leaves that its
head signs says which record differs; without it a range is named instead. Heads that were cut off at the end leave no
trace here: only heads that were exported show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from core.audit.compare import Comparison, Log
from core.audit.head import HEAD_COLUMNS, NO_HEAD, TreeHead, leaf_list_hash, public_keys
from core.audit.merkle import HASH_BYTES, Frontier
from core.audit.report import Report
from core.audit.retention import kept_since
from core.audit.stream import Connection, in_scope, leaves_of
from core.scope import current_scope
from core.settings import settings
from core.statements.explain import explain

__all__ = ["verify"]

HEADS = f"select id, {HEAD_COLUMNS}, frontier from public.audit_seal where tenant_id = $1 order by tree_size"
LISTS = f"""select id, {HEAD_COLUMNS}, frontier, record_ids, leaf_hashes
from public.audit_seal where tenant_id = $1 order by tree_size"""
SEALED = "tenant_id = $1 and transaction_id < $2"
EVERYTHING = "tenant_id = $1"
UNSEALED = "select count(*) from public.user_action_audit_log where tenant_id = $1 and transaction_id >= $2"

# The first moment of the oldest month in the log, and what the tenant keeps.
KEPT = r"""select t.retention_years, (
    select min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz)
    from pg_catalog.pg_inherits as i join pg_catalog.pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'public.user_action_audit_log'::regclass
) as oldest_month
from public.tenant as t where t.id = $1"""


async def verify(exported: Sequence[TreeHead] = ()) -> Report:
    """Verify the log of the open scope's tenant; its actor must be an admin, an auditor or the system.

    ``exported``: heads that were kept outside of the database; each must still be a head of this tree.
    """
    tenant = current_scope().tenant
    try:
        async with in_scope(snapshot=True) as connection:
            return await _Verification(connection, tenant, exported).run()
    except asyncpg.PostgresError as error:
        raise explain(error) from None


class _Verification:
    def __init__(self, connection: Connection, tenant: UUID, exported: Sequence[TreeHead]) -> None:
        self.connection = connection
        self.report = Report(tenant)
        self.exported = sorted((h for h in exported if h.tenant_id == tenant), key=lambda head: head.tree_size)
        self.forged: set[UUID] = set()  # rows whose head is not signed
        self.last: TreeHead | None = None  # the newest head that is
        self.tree: Frontier | None = Frontier()  # None: lost, until a head's right edge shows it again
        self.certain = 0  # up to where the tree is known to be the signed one
        self.roots: dict[int, bytes] = {}  # at the sizes of exported heads
        self.kept_since: datetime | None = None  # what was sealed before may have been archived; None: nothing
        self.keys = public_keys(settings())

    async def run(self) -> Report:
        report = self.report
        await self._check_heads()
        if self.last is None:
            report.unsealed = await self.connection.fetchval(UNSEALED, report.tenant, 0)
        else:
            await self._check_records(self.last)
        self._check_exported()
        return report

    async def _check_heads(self) -> None:
        """Each head is signed, and names the one before it."""
        report, doubted = self.report, False
        async for row in self.connection.cursor(HEADS, report.tenant):
            head = TreeHead.from_row(row)
            report.heads += 1
            if head.tenant_id != report.tenant or not head.is_signed_by(self.keys):
                self.forged.add(row["id"])
                doubted = True
                why = (
                    "was rewritten: its signature does not hold"
                    if head.key_id in self.keys
                    else f"was signed by the unknown key {head.key_id}: if it is an earlier master key's, add that to "
                    "CHARTHOLD_RETIRED_MASTER_KEYS, or the public key to CHARTHOLD_RETIRED_SEAL_KEYS; if not, the head "
                    "was forged"
                )
                report.found("head", f"The head of size {head.tree_size} {why}.")
                continue
            if not doubted and head.previous != (self.last.digest() if self.last else NO_HEAD):
                behind = f"after size {self.last.tree_size}" if self.last else "from the first on"
                report.found("heads_missing", f"Heads are gone: {behind}, before size {head.tree_size}.")
            if not head.fits(row["frontier"]):
                report.found("head", f"The right edge stored with the head of size {head.tree_size} was altered.")
            self.last, doubted = head, False
        if self.last:
            report.tree_size, report.root_hash = self.last.tree_size, self.last.root_hash

    async def _check_records(self, last: TreeHead) -> None:
        """Each record is what was sealed, and no other stands among them."""
        report = self.report
        # In a later era the transaction ids of several servers overlap, so everything is looked at.
        bounds = (SEALED, report.tenant, last.horizon) if last.era == 1 else (EVERYTHING, report.tenant)
        if last.era == 1:  # asked now: a scope may expire while a long log passes by
            report.unsealed = await self.connection.fetchval(UNSEALED, report.tenant, last.horizon)
        log = Log(leaves_of(self.connection, *bounds))
        comparison = Comparison(log, await self._archived_before())
        async for row in self.connection.cursor(LISTS, report.tenant, prefetch=1):
            await self._check_list(TreeHead.from_row(row), row, log, comparison)
        await comparison.finish()

        for leaf, record, moved in comparison.changed():
            report.found("reordered" if moved else "changed", record=record, leaf=leaf)
        for leaf, record in comparison.missing():
            report.found("missing", record=record, leaf=leaf)
        for entry in comparison.strangers():
            if entry.transaction_id < last.horizon:
                report.found("added", record=UUID(bytes=entry.id))
            else:
                report.unsealed += 1
        report.archived = comparison.archived

    async def _check_list(self, head: TreeHead, row: Any, log: Log, comparison: Comparison) -> None:
        """The records of one head."""
        ids: list[UUID] = row["record_ids"]
        hashes: bytes = row["leaf_hashes"]
        start = head.tree_size - len(ids)
        leaves = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
        if row["id"] in self.forged:
            # Its list may help to find records again; the next signed head says whether it is right.
            if self.tree and self.last and start == self.tree.size and head.tree_size < self.last.tree_size:
                await comparison.leaves(start, ids, hashes, archivable=False)
                self._grow(leaves)
            return
        # Threat: an id can be made to look old. When a record was sealed is signed.
        archivable = self.kept_since is not None and head.sealed_at < self.kept_since
        if self.tree and start > self.tree.size:
            self._grow(await comparison.unlisted(start - self.tree.size, {i.bytes for i in ids}))
        if leaf_list_hash(ids, hashes) == head.leaf_list:
            await comparison.leaves(start, ids, hashes, archivable=archivable)
            self._grow(leaves)
        else:
            self.report.found("list", f"The list of leaves of the head of size {head.tree_size} was altered.")
            await log.reach(len(ids))
            theirs = log.hashes(len(ids))
            if self.tree and self._grown(theirs).root() == head.root_hash:
                log.skip(len(theirs))  # the records themselves are what was signed
                self._grow(theirs)
            else:
                await comparison.leaves(start, ids, hashes, archivable=archivable)
                self._grow(leaves)
        if self.tree is None or self.tree.root() != head.root_hash:
            if self.tree is not None:
                self.report.found(
                    "unnamed",
                    f"The records of the leaves {self.certain} to {head.tree_size - 1} are not what was signed, and "
                    "the list that says which of them was altered or is gone.",
                )
            edge = row["frontier"]
            self.tree = Frontier.from_bytes(head.tree_size, edge) if head.fits(edge) else None
        self.certain = head.tree_size

    def _grown(self, leaves: Sequence[bytes]) -> Frontier:
        assert self.tree is not None
        tree = self.tree.copy()
        tree.extend(leaves)
        return tree

    def _grow(self, leaves: Sequence[bytes]) -> None:
        """Add leaves, noting the root at each size of which a head was exported."""
        if self.tree is None:
            return
        done, start = 0, self.tree.size
        for size in sorted({head.tree_size for head in self.exported}):
            if start < size <= start + len(leaves):
                self.tree.extend(leaves[done : size - start])
                done = size - start
                self.roots[size] = self.tree.root()
        self.tree.extend(leaves[done:])

    def _check_exported(self) -> None:
        """What was once shown outside is still part of this tree."""
        report = self.report
        for head in self.exported:
            report.exported_heads += 1
            name = f"The exported head of size {head.tree_size}, sealed at {head.sealed_at:%Y-%m-%d %H:%M:%S} UTC,"
            if not head.is_signed_by(self.keys):
                report.found("rewritten", f"{name} is not signed by a key of ours: the file or the keys are others.")
            elif head.tree_size > report.tree_size:
                report.found("rewritten", f"{name} is gone: the log ends at {report.tree_size}, so it was rolled back.")
            elif self.roots.get(head.tree_size) != head.root_hash:
                report.found("rewritten", f"{name} is not of this tree: what was sealed before it was rewritten.")

    async def _archived_before(self) -> bytes:
        """How ids begin before which records may be gone: their month was taken out, after the years it is kept."""
        row = await self.connection.fetchrow(KEPT, self.report.tenant)
        if row is None or row["oldest_month"] is None:
            return b""
        self.kept_since = kept_since(row["retention_years"])
        milliseconds = int(min(self.kept_since, row["oldest_month"]).timestamp() * 1000) - 1000
        return max(milliseconds, 0).to_bytes(6, "big")
