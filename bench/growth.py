"""Latency against growth: tenants, clients, clients of one tenant, audit records.

    python -m bench.growth [--quick] [--json=FILE] [--chart=FILE.svg]

Every size is a database of its own on one server, and all are asked in interleaved rounds, so that a machine that slows
down slows all of them. Up to 20 clinics, of 80 clients at least, are asked in turn, a scope for each turn, with caches
warm. Commits do not wait for the disk: that wait grows with nothing, and would hide what does. What counts is the ratio
to the smallest size; from 10,000 to 1,000,000 clients get and find may grow 1.3 times. ``--quick`` is a hundredth of
it, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from bench.chart import lines
from bench.population import REAL, Clinic, client, fill_clients, fill_log, make_tenants, name_of, settle
from bench.server import facts, migrated, run
from core import embedded
from core.tables import Client
from piccolo_conf import DB

ASKED = 20  # clinics
QUIET = 20  # of a clinic's clients; only their history is asked for, so that it does not grow
TURNS = 20  # of one round in one database
MOST = 1.3  # times that get and find may grow with the clients

Operation = Callable[[Clinic, int], Awaitable[Any]]

OPERATIONS: dict[str, Operation] = {
    "get": lambda clinic, n: Client.objects().get(Client.id == clinic.clients[QUIET + n % (REAL - QUIET)]).run(),
    "find": lambda clinic, n: Client.objects().where(Client.last_name == name_of(QUIET + n % (REAL - QUIET))).run(),
    "list 50": lambda clinic, n: (
        Client.objects().where(Client.status == "active").order_by(Client.created_at, ascending=False).limit(50).run()
    ),
    "update": lambda clinic, n: (
        Client.update({Client.notes: f"n{n}"}).where(Client.id == clinic.clients[QUIET + n % (REAL - QUIET)]).run()
    ),
    "insert one": lambda clinic, n: client(clinic, 1_000_000 + n).save().run(),
    "history": lambda clinic, n: Client(id=clinic.clients[n % QUIET], _ignore_missing=True).history(),
}


@dataclass
class Size:
    """A database: how many tenants, clients or records it has, and how long each operation took, in milliseconds."""

    database: str
    number: int
    clinics: list[Clinic]
    taken: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})

    def median(self, name: str) -> float:
        return statistics.median(self.taken[name])


@dataclass(frozen=True)
class Plan:
    """How far to grow."""

    tenants: tuple[int, ...] = (1, 10, 100, 1_000)
    each: tuple[int, ...] = (10, 100, 1_000)  # clients of a tenant; the tenants grow with the second of them
    alone: tuple[int, ...] = (1_000, 10_000, 100_000)  # clients of the only tenant
    records: tuple[int, ...] = (1_000_000, 10_000_000)
    rounds: int = 16


QUICK = Plan(tenants=(1, 10, 50), each=(10, 100, 500), alone=(1_000, 10_000), records=(20_000, 100_000), rounds=4)


class Nursery:
    """Where databases grow: each begins as a copy of a smaller one."""

    def __init__(self, server: asyncpg.Connection) -> None:
        self._server = server

    async def copied(self, name: str, source: str, *work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> str:
        """A copy of ``source``, on which ``work`` was done in turn."""
        began = time.perf_counter()
        await DB.use(name)
        await self._server.execute(f"create database {name} template {source} strategy file_copy", timeout=3_600)
        owner = await DB.connect(owner=True)
        for step in work:
            await step(owner)
        await settle(owner)
        await owner.close()
        await DB.close_connection_pool()  # nobody may be connected to what is copied
        print(f"  {name}: {time.perf_counter() - began:.0f} s", flush=True)
        return name


async def grow(nursery: Nursery, plan: Plan) -> dict[str, list[Size]]:
    """Every size of every series."""
    few, some, many = plan.each
    largest = plan.tenants[-1]
    clinics: list[Clinic] = []

    def tenants(first: int, last: int) -> Callable[[asyncpg.Connection], Awaitable[Any]]:
        async def make(_: asyncpg.Connection) -> None:
            for start in range(first, last + 1):
                real = REAL if start <= ASKED else 0
                clinics.extend(await make_tenants(start, start, real=real))

        return make

    def clients(each: int) -> Callable[[asyncpg.Connection], Awaitable[Any]]:
        return lambda owner: fill_clients(owner, each)

    def records(first: int, last: int) -> Callable[[asyncpg.Connection], Awaitable[Any]]:
        return lambda owner: fill_log(owner, first, last)

    by_tenants, source, before = [], embedded.DATABASE, 0
    for count in plan.tenants[:-1]:
        source = await nursery.copied(f"tenants_{count}", source, tenants(before + 1, count), clients(some))
        by_tenants.append(Size(source, count, clinics[:ASKED]))
        before = count
    clinics = []
    all_tenants = await nursery.copied("all_tenants", embedded.DATABASE, tenants(1, largest))
    small = await nursery.copied("small", all_tenants, clients(few))
    middle = await nursery.copied("middle", all_tenants, clients(some))
    large = await nursery.copied("large", middle, clients(many))
    asked = clinics[:ASKED]
    by_tenants.append(Size(middle, largest, asked))
    by_clients = [
        Size(name, largest * each, asked) for name, each in zip((small, middle, large), plan.each, strict=True)
    ]
    by_records, source, before = [Size(middle, 0, asked)], middle, 0
    for count in plan.records:
        source = await nursery.copied(f"records_{count}", source, records(before + 1, count))
        by_records.append(Size(source, count, asked))
        before = count
    by_one, source, only = [], f"tenants_{plan.tenants[0]}", by_tenants[0].clinics
    for count in plan.alone:
        source = await nursery.copied(f"alone_{count}", source, clients(count))
        by_one.append(Size(source, count, only))
    # A size that stands in several series is measured once.
    by_tenants[-1].taken = by_records[0].taken = by_clients[1].taken
    return {
        "tenants": by_tenants,
        "clients": by_clients,
        "clients of one tenant": by_one,
        "audit records": by_records,
    }


async def visit(size: Size, turn: int) -> None:
    """One round in one database: every operation once in each turn, clinic after clinic."""
    await DB.use(size.database)
    warm = len(size.clinics)
    for n in range(warm + TURNS):
        clinic = size.clinics[n % len(size.clinics)]
        async with clinic.scope():
            for name, operation in OPERATIONS.items():
                began = time.perf_counter()
                await operation(clinic, turn * (ASKED + TURNS) + n)
                if n >= warm:
                    size.taken[name].append((time.perf_counter() - began) * 1e3)


def show(series: dict[str, list[Size]]) -> bool:
    """Print the tables; whether get and find grew no more than they may."""
    for grows, sizes in series.items():
        print(f"\n| {grows} | {' | '.join(f'{size.number:,}' for size in sizes)} |")
        print("|---" * (len(sizes) + 1) + "|")
        for name in OPERATIONS:
            medians = [size.median(name) for size in sizes]
            cells = [f"{medians[0]:.2f} ms", *(f"{m:.2f} ms, {m / medians[0]:.2f} x" for m in medians[1:])]
            print(f"| {name} | {' | '.join(cells)} |")
    first, *_, last = series["clients"]
    grown = {name: last.median(name) / first.median(name) for name in ("get", "find")}
    well = max(grown.values()) < MOST
    said = ", ".join(f"{name} {times:.2f} x" for name, times in grown.items())
    print(f"\nFrom {first.number:,} to {last.number:,} clients: {said}; wanted: < {MOST} x {'✓' if well else '✗'}")
    return well


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    plan = QUICK if wanted.quick else Plan()
    await migrated()
    control = await asyncpg.connect(**server.dsn(login="owner", database="postgres"))
    for setting in ("synchronous_commit = off", "max_wal_size = '8GB'", "checkpoint_timeout = '1h'"):
        await control.execute(f"alter system set {setting}")
    await control.execute("select pg_reload_conf()")
    await DB.close_connection_pool()
    print("Growing:", flush=True)
    series = await grow(Nursery(control), plan)
    sizes = list({size.database: size for found in series.values() for size in found}.values())
    os.sync()  # what growing wrote must not delay what is measured
    for turn in range(plan.rounds):
        for size in sizes:
            await visit(size, turn)
    await DB.close_connection_pool()
    await control.close()
    well = show(series)
    if wanted.json:
        found = {
            grows: [{"number": s.number, **{name: s.median(name) for name in OPERATIONS}} for s in sizes]
            for grows, sizes in series.items()
        }
        document = {"machine": await facts(server), "milliseconds": found, "ok": well}
        Path(wanted.json).write_text(json.dumps(document, indent=1), encoding="utf-8")
    if wanted.chart:
        panels = [
            (grows, [s.number for s in sizes], {name: [s.median(name) for s in sizes] for name in OPERATIONS})
            for grows, sizes in series.items()
        ]
        Path(wanted.chart).write_text(lines("Latency against growth, the smallest size is 1", panels), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default="")
    parser.add_argument("--chart", default="")
    arguments = parser.parse_args()
    run(lambda server: main(server, arguments))
