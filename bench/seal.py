"""How long sealing and verifying take, and in how much memory: ``python bench/seal.py [records]``.

It fills a database of its own on the embedded server with records like those of a clinic's day (40 % inserts of
clients, 30 % updates, 30 % reads), 200 to a transaction.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time

os.environ.pop("DATABASE_URL", None)
os.environ["CHARTHOLD_HOME"] = tempfile.mkdtemp(prefix="charthold-bench-")

from piccolo.apps.migrations.commands.forwards import run_forwards

from core import embedded, provision_tenant, scope
from core.audit.partitions import make_partitions
from core.audit.seal import seal
from core.audit.verify import verify
from core.settings import settings
from core.tables import Facility
from core.tokenkeys import install_token_key
from piccolo_conf import DB

FILL = r"""
insert into public.user_action_audit_log (
    tenant_id, user_id, action_type, table_name, record_id, old_values, new_values, changed_columns, reason,
    request_id, source_ip, transaction_id
)
select $1, $2, case when k < 4 then 'insert' when k < 7 then 'update' else 'read' end, 'client', gen_random_uuid(),
    case when k between 4 and 6 then few end,
    case when k < 4 then many when k < 7 then few end,
    case when k > 3 then array['notes', 'phone'] end,
    'treatment', h, '10.1.2.3', 100 + g / 200
from (select g, g % 10 as k, md5(g::text) as h from generate_series($3::int, $4::int) as g) as made
cross join lateral (select jsonb_build_object('notes', '\x01' || repeat(h, 5), 'phone', '\x01' || h) as few) as f
cross join lateral (
    select jsonb_object_agg(c, '\x01' || repeat(md5(c || g), 4)) || '{"mrn": null, "status": "active"}' as many
    from unnest('{first_name, last_name, date_of_birth, ssn, email, phone, address, notes}'::text[]) as c
) as m
"""


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def main(count: int) -> None:
    embedded.start(settings().home)
    await asyncio.create_task(run_forwards(app_name="core"))
    await install_token_key()
    await make_partitions()
    clinic = await provision_tenant(slug="bench", name="Bench", admin_email="ada@bench.example")
    owner = await DB.connect(owner=True)
    await owner.execute("set session_replication_role = replica")
    started = time.perf_counter()
    for start in range(1, count + 1, 50_000):
        await owner.execute(FILL, clinic.tenant_id, clinic.admin_id, start, min(start + 49_999, count))
    # The records claim transactions that the server has yet to reach.
    ahead = 100 + count // 200 + 1
    while await owner.fetchval("select pg_current_xact_id()::text::bigint") < ahead:
        await owner.execute(
            "do $$ begin for i in 1..1000 loop begin perform pg_current_xact_id(); commit; end; end loop; end $$"
        )
    await owner.execute("vacuum analyze user_action_audit_log")
    size = await owner.fetchval(
        "select pg_size_pretty(sum(pg_table_size(inhrelid))) from pg_inherits"
        " where inhparent = 'user_action_audit_log'::regclass"
    )
    print(f"{count:,} records, {size}, written in {time.perf_counter() - started:.1f} s; {os.cpu_count()} cores")
    before = peak()

    async def measure(name, work):
        async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="benchmark"):
            started = time.perf_counter()
            result = await work()
            seconds = time.perf_counter() - started
        said = result.summary() if hasattr(result, "summary") else f"{result.added:,} in {len(result.heads)} heads"
        print(f"{name}: {seconds:.2f} s, peak {peak()} MB (before: {before} MB): {said}")

    await measure("seal", seal)
    await measure("seal the rest", seal)
    await measure("verify", verify)
    async with scope(tenant=clinic.tenant_id, actor=clinic.admin_id, reason="benchmark"):
        await Facility.insert(*(Facility(name=f"Room {number}") for number in range(1000)))
    await measure("seal 1,000 more", seal)
    # The worst for the comparison: the first record gone, one in ten thousand changed, a list altered.
    await owner.execute(
        "delete from user_action_audit_log where transaction_id = 100 and id ="
        " (select id from user_action_audit_log where transaction_id = 100 order by occurred_at limit 1)"
    )
    await owner.execute("update user_action_audit_log set reason = 'x' where record_id::text like '0000%'")
    await owner.execute("update audit_seal set leaf_hashes = set_byte(leaf_hashes, 0, 0) where tree_size = 131072")
    await measure("verify after tampering", verify)
    await owner.close()
    await DB.close_connection_pool()


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
    finally:
        embedded.stop(settings().home, mode="immediate")
