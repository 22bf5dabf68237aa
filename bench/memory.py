"""Does a process that serves requests grow?

    python -m bench.memory [--requests=10000] [--tenants=20] [--json=FILE]

A request opens a scope, gets a client, lists ten, updates one, inserts one and closes the scope; the tenants come in
turn. Printed are the resident memory after the first requests, half-way and at the end, and then, traced for as many
requests again as a tenth of that, what Python itself still held that it did not hold before.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

from bench.population import REAL, Clinic, client, make_tenants
from bench.server import facts, migrated, run
from core import embedded
from core.tables import Client
from piccolo_conf import DB

__all__ = ["held", "resident", "serve"]

PAGE = os.sysconf("SC_PAGE_SIZE")
MOST = 1.05  # times that the memory after a tenth of the requests may grow until the end


async def serve(clinics: list[Clinic], numbers: Iterable[int]) -> None:
    """One request a number."""
    for n in numbers:
        clinic = clinics[n % len(clinics)]
        row = clinic.clients[n % REAL]
        async with clinic.scope():
            await Client.objects().get(Client.id == row)
            await Client.objects().order_by(Client.created_at, ascending=False).limit(10)
            await Client.update({Client.notes: f"seen {n}"}).where(Client.id == row)
            await client(clinic, 1_000_000 + n).save()


def resident() -> float:
    """The process's memory in MB, now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**20


async def held(clinics: list[Clinic], first: int, requests: int) -> tuple[int, list[str]]:
    """Bytes that Python holds after the requests and did not before, and where most of them were taken."""
    tracemalloc.start()
    try:
        # What is traced from here on replaces what was not traced: caches fill, connections begin.
        await serve(clinics, range(first, first + requests // 2))
        gc.collect()
        before = tracemalloc.take_snapshot()
        await serve(clinics, range(first + requests // 2, first + requests // 2 + requests))
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    mine = [tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__)]
    grown = after.filter_traces(mine).compare_to(before.filter_traces(mine), "lineno")
    return sum(line.size_diff for line in grown), [str(line) for line in grown[:5]]


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    await migrated()
    clinics = await make_tenants(1, wanted.tenants)
    steps = sorted({max(wanted.requests // 10, 1), wanted.requests // 2, wanted.requests})
    seen: dict[int, float] = {0: resident()}
    done = 0
    for step in steps:
        await serve(clinics, range(done, step))
        done, seen[step] = step, resident()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    well = seen[done] <= seen[steps[0]] * MOST
    print("| requests | resident |\n|---|---|")
    for step, megabytes in seen.items():
        print(f"| {step:,} | {megabytes:.1f} MB |")
    print(f"\nPeak {peak:.1f} MB; from {steps[0]:,} requests on it {'does not grow ✓' if well else 'grows ✗'}")
    traced = wanted.requests // 10
    grown, lines = await held(clinics, done, traced)
    print(f"{traced:,} more requests, traced: {grown / 1024:+.1f} KB\n  " + "\n  ".join(lines))
    await DB.close_connection_pool()
    if wanted.json:
        document = {"machine": await facts(server), "resident_mb": seen, "peak_mb": peak, "traced_bytes": grown}
        Path(wanted.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    run(lambda server: main(server, arguments))
