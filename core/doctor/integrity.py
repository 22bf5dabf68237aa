"""Integrity: the log's signed heads, and what the server itself checks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from core.audit.attestation import Attestation
from core.audit.head import HEAD_COLUMNS, TreeHead, public_keys
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.plural import plural

__all__ = ["FRESH"]

FRESH = 26  # hours: sealed once a day, with some slack
VERIFIED_DAYS = 31

HEADS = f"""
select distinct on (tenant_id) {HEAD_COLUMNS}, frontier from public.audit_seal
where ($1::uuid is null or tenant_id = $1) order by tenant_id, tree_size desc"""

# What is not sealed yet, and since when it waits.
UNSEALED = """
select l.tenant_id, count(*) as records, min(l.occurred_at) as since
from public.user_action_audit_log as l
left join (
    select tenant_id, max(horizon) as horizon from public.audit_seal where era = 1 group by tenant_id
) as s on s.tenant_id = l.tenant_id
where ($1::uuid is null or l.tenant_id = $1) and l.transaction_id >= coalesce(s.horizon, 0)
group by 1"""

# The records by which verify_audit tells what it found. Whoever puts a thousand unsigned ones on top hides the others,
# and the log then counts as not verified.
VERIFIED = """
select tenant_id, (array_agg((new_values -> 'verified')::text order by occurred_at desc))[1:1000] as said
from public.user_action_audit_log
where ($1::uuid is null or tenant_id = $1) and action_type = 'audit_read'
    and new_values -> 'verified' ? 'signature'
group by 1"""


@check("164.312(c)(2)")
async def seals(live: Live, notes: Notes) -> None:
    """The last head of each tenant is ours and fresh. Whether the records match is for verify_audit to compute."""
    keys, now = public_keys(live.settings), datetime.now(UTC)
    heads = {row["tenant_id"]: row for row in await live.ask(HEADS)}
    counted = await live.ask_or_warn(notes, "The count of what is not sealed yet", UNSEALED)
    looked = await live.ask_or_warn(notes, "The search for the last verification", VERIFIED)
    waiting = {row["tenant_id"]: row for row in counted or []}
    verified = {row["tenant_id"]: _last_attestation(row, keys) for row in looked or []}
    live.shown["verifications"] = looked is not None
    shown: list[dict[str, Any]] = []
    for tenant in live.seen():
        row, wait, check_ = heads.get(tenant.id), waiting.get(tenant.id), verified.get(tenant.id)
        good = None
        if row is not None:
            head = TreeHead.from_row(row)
            good = head.tenant_id == tenant.id and head.is_signed_by(keys) and head.fits(row["frontier"])
        late = (now - wait["since"]).total_seconds() / 3600 if wait else 0.0
        shown.append(
            {
                "tenant": tenant.slug,
                "sealed_at": row["sealed_at"] if row else None,
                "records": row["tree_size"] if row else 0,
                "signature": good,
                "unsealed": wait["records"] if wait else None if counted is None else 0,
                "verified_at": check_.at if check_ else None,
                "verified_good": check_.good if check_ else None,
            }
        )
        subject = f"seal {tenant.slug}"
        if good is False:
            notes.fail(
                f"The newest head of {tenant.slug} is not what was signed.",
                subject=subject,
                mend=f"piccolo core verify_audit --tenant={tenant.slug} says what was changed.",
            )
        if check_ and not check_.good:
            notes.fail(
                f"The last verification of {tenant.slug} found records that are not as sealed.",
                subject=subject,
                mend=f"piccolo core verify_audit --tenant={tenant.slug} names them.",
            )
        if wait and late > FRESH:
            notes.warn(
                f"{tenant.slug} has {plural(wait['records'], 'record')} that were never sealed, for {late:.0f} hours.",
                subject=subject,
                mend="Run piccolo core seal_audit from cron, at least once a day.",
            )
    live.shown["seals"] = shown
    sealed = [item for item in shown if item["sealed_at"]]
    if shown and not sealed:
        notes.warn(
            "No log was ever sealed: until it is, somebody with the owner's rights could change it unseen.",
            mend="Run piccolo core seal_audit from cron, at least once a day.",
        )
    if looked is not None:
        _unverified(sealed, now, notes)
    unsealed = sum(item["unsealed"] or 0 for item in shown)
    wait_ = "" if counted is None else f"; {plural(unsealed, 'record waits', 'records wait')} for the next sealing"
    if sealed:
        notes.seen(
            f"Sealed logs: {len(sealed)} of {plural(len(shown), 'tenant')}; the signature of each newest head holds"
            f"{wait_}{live.unseen()}."
        )
    elif not shown:
        notes.end(f"There is no log to seal{live.unseen()}.")


def _last_attestation(row: Any, keys: Mapping[str, bytes]) -> Attestation | None:
    """The latest that is signed, by the moment that it says itself."""
    found = [attestation for said in row["said"] if (attestation := Attestation.read(row["tenant_id"], said, keys))]
    return max(found, key=lambda attestation: attestation.at, default=None)


def _unverified(sealed: list[dict[str, Any]], now: datetime, notes: Notes) -> None:
    """A signature says that a head is ours; that the records are as sealed only ``verify_audit`` computes."""
    stale = [item for item in sealed if item["verified_at"] is None or (now - item["verified_at"]).days > VERIFIED_DAYS]
    if stale:
        never = sum(item["verified_at"] is None for item in stale)
        notes.warn(
            f"Not verified in the last {VERIFIED_DAYS} days: {len(stale)} of {plural(len(sealed), 'sealed log')}, "
            f"{never} of them never.",
            mend="Run piccolo core verify_audit from cron, with --heads=FILE, once a month at least.",
        )


@check("164.312(c)(1)")
async def checksums(live: Live, notes: Notes) -> None:
    """A flipped bit on disk is noticed when the page is read."""
    if await live.connection.fetchval("select current_setting('data_checksums')") != "on":
        notes.warn(
            "The server keeps no checksums of its pages.",
            mend="Stop the server and run pg_checksums --enable.",
        )
    notes.end(
        "The server's pages carry checksums; a sealed value has its own tag (AES-GCM), which is asked when it opens."
    )
