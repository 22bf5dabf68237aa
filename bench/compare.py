"""Raw asyncpg, plain Piccolo and Charthold, side by side on one server and the same data.

    python -m bench.compare [--tenants=50] [--clients=2000] [--rounds=5] [--json=FILE] [--chart=FILE.svg]

Raw asyncpg and plain Piccolo protect nothing: no tenants, no encryption, no audit. Charthold does all of it, reads
recorded durably. Rounds are interleaved, so that a machine that slows down slows all three. What counts is the ratio of
medians to plain Piccolo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

os.environ["CHARTHOLD_HOME"] = os.environ.get("BENCH_HOME") or tempfile.mkdtemp(prefix="charthold-bench-")
os.environ.setdefault("CHARTHOLD_POOL_SIZE", "16")
Path(os.environ["CHARTHOLD_HOME"]).chmod(0o755)

import asyncpg
from piccolo.apps.migrations.commands.forwards import run_forwards
from piccolo.columns import JSONB, Date, Text, Timestamptz
from piccolo.columns import UUID as UUIDColumn  # noqa: N811
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

from bench.chart import bars
from core import embedded, provision_tenant, scope
from core.ids import uuid7
from core.settings import settings
from core.tables import Client, Facility
from piccolo_conf import DB

Operation = Callable[[int], Awaitable[Any]]
PHI = ("first_name", "last_name", "date_of_birth", "ssn", "mrn", "email", "phone", "address")
WORKERS = 16


def values(number: int) -> dict[str, Any]:
    """A client's eight PHI fields."""
    return {
        "first_name": f"Ana{number}",
        "last_name": f"Nguyen{number}",
        "date_of_birth": date(1980, 1, 1 + number % 28),
        "ssn": f"{number % 1000:03}-17-{number % 10000:04}",
        "mrn": f"M{number}-{uuid4().hex[:8]}",
        "email": f"ana{number}@mail.example",
        "phone": f"+1 617 555 {number % 10000:04}",
    }


def plain_table(engine: PostgresEngine) -> type[Table]:
    """The same columns in a table of plain Piccolo."""

    class PlainClient(Table, tablename="plain_client", db=engine):
        id = UUIDColumn(primary_key=True, default=uuid7)
        tenant_id = UUIDColumn(default=None)
        created_at = Timestamptz()
        updated_at = Timestamptz()
        facility_id = UUIDColumn(default=None)
        user_id = UUIDColumn(default=None, null=True)
        status = Text(default="active")
        first_name = Text()
        last_name = Text()
        date_of_birth = Date()
        ssn = Text(null=True)
        mrn = Text(null=True)
        email = Text(null=True)
        phone = Text(null=True)
        address = JSONB(null=True)
        insurance_member_id = Text(null=True, default=None)
        emergency_contact = JSONB(null=True, default=None)
        notes = Text(null=True, default=None)
        admitted_on = Date(null=True, default=None)
        discharged_on = Date(null=True, default=None)

    return PlainClient


class Subject:
    """The operations of one contender, for one tenant."""

    def __init__(self, name: str, **operations: Operation) -> None:
        self.name = name
        self.operations = operations


async def prepare(
    tenants: int, clients: int
) -> tuple[Any, list[Any], list[Any], type[Table], PostgresEngine, asyncpg.Pool]:
    """A server with the data of all three contenders."""
    server = embedded.start(settings().home)
    await asyncio.create_task(run_forwards(app_name="core"))
    engine = PostgresEngine(config=server.dsn(login="owner"))
    await engine.start_connection_pool(min_size=1, max_size=WORKERS)
    plain = plain_table(engine)
    await plain.create_table(if_not_exists=True)
    pool = await asyncpg.create_pool(**server.dsn(login="owner"), min_size=1, max_size=WORKERS)
    await pool.execute("create table raw_client (like plain_client including defaults including indexes)")
    clinic, protected, unprotected = None, [], []
    for number in range(tenants):
        clinic = await provision_tenant(slug=f"bench-{uuid4().hex[:10]}", name="Bench", admin_email="a@b.example")
        async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="bench"):
            site = Facility(name="Main street")
            await site.save()
            for start in range(0, clients, 1_000):
                rows = [
                    Client(facility_id=site.id, address={"city": "Boston"}, **values(n))
                    for n in range(start, min(start + 1_000, clients))
                ]
                await Client.insert(*rows)
                bare = [
                    plain(tenant_id=clinic.tenant_id, facility_id=site.id, address='{"city": "Boston"}', **values(n))
                    for n in range(start, min(start + 1_000, clients))
                ]
                await plain.insert(*bare)
                if number == tenants - 1:
                    protected += rows
                    unprotected += bare
    await pool.execute("insert into raw_client select * from plain_client")
    for table in ("plain_client", "raw_client"):
        for columns in ("tenant_id, last_name", "tenant_id, status, facility_id", "tenant_id, created_at desc"):
            await pool.execute(f"create index on {table} ({columns})")
    await pool.execute("vacuum analyze")
    return (clinic, site), protected, unprotected, plain, engine, pool


def contenders(
    clinic: Any, site: Facility, protected: list[Any], unprotected: list[Any], plain: Any, pool: asyncpg.Pool
) -> list[Subject]:
    """What each contender does for each operation; the argument picks the row."""
    tenant: UUID = clinic.tenant_id
    ids, bare_ids = [row.id for row in protected], [row.id for row in unprotected]
    columns = ("id", "tenant_id", "facility_id", "status", *PHI)
    listed = ", ".join(columns)
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))

    def bare(number: int) -> dict[str, Any]:
        return {"tenant_id": tenant, "facility_id": site.id, "address": '{"city": "Boston"}', **values(number)}

    def record(number: int) -> tuple[Any, ...]:
        row = {"id": uuid7(), "status": "active", **bare(number)}
        return tuple(row[name] for name in columns)

    async def raw_many(_: int) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.executemany(
                f"insert into raw_client ({listed}) values ({marks})", map(record, range(1_000))
            )

    def where(i: int) -> Any:
        return (plain.tenant_id == tenant) & (plain.id == bare_ids[i % len(bare_ids)])

    def new(number: int) -> Client:
        return Client(facility_id=site.id, address={"city": "Boston"}, **values(number))

    find = "select * from raw_client where tenant_id = $1 and last_name = $2"
    one = "select * from raw_client where tenant_id = $1 and id = $2"
    return [
        Subject(
            "raw asyncpg",
            insert_one=lambda i: pool.execute(f"insert into raw_client ({listed}) values ({marks})", *record(i)),
            insert_1000=raw_many,
            get=lambda i: pool.fetchrow(one, tenant, bare_ids[i % len(bare_ids)]),
            list_50=lambda i: pool.fetch(
                "select * from raw_client where tenant_id = $1 and status = 'active' order by created_at desc limit 50",
                tenant,
            ),
            find=lambda i: pool.fetch(find, tenant, f"Nguyen{i % len(ids)}"),
            update=lambda i: pool.execute(
                "update raw_client set notes = $3 where tenant_id = $1 and id = $2",
                tenant,
                bare_ids[i % len(ids)],
                f"n{i}",
            ),
            delete=lambda i: pool.execute(
                "delete from raw_client where tenant_id = $1 and id = $2", tenant, bare_ids[i % len(ids)]
            ),
        ),
        Subject(
            "plain Piccolo",
            insert_one=lambda i: plain(**bare(i)).save().run(),
            insert_1000=lambda i: plain.insert(*[plain(**bare(n)) for n in range(1_000)]).run(),
            get=lambda i: plain.objects().get(where(i)).run(),
            list_50=lambda i: (
                plain.objects()
                .where((plain.tenant_id == tenant) & (plain.status == "active"))
                .order_by(plain.created_at, ascending=False)
                .limit(50)
                .run()
            ),
            find=lambda i: (
                plain.objects().where((plain.tenant_id == tenant) & (plain.last_name == f"Nguyen{i % len(ids)}")).run()
            ),
            update=lambda i: plain.update({plain.notes: f"n{i}"}).where(where(i)).run(),
            delete=lambda i: plain.delete().where(where(i)).run(),
        ),
        Subject(
            "Charthold",
            insert_one=lambda i: new(i).save().run(),
            insert_1000=lambda i: Client.insert(*[new(n) for n in range(1_000)]).run(),
            get=lambda i: Client.objects().get(Client.id == ids[i % len(ids)]).run(),
            list_50=lambda i: (
                Client.objects()
                .where(Client.status == "active")
                .order_by(Client.created_at, ascending=False)
                .limit(50)
                .run()
            ),
            find=lambda i: Client.objects().where(Client.last_name == f"nguyen{i % len(ids)}").run(),
            update=lambda i: Client.update({Client.notes: f"n{i}"}).where(Client.id == ids[i % len(ids)]).run(),
            delete=lambda i: Client.delete().where(Client.id == ids[i % len(ids)]).run(),
        ),
    ]


# operation -> (how often in a round, the most that the ratio to plain Piccolo may be)
LATENCY = {
    "insert_one": (60, 0.90),
    "insert_1000": (2, 0.60),
    "get": (100, 0.90),
    "list_50": (30, 1.15),
    "find": (60, 0.90),
    "update": (60, 0.90),
    "delete": (30, 0.90),
}
# operation -> (how often a worker does it in a round, the least that the ratio may be)
THROUGHPUT = {"insert_one": (25, 0.95), "get": (50, 1.50), "update": (30, 0.95)}


async def measure(subjects: list[Subject], rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Medians in milliseconds, and operations a second with 16 workers, interleaved."""
    latency: dict[str, dict[str, list[float]]] = {name: {s.name: [] for s in subjects} for name in LATENCY}
    rate: dict[str, dict[str, list[float]]] = {name: {s.name: [] for s in subjects} for name in THROUGHPUT}
    for turn in range(rounds + 1):  # the first round warms up
        for name, (times, _) in LATENCY.items():
            for subject in subjects:
                operation = subject.operations[name]
                for n in range(times):
                    began = time.perf_counter()
                    await operation(turn * times + n)
                    if turn:
                        latency[name][subject.name].append((time.perf_counter() - began) * 1e3)
        for name, (times, _) in THROUGHPUT.items():
            for subject in subjects:
                operation = subject.operations[name]

                async def work(operation: Operation = operation, times: int = times) -> None:
                    for _ in range(times):
                        await operation(random.randrange(1_000, 1_000_000))

                began = time.perf_counter()
                await asyncio.gather(*[work() for _ in range(WORKERS)])
                if turn:
                    rate[name][subject.name].append(WORKERS * times / (time.perf_counter() - began))
    medians = {n: {s: statistics.median(v) for s, v in by.items()} for n, by in latency.items()}
    rates = {n: {s: statistics.median(v) for s, v in by.items()} for n, by in rate.items()}
    return medians, rates


def report(medians: dict[str, Any], rates: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Print the table; return its rows."""
    rows = []
    print(f"| operation | {' | '.join(names)} | Charthold / plain Piccolo | wanted |")
    print("|---" * (len(names) + 3) + "|")
    for name, by in medians.items():
        ratio, most = by["Charthold"] / by["plain Piccolo"], LATENCY[name][1]
        rows.append(
            {"operation": name, "unit": "ms", **by, "ratio": ratio, "wanted": f"<= {most:.2f}", "ok": ratio <= most}
        )
    for name, by in rates.items():
        ratio, least = by["Charthold"] / by["plain Piccolo"], THROUGHPUT[name][1]
        rows.append(
            {"operation": f"{name}/s, {WORKERS} workers", "unit": "/s", **by, "ratio": ratio, "wanted": f">= {least:.2f}",
             "ok": ratio >= least}
        )  # fmt: skip
    for row in rows:
        shown = " | ".join(f"{row[n]:,.0f}" if row["unit"] == "/s" else f"{row[n]:.2f} ms" for n in names)
        print(f"| {row['operation']} | {shown} | {row['ratio']:.2f} {'✓' if row['ok'] else '✗'} | {row['wanted']} |")
    return rows


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default="")
    parser.add_argument("--chart", default="")
    wanted = parser.parse_args()
    (clinic, site), protected, unprotected, plain, engine, pool = await prepare(wanted.tenants, wanted.clients)
    subjects = contenders(clinic, site, protected, unprotected, plain, pool)
    async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="bench"):
        medians, rates = await measure(subjects, wanted.rounds)
    rows = report(medians, rates, [s.name for s in subjects])
    if wanted.json:
        Path(wanted.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if wanted.chart:
        Path(wanted.chart).write_text(bars(rows, [s.name for s in subjects]), encoding="utf-8")
    await engine.close_connection_pool()
    await pool.close()
    await DB.close_connection_pool()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    finally:
        if not os.environ.get("BENCH_HOME"):
            embedded.stop(settings().home, mode="immediate")
            shutil.rmtree(settings().home, ignore_errors=True)
