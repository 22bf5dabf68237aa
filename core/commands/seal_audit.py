"""``piccolo core seal_audit``: signs what the log says now."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from core.audit.head import TreeHead, public_keys
from core.audit.seal import MOST, Sealed, seal
from core.commands.family import Failure, command, console, errors, resolve_actor, slug_of
from core.errors import ChartholdError, ConfigurationError
from core.provision import engine
from core.scope import scope
from core.settings import settings

__all__ = ["ALL", "export_head", "seal_audit", "tenants_by_slug"]

ALL = "all"


@command(stopped="Stopped. What was sealed stays sealed; run it again to seal the rest.")
async def seal_audit(
    tenant: str = ALL, actor: str = "", export: str = "", json: bool = False, quiet: bool = False
) -> int:
    """Seal the audit log: add what finished since the last time to each tenant's tree, and sign it.

    Writers do not wait for it. Safe to run from cron, as often as you like: what is not sealed yet is not protected.

    Example: piccolo core seal_audit --export=/mnt/write-once/heads.jsonl

    :param tenant:
        A tenant's slug, or all.
    :param actor:
        Who seals: the id or e-mail of an admin or auditor; each tenant's first admin when left out.
    :param export:
        Append the newest heads to this file, one JSON document a line. Keep it where the database's owner cannot
        write: it is what shows later that the past was not rewritten.
    :param json:
        Print the newest heads as JSON.
    :param quiet:
        Print problems only.

    """
    if actor and tenant == ALL:
        raise Failure("--actor is a user of one tenant. Name the tenant too, as in --tenant=lakeside.")
    status, printed = 0, []
    for slug, tenant_id in (await tenants_by_slug(tenant)).items():
        try:
            added, newest = await _seal_all(tenant_id, actor)
        except ChartholdError as error:
            if tenant != ALL:
                raise
            # The other tenants' logs are no less worth sealing.
            errors().print(f"{slug}: {error}")
            status = 1
            continue
        if newest and export:
            export_head(Path(export), newest)
        if json:
            printed.append({"slug": slug, "added": added, "head": newest.to_json() if newest else None})
        elif not quiet:
            size = newest.tree_size if newest else 0
            console().print(f"{slug}: {added} records sealed, {size} in all.")
    if json:
        keys = {key: public.hex() for key, public in public_keys(settings()).items()}
        print(jsonlib.dumps({"public_keys": keys, "tenants": printed}, indent=2))
    return status


async def tenants_by_slug(tenant: str) -> dict[str, UUID]:
    """The tenant with that slug, or all of them, the suspended and the closed too: their logs must last as long."""
    connection = await engine().connect(owner=True)
    try:
        rows = await connection.fetch("select slug, tenant_id from charthold.tenant_directory order by slug")
    except Exception as error:
        if getattr(error, "sqlstate", None) != "42501":
            raise
        raise ConfigurationError(
            "The tenants are listed by the owner of the schema. Set DATABASE_OWNER_URL to the owner's login."
        ) from None
    finally:
        await connection.close()
    found: dict[str, UUID] = {row["slug"]: row["tenant_id"] for row in rows}
    if tenant == ALL:
        return found
    if slug_of(tenant) not in found:
        raise Failure(f"There is no tenant {tenant}.")
    return {tenant: found[tenant]}


async def _seal_all(tenant: UUID, actor: str) -> tuple[int, TreeHead | None]:
    """Seal until nothing is left, a transaction and a scope at a time: a scope ends by itself."""
    who, added = await resolve_actor(tenant, actor), 0
    while True:
        async with scope(tenant=tenant, actor=who, reason="seal the audit log"):
            done: Sealed = await seal()
        added += done.added
        if done.added < MOST:
            return added, done.newest


def export_head(path: Path, head: TreeHead) -> None:
    """Append the head to the file, unless it is the last one there."""
    line = jsonlib.dumps(_with_key(head), sort_keys=True)
    try:
        if path.exists() and line in path.read_text(encoding="utf-8").splitlines():
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Failure(f"The heads were sealed, and not exported: {path}: {error.strerror}.") from None


def _with_key(head: TreeHead) -> dict[str, Any]:
    return head.to_json() | {"public_key": public_keys(settings())[head.key_id].hex()}
