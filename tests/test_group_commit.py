"""Statements of many requests in one transaction: each as if it had been alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import PoolExhaustedError, ScopeError, scope, transaction
from core.engine import ChartholdEngine
from core.group_commit import LANES, MOST, GroupCommit, Member
from core.pool import Link
from core.tables import Client, Facility, User
from tests.conftest import Clinic
from tests.test_scope import set_up, someone

CROWD = 32
# What stops whoever updates a row that is named so, on the server.
SLOW = """
create or replace function public.slow() returns trigger language plpgsql as $$
begin perform pg_sleep(1); return new; end $$;
create or replace trigger slow before update on facility for each row when (new.name like 'slow %') execute function slow()
"""


@dataclass
class Seen:
    """The groups that were sent, and how often a statement was sent by itself, in a lane."""

    groups: list[list[Member]] = field(default_factory=list)
    alone: int = 0

    @property
    def sizes(self) -> list[int]:
        return [len(group) for group in self.groups]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    send, run = GroupCommit._send, GroupCommit.run

    async def sent(self: GroupCommit, grouped: str, members: list[Member]) -> None:
        found.groups.append(list(members))
        await send(self, grouped, members)

    async def ran(self: GroupCommit, *arguments: Any) -> Any:
        found.alone += self._busy < self._pool.size
        return await run(self, *arguments)

    monkeypatch.setattr(GroupCommit, "_send", sent)
    monkeypatch.setattr(GroupCommit, "run", ran)
    return found


@pytest.fixture(autouse=True)
async def new_lanes(database: ChartholdEngine) -> AsyncIterator[None]:
    await database.close_connection_pool()
    yield
    await database.close_connection_pool()


async def crowd(*requests: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What requests answer that come at once."""
    return await asyncio.gather(*[request() for request in requests], return_exceptions=True)


def lanes_of(database: ChartholdEngine) -> GroupCommit:
    lanes = database._here()[1]
    assert lanes is not None
    return lanes


async def clients(clinic: Clinic, number: int) -> list[UUID]:
    """New clients, whose first names say which they are."""
    async with clinic.as_admin():
        rows = [someone(clinic, first_name=f"{clinic.tenant}/{n}") for n in range(number)]
        await Client.insert(*rows)
    return [row.id for row in rows]


async def first_name(clinic: Clinic) -> str:
    """Of the clinic's client, in a request of its own."""
    async with clinic.as_clinician():
        return (await Client.objects().get(Client.id == clinic.client)).first_name


# -- each as if it had been alone --------------------------------------------------------------------------------------


async def test_a_crowd_of_two_tenants_goes_in_groups_and_each_gets_what_is_its_own(
    lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    ids = {clinic: await clients(clinic, CROWD) for clinic in (lakeside, hillside)}

    async def read(clinic: Clinic, n: int) -> list[str]:
        actor = (clinic.admin, clinic.clinician, clinic.auditor)[n % 3]
        async with scope(tenant=clinic.tenant, actor=actor, reason=f"why {n}", request_id=f"{clinic.tenant}/{n}"):
            mine = await Client.objects().get(Client.id == ids[clinic][n])
            theirs = await Client.objects().get(Client.id == ids[hillside if clinic is lakeside else lakeside][n])
            assert mine is not None
            assert theirs is None
            return mine.first_name

    asked = [(clinic, n) for n in range(CROWD) for clinic in (lakeside, hillside)]
    answers = await crowd(*[lambda c=clinic, n=n: read(c, n) for clinic, n in asked])
    assert answers == [f"{clinic.tenant}/{n}" for clinic, n in asked]
    assert max(seen.sizes) == MOST
    assert any(len({member.scope.tenant for member in group}) == 2 for group in seen.groups)
    recorded = await owner.fetch(
        "select tenant_id, user_id, record_id, reason, request_id from user_action_audit_log"
        " where action_type = 'read' and record_id = any($1)",
        [row for rows in ids.values() for row in rows],
    )
    assert sorted(map(tuple, recorded)) == sorted(
        (
            clinic.tenant,
            (clinic.admin, clinic.clinician, clinic.auditor)[n % 3],
            ids[clinic][n],
            f"why {n}",
            f"{clinic.tenant}/{n}",
        )
        for clinic, n in asked
    )


async def test_whatever_many_do_at_once_is_what_they_would_have_done_in_turn(
    lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    chance = random.Random(3)
    before = await owner.fetchval("select count(*) from user_action_audit_log")
    recorded = 0
    facts: dict[UUID, str | None] = {}

    async def work(clinic: Clinic, number: int) -> None:
        nonlocal recorded
        async with clinic.as_admin(f"request {number}"):
            made = someone(clinic, first_name=f"made {number}")
            await made.save()
            facts[made.id] = made.first_name
            recorded += 1
            for turn in range(6):
                match chance.randrange(4):
                    case 0:
                        found = await Client.objects().get(Client.id == made.id)
                        assert (found.first_name if found else None) == facts[made.id]
                        recorded += found is not None
                    case 1:
                        name = f"changed {number} {turn}"
                        await Client.update({Client.first_name: name}).where(Client.id == made.id)
                        if facts[made.id]:
                            facts[made.id] = name
                            recorded += 1
                    case 2:
                        row = await Client.select(Client.first_name).where(Client.id == made.id).first()
                        assert (row["first_name"] if row else None) == facts[made.id]
                        recorded += row is not None
                    case _ if chance.random() < 0.3:
                        await Client.delete().where(Client.id == made.id)
                        recorded += facts[made.id] is not None
                        facts[made.id] = None

    outcome = await crowd(*[lambda n=n: work((lakeside, hillside)[n % 2], n) for n in range(CROWD)])
    assert outcome == [None] * CROWD
    assert len(seen.groups) > CROWD / 4
    assert await owner.fetchval("select count(*) from user_action_audit_log") == before + recorded
    kept = {row["id"] for row in await owner.fetch("select id from client where id = any($1)", list(facts))}
    assert kept == {row for row, name in facts.items() if name}


async def test_who_is_first_goes_alone_and_at_once(lakeside: Clinic, seen: Seen) -> None:
    async with lakeside.as_clinician():
        for _ in range(3):
            assert await Client.objects().get(Client.id == lakeside.client)
        await asyncio.gather(*[Client.objects().get(Client.id == lakeside.client) for _ in range(LANES)])
    assert (seen.alone, seen.groups) == (3 + LANES, [])


@pytest.mark.parametrize(
    "statement",
    [
        lambda c: Client.objects().where(Client.last_name == "Nguyen"),
        lambda c: Client.select(Client.first_name).where(Client.status == "active"),
        lambda c: Client.select(Client.first_name).where((Client.id == c.client) | (Client.status == "active")),
        lambda c: Client.select(Client.first_name).where(Client.id.is_in([c.client])),
        lambda c: Client.update({Client.status: "active"}).where(Client.facility_id == c.facility),
        lambda c: Client.update({Client.notes: "x"}).where(Client.last_name == "Nguyen"),
        lambda c: Client.delete().where(Client.first_name.is_null()),
        lambda c: Client.count().where(Client.id == c.client),
        lambda c: Client.exists().where(Client.id == c.client),
        lambda c: Client.insert(someone(c), someone(c)),
        lambda c: Client.raw("select 1"),
        lambda c: Client.objects().get(Client.id == c.client).lock_rows(),
    ],
)
async def test_what_may_take_long_never_goes_in_a_lane(
    statement: Callable[[Clinic], Any], lakeside: Clinic, seen: Seen
) -> None:
    async with lakeside.as_admin():
        await asyncio.gather(*[statement(lakeside) for _ in range(CROWD)])
    assert (seen.alone, seen.groups) == (0, [])


async def test_a_transaction_of_ones_own_is_nobody_elses(lakeside: Clinic, seen: Seen) -> None:
    async def work() -> None:
        async with lakeside.as_admin(), transaction():
            await Client.objects().get(Client.id == lakeside.client)
            await Facility(name=f"Together {uuid4()}").save()

    assert await crowd(*[work for _ in range(CROWD)]) == [None] * CROWD
    assert (seen.alone, seen.groups) == (0, [])


@pytest.mark.parametrize(("size", "lanes"), [(1, 0), (3, 0), (4, 1), (8, 2), (100, 2)])
async def test_lanes_are_among_the_connections_that_a_process_may_open(
    size: int,
    lanes: int,
    database: ChartholdEngine,
    lakeside: Clinic,
    owner: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with set_up(monkeypatch, database, pool_size=size):
        async with lakeside.as_admin():
            requests = [Client.objects().get(Client.id == lakeside.client) for _ in range(CROWD)]
            assert all(await asyncio.gather(*requests, *[Client.count() for _ in range(CROWD)]))
        pool, group = database._here()
        assert (pool.size + (group._pool.size if group else 0), group._pool.size if group else 0) == (size, lanes)
        opened = "select count(*) from pg_stat_activity where application_name = 'charthold' and datname = $1"
        assert await owner.fetchval(opened, database.database) <= size


# -- one fails, the others do not --------------------------------------------------------------------------------------


async def test_what_fails_for_one_fails_for_that_one_and_is_done_once_for_the_others(
    lakeside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    taken = f"taken {uuid4()}"
    async with lakeside.as_admin():
        await someone(lakeside, mrn=taken).save()
    rows = [someone(lakeside, mrn=taken if n % 10 == 9 else f"{uuid4()}") for n in range(40)]

    async def save(row: Client) -> None:
        async with lakeside.as_admin():
            await row.save()

    answers = await crowd(*[lambda row=row: save(row) for row in rows])
    assert [n for n, answer in enumerate(answers) if answer is not None] == [9, 19, 29, 39]
    assert all(isinstance(answer, asyncpg.UniqueViolationError) for answer in answers if answer)
    assert seen.groups
    assert not any(taken in repr((answer, answer.__cause__, answer.__context__)) for answer in answers if answer)
    good = [row.id for n, row in enumerate(rows) if n % 10 != 9]
    counted = "select count(*) from client where id = any($1)"
    assert await owner.fetchval(counted, [row.id for row in rows]) == await owner.fetchval(counted, good) == 36
    logged = "select count(*) from user_action_audit_log where action_type = 'insert' and record_id = any($1)"
    assert await owner.fetchval(logged, [row.id for row in rows]) == 36


async def test_a_role_that_may_not_is_refused_among_those_that_may(
    lakeside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    ids = await clients(lakeside, CROWD)

    async def update(n: int) -> None:
        actor = lakeside.auditor if n % 4 == 3 else lakeside.clinician
        async with scope(tenant=lakeside.tenant, actor=actor, reason="test"):
            await Client.update({Client.notes: f"note {n}"}).where(Client.id == ids[n])

    async def insert(n: int) -> None:
        actor = lakeside.auditor if n % 4 == 3 else lakeside.clinician
        async with scope(tenant=lakeside.tenant, actor=actor, reason="test"):
            await someone(lakeside).save()

    await crowd(*[lambda n=n: update(n) for n in range(CROWD)])
    noted = await owner.fetch("select id from client where id = any($1) and notes is not null", ids)
    assert {row["id"] for row in noted} == {row for n, row in enumerate(ids) if n % 4 != 3}
    answers = await crowd(*[lambda n=n: insert(n) for n in range(CROWD)])
    assert [isinstance(answer, ScopeError) for answer in answers] == [n % 4 == 3 for n in range(CROWD)]
    assert seen.groups


async def test_a_user_who_is_locked_and_a_scope_that_ends_while_they_wait_are_refused_alone(
    lakeside: Clinic, seen: Seen
) -> None:
    async with lakeside.as_admin():
        locked = User(email=f"{uuid4()}@mail.example", full_name="Gone", role="clinician", status="deactivated")
        await locked.save()
    ending: list[asyncio.Task[Any]] = []

    async def read(n: int) -> str:
        actor = locked.id if n % 8 == 7 else lakeside.clinician
        async with scope(tenant=lakeside.tenant, actor=actor, reason="test"):
            if n % 8 == 5:
                # A task that outlives the scope in which it began.
                ending.append(asyncio.create_task(Client.objects().get(Client.id == lakeside.client).run()))
                await asyncio.sleep(0)
                return ""
            return (await Client.objects().get(Client.id == lakeside.client)).first_name

    answers = await crowd(*[lambda n=n: read(n) for n in range(CROWD)])
    for n, answer in enumerate(answers):
        if n % 8 == 7:
            assert isinstance(answer, ScopeError)
            assert "not an active user" in str(answer)
        else:
            assert answer == ("" if n % 8 == 5 else "Ana")
    for over in await asyncio.gather(*ending, return_exceptions=True):
        assert isinstance(over, ScopeError)
        assert "has ended" in str(over)
    assert len(ending) == CROWD / 8
    assert seen.groups


async def test_a_row_that_somebody_holds_stops_nobody_else(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    ids = await clients(lakeside, CROWD)
    held = owner.transaction()
    await held.start()
    await owner.execute("select from client where id = any($1) for update", ids[:4])

    async def update(n: int) -> float:
        async with lakeside.as_clinician():
            await Client.update({Client.notes: f"note {n}"}).where(Client.id == ids[n])
            return time.monotonic()

    began = time.monotonic()
    tasks = [asyncio.create_task(update(n)) for n in range(CROWD)]
    others = await asyncio.wait_for(asyncio.gather(*tasks[4:]), 5)
    assert max(others) - began < 2
    assert not any(task.done() for task in tasks[:4])
    await held.rollback()
    await asyncio.wait_for(asyncio.gather(*tasks[:4]), 5)
    async with lakeside.as_clinician():
        notes = await Client.select(Client.id, Client.notes).where(Client.id.is_in(ids))
    assert {row["id"]: row["notes"] for row in notes} == {row: f"note {n}" for n, row in enumerate(ids)}


async def test_all_want_the_same_rows_in_any_order(lakeside: Clinic, owner: asyncpg.Connection, seen: Seen) -> None:
    chance = random.Random(5)
    ids = await clients(lakeside, 3)
    before = await owner.fetchval("select count(*) from user_action_audit_log where record_id = any($1)", ids)

    async def update(n: int) -> None:
        async with lakeside.as_clinician():
            for row in chance.choices(ids, k=4):
                await Client.update({Client.notes: f"note {n}"}).where(Client.id == row)

    outcome = await asyncio.wait_for(crowd(*[lambda n=n: update(n) for n in range(64)]), 60)
    assert outcome == [None] * 64
    assert seen.groups
    after = await owner.fetchval("select count(*) from user_action_audit_log where record_id = any($1)", ids)
    assert after == before + 64 * 4


async def test_without_a_log_nobody_is_shown_anything(lakeside: Clinic, owner: asyncpg.Connection, seen: Seen) -> None:
    await owner.execute("alter table user_action_audit_log add constraint broken check (false) not valid")
    try:
        answers = await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)])
    finally:
        await owner.execute("alter table user_action_audit_log drop constraint broken")
    assert [type(answer) for answer in answers] == [asyncpg.CheckViolationError] * CROWD
    assert seen.groups
    assert await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)]) == ["Ana"] * CROWD


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


@pytest.fixture
async def slow(owner: asyncpg.Connection, lakeside: Clinic) -> AsyncIterator[list[UUID]]:
    """Facilities; an update to a name that begins with "slow" takes a second."""
    await owner.execute(SLOW)
    async with lakeside.as_admin():
        rows = [Facility(name=f"Site {n} {uuid4()}") for n in range(CROWD)]
        await Facility.insert(*rows)
    yield [row.id for row in rows]
    await owner.execute("drop trigger slow on facility; drop function slow")


async def rename(clinic: Clinic, row: UUID, name: str) -> None:
    """Any name but for what comes behind it: two facilities cannot have the same."""
    async with clinic.as_admin():
        await Facility.update({Facility.name: f"{name} {uuid4()}"}).where(Facility.id == row)


async def test_who_gives_up_while_waiting_does_nothing_and_who_gives_up_later_disturbs_nobody(
    lakeside: Clinic, slow: list[UUID], owner: asyncpg.Connection, seen: Seen
) -> None:
    busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(rename(lakeside, slow[n], f"new {n}")) for n in range(LANES, LANES + 6)]
    await asyncio.sleep(0.1)
    for task in waiting[:3]:
        task.cancel()
    assert await asyncio.gather(*busy, *waiting[3:]) == [None] * (LANES + 3)
    named = {row["id"]: row["name"].split()[0] for row in await owner.fetch("select id, name from facility")}
    assert [named[row] for row in slow[LANES : LANES + 6]] == ["Site"] * 3 + ["new"] * 3
    # In a group that is on its way.
    busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
    await asyncio.sleep(0.1)
    group = [asyncio.create_task(rename(lakeside, slow[10 + n], "slow" if not n else f"late {n}")) for n in range(4)]
    await asyncio.gather(*busy)
    await asyncio.sleep(0.3)
    group[1].cancel()
    assert await asyncio.gather(group[0], group[2], group[3]) == [None] * 3
    assert seen.sizes[-1] == 4


@pytest.mark.parametrize("clean", [True, False], ids=["terminated", "socket closed"])
async def test_who_loses_the_connection_is_told_and_the_next_go_on(
    clean: bool,
    database: ChartholdEngine,
    lakeside: Clinic,
    slow: list[UUID],
    owner: asyncpg.Connection,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, in_use = lanes_of(database)._pool, set()
    acquire, release = pool.acquire, pool.release

    async def acquired() -> Link:
        in_use.add(link := await acquire())
        return link

    async def released(link: Link) -> None:
        in_use.discard(link)
        await release(link)

    monkeypatch.setattr(pool, "acquire", acquired)
    monkeypatch.setattr(pool, "release", released)
    busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
    await asyncio.sleep(0.1)
    group = [asyncio.create_task(rename(lakeside, slow[10 + n], "slow" if n == 3 else f"new {n}")) for n in range(4)]
    await asyncio.gather(*busy)
    await asyncio.sleep(0.3)
    assert seen.sizes == [4]
    if clean:
        killed = await owner.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and datname = $1",
            database.database,
        )
        assert len(killed) == 1
    else:
        (lane,) = in_use
        lane.connection._transport.abort()
    lost = await asyncio.gather(*group, return_exceptions=True)
    assert [type(error) for error in lost] == [asyncpg.ConnectionDoesNotExistError] * 4
    assert len({id(error) for error in lost}) == 4
    await asyncio.sleep(1)
    assert await crowd(*[lambda n=n: rename(lakeside, slow[n], f"after {n}") for n in range(CROWD)]) == [None] * CROWD


async def test_a_session_that_the_server_ended_while_idle_costs_nobody_an_answer(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    for _ in range(5):
        assert await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)]) == ["Ana"] * CROWD
        await owner.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = $1 and application_name = 'charthold'",
            database.database,
        )
        await asyncio.sleep(0.05)


async def test_who_waits_too_long_for_a_stuck_server_is_told_in_time(
    database: ChartholdEngine, lakeside: Clinic, slow: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with set_up(monkeypatch, database, pool_seconds=0.2):
        busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        late = await crowd(*[lambda n=n: rename(lakeside, slow[n], f"late {n}") for n in range(LANES, CROWD)])
        assert time.monotonic() - began < 0.8
        assert {type(error) for error in late} == {PoolExhaustedError}
        assert await asyncio.gather(*busy) == [None] * LANES
        assert await crowd(*[lambda n=n: rename(lakeside, slow[n], "on time") for n in range(8)]) == [None] * 8
        lanes = lanes_of(database)
        assert (lanes._busy, lanes._waiting) == (0, {})


async def test_a_server_that_cannot_be_reached_says_so_to_each(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0.01)
        raise ScopeError("no connection")

    assert await first_name(lakeside) == "Ana"  # so that the keys are known
    lanes = lanes_of(database)
    await lanes.close()
    monkeypatch.setattr(lanes._pool, "_connect", nowhere)
    answers = await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)])
    assert {(type(answer), str(answer)) for answer in answers} == {(ScopeError, "no connection")}


async def test_tokens_that_are_bound_to_no_backend_go_in_groups_too(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    async def read(clinic: Clinic) -> tuple[UUID, str]:
        async with clinic.as_clinician():
            row = await Client.objects().get(Client.id == clinic.client)
            return row.tenant_id, row.mrn

    async with set_up(monkeypatch, database, bind_backend=False):
        asked = [(lakeside, hillside)[n % 2] for n in range(CROWD)]
        answers = await crowd(*[lambda c=clinic: read(c) for clinic in asked])
        assert [answer[0] for answer in answers] == [clinic.tenant for clinic in asked]
        assert seen.groups


async def test_nothing_of_the_last_request_stays_in_a_lane(
    database: ChartholdEngine,
    lakeside: Clinic,
    hillside: Clinic,
    runtime: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with set_up(monkeypatch, database, durable_reads=False):
        answers = await crowd(*[lambda n=n: first_name((lakeside, hillside)[n % 2]) for n in range(CROWD)])
        assert answers == ["Ana"] * CROWD
        # A fresh session has not loaded PL/pgSQL yet.
        set_how = (
            "select name, setting, source from pg_settings"
            " where name <> 'lock_timeout' and name not like 'plpgsql.%' order by name"
        )
        for link in lanes_of(database)._pool._idle:
            assert await link.connection.fetch(set_how) == await runtime.fetch(set_how)
            with pytest.raises(asyncpg.PostgresError, match="scope"):
                await link.connection.fetch("select * from client")
