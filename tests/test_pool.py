"""Connections come back, whole and in turn, however a statement, a transaction or a batch ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import asyncpg
import pytest

from core import ProtectedQueryError, ScopeError, transaction
from core.engine import ChartholdEngine
from core.tables import Client, Facility
from core.wire.connections import MISPLACED
from core.wire.pool import Pool
from tests.conftest import Clinic


@contextlib.asynccontextmanager
async def pool_of(database: ChartholdEngine, size: int, seconds: float = 5.0) -> AsyncIterator[Pool]:
    pool = Pool(lambda: database.connect(owner=False), size=size, seconds=seconds)
    yield pool
    await pool.close()


async def test_who_waits_longest_has_the_next_connection_though_others_ask_without_end(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    async with pool_of(database, 2) as pool:
        over = False

        async def greedy() -> int:
            served = 0
            while not over:
                async with pool.lease() as link:
                    await link.connection.fetchval("select 1")
                    served += 1
            return served

        async def modest() -> None:
            async with pool.lease() as link:
                await link.connection.fetchval("select 1")

        crowd = [asyncio.create_task(greedy()) for _ in range(8)]
        await asyncio.sleep(0.2)
        for _ in range(20):
            await asyncio.wait_for(modest(), 1)
        over = True
        served = await asyncio.gather(*crowd)
        assert min(served) > max(served) / 3


async def test_a_connection_that_breaks_leaves_its_place_to_whoever_waits(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    async with pool_of(database, 1) as pool:
        link = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        link.dirty = True
        await pool.release(link)
        second = await asyncio.wait_for(waiting[1], 5)
        assert second.backend != link.backend
        # Given and given up in the same moment: it is the next one's.
        await pool.release(second)
        waiting[2].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting[2]
        third = await asyncio.wait_for(pool.acquire(), 5)
        assert third.backend == second.backend
        await pool.release(third)
        assert pool.room == 1


async def test_an_argument_that_cannot_be_encoded_costs_no_connection(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    pool = database._here().pool
    async with lakeside.as_clinician():
        async with transaction():
            await Client.count()
        backends = {link.backend for link in pool._idle}
        for _ in range(3):
            with pytest.raises(asyncpg.DataError, match=r"A value of type str, for \"admitted_on\", \$2, does not"):
                await Client.count().where(Client.admitted_on == "nonsense")
    assert backends <= {link.backend for link in pool._idle}


@pytest.mark.parametrize("how", ["by its end", "by rollback()", "in an inner one"])
async def test_what_failed_is_told_also_when_the_connection_was_lost(
    how: str, database: ChartholdEngine, lakeside: Clinic
) -> None:
    """A connection that is lost takes its transaction with it: there is nothing left to roll back, or to fail at it."""

    class Refused(Exception):
        """The application's own."""

    async with lakeside.as_admin():
        with pytest.raises(Refused):
            async with transaction() as unit, transaction() if how == "in an inner one" else contextlib.nullcontext():
                await Client.count()
                unit.connection.terminate()
                if how == "by rollback()":
                    await unit.rollback()
                raise Refused
        assert await Client.count() == 1


async def test_a_transaction_that_another_task_closes_gives_its_connection_back(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    async def dependency() -> AsyncIterator[None]:
        async with transaction():
            await Facility(name="Left behind").save()
            yield

    pool = database._here().pool
    async with lakeside.as_admin():
        before = pool.room
        for _ in range(3):
            generator = dependency()
            await anext(generator)
            await asyncio.create_task(generator.aclose())  # as a web framework does at the end of a request
        assert pool.room == before
        # Here it was never left: what is asked next would not be in it, as the caller believes.
        with pytest.raises(ScopeError, match="has ended"):
            await Facility.count()
        async with transaction():
            assert not await Facility.exists().where(Facility.name == "Left behind")


async def test_a_batch_that_is_cancelled_ends_as_cancelled_and_stays_recorded(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    reads = "select count(*) from user_action_audit_log where action_type = 'read' and reason = 'cancelled batch'"
    async with lakeside.as_admin("cancelled batch"):
        await Client.insert(
            *(
                Client(facility_id=lakeside.facility, first_name="B", last_name="B", date_of_birth=date(2000, 1, 1))
                for _ in range(3)
            )
        )
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                async with await Client.select(Client.first_name).batch(batch_size=2) as batch:
                    async for _ in batch:
                        # The record of what comes next waits for the table, until the deadline.
                        await owner.execute("begin; lock table user_action_audit_log in share mode")
        await owner.execute("rollback")
        assert await owner.fetchval(reads) == 2
        assert await Client.count() >= 3


async def test_an_error_keeps_no_value_in_any_of_its_attributes(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        for sql in ("select 'Nguyen'::uuid", "select 'O'Nguyen'", "select * from client where id = 'Nguyen'"):
            with pytest.raises(asyncpg.PostgresError) as refused:
                await Client.raw(sql)
            error = refused.value
            told = f"{error} {error.args} {vars(error)} {error.as_dict()}"
            assert "Nguyen" not in told


async def test_what_no_longer_is_or_may_not_be_changed_is_not_saved_silently(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        room = Facility(name="Room")
        await room.save()
        same = await Facility.objects().get(Facility.id == room.id)
        patient = await Client.objects().get(Client.id == lakeside.client)
    async with lakeside.as_clinician():
        room.phone = "2"
        with pytest.raises(ProtectedQueryError, match="Nothing was saved"):
            await room.save()
    async with lakeside.as_admin():
        await room.save()  # it still knows that there is something to write
        assert (await Facility.select(Facility.phone).where(Facility.id == room.id)) == [{"phone": "2"}]
        await Facility.delete().where(Facility.id == room.id)
        same.phone = "3"
        with pytest.raises(ProtectedQueryError, match="Nothing was saved"):
            await same.save()
        assert await same.save(columns=[]) == []
        # Of a plain update nobody said how many rows there are.
        await Facility.update({Facility.phone: "3"}).where(Facility.id == room.id)
        patient.last_name = "Still"
        await patient.save()


async def test_lanes_are_not_opened_beside_a_trigger_that_comes_before_its_gate(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    assert not await owner.fetchval(MISPLACED)
    await owner.execute(
        "create function public.early() returns trigger language plpgsql as 'begin return null; end';"
        "create trigger early before update on client for each statement execute function public.early()"
    )
    try:
        assert await owner.fetchval(MISPLACED)
    finally:
        await owner.execute("drop trigger early on client; drop function public.early()")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_connections_of_a_loop_that_is_closed_are_let_go(database: ChartholdEngine, lakeside: Clinic) -> None:
    here = asyncio.get_running_loop()

    def another_loop() -> None:
        async def work() -> Any:
            async with lakeside.as_admin():
                return await Client.count()

        asyncio.run(work())

    for _ in range(3):
        await asyncio.to_thread(another_loop)
    assert len(database._connections) <= 2
    assert here in database._connections
    for loop in list(database._connections):
        if loop.is_closed():
            del database._connections[loop]
    gc.collect()  # what they leave is said here, not in another test


@dataclasses.dataclass
class Slow:
    """Stands for a driver's connection that does not close."""

    terminated: bool = False

    def get_server_pid(self) -> int:
        return 1

    def is_closed(self) -> bool:
        return False

    def is_in_transaction(self) -> bool:
        return False

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109  # the driver's
        raise TimeoutError

    def terminate(self) -> None:
        self.terminated = True


async def test_a_pool_closes_every_connection_though_one_does_not_answer() -> None:
    made: list[Any] = []

    async def connect() -> Any:
        made.append(Slow())
        return made[-1]

    pool = Pool(connect, size=3, seconds=1)
    links = [await pool.acquire() for _ in range(3)]
    for link in links:
        await pool.release(link)
    await pool.close()
    assert [slow.terminated for slow in made] == [True] * 3


async def test_a_connection_on_which_a_statement_was_cancelled_serves_nobody_else(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Nobody knows what it is doing."""
    pool = database._here().pool
    async with lakeside.as_admin():
        await Facility.select(Facility.name).where(Facility.name != "x")
        warm = {link.backend for link in pool._idle}
        assert warm
        async with owner.transaction():
            await owner.execute("lock table facility in access exclusive mode")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await Facility.select(Facility.name).where(Facility.name != "x")
        gone = warm - {link.backend for link in pool._idle}
        assert len(gone) == 1
        assert await Facility.count() > 0
        await asyncio.sleep(0.2)
        assert not await owner.fetchval("select count(*) from pg_stat_activity where pid = any ($1)", list(gone))
