"""What each part of the protection costs, alone: ``python -m bench.micro [--json=FILE]``, microseconds in one table.

What happens in the database is timed in the database, in loops and by the thousand rows, less the same without the part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from bench.population import Clinic, client, fill_clients, make_tenants, settle
from bench.server import facts, migrated, run
from core import embedded
from core.columns import BlindIndex, Encrypted
from core.queries.cells import source
from core.scope import Scope
from core.tables import Client
from piccolo_conf import DB

REPEATS = 7
ROWS = 1_000
CALLS = 2_000


def timed(work: Callable[[], Any], calls: int = CALLS) -> float:
    """Microseconds a call, the median of a few loops."""

    def loop() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls * 1e6

    return statistics.median(loop() for _ in range(REPEATS))


async def apart(one: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]]) -> float:
    """How much longer ``one`` takes than ``other``; they take turns."""
    taken = [(await one(), await other()) for _ in range(REPEATS)]
    return statistics.median(a for a, _ in taken) - statistics.median(b for _, b in taken)


async def in_python(clinic: Clinic, here: Scope) -> dict[str, float]:
    """Sealing, opening, indexing, signing."""
    keys, row = await DB.keys_of(here), client(clinic, 7)
    sealed = [c for c in Client._meta.columns if isinstance(c, Encrypted) and getattr(row, c._meta.name) is not None]
    indexes = [c for c in Client._meta.columns if isinstance(c, BlindIndex)]
    values = [getattr(row, column._meta.name) for column in sealed]
    sealer = keys.row("client", tuple((column._meta.db_column_name, column.kind) for column in sealed))
    [envelopes] = sealer.seal_many([(row.id, values)])
    exact, folded = (next(c for c in indexes if c._meta.name == name) for name in ("ssn_exact", "last_name_folded"))

    def hash_all() -> None:
        for index in indexes:
            keys.blind(index.label, index.spec, source(index, row.__dict__))

    return {
        f"seal {len(sealed)} fields": timed(lambda: sealer.seal_many([(row.id, values)])),
        f"open {len(sealed)} fields": timed(lambda: sealer.open(row.id, envelopes)),
        "blind index, exact": timed(lambda: keys.blind(exact.label, exact.spec, row.ssn)),
        "blind index, folded": timed(lambda: keys.blind(folded.label, folded.spec, row.last_name)),
        f"the {len(indexes)} blind indexes of a client": timed(hash_all),
        "sign a token": timed(
            lambda: DB.token_key.sign(tenant=here.tenant, actor=here.actor, expires=2**31, backend=1, reason="bench")
        ),
    }


class Session:
    """A connection in whose transactions the scope is set."""

    def __init__(self, connection: asyncpg.Connection, here: Scope) -> None:
        self._connection = connection
        self._token = here.token(DB.token_key, connection.get_server_pid())

    async def run(self, *statements: str) -> float:
        """Microseconds that the last of the statements takes; all of them are undone."""
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            await self._connection.fetchval("select set_config('charthold.scope', $1, true)", self._token)
            for statement in statements[:-1]:
                await self._connection.execute(statement)
            began = time.perf_counter()
            await self._connection.execute(statements[-1])
            return (time.perf_counter() - began) * 1e6
        finally:
            await transaction.rollback()

    async def less(self, statement: str, without: str, *, setup: tuple[str, ...] = (), each: int = CALLS) -> float:
        """What ``statement`` takes more than ``without``, for each of that many."""
        difference = await apart(lambda: self.run(*setup, statement), lambda: self.run(*setup, without))
        return difference / each

    async def trigger(self, statement: str, name: str) -> float:
        """What a trigger of client adds to a statement, for each of its rows."""
        disabled = f"alter table client disable trigger {name}"
        # Nothing else than the trigger differs: the other arm alters the table too.
        enabled = f"{disabled}; alter table client enable trigger {name}"
        return await apart(lambda: self.run(enabled, statement), lambda: self.run(disabled, statement)) / ROWS


def loop(statement: str) -> str:
    """The statement, over and over, in the database."""
    return f"do $$ begin for i in 1..{CALLS} loop {statement}; end loop; end $$"


def copies(condition: str) -> str:
    """An INSERT of copies of one client, without the values that must not be there twice."""
    columns = [c._meta.db_column_name for c in Client._meta.columns if c._meta.name not in {"id", "mrn_exact"}]
    return (
        f"insert into client (id, {', '.join(columns)})"
        f" select charthold.uuid7(), {', '.join(columns)} from client, generate_series(1, {ROWS}) where {condition}"
    )


async def in_database(clinic: Clinic, here: Scope) -> dict[str, float]:
    """Checks, policies, triggers, records."""
    owner, runtime = await DB.connect(owner=True), await DB.connect(owner=False)
    as_owner, as_runtime = Session(owner, here), Session(runtime, here)
    mine = f"client.tenant_id = '{clinic.tenant}'"
    one = f"{mine} and client.id = '{clinic.clients[0]}'"
    get = loop(f"perform id from client where {one}")
    ids = f"select array_agg(id) from (select id from client where {mine} limit {ROWS}) as c"
    nothing = loop("perform 1")
    update = f"update client set phone = first_name where {mine}"
    record = f"select charthold.record_read('client', ({ids}), '{{first_name,last_name}}')"
    single = f"perform charthold.record_read('client', array['{clinic.clients[0]}'::uuid], '{{last_name}}')"
    measured = {
        "check a token, once a policy": await as_runtime.less(loop("perform charthold.scope()"), nothing),
        "the policies of a get, once a statement": (
            await apart(lambda: as_runtime.run(get), lambda: as_owner.run(get)) / CALLS  # the owner has none here
        ),
        "record an insert, a row": await as_owner.trigger(copies(one), "audit_insert"),
        "record an update of one PHI field, a row": await as_owner.trigger(update, "audit_update"),
        "record a read of 1,000 rows, a row": await as_runtime.less(record, ids, each=ROWS),
        "record a read of one row": await as_runtime.less(loop(single), nothing),
    }
    await owner.close()
    await runtime.close()
    return measured


async def main(server: embedded.Server, wanted: argparse.Namespace) -> None:
    await migrated()
    clinic = (await make_tenants(1, 1))[0]
    owner = await DB.connect(owner=True)
    await fill_clients(owner, ROWS)
    await settle(owner)
    await owner.close()
    async with clinic.scope() as here:
        measured = await in_python(clinic, here) | await in_database(clinic, here)
    print("| part | microseconds |\n|---|---|")
    for name, taken in measured.items():
        print(f"| {name} | {taken:.1f} |")
    await DB.close_connection_pool()
    if wanted.json:
        document = {"machine": await facts(server), "microseconds": measured}
        Path(wanted.json).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    run(lambda server: main(server, arguments))
