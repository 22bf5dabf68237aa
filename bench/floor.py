"""How fast protection can be from Python at all: ``python -m bench.floor [--tenants=50] [--clients=2000] [--rounds=5]``.

Beside plain Piccolo and Charthold runs "by hand": the SQL that Charthold sends, prepared once on one connection, its
argument sealed and its row opened in a line each, without a query to build, a pool, or a scope to look up. What it
costs is the price of the protection itself: the policies, the record, the commit that waits for it, the cipher. What
Charthold costs more is the price of Charthold. Latencies in milliseconds, medians of turns in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import asyncpg
from piccolo.engine.postgres import PostgresEngine

from bench.compare import LATENCY, POOL, Data, Operation, Rows, charthold, plain_piccolo, plain_table, prepare
from bench.server import Disk, run
from core import embedded, scope
from core.crypto.tenantkeys import TenantKeys
from core.crypto.values import Kind
from core.statements.plan import Statement
from core.tables import Client
from piccolo_conf import DB

MEASURED = ("get", "find", "update", "delete")


def statement(query: Any) -> Statement:
    """What Charthold sends for a query of the ORM."""
    (plan,) = query.querystrings
    compiled: Statement = plan.compiled()[0]
    return compiled


async def by_hand(
    data: Data, rows: Rows, connection: asyncpg.Connection, keys: TenantKeys, token: str
) -> dict[str, Operation]:
    """The same statements without an ORM."""
    someone = data.protected[0]
    get = statement(Client.objects().get(Client.id == someone).query)
    find = statement(Client.objects().where(Client.last_name == "Nguyen"))
    update = statement(Client.update({Client.notes: ""}).where(Client.id == someone))
    delete = statement(Client.delete().where(Client.id == someone))
    getting, finding, updating, deleting = [await connection.prepare(s.gated) for s in (get, find, update, delete)]
    notes = keys.sealer("client", "notes", Kind.TEXT)
    name = Client.last_name_folded

    def opened(found: list[Any], shape: Statement) -> list[dict[str, Any]]:
        (envelopes,) = shape.opened
        row = keys.row(envelopes.table, envelopes.columns)
        shown = []
        for record in found:
            values = dict(record)
            plain = row.open(record[envelopes.row], [record[p] for p in envelopes.positions])
            values.update(zip((column for column, _ in envelopes.columns), plain, strict=True))
            shown.append(values)
        return shown

    async def get_one() -> Any:
        return opened(await getting.fetch(data.tenant, rows.id(), token), get)

    async def find_some() -> Any:
        digests = keys.blind_all(name.label, name.spec, rows.name())
        return opened(await finding.fetch(data.tenant, digests, token), find)

    async def update_one() -> Any:
        row = rows.id()
        return await updating.fetch(notes.seal(row, f"n{next(rows.new)}"), data.tenant, row, token)

    async def delete_one() -> Any:
        return await deleting.fetch(data.tenant, next(rows.doomed), token)

    return {"get": get_one, "find": find_some, "update": update_one, "delete": delete_one}


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    engine = PostgresEngine(config=server.dsn(login="owner"))
    await engine.start_connection_pool(min_size=1, max_size=POOL)
    plain = plain_table(engine)
    pool = await asyncpg.create_pool(**server.dsn(login="owner"), min_size=1, max_size=POOL)
    data = await prepare(wanted.tenants, wanted.clients, plain, pool)
    deletes = LATENCY["delete"][0] * (wanted.rounds + 1)
    disk = Disk()
    async with scope(tenant=data.tenant, actor=data.admin, reason="bench") as opened:
        connection = await DB.connect(owner=False)
        keys, token = await DB.keys_of(opened), opened.token(DB.token_key, connection.get_server_pid())
        subjects = {
            "plain Piccolo": plain_piccolo(data, Rows(data.unprotected, deletes), plain),
            "by hand": await by_hand(data, Rows(data.protected, deletes), connection, keys, token),
            "Charthold": charthold(data, Rows(data.protected, deletes, share=1)),
        }
        taken: dict[str, dict[str, list[float]]] = {name: {s: [] for s in subjects} for name in MEASURED}
        for turn in range(wanted.rounds + 1):  # the first round warms up
            async with pool.acquire() as other:
                await disk.probe(other)
            for name in MEASURED:
                for subject, operations in subjects.items():
                    for _ in range(LATENCY[name][0]):
                        began = time.perf_counter()
                        await operations[name]()
                        if turn:
                            taken[name][subject].append((time.perf_counter() - began) * 1e3)
        await connection.close()
    print("| operation | plain Piccolo | by hand | Charthold | by hand / plain | Charthold / by hand |")
    print("|---|---|---|---|---|---|")
    for name, by in taken.items():
        bare, least, ours = (statistics.median(by[subject]) for subject in subjects)
        print(f"| {name} | {bare:.2f} ms | {least:.2f} ms | {ours:.2f} ms | {least / bare:.2f} | {ours / least:.2f} |")
    print(f"\nA commit waits {disk.fsync_ms:.2f} ms for the disk.")
    await engine.close_connection_pool()
    await pool.close()
    await DB.close_connection_pool()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    run(lambda server: main(server, chosen))
