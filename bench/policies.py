"""What isolation costs: ``python -m bench.policies [--tenants 50] [--clients 2000] [--rounds 3000]``.

In a database of its own it compares, in one run and turn by turn, one statement on the protected table with the same
statement on a copy of the table that has no policies, as the same role on the same connection. The signature check is
measured beside them: once as it is, once with a ``scope()`` that believes a plain setting. "The gate" is the same
statement on the copy in the form in which the engine sends it, with the token. Times are medians in microseconds, seen
from the client.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from piccolo.apps.migrations.commands.forwards import run_forwards

import core
from core import provision_tenant, scope
from core.audit.partitions import make_partitions
from core.ids import uuid7
from core.tables import Client, Facility
from core.tokenkeys import install_token_key
from piccolo_conf import DB

SCOPE = (Path(core.__file__).parent / "schema" / "sql" / "scope.sql").read_text(encoding="utf-8")
SIGNED = SCOPE.replace("create function", "create or replace function", 1)
PLAIN = """create or replace function charthold.scope() returns text
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := current_setting('charthold.scope', true);
begin
    return lpad('', 17) || substr(s, 93, 72) || rpad('admin', 9) || substr(s, 93, 36) || chr(31) || substr(s, 165);
end
$$"""

TURNS = 6

GET = "select * from {table} where {pin} and id = $2"
LIST = "select * from {table} where {pin} and status = 'active' order by tenant_id, created_at desc limit 50"
# Without policies the pin finds the index; behind them it is a second wall, in the form in which the engine sends it.
BARE = {"table": "bare.client", "pin": "tenant_id = $1"}
HELD = {"table": "public.client", "pin": "case when tenant_id = $1 then true end"}
GATE = "(select pg_catalog.set_config('charthold.scope', ${last}, true)) is not null"
# What the policies of ``client`` ask.
ANSWERS = (
    "select 1 where (select charthold.tenant_id()) is not null and (select charthold.tenant_everywhere()) is not null"
)


def gated(sql: str) -> str:
    """The statement as the engine sends it."""
    last = max((int(n) for n in re.findall(r"\$(\d+)", sql)), default=0) + 1
    return f"with r as materialized ({sql}\n) select * from r where {GATE.format(last=last)}"


async def populate(tenants: int, clients: int) -> list[tuple[UUID, UUID]]:
    """Tenants with clients; all but a tenant's first are copies of its envelopes, which is all the same here."""
    made = []
    owner = await DB.connect(owner=True)
    for n in range(tenants):
        clinic = await provision_tenant(slug=f"clinic-{n}", name=f"Clinic {n}", admin_email=f"ada@c{n}.example")
        async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="bench") as opened:
            site = Facility(name="Main street")
            await site.save()
            first = Client(
                facility_id=site.id, first_name="Ana", last_name="Nguyen",
                date_of_birth=__import__("datetime").date(1980, 2, 29), ssn="999-17-5017", phone="+1 617 555 0100",
                notes="afraid of needles",
            )  # fmt: skip
            await first.save()
            async with owner.transaction():
                await owner.execute("alter table client disable trigger user")
                await owner.fetchval(
                    "select set_config('charthold.scope', $1, true)",
                    opened.token(DB.token_key, owner.get_server_pid()),
                )
                names = [r["attname"] for r in await owner.fetch(COLUMNS)]
                copied = ", ".join(n for n in names if n not in {"id", "created_at", "updated_at"})
                await owner.execute(
                    f"insert into client (id, created_at, updated_at, {copied})"
                    f" select i, now() - interval '1 minute' * n, now(), {copied}"
                    " from client, unnest($1::uuid[]) with ordinality as u(i, n) where client.id = $2",
                    [uuid7() for _ in range(clients - 1)],
                    first.id,
                )
                await owner.execute("alter table client enable trigger user")
        made.append((clinic.tenant_id, clinic.admin_id))
    role = f"{DB.settings.role_prefix}app_runtime"
    # The copy has the same rows, indexes and physical order, and no policies.
    await owner.execute(
        "create schema bare; create table bare.client (like public.client including all) with (fillfactor = 80);"
        "insert into bare.client select * from public.client;"
        f"grant usage on schema bare to {role}; grant select on bare.client to {role}"
    )
    await owner.execute("vacuum analyze public.client")
    await owner.execute("vacuum analyze bare.client")
    await owner.close()
    return made


COLUMNS = (
    "select attname from pg_attribute where attrelid = 'public.client'::regclass and attnum > 0 and not attisdropped"
)


class Race:
    """Statements that take turns on one connection."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.times: dict[str, list[float]] = {}

    async def run(self, runners: dict[str, Any], rounds: int, arguments: Any) -> None:
        names = list(runners)
        for turn in range(rounds):
            random.shuffle(names)
            given = arguments()
            for name in names:
                statement, some = runners[name]
                values = some(*given)
                began = time.perf_counter_ns()
                await statement.fetch(*values)
                if turn > rounds // 20:
                    self.times.setdefault(name, []).append((time.perf_counter_ns() - began) / 1_000)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])


async def measure(made: list[tuple[UUID, UUID]], rounds: int) -> None:
    connection = await DB.connect(owner=False)
    owner = await DB.connect(owner=True)
    pid = connection.get_server_pid()
    now = int(time.time()) + 3_000
    tokens = {t: DB.token_key.sign(tenant=t, actor=a, expires=now, backend=pid, reason="bench") for t, a in made}
    ids = {t: [r["id"] for r in await owner.fetch("select id from client where tenant_id = $1", t)] for t, _ in made}

    def one() -> tuple[UUID, UUID]:
        tenant = random.choice(made)[0]
        return tenant, random.choice(ids[tenant])

    prepare = connection.prepare
    runners = {
        "get, no policies": (await prepare(GET.format(**BARE)), lambda t, i: (t, i)),
        "get, gate": (await prepare(gated(GET.format(**BARE))), lambda t, i: (t, i, tokens[t])),
        "get, policies": (await prepare(gated(GET.format(**HELD))), lambda t, i: (t, i, tokens[t])),
        "list, no policies": (await prepare(LIST.format(**BARE)), lambda t, _: (t,)),
        "list, gate": (await prepare(gated(LIST.format(**BARE))), lambda t, _: (t, tokens[t])),
        "list, policies": (await prepare(gated(LIST.format(**HELD))), lambda t, _: (t, tokens[t])),
        "nothing": (await prepare("select 1"), lambda *_: ()),
        "gate": (await prepare(gated("select 1")), lambda t, _: (tokens[t],)),
        "context": (await prepare(gated(ANSWERS)), lambda t, _: (tokens[t],)),
    }
    results = {kind: Race(connection) for kind in ("signed", "plain")}
    # In turns, so that a machine that slows down slows both.
    for _ in range(TURNS):
        for kind, source in (("signed", SIGNED), ("plain", PLAIN)):
            await owner.execute(source)
            await results[kind].run(runners, rounds // TURNS, one)
    await owner.execute(SIGNED)

    for kind, race in results.items():
        check = race.median("context") - race.median("gate")
        print(f"\nscope() {kind}: the check costs {check:.0f} us a statement")
        for what in ("get", "list"):
            bare, gate, held = (race.median(f"{what}, {arm}") for arm in ("no policies", "gate", "policies"))
            print(
                f"  {what:4}  no policies {bare:4.0f}   the same behind the gate {gate:4.0f}   policies {held:4.0f}"
                f"   ratio {held / bare:.2f}   check apart: to the bare {(held - check) / bare:.2f},"
                f" to the gated {(held - check) / gate:.2f}"
            )
    signed, plain = results["signed"], results["plain"]
    for what in ("get", "list", "context"):
        name = what if what == "context" else f"{what}, policies"
        print(f"signature and look-up, {what}: {signed.median(name) - plain.median(name):.1f} us a statement")

    # One call, inside the server, without the client.
    for kind, source in (("signed", SIGNED), ("plain", PLAIN)):
        await owner.execute(source)
        async with connection.transaction():
            await connection.fetchval("select set_config('charthold.scope', $1, true)", tokens[made[0][0]])
            calls = "do $$ begin for i in 1..20000 loop perform charthold.scope(); end loop; end $$"
            began = time.perf_counter()
            await connection.execute(calls)
            print(f"one call of scope(), {kind}: {(time.perf_counter() - began) / 20_000 * 1e6:.1f} us")
    await owner.execute(SIGNED)

    # The whole path: Piccolo's query, the engine, opening, one connection.
    tenant, admin = made[0]
    async with scope(tenant=tenant, actor=admin, reason="bench"):
        for kind, source in (("plain", PLAIN), ("signed", SIGNED), ("plain", PLAIN), ("signed", SIGNED)):
            await owner.execute(source)
            taken = []
            for _ in range(rounds):
                began = time.perf_counter_ns()
                await Client.select(Client.id, Client.status).where(Client.id == random.choice(ids[tenant]))
                taken.append((time.perf_counter_ns() - began) / 1_000)
            print(f"get by id through the ORM, scope() {kind}: {statistics.median(taken):.0f} us")
    await connection.close()
    await owner.close()


async def main(tenants: int, clients: int, rounds: int) -> None:
    name = f"charthold_bench_{uuid4().hex[:8]}"
    owner = await DB.connect(owner=True)
    await owner.execute(f"create database {name}")
    try:
        await DB.use(name)
        await asyncio.create_task(run_forwards(app_name="core"))
        await install_token_key()
        await make_partitions()
        began = time.perf_counter()
        made = await populate(tenants, clients)
        print(f"{tenants} tenants with {clients} clients each in {time.perf_counter() - began:.0f} s")
        await measure(made, rounds)
    finally:
        await DB.use(None)
        await owner.execute(f"drop database {name} with (force)")
        await owner.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3_000)
    asyncio.run(main(**vars(parser.parse_args())))
