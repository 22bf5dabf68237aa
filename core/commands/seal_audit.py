"""``piccolo core seal_audit``: signs what the log says now."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from core.audit.head import TreeHead, public_keys
from core.audit.seal import MOST, Sealed, seal
from core.commands.bar import bar
from core.commands.family import SKIPPED, Failure, command, console, errors, sentence
from core.commands.options import ALL, by_slug, reason_for, resolve_actor
from core.scope import scope
from core.settings import settings
from core.statements.explain import lost

__all__ = ["HeadFile", "seal_audit"]


@command(stopped="Stopped. What was sealed stays sealed; run it again to seal the rest.")
async def seal_audit(
    *, tenant: str = ALL, actor: str = "", export: str = "", json: bool = False, quiet: bool = False
) -> int:
    """Seal the audit log: add what finished since the last time to each tenant's tree, and sign it.

    Writers do not wait for it. Safe to run from cron, as often as you like: what is not sealed yet is not protected.

    Example: piccolo core seal_audit --export=/mnt/write-once/heads.jsonl

    :param tenant:
        A tenant's slug, or all.
    :param export:
        Append the newest heads to this file, one JSON document a line. Keep it where the database's owner cannot
        write: it is what shows later that the past was not rewritten.

    """
    file = HeadFile(Path(export)) if export else None
    status, tenants = 0, await by_slug(tenant, actor)
    printed: list[dict[str, Any]] = []
    with bar("sealing", show=not quiet) as progress:
        for number, (slug, tenant_id) in enumerate(tenants.items()):
            progress(f"sealing {slug}", number, len(tenants) if len(tenants) > 1 else None)
            try:
                added, newest = await _seal_all(tenant_id, actor)
            except Exception as error:  # whatever it is, the other tenants' logs are no less worth sealing
                if tenant != ALL or lost(error):
                    raise
                errors().print(f"{slug}: {sentence(error)}")
                printed.append({"slug": slug, "problem": sentence(error)})
                status = SKIPPED
                continue
            if newest and file:
                file.append(newest)
            printed.append({"slug": slug, "added": added, "head": newest.to_json() if newest else None})
            if not (json or quiet):
                size = newest.tree_size if newest else 0
                console().print(f"{slug}: {added:,} records sealed, {size:,} in all.")
    if json:
        keys = {key: public.hex() for key, public in public_keys(settings()).items()}
        print(jsonlib.dumps({"public_keys": keys, "tenants": printed}, indent=2))
    return status


async def _seal_all(tenant: UUID, actor: str) -> tuple[int, TreeHead | None]:
    """Seal until nothing is left, a transaction and a scope at a time: a scope ends by itself."""
    who, added = await resolve_actor(tenant, actor), 0
    while True:
        async with scope(tenant=tenant, actor=who, reason=reason_for("seal the audit log", actor)):
            done: Sealed = await seal()
        added += done.added
        if done.added < MOST:
            return added, done.newest


class HeadFile:
    """The file that heads are exported to, one a line. Raises ``Failure`` when it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The last line of each tenant; not of a pipe or a device, which cannot be read again.
        self._last: dict[str, bytes] = {}
        self._torn = False
        try:
            if path.is_file():
                with path.open("rb") as file:
                    for line in file:
                        self._torn = not line.endswith(b"\n")
                        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # a torn line
                            self._last[jsonlib.loads(line)["tenant_id"]] = line.strip()
        except OSError as error:
            raise self._failure(error) from None

    def append(self, head: TreeHead) -> None:
        """Append the head, unless it is the tenant's last one there. What a crash left of a line stays a line."""
        line = jsonlib.dumps(_with_key(head), sort_keys=True).encode()
        if self._last.get(str(head.tenant_id)) == line:
            return
        try:
            with self.path.open("ab") as file:
                file.write(b"\n" * self._torn + line + b"\n")
                file.flush()
                if self.path.is_file():  # a pipe has nothing to sync
                    os.fsync(file.fileno())
        except OSError as error:
            self._torn = True  # who knows how much of it
            raise self._failure(error) from None
        self._last[str(head.tenant_id)], self._torn = line, False

    def _failure(self, error: OSError) -> Failure:
        return Failure(f"The heads are not exported to {self.path}: {error.strerror}. What was sealed stays sealed.")


def _with_key(head: TreeHead) -> dict[str, Any]:
    return head.to_json() | {"public_key": public_keys(settings())[head.key_id].hex()}
