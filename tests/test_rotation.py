"""Keys change while the application works: no row is ever unreadable, none is ever not found, whoever is killed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core import ChartholdError, ScopeError, transaction
from core.audit.recorded import DESTROYED
from core.columns import Encrypted
from core.commands.reindex import reindex as reindex_command
from core.commands.rotate_keys import rotate_keys
from core.crypto.keyring import Keyring, _Entry
from core.crypto.kms import LocalProvider, development_key
from core.doctor import examine
from core.engine import ChartholdEngine
from core.ids import uuid7
from core.provision import find_tenant, set_tenant_status
from core.rotation import Target, key_lock, reindex, retire, rewrap, rotate, used_in_log
from core.rotation.data import Rotation
from core.rotation.rows import SealedTable, sealed_tables
from core.settings import settings
from core.tables import Client, Facility, User
from piccolo_conf import DB
from tests.conftest import IN_ITS_FILES, KEY_CACHE, Clinic, make_clinic
from tests.reference import forget_all, key_version

WAIT = 0.4
BORN = date(1990, 7, 1)

ROTATOR = """
import sys
from piccolo_conf import DB
DB.database = sys.argv[1]
from core.commands.reindex import reindex as reindex_command
from core.commands.rotate_keys import rotate_keys
rotate_keys(tenant=sys.argv[2], batch=int(sys.argv[3]), wait=float(sys.argv[4]), json=True)
"""


pytestmark = pytest.mark.usefixtures("short_key_cache")


@pytest.fixture
async def clinic(database: ChartholdEngine) -> Clinic:
    """A tenant of the test's own: each leaves it with other keys."""
    return await make_clinic(f"clinic-{uuid7().hex[-12:]}")


async def target_of(clinic: Clinic, owner_: asyncpg.Connection) -> Target:
    slug = await owner_.fetchval("select slug from charthold.tenant_directory where tenant_id = $1", clinic.tenant)
    return Target(clinic.tenant, slug, clinic.admin)


@pytest.fixture
async def target(clinic: Clinic, owner: asyncpg.Connection) -> Target:
    return await target_of(clinic, owner)


async def statuses(owner: asyncpg.Connection, clinic: Clinic) -> dict[int, str]:
    rows = await owner.fetch("select version, status from tenant_key where tenant_id = $1", clinic.tenant)
    return {row["version"]: row["status"] for row in rows}


async def under(owner: asyncpg.Connection, clinic: Clinic, version: int) -> tuple[int, int]:
    """How many of the clinic's rows hold envelopes of that version only, and how many rows there are."""
    header = b"\x01" + version.to_bytes(4, "big")
    columns = [c._meta.db_column_name for c in Client._meta.columns if isinstance(c, Encrypted)]
    good = " and ".join(f"({c} is null or substring({c} from 1 for 5) = $2)" for c in columns)
    row = await owner.fetchrow(
        f"select count(*) filter (where {good}), count(*) from client where tenant_id = $1", clinic.tenant, header
    )
    return row[0], row[1]


class Application:
    """Readers and writers at work. Whatever one of them does not find, or cannot open, ends up in ``failures``."""

    def __init__(self, clinic: Clinic, count: int) -> None:
        self.clinic = clinic
        self.phones = {n: f"+1 617 555 {n:05}" for n in range(count)}
        self.failures: list[str] = []
        self.reads = self.writes = 0
        self._over = False

    async def fill(self) -> None:
        async with self.clinic.as_clinician():
            rows = [self._client(n, phone) for n, phone in self.phones.items()]
            for at in range(0, len(rows), 1_000):
                await Client.insert(*rows[at : at + 1_000])

    def _client(self, n: int, phone: str) -> Client:
        return Client(
            facility_id=self.clinic.facility,
            first_name="Bo",
            last_name=f"Person {n}",
            date_of_birth=BORN,
            ssn=f"999-{n:06}",
            mrn=f"mrn {n}",
            email=f"person{n}@mail.example",
            phone=phone,
            address={"street": f"{n} Main"},
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (*(self._read() for _ in range(3)), self._write(), self._add())]
        try:
            yield
        finally:
            self._over = True
            await asyncio.gather(*tasks)

    async def _loop(self, one: Any) -> None:
        while not self._over:
            async with self.clinic.as_clinician():
                for _ in range(20):
                    try:
                        await one()
                    except Exception as error:
                        self.failures.append(repr(error))
            await asyncio.sleep(0.01)

    def _check(self, what: str, good: bool) -> None:
        if not good:
            self.failures.append(what)

    async def _read(self) -> None:
        async def one() -> None:
            n = random.choice(list(self.phones))
            searches = {
                "mrn": Client.mrn == f"mrn {n}",
                "name": Client.last_name == f"person {n}",
                "ssn": Client.ssn.is_in([f"999-{n:06}", "none"]),
                "email": Client.email == f"PERSON{n}@mail.example",
                "prefix": Client.last_name.starts_with("per"),
            }
            name, condition = random.choice(list(searches.items()))
            if name == "prefix":
                self._check(name, await Client.count().where(condition) >= len(self.phones) - 1)
            else:
                row = await Client.objects().get(condition)
                self._check(name, row is not None and row.last_name == f"Person {n}")
            self.reads += 1

        await self._loop(one)

    async def _write(self) -> None:
        """The one writer of phones, so that it knows what each must be at the end."""

        async def one() -> None:
            n, phone = random.choice(list(self.phones)), f"+1 617 {time.monotonic_ns()}"
            if n % 3:
                client = await Client.objects().get(Client.mrn == f"mrn {n}")
                client.phone = phone
                await client.save()
            else:
                await Client.update({Client.phone: phone}).where(Client.last_name == f"person {n}")
            self.phones[n] = phone
            self.writes += 1

        await self._loop(one)

    async def _add(self) -> None:
        async def one() -> None:
            n = len(self.phones)
            await self._client(n, f"+1 617 555 {n:05}").save()
            self.phones[n] = f"+1 617 555 {n:05}"
            self._check("new", await Client.exists().where(Client.mrn == f"mrn {n}"))
            self.writes += 1
            await asyncio.sleep(0.02)

        await self._loop(one)


async def rotator(database: ChartholdEngine, target: Target, batch: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", ROTATOR, str(database.database), target.slug, str(batch), str(WAIT),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent,
    )  # fmt: skip


@pytest.mark.parametrize("count", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_a_rotation_that_is_killed_again_and_again_ends_well_beside_readers_and_writers(
    clinic: Clinic, target: Target, database: ChartholdEngine, owner: asyncpg.Connection, count: int
) -> None:
    app = Application(clinic, count)
    await app.fill()

    async def until(done: Any, process: asyncio.subprocess.Process) -> None:
        while not await done():
            assert process.returncode is None, (await process.communicate())[1]
            await asyncio.sleep(0.01)

    async def made() -> bool:
        return await statuses(owner, clinic) == {1: "current", 2: "next"}

    async def share(of: float) -> bool:
        return (await under(owner, clinic, 2))[0] > count * of

    async with app.at_work():
        for done in (made, lambda: share(0.1), lambda: share(0.5)):
            process = await rotator(database, target, 25)
            await until(done, process)
            process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
            good, everything = await under(owner, clinic, 2)
            assert good < everything, "it was killed too late to tell anything"
            await asyncio.sleep(0.1)
        process = await rotator(database, target, 500)
        out, err = await process.communicate()
        assert process.returncode == 0, err
        await asyncio.sleep(2 * KEY_CACHE)
    assert app.failures == []
    assert app.reads > 100
    assert app.writes > 50
    [outcome] = json.loads(out)["tenants"]
    assert (outcome["version"], outcome["resumed"], outcome["retired"]) == (2, True, [1])

    assert await statuses(owner, clinic) == {1: "retired", 2: "current"}
    good, everything = await under(owner, clinic, 2)
    assert good == everything == len(app.phones) + 1
    forget_all(DB.keyring)
    async with clinic.as_clinician():
        rows = await Client.select(Client.mrn, Client.phone, Client.address).where(Client.last_name.starts_with("per"))
        assert {row["mrn"]: row["phone"] for row in rows} == {f"mrn {n}": phone for n, phone in app.phones.items()}
        for n in (*range(0, len(app.phones), 97), len(app.phones) - 1):
            for condition in (
                Client.mrn == f"mrn {n}",
                Client.last_name == f"PERSON {n}",
                Client.ssn == f"999-{n:06}",
                Client.phone.ends_with(app.phones[n][-4:]) & (Client.mrn == f"mrn {n}"),
                Client.email == f"person{n}@mail.example",
            ):
                assert await Client.count().where(condition) == 1, condition
    steps = await owner.fetch(
        "select new_values ->> 'step' as step from user_action_audit_log"
        " where tenant_id = $1 and action_type = 'key_rotation' order by occurred_at",
        clinic.tenant,
    )
    assert [row["step"] for row in steps] == ["next", "current", "retired"]


async def test_what_was_sealed_anew_is_no_change_of_a_field(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    async with clinic.as_admin():
        await Client.update({Client.phone: "1"}).where(Client.id == clinic.client)
    before = datetime.now(UTC)
    [outcome] = await rotate([target], wait=WAIT)
    assert outcome.problem == ""
    assert outcome.rows == {"client": 1}
    async with clinic.as_admin():
        client = await Client.objects().get(Client.id == clinic.client)
        trail = await client.history()
        assert [(change.action, change.changed) for change in trail][1:] == [("update", ("phone",))]
        assert trail[0].new["last_name"] == "Nguyen", "the old key still opens what the log holds"
        assert (await client.as_of(before)).phone == "1"
    recorded = await owner.fetch(
        "select changed_columns, reason, user_id from user_action_audit_log"
        " where record_id = $1 and action_type = 'update' order by occurred_at",
        clinic.client,
    )
    assert len(recorded) == 2, "the log itself has the new ciphertext"
    assert (recorded[1]["reason"], recorded[1]["user_id"]) == ("key rotation", clinic.admin)


async def test_a_process_that_cached_its_keys_before_a_rotation_opens_and_finds(
    clinic: Clinic, target: Target, database: ChartholdEngine
) -> None:
    async with clinic.as_admin():
        stale = await database.keyring.for_tenant(clinic.tenant)
    await rotate([target], wait=WAIT)

    def forget_what_is_new() -> None:
        database.keyring._entries[clinic.tenant] = _Entry(stale, time.monotonic(), 300)

    async with clinic.as_admin():
        forget_what_is_new()
        assert await Client.select(Client.last_name).where(Client.id == clinic.client) == [{"last_name": "Nguyen"}]
        forget_what_is_new()
        async with await Client.select(Client.last_name).batch(batch_size=1) as batch:
            assert [rows async for rows in batch] == [[{"last_name": "Nguyen"}]]
        forget_what_is_new()
        assert (await Client(id=clinic.client, _exists_in_db=True).history())[0].new["last_name"] == "Nguyen"
    forget_all(database.keyring)


async def test_the_old_key_is_not_retired_while_a_transaction_holds_a_row_under_it(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    async with clinic.as_clinician():
        async with transaction():
            late = Client(facility_id=clinic.facility, first_name="L", last_name="Late", date_of_birth=BORN)
            await late.save()
            running = asyncio.create_task(rotate([target], wait=WAIT))
            await asyncio.sleep(4 * WAIT)
            assert await statuses(owner, clinic) == {1: "previous", 2: "current"}
        [outcome] = await running
        assert (outcome.problem, outcome.rows) == ("", {"client": 2})
        assert await Client.exists().where(Client.last_name == "late")
    assert await under(owner, clinic, 2) == (2, 2)


async def test_a_writer_who_holds_a_row_is_not_overwritten(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    async with clinic.as_clinician():
        async with transaction():
            await Client.select(Client.id).where(Client.id == clinic.client).lock_rows("UPDATE")
            running = asyncio.create_task(rotate([target], wait=WAIT))
            await asyncio.sleep(4 * WAIT)
            await Client.update({Client.notes: "written meanwhile"}).where(Client.id == clinic.client)
        assert (await running)[0].problem == ""
        assert await Client.select(Client.notes, Client.last_name).where(Client.id == clinic.client) == [
            {"notes": "written meanwhile", "last_name": "Nguyen"}
        ]
    assert await under(owner, clinic, 2) == (1, 1)


async def test_a_row_that_a_writer_holds_keeps_no_other_under_the_old_key(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    await Application(clinic, 3).fill()
    async with clinic.as_clinician():
        async with transaction():
            # The first of them by id, so that all others come behind it.
            await Client.select(Client.id).where(Client.id == clinic.client).lock_rows("UPDATE")
            running = asyncio.create_task(rotate([target], wait=WAIT))
            async with asyncio.timeout(20):
                while await under(owner, clinic, 2) != (3, 4):
                    await asyncio.sleep(0.05)
            assert not running.done()
        assert (await running)[0].problem == ""
    assert await under(owner, clinic, 2) == (4, 4)


async def test_who_goes_on_with_a_key_that_was_just_made_waits_until_every_process_knows_it(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    """Threat: a process that cached its keys a moment before would not find what is written under the new one."""

    def a_run() -> Rotation:
        return Rotation(owner, target, sealed_tables(), wait=60, batch=10, progress=lambda *_: None)

    assert await a_run().begin() == 60
    second = a_run()
    assert 50 < await second.begin() <= 60.1
    assert (second.outcome.resumed, second.outcome.version) == (True, 2)
    assert await statuses(owner, clinic) == {1: "current", 2: "next"}
    await owner.execute(
        "begin; set local session_replication_role = replica;"
        f" update tenant_key set updated_at = updated_at - interval '1 hour' where tenant_id = '{clinic.tenant}'; commit"
    )
    assert await a_run().begin() == 0
    assert 50 < await a_run().switch() <= 60.1
    assert await statuses(owner, clinic) == {1: "previous", 2: "current"}
    third = a_run()
    assert await third.begin() == 0
    assert 50 < await third.switch() <= 60.1


async def test_a_value_that_became_twice_unique_is_reported_and_stays_searchable(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    steps = Rotation(owner, target, sealed_tables(), wait=0, batch=10, progress=lambda *_: None)
    await steps.begin()
    await steps.switch()
    async with clinic.as_clinician():
        mrn = (await Client.objects().get(Client.id == clinic.client)).mrn
        # The unique index sees the digests of one key at a time.
        twin = Client(facility_id=clinic.facility, first_name="T", last_name="Twin", date_of_birth=BORN, mrn=mrn)
        await twin.save()
    [outcome] = await rotate([target], wait=WAIT)
    assert outcome.twins == [f"client {clinic.client}"]
    assert outcome.retired == []
    assert await statuses(owner, clinic) == {1: "previous", 2: "current"}
    async with clinic.as_clinician():
        assert await Client.count().where(Client.mrn == mrn) == 2
        twin.mrn = "another"
        await twin.save()
    [outcome] = await rotate([target], wait=WAIT)
    assert (outcome.twins, outcome.retired, outcome.resumed) == ([], [1], True)


async def test_a_row_that_no_key_opens_is_passed_over_and_reported(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    application = Application(clinic, 20)
    await application.fill()
    async with clinic.as_admin():
        spoilt = await Client.objects().where(Client.ssn == "999-000007").first()
    await owner.execute(
        "begin; set local session_replication_role = replica;"
        " update client set email = set_byte(email, octet_length(email) - 1,"
        f" (get_byte(email, octet_length(email) - 1) + 1) % 256) where id = '{spoilt.id}'; commit"
    )
    [outcome] = await rotate([target], wait=WAIT, batch=7)
    assert (outcome.problem, outcome.altered, outcome.twins) == ("", [f"client {spoilt.id}"], [])
    assert outcome.retired == [1]
    assert (await under(owner, clinic, 2))[0] == (await under(owner, clinic, 2))[1] - 1
    async with clinic.as_admin():
        await Client.update({Client.email: "mended@mail.example"}).where(Client.id == spoilt.id)
    [again] = await rotate([target], wait=WAIT, batch=7)
    assert again.altered == []


async def test_one_at_a_time(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.rotation.owner.PATIENCE", 0.2)
    async with key_lock(owner, target):
        [outcome] = await rotate([target], wait=WAIT)
    assert "Somebody else is working on the keys" in outcome.problem
    assert await statuses(owner, clinic) == {1: "current"}


async def test_who_cannot_see_or_write_everything_does_not_rotate(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    async with clinic.as_admin():
        bound = User(email="bound@x.example", full_name="B", role="admin", status="active")
        bound.facility_scope = [clinic.facility]
        await bound.save()
    for actor, says in (
        (bound.id, "bound to no facility"),
        (clinic.clinician, "bound to no facility"),
        (uuid7(), "not an active user"),
    ):
        [outcome] = await rotate([Target(target.tenant, target.slug, actor)], wait=WAIT)
        assert says in outcome.problem
    with pytest.raises(ChartholdError, match="know no new key"):
        await rotate([target], wait=KEY_CACHE / 2)
    await owner.execute("create table public.stray (id uuid, tenant_id uuid, secret charthold.envelope)")
    with pytest.raises(ChartholdError, match=r"public\.stray\.secret, which no registered app declares"):
        await rotate([target], wait=WAIT)
    await owner.execute("drop table public.stray")
    assert await statuses(owner, clinic) == {1: "current"}


async def test_a_suspended_tenant_is_rotated_and_stays_suspended(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    await set_tenant_status(tenant=clinic.tenant, actor=clinic.admin, status="suspended", reason="test")
    [outcome] = await rotate([target], wait=WAIT)
    assert (outcome.problem, outcome.retired) == ("", [1])
    assert (await find_tenant(target.slug)).status == "suspended"
    await rewrap([target])
    # The admin who worked on the keys is out again.
    assert not await owner.fetchval(
        "select bool_or(tenant_open) from charthold.principal where tenant_id = $1", clinic.tenant
    )
    async with clinic.as_admin():
        with pytest.raises(ScopeError, match="row-level security"):
            await Facility(name="while suspended").save()


async def test_a_frozen_insert_that_is_run_after_a_rotation_seals_and_indexes_under_the_new_key(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    """The old one may be destroyed soon."""
    async with clinic.as_clinician():
        row = Client(facility_id=clinic.facility, first_name="A", last_name="Frozen", date_of_birth=BORN)
        frozen = Client.insert(row).freeze()
        await frozen.run()
    async with clinic.as_admin():
        await Client.delete().where(Client.id == row.id)
    await rotate([target], wait=WAIT)
    async with clinic.as_clinician():
        await frozen.run()
        assert [found.id for found in await Client.objects().where(Client.last_name == "frozen")] == [row.id]
        [stored] = await Client.raw("select last_name, first_name from client where id = {}", row.id)
    assert {key_version(bytes(value)) for value in stored.values()} == {2}


@IN_ITS_FILES
async def test_an_old_version_is_destroyed_when_nothing_but_the_log_needs_it(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    with pytest.raises(ChartholdError, match="in use"):
        await retire(target, 1)
    with pytest.raises(ChartholdError, match=r"no key version 7\. It has 1\."):
        await retire(target, 7)
    for version, says in ((1, "in use"), (7, "has no key version 7")):  # nothing is announced, nor to be confirmed
        with pytest.raises(ChartholdError, match=says):
            await rotate_keys.__wrapped__(tenant=target.slug, retire=version, quiet=True)
    await rotate([target], wait=WAIT)
    # A row that came back from a backup, say.
    old = await owner.fetchval(
        "select new_values ->> 'notes' from user_action_audit_log where record_id = $1 and action_type = 'insert'",
        clinic.client,
    )
    async with clinic.as_clinician():
        new = await Client.raw("select notes from client where id = {}", clinic.client)
        await Client.raw("update client set notes = {} where id = {}", bytes.fromhex(old[2:]), clinic.client)
        with pytest.raises(ChartholdError, match="Rows of client are sealed under version 1"):
            await retire(target, 1)
        await Client.raw("update client set notes = {} where id = {}", new[0]["notes"], clinic.client)
    wrapped = await owner.fetchval("select wrapped from tenant_key where tenant_id = $1 and version = 1", clinic.tenant)
    counted = await used_in_log(target, 1)
    destroyed = await retire(target, 1)
    assert (destroyed.version, destroyed.records, destroyed.swept) == (1, counted, True)
    assert counted >= 2
    assert await statuses(owner, clinic) == {1: "shredded", 2: "current"}
    assert not on_disk(wrapped)
    async with clinic.as_admin():
        client = await Client.objects().get(Client.last_name == "nguyen")
        born, *_ = trail = await client.history()
        assert (born.action, born.new["first_name"], born.new["status"]) == ("insert", DESTROYED, "active")
        assert "Ana" not in repr(trail)
        with pytest.raises(ChartholdError, match="first_name.* opens no more: there is no way back"):
            await client.revert(to=born.occurred_at)
    with pytest.raises(ChartholdError, match="destroyed already"):
        await retire(target, 1)
    # Versions are never given twice.
    assert (await rotate([target], wait=WAIT))[0].version == 3


@IN_ITS_FILES
async def test_who_was_killed_before_the_old_key_was_gone_from_the_file_runs_it_again(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rotate([target], wait=WAIT)
    wrapped = await owner.fetchval("select wrapped from tenant_key where tenant_id = $1 and version = 1", clinic.tenant)
    await cut_off(retire, target, 1, monkeypatch=monkeypatch)
    assert await statuses(owner, clinic) == {1: "shredded", 2: "current"}
    await owner.execute("checkpoint")
    assert on_disk(wrapped)
    async with older_transaction(owner):
        monkeypatch.setattr("core.rotation.owner.PATIENCE", 0.2)
        with pytest.raises(ChartholdError, match="destroyed already.*VACUUM FULL tenant_key"):
            await retire(target, 1)
    with pytest.raises(ChartholdError, match="destroyed already.$"):
        await retire(target, 1)
    assert not on_disk(wrapped)


async def cut_off(work: Callable[..., Awaitable[object]], *arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work up to where it sweeps, and no further, as a process that is killed there."""

    async def killed(_: object) -> bool:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[work.__module__], "sweep", killed)
        with pytest.raises(SystemExit):
            await work(*arguments)


@asynccontextmanager
async def older_transaction(owner: asyncpg.Connection) -> AsyncIterator[None]:
    """One that still looks at what is there now."""
    async with owner.transaction(isolation="repeatable_read"):
        await owner.fetchval("select count(*) from tenant_key")
        yield


def on_disk(needle: bytes) -> bool:
    """Whether the database's own files (not the WAL) hold these bytes."""
    server = DB.place.server
    assert server is not None
    return any(needle in path.read_bytes() for path in (server.data_dir / "base").rglob("*") if path.is_file())


@IN_ITS_FILES
async def test_a_new_master_key_wraps_every_key_again_and_the_old_one_can_go(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    await rotate([target], wait=WAIT)
    fresh, old = b"n" * 32, settings().master_key or development_key(settings().home)
    before = await owner.fetch("select wrapped from tenant_key where tenant_id = $1", clinic.tenant)
    ours = database.keyring
    try:
        database._keyring = Keyring(LocalProvider(fresh, (old,)), database._load_keys)
        [outcome], swept = await rewrap([target])
        assert (outcome.versions, outcome.problem, swept) == (2, "", True)
        assert (await rewrap([target]))[0][0].versions == 0
        assert not any(on_disk(row["wrapped"]) for row in before)
        database._keyring = Keyring(LocalProvider(fresh), database._load_keys)
        async with clinic.as_admin():
            client = await Client.objects().get(Client.last_name == "nguyen")
            assert (await client.history())[0].new["ssn"] == "999-17-5017"
        database._keyring = Keyring(LocalProvider(old), database._load_keys)
        async with clinic.as_admin():
            with pytest.raises(ChartholdError, match="CHARTHOLD_RETIRED_MASTER_KEYS"):
                await Client.select(Client.last_name)
        # And back, for the tests that follow.
        database._keyring = Keyring(LocalProvider(old, (fresh,)), database._load_keys)
        assert (await rewrap([target]))[0][0].versions == 2
    finally:
        database._keyring = ours
        forget_all(ours)


async def test_a_wrong_master_key_makes_no_key_that_nobody_else_can_unwrap(
    clinic: Clinic, target: Target, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    kept = database.keyring
    database._keyring = Keyring(LocalProvider(b"w" * 32), database._load_keys)
    try:
        [outcome] = await rotate([target], wait=WAIT)
    finally:
        database._keyring = kept
    assert outcome.problem
    assert await statuses(owner, clinic) == {1: "current"}
    async with clinic.as_admin():
        assert (await Client.objects().get(Client.id == clinic.client)).first_name == "Ana"


async def test_the_application_writes_no_keys(clinic: Clinic) -> None:
    async with clinic.as_admin():
        for sql in (
            "update tenant_key set wrapped = null, status = 'shredded' where version = {}",
            "delete from tenant_key where version = {}",
        ):
            with pytest.raises(Exception, match="may not do that"):
                await Client.raw(sql, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"retire": 1}, "one version of one tenant"),
        ({"tenant": "nobody-here"}, "There is no tenant nobody-here."),
        ({"tenant": "Not A Slug"}, "takes a slug"),
        ({"tenant": "all", "what": "both"}, "--what is data or kek"),
        ({"tenant": "all", "retire": 1}, "one version of one tenant"),
        ({"tenant": "all", "actor": "ada@x.example"}, "a user of one tenant"),
    ],
)
async def test_a_mistaken_call_is_one_sentence(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ChartholdError) as refused:
        await rotate_keys.__wrapped__(**arguments)
    assert says in str(refused.value)


@pytest.mark.parametrize(("wait", "quiet", "says"), [(300.0, False, True), (300.0, True, False), (0.1, False, False)])
async def test_a_command_that_rests_for_minutes_says_so_where_no_bar_moves(
    wait: float, quiet: bool, says: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr("core.commands.rotate_keys.rotate", nothing)
    assert await rotate_keys.__wrapped__(tenant="all", wait=wait, quiet=quiet) == 0
    assert ("it rests for 300 seconds" in " ".join(capsys.readouterr().err.split())) == says


async def test_the_command_rotates_all_tenants_and_says_what_it_did(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await rotate_keys.__wrapped__(tenant="all", wait=WAIT) == 0
    assert f"{target.slug}: version 2; rows sealed anew: 1 of client; retired: 1." in capsys.readouterr().out
    assert await rotate_keys.__wrapped__(tenant="all", what="kek", json=True) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "kek"
    with pytest.raises(ChartholdError, match="That is not the slug"):
        await rotate_keys.__wrapped__(tenant=target.slug, retire=1, confirm="other")
    with pytest.raises(ChartholdError, match="records of its audit log keep who"):
        await rotate_keys.__wrapped__(tenant=target.slug, retire=1)
    assert await rotate_keys.__wrapped__(tenant=target.slug, retire=1, confirm=target.slug) == 0
    assert await statuses(owner, clinic) == {1: "shredded", 2: "current"}


# -- blind indexes -----------------------------------------------------------------------------------------------------


async def forgotten(owner: asyncpg.Connection, clinic: Clinic, *columns: str) -> None:
    """As after a step that added these blind indexes."""
    await owner.execute(
        f"begin; set local session_replication_role = replica; update client set {', '.join(f'{c} = null' for c in columns)}"
        f" where tenant_id = '{clinic.tenant}'; commit"
    )


async def test_rows_that_are_older_than_an_index_are_indexed_and_found(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    application = Application(clinic, 25)
    await application.fill()
    await forgotten(owner, clinic, "last_name_folded", "ssn_last_four")
    async with clinic.as_admin():
        assert await Client.count().where(Client.last_name == "nguyen") == 0
    found = await examine(["blind_indexes"])
    assert {f.subject for f in found.findings if f.verdict == "fail"} >= {"column public.client.last_name_folded"}
    [outcome] = await reindex([target], batch=7)
    assert (outcome.problem, outcome.rows, outcome.twins, outcome.altered) == ("", {"client": 26}, [], [])
    async with clinic.as_admin():
        assert await Client.count().where(Client.last_name == "nguyen") == 1
        assert await Client.count().where(Client.ssn.ends_with("0007")) == 1
        trail = await (await Client.objects().get(Client.id == clinic.client)).history()
    assert trail[-1].reason == "index rows anew"
    [again] = await reindex([target], batch=7)
    assert again.rows == {}


async def test_indexing_anew_goes_on_from_where_it_was_stopped(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Application(clinic, 25).fill()
    await forgotten(owner, clinic, "last_name_folded")
    write, calls = SealedTable.reseal, 0

    async def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ChartholdError("stopped")
        await write(*arguments)

    monkeypatch.setattr(SealedTable, "reseal", failing)
    [stopped] = await reindex([target], batch=5)
    assert (stopped.problem, stopped.rows) == ("stopped", {"client": 10})
    [outcome] = await reindex([target], batch=5)
    assert outcome.rows == {"client": 16}


async def test_indexing_anew_waits_for_a_writer_and_keeps_what_was_written(
    clinic: Clinic, target: Target, owner: asyncpg.Connection
) -> None:
    await forgotten(owner, clinic, "last_name_folded")
    async with clinic.as_clinician():
        async with transaction():
            await Client.update({Client.last_name: "Meanwhile"}).where(Client.id == clinic.client)
            running = asyncio.create_task(reindex([target]))
            await asyncio.sleep(1)
            assert not running.done()
        assert (await running)[0].problem == ""
        assert await Client.count().where(Client.last_name == "meanwhile") == 1


async def test_a_row_that_cannot_be_indexed_is_reported_and_the_others_are_indexed(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await Application(clinic, 5).fill()
    await forgotten(owner, clinic, "last_name_folded")
    await owner.execute(
        "begin; set local session_replication_role = replica;"
        " update client set last_name = set_byte(last_name, octet_length(last_name) - 1,"
        f" (get_byte(last_name, octet_length(last_name) - 1) + 1) % 256) where id = '{clinic.client}'; commit"
    )
    assert await reindex_command.__wrapped__(tenant=target.slug) == 3
    told = capsys.readouterr()
    assert f"client {clinic.client} holds an envelope that no key opens" in told.err
    assert f"{target.slug}: rows indexed anew: 5 of client." in told.out


async def test_a_row_that_somebody_holds_or_that_has_a_hash_of_nothing_is_left_and_told(
    clinic: Clinic, target: Target, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for nobody for ever, and one row stops no tenant."""
    monkeypatch.setattr("core.rotation.indexes.ROUNDS", 2)
    async with clinic.as_clinician():
        odd = Client(
            facility_id=clinic.facility, first_name="O", last_name="Odd", date_of_birth=BORN, email="o@x.example"
        )
        held = Client(facility_id=clinic.facility, first_name="H", last_name="Held", date_of_birth=BORN)
        await odd.save()
        await held.save()
    await owner.execute("alter table client disable trigger user")
    await owner.execute(f"update client set email = null where id = '{odd.id}'")
    await owner.execute(
        f"update client set last_name_folded = null where id = any (array['{held.id}', '{odd.id}']::uuid[])"
    )
    await owner.execute("alter table client enable trigger user")
    async with owner.transaction():
        await owner.execute(f"select from client where id = '{held.id}' for update")
        [outcome] = await reindex([target])
    assert (outcome.problem, outcome.held, outcome.altered) == ("", [f"client {held.id}"], [f"client {odd.id}"])
    [again] = await reindex([target])
    assert (again.rows, again.held) == ({"client": 1}, [])
