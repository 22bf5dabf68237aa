"""Each way in which an encrypted column can come back leaves one read record a row that it shows; none, no PHI.

Every value says of which row and column it is, so a test need not be told what a query shows: it looks at what came
back, and the log must say the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import asyncpg
import piccolo.columns
import piccolo.query
import pytest
from piccolo.columns import Column
from piccolo.columns.m2m import M2M
from piccolo.querystring import Selectable
from piccolo.table import Table

import core.engine
import core.statements.late
import core.wire.database
from core import transaction
from core.engine import ChartholdEngine
from core.errors import ChartholdError, ProtectedQueryError
from core.tables import TenantTable
from tests.conftest import Clinic
from tests.ledger import create
from tests.ways_of_reading import (
    CLOSED,
    FUNCTIONS,
    OPENED,
    REFUSED,
    TABLES,
    Card,
    Item,
    Patient,
    Visit,
    Way,
    World,
    delete_returning,
    get_related,
    history,
    join,
    many_to_many,
    marked,
    objects,
    populate,
    prefetch_batch,
    refresh,
    rows_of,
    save_returning,
    select_batch,
    select_columns,
    select_plain,
    shown,
    update_sealed_returning,
)

LOG = "user_action_audit_log"

# Raises for a record that may not be written; for which, its reason says.
UNWRITABLE = """
create function public.unwritable() returns trigger language plpgsql as $$
begin raise exception 'the disk is full'; end $$;
create trigger unwritable before insert on user_action_audit_log for each row
    when (new.action_type = 'read' and new.reason like 'unwritable%') execute function public.unwritable();
"""


@pytest.fixture(scope="module", autouse=True)
async def tables(database: ChartholdEngine) -> None:
    await create(database, *TABLES)
    connection = await database.connect(owner=True)
    await connection.execute(UNWRITABLE)
    await connection.close()


# -- what is recorded -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reading:
    """A read record."""

    table: str
    row: UUID
    columns: tuple[str, ...]
    tenant: UUID
    user: UUID


async def readings(owner: asyncpg.Connection, reason: str) -> list[Reading]:
    rows = await owner.fetch(f"select * from {LOG} where action_type = 'read' and reason = $1", reason)
    return [
        Reading(r["table_name"], r["record_id"], tuple(r["changed_columns"]), r["tenant_id"], r["user_id"])
        for r in rows
    ]


def named(ways: list[Way]) -> Any:
    return pytest.mark.parametrize("way", ways, ids=lambda way: way.run.__name__)


@asynccontextmanager
async def world(lakeside: Clinic, database: ChartholdEngine) -> AsyncIterator[World]:
    async with lakeside.as_admin("populate"):
        yield await populate(database)


def must_be_recorded(way: Way, w: World, result: Any) -> Counter[Any]:
    return way.records(w) if way.records else rows_of(shown(result))


def as_recorded(found: list[Reading], clinic: Clinic) -> Counter[Any]:
    assert {(reading.tenant, reading.user) for reading in found} <= {(clinic.tenant, clinic.admin)}
    return Counter((reading.table, reading.row, reading.columns) for reading in found)


@named(OPENED)
async def test_each_row_that_is_shown_leaves_one_record_with_the_columns_that_were_opened(
    way: Way, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"treatment {uuid4()}"
    async with lakeside.as_admin(reason):
        result = await way.run(w)
    assert shown(result), "a way that shows nothing shows nothing about the log"
    assert as_recorded(await readings(owner, reason), lakeside) == must_be_recorded(way, w, result)


@named(OPENED)
async def test_what_was_shown_in_a_transaction_that_fails_stays_recorded(
    way: Way, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"rolled back {uuid4()}"
    async with lakeside.as_admin(reason):
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                result = await way.run(w)
                raise ZeroDivisionError
    assert shown(result)
    assert as_recorded(await readings(owner, reason), lakeside) == must_be_recorded(way, w, result)
    written = f"select count(*) from {LOG} where action_type in ('insert', 'update', 'delete') and reason = $1"
    assert await owner.fetchval(written, reason) == 0


@named(OPENED)
async def test_no_record_no_phi(
    way: Way, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"unwritable {uuid4()}"
    result = None
    async with lakeside.as_admin(reason):
        with pytest.raises(asyncpg.PostgresError, match="P0001") as failed:
            result = await way.run(w)
    assert result is None
    assert not shown([repr(failed.value), str(failed.value), repr(vars(failed.value))])
    assert await readings(owner, reason) == []
    if not way.several:
        written = f"select count(*) from {LOG} where action_type in ('insert', 'update', 'delete') and reason = $1"
        assert await owner.fetchval(written, reason) == 0, "what was to be shown was not written either"


@named(CLOSED)
async def test_what_shows_no_phi_is_not_recorded_as_read(
    way: Way, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    # Where no record of a read can be written, none is attempted.
    reason = f"unwritable {uuid4()}"
    async with lakeside.as_admin(reason):
        result = await way.run(w)
    assert not shown(result)
    assert await readings(owner, reason) == []


@named(REFUSED)
async def test_what_is_refused_shows_nothing(
    way: Way, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"refused {uuid4()}"
    async with lakeside.as_admin(reason):
        with pytest.raises(ProtectedQueryError):
            await way.run(w)
    assert await readings(owner, reason) == []


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_no_function_of_a_sealed_column_opens_it(
    name: str, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    reason = f"computed {uuid4()}"
    async with lakeside.as_admin(reason):
        for build in (
            lambda: Patient.select(FUNCTIONS[name]()),
            lambda: Patient.select(Patient.label, FUNCTIONS[name]().as_alias("again")),
        ):
            try:
                result = await build()
            except ProtectedQueryError:
                continue
            assert not shown(result)
            assert not any(column != "label" and value for row in result for column, value in row.items()), "refuse it"
    assert await readings(owner, reason) == []


# -- rows that are not there, and values that are not there -----------------------------------------------------------


async def test_a_reference_to_nobody_shows_nobody(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"nobody {uuid4()}"
    async with lakeside.as_admin(reason):
        alone = Visit.id == w.second.id
        assert await Visit.select(Visit.referrer_id.name).where(alone) == [{"referrer_id.name": None}]
        assert await Visit.select(Visit.referrer_id.name).where(alone).output(as_list=True) == [None]
        assert await w.second.get_related(Visit.referrer_id) is None
        assert await w.other.get_related(Card.patient_id.reverse()) is None
    assert await readings(owner, reason) == []
    async with lakeside.as_admin(reason):
        visit = await Visit.objects(Visit.referrer_id).get(alone)
        assert visit.referrer_id.id is None
    assert [(r.table, r.columns) for r in await readings(owner, reason)] == [("read_visit", ("note",))]


async def test_to_see_that_there_is_no_value_is_to_see(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        await Patient.update({Patient.address: None}).where(w.me)
    reason = f"null {uuid4()}"
    async with lakeside.as_admin(reason):
        assert await Patient.select(Patient.address).where(w.me) == [{"address": None}]
    assert [(r.row, r.columns) for r in await readings(owner, reason)] == [(w.patient.id, ("address",))]


# -- batches ----------------------------------------------------------------------------------------------------------


async def see(w: World, batch_size: int, seen: list[Any]) -> None:
    """Read batch by batch, until something goes wrong."""
    async with await Patient.select(Patient.name).where(w.mine).batch(batch_size=batch_size) as batch:
        async for rows in batch:
            seen += rows
            if len(seen) == 2:
                raise ZeroDivisionError


async def many(lakeside: Clinic, database: ChartholdEngine) -> World:
    async with world(lakeside, database) as w:
        await Patient.insert(*(w.new_patient() for _ in range(4)))
    return w


async def test_a_batch_that_ends_in_an_error_keeps_the_records_of_what_it_showed(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w, seen, reason = await many(lakeside, database), [], f"batch {uuid4()}"
    async with lakeside.as_admin(reason):
        with pytest.raises(ZeroDivisionError):
            await see(w, 1, seen)
    assert len(seen) == 2
    assert as_recorded(await readings(owner, reason), lakeside) == rows_of(shown(seen))


async def test_a_batch_whose_record_fails_is_not_shown_and_those_before_it_stay_recorded(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w, seen, reason = await many(lakeside, database), [], f"batch {uuid4()}"
    condition = f"new.reason = '{reason}' and new.record_id = '{w.other.id}'"
    await owner.execute(
        f"create trigger failing before insert on {LOG} for each row when ({condition})"
        " execute function public.unwritable()"
    )
    query = Patient.select(Patient.name).where(w.mine).order_by(Patient.created_at)
    async with lakeside.as_admin(reason):
        with pytest.raises(asyncpg.RaiseError):
            async with await query.batch(batch_size=1) as batch:
                async for rows in batch:
                    seen += rows
    await owner.execute(f"drop trigger failing on {LOG}")
    assert shown(seen) == {("read_patient", w.patient.id, "name"): 1}
    assert as_recorded(await readings(owner, reason), lakeside) == rows_of(shown(seen))


# -- transactions that end otherwise ----------------------------------------------------------------------------------


async def end_by_rollback(w: World, owner: asyncpg.Connection) -> Any:
    async with w.database.transaction() as unit:
        rows = await Patient.select(Patient.name).where(w.mine)
        await unit.rollback()
    return rows


async def end_by_rollback_and_error(w: World, owner: asyncpg.Connection) -> Any:
    with pytest.raises(ZeroDivisionError):
        async with w.database.transaction() as unit:
            rows = await Patient.select(Patient.name).where(w.mine)
            await unit.rollback()
            raise ZeroDivisionError
    return rows


async def end_of_a_savepoint(w: World, owner: asyncpg.Connection) -> Any:
    async with w.database.transaction() as unit:
        before = await Visit.select(Visit.note).where(Visit.label == w.label)
        point = await unit.savepoint()
        rows = await Patient.select(Patient.name).where(w.mine)
        await point.rollback_to()
        after = await Item.select(Item.dose).where(Item.label == w.label)
    return [before, rows, after]


async def end_of_a_savepoint_by_name(w: World, owner: asyncpg.Connection) -> Any:
    async with w.database.transaction() as unit:
        await unit.savepoint("here")
        rows = await Patient.select(Patient.name).where(w.mine)
        await unit.rollback_to("here")
        more = await Item.select(Item.dose).where(Item.label == w.label)
        await unit.rollback_to("here")
    return [rows, more]


async def end_of_a_savepoint_and_of_all(w: World, owner: asyncpg.Connection) -> Any:
    with pytest.raises(ZeroDivisionError):
        async with w.database.transaction() as unit:
            await unit.savepoint("here")
            rows = await Patient.select(Patient.name).where(w.mine)
            await unit.rollback_to("here")
            raise ZeroDivisionError
    return rows


async def end_of_an_inner_one_and_of_all(w: World, owner: asyncpg.Connection) -> Any:
    with pytest.raises(ZeroDivisionError):
        async with transaction():
            before = await Visit.select(Visit.note).where(Visit.label == w.label)
            with pytest.raises(KeyError):
                async with transaction():
                    rows = await Patient.select(Patient.name).where(w.mine)
                    raise KeyError
            raise ZeroDivisionError
    return [before, rows]


async def end_by_a_statement_that_fails(w: World, owner: asyncpg.Connection) -> Any:
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with transaction():
            rows = await Patient.select(Patient.name).where(w.mine)
            await Patient.raw("select 1 / 0")
    return rows


async def end_by_a_commit_that_fails(w: World, owner: asyncpg.Connection) -> Any:
    await owner.execute(
        "create constraint trigger late after update on read_item deferrable initially deferred"
        " for each row execute function public.unwritable()"
    )
    try:
        with pytest.raises(asyncpg.RaiseError):
            async with transaction():
                rows = await Patient.select(Patient.name).where(w.mine)
                await Item.update({Item.label: "late"}).where(Item.id == w.item.id)
    finally:
        await owner.execute("drop trigger late on read_item")
    return rows


async def end_by_a_lost_connection(w: World, owner: asyncpg.Connection) -> Any:
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        async with w.database.transaction() as unit:
            rows = await Patient.select(Patient.name).where(w.mine)
            await owner.execute("select pg_terminate_backend($1, 5000)", unit.connection.get_server_pid())
            await Patient.select(Patient.name).where(w.mine)
    return rows


async def end_of_a_batch_by_a_lost_connection(w: World, owner: asyncpg.Connection) -> Any:
    seen: list[Any] = []
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        async with await Patient.select(Patient.name).where(w.mine).batch(batch_size=1) as batch:
            async for rows in batch:
                seen += rows
                await owner.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where datname = current_database() and state = 'idle in transaction'"
                )
    assert len(seen) == 1
    return seen


async def end_by_a_connection_lost_while_it_is_recorded(w: World, owner: asyncpg.Connection) -> Any:
    """The server ends all sessions between the rollback and the record of what it took away."""
    record_again, ended = core.statements.late.record_again, False

    async def after_the_loss(*what: Any) -> None:
        nonlocal ended
        if not ended:
            ended = True
            await owner.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        await record_again(*what)

    with patch("core.statements.late.record_again", after_the_loss), pytest.raises(ZeroDivisionError):
        async with transaction():
            rows = await Patient.select(Patient.name).where(w.mine)
            raise ZeroDivisionError
    return rows


async def end_where_the_server_has_no_connection_left(w: World, owner: asyncpg.Connection) -> Any:
    """The connection is lost, and others take all that there are for a moment."""
    begin_session, refused = core.wire.database.begin_session, 0

    async def after_a_while(*given: Any, **how: Any) -> asyncpg.Connection:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise (asyncpg.TooManyConnectionsError, asyncpg.CrashShutdownError)[refused - 1]("sorry")
        return await begin_session(*given, **how)

    with patch("core.wire.database.begin_session", after_a_while), pytest.raises(ZeroDivisionError):
        async with transaction() as unit:
            rows = await Patient.select(Patient.name).where(w.mine)
            unit.connection.terminate()
            while (pool := core.engine.engine()._here().pool)._idle:
                pool._idle.pop().connection.terminate()
                pool._open -= 1
            raise ZeroDivisionError
    assert refused == 2
    return rows


async def end_by_a_raw_rollback(w: World, owner: asyncpg.Connection) -> Any:
    rows = None
    with contextlib.suppress(ProtectedQueryError):
        async with transaction():
            rows = await Patient.select(Patient.name).where(w.mine)
            await Patient.raw("rollback")
    return rows


async def end_by_a_raw_savepoint(w: World, owner: asyncpg.Connection) -> Any:
    rows: list[Any] = []
    with contextlib.suppress(ProtectedQueryError):
        async with transaction():
            await Patient.raw("savepoint x")
            rows = await Patient.select(Patient.name).where(w.mine)
            await Patient.raw("rollback to x")
    return rows


@pytest.mark.parametrize(
    "end",
    [
        end_by_rollback, end_by_rollback_and_error, end_of_a_savepoint, end_of_a_savepoint_by_name,
        end_of_a_savepoint_and_of_all, end_of_an_inner_one_and_of_all, end_by_a_statement_that_fails,
        end_by_a_commit_that_fails, end_by_a_lost_connection, end_of_a_batch_by_a_lost_connection,
        end_by_a_connection_lost_while_it_is_recorded, end_where_the_server_has_no_connection_left,
        end_by_a_raw_rollback, end_by_a_raw_savepoint,
    ],
    ids=lambda end: end.__name__,
)  # fmt: skip
async def test_what_was_shown_is_recorded_once_however_the_transaction_ends(
    end: Callable[[World, asyncpg.Connection], Awaitable[Any]],
    lakeside: Clinic,
    owner: asyncpg.Connection,
    database: ChartholdEngine,
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"ended {uuid4()}"
    async with lakeside.as_admin(reason):
        result = await end(w, owner)
    assert as_recorded(await readings(owner, reason), lakeside) == rows_of(shown(result))


async def test_what_was_shown_stays_recorded_when_the_scope_ends_before_the_transaction(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"ended {uuid4()}"
    with pytest.raises(ZeroDivisionError):
        async with transaction():
            async with lakeside.as_admin(reason):
                rows = await Patient.select(Patient.name).where(w.mine)
            raise ZeroDivisionError
    assert as_recorded(await readings(owner, reason), lakeside) == rows_of(shown(rows))


# -- other things that keep a record from being written ---------------------------------------------------------------


@asynccontextmanager
async def without_the_right(owner: asyncpg.Connection) -> AsyncIterator[None]:
    signature = "function charthold.record_read(text, uuid[], text[])"
    [roles] = await owner.fetchrow(
        "select array_agg(grantee::regrole::text) from pg_proc, aclexplode(proacl)"
        " where oid = 'charthold.record_read'::regproc and grantee::regrole::text <> proowner::regrole::text"
    )
    await owner.execute(f"revoke execute on {signature} from {', '.join(roles)}")
    try:
        yield
    finally:
        await owner.execute(f"grant execute on {signature} to {', '.join(roles)}")


@asynccontextmanager
async def without_a_partition(owner: asyncpg.Connection) -> AsyncIterator[None]:
    parts = await owner.fetch(
        "select c.relname, pg_get_expr(c.relpartbound, c.oid) as bound from pg_inherits join pg_class as c"
        " on c.oid = inhrelid where inhparent = $1::text::regclass",
        LOG,
    )
    for part in parts:
        await owner.execute(f"alter table {LOG} detach partition {part['relname']}")
    try:
        yield
    finally:
        for part in parts:
            await owner.execute(f"alter table {LOG} attach partition {part['relname']} {part['bound']}")


@asynccontextmanager
async def without_a_log(owner: asyncpg.Connection) -> AsyncIterator[None]:
    await owner.execute(f"alter table {LOG} rename to gone")
    try:
        yield
    finally:
        await owner.execute(f"alter table gone rename to {LOG}")


@pytest.mark.parametrize(
    "broken", [without_the_right, without_a_partition, without_a_log], ids=lambda broken: broken.__name__
)
async def test_no_phi_comes_back_while_the_log_is_broken(
    broken: Any, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with world(lakeside, database) as w:
        pass
    reason = f"broken {uuid4()}"
    ways = (
        select_columns, select_batch, objects, prefetch_batch, join, many_to_many, get_related, refresh,
        save_returning, update_sealed_returning, delete_returning, history,
    )  # fmt: skip
    async with lakeside.as_admin(reason):
        async with broken(owner):
            for run in ways:
                result = None
                with pytest.raises((ChartholdError, asyncpg.PostgresError)) as failed:
                    result = await run(w)
                assert result is None
                assert not shown([repr(failed.value), str(failed.value)]), run.__name__
            assert await select_plain(w), "what is no PHI needs no record"
        w.patient.name = marked(w.patient, "name")
        assert shown(await select_columns(w))
    assert {reading.columns for reading in await readings(owner, reason)} == {("name",)}


# -- by construction --------------------------------------------------------------------------------------------------

QUERIES = ("Select", "Objects", "Insert", "Update", "Delete", "Raw", "Count", "Exists")

# What returns no rows of a table, and why.
NO_WAY: dict[str, str] = {
    **dict.fromkeys(
        ("Table.alter", "Table.create_index", "Table.create_table", "Table.drop_index", "Table.indexes",
         "Table.table_exists", "base.DDL", "alter.Alter", "create.Create", "create_index.CreateIndex",
         "drop_index.DropIndex", "indexes.Indexes", "table_exists.TableExists"),
        "about the table, not its rows",
    ),
    **dict.fromkeys(("Table.from_dict", "Table.to_dict"), "about a row that is here already"),
    **dict.fromkeys(("Table.all_related", "TenantTable.narrowed_by"), "names columns"),
    "Table.ref": "names a column of another table without joining it, which PostgreSQL refuses",
    **dict.fromkeys(("Select.as_of", "Objects.as_of"), "of another database"),
    **dict.fromkeys(
        (f"{query}.{member}" for query in QUERIES for member in ("run_sync", "response_handler")),
        "run(), in another loop or in part",
    ),
    **dict.fromkeys((f"{query.lower()}.{query}" for query in QUERIES), "told apart by what can be done with it"),
    **dict.fromkeys(("base.Query", "proxy.Runnable"), "what the others have in common"),
    **dict.fromkeys(
        ("ForeignKey.copy", "ForeignKey.get_default_value", "ForeignKey.get_select_string",
         "ForeignKey.get_sql_value", "ForeignKey.get_where_string", "ForeignKey.set_proxy_columns"),
        "about the column",
    ),
    **dict.fromkeys(
        (f"ForeignKey.{name}" for name in ("like", "ilike", "not_like", "is_in", "not_in", "is_null", "is_not_null")),
        "a condition",
    ),
    **dict.fromkeys(("TenantTable.implied_objects", "TenantTable.schema_objects"), "about the table, not its rows"),
    **dict.fromkeys(("TenantTable.of_row", "TenantTable.remember"), "about a row that is here already"),
    **dict.fromkeys(
        ("querystring.Selectable", "querystring.Unquoted", "functions.Function", "functions.ArrayQueryString",
         "json.JSONQueryString"),
        "what the others are made of",
    ),
    "mixins.OrderByRaw": "an order",
}  # fmt: skip

# Where an argument decides what comes back.
ARGUMENTS: dict[str, Any] = {
    "Select.output": piccolo.query.Select.output,
    "Objects.output": piccolo.query.Objects.output,
    "M2M.__call__": M2M.__call__,
    "Table.select": Table.select,
    "Table.refresh": Table.refresh,
}


def members(name: str, kind: type[Any]) -> set[str]:
    """What can be called on it."""
    return {f"{name}.{m}" for m in dir(kind) if not m.startswith("_") and inspect.isroutine(getattr(kind, m))}


def classes() -> set[type[Any]]:
    """Every class of Piccolo's that we have the database of."""
    names = ["piccolo.table", "piccolo.querystring", "piccolo.engine.base", "piccolo.engine.postgres"]
    for package in (piccolo.query, piccolo.columns):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    found = (value for name in names for value in vars(importlib.import_module(name)).values())
    return {c for c in found if inspect.isclass(c) and c.__module__ in names}


def label(kind: type[Any]) -> str:
    functions = kind.__module__.startswith("piccolo.query.functions.")
    return f"{'functions' if functions else kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def ways_of_piccolo() -> set[str]:
    """Whatever could bring rows back, by name."""
    found = members("Table", Table) | members("ForeignKey", piccolo.columns.ForeignKey)
    for query in QUERIES:
        found |= members(query, getattr(piccolo.query, query))
    for name, function in ARGUMENTS.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in ("self", "cls") and parameter.kind is not parameter.VAR_POSITIONAL:
                found.add(f"{name}({parameter.name})")
    ours = {name.partition(".")[2] for name in members("TenantTable", TenantTable)}
    found |= {f"TenantTable.{name}" for name in ours if not hasattr(Table, name)}
    for kind in classes():
        runs = any(hasattr(kind, name) for name in ("run", "_run", "__await__", "__aiter__"))
        if runs or (issubclass(kind, Selectable) and not issubclass(kind, Column)):
            found.add(label(kind))
    return found


def test_every_way_that_piccolo_has_is_gone_by_these_tests() -> None:
    gone = {name for way in (*OPENED, *CLOSED, *REFUSED) for name in way.through}
    known = gone | NO_WAY.keys() | FUNCTIONS.keys()
    assert ways_of_piccolo() - known == set(), "write a way that goes through it, or say why there is none"
    assert known - ways_of_piccolo() == set(), "Piccolo has it no more"
    assert gone.isdisjoint(NO_WAY)


def test_every_query_of_a_tenants_table_is_ours() -> None:
    """Piccolo's own would neither pin the tenant nor record what it shows."""
    row = Item(visit_id=uuid4(), dose="")
    row._exists_in_db = True
    made: list[Any] = [
        Item.select(), Item.objects(), Item.insert(), Item.update(), Item.delete(), Item.raw("select 1"), Item.count(),
        Item.exists(), row.save(), row.refresh(), row.update_self({}), Item.objects().create(), row.remove(),
        Item.objects().get_or_create(Item.label == ""), Item.select().output(as_list=True),
        Item.select().output(as_json=True),
    ]  # fmt: skip
    assert {type(query).__module__.partition(".")[0] for query in made} == {"core"}


SEARCHED: dict[str, tuple[Callable[[Any], Any], int]] = {
    "of another table than is shown": (lambda who: Visit.select(Visit.note).where(Visit.patient_id.name == who), 1),
    "of the row that is shown": (lambda who: Patient.select(Patient.address).where(Patient.name == who), 0),
    "where nothing is shown": (
        lambda who: Visit.select(Visit.id, Visit.referrer_id.name).where(
            Visit.patient_id.name == who, Visit.referrer_id.is_null()
        ),
        1,
    ),
}


@pytest.mark.parametrize("how", SEARCHED)
async def test_a_search_by_what_is_not_shown_is_recorded_beside_what_is(
    how: str, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    """Threat: a visit that is shown, or names nobody, stands for the patient whose name was guessed."""
    async with lakeside.as_admin("populate"):
        w = await populate(database)
    (ask, times), reason = SEARCHED[how], f"guess {uuid4()}"
    async with lakeside.as_admin(reason):
        assert await ask(marked(w.patient, "name"))
    found = await owner.fetch(f"select * from {LOG} where reason = $1 and action_type = 'search'", reason)
    assert [(row["table_name"], '"name"' in row["new_values"]) for row in found] == [("read_patient", True)] * times
