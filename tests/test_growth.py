"""No query touches more than its rows, however many tenants, clients and records there are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from bench.population import REAL, Clinic, fill_clients, fill_log, make_tenants, name_of, settle
from core.engine import ChartholdEngine
from core.statements.arguments import bind
from core.statements.plan import Plan
from core.tables import Client
from piccolo_conf import DB
from tests.conftest import owner_execute, superuser_connection

LARGE = ("client", "user_action_audit_log")
BY_INDEX = ("Index Scan", "Index Only Scan", "Bitmap Heap Scan")


@dataclass(frozen=True)
class Size:
    tenants: int
    each: int
    records: int


SMALL = Size(tenants=40, each=500, records=40_000)
FULL = Size(tenants=1_000, each=1_000, records=1_000_000)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SMALL, id="small"),
        pytest.param(FULL, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(1_800)]),
    ],
)
async def clinic(request: pytest.FixtureRequest, template: str) -> AsyncIterator[Clinic]:
    """A clinic in a database of that size."""
    size: Size = request.param
    name = f"charthold_test_{uuid4().hex[:12]}"
    await owner_execute(None, f"create database {name} template {template} strategy file_copy")
    await DB.use(name)
    clinics = await make_tenants(1, 3)
    await make_tenants(4, size.tenants, real=0)
    owner = await superuser_connection()
    await fill_clients(owner, size.each)
    await fill_log(owner, 1, size.records)
    await settle(owner)
    assert await owner.fetchval("select count(*) from client") == size.tenants * size.each
    await owner.close()
    yield clinics[1]
    await DB.use(None)
    await owner_execute(None, f"drop database {name} with (force)")


COMMON = {
    # what is asked: (the query, how many rows it is about)
    "get": (lambda c: Client.objects().get(Client.id == c.clients[7]), 1),
    "find by last name": (lambda c: Client.objects().where(Client.last_name == name_of(7)), 1),
    "find by prefix": (lambda c: Client.objects().where(Client.last_name.starts_with("ngu")), REAL),
    "find by date of birth": (lambda c: Client.objects().where(Client.date_of_birth == date(1980, 1, 8)), 3),
    "find by ssn": (lambda c: Client.objects().where(Client.ssn == "000000007"), 1),
    "find by last four of ssn": (lambda c: Client.objects().where(Client.ssn.ends_with("0007")), 1),
    "find by mrn": (lambda c: Client.objects().where(Client.mrn == "M7"), 1),
    "find by e-mail": (lambda c: Client.objects().where(Client.email == "ana7@mail.example"), 1),
    "find by last four of phone": (lambda c: Client.objects().where(Client.phone.ends_with("0007")), 1),
    "find two names": (lambda c: Client.objects().where(Client.last_name.is_in([name_of(7), name_of(8)])), 2),
    "list the newest": (
        lambda c: Client.objects().order_by(Client.created_at, ascending=False).limit(50),
        50,
    ),
    "list the newest who are active": (
        lambda c: (
            Client.objects().where(Client.status == "active").order_by(Client.created_at, ascending=False).limit(50)
        ),
        50,
    ),
    "list the newest of a facility": (
        lambda c: (
            Client.objects()
            .where((Client.facility_id == c.facility) & (Client.status == "active"))
            .order_by(Client.created_at, ascending=False)
            .limit(50)
        ),
        50,
    ),
    "list by status": (lambda c: Client.select(Client.id).where(Client.status == "discharged"), ["discharged"]),
    "list by facility": (
        lambda c: Client.select(Client.id).where(Client.facility_id == c.facility),
        ["active", "discharged"],
    ),
    "count": (lambda c: Client.count(), ["active", "discharged"]),
    "count by status": (lambda c: Client.count().where(Client.status == "discharged"), ["discharged"]),
    "exists": (lambda c: Client.exists().where(Client.mrn == "M7"), 1),
    "update": (lambda c: Client.update({Client.notes: "n"}).where(Client.id == c.clients[7]), 1),
    "delete": (lambda c: Client.delete().where(Client.id == c.clients[79]), 1),
    "history": (lambda c: Client(id=c.clients[9], _ignore_missing=True).history(), 5),
    "who saw": (lambda c: Client(id=c.clients[9], _ignore_missing=True).who_saw(), 5),
}


@pytest.mark.parametrize("name", COMMON)
async def test_a_common_query_touches_its_rows_and_no_more(
    clinic: Clinic, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, about = COMMON[name]
    sent: list[Plan] = []
    run_plan = ChartholdEngine.run_plan

    async def noted(self: ChartholdEngine, plan: Plan) -> Any:
        sent.append(plan)
        return await run_plan(self, plan)

    monkeypatch.setattr(ChartholdEngine, "run_plan", noted)
    async with clinic.scope() as here:
        await query(clinic)
        monkeypatch.undo()
        rows = about if isinstance(about, int) else await Client.count().where(Client.status.is_in(list(about)))
        keys = await DB.keys_of(here)
        runtime = await DB.connect(owner=False)
        plans = []
        for plan in sent:
            statement, arguments = plan.compiled()
            token = here.token(DB.token_key, runtime.get_server_pid())
            plans.append(await explain(runtime, statement.gated, *bind(arguments, clinic.tenant, keys), token))
        await runtime.close()
    scans = [scan for plan in plans for scan in scans_of(plan)]
    shown = [(scan["Node Type"], scan["Relation Name"], scan.get("Index Name"), touched(scan)) for scan in scans]
    assert any(scan["Node Type"] in BY_INDEX for scan in scans), shown
    assert not [scan for scan in scans if scan["Node Type"] == "Seq Scan" and touched(scan)], shown
    assert sum(map(touched, scans)) <= rows + 20, shown
    assert max(map(buffers, plans)) <= 100 + 12 * rows, shown


async def explain(runtime: asyncpg.Connection, sql: str, *arguments: Any) -> Any:
    """What the statement does, in the plan that it runs with: EXPLAIN with arguments would make another for them.

    In the first run the session reads its catalogs, so the second one is told; neither is kept.
    """
    await runtime.execute(f"prepare asked as {sql}")
    given = ", ".join(map(literal, arguments))
    for _ in range(2):
        transaction = runtime.transaction()
        await transaction.start()
        told = await runtime.fetchval(f"explain (analyze, buffers, format json) execute asked({given})")
        await transaction.rollback()
    await runtime.execute("deallocate asked")
    return json.loads(told)[0]["Plan"]


def literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"array[{', '.join(map(literal, value))}]"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    return f"'{value}'" + ("::uuid" if isinstance(value, UUID) else "")


def scans_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes that read a large table."""
    if node.get("Relation Name", "").startswith(LARGE) and "Scan" in node["Node Type"]:
        yield node
    for inner in node.get("Plans", ()):
        yield from scans_of(inner)


def touched(scan: dict[str, Any]) -> int:
    """Rows that were read, also those that were thrown away."""
    each = scan["Actual Rows"] + sum(v for k, v in scan.items() if k.startswith("Rows Removed by"))
    return round(each * scan["Actual Loops"])


def buffers(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])
