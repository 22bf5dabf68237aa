"""The sealed log: nothing is skipped, nothing forks, and whatever a superuser changes is found and named."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import core.audit.seal as sealing
import core.audit.stream as stream
import core.audit.verify as verifying
import core.wire.session
from core import record as record_action
from core import scope, transaction
from core.audit.canonical import COLUMNS, PROBE, PROBE_SQL, decode, encode, jsonb_text
from core.audit.head import HEAD_COLUMNS, SealKey, TreeHead, public_keys
from core.audit.merkle import leaf_hash, node_hash
from core.audit.proof import prove, prove_growth
from core.audit.seal import Sealed, seal
from core.audit.verify import verify
from core.commands.doctor import doctor
from core.commands.family import sentence
from core.commands.reindex import reindex
from core.commands.seal_audit import seal_audit
from core.commands.verify_audit import read_heads, verify_audit
from core.crypto.kms import master_key
from core.errors import ChartholdError, ScopeError
from core.ids import uuid7
from core.settings import settings
from core.tables import Facility, Tenant
from tests.conftest import superuser_connection

DOCS = Path(__file__).parent.parent / "docs"
VERIFY_PROOF, VERIFY_GROWTH = DOCS / "verify_proof.py", DOCS / "verify_growth.py"
LOG = "public.user_action_audit_log"
COPIED = f"insert into {LOG} select * from spare_log; insert into public.audit_seal select * from spare_seal"


async def write(clinic, count: int, *, reason: str = "treatment", updates: int = 3) -> None:
    """``count`` records of inserts in one transaction, and some updates, each in its own."""
    async with scope(
        tenant=clinic.tenant, actor=clinic.admin, reason=reason, source_ip="2001:db8::7", request_id="r|1"
    ):
        rooms = [Facility(name=f"{uuid4()} é", settings={"a": 1.50, "long key": [None, "x"]}) for _ in range(count)]
        await Facility.insert(*rooms)
        for room in rooms[:updates]:
            room.capacity = 7
            await room.save([Facility.capacity])


async def sealed(clinic, **options):
    async with clinic.as_admin("seal"):
        return await seal(**options)


async def verified(clinic, exported=()):
    async with clinic.as_admin("verify"):
        return await verify(exported)


def named(report, *kinds: str) -> set[UUID]:
    return {f.record for f in report.findings if f.record and (not kinds or f.kind in kinds)}


@pytest.fixture
async def superuser(owner):
    """The schema's owner with every trigger and policy out of the way: what we protect against."""
    if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("tampering takes a superuser")
    await owner.execute("set session_replication_role = replica")
    return owner


# --- the canonical form ---------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
numbers = st.one_of(
    st.integers(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(float).filter(lambda f: abs(f) < 1e15),
)
documents = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
).map(json.dumps)
addresses = st.one_of(
    st.ip_addresses().map(str).map(ipaddress.ip_interface),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 31)).map(lambda t: ipaddress.ip_interface(f"{t[0]}/{t[1]}")),
)
OF_TYPE = {
    "uuid": st.uuids(),
    "timestamptz": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda d: d.replace(tzinfo=UTC)),
    "text": texts,
    "jsonb": documents,
    "text[]": st.lists(texts | st.none(), max_size=4),
    "inet": addresses,
    "int8": st.integers(0, 2**62),
}
ALWAYS = ("id", "tenant_id", "occurred_at", "user_id", "transaction_id")
records = st.fixed_dictionaries(
    {column: OF_TYPE[kind] if column in ALWAYS else st.none() | OF_TYPE[kind] for column, kind in COLUMNS.items()}
)


@given(one=records, column=st.sampled_from(list(COLUMNS)), data=st.data())
def test_another_value_has_other_bytes(one, column, data):
    other = one | {column: data.draw(OF_TYPE[COLUMNS[column]])}
    same = decode(encode(one)) == decode(encode(other))
    assert (encode(one) == encode(other)) is same or COLUMNS[column] == "jsonb"
    assert decode(encode(one))["reason"] == one["reason"]


def test_null_is_not_empty():
    empty = PROBE | {"table_name": "", "changed_columns": [], "old_values": "null", "request_id": ""}
    null = dict.fromkeys(("table_name", "changed_columns", "old_values", "request_id"))
    assert len({encode(empty), *(encode(empty | {column: None}) for column in null)}) == 5


def test_json_has_one_form():
    assert jsonb_text('{"b":1e2 , "aa" : 1.50, "é": [ -0 ], "a":"\\u00e9\\n"}') == (
        '{"a": "é\\n", "b": 100, "aa": 1.50, "é": [0]}'
    )


@pytest.mark.parametrize("data", [b"", b"\0" * 40, encode(PROBE)[:-1], encode(PROBE) + b"\0"])
def test_other_bytes_are_not_a_record(data):
    with pytest.raises(ChartholdError, match="canonical form"):
        decode(data)


async def test_the_server_writes_a_record_as_we_do(owner):
    statement = await owner.prepare(PROBE_SQL)
    assert await statement.fetchval(*PROBE.values()) == encode(PROBE)

    drawn: list[dict] = []

    @given(record=records)
    def draw(record):
        drawn.append(record)

    draw()
    for record in drawn:
        assert await statement.fetchval(*(record[column] for column in COLUMNS)) == encode(record)


# --- sealing --------------------------------------------------------------------------------------------------------


async def test_what_was_written_is_sealed_once_and_verifies(hillside, monkeypatch):
    await write(hillside, 50)
    first = await sealed(hillside, leaves=16)
    assert first.added == first.newest.tree_size > 50
    assert [head.tree_size for head in first.heads][:3] == [16, 32, 48]
    await write(hillside, 5)
    second = await sealed(hillside)
    assert second.newest.tree_size == first.added + second.added
    assert (await sealed(hillside)).added == 0
    report = await verified(hillside)
    assert (report.good, report.tree_size, report.unsealed) == (True, second.newest.tree_size, 0)

    # A server that writes records in other bytes is asked for the columns, and the leaves are the same.
    monkeypatch.setattr(stream, "PROBE_SQL", PROBE_SQL + " limit 0")
    assert (await verified(hillside)).good


async def test_a_tree_that_grows_in_small_steps_is_complete(hillside):
    await sealed(hillside)  # what made the clinic
    await write(hillside, 40, updates=20)
    steps = [await sealed(hillside, most=7) for _ in range(20)]
    assert steps[0].added >= 40  # one transaction is not torn apart
    assert {step.added for step in steps[1:3]} == {8}
    assert steps[-1].added == 0
    assert (await verified(hillside)).good


async def test_a_transaction_held_open_across_a_seal_is_sealed_later(hillside, owner):
    await sealed(hillside)
    opened, close = asyncio.Event(), asyncio.Event()

    async def slow():
        async with hillside.as_admin("slow"), transaction():
            await Facility(name=f"slow {uuid4()}").save()
            opened.set()
            await close.wait()
            await Facility(name=f"slow {uuid4()}").save()

    task = asyncio.create_task(slow())
    await opened.wait()
    await write(hillside, 3, reason="quick", updates=0)  # higher transaction ids, committed first
    during = await sealed(hillside)
    assert during.added == 0
    report = await verified(hillside)
    assert (report.good, report.unsealed) == (True, 3)
    close.set()
    await task
    after = await sealed(hillside)
    assert after.added == 5
    ids = await owner.fetch(
        "select unnest(record_ids) as id from audit_seal where tenant_id = $1 order by tree_size", hillside.tenant
    )
    logged = await owner.fetch(f"select id, reason from {LOG} where tenant_id = $1", hillside.tenant)
    assert sorted(row["id"] for row in ids) == sorted(row["id"] for row in logged)
    reasons = {row["id"]: row["reason"] for row in logged}
    assert [reasons[row["id"]] for row in ids][-5:] == ["slow", "slow", "quick", "quick", "quick"]
    assert (await verified(hillside)).good


async def test_sealers_and_writers_at_once_neither_fork_nor_skip(hillside, owner):
    writers = [write(hillside, 5) for _ in range(12)]
    sealers = [sealed(hillside, leaves=4) for _ in range(6)]
    work = [*writers, *sealers]
    random.Random(1).shuffle(work)
    done = [step for step in await asyncio.gather(*work) if step]
    assert len({head.tree_size for step in done for head in step.heads}) == sum(len(step.heads) for step in done)
    last = (await sealed(hillside)).newest
    assert last.tree_size == await owner.fetchval(f"select count(*) from {LOG} where tenant_id = $1", hillside.tenant)
    assert (await verified(hillside)).good


async def test_a_writer_does_not_wait_for_a_sealer(hillside, owner):
    async with owner.transaction():
        await owner.execute(
            "select pg_advisory_xact_lock(hashtextextended('charthold.seal.' || $1, 0))", str(hillside.tenant)
        )
        waiting = asyncio.create_task(sealed(hillside))
        async with asyncio.timeout(5):
            await write(hillside, 2)
        assert not waiting.done()
    assert (await waiting).added == 5 - 1


async def test_who_holds_the_lock_does_not_stop_the_sealing(hillside, runtime):
    """Threat: a session of another tenant takes it, and keeps it."""
    await write(hillside, 2)
    await runtime.execute("select pg_advisory_lock(hashtextextended('charthold.seal.' || $1, 0))", str(hillside.tenant))
    assert (await sealed(hillside)).added
    assert (await verified(hillside)).good


async def test_two_sealers_who_do_not_wait_for_each_other_do_not_fork(hillside, owner, monkeypatch):
    """Each would grow the tree from the same head, to another size."""

    async def do_not_wait(*_):
        pass

    monkeypatch.setattr("core.audit.seal._queue", do_not_wait)
    await write(hillside, 8)
    done = await asyncio.gather(
        sealed(hillside, most=2), sealed(hillside, most=5), sealed(hillside), return_exceptions=True
    )
    assert [step for step in done if isinstance(step, Sealed)]
    for step in done:
        assert isinstance(step, Sealed) or str(step).startswith("Another process")
    while (await sealed(hillside)).added:
        pass
    assert (await verified(hillside)).good


async def test_a_clock_that_goes_back_skips_nothing(hillside, superuser):
    await write(hillside, 3)
    await superuser.execute(
        f"update {LOG} set occurred_at = date_trunc('month', occurred_at) where tenant_id = $1 and id = any ("
        f"select id from {LOG} where tenant_id = $1 order by transaction_id desc limit 3)",
        hillside.tenant,
    )
    assert (await sealed(hillside)).added >= 6
    assert (await verified(hillside)).good


async def test_who_may_not_read_the_log_may_not_seal_it(hillside):
    async with hillside.as_clinician():
        with pytest.raises(ScopeError, match="admin, auditor, system"):
            await seal()
        with pytest.raises(ScopeError, match="admin, auditor, system"):
            await verify()


async def test_heads_stay_valid_under_a_new_master_key_while_the_old_one_or_its_public_key_is_known(
    hillside, monkeypatch
):
    await write(hillside, 1)
    old = (await sealed(hillside)).newest
    rotated = replace(settings(), master_key=os.urandom(32), retired_master_keys=(master_key(settings()),))
    for module in (sealing, verifying):
        monkeypatch.setattr(module, "settings", lambda: rotated)
    assert (await verified(hillside, [old])).good
    monkeypatch.setattr(verifying, "settings", lambda: replace(rotated, retired_master_keys=()))
    report = await verified(hillside)
    assert len(report.findings) == report.heads
    assert f"unknown key {old.key_id}" in str(report.findings[0])
    gone = replace(rotated, retired_master_keys=(), retired_seal_keys=(SealKey(rotated.retired_master_keys[0]).public,))
    monkeypatch.setattr(verifying, "settings", lambda: gone)
    assert (await verified(hillside, [old])).good, "the public key of a master key that was destroyed is enough"
    monkeypatch.setattr(sealing, "settings", lambda: replace(rotated, retired_master_keys=()))
    with pytest.raises(ChartholdError, match="CHARTHOLD_RETIRED_MASTER_KEYS"):
        await sealed(hillside)


async def test_nothing_is_built_upon_a_head_whose_right_edge_was_altered(hillside, superuser):
    await sealed(hillside)
    last = "tenant_id = $1 and tree_size = (select max(tree_size) from audit_seal where tenant_id = $1)"
    edge = await superuser.fetchval(f"select frontier from audit_seal where {last}", hillside.tenant)
    altered = bytes([edge[0] ^ 1]) + edge[1:]
    await superuser.execute(f"update audit_seal set frontier = $2 where {last}", hillside.tenant, altered)
    await write(hillside, 1)
    with pytest.raises(ChartholdError, match="does not verify"):
        await sealed(hillside)
    await superuser.execute(f"update audit_seal set frontier = $2 where {last}", hillside.tenant, edge)
    assert (await sealed(hillside)).added > 0
    assert (await verified(hillside)).good


async def test_no_record_of_a_later_head_lies_below_an_earlier_heads_horizon(hillside, superuser):
    """The horizon says that nothing appears below it any more that is not an attack."""
    await write(hillside, 30)
    await sealed(hillside, leaves=7)
    heads = await superuser.fetch(
        "select horizon, record_ids from audit_seal where tenant_id = $1 and era = 1 order by tree_size",
        hillside.tenant,
    )
    assert len(heads) > 4
    for earlier, later in itertools.pairwise(heads):
        lowest = await superuser.fetchval(
            f"select min(transaction_id) from {LOG} where id = any ($1)", later["record_ids"]
        )
        assert lowest >= earlier["horizon"]


async def test_nothing_is_built_upon_a_forged_head(hillside, superuser):
    await sealed(hillside)
    await superuser.execute(
        "insert into audit_seal select (json_populate_record(s, json_build_object("
        "'id', gen_random_uuid(), 'tree_size', tree_size + 1, 'record_ids', array[gen_random_uuid()],"
        " 'previous', sha256('x'), 'leaf_hashes', '\\x' || repeat('00', 32)))).* from audit_seal as s"
        " where tenant_id = $1 order by s.tree_size desc limit 1",
        hillside.tenant,
    )
    await write(hillside, 1)
    with pytest.raises(ChartholdError, match="does not verify"):
        await sealed(hillside)
    assert [finding.kind for finding in (await verified(hillside)).findings] == ["head"]
    await superuser.execute(
        "delete from audit_seal where tenant_id = $1 and tree_size = (select max(tree_size) from audit_seal"
        " where tenant_id = $1)",
        hillside.tenant,
    )
    assert (await verified(hillside)).good


# --- tampering ------------------------------------------------------------------------------------------------------

EDITS = (
    "reason = reason || ' '",
    "new_values = jsonb_set(coalesce(new_values, '{}'), '{name}', '\"x\"')",
    "old_values = coalesce(old_values, '{}') || '{\"capacity\": 8}'",
    "occurred_at = occurred_at + interval '1 microsecond'",
    "user_id = gen_random_uuid()",
    "action_type = case action_type when 'read' then 'update' else 'read' end",
    "table_name = nullif(table_name || 'x', 'x')",
    "record_id = gen_random_uuid()",
    "changed_columns = coalesce(changed_columns, '{}') || '{x}'",
    "request_id = case when request_id is null then '' end",
    "source_ip = case when source_ip is null then '10.0.0.1'::inet end",
)
HEAD_EDITS = (
    "root_hash = set_byte(root_hash, 5, 255 - get_byte(root_hash, 5))",
    "sealed_at = sealed_at - interval '1 day'",
    "horizon = horizon + 1",
    "signature = set_byte(signature, 5, 255 - get_byte(signature, 5))",
    "previous = sha256('')",
    "key_id = '0123456789abcdef'",
    "era = era + 1",
    "frontier = set_byte(frontier, 0, 255 - get_byte(frontier, 0))",
    "leaf_hashes = set_byte(leaf_hashes, 40, 255 - get_byte(leaf_hashes, 40))",
    "record_ids[2] = gen_random_uuid()",
)
HEAD_KINDS = {"head", "list", "heads_missing"}


@pytest.fixture(scope="module")
async def victim(lakeside, database, tmp_path_factory):
    """A clinic with a sealed log in several heads, a copy of it, an earlier copy, and its exported heads."""
    connection = await superuser_connection()
    for turn in range(6):
        await write(lakeside, 30, reason=f"turn {turn}")
        await sealed(lakeside, leaves=24)
        if turn == 2:
            await connection.execute(
                f"create table early_log as table {LOG}; create table early_seal as table audit_seal"
            )
    await connection.execute(f"create table spare_log as table {LOG}; create table spare_seal as table audit_seal")
    await connection.close()
    path = tmp_path_factory.mktemp("heads") / "heads.jsonl"
    await seal_audit.__wrapped__(tenant="lakeside", export=str(path), quiet=True)
    return lakeside, read_heads(path)[0]


async def restore(superuser) -> None:
    await superuser.execute(f"truncate {LOG}, public.audit_seal; {COPIED}")


async def tamper(superuser, tenant: UUID, chance: random.Random, kind: str):
    """Do it; the records that must be named, the kinds of which one must be reported."""
    ids = [row[0] for row in await superuser.fetch(f"select id from {LOG} where tenant_id = $1 order by id", tenant)]
    one, other = chance.sample(ids, 2)
    heads = [
        r[0] for r in await superuser.fetch("select id from audit_seal where tenant_id = $1 order by tree_size", tenant)
    ]
    if kind == "edit":
        await superuser.execute(f"update {LOG} set {chance.choice(EDITS)} where id = $1", one)
        return {one}, {"changed", "reordered"}
    if kind == "delete":
        await superuser.execute(f"delete from {LOG} where id = $1", one)
        return {one}, {"missing"}
    if kind == "insert":
        made = uuid7()
        await superuser.execute(
            f"insert into {LOG} select (json_populate_record(l, json_build_object('id', $1::uuid))).*"
            f" from {LOG} as l where id = $2", made, one,
        )  # fmt: skip
        return {made}, {"added"}
    if kind == "swap":
        what = chance.choice(("record_id", "occurred_at", "transaction_id", "new_values"))
        values = await superuser.fetch(
            f"select id, {what} as v, to_json({what})::text as t from {LOG} where id = any ($1)", [one, other]
        )
        if values[0]["t"] == values[1]["t"]:
            return await tamper(superuser, tenant, chance, kind)
        for row, value in zip(values, reversed(values), strict=True):
            await superuser.execute(f"update {LOG} set {what} = $2 where id = $1", row["id"], value["v"])
        return {one, other}, {"changed", "reordered"}
    if kind == "head":
        await superuser.execute(
            f"update audit_seal set {chance.choice(HEAD_EDITS)} where id = $1", chance.choice(heads)
        )
        return set(), HEAD_KINDS
    if kind == "seals":
        start = chance.randrange(len(heads))
        count = chance.choice((1, 2, len(heads)))
        await superuser.execute("delete from audit_seal where id = any ($1)", heads[start : start + count])
        return set(), {"heads_missing"} if start + count < len(heads) else {"rewritten"}
    if kind == "partition":  # from a backup, the seals left alone: what came since is missing
        gone = await superuser.fetch(
            f"select id from {LOG} where tenant_id = $1 except select id from early_log", tenant
        )
        await superuser.execute(f"truncate {LOG}; insert into {LOG} select * from early_log")
        return {row[0] for row in gone}, {"missing"}
    if kind == "everything":  # from a backup, seals and all
        await superuser.execute(f"truncate {LOG}, audit_seal; insert into {LOG} select * from early_log")
        await superuser.execute("insert into audit_seal select * from early_seal")
        return set(), {"rewritten"}
    # A record and, to hide it, its leaf in the list.
    await superuser.execute(f"update {LOG} set reason = 'x' where id = $1", one)
    await superuser.execute(
        "update audit_seal set leaf_hashes = overlay(leaf_hashes placing sha256('') from"
        " (array_position(record_ids, $1) - 1) * 32 + 1) where $1 = any (record_ids)",
        one,
    )
    return {one}, {"list"}


async def test_a_hundred_tamperings_are_found_and_a_hundred_untouched_logs_are_not_blamed(victim, superuser):
    clinic, exported = victim
    kinds = ["edit"] * 25 + ["delete"] * 15 + ["insert"] * 15 + ["swap"] * 15 + ["head"] * 12 + ["seals"] * 8
    kinds += ["partition"] * 3 + ["everything"] * 3 + ["hidden"] * 4
    assert len(kinds) == 100
    for number, kind in enumerate(kinds):
        report = await verified(clinic, exported)
        assert report.good, (number, [str(finding) for finding in report.findings])
        must_name, expected = await tamper(superuser, clinic.tenant, random.Random(number), kind)
        report = await verified(clinic, exported)
        said = [str(finding) for finding in report.findings]
        assert must_name <= named(report), (number, kind, said)
        assert {finding.kind for finding in report.findings} & expected, (number, kind, said)
        if kind in {"edit", "delete", "insert", "swap", "partition"}:
            assert len(named(report)) == len(must_name), (number, kind, said)  # and nobody else is blamed
        await restore(superuser)


async def test_records_moved_past_each_other_are_called_reordered(victim, superuser):
    clinic, _ = victim
    first, second = [
        row[0] for row in await superuser.fetch(
            f"select id from {LOG} where tenant_id = $1 and reason = 'turn 1' order by transaction_id, occurred_at, id limit 2",
            clinic.tenant,
        )
    ]  # fmt: skip
    times = dict(await superuser.fetch(f"select id, occurred_at from {LOG} where id = any ($1)", [first, second]))
    for one, other in ((first, second), (second, first)):
        await superuser.execute(f"update {LOG} set occurred_at = $2 where id = $1", one, times[other])
    report = await verified(clinic)
    assert named(report) == {first, second}
    assert {finding.kind for finding in report.findings} == {"changed", "reordered"}
    await restore(superuser)


async def test_a_past_signed_again_with_the_master_key_is_shown_by_exported_heads(victim, superuser):
    clinic, exported = victim
    await superuser.execute(
        f"update {LOG} set reason = 'innocent' where tenant_id = $1 and reason = 'turn 0'", clinic.tenant
    )
    await superuser.execute("delete from audit_seal where tenant_id = $1", clinic.tenant)
    await sealed(clinic)
    assert (await verified(clinic)).good
    assert {finding.kind for finding in (await verified(clinic, exported)).findings} == {"rewritten"}
    await restore(superuser)


async def test_heads_of_an_older_state_stay_valid_while_the_log_grows(victim, superuser):
    clinic, exported = victim
    await write(clinic, 4)
    await sealed(clinic)
    report = await verified(clinic, exported)
    assert (report.good, report.exported_heads) == (True, 1)
    await restore(superuser)


@pytest.mark.parametrize("years", [8, 0])
async def test_a_month_that_was_archived_is_not_missing_if_it_was_sealed_long_ago(
    victim, superuser, monkeypatch, years
):
    """Threat: an id can be made that looks old, and the record of today that has it be taken out as if archived."""
    clinic, _ = victim
    moment = datetime.now(UTC) - timedelta(days=365 * 8)
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    await superuser.execute(
        f"create table archived partition of {LOG} for values from ('{first}') to ('{first + timedelta(days=31)}')"
    )
    milliseconds = int(moment.timestamp() * 1000).to_bytes(6, "big")
    for number in range(5):
        made = UUID(bytes=milliseconds + b"\x70" + bytes([number]) + b"\x80" + bytes(7))
        await superuser.execute(
            f"insert into {LOG} (id, tenant_id, occurred_at, user_id, action_type, reason, transaction_id)"
            " values ($1, $2, $3, $4, 'login', 'old', pg_current_xact_id()::text::bigint)",
            made, clinic.tenant, moment, clinic.admin,
        )  # fmt: skip
    with monkeypatch.context() as then:
        then.setattr(sealing, "_not_before", lambda now, _: now - timedelta(days=365 * years))
        assert (await sealed(clinic)).added == 5
    assert (await verified(clinic)).good
    await superuser.execute(
        "delete from archived where reason = 'old' and id = (select max(id::text)::uuid from archived)"
    )
    assert len(named(await verified(clinic), "missing")) == 1  # the month is still there, so nothing may be gone
    await superuser.execute(f"alter table {LOG} detach partition archived")
    report = await verified(clinic)
    assert (len(named(report, "missing")), report.archived) == ((0, 5) if years else (5, 0))
    await superuser.execute("drop table archived")
    await restore(superuser)


async def test_the_tree_goes_on_when_a_dump_is_restored_on_a_new_server(victim, superuser, monkeypatch):
    clinic, exported = victim

    async def records_of(*transactions: int) -> None:
        for number in transactions:
            await superuser.execute(
                f"insert into {LOG} (tenant_id, user_id, action_type, reason, transaction_id)"
                " values ($1, $2, 'login', 'new server', $3)", clinic.tenant, clinic.admin, number,
            )  # fmt: skip

    def server(oldest: int, future: int) -> None:
        monkeypatch.setattr(
            sealing, "NOW", f"select {oldest}::bigint as oldest, {future}::bigint as future, 42::bigint as cluster,"
            " clock_timestamp() as now",
        )  # fmt: skip

    old = exported[0].horizon
    server(60, 70)
    # 65 may be running; the one far ahead is left from the old server.
    await records_of(10, 11, 65, old + 1_000_000)
    step = await sealed(clinic)
    assert (step.added, step.newest.era) == (3, exported[0].era + 1)
    server(old // 2, old // 2 + 5)
    await records_of(100, 101)
    assert (await sealed(clinic)).added == 3
    server(old + 2_000_000, old + 2_000_001)
    await records_of(old + 5)
    assert (await sealed(clinic)).added == 1
    report = await verified(clinic, exported)
    assert report.good, [str(finding) for finding in report.findings]
    await superuser.execute(f"update {LOG} set reason = 'x' where reason = 'new server' and transaction_id = 101")
    await superuser.execute(f"delete from {LOG} where reason = 'new server' and transaction_id = 11")
    await records_of(12)
    report = await verified(clinic, exported)
    assert sorted(finding.kind for finding in report.findings) == ["added", "changed", "missing"]
    await restore(superuser)


@pytest.mark.parametrize(("cluster", "ahead"), [(0, -10), (1, 1_000_000)], ids=["set back", "another, far ahead"])
async def test_a_server_that_gives_transaction_ids_again_begins_a_new_era(
    victim, superuser, monkeypatch, cluster, ahead
):
    """What it writes below the last horizon would be sealed never."""
    clinic, exported = victim
    last = exported[0]
    oldest = last.horizon + ahead
    monkeypatch.setattr(
        sealing, "NOW", f"select {oldest}::bigint as oldest, {oldest + 1}::bigint as future,"
        f" {last.cluster + cluster}::bigint as cluster, clock_timestamp() as now",
    )  # fmt: skip
    await superuser.execute(
        f"insert into {LOG} (tenant_id, user_id, action_type, reason, transaction_id) values ($1, $2, 'login', 'x', $3)",
        clinic.tenant, clinic.admin, last.horizon - 20,
    )  # fmt: skip
    step = await sealed(clinic)
    assert (step.added, step.newest.era, step.newest.horizon) == (1, last.era + 1, oldest)
    assert (await verified(clinic, exported)).good
    await restore(superuser)


# --- proofs and commands --------------------------------------------------------------------------------------------


def run_script(path: Path, *arguments: str, script: Path = VERIFY_PROOF) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-I", str(script), str(path), *arguments], capture_output=True, text=True, cwd="/"
    )


async def test_a_script_without_our_package_verifies_a_proof(victim, superuser, tmp_path):
    clinic, exported = victim
    assert len(VERIFY_PROOF.read_text(encoding="utf-8").splitlines()) <= 80
    path = tmp_path / "proof.json"
    ids = [row[0] for row in await superuser.fetch(f"select id from {LOG} where tenant_id = $1", clinic.tenant)]
    key = public_keys(settings())[exported[0].key_id].hex()
    for record in random.Random(7).sample(ids, 5):
        async with clinic.as_admin():
            proof = await prove(record)
        path.write_text(json.dumps(proof), encoding="utf-8")
        done = run_script(path, key)
        assert done.returncode == 0, done.stderr
        assert f"PROVED under the key given, {key}" in done.stdout
        assert f"id: {record}" in done.stdout
    # Who took a record out of the log is in the log.
    taken = f"select count(*) from {LOG} where tenant_id = $1 and new_values ->> 'proved' = $2"
    assert await superuser.fetchval(taken, clinic.tenant, str(record)) == 1
    assert run_script(path, "00" * 32).returncode != 0
    for name, value in {
        "record": proof["record"][:-1] + ("1" if proof["record"][-1] == "0" else "0"),
        "leaf": proof["leaf"] - 1,
        "path": proof["path"][::-1],
        "head": proof["head"] | {"tree_size": proof["head"]["tree_size"] + 1},
    }.items():
        path.write_text(json.dumps(proof | {name: value}), encoding="utf-8")
        assert run_script(path, key).returncode != 0, name
    # The path of a last leaf goes to the left only, as that of a leaf before the first would.
    size, root, whole = 8, [leaf_hash(bytes.fromhex(proof["record"]))], SealKey(master_key(settings()))
    siblings = [bytes([n]) * 32 for n in range(3)]
    for sibling in siblings:
        root.append(node_hash(sibling, root[-1]))
    said = {
        name: getattr(exported[0], name) for name in HEAD_COLUMNS.split(", ") if name not in ("key_id", "signature")
    }
    head = whole.sign(**said | {"tree_size": size, "root_hash": root[-1]}).to_json()
    forged = proof | {"head": head, "path": [sibling.hex() for sibling in siblings]}
    for leaf, status in ((7, 0), (-1, 1), (8, 1), (15, 1)):
        path.write_text(json.dumps(forged | {"leaf": leaf}), encoding="utf-8")
        assert run_script(path, key).returncode == status, leaf


async def test_a_changed_record_and_an_unsealed_one_have_no_proof(victim, superuser):
    clinic, _ = victim
    record = await superuser.fetchval(
        f"update {LOG} set reason = 'x' where id = (select id from {LOG} where reason = 'turn 3' limit 1) returning id"
    )
    async with clinic.as_admin():
        with pytest.raises(ChartholdError, match="not what was sealed"):
            await prove(record)
        with pytest.raises(ChartholdError, match="has no record"):
            await prove(uuid7())
    await restore(superuser)
    await write(clinic, 1)
    async with clinic.as_admin():
        newest = await superuser.fetchval(
            f"select id from {LOG} where tenant_id = $1 order by transaction_id desc limit 1", clinic.tenant
        )
        with pytest.raises(ChartholdError, match="not sealed yet"):
            await prove(newest)
    await restore(superuser)


async def test_a_script_without_our_package_verifies_that_a_log_only_grew(victim, superuser, tmp_path):
    clinic, _ = victim
    await write(clinic, 1)
    await sealed(clinic)
    rows = await superuser.fetch(f"select {HEAD_COLUMNS} from audit_seal where tenant_id = $1", clinic.tenant)
    heads = sorted(map(TreeHead.from_row, rows), key=lambda head: head.tree_size)
    assert len(heads) > 6
    kept, path, key = tmp_path / "heads.jsonl", tmp_path / "growth.json", public_keys(settings())[heads[0].key_id].hex()
    lines = [json.dumps(head.to_json() | {"public_key": key}) for head in heads]

    def judge(proof, kept_lines=lines):
        path.write_text(json.dumps(proof), encoding="utf-8")
        kept.write_text("\n".join(kept_lines), encoding="utf-8")
        return run_script(path, str(kept), script=VERIFY_GROWTH)

    for head in heads:
        async with clinic.as_admin():
            proof = await prove_growth(head)
        done = judge(proof)
        assert done.returncode == 0, done.stderr
        assert f"the {head.tree_size} records sealed at" in done.stdout
        assert f"the first of the {heads[-1].tree_size} sealed at" in done.stdout
    async with clinic.as_admin():
        proof = await prove_growth(heads[2])
    assert judge(proof, [lines[2][:40], *lines]).returncode == 0  # a crash tore a line
    refused = {
        "none of those that were kept": [
            judge(proof, lines[3:]),
            judge(proof | {"first": heads[3].to_json()}, lines[:3]),
        ],
        "was kept, and is not signed with": [judge(proof, [line.replace(key, "00" * 32) for line in lines])],
        "the second head is not signed": [judge(proof | {"second": proof["second"] | {"tree_size": 10**6}})],
        "does not begin with the first": [
            judge(proof | {"path": proof["path"][::-1]}),
            judge(proof | {"path": proof["path"][:-1]}),
            judge(proof | {"path": [*proof["path"], proof["path"][0]]}),
            judge(proof | {"first": heads[3].to_json()}),
            judge(proof | {"first": proof["second"], "second": proof["first"]}),
            judge(proof | {"second": heads[3].to_json()}),
        ],
    }
    for why, judged in refused.items():
        for done in judged:
            assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    assert run_script(tmp_path / "absent", str(kept), script=VERIFY_GROWTH).returncode == 2
    await restore(superuser)


async def test_a_head_of_another_past_has_no_proof_that_the_log_only_grew(victim, hillside, superuser):
    clinic, exported = victim
    said = {
        name: getattr(exported[0], name) for name in HEAD_COLUMNS.split(", ") if name not in ("key_id", "signature")
    }
    signer = SealKey(master_key(settings()))
    async with clinic.as_admin():
        for other in ({"root_hash": bytes(32)}, {"tree_size": 10**6}, {"tree_size": 0}):
            with pytest.raises(ChartholdError, match="the past was rewritten, or taken back"):
                await prove_growth(signer.sign(**said | other))
        with pytest.raises(ChartholdError, match="not signed for this tenant by a master key"):
            await prove_growth(SealKey(os.urandom(32)).sign(**said))
        with pytest.raises(ChartholdError, match="not signed for this tenant"):
            await prove_growth(signer.sign(**said | {"tenant_id": hillside.tenant}))
        await superuser.execute("delete from audit_seal where tenant_id = $1", clinic.tenant)
        with pytest.raises(ChartholdError, match="Nothing of this tenant's log is sealed"):
            await prove_growth(exported[0])
    await restore(superuser)


async def test_the_commands_seal_export_verify_and_say_what_is_wrong(victim, hillside, superuser, tmp_path, capsys):
    clinic, _ = victim
    path = tmp_path / "heads.jsonl"
    assert await seal_audit.__wrapped__(export=str(path), json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {tenant["slug"] for tenant in printed["tenants"]} == {"hillside", "lakeside"}
    assert await seal_audit.__wrapped__(export=str(path)) == 0
    assert len(read_heads(path)[0]) == 2  # a head is exported once
    assert "lakeside: 0 records sealed" in capsys.readouterr().out
    assert await verify_audit.__wrapped__(heads=str(path), quiet=True) == 0
    assert capsys.readouterr().out == ""

    record = await superuser.fetchval(f"select id from {LOG} where reason = 'turn 2' limit 1")
    await verify_audit.__wrapped__(tenant="lakeside", proof=str(record))
    assert json.loads(capsys.readouterr().out)["says"]["id"] == str(record)
    assert await verify_audit.__wrapped__(tenant="lakeside", growth=str(path)) == 0
    grown = json.loads(capsys.readouterr().out)
    assert grown["first"]["tree_size"] <= grown["second"]["tree_size"]
    # Of several heads of a tenant the newest is grown from, wherever it stands.
    await write(clinic, 2)
    assert await seal_audit.__wrapped__(export=str(path), quiet=True) == 0
    newest = max(head.tree_size for head in read_heads(path)[0] if head.tenant_id == clinic.tenant)
    assert newest > grown["second"]["tree_size"]
    for lines in (path.read_text().splitlines(), path.read_text().splitlines()[::-1]):
        several = tmp_path / "several.jsonl"
        several.write_text("\n".join(lines))
        assert await verify_audit.__wrapped__(tenant="lakeside", growth=str(several)) == 0
        assert json.loads(capsys.readouterr().out)["first"]["tree_size"] == newest
    with pytest.raises(ChartholdError, match="A proof is about one tenant"):
        await verify_audit.__wrapped__(growth=str(path))
    with pytest.raises(ChartholdError, match="One of --proof, --growth and --heads"):
        await verify_audit.__wrapped__(tenant="lakeside", growth=str(path), heads=str(path))

    await superuser.execute(f"delete from {LOG} where id = $1", record)
    assert await verify_audit.__wrapped__(heads=str(path)) == 1
    out = capsys.readouterr().out
    assert f"lakeside: Record {record} (leaf " in out
    assert "was sealed and is gone." in out
    assert "hillside" in out
    assert await verify_audit.__wrapped__(tenant="lakeside", json=True) == 1
    found = json.loads(capsys.readouterr().out)["tenants"]["lakeside"]
    assert [(finding["kind"], finding["record"]) for finding in found["findings"]] == [("missing", str(record))]
    await restore(superuser)


async def test_a_standby_verifies_and_says_what_it_cannot_do(hillside, owner, database, monkeypatch, capsys):
    await write(hillside, 2)
    await seal_audit.__wrapped__(quiet=True)
    await database.close_connection_pool()
    for session in (core.wire.session.SESSION, core.wire.session.OWNER_SESSION):
        monkeypatch.setitem(
            session, "default_transaction_read_only", "on"
        )  # as it is on a standby, whatever one asks for
    try:
        assert await verify_audit.__wrapped__(tenant="hillside") == 0
        told = capsys.readouterr()
        assert "as they were sealed" in told.out
        assert "not recorded" in told.err
        record = await owner.fetchval(f"select id from {LOG} where tenant_id = $1 limit 1", hillside.tenant)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as refused:
            await verify_audit.__wrapped__(tenant="hillside", proof=str(record))
        assert "Name the primary" in sentence(refused.value)
        with pytest.raises(ChartholdError, match="Ask the primary"):
            await doctor.__wrapped__(quiet=True)
        with pytest.raises(ChartholdError, match="Name the primary"):
            await reindex.__wrapped__(tenant="hillside")
    finally:
        await database.close_connection_pool()


async def test_a_file_that_holds_no_heads_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "heads.jsonl"
    for text in ("not json", "[]", "{}", '{"format": "charthold.tree-head.v1"}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ChartholdError, match="head"):
            read_heads(path)
    with pytest.raises(ChartholdError, match="cannot be read"):
        read_heads(tmp_path / "absent")


async def test_what_a_crash_left_of_a_line_spoils_no_other_head(victim, hillside, tmp_path, capsys):
    path = tmp_path / "heads.jsonl"
    await seal_audit.__wrapped__(export=str(path), quiet=True)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()[:-30])
    async with hillside.as_admin():
        await record_action("login")
    await seal_audit.__wrapped__(export=str(path), quiet=True)
    heads, unread = read_heads(path)
    assert unread == [2]
    assert {head.tenant_id for head in heads} == {victim[0].tenant, hillside.tenant}
    assert await verify_audit.__wrapped__(heads=str(path), quiet=True) == 3
    assert "no head in line 2. The others are compared." in capsys.readouterr().err


async def test_a_file_without_a_head_of_the_tenant_is_not_taken_for_evidence(victim, hillside, tmp_path, capsys):
    path = tmp_path / "heads.jsonl"
    await seal_audit.__wrapped__(tenant="hillside", export=str(path), quiet=True)
    assert await verify_audit.__wrapped__(tenant="hillside", heads=str(path), quiet=True) == 0
    assert await verify_audit.__wrapped__(tenant="lakeside", heads=str(path), quiet=True) == 3
    assert "has no head of it, so nothing shows whether its past was signed anew" in capsys.readouterr().err
    path.write_text("", encoding="utf-8")
    with pytest.raises(ChartholdError, match="holds no exported head"):
        await verify_audit.__wrapped__(tenant="hillside", heads=str(path))


async def test_a_tenant_that_is_gone_with_its_log_is_shown_by_its_exported_heads(
    victim, hillside, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "heads.jsonl"
    await seal_audit.__wrapped__(export=str(path), quiet=True)

    async def without_hillside(tenant, actor):
        return {"lakeside": victim[0].tenant}

    monkeypatch.setattr("core.commands.verify_audit.by_slug", without_hillside)
    assert await verify_audit.__wrapped__(heads=str(path), quiet=True) == 1
    assert capsys.readouterr().err == f"The tenant {hillside.tenant} has exported heads and is gone.\n"
    assert await verify_audit.__wrapped__(heads=str(path), json=True) == 1
    assert json.loads(capsys.readouterr().out)["gone"] == [str(hillside.tenant)]
    # Who asks for one tenant is told of that one.
    assert await verify_audit.__wrapped__(tenant="lakeside", heads=str(path), quiet=True) == 0


async def test_heads_are_exported_to_what_cannot_be_read_again(victim, hillside):
    reads, writes = os.pipe()
    try:
        await seal_audit.__wrapped__(tenant="hillside", export=f"/dev/fd/{writes}", quiet=True)
        assert json.loads(os.read(reads, 65_536))["tenant_id"] == str(hillside.tenant)
    finally:
        os.close(reads)
        os.close(writes)
    with pytest.raises(ChartholdError, match="What was sealed stays sealed"):
        await seal_audit.__wrapped__(tenant="hillside", export="/dev/full", quiet=True)


async def test_the_log_of_a_suspended_tenant_is_sealed_and_verified_too(hillside, capsys):
    await seal_audit.__wrapped__(tenant="hillside", quiet=True)
    async with hillside.as_admin():
        await Tenant.update({Tenant.status: "suspended"}).where(Tenant.id == hillside.tenant)
    assert await seal_audit.__wrapped__(tenant="hillside") == 0
    assert "hillside: 1 records sealed" in capsys.readouterr().out
    assert await verify_audit.__wrapped__(tenant="hillside") == 0


async def test_a_seal_says_who_made_it_and_nobody_makes_one_for_another(victim, superuser, database):
    clinic, _ = victim
    assert await superuser.fetchval(
        "select distinct sealed_by from audit_seal where tenant_id = $1", clinic.tenant
    ) == (clinic.admin)
    async with clinic.as_admin():
        with pytest.raises(ScopeError, match="row-level security"):
            async with transaction():
                await Facility.raw(
                    "insert into audit_seal select * from jsonb_populate_record(null::audit_seal, (select to_jsonb(s)"
                    " || jsonb_build_object('id', {}::uuid, 'tree_size', 10000, 'sealed_by', {}::uuid)"
                    " from audit_seal as s limit 1))", uuid7(), clinic.clinician,
                )  # fmt: skip
