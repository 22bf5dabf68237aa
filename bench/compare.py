"""Raw asyncpg, plain Piccolo and Charthold, side by side on one server and the same data.

    python -m bench.compare [--tenants=50] [--clients=2000] [--rounds=5] [--workers=16] [--relaxed] [--uvloop]
        [--json=FILE] [--chart=FILE.svg]

Raw asyncpg and plain Piccolo protect nothing: no tenants, no encryption, no audit. Charthold does all of it, reads
recorded durably, each worker as another user; with ``--relaxed`` it runs once more with CHARTHOLD_READ_RECORDS=relaxed.
Rounds are interleaved, so that a machine that slows down slows all of them. What counts is the ratio of medians to
plain Piccolo.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from piccolo.columns import JSONB, Date, Text, Timestamptz
from piccolo.columns import UUID as UUIDColumn  # noqa: N811
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

from bench.chart import bars
from bench.server import Disk, facts, migrated, run
from core import embedded, provision_tenant, scope
from core.ids import uuid7
from core.settings import settings
from core.tables import Client, Facility, User
from piccolo_conf import DB

Operation = Callable[[], Awaitable[Any]]
PHI = ("first_name", "last_name", "date_of_birth", "ssn", "mrn", "email", "phone", "address")
WORKERS = 16  # unless another number is asked for
ADMIN = -1  # who does one thing after the other, and may delete
POOL = 10  # connections: what each of the three opens when nobody says otherwise
RAW, PLAIN, OURS, RELAXED = "raw asyncpg", "plain Piccolo", "Charthold", "Charthold, relaxed reads"

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
# operation -> (how often all workers do it in a round, the least that the ratio may be)
THROUGHPUT = {"insert_one": (1_600, 0.95), "get": (3_200, 1.50), "update": (1_920, 0.95)}


def name_of(number: int) -> str:
    """The last name of one client of a tenant."""
    return f"Nguyen{number}"


def values(number: int) -> dict[str, Any]:
    """A client's PHI but for the address, which each contender takes in another form."""
    return {
        "first_name": f"Ana{number}",
        "last_name": name_of(number),
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


class Rows:
    """Which rows a contender's operations take.

    ``kept`` are asked for in turn, and are there until the end; ``doomed`` are for deletes; ``new`` numbers rows whose
    names nobody looks for, so that a search finds one row, as in life.
    """

    def __init__(self, ids: list[UUID], deletes: int, share: int = 0) -> None:
        shared = len(ids) - 2 * deletes  # the same rows for all, whoever deletes which of the others
        self.kept = itertools.cycle(enumerate(ids[:shared]))
        self.doomed = iter(ids[shared + share * deletes :][:deletes])
        self.new = itertools.count(len(ids))

    def id(self) -> UUID:
        return next(self.kept)[1]

    def name(self) -> str:
        return name_of(next(self.kept)[0])

    def some(self, number: int) -> list[int]:
        return list(itertools.islice(self.new, number))


@dataclass
class Subject:
    """A contender: what it does for each operation."""

    name: str
    operations: dict[str, Operation]
    # Who acts, by number; nobody where nothing asks.
    acting: Callable[[int], AbstractAsyncContextManager[Any]] = lambda _: nullcontext()

    def begin(self) -> None:
        """Charthold's two are one program under two settings."""
        os.environ["CHARTHOLD_READ_RECORDS"] = "relaxed" if self.name == RELAXED else "durable"
        settings.cache_clear()


@dataclass
class Data:
    """The data that all contenders have, and the tenant that is asked: it was made last."""

    tenant: UUID
    admin: UUID
    staff: list[UUID]
    site: UUID
    protected: list[UUID]
    unprotected: list[UUID]


async def prepare(tenants: int, clients: int, plain: Any, pool: asyncpg.Pool, workers: int = WORKERS) -> Data:
    """Fill the server with the data of all contenders."""
    await migrated()
    await plain.create_table()
    await pool.execute("create table raw_client (like plain_client including defaults including indexes)")
    for _ in range(tenants):
        clinic = await provision_tenant(slug=f"bench-{uuid4().hex[:10]}", name="Bench", admin_email="a@b.example")
        tenant = clinic.tenant_id
        protected, unprotected = [], []
        async with scope(tenant=tenant, actor=clinic.admin_id, reason="bench"):
            site = Facility(name="Main street")
            await site.save()
            staff = [
                User(email=f"{n}@b.example", full_name=f"Worker {n}", role="clinician", status="active")
                for n in range(workers)
            ]
            await User.insert(*staff)
            for start in range(0, clients, 1_000):
                numbers = range(start, min(start + 1_000, clients))
                ours = [Client(facility_id=site.id, address={"city": "Boston"}, **values(n)) for n in numbers]
                bare = [
                    plain(tenant_id=tenant, facility_id=site.id, address='{"city": "Boston"}', **values(n))
                    for n in numbers
                ]
                await Client.insert(*ours)
                await plain.insert(*bare)
                protected += [row.id for row in ours]
                unprotected += [row.id for row in bare]
    await pool.execute("insert into raw_client select * from plain_client")
    for table in ("plain_client", "raw_client"):
        for columns in ("tenant_id, last_name", "tenant_id, status, facility_id", "tenant_id, created_at desc"):
            await pool.execute(f"create index on {table} ({columns})")
    await pool.execute("vacuum analyze")
    # What a server that runs for long has behind it: a checkpoint, and WAL segments that are used again, not made anew.
    await pool.execute("checkpoint")
    return Data(tenant, clinic.admin_id, [user.id for user in staff], site.id, protected, unprotected)


def raw_asyncpg(data: Data, rows: Rows, pool: asyncpg.Pool) -> dict[str, Operation]:
    """SQL by hand, prepared and cached by the driver."""
    columns = ("id", "tenant_id", "facility_id", "status", *PHI)
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    insert = f"insert into raw_client ({', '.join(columns)}) values ({marks})"
    where = "where tenant_id = $1 and id = $2"

    def record(number: int) -> tuple[Any, ...]:
        return (uuid7(), data.tenant, data.site, "active", *values(number).values(), '{"city": "Boston"}')

    async def insert_1000() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.executemany(insert, map(record, rows.some(1_000)))

    return {
        "insert_one": lambda: pool.execute(insert, *record(next(rows.new))),
        "insert_1000": insert_1000,
        "get": lambda: pool.fetchrow(f"select * from raw_client {where}", data.tenant, rows.id()),
        "list_50": lambda: pool.fetch(
            "select * from raw_client where tenant_id = $1 and status = 'active' order by created_at desc limit 50",
            data.tenant,
        ),
        "find": lambda: pool.fetch(
            "select * from raw_client where tenant_id = $1 and last_name = $2", data.tenant, rows.name()
        ),
        "update": lambda: pool.execute(
            f"update raw_client set notes = $3 {where}", data.tenant, rows.id(), f"n{next(rows.new)}"
        ),
        "delete": lambda: pool.execute(f"delete from raw_client {where}", data.tenant, next(rows.doomed)),
    }


def plain_piccolo(data: Data, rows: Rows, plain: Any) -> dict[str, Operation]:
    """Piccolo as it comes, with the tenant in each condition."""

    def new(number: int) -> Any:
        return plain(tenant_id=data.tenant, facility_id=data.site, address='{"city": "Boston"}', **values(number))

    def one(row: UUID) -> Any:
        return (plain.tenant_id == data.tenant) & (plain.id == row)

    active = (plain.tenant_id == data.tenant) & (plain.status == "active")
    return {
        "insert_one": lambda: new(next(rows.new)).save().run(),
        "insert_1000": lambda: plain.insert(*map(new, rows.some(1_000))).run(),
        "get": lambda: plain.objects().get(one(rows.id())).run(),
        "list_50": lambda: plain.objects().where(active).order_by(plain.created_at, ascending=False).limit(50).run(),
        "find": lambda: (
            plain.objects().where((plain.tenant_id == data.tenant) & (plain.last_name == rows.name())).run()
        ),
        "update": lambda: plain.update({plain.notes: f"n{next(rows.new)}"}).where(one(rows.id())).run(),
        "delete": lambda: plain.delete().where(one(next(rows.doomed))).run(),
    }


def charthold(data: Data, rows: Rows) -> dict[str, Operation]:
    """Charthold, in the scope of whoever acts."""

    def new(number: int) -> Client:
        return Client(facility_id=data.site, address={"city": "Boston"}, **values(number))

    return {
        "insert_one": lambda: new(next(rows.new)).save().run(),
        "insert_1000": lambda: Client.insert(*map(new, rows.some(1_000))).run(),
        "get": lambda: Client.objects().get(Client.id == rows.id()).run(),
        "list_50": lambda: (
            Client.objects()
            .where(Client.status == "active")
            .order_by(Client.created_at, ascending=False)
            .limit(50)
            .run()
        ),
        "find": lambda: Client.objects().where(Client.last_name == rows.name()).run(),
        "update": lambda: Client.update({Client.notes: f"n{next(rows.new)}"}).where(Client.id == rows.id()).run(),
        "delete": lambda: Client.delete().where(Client.id == next(rows.doomed)).run(),
    }


async def measure(
    subjects: list[Subject], rounds: int, disk: Disk, pool: asyncpg.Pool, workers: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Medians by operation and contender: milliseconds, and operations a second of all workers together."""
    latency: dict[str, dict[str, list[float]]] = {name: {s.name: [] for s in subjects} for name in LATENCY}
    rate: dict[str, dict[str, list[float]]] = {name: {s.name: [] for s in subjects} for name in THROUGHPUT}

    async def work(subject: Subject, worker: int, name: str, times: int) -> None:
        async with subject.acting(worker):
            for _ in range(times):
                await subject.operations[name]()

    for turn in range(rounds + 1):  # the first round warms up
        async with pool.acquire() as connection:
            await disk.probe(connection)
        for name, (times, _) in LATENCY.items():
            for subject in subjects:
                subject.begin()
                async with subject.acting(ADMIN):
                    for _ in range(times):
                        began = time.perf_counter()
                        await subject.operations[name]()
                        if turn:
                            latency[name][subject.name].append((time.perf_counter() - began) * 1e3)
        for name, (times, _) in THROUGHPUT.items():
            for subject in subjects:
                subject.begin()
                began = time.perf_counter()
                await asyncio.gather(*[work(subject, worker, name, times // workers) for worker in range(workers)])
                if turn:
                    rate[name][subject.name].append(times // workers * workers / (time.perf_counter() - began))
    medians = {n: {s: statistics.median(v) for s, v in by.items()} for n, by in latency.items()}
    rates = {n: {s: statistics.median(v) for s, v in by.items()} for n, by in rate.items()}
    return medians, rates


def judged(medians: dict[str, Any], rates: dict[str, Any], workers: int) -> list[dict[str, Any]]:
    """The rows of the table: what was measured, its ratio to plain Piccolo, and whether that is what is wanted."""
    rows = []
    for unit, found, wanted in (("ms", medians, LATENCY), ("/s", rates, THROUGHPUT)):
        for name, by in found.items():
            limit = wanted[name][1]
            ratios = {subject: value / by[PLAIN] for subject, value in by.items() if subject in (OURS, RELAXED)}
            rows.append(
                {
                    "operation": name if unit == "ms" else f"{name}/s, {workers} workers",
                    "unit": unit,
                    "medians": by,
                    "ratios": ratios,
                    "wanted": f"{'<=' if unit == 'ms' else '>='} {limit:.2f}",
                    "ok": ratios[OURS] <= limit if unit == "ms" else ratios[OURS] >= limit,
                }
            )
    return rows


def show(rows: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    names, ours = list(rows[0]["medians"]), list(rows[0]["ratios"])
    print(f"| operation | {' | '.join(names)} | {' | '.join(f'{n} / {PLAIN}' for n in ours)} | wanted |")
    print("|---" * (len(names) + len(ours) + 2) + "|")
    for row in rows:
        cells = [f"{v:,.0f}" if row["unit"] == "/s" else f"{v:.2f} ms" for v in row["medians"].values()]
        ratios = [f"{ratio:.2f}" for ratio in row["ratios"].values()]
        ratios[0] += " ✓" if row["ok"] else " ✗"
        print(f"| {' | '.join([row['operation'], *cells, *ratios, row['wanted']])} |")
    print(
        f"\nA commit waits {machine['fsync_ms']:.2f} ms for the disk. {machine['cores']} cores, PostgreSQL "
        f"{machine['postgresql']}, Python {machine['python']}, {machine['loop']}, {machine['tenants']} tenants of "
        f"{machine['clients']:,} clients, {machine['rounds']} rounds."
    )


def chart(rows: list[dict[str, Any]]) -> str:
    """Time an operation takes, in times of plain Piccolo's: of a rate, the inverse."""
    ours = list(rows[0]["ratios"])

    def note(row: dict[str, Any]) -> str:
        mine, theirs = row["medians"][OURS], row["medians"][PLAIN]
        if row["unit"] == "ms":
            return f"{row['ratios'][OURS]:.2f} x  ({mine:.2f} ms, not {theirs:.2f} ms)"
        return f"{1 / row['ratios'][OURS]:.2f} x  ({mine:,.0f}/s, not {theirs:,.0f}/s)"

    return bars(
        "What protection costs: Charthold, fully protected, against plain Piccolo, unprotected",
        ours,
        [
            (
                row["operation"].replace("_", " "),
                [row["ratios"][name] if row["unit"] == "ms" else 1 / row["ratios"][name] for name in ours],
                note(row),
            )
            for row in rows
        ],
        PLAIN,
    )


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    engine = PostgresEngine(config=server.dsn(login="owner"))
    await engine.start_connection_pool(min_size=1, max_size=POOL)
    plain = plain_table(engine)
    pool = await asyncpg.create_pool(**server.dsn(login="owner"), min_size=1, max_size=POOL)
    data = await prepare(wanted.tenants, wanted.clients, plain, pool, wanted.workers)
    deletes = LATENCY["delete"][0] * (wanted.rounds + 1)
    disk = Disk()

    def acting(number: int) -> AbstractAsyncContextManager[Any]:
        return scope(tenant=data.tenant, actor=[*data.staff, data.admin][number], reason="bench")

    subjects = [
        Subject(RAW, raw_asyncpg(data, Rows(data.unprotected, deletes), pool)),
        Subject(PLAIN, plain_piccolo(data, Rows(data.unprotected, deletes), plain)),
        Subject(OURS, charthold(data, Rows(data.protected, deletes)), acting),
    ]
    if wanted.relaxed:
        subjects.append(Subject(RELAXED, charthold(data, Rows(data.protected, deletes, share=1)), acting))
    medians, rates = await measure(subjects, wanted.rounds, disk, pool, wanted.workers)
    machine = await facts(server) | {
        "fsync_ms": disk.fsync_ms,
        "loop": "uvloop" if wanted.uvloop else "asyncio",
        "tenants": wanted.tenants,
        "clients": wanted.clients,
        "rounds": wanted.rounds,
    }
    rows = judged(medians, rates, wanted.workers)
    show(rows, machine)
    if wanted.json:
        Path(wanted.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
    if wanted.chart:
        Path(wanted.chart).write_text(chart(rows), encoding="utf-8")
    await engine.close_connection_pool()
    await pool.close()
    await DB.close_connection_pool()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=WORKERS, help="how many ask at the same time")
    parser.add_argument("--relaxed", action="store_true", help="Charthold once more, with relaxed read records")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own loop")
    parser.add_argument("--json", default="")
    parser.add_argument("--chart", default="")
    arguments = parser.parse_args()
    if not 1 <= arguments.workers <= THROUGHPUT["insert_one"][0]:
        parser.error(f"--workers is a number between 1 and {THROUGHPUT['insert_one'][0]}.")
    if arguments.clients <= 2 * LATENCY["delete"][0] * (arguments.rounds + 1):
        parser.error("--clients is too small for so many rounds: rows that are deleted are asked for by nobody else.")
    run(lambda server: main(server, arguments), uvloop=arguments.uvloop)
