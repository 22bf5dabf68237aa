"""What every benchmark begins with: a server of its own, gone afterwards, and the facts of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from piccolo.apps.migrations.commands.forwards import run_forwards

from core import embedded
from core.settings import settings

__all__ = ["Disk", "facts", "migrated", "run"]


# What an operator would give a server of this size; initdb's own choice is a server for a laptop. For all contenders.
TUNED = {"shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB", "checkpoint_timeout": "1h"}


def run(main: Callable[[embedded.Server], Awaitable[None]], *, uvloop: bool = False) -> None:
    """Run ``main`` beside a new server, on asyncio's own loop as most programs do, or on uvloop."""
    home = Path(tempfile.mkdtemp(prefix="charthold-bench-"))
    home.chmod(0o755)  # as root the server runs as an account of its own, which must be able to enter
    for name in ("DATABASE_URL", "DATABASE_OWNER_URL", "CHARTHOLD_ROLE_PREFIX"):
        os.environ.pop(name, None)
    os.environ["CHARTHOLD_HOME"] = str(home)
    os.environ["CHARTHOLD_SCOPE_SECONDS"] = "7200"  # one scope may have to last for a whole comparison
    settings.cache_clear()

    async def beside() -> None:
        owner = await asyncpg.connect(**embedded.start(home).dsn(login="owner"))
        for name, value in TUNED.items():
            await owner.execute(f"alter system set {name} = '{value}'")
        await owner.close()
        embedded.stop(home)
        await main(embedded.start(home))

    try:
        if uvloop:
            import uvloop as loop  # not on every platform

            loop.run(beside())
        else:
            asyncio.run(beside())
    finally:
        embedded.stop(home, mode="immediate")
        shutil.rmtree(home, ignore_errors=True)


async def migrated() -> None:
    """The server's database with all tables, without the migrator's words."""
    with contextlib.redirect_stdout(io.StringIO()):
        await asyncio.create_task(run_forwards(app_name="core"))  # in a task: it works as the owner until that ends


class Disk:
    """How long a commit waits for the disk: one-row commits that wait, less ones that do not."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {"on": [], "off": []}

    async def probe(self, connection: Any, commits: int = 40) -> None:
        """Measure some commits. Between other work, so that what is said holds for that time."""
        await connection.execute("create table if not exists public.bench_commit (n int)")
        for _ in range(commits):
            for mode, taken in self._taken.items():
                await connection.execute(f"set synchronous_commit = {mode}")
                began = time.perf_counter()
                await connection.execute("insert into public.bench_commit values (1)")
                taken.append((time.perf_counter() - began) * 1e3)

    @property
    def fsync_ms(self) -> float:
        """The median wait in milliseconds."""
        return max(statistics.median(self._taken["on"]) - statistics.median(self._taken["off"]), 0.0)


async def facts(server: embedded.Server) -> dict[str, Any]:
    """What a number means nothing without."""
    connection = await asyncpg.connect(**server.dsn(login="owner"))
    version = await connection.fetchval("show server_version")
    await connection.close()
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "postgresql": version.split()[0],
        "python": platform.python_version(),
    }
