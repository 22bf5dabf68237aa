"""How fast an export is imported, end to end, and in how much memory.

    python -m bench.importing [--patients=100000] [--rounds=3] [--profile] [--json=FILE]

Patients are written as Synthea's CSV exporter writes them, and imported by the command itself into a new tenant each
round. ``--profile`` prints where the time goes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import csv
import json
import pstats
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from bench.server import facts, migrated, run
from core import embedded
from core.commands.import_synthea import SAMPLE, import_export
from piccolo_conf import DB

LEAST, MOST = 8_000, 300  # patients a second, MB


def write(folder: Path, patients: int) -> None:
    """An export of the sample's shape: its organizations and providers, and patients made up of its patients."""
    for name in ("organizations.csv", "providers.csv"):
        shutil.copy(SAMPLE / name, folder / name)
    with (SAMPLE / "patients.csv").open(encoding="utf-8", newline="") as file:
        header, *known = list(csv.reader(file))
    place = {name: at for at, name in enumerate(header)}
    chance = random.Random(7)  # the same patients each time
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number in range(patients):
            row = [chance.choice(known)[at] for at in range(len(header))]
            row[place["Id"]] = str(UUID(int=chance.getrandbits(128), version=4))
            row[place["SSN"]] = f"999-{number % 90 + 10}-{number % 10_000:04}"
            row[place["BIRTHDATE"]] = f"{chance.randrange(1920, 2000)}-{chance.randrange(1, 13):02}-10"
            row[place["DEATHDATE"]] = "2015-03-04" if chance.random() < 0.1 else ""
            writer.writerow(row)


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    await migrated()
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(write, Path(folder), wanted.patients)
        if wanted.profile:
            await profiled(folder)
            return
        rates = []
        for number in range(wanted.rounds):
            began, worked = time.perf_counter(), time.process_time()
            status = await import_export(folder, f"bench-{number}", quiet=True)
            rates.append(wanted.patients / (time.perf_counter() - began))
            if status:
                sys.exit(f"The import ended with status {status}.")
            each = (time.process_time() - worked) / wanted.patients * 1e6
            print(f"{rates[-1]:,.0f} patients a second; Python worked {each:.0f} us for each", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    best = max(rates)
    well = best >= LEAST and peak <= MOST
    print(f"\n{wanted.patients:,} patients: {best:,.0f} a second at best, peak {peak:.0f} MB")
    print(f"wanted: >= {LEAST:,} a second, <= {MOST} MB {'✓' if well else '✗'}")
    await DB.close_connection_pool()
    if wanted.json:
        document = {"machine": await facts(server), "patients_a_second": rates, "peak_mb": peak, "ok": well}
        Path(wanted.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


async def profiled(folder: str) -> None:
    """One import under the profiler; what it costs itself makes the whole slower."""
    profile = cProfile.Profile()
    profile.enable()
    await import_export(folder, "bench-profile", quiet=True)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    run(lambda server: main(server, arguments))
