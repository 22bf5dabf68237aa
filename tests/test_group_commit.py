"""Statements of many requests in one transaction: each as if it had been alone."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import ConfigurationError, PoolExhaustedError, ScopeError, scope, transaction
from core.engine import ChartholdEngine
from core.tables import Client, Facility, User
from core.wire.group_commit import LANES, MOST, GroupCommit, Member, RetryError, _member_error, is_small
from core.wire.pool import Link
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

    async def sent(self: GroupCommit, statement: Any, members: list[Member]) -> None:
        found.groups.append(list(members))
        await send(self, statement, members)

    async def ran(self: GroupCommit, *arguments: Any, **named: Any) -> Any:
        found.alone += self._busy < self._pool.size
        return await run(self, *arguments, **named)

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
    lanes = database._here().lanes
    assert lanes is not None
    return lanes


@asynccontextmanager
async def together(database: ChartholdEngine, number: int) -> AsyncIterator[None]:
    """What is begun inside goes as one group, once so many wait."""
    lanes = lanes_of(database)
    size = lanes._pool.size
    assert lanes._busy == 0
    lanes._busy = size
    yield
    async with asyncio.timeout(5):
        while lanes._queued < number:
            await asyncio.sleep(0)
    others = number * (size - 1)  # as if the other lanes had as many
    lanes._in_flight += others
    lanes._leave()
    await asyncio.sleep(0.3)
    lanes._in_flight -= others
    for _ in range(size - 1):
        lanes._leave()


def frames(error: BaseException | None) -> Iterator[FrameType]:
    """The frames that an error carries."""
    if error is None:
        return
    yield from frames(error.__cause__ or error.__context__)
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


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


async def test_those_who_come_again_and_again_are_shared_evenly(lakeside: Clinic, seen: Seen) -> None:
    async def work() -> None:
        async with lakeside.as_clinician():
            for _ in range(30):
                await Client.objects().get(Client.id == lakeside.client)

    assert await crowd(*[work for _ in range(8 * LANES)]) == [None] * 8 * LANES
    # No lane takes all of them. When the machine is busy, some come late to their group, which then is smaller.
    assert 2 <= statistics.median(seen.sizes) <= 10


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
        lambda c: Client.delete().where(Client.id == uuid4()),
        lambda c: Client.update({Client.status: "active"}).where(Client.id == c.client).returning(Client.status),
        lambda c: Client.insert(someone(c)).returning(Client.id, Client.first_name),
        lambda c: Facility.update({Facility.settings: {"long": "x" * 10_000}}).where(Facility.id == c.facility),
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
        pool, group = database._here().pool, database._here().lanes
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


async def test_a_row_that_somebody_holds_stops_no_lane(
    lakeside: Clinic, slow: list[UUID], owner: asyncpg.Connection, no_others: None
) -> None:
    held, free = slow[:LANES], slow[LANES:]
    async with owner.transaction():
        await owner.execute("select from facility where id = any($1) for update", held)
        # One in each lane; they are then to be run elsewhere, where there is no room.
        stopped = [asyncio.create_task(rename(lakeside, row, "new")) for row in held]
        await asyncio.sleep(0)
        others = await asyncio.wait_for(crowd(*[lambda row=row: rename(lakeside, row, "new") for row in free]), 5)
        assert others == [None] * len(free)
        assert not any(task.done() for task in stopped)
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)


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


@pytest.fixture
async def no_others(database: ChartholdEngine, new_lanes: None) -> AsyncIterator[None]:
    """All ordinary connections are busy with something else."""
    pool = database._here().pool
    links = [await pool.acquire() for _ in range(pool.size)]
    yield
    for link in links:
        await pool.release(link)


async def rename(clinic: Clinic, row: UUID, name: str) -> None:
    """Any name but for what comes behind it: two facilities cannot have the same."""
    async with clinic.as_admin():
        await Facility.update({Facility.name: f"{name} {uuid4()}"}).where(Facility.id == row)


async def test_who_gives_up_while_waiting_does_nothing_and_who_gives_up_later_disturbs_nobody(
    database: ChartholdEngine,
    lakeside: Clinic,
    slow: list[UUID],
    owner: asyncpg.Connection,
    seen: Seen,
    no_others: None,
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
    async with together(database, 4):
        group = [asyncio.create_task(rename(lakeside, slow[10 + n], "late" if n else "slow")) for n in range(4)]
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
    no_others: None,
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
    async with together(database, 4):
        group = [asyncio.create_task(rename(lakeside, slow[n], "new" if n < 3 else "slow")) for n in range(4)]
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
    async with set_up(monkeypatch, database, pool_seconds=0.3):
        others = [await database.acquire() for _ in range(database._here().pool.size)]
        busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
        await asyncio.sleep(0.05)

        async def late(n: int) -> float:
            await asyncio.sleep(n / 100)
            began = time.monotonic()
            with pytest.raises(PoolExhaustedError):
                await rename(lakeside, slow[n], "late")
            return time.monotonic() - began

        waited = await crowd(*[lambda n=n: late(n) for n in range(LANES, CROWD)])
        assert 0.25 < min(waited) <= max(waited) < 0.35
        for link in others:
            await database.release(link)
        assert await asyncio.gather(*busy) == [None] * LANES
        assert await crowd(*[lambda n=n: rename(lakeside, slow[n], "on time") for n in range(8)]) == [None] * 8
        lanes = lanes_of(database)
        assert (lanes._busy, lanes._in_flight, lanes._queue) == (0, 0, {})


async def test_two_slow_statements_stop_nobody_while_other_connections_are_free(
    lakeside: Clinic, hillside: Clinic, slow: list[UUID]
) -> None:
    await first_name(hillside)
    busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    assert await crowd(*[lambda: first_name(hillside) for _ in range(8)]) == ["Ana"] * 8
    assert time.monotonic() - began < 0.5
    assert not any(task.done() for task in busy)
    await asyncio.gather(*busy)


async def test_a_crowd_still_goes_in_groups_when_all_other_connections_are_busy(
    lakeside: Clinic, slow: list[UUID], seen: Seen, no_others: None
) -> None:
    busy = [asyncio.create_task(rename(lakeside, slow[n], "slow")) for n in range(LANES)]
    await asyncio.sleep(0.05)
    waiting = crowd(*[lambda n=n: rename(lakeside, slow[n], "new") for n in range(LANES, CROWD)])
    assert await waiting == [None] * (CROWD - LANES)
    assert max(seen.sizes) > MOST / 2
    await asyncio.gather(*busy)


@pytest.mark.parametrize("fault", ["no server", "too many connections"])
async def test_without_a_connection_for_a_lane_the_others_serve(
    fault: str, database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    attempts = 0

    async def fail(*_: Any, **__: Any) -> Any:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0.01)
        raise ConfigurationError("x") if fault == "no server" else asyncpg.TooManyConnectionsError("x")

    monkeypatch.setattr(lanes_of(database)._pool, "_connect", fail)
    for _ in range(3):
        assert await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)]) == ["Ana"] * CROWD
    assert attempts <= 2 * LANES  # and not again for each request
    monkeypatch.undo()
    lanes_of(database)._rests_until = 0.0
    assert await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)]) == ["Ana"] * CROWD


async def test_a_server_that_cannot_be_reached_says_so_to_each(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0.01)
        raise ConfigurationError("no connection")

    assert await first_name(lakeside) == "Ana"  # so that the keys are known
    await database.close_connection_pool()
    pool, lanes = database._here().pool, lanes_of(database)
    for each in (pool, lanes._pool):
        monkeypatch.setattr(each, "_connect", nowhere)
    answers = await crowd(*[lambda: first_name(lakeside) for _ in range(CROWD)])
    assert {(type(answer), str(answer)) for answer in answers} == {(ConfigurationError, "no connection")}


# -- what a look at it by others found ---------------------------------------------------------------------------------


async def test_an_error_shows_nothing_of_the_others_in_its_frames(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, seen: Seen
) -> None:
    await first_name(lakeside)
    await first_name(hillside)
    ended: list[asyncio.Task[Any]] = []
    async with together(database, 2):
        other = asyncio.create_task(first_name(hillside))
        async with lakeside.as_clinician():
            ended.append(asyncio.create_task(Client.objects().get(Client.id == lakeside.client).run()))
            for _ in range(20):
                await asyncio.sleep(0)
    assert await other == "Ana"
    (error,) = await asyncio.gather(*ended, return_exceptions=True)
    assert isinstance(error, ScopeError)
    assert seen.sizes == [2]
    shown = [frame for frame in frames(error) if frame.f_code.co_name in ("_send", "_serve")]
    assert not shown


async def test_a_row_that_the_driver_cannot_read_costs_nobody_else_an_answer(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    (odd,) = await clients(lakeside, 1)
    await first_name(hillside)
    # No trigger looks on, or it would be refused.
    await owner.execute(
        f"begin; set local session_replication_role = replica; set local row_security = off;"
        f" update client set admitted_on = '0044-03-15 BC' where id = '{odd}'; commit"
    )
    async with lakeside.as_clinician():
        with pytest.raises(ValueError) as alone:  # noqa: PT011  # the driver's
            await Client.objects().get(Client.id == odd)

    async def read() -> Any:
        async with lakeside.as_clinician():
            return await Client.objects().get(Client.id == odd)

    async with together(database, 4):
        tasks = [asyncio.create_task(read()), *[asyncio.create_task(first_name(hillside)) for _ in range(3)]]
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert others == ["Ana"] * 3
    assert (type(first), str(first)) == (type(alone.value), str(alone.value))
    assert seen.sizes == [4]


@pytest.mark.parametrize("size", [10, 1_500, 40_000])
async def test_an_argument_that_cannot_be_sent_costs_nobody_else_an_answer(
    size: int, database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        rows = [Facility(name=f"Site {uuid4()}") for _ in range(MOST)]
        await Facility.insert(*rows)

    async def update(n: int, value: Any) -> None:
        async with lakeside.as_admin():
            await Facility.update({Facility.license_number: value}).where(Facility.id == rows[n].id)

    async with together(database, MOST if size < 40_000 else 1):
        tasks = [asyncio.create_task(update(n, "ü" * size)) for n in range(MOST - 1)]
        tasks.append(asyncio.create_task(update(MOST - 1, 12345)))
    *others, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert others == [None] * (MOST - 1)
    assert isinstance(last, asyncpg.DataError)
    assert "12345" not in str(last)
    logged = "select count(*) from user_action_audit_log where action_type = 'update' and record_id = any($1)"
    assert await owner.fetchval(logged, [row.id for row in rows]) == MOST - 1


async def test_an_error_that_a_trigger_calls_a_lost_connection_is_none(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    await owner.execute(
        """
        create function public.remote() returns trigger language plpgsql as $$
        begin raise exception using errcode = '08001', message = 'remote is down'; end $$;
        create trigger remote before update on facility for each row when (new.capacity = 78) execute function remote()
        """
    )

    async def update(clinic: Clinic, capacity: int) -> None:
        async with clinic.as_admin():
            await Facility.update({Facility.capacity: capacity}).where(Facility.id == clinic.facility)

    try:
        await update(hillside, 1)
        async with together(database, 2):
            tasks = [asyncio.create_task(update(lakeside, 78)), asyncio.create_task(update(hillside, 3))]
        bad, good = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await owner.execute("drop trigger remote on facility; drop function remote")
    assert isinstance(bad, asyncpg.PostgresError)
    assert bad.sqlstate == "08001"
    assert good is None
    assert seen.sizes == [2]


async def test_where_a_trigger_waits_for_the_commit_nobody_shares_one(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, seen: Seen
) -> None:
    await owner.execute(
        """
        create table public.noted (who text, place uuid);
        create function public.note() returns trigger language plpgsql security definer
            set search_path = pg_catalog, pg_temp
        as $$ begin
            insert into public.noted select substr(charthold.scope(), 18, 36), new.id;
            return null;
        end $$;
        create constraint trigger note after update on public.facility
            deferrable initially deferred for each row execute function public.note()
        """
    )

    async def update(clinic: Clinic) -> None:
        async with clinic.as_admin():
            await Facility.update({Facility.capacity: 5}).where(Facility.id == clinic.facility)

    try:
        asked = [(lakeside, hillside)[n % 2] for n in range(CROWD)]
        assert await crowd(*[lambda clinic=clinic: update(clinic) for clinic in asked]) == [None] * CROWD
        owners = {clinic.facility: str(clinic.tenant) for clinic in (lakeside, hillside)}
        noted = await owner.fetch("select who, place from noted")
        assert len(noted) == CROWD
        assert all(owners[row["place"]] == row["who"] for row in noted)
    finally:
        await owner.execute("drop trigger note on facility; drop function note; drop table noted")


async def test_what_was_sealed_before_a_long_wait_is_sealed_again_before_it_is_sent(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    (row,) = await clients(lakeside, 1)
    lanes = lanes_of(database)
    lanes._busy = lanes._pool.size
    others = [await database.acquire() for _ in range(database._here().pool.size - 1)]

    async def update() -> None:
        async with lakeside.as_clinician():
            await Client.update({Client.notes: "sealed"}).where(Client.id == row)

    task = asyncio.create_task(update())
    while not lanes._queue:
        await asyncio.sleep(0)
    ((member,),) = lanes._queue.values()
    first = next(argument for argument in member.arguments if isinstance(argument, bytes))
    await task
    lanes._busy = 0
    for link in others:
        await database.release(link)
    stored = await owner.fetchval("select notes from client where id = $1", row)
    assert stored[:5] == first[:5]
    assert stored != first


async def test_a_lane_is_opened_anew_after_five_minutes(database: ChartholdEngine, lakeside: Clinic) -> None:
    """It looks for triggers that are in the way when it is opened."""
    await first_name(lakeside)
    lanes = lanes_of(database)._pool
    [lane] = lanes._idle
    lane.born -= 290
    await first_name(lakeside)
    assert lanes._idle == [lane]
    lane.born -= 11
    await first_name(lakeside)
    [new] = lanes._idle
    assert new is not lane
    assert (lane.connection.is_closed(), lanes._open) == (True, 1)


async def test_who_is_in_a_group_when_the_program_ends_ends_with_it(
    database: ChartholdEngine, lakeside: Clinic, slow: list[UUID]
) -> None:
    async with together(database, 4):
        group = [asyncio.create_task(rename(lakeside, slow[n], "new" if n else "slow")) for n in range(4)]
    lanes = lanes_of(database)
    [serving] = lanes._serving
    serving.cancel()
    ended = await asyncio.wait_for(asyncio.gather(*group, return_exceptions=True), 5)
    assert [type(error) for error in ended] == [asyncio.CancelledError] * 4
    await asyncio.wait([serving], timeout=5)
    assert serving.cancelled()
    await asyncio.sleep(0)
    assert (lanes._busy, lanes._in_flight, lanes._queue) == (0, 0, {})


async def test_a_lane_is_given_back_whenever_its_task_is_cancelled(database: ChartholdEngine, lakeside: Clinic) -> None:
    await first_name(lakeside)
    lanes = lanes_of(database)
    size = lanes._busy = lanes._pool.size
    task = asyncio.create_task(first_name(lakeside))
    while not lanes._queue:
        await asyncio.sleep(0)
    for _ in range(size):
        lanes._leave()
    for serving in lanes._serving:
        serving.cancel()  # before its first step
    await asyncio.wait_for(task, 5)
    await asyncio.sleep(0)
    assert (lanes._busy, lanes._in_flight, lanes._queue) == (0, 0, {})


async def test_nothing_of_a_request_stays_when_it_is_over(database: ChartholdEngine, lakeside: Clinic) -> None:
    class Request:
        pass

    request: ContextVar[Request] = ContextVar("request")
    kept: list[weakref.ref[Request]] = []
    await first_name(lakeside)
    lanes = lanes_of(database)
    lanes._busy = lanes._pool.size

    async def one() -> None:
        kept.append(weakref.ref(made := Request()))
        request.set(made)
        await first_name(lakeside)

    task = asyncio.create_task(one())
    while not lanes._queue:
        await asyncio.sleep(0)
    for _ in range(lanes._pool.size):
        lanes._leave()
    await task
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert kept[0]() is None
    assert not [member for member in gc.get_objects() if type(member) is Member]


def test_what_may_have_been_committed_is_not_written_again() -> None:
    lost = asyncpg.ConnectionDoesNotExistError("x")
    done = asyncpg.exceptions.OutdatedSchemaCacheError("x")  # a child of the next, raised when the server is done
    unsent = asyncpg.InternalClientError("x")
    for error, again in ((lost, False), (done, False), (unsent, True), (OSError("x"), False)):
        assert isinstance(_member_error(error, reads=False), RetryError) == again
        assert isinstance(_member_error(error, reads=True), RetryError)


async def test_each_statement_of_a_group_forgets_whom_the_last_one_was_for(lakeside: Clinic) -> None:
    forgets = "set_config('charthold.granted', '', true)"
    async with lakeside.as_clinician():
        for query in (
            Client.objects().get(Client.id == lakeside.client).query,
            Client.update({Client.status: "active"}).where(Client.id == lakeside.client),
            Client.insert(someone(lakeside)),
        ):
            plan: Any = query.querystrings[0]
            statement = plan.compiled()[0]
            assert [text.count(forgets) for text in (*statement.grouped, statement.gated)] == [1, 1, 0]


async def test_a_lane_whose_opening_is_cancelled_leaves_no_connection(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await first_name(lakeside) == "Ana"
    await database.close_connection_pool()
    opened: list[Any] = []
    connect = database.connect

    async def slowly(*arguments: Any, **named: Any) -> Any:
        opened.append(connection := await connect(*arguments, **named))
        monkeypatch.setattr(type(connection), "fetchval", lambda *_: asyncio.sleep(60))
        return connection

    monkeypatch.setattr(ChartholdEngine, "connect", lambda _, **named: slowly(**named))
    task = asyncio.create_task(first_name(lakeside))
    while not opened:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert opened[0].is_closed()
    assert (lanes_of(database)._busy, lanes_of(database)._pool._open) == (0, 0)


@pytest.mark.parametrize("first", [str, UUID])
async def test_an_id_may_come_as_text_first(first: type, lakeside: Clinic) -> None:
    columns = (Client.status, Client.notes, Client.admitted_on) if first is str else (Client.notes, Client.status)
    async with lakeside.as_clinician():
        await Client.select(*columns).where(Client.id == first(str(lakeside.client)))
        query = Client.select(*columns).where(Client.id == lakeside.client)
        plan: Any = query.querystrings[0]
        assert plan.compiled()[0].grouped[0]


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


def test_what_may_go_with_others_is_measured_in_bytes_as_they_are_sent() -> None:
    assert is_small(["x" * 7_000])
    assert not is_small(["x" * 7_001])
    assert is_small(["ü" * 1_750])  # as many bytes as any letter may have
    assert not is_small(["ü" * 3_000])
    assert not is_small([[b"x" * 4_000, b"x" * 4_000]])
