"""No PHI in plaintext anywhere but in the rows that a caller was given.

Looked for: names, SSNs, streets and record numbers of the sample's patients, and of a client whose every value is found
nowhere else. Looked in: a dump, the server's files and WAL, a server log of every statement with its parameters, Python's
logs, what objects print, what failing statements leave in exceptions and in the locals of their frames, and pickles.
"""

from __future__ import annotations

import asyncio
import copy
import csv
import logging
import pickle
import subprocess
import traceback
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core import transaction
from core.columns import Encrypted
from core.commands.import_synthea import import_export
from core.engine import ChartholdEngine
from core.tables import Client, Facility
from piccolo_conf import DB
from tests.conftest import IN_ITS_FILES, Clinic, make_clinic, superuser_connection

BORN = date(1931, 3, 7)
PHI: dict[str, Any] = {
    "first_name": "Quillonia",
    "last_name": "Zzyzxquist",
    "date_of_birth": BORN,
    "ssn": "987-65-4329",
    "mrn": "MRN-ZZQ-0417",
    "email": "quilly@zzyzx.example",
    "phone": "+44 20 7946 0958",
    "address": {"street": "77 Quagmire Tor", "city": "Ballyzzq"},
    "insurance_member_id": "HX-5520-QQ",
    "emergency_contact": {"name": "Dorrivane Zzyzxquist"},
    "notes": "allergic to zorbium",
}
WORDS = [
    "quillonia", "zzyzxquist", "1931-03-07", "datetime.date(1931, 3, 7)", "987-65-4329", "987654329", "mrn-zzq-0417",
    "quilly@zzyzx", "7946 0958", "quagmire tor", "ballyzzq", "hx-5520-qq", "dorrivane", "zorbium",
]  # fmt: skip
MARK = "Unhidden Harbour Clinic"  # no PHI: it must be found wherever we look, or we do not look well


@dataclass
class Sight:
    """What was looked for and in what."""

    words: list[bytes] = field(default_factory=list)

    def found(self, text: str | bytes) -> list[bytes]:
        """The words that occur, as they are, in hexadecimal, or in UTF-16."""
        data = (text.encode(errors="replace") if isinstance(text, str) else text).lower()
        return [
            w for w in self.words if w in data or w.hex().encode() in data or w.decode().encode("utf-16-le") in data
        ]

    def plain(self, data: bytes) -> list[bytes]:
        """The words that occur as they are: for files by the hundred megabytes."""
        data = data.lower()
        return [w for w in self.words if w in data]

    def near(self, text: str) -> str:
        """Where in the text: for whoever mends it."""
        lines = [line for line in text.splitlines() if self.found(line)]
        ends = [(line, line.lower().find(word.decode())) for line in lines for word in self.found(line)]
        return "\n".join(f"{line[:160]} ... {line[max(0, at - 100) : at + 60]}" for line, at in ends)


@pytest.fixture(scope="module")
def sight(sample: Path) -> Sight:
    """The values to look for; a patient's name that a provider or a place has too says nothing."""
    with (sample / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))
    public = b"".join((sample / name).read_bytes() for name in ("organizations.csv", "providers.csv")).lower()
    values = {row[column] for row in rows for column in ("LAST", "FIRST", "MAIDEN", "SSN", "ADDRESS", "Id")}
    words = sorted({v.lower().encode() for v in values if len(v) > 6})
    words = [word for word in words if word not in public]
    assert len(words) > 3 * len(rows)
    return Sight([w.encode() for w in WORDS] + words)


@pytest.fixture(scope="module")
async def logs() -> AsyncIterator[list[str]]:
    """Every record of every logger, as it would be written, with asyncio's debug mode on."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{self.format(record)} {vars(record)}")

    handler, root, loop = Keep(), logging.getLogger(), asyncio.get_running_loop()
    was = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    loop.set_debug(True)
    loop.slow_callback_duration = 0.001
    yield lines
    loop.set_debug(False)
    root.setLevel(was)
    root.removeHandler(handler)


# Where this module's part of the write-ahead log begins: what other modules wrote into it is not ours to judge.
WAL: dict[str, str] = {}


@pytest.fixture(scope="module")
async def busy(database: ChartholdEngine, logs: list[str]) -> AsyncIterator[Clinic]:
    """A database in which everything was done with PHI that can be done, while the server logged all that it was told."""
    connection = await superuser_connection()
    WAL["from"] = await connection.fetchval("select pg_current_wal_insert_lsn()::text")
    for name, value in {
        "log_statement": "all",
        "log_min_duration_statement": "0",
        "log_parameter_max_length": "-1",
        "log_parameter_max_length_on_error": "-1",
        "log_min_messages": "debug1",
        "log_min_error_statement": "error",
        "log_error_verbosity": "verbose",
    }.items():
        # The command line silences the server; what is set for a database comes after the command line.
        await connection.execute(f"alter database {database.database} set {name} = '{value}'")
    await connection.close()
    await database.use(database.database)
    assert await import_export(quiet=True) == 0
    clinic = await make_clinic("busy")
    async with clinic.as_admin():
        await Facility(name=MARK).save()
    async with clinic.as_clinician():
        await everything(clinic)
    for failing in FAILING:
        async with clinic.as_clinician():
            try:
                await failing(clinic)
            except Exception as error:
                logging.getLogger("charthold.tests").debug("it failed", exc_info=error)
    yield clinic
    await database.use(database.database)


async def everything(clinic: Clinic) -> None:
    one = Client(facility_id=clinic.facility, **PHI)
    await one.save()
    many = [Client(facility_id=clinic.facility, **PHI | {"mrn": f"{PHI['mrn']}-{n}"}) for n in range(20)]
    await Client.insert(*many)
    one.notes = PHI["notes"] + " and dust"
    await one.save()
    await (
        Client.update({Client.phone: PHI["phone"], Client.address: PHI["address"]})
        .where(Client.last_name == PHI["last_name"])
        .returning(Client.phone)
    )
    for condition in (
        Client.last_name == "zzyzxquist",
        Client.last_name.starts_with("zzy"),
        Client.ssn == PHI["ssn"],
        Client.ssn.is_in([PHI["ssn"]]),
        Client.ssn.ends_with("4329"),
        Client.date_of_birth == BORN,
        Client.mrn == PHI["mrn"],
        Client.email == PHI["email"],
    ):
        assert await Client.select().where(condition)
        assert await Client.objects(Client.facility_id).where(condition)
        assert await Client.count().where(condition)
    assert await Client.select(Client.last_name).where(Client.mrn == PHI["mrn"]).freeze().run()
    async with await Client.select().batch(batch_size=5) as batch:
        async for _ in batch:
            pass
    async with transaction():
        await one.refresh()
        await one.update_self({Client.notes: PHI["notes"]})
    await Client.insert(one).on_conflict(Client.id, "DO UPDATE", [Client.last_name])
    defaults = {Client.facility_id: clinic.facility, Client.first_name: PHI["first_name"], Client.date_of_birth: BORN}
    await Client.objects().get_or_create(Client.last_name == PHI["last_name"] + "s", defaults=defaults)
    async with clinic_admin(clinic):
        assert await (await Client.objects().get(Client.mrn == PHI["mrn"])).history()


# -- what fails, with PHI at hand ----------------------------------------------------------------------------------


def someone(clinic: Clinic, **values: Any) -> Client:
    return Client(facility_id=clinic.facility, **PHI | {"mrn": None} | values)


async def broken(clinic: Clinic) -> None:
    """The last row by id gets an envelope of another."""
    there = await Client.raw(
        "select id, notes, first_name from client where notes is not null and tenant_id = {} order by id limit 2",
        clinic.tenant,
    )
    await Client.raw("update client set notes = {} where id = {}", there[0]["notes"], there[1]["id"])


async def in_a_transaction(clinic: Clinic, work: Any) -> Any:
    async with transaction():
        await broken(clinic)
        return await work()


async def consume(query: Any) -> None:
    async with await query.batch(batch_size=3) as batch:
        async for _ in batch:
            pass


async def get_one() -> Client:
    found = await Client.objects().get(Client.mrn == PHI["mrn"])
    assert found is not None
    return found


async def changed(**values: Any) -> None:
    one = await get_one()
    for name, value in values.items():
        setattr(one, name, value)
    await one.save()


async def two_columns_as_a_list() -> None:
    await Client.select(Client.last_name, Client.ssn).where(Client.last_name == "zzyzxquist").output(as_list=True)


FAILING: list[Any] = [
    lambda c: someone(c, status="lost").save(),
    lambda c: someone(c, mrn=PHI["mrn"]).save(),
    lambda c: Client.insert(someone(c), someone(c, status="lost")),
    lambda c: Client.insert(someone(c, mrn="twice"), someone(c, mrn="twice")),
    lambda c: changed(notes=PHI["notes"] + "!", status="lost"),
    lambda c: Client.update({Client.notes: PHI["notes"], Client.status: "lost"}).where(Client.mrn == PHI["mrn"]),
    lambda c: someone(c, date_of_birth=PHI["last_name"]).save(),
    lambda c: Client.insert(someone(c), someone(c, date_of_birth=PHI["last_name"])),
    lambda c: someone(c, last_name={"name": PHI["last_name"]}).save(),
    lambda c: someone(c, address={"street": PHI["address"]["street"], "x": object()}).save(),
    lambda c: changed(address={PHI["last_name"]: {1, 2}}),
    lambda c: changed(last_name=BORN),
    lambda c: Client.update({Client.last_name: BORN}).where(Client.mrn == PHI["mrn"]),
    lambda c: Client.update({Client.last_name: PHI["last_name"], Client.tenant_id: None}).where(Client.id == c.client),
    lambda c: Client.update({Client.last_name: PHI["last_name"]}),
    lambda c: Client.select().where(Client.first_name == PHI["first_name"]),
    lambda c: Client.select().where(Client.notes.is_in([PHI["notes"], PHI["last_name"]])),
    lambda c: Client.select().where(Client.last_name.starts_with(PHI["last_name"])),
    lambda c: Client.select().where((Client.last_name == BORN) & (Client.status == "active")),
    lambda c: Client.count().where((Client.last_name == PHI["last_name"]) | (Client.first_name == PHI["first_name"])),
    lambda c: Client.exists().where(Client.email.is_in([BORN])),
    lambda c: Client.delete().where(Client.first_name == PHI["first_name"]),
    lambda c: Client.objects().get_or_create(Client.last_name == PHI["last_name"] + "x"),
    lambda c: Client.objects().get_or_create(Client.first_name == PHI["first_name"]),
    lambda c: Client.insert(someone(c, mrn=PHI["mrn"])).on_conflict(Client.mrn, "DO UPDATE", [Client.last_name]),
    lambda c: constructed(**PHI),
    lambda c: constructed(facility_id=c.facility, surname="x", **PHI),
    lambda c: two_columns_as_a_list(),
    lambda c: in_a_transaction(c, lambda: Client.select()),
    lambda c: in_a_transaction(c, lambda: Client.objects()),
    lambda c: in_a_transaction(c, lambda: Client.objects(Client.facility_id)),
    lambda c: in_a_transaction(c, lambda: Client.select().order_by(Client.id).output(as_json=True)),
    lambda c: in_a_transaction(c, lambda: Client.update({Client.phone: "1"}, force=True).returning(Client.notes)),
    lambda c: broken_batch(c),
    lambda c: asyncio.gather(someone(c, status="lost").save().run(), someone(c, status="lost").save().run()),
    lambda c: unscoped(someone(c)),
]


async def constructed(**values: Any) -> None:
    Client(**values)


async def broken_batch(clinic: Clinic) -> None:
    """A cursor has a connection of its own, so the damage is done for a moment."""
    there = await Client.raw("select id, notes from client where notes is not null order by id limit 2")
    await Client.raw("update client set notes = {} where id = {}", there[0]["notes"], there[1]["id"])
    try:
        await consume(Client.select().order_by(Client.id))
    finally:
        await Client.raw("update client set notes = {} where id = {}", there[1]["notes"], there[1]["id"])


async def unscoped(client: Client) -> None:
    from core.scope import _current

    token = _current.set(None)
    try:
        await client.save()
    finally:
        _current.reset(token)


def clinic_admin(clinic: Clinic) -> Any:
    """The admin, from within the clinician's scope."""
    from contextlib import asynccontextmanager

    from core.scope import _current

    @asynccontextmanager
    async def inside() -> AsyncIterator[None]:
        token = _current.set(None)
        try:
            async with clinic.as_admin():
                yield
        finally:
            _current.reset(token)

    return inside()


def chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        for inner in getattr(error, "exceptions", ()):
            yield from chain(inner)
        error = error.__cause__ or error.__context__


def told(error: BaseException) -> str:
    """What an error reporter would send: every exception of the chain, and every frame's locals but this file's."""
    said = []
    for one in chain(error):
        said += [str(one), repr(one), repr(one.args), repr(vars(one))]
        report = traceback.TracebackException.from_exception(one, capture_locals=True)
        said += [
            f"{frame.filename}:{frame.lineno} {frame.name} {frame.locals}"
            for frame in report.stack
            if frame.filename != __file__
        ]
    return "\n".join(said)


@pytest.mark.parametrize("number", range(len(FAILING)))
async def test_what_fails_tells_no_values(busy: Clinic, sight: Sight, number: int) -> None:
    async with busy.as_clinician():
        with pytest.raises(Exception) as refused:
            await FAILING[number](busy)
    text = told(refused.value)
    assert sight.found(text) == [], sight.near(text)


# -- at rest -------------------------------------------------------------------------------------------------------


@IN_ITS_FILES
async def test_a_dump_holds_no_plaintext(busy: Clinic, sight: Sight) -> None:
    server = DB.place.server
    assert server is not None
    done = subprocess.run(
        [server.bin_dir / "pg_dump", "--no-sync"],
        check=True,
        capture_output=True,
        env=server.environ("owner", str(DB.database)),
    )
    assert MARK.encode() in done.stdout
    assert sight.found(done.stdout) == []


@IN_ITS_FILES
async def test_the_servers_files_and_its_wal_hold_no_plaintext(
    busy: Clinic, sight: Sight, owner: asyncpg.Connection
) -> None:
    await owner.execute("vacuum analyze")  # its statistics are samples of values
    server = DB.place.server
    assert server is not None
    marked: set[str] = set()
    # Other modules' databases are not ours to judge, nor is the WAL before us, nor what a segment holds that is used again.
    database = await owner.fetchval("select oid::text from pg_database where datname = current_database()")
    others = {path for path in (server.data_dir / "base").iterdir() if path.name not in {database, "1"}}
    place = "select file_name, file_offset from pg_walfile_name_offset($1::text::pg_lsn)"
    first, start = await owner.fetchrow(place, WAL["from"])
    last, end = await owner.fetchrow(place, await owner.fetchval("select pg_current_wal_insert_lsn()::text"))

    def look(path: Path, data: bytes) -> None:
        if MARK.encode() in data:
            marked.add(path.relative_to(server.data_dir).parts[0])
        assert sight.plain(data) == [], path

    for path in (server.data_dir / "pg_wal").iterdir():
        if path.is_file() and first <= path.name <= last:
            look(path, path.read_bytes()[start if path.name == first else 0 : end if path.name == last else None])
    await owner.execute("checkpoint")  # after which older segments are used again
    for path in server.data_dir.rglob("*"):
        if path.is_file() and path.parent not in others and path.parent.name != "pg_wal":
            look(path, path.read_bytes())
    assert {"base", "pg_wal"} <= marked


@IN_ITS_FILES
async def test_a_server_that_logs_every_parameter_logs_ciphertext(busy: Clinic, sight: Sight) -> None:
    server = DB.place.server
    assert server is not None
    written = b"".join(path.read_bytes() for path in (server.data_dir.parent / "log").iterdir())
    assert MARK.encode() in written, "the parameters are not in the log"
    assert b"client_mrn_key" in written, "the failures are not in the log"
    assert sight.found(written) == []


def test_pythons_logs_hold_no_plaintext(busy: Clinic, sight: Sight, logs: list[str]) -> None:
    assert any("asyncio" in line for line in logs), "nothing was logged"
    ours = [line for line in logs if "it failed" not in line]  # the traceback with our own lines is looked at above
    assert [sight.near(line) for line in ours if sight.found(line)] == []


# -- what prints, what is copied -----------------------------------------------------------------------------------


async def things(clinic: Clinic) -> list[Any]:
    """Everything in reach that holds PHI."""
    async with clinic.as_admin():
        one = await Client.objects().get(Client.mrn == PHI["mrn"] + "-19")
        trail = await one.history()
        one.notes = PHI["notes"] + ", and to dust"
        keys = await DB.keyring.for_tenant(clinic.tenant)
        insert, bulk = Client.insert(someone(clinic)), Client.insert(someone(clinic), someone(clinic))
        update = Client.update({Client.notes: PHI["notes"]}).where(Client.id == clinic.client)
        wheres = [
            Client.last_name == PHI["last_name"],
            Client.last_name != PHI["last_name"],
            Client.ssn.is_in([PHI["ssn"]]),
            Client.ssn.not_in([PHI["ssn"]]),
            Client.last_name.starts_with("zzyzxquist"),
            Client.ssn.ends_with("987654329"),
            (Client.last_name == PHI["last_name"]) & (Client.date_of_birth == BORN),
            (Client.last_name == PHI["last_name"]) | (Client.ssn == PHI["ssn"]),
        ]
        selects = [Client.select().where(w) for w in (wheres[0], wheres[2], wheres[6], wheres[7])]
        objects = [Client.objects().where(w) for w in (wheres[0], wheres[2])]
        queries = [insert, bulk, update, *selects, *objects, Client.count().where(wheres[0]), one.save()]
        plans = [plan for query in queries[:-1] for plan in query.querystrings]
        late = [argument for plan in plans for argument in plan.compile_string()[1]]
        delegates = [
            getattr(q, n)
            for q in queries
            for n in ("where_delegate", "values_delegate", "add_delegate")
            if hasattr(q, n)
        ]
        printed = [str(query) for query in queries[:-1]]
        return [one, *trail, keys, DB, DB.keyring, *queries, *plans, *late, *wheres, *delegates, *printed]


async def test_objects_print_no_values(busy: Clinic, sight: Sight) -> None:
    for thing in await things(busy):
        assert sight.found(f"{thing!r}") == [], type(thing)
        if not type(thing).__module__.startswith("piccolo.query.mixins"):
            assert sight.found(f"{thing!s} {[thing]} { ({'a': thing}) }") == [], type(thing)


async def test_what_holds_phi_is_not_pickled(busy: Clinic, sight: Sight) -> None:
    for thing in await things(busy):
        refused = None
        try:
            pickled = pickle.dumps(thing)
        except Exception as error:
            refused = error
            pickled = b""
        assert sight.found(pickled) == [], type(thing)
        assert refused is None or sight.found(told(refused)) == []


async def test_a_query_is_copied_without_being_run_or_opened(busy: Clinic) -> None:
    async with busy.as_clinician():
        query = Client.select(Client.last_name).where(Client.mrn == PHI["mrn"])
        assert await copy.copy(query) == await query == [{"last_name": PHI["last_name"]}]


def test_the_sample_values_are_looked_for(sight: Sight) -> None:
    assert sight.found(b"... zzyzxquist ...")
    assert sight.found("... " + b"Zzyzxquist".lower().hex())
    assert len(sight.words) > 80
    assert {c._meta.name for c in Client._meta.columns if isinstance(c, Encrypted)} == set(PHI)
