"""``piccolo core verify_audit``: whether the log is what was sealed."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg

from core.audit.attestation import Attestation
from core.audit.head import SealKey, TreeHead, public_keys
from core.audit.proof import prove, prove_growth
from core.audit.record import record as record_action
from core.audit.report import Report
from core.audit.verify import verify
from core.commands.bar import bar
from core.commands.family import FOUND, SKIPPED, Failure, command, console, errors, sentence
from core.commands.options import ALL, by_slug, reason_for, resolve_actor
from core.crypto.kms import master_key
from core.errors import ChartholdError
from core.scope import scope
from core.settings import settings
from core.statements.explain import lost

__all__ = ["read_heads", "verify_audit"]


@command()
async def verify_audit(
    *,
    tenant: str = ALL,
    proof: str = "",
    growth: str = "",
    heads: str = "",
    actor: str = "",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Compute each tenant's tree again from the log itself, and name what is not as it was sealed.

    Records that were changed, moved, taken out or put in; heads that were rewritten or deleted.

    Example: piccolo core verify_audit --tenant=lakeside --heads=/mnt/write-once/heads.jsonl

    :param tenant:
        A tenant's slug, or all.
    :param proof:
        Print a proof, as JSON, that this record (its id in the log) stands in the signed tree; docs/verify_proof.py
        verifies it anywhere.
    :param growth:
        Print a proof, as JSON, that the log only grew since the tenant's newest head in this file, which seal_audit
        --export wrote; docs/verify_growth.py verifies it anywhere.
    :param heads:
        A file that seal_audit --export wrote: shows whether the past was rewritten since, by whomever.

    """
    if sum(map(bool, (proof, growth, heads))) > 1:
        raise Failure("One of --proof, --growth and --heads at a time.")
    exported, unread = read_heads(Path(heads or growth)) if heads or growth else ([], [])
    if unread:
        errors().print(f"{heads or growth}: no head in line {', '.join(map(str, unread))}. The others are compared.")
    if (proof or growth) and tenant == ALL:
        raise Failure("A proof is about one tenant. Name it, as in --tenant=lakeside.")
    tenants = await by_slug(tenant, actor)
    if proof:
        await _print_proof(tenants[tenant], actor, proof)
        return 0
    if growth:
        await _print_growth(tenants[tenant], actor, exported, growth)
        return 0

    found = await _verify_all(tenants, exported, actor, stop_at_error=tenant != ALL, json=json, quiet=quiet)
    uncompared = [slug for slug, report in found.reports.items() if heads and not report.exported_heads]
    for slug in uncompared:
        # Threat: who empties the file of heads makes every past a good one.
        errors().print(f"{slug}: {heads} has no head of it, so nothing shows whether its past was signed anew.")
    if found.unrecorded:
        errors().print(
            "The server is read-only, as a standby is: that somebody verified is not recorded, and the doctor does not "
            "learn of it."
        )
    if not tenants and not (quiet or json):
        console().print("There is no tenant yet.")
    gone = sorted({head.tenant_id for head in exported} - set(tenants.values())) if tenant == ALL else []
    for tenant_id in gone:
        errors().print(f"The tenant {tenant_id} has exported heads and is gone.")
    if json:
        keys = {key: public.hex() for key, public in public_keys(settings()).items()}
        told = {slug: report.to_json() for slug, report in found.reports.items()}
        said = {"tenants": told, "gone": [str(tenant_id) for tenant_id in gone]}
        left_out = {"not_verified": found.skipped, "not_compared": uncompared}
        print(jsonlib.dumps({"public_keys": keys, **said, **left_out}, indent=2))
    if gone or not all(report.good for report in found.reports.values()):
        return FOUND
    return SKIPPED if found.skipped or uncompared or unread else 0


@dataclass
class _Verified:
    """The reports, and why other tenants' logs were not verified; both by slug."""

    reports: dict[str, Report] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    # Whether the server could not write down that somebody verified.
    unrecorded: bool = False


async def _verify_all(
    tenants: dict[str, UUID], exported: list[TreeHead], actor: str, *, stop_at_error: bool, json: bool, quiet: bool
) -> _Verified:
    key, found = SealKey(master_key(settings())), _Verified()
    with bar("verifying", show=not quiet) as progress:
        for number, (slug, tenant_id) in enumerate(tenants.items()):
            progress(f"verifying {slug}", number, len(tenants) if len(tenants) > 1 else None)
            try:
                who = await resolve_actor(tenant_id, actor)
                async with scope(tenant=tenant_id, actor=who, reason=reason_for("verify the audit log", actor)):
                    report = await verify(exported)
                    # Who looked, and what was seen, for the report; the evidence itself is the verification.
                    seen = Attestation(tenant_id, report.good, report.tree_size, datetime.now(UTC))
                    try:
                        await record_action("audit_read", new={"verified": seen.signed(key)})
                    except asyncpg.ReadOnlySQLTransactionError:
                        found.unrecorded = True  # a standby can verify, and shows nothing of what stands in the log
            except Exception as error:  # whatever it is, it says nothing about the other tenants' logs
                if stop_at_error or lost(error):
                    raise
                found.skipped[slug] = sentence(error)
                errors().print(f"{slug}: not verified. {found.skipped[slug]}")
                continue
            found.reports[slug] = report
            if not json:
                _print_report(slug, report, quiet=quiet)
    return found


def read_heads(path: Path) -> tuple[list[TreeHead], list[int]]:
    """The heads in an exported file, and the numbers of the lines that are none."""
    heads: list[TreeHead] = []
    unread: list[int] = []
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                heads.append(TreeHead.from_json(jsonlib.loads(line)))
        except (ChartholdError, ValueError, AttributeError, RecursionError):
            unread.append(number)
    if not heads:
        raise Failure(f"{path} holds no exported head: one JSON document a line, as seal_audit --export writes them.")
    return heads, unread


async def _print_proof(tenant: UUID, actor: str, record: str) -> None:
    try:
        record_id = UUID(record)
    except ValueError:
        raise Failure("--proof takes the id of a record of the log, a UUID.") from None
    reason = reason_for("prove an audit record", actor)
    async with scope(tenant=tenant, actor=await resolve_actor(tenant, actor), reason=reason):
        print(jsonlib.dumps(await prove(record_id), indent=2))


async def _print_growth(tenant: UUID, actor: str, exported: list[TreeHead], file: str) -> None:
    kept = [head for head in exported if head.tenant_id == tenant]
    if not kept:
        raise Failure(f"{file} has no head of this tenant.")
    reason = reason_for("prove that the log only grew", actor)
    async with scope(tenant=tenant, actor=await resolve_actor(tenant, actor), reason=reason):
        proved = await prove_growth(max(kept, key=lambda head: head.tree_size))
        print(jsonlib.dumps(proved, indent=2))


def _print_report(slug: str, report: Report, *, quiet: bool) -> None:
    for finding in report.findings:
        console().print(f"{slug}: {finding}")
    if not quiet:
        console().print(f"{slug}: {report.summary()}")
