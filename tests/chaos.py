"""Writers and readers while the server is killed: run by test_chaos.py in a process and on a server of its own.

    CHARTHOLD_HOME=... python -m tests.chaos SECONDS KILLS WORKERS

Exit status 0 and a line of counts when every committed change has exactly one record and no record lacks its change.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from datetime import date

import asyncpg

from core import ChartholdError, embedded, provision_tenant, scope
from core.audit.seal import seal
from core.settings import settings
from core.tables import Client, Facility
from piccolo_conf import DB

LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ChartholdError)


async def worker(number: int, clinic, sites: list, clients: list, until: float, acked: Counter, seen: Counter) -> None:
    """Change facilities and read clients; what was acknowledged is counted."""
    turn = 0
    while time.monotonic() < until:
        turn += 1
        value = f"{number}-{turn}"
        try:
            async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="chaos"):
                await Facility.update({Facility.phone: value}).where(Facility.id == random.choice(sites))
                acked[value] += 1
                client = random.choice(clients)
                await Client.select(Client.last_name).where(Client.id == client)
                seen[client] += 1
        except LOST:
            await asyncio.sleep(0.05)


async def killer(kills: int, seconds: float) -> None:
    """Kill the postmaster -9, and every backend with it; start it again."""
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1))
        running = embedded.status(settings().home)
        pid = int((running.data_dir / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(embedded.start, settings().home)


async def main(seconds: float, kills: int, workers: int) -> None:
    clinic = await provision_tenant(slug="chaos", name="Chaos", admin_email="ada@chaos.example")
    async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="chaos"):
        rows = [Facility(name=f"Site {n}", phone="0") for n in range(5)]
        await Facility.insert(*rows)
        people = [
            Client(facility_id=rows[0].id, first_name="A", last_name="B", date_of_birth=date(1980, 1, 1))
            for _ in range(5)
        ]
        await Client.insert(*people)
    sites, clients = [row.id for row in rows], [person.id for person in people]
    acked: Counter = Counter()
    seen: Counter = Counter()
    until = time.monotonic() + seconds
    await asyncio.gather(
        killer(kills, seconds), *[worker(n, clinic, sites, clients, until, acked, seen) for n in range(workers)]
    )
    await DB.close_connection_pool()

    owner = await DB.connect(owner=True)
    written: Counter = Counter()
    for site in sites:
        records = await owner.fetch(
            "select old_values, new_values from user_action_audit_log where record_id = $1 and action_type = 'update'"
            " order by occurred_at, id",
            site,
        )
        value = "0"
        for record in records:
            # Each record begins where the one before ended: none is missing, none is made up.
            assert json.loads(record["old_values"]) == {"phone": value}
            value = json.loads(record["new_values"])["phone"]
            written[value] += 1
        assert value == await owner.fetchval("select phone from facility where id = $1", site)
    assert not [value for value in acked if written[value] != 1], "an acknowledged change without its one record"
    assert max(written.values()) == 1
    for client in clients:
        shown = await owner.fetchval(
            "select count(*) from user_action_audit_log where record_id = $1 and action_type = 'read'", client
        )
        assert shown >= seen[client], "PHI was shown without a record"
    async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="seal"):
        sealed = await seal()
    await owner.close()
    await DB.close_connection_pool()
    print(f"{len(acked)} changes, {len(written)} records, {sum(seen.values())} reads, {kills} kills, {sealed}")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
