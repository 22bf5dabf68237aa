"""Steps run up, down and up again without a trace, alone or in a crowd, and whatever kills them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest
from piccolo.apps.migrations.commands.backwards import BackwardsMigrationManager, run_backwards
from piccolo.apps.migrations.commands.forwards import run_forwards
from piccolo.columns import UUID, BigInt, Column, Integer, Text, Varchar
from piccolo.columns.defaults.uuid import UUID4
from piccolo.engine.postgres import PostgresEngine
from piccolo.table import Table

import core.piccolo_app as core_app
from core.errors import ConfigurationError, MigrationError
from core.schema import (
    Check,
    Function,
    Index,
    Namespace,
    References,
    Role,
    RowSecurity,
    Statement,
    Trigger,
    lock,
    run,
    runner,
    shared_objects,
)
from core.schema.catalog import snapshot
from core.schema.drift import drift
from core.schema.regenerate import regenerate
from core.schema.unsafe import KINDS, findings
from core.settings import UNSAFE, Settings
from tests.schema_app import project as toy
from tests.schema_app.fixtures import connection, database, project, server  # noqa: F401
from tests.schema_app.project import catalog, changes, ran, table

OWNER_IS_SUPERUSER = True

ROOT = Path(__file__).parent.parent
CORE = sorted(path.stem for path in (ROOT / "piccolo_migrations").glob("core_*.py"))


@pytest.fixture
def losing(monkeypatch):
    """Somebody agreed that tables go with their rows."""
    allowed = Settings(allow_unsafe=frozenset({"drop_populated"}))
    for module in ("loss", "unsafe"):
        monkeypatch.setattr(f"core.schema.{module}.settings", lambda: allowed)


@pytest.fixture(autouse=True)
def unsettled(monkeypatch):
    """What follows the steps of core needs its engine; here the steps are looked at alone."""
    monkeypatch.setattr(runner, "_settled", {})


async def rows(connection, app: str = "toy") -> list[str]:  # noqa: F811
    return [
        row["name"] for row in await connection.fetch("select name from migration where app_name = $1 order by id", app)
    ]


# -- the steps of core -----------------------------------------------------------------------------------------------


async def test_each_step_of_core_goes_up_down_and_up_without_a_trace(connection):
    states = [await snapshot(connection)]
    for _ in CORE:
        result = await run_forwards("core", "1")
        assert result.success, result.message
        states.append(await snapshot(connection))
        assert (await run_backwards("core", "1", auto_agree=True)).success
        assert changes(states[-2], await snapshot(connection)) == {}
        assert (await run_forwards("core", "1")).success
        assert changes(states[-1], await snapshot(connection)) == {}
    assert len(await rows(connection, "core")) == len(CORE)


async def test_all_steps_of_core_leave_an_empty_database_empty(connection):
    empty = await snapshot(connection)
    assert (await run_forwards("core")).success
    full = await snapshot(connection)
    assert (await run_backwards("core", "all", auto_agree=True)).success
    assert changes(empty, await snapshot(connection)) == {}
    assert await rows(connection, "core") == []
    assert (await run_forwards("core")).success
    assert changes(full, await snapshot(connection)) == {}


async def test_the_declarations_are_what_the_steps_of_core_make(connection):
    assert (await run_forwards("core")).success
    assert await drift(connection, core_app.APP_CONFIG.table_classes, shared_objects("core")) == []


async def test_the_steps_of_core_are_what_is_generated(tmp_path, monkeypatch):
    """Nothing in piccolo_migrations is written by hand."""
    monkeypatch.setattr(core_app.APP_CONFIG, "migrations_folder_path", str(tmp_path))
    written = await asyncio.create_task(regenerate("core"))
    assert [path.stem for path in written] == CORE
    for path in written:
        assert path.read_text() == (ROOT / "piccolo_migrations" / path.name).read_text()
        # Leave the module of that name to the tests that follow.
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_of_another_encoding_is_refused_before_anything_is_made(server, monkeypatch, encoding):  # noqa: F811
    """Threat: everything seems to work there, until a record cannot be sealed, or a name cannot be written."""
    async with server.database(f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C' locale_provider libc") as name:
        engine = PostgresEngine(config=server.to(name))
        monkeypatch.setattr(lock, "engine_finder", lambda: engine)
        for preview in (True, False):
            result = await run_forwards("core", preview=preview)
            assert not result.success
            assert f"encoding is {encoding}" in result.message
        connection = await asyncpg.connect(**server.to(name))  # noqa: F811
        assert await connection.fetchval("select to_regnamespace('charthold')") is None
        await connection.close()


# -- rows ------------------------------------------------------------------------------------------------------------


async def contents(connection) -> dict[str, tuple[int, str]]:
    """How many rows each table of core holds, and a digest of them."""
    found = {}
    for row in await connection.fetch(
        "select oid::regclass::text as name from pg_class where relkind in ('r', 'p') and not relispartition"
        " and relnamespace in (select oid from pg_namespace where nspname in ('public', 'charthold'))"
    ):
        if row["name"] != "migration":
            counted = await connection.fetchrow(
                f"select count(*), md5(string_agg(t::text, ',' order by t::text)) from {row['name']} as t"
            )
            found[row["name"]] = tuple(counted)
    return found


async def test_rows_of_core_survive_every_step_down_and_up(server, losing, monkeypatch):  # noqa: F811
    if server.name != "embedded":
        pytest.skip("the engine of piccolo_conf is on another server")
    from piccolo_conf import DB
    from tests.conftest import make_clinic

    monkeypatch.setattr(runner, "_settled", {"core": core_app.settle})
    async with server.database() as name:
        await DB.use(name)
        connection = await asyncpg.connect(**server.to(name))
        try:
            assert (await run_forwards("core")).success
            await make_clinic("lakeside")
            await make_clinic("hillside")
            before = await contents(connection)
            assert sum(count > 0 for count, _ in before.values()) >= 8
            for _ in CORE:
                assert (await run_backwards("core", "1", auto_agree=True)).success
                left = await contents(connection)
                assert left.items() <= before.items()
                assert (await run_forwards("core", "1")).success
                assert left.items() <= (await contents(connection)).items()
                assert (await run_backwards("core", "1", auto_agree=True)).success
                assert await contents(connection) == left
            assert left == {}
        finally:
            await connection.close()
            await DB.use(None)


async def test_rows_of_untouched_tables_survive(project, connection, losing):  # noqa: F811
    shelves = table("Shelf", [Check("shelf_named", condition="name <> ''")], name=Text())
    boxes = table("Box", code=Varchar(default=None), size=Integer(default=None, null=True))
    project.declare(shelves, boxes)
    await project.new()
    await project.up()
    await connection.execute("insert into shelf (name) values ('a'), ('b'); insert into box (code) values ('x')")
    project.declare(shelves, boxes, table("Crate", note=Text()))
    await project.new()
    await project.up()
    await connection.execute("insert into crate (note) values ('gone')")
    before = await connection.fetch("select * from shelf, box order by 1, 2")
    await project.down()
    await project.up()
    assert await connection.fetch("select * from shelf, box order by 1, 2") == before
    assert await connection.fetchval("select count(*) from crate") == 0


# -- order, bookkeeping, the way back ---------------------------------------------------------------------------------


async def test_raw_steps_see_new_columns_before_anything_goes(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar(length=20, default=None, null=True)))
    await project.new()
    await project.up()
    await connection.execute("insert into box (code) values ('12')")
    before = await catalog(connection)
    project.write(
        "2100",
        """
manager.add_column(table_class_name="Box", tablename="box", column_name="size", column_class_name="Integer",
    params={"default": None, "null": True})
manager.drop_column(table_class_name="Box", tablename="box", column_name="code")
manager.add_check(table="box", name="box_size_positive", condition="size > 0")
async def fill():
    ran.append("fill")
    await __import__("core.schema.lock").schema.lock.engine().run_ddl("update box set size = code::int")
async def empty():
    ran.append("empty")
    await __import__("core.schema.lock").schema.lock.engine().run_ddl("update box set code = size::text")
manager.add_raw(fill)
manager.add_raw_backwards(empty)
""",
    )
    await project.up()
    assert await connection.fetchval("select size from box") == 12
    await project.down()
    assert await connection.fetchval("select code from box") == "12"
    assert changes(before, await catalog(connection)) == {}
    assert ran == ["fill", "empty"]


async def test_a_raw_step_without_a_way_back_is_refused_before_anything_runs(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar()))
    await project.new()
    project.write("2100", "manager.add_raw(lambda: ran.append('raw'))")
    result = await project.forwards()
    assert not result.success
    assert "no way back" in result.message
    assert ran == []
    assert await connection.fetchval("select to_regclass('box')") is None
    with pytest.raises(MigrationError, match="no way back"):
        await project.new()


async def test_an_irreversible_step_says_why_and_stays(project, connection):  # noqa: F811
    project.write("2100", "manager.add_raw(lambda: ran.append('raw'))\nmanager.irreversible('the old codes are lost')")
    assert (await project.forwards()).success
    result = await project.backwards()
    assert not result.success
    assert "the old codes are lost" in result.message
    assert await rows(connection) == ["2100"]


async def test_a_statement_without_a_way_back_says_why(project, connection):  # noqa: F811
    project.declare(shared=[Statement("s", forwards="select 1", irreversible="it was never there")])
    await project.new()
    await project.up()
    result = await project.backwards()
    assert "it was never there" in result.message


async def test_a_step_that_fails_changes_nothing_and_quotes_no_value(project, connection, capsys):  # noqa: F811
    project.declare(table("Box", code=Varchar(default=None)))
    await project.new()
    await project.up()
    await connection.execute("insert into box (code) values ('Nguyen'), ('Nguyen')")
    before = await catalog(connection)
    project.write(
        "2100",
        """
manager.add_comment(table="box", text="new")
manager.add_statement(name="s", forwards="create unique index on box (code)", backwards="select 1", after_tables=True)
""",
    )
    monkey = pytest.MonkeyPatch()
    monkey.setattr("core.schema.unsafe.settings", lambda: Settings(allow_unsafe=frozenset({"blocking_index"})))
    result = await project.forwards()
    monkey.undo()
    assert not result.success
    assert "failed and changed nothing" in result.message
    assert "23505" in result.message
    assert "Nguyen" not in result.message + capsys.readouterr().err
    assert changes(before, await catalog(connection)) == {}
    assert "2100" not in await rows(connection)


async def test_each_step_has_one_row_of_its_app(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar()))
    await project.new()
    await project.up()
    [name] = await rows(connection)
    await connection.execute("insert into migration (name, app_name) values ($1, 'other')", name)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("insert into migration (name, app_name) values ($1, 'other')", name)
    await project.down()
    assert await rows(connection) == []
    assert await rows(connection, "other") == [name]


async def test_steps_go_back_in_the_order_in_which_they_ran(project, connection):  # noqa: F811
    project.write(
        "2200", "manager.add_raw(lambda: ran.append('b')); manager.add_raw_backwards(lambda: ran.append('-b'))"
    )
    await project.up()
    project.write(
        "2100", "manager.add_raw(lambda: ran.append('a')); manager.add_raw_backwards(lambda: ran.append('-a'))"
    )
    await project.up()
    await project.down("all")
    assert ran == ["b", "a", "-a", "-b"]


BRANCH = """
manager.replace_function(old=Function("public.f", source={old!r}), new=Function("public.f", source={new!r}))
"""


def saying(word: str) -> str:
    return f"create function public.f() returns text language sql as $$ select '{word}' $$"


async def test_two_branches_that_change_a_function_from_one_state_are_refused(project, connection):  # noqa: F811
    project.write("2100", f"manager.add_function(name='public.f', source={saying('one')!r})")
    await project.up()
    project.write("2101", BRANCH.format(old=saying("one"), new=saying("two")))
    project.write("2102", BRANCH.format(old=saying("one"), new=saying("three")))
    result = await project.forwards()
    assert "Steps 2101 and 2102 both change the function public.f() from the same state" in result.message
    assert "Delete 2102" in result.message
    assert await connection.fetchval("select f()") == "one"
    # A step that was written from the state of both mends it.
    project.write("2103", BRANCH.format(old=saying("three"), new=saying("four")))
    await project.up()
    assert await connection.fetchval("select f()") == "four"


async def test_a_branch_that_is_merged_late_is_the_one_to_be_written_anew(project, connection):  # noqa: F811
    project.write("2100", f"manager.add_function(name='public.f', source={saying('one')!r})")
    project.write("2102", BRANCH.format(old=saying("one"), new=saying("three")))
    await project.up()
    project.write("2101", BRANCH.format(old=saying("one"), new=saying("two")))
    assert "Delete 2101" in (await project.forwards()).message


async def test_fake_records_without_running(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar()))
    await project.new()
    assert (await project.forwards(fake=True)).success
    assert len(await rows(connection)) == 1
    assert await connection.fetchval("select to_regclass('box')") is None


async def test_a_step_of_piccolos_own_runs_with_its_row(project, connection):  # noqa: F811
    (project.folder / "old.py").write_text("""
from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.columns import Varchar
from piccolo.constraints import Check
ID = "2000"
VERSION = "1.38"
DESCRIPTION = ""

async def forwards():
    manager = MigrationManager(migration_id=ID, app_name="toy")
    manager.add_table("Box", tablename="box")
    manager.add_column("Box", "box", "code", column_class=Varchar, params={"default": ""})
    manager.add_constraint("Box", "box", "code_known", Check, {"condition": "code <> ''"})
    return manager
""")
    empty = await catalog(connection)
    await project.up()
    assert await rows(connection) == ["2000"]
    # The declaration has the same check; nothing is left to do.
    project.declare(table("Box", [Check("code_known", condition="code <> ''")], code=Varchar(default="")))
    assert await project.new() == ""
    assert await project.drift(connection) == []
    await project.down()
    assert changes(empty, await catalog(connection)) == {}


# -- roles of a cluster that holds several databases ------------------------------------------------------------------


async def test_a_role_that_another_database_uses_stays(project, connection, server, monkeypatch):  # noqa: F811
    project.declare(shared=[Role("app_toy", application=False), Namespace("toy")])
    await project.new()
    await project.up()
    async with server.database() as other:
        second = await asyncpg.connect(**server.to(other))
        await second.execute("create table t (); grant select on t to app_toy")
        await project.down()
        assert await connection.fetchval("select count(*) from pg_roles where rolname = 'app_toy'") == 1
        assert await second.fetchval("select has_table_privilege('app_toy', 't', 'select')")
        await second.execute("drop table t")
        await second.close()
    await project.up()
    await connection.execute("create table t (); grant select on t to app_toy")
    await project.down()
    left = await connection.fetchval("select count(*) from pg_roles where rolname = 'app_toy'")
    # What hand-made grants hold on to goes with them, if the migrator may act for the role.
    may = await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    assert left == (0 if may else 1)


async def test_generated_steps_know_no_prefix_and_render_it(project, connection, monkeypatch):  # noqa: F811
    project.declare(shared=[Role("app_toy", application=False)])
    source = await project.new()
    configured = Settings(role_prefix="clinic_")
    monkeypatch.setattr("core.schema.role.settings", lambda: configured)
    assert 'name="app_toy"' in source
    await project.up()
    assert await connection.fetchval("select count(*) from pg_roles where rolname = 'clinic_app_toy'") == 1
    await project.down()
    assert await connection.fetchval("select count(*) from pg_roles where rolname = 'clinic_app_toy'") == 0


# -- locks -------------------------------------------------------------------------------------------------------------


def migrate(app: str, connect: dict, *folder: object) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "tests.schema_app.migrate", app, json.dumps(connect), *map(str, folder)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("crowd", [4, pytest.param(16, marks=pytest.mark.slow)])
async def test_of_many_migrators_one_runs_each_step(server, database, connection, crowd):  # noqa: F811
    processes = [migrate("core", server.to(database)) for _ in range(crowd)]
    outputs = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [process.returncode for process in processes] == [0] * crowd, outputs
    told = [output for output, _ in outputs]
    assert sum(f"Running {len(CORE)} migrations" in output for output in told) == 1
    assert sum("No migrations need to be run" in output for output in told) == crowd - 1
    assert len(await rows(connection, "core")) == len(CORE)
    assert await drift(connection, core_app.APP_CONFIG.table_classes, shared_objects("core")) == []


async def test_two_migrators_in_one_process_take_turns(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar()))
    await project.new()
    results = await asyncio.gather(project.forwards(), project.forwards())
    assert all(result.success for result in results)
    assert len(await rows(connection)) == 1


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_step_that_another_process_was_faster_with_changes_nothing(
    project,
    connection,
    server,
    database,
    backwards,  # noqa: F811
):
    """The session that held the lock was lost, say, and its process went on."""
    project.declare(table("Box", code=Varchar()))
    [step] = re.findall('ID = "(.+)"', await project.new())
    if backwards:
        await project.up()
    else:
        await BackwardsMigrationManager(app_name="toy", migration_id="1").create_migration_table()
    other = await asyncpg.connect(**server.to(database))
    async with other.transaction():
        await other.execute(lock.STEP_LOCK)
        running = asyncio.create_task(project.backwards() if backwards else project.forwards())
        waiting = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
        async with asyncio.timeout(10):
            while not await connection.fetchval(waiting):
                await asyncio.sleep(0.01)
        if backwards:
            await other.execute("delete from migration where name = $1", step)
        else:
            await other.execute("insert into migration (name, app_name) values ($1, 'toy')", step)
    await other.close()
    result = await running
    assert not result.success
    assert f" is {'not ' if backwards else ''}recorded as run already: another process was faster" in result.message
    assert (await connection.fetchval("select to_regclass('box')") is not None) == backwards


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_migrator_that_loses_the_server_says_so_in_one_sentence(
    project,
    connection,
    monkeypatch,
    capsys,
    backwards,  # noqa: F811
):
    project.declare(table("Box", code=Varchar()))
    await project.new()
    if backwards:
        await project.up()
    asked = runner.steps_run

    async def steps_run(session, app_name):
        await connection.execute("select pg_terminate_backend($1, 5000)", session.get_server_pid())
        return await asked(session, app_name)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "steps_run", steps_run)
        result = await (project.backwards() if backwards else project.forwards())
    assert not result.success
    assert capsys.readouterr().err == f"{result.message}\n"
    assert result.message.startswith("The connection to the database was lost. ")
    await (project.down() if backwards else project.up())


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run, "settings", lambda: Settings(lock_timeout=0.1))
    monkeypatch.setattr(run, "PAUSE", 0.05)


async def test_a_step_waits_its_turn_for_a_table_and_tries_again(
    project,
    connection,
    server,
    database,
    impatient,  # noqa: F811
):
    project.declare(table("Box", code=Varchar()))
    await project.new()
    await project.up()
    other = await asyncpg.connect(**server.to(database))
    holding = other.transaction()
    await holding.start()
    await other.execute("select * from box")
    project.declare(table("Box", [Check("box_code", condition="code <> ''")], code=Varchar()))
    await project.new()
    running = asyncio.create_task(project.forwards())
    await asyncio.sleep(0.3)
    assert not running.done()
    await holding.rollback()
    assert (await running).success
    await other.close()


async def test_a_step_that_never_gets_its_table_gives_up_and_changes_nothing(
    project,
    connection,
    server,
    database,
    impatient,  # noqa: F811
):
    project.declare(table("Box", code=Varchar()))
    await project.new()
    await project.up()
    other = await asyncpg.connect(**server.to(database))
    holding = other.transaction()
    await holding.start()
    await other.execute("select * from box")
    project.declare(
        table("Box", [Check("box_code", condition="code <> ''")], code=Varchar()), table("Lid", a=Integer())
    )
    await project.new()
    result = await project.forwards()
    assert not result.success
    assert "it did not get its locks in 5 attempts" in result.message
    assert len(await rows(connection)) == 1
    assert await connection.fetchval("select to_regclass('lid')") is None
    await holding.rollback()
    await other.close()


async def test_the_lock_goes_when_the_command_ends(project, connection):  # noqa: F811
    await project.up()
    await project.up()
    held = "select count(*) from pg_locks where locktype = 'advisory'"
    for _ in range(20):
        if await connection.fetchval(held) == 0:
            return
        await asyncio.sleep(0.05)
    assert await connection.fetchval(held) == 0


# -- kill -9 -----------------------------------------------------------------------------------------------------------


async def wait_for(connection, query: str, process: subprocess.Popen, *arguments: object) -> bool:  # noqa: F811
    """Poll until the query says yes; False when the process was faster."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if await connection.fetchval(query, *arguments):
            return True
        if process.poll() is not None:
            return False
        await asyncio.sleep(0.001)
    raise AssertionError(f"it never came to: {query}")


async def alone(connection) -> None:  # noqa: F811
    """Wait until the server has noticed that its client is gone."""
    gone = (
        "select count(*) = 0 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    for _ in range(500):
        if await connection.fetchval(gone):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a killed migrator's backend still runs")


async def states_of_core(connection) -> list[dict]:  # noqa: F811
    """The catalog after no step, after the first, after the second ..."""
    states = [await snapshot(connection)]
    for _ in CORE:
        await run_forwards("core", "1")
        states.append(await snapshot(connection))
    await run_backwards("core", "all", auto_agree=True)
    return states


STEP_RUNS = (
    "select exists (select from pg_locks where locktype = 'advisory' and granted and mode = 'ExclusiveLock' offset 1)"
)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_killed_migrator_leaves_the_old_state_or_the_new(server, database, connection, kills):  # noqa: F811
    states = await states_of_core(connection)
    dice = random.Random(20260101)
    interrupted = 0
    for attempt in range(kills):
        process = migrate("core", server.to(database))
        if attempt % 2:
            await wait_for(connection, "select count(*) >= $1 from migration", process, dice.randrange(1, len(CORE)))
        else:
            # Two advisory locks are held while a step's transaction is open.
            await wait_for(connection, STEP_RUNS, process)
        await asyncio.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.communicate)
        await alone(connection)
        ran = await rows(connection, "core")
        interrupted += len(ran) < len(CORE)
        assert changes(states[len(ran)], await snapshot(connection)) == {}
        result = await run_forwards("core")
        assert result.success, result.message
        assert changes(states[-1], await snapshot(connection)) == {}
        await run_backwards("core", "all", auto_agree=True)
    assert interrupted > kills // 2


async def test_a_killed_index_build_is_finished_by_the_next_run(project, connection, server, database):  # noqa: F811
    project.declare(table("Box", code=Varchar(), size=Integer(default=None, null=True)))
    await project.new()
    await project.up()
    await connection.execute("insert into box (code, size) select n::text, n from generate_series(1, 1000) as n")
    big = Index("box_size", columns=("size",), concurrently=True)
    project.declare(table("Box", [big], code=Varchar(), size=Integer(default=None, null=True)))
    await project.new()
    # A writer that does not end holds the build up.
    other = await asyncpg.connect(**server.to(database))
    holding = other.transaction()
    await holding.start()
    await other.execute("update box set size = 0 where code = '1'")
    process = migrate("toy", server.to(database), project.folder)
    invalid = "select exists (select from pg_index where indexrelid = to_regclass('box_size') and not indisvalid)"
    assert await wait_for(connection, invalid, process)
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    # The backend itself waits for the writer, and notices only then that nobody listens.
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'create index concurrently%'"
    )
    assert len(await rows(connection)) == 1  # a step that is nothing but a build is recorded when it is built
    assert await connection.fetchval(invalid)
    await holding.rollback()
    await other.close()
    await project.up()
    assert len(await rows(connection)) == 2
    assert await connection.fetchval("select indisvalid from pg_index where indexrelid = 'box_size'::regclass")
    assert await project.drift(connection) == []


async def test_a_step_with_more_than_a_build_is_finished_too(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar(), size=Integer(default=None, null=True)))
    await project.new()
    await project.up()
    await connection.execute("insert into box (code, size) select n::text, n from generate_series(1, 10) as n")
    declared = [Index("box_size", columns=("size",), concurrently=True), Check("box_sized", condition="size > 0")]
    project.declare(table("Box", declared, code=Varchar(), size=Integer(default=None, null=True)))
    await project.new()
    monkey = pytest.MonkeyPatch()

    async def killed(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkey.setattr(run, "unfinished", killed)
    with pytest.raises(KeyboardInterrupt):
        await project.forwards()
    monkey.undo()
    assert len(await rows(connection)) == 2
    assert {d.name for d in await project.drift(connection)} == {"box_sized on public.box", "public.box_size"}
    await project.up()
    assert await project.drift(connection) == []


# -- preview -----------------------------------------------------------------------------------------------------------


def psql(server, database: str, script: str) -> str:  # noqa: F811
    done = subprocess.run(
        [server.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        input=script, capture_output=True, text=True, env={**os.environ, **server.environ(database)}, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


async def test_psql_runs_what_preview_prints(server, database, connection, capsys):  # noqa: F811
    if server.name == "configured":
        pytest.skip("psql is not handed over")
    empty = await snapshot(connection)
    capsys.readouterr()
    await run_forwards("core", preview=True)
    up = capsys.readouterr().out
    assert changes(empty, await snapshot(connection)) == {}  # printing changes nothing
    assert await connection.fetchval("select to_regclass('migration')") is None
    psql(server, database, up)
    assert len(await rows(connection, "core")) == len(CORE)
    assert await drift(connection, core_app.APP_CONFIG.table_classes, shared_objects("core")) == []
    result = await run_forwards("core")
    assert result.message == "🏁 No migrations need to be run"
    capsys.readouterr()
    await run_backwards("core", "all", auto_agree=True, preview=True)
    psql(server, database, capsys.readouterr().out)
    assert changes(empty, await snapshot(connection)) == {}


# -- unsafe steps ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def filled(project, connection):  # noqa: F811
    project.declare(table("Box", code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await project.new()
    await project.up()
    await connection.execute("insert into box (code, size) values ('a', 1)")
    return project


@pytest.fixture
async def with_domain(filled, connection):  # noqa: F811
    await connection.execute(
        "create domain short as text check (length(value) < 9);"
        "create schema charthold; create domain charthold.envelope as bytea check (octet_length(value) > 9);"
        "create table sum (amount numeric(10,2), seen timestamptz(3), at timestamp(3), net cidr, flags varbit(10),"
        "    n integer, label text, word short, sealed charthold.envelope);"
        "insert into sum (amount, word, sealed) values (1, 'a', '0123456789'); create index sum_by_n on sum (n);"
        "create materialized view total as select 1 as one"
    )


STATEMENTS: dict[str, str | None] = {
    "alter table box add column a uuid default gen_random_uuid()": "volatile_default",
    "alter table box add column a timestamptz default clock_timestamp()": "volatile_default",
    "alter table box add column a serial": "volatile_default",
    "alter table box add column a timestamptz default now() + random() * interval '1 day'": "volatile_default",
    "alter table box add column a timestamptz default now()": None,
    "alter table box add column a integer not null default 3": None,
    "alter table box add column a short": "rewrite",
    "alter table box add column a integer generated always as (size + 1) stored": "rewrite",
    "alter table box add column a integer references box (id)": "unchecked_constraint",
    "alter table box add column a integer unique": "blocking_index",
    "alter table box alter column size type bigint": "type_change",
    "alter table box alter column code type varchar(10)": "type_change",
    "alter table box alter column code type varchar(40)": None,
    "alter table box alter column code type text": None,
    "alter table box alter column size set not null": "not_null",
    "alter table box alter column code set not null": None,  # it is already
    "create index i on box (size)": "blocking_index",
    "create unique index i on box (size)": "blocking_index",
    "alter table box add constraint c unique (size)": "blocking_index",
    "alter table box add constraint c primary key (size)": "blocking_index",
    "alter table box add constraint c check (size > 0)": "unchecked_constraint",
    "alter table box add constraint c check (size > 0) not valid": None,
    "alter table box add constraint c foreign key (size) references box (id)": "unchecked_constraint",
    "alter table box add constraint c foreign key (size) references box (id) not valid": None,
    "alter table box set unlogged": "rewrite",
    "cluster box using box_pkey": "rewrite",
    "alter table box rename to crate; create index i on crate (size)": "blocking_index",
    "create table crate (a integer); create index i on crate (a)": None,
    "comment on table box is 'x'": None,
    "alter table box drop column size": None,
    "alter table box alter column code type text using upper(code)": "type_change",
    "alter table box alter column code type text using code::text": None,
    'alter table box alter column code type text collate "C"': "type_change",
    "alter table sum alter column amount type numeric(12,2)": None,
    "alter table sum alter column amount type numeric": None,
    "alter table sum alter column amount type numeric(12,3)": "type_change",
    "alter table sum alter column amount type numeric(9,2)": "type_change",
    "alter table sum alter column seen type timestamptz": None,
    "alter table sum alter column seen type timestamptz(6)": None,
    "alter table sum alter column seen type timestamptz(1)": "type_change",
    "alter table sum alter column at type timestamp(6)": None,
    "alter table sum alter column at type timestamptz": "type_change",
    "alter table sum alter column flags type bit varying(20)": None,
    "alter table sum alter column net type inet": None,
    "alter table sum alter column n type int4": None,
    "alter table sum alter column n type bigint": "type_change",
    "alter table sum alter column label type varchar": None,
    "alter table sum alter column label type varchar(20)": "type_change",
    "reindex table sum": "reindex",
    "reindex index sum_by_n": "reindex",
    "reindex index concurrently sum_by_n": None,
    "refresh materialized view total": "refresh",
    "alter domain short set not null": "domain_check",
    "drop table sum": "drop_populated",
    "drop table public.sum, nowhere": "drop_populated",
    "truncate sum": "drop_populated",
    "truncate nowhere, sum cascade": "drop_populated",
    "alter table sum drop column sealed": "sealed_drop",
    "alter table sum drop column if exists sealed cascade, drop column n": "sealed_drop",
    "alter table sum drop column n": None,
    "alter table sum rename column sealed to closed": "sealed_rename",
    "alter table sum rename column n to m": None,
    "alter table sum rename to total_2": "sealed_rename",
    "alter table box rename to crate": None,
    "alter table sum alter column sealed type bytea": "sealed_type",
    "alter table sum alter column label type charthold.envelope using null": "sealed_type",
    "alter table sum add column more charthold.envelope": None,  # a small table is rewritten in no time
    "alter table box frobnicate": "unread",
    "create table box_2 (like box); alter table box_2 alter column size type bigint": None,
}


async def test_unsafe_statements_are_named_on_tables_with_rows(with_domain, connection):
    named = {statement: await findings(connection, [statement]) for statement in STATEMENTS}
    assert {statement: [f.kind for f in found] for statement, found in named.items()} == {
        statement: [kind] if kind else [] for statement, kind in STATEMENTS.items()
    }
    for finding in chain.from_iterable(named.values()):
        assert finding.kind in KINDS
        assert "Safe form:" in str(finding)


async def test_a_default_of_a_function_that_is_not_there_yet_may_be_anything(with_domain, connection):
    [finding] = await findings(connection, ["alter table box add column a text default made_by_this_step()"])
    assert finding.kind == "volatile_default"


async def test_every_kind_that_is_named_really_rewrites_or_scans(with_domain, connection):
    """The claims of this list about rewriting, held against the server's own file numbers."""
    tables = await connection.fetchval("select array_agg(oid) from pg_class where relname in ('box', 'sum')")
    for statement, kind in STATEMENTS.items():
        if ";" in statement or kind in {"unread", "drop_populated"} or statement.startswith(("cluster", "reindex")):
            continue
        transaction = connection.transaction()
        await transaction.start()
        file = "select array_agg(pg_relation_filenode(oid)) from unnest($1::oid[]) as oid"
        before = await connection.fetchval(file, tables)
        try:
            await connection.execute(statement.replace("primary key (size)", "unique (size)"))
            rewritten = before != await connection.fetchval(file, tables)
        finally:
            await transaction.rollback()
        if rewritten and "more charthold.envelope" not in statement:
            assert kind in {"volatile_default", "type_change", "rewrite", "sealed_type"}, statement
        elif kind == "rewrite" or (kind == "type_change" and "bigint" in statement):
            raise AssertionError(f"not rewritten: {statement}")


async def test_the_same_statements_are_welcome_on_an_empty_table(with_domain, connection):
    await connection.execute("truncate box, sum; refresh materialized view total with no data")
    for statement, kind in STATEMENTS.items():
        assert kind == "unread" or await findings(connection, [statement]) == []


async def test_an_encrypted_column_is_added_where_that_takes_no_time(with_domain, connection, monkeypatch):
    added = "alter table sum add column more charthold.envelope"
    assert await findings(connection, [added]) == []
    monkeypatch.setattr("core.schema.unsafe.RATE", 1_000)
    [finding] = await findings(connection, [added])
    assert finding.kind == "sealed_column"
    assert f"some {finding.seconds} seconds" in str(finding)


async def test_a_preview_says_what_would_stop(filled, connection, capsys):
    filled.write("2100", "manager.add_raw_backwards(print)\nmanager.add_statement(name='wide', after_tables=True,"
        " forwards='alter table box alter column size type bigint', irreversible='wide')")  # fmt: skip
    await filled.forwards(preview=True)
    assert "\n-- Unsafe: type_change on box" in capsys.readouterr().out


# -- what is lost ------------------------------------------------------------------------------------------------------


async def test_tables_with_rows_go_backwards_only_when_somebody_says_so(filled, connection, monkeypatch, capsys):
    filled.write("2100", "manager.add_table(class_name='Crate', tablename='crate')")
    await filled.up()
    await connection.execute("analyze box")
    result = await filled.backwards("all")
    assert not result.success
    assert "CHARTHOLD_ALLOW_UNSAFE=drop_populated" in result.message
    assert "  box: about " in capsys.readouterr().err
    assert len(await rows(connection)) == 2  # the empty table of the last step is there as well
    database = await connection.fetchval("select current_database()")
    for typed, success in ((f"{database}s", False), (database, True)):
        monkeypatch.setattr("core.schema.loss.typed", lambda _, typed=typed: typed)
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr(runner, "agreed", lambda _: True)
        result = await BackwardsMigrationManager(app_name="toy", migration_id="all").run()
        assert result.success is success
    assert await rows(connection) == []


async def test_a_setting_lets_tables_with_rows_go(filled, losing):
    await filled.down()


async def test_a_step_forwards_that_drops_rows_stops_too(filled, connection):
    filled.declare()
    await filled.new()
    await connection.execute("analyze box")
    result = await filled.forwards()
    assert "drop_populated on box: what the rows hold is gone for good, about 1 row" in result.message


@pytest.mark.parametrize(
    "other",
    [
        "create table mine (box integer references box (id))",
        "create view mine as select * from box",
        "create table mine (a integer); create trigger t before insert on mine for each row execute function stamp()",
    ],
)
async def test_nothing_goes_backwards_while_something_else_needs_it(project, connection, other):  # noqa: F811
    stamp = Function("public.stamp", source="create function public.stamp() returns trigger language plpgsql as"
        " 'begin return new; end'")  # fmt: skip
    project.declare(table("Box", code=Varchar()), shared=[stamp])
    await project.new()
    await project.up()
    project.declare(table("Box", code=Varchar()), table("Crate", note=Text()), shared=[stamp])
    await project.new()
    await project.up()
    await connection.execute(other)
    result = await project.backwards("all")
    assert result.message.startswith("mine would be left behind")
    assert len(await rows(connection)) == 2


async def test_a_preview_of_faking_writes_nothing(project, connection, capsys):  # noqa: F811
    project.declare(table("Box", code=Varchar()))
    await project.new()
    await project.up()
    project.declare(table("Box", code=Varchar(), size=Integer()))
    await project.new()
    capsys.readouterr()
    await project.forwards(fake=True, preview=True)
    assert "insert into public.migration" in capsys.readouterr().out
    assert len(await rows(connection)) == 1


async def test_a_running_application_goes_on_writing_when_a_column_has_another_type(
    project, connection, server, database, monkeypatch
):  # noqa: F811
    keep = Function(
        "public.keep",
        source="create function public.keep() returns trigger language plpgsql as $$ begin"
        " insert into kept select new.size, new.code; return null; end $$",
    )
    trigger = Trigger("keep", timing="after", events=("insert",), function="public.keep")

    def box(size: Column) -> type[Table]:
        return table("Box", [trigger], code=Varchar(), size=size)

    project.declare(box(Integer()), shared=[keep])
    await project.new()
    await project.up()
    await connection.execute("create table kept (size bigint, code text)")
    session = await asyncpg.connect(**server.to(database))
    try:
        await session.execute("insert into box (code, size) values ('a', 1)")
        project.declare(box(BigInt()), shared=[keep])
        await project.new()
        allowed = Settings(allow_unsafe=frozenset({"type_change"}))
        monkeypatch.setattr("core.schema.unsafe.settings", lambda: allowed)
        await project.up()
        await session.execute("insert into box (code, size) values ('b', 2)")
        await project.down()
        await session.execute("insert into box (code, size) values ('c', 3)")
    finally:
        await session.close()
    assert await connection.fetchval("select count(*) from kept") == 3


async def test_a_check_that_says_so_makes_not_null_safe(filled, connection):
    await connection.execute("alter table box add constraint c check (size is not null)")
    assert await findings(connection, ["alter table box alter column size set not null"]) == []


async def test_a_domain_that_columns_use_is_looked_after(with_domain, connection):
    statement = "alter domain short add constraint more check (value <> '')"
    assert [(f.kind, f.table) for f in await findings(connection, [statement])] == [("domain_check", "public.sum")]
    assert await findings(connection, [f"{statement} not valid"]) == []


async def test_an_unsafe_step_stops_and_a_setting_lets_it_pass(filled, connection, monkeypatch):
    index = Index("box_size", columns=("size",), unique=True)
    filled.declare(table("Box", [index], code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await filled.new()
    result = await filled.forwards()
    assert not result.success
    assert "blocking_index on box" in result.message
    assert "concurrently=True" in result.message
    assert "CHARTHOLD_ALLOW_UNSAFE=blocking_index" in result.message
    assert len(await rows(connection)) == 1
    allowed = Settings(allow_unsafe=frozenset({"blocking_index"}))
    monkeypatch.setattr("core.schema.unsafe.settings", lambda: allowed)
    await filled.up()
    assert await filled.drift(connection) == []


def test_a_kind_of_unsafe_step_that_does_not_exist_is_refused():
    assert sorted(UNSAFE) == sorted(KINDS)
    told = Settings.from_environ({"CHARTHOLD_ALLOW_UNSAFE": "rewrite, type_change"})
    assert told.allow_unsafe == {"rewrite", "type_change"}
    with pytest.raises(ConfigurationError, match="Did you mean rewrite"):
        Settings.from_environ({"CHARTHOLD_ALLOW_UNSAFE": "rewrites"})


async def test_checks_and_foreign_keys_are_added_the_safe_way(filled, connection, capsys):
    declared = [
        Check("box_sized", condition="size > 0"),
        References("box_self", columns=("size",), to_table="box", to_columns=("id",)),
    ]
    filled.declare(table("Box", declared, code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await filled.new()
    capsys.readouterr()
    await filled.forwards(preview=True)
    printed = capsys.readouterr().out
    assert printed.count("not valid;") == 2
    assert printed.index("commit;") < printed.index("validate constraint")
    await filled.up()
    assert await filled.drift(connection) == []


async def test_rows_that_break_a_new_check_leave_it_unfinished_and_say_so(filled, connection):
    columns = {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    filled.declare(table("Box", [Check("box_big", condition="size > 9")], **columns))
    await filled.new()
    result = await filled.forwards()
    assert not result.success
    assert "Not finished" in result.message
    with pytest.raises(asyncpg.CheckViolationError):  # new rows are bound already
        await connection.execute("insert into box (code, size) values ('b', 2)")
    await connection.execute("update box set size = 10")
    await filled.up()
    assert await filled.drift(connection) == []


async def test_a_constraint_that_rows_violate_stops_no_step_that_mends_or_drops_it(filled, connection):
    columns = {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    filled.declare(table("Box", [Check("box_big", condition="size > 9")], **columns))
    await filled.new()
    assert not (await filled.forwards()).success
    filled.write("2200", "manager.add_statement(name='note', after_tables=True, forwards='create table note ()',"
        " backwards='drop table note')")  # fmt: skip
    result = await filled.forwards()
    assert "Not finished" in result.message
    assert await connection.fetchval("select to_regclass('note')") == "note"  # the step ran all the same
    filled.write("2201", "manager.add_statement(name='mend', after_tables=True, forwards='update box set size = 10',"
        " irreversible='they were wrong')")  # fmt: skip
    await filled.up()
    assert await connection.fetchval("select convalidated from pg_constraint where conname = 'box_big'")


async def test_a_constraint_that_is_to_go_is_not_finished_first(filled, connection, capsys):
    columns = {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    filled.declare(table("Box", [Check("box_big", condition="size > 9")], **columns))
    await filled.new()
    assert not (await filled.forwards()).success
    filled.declare(table("Box", **columns))
    await filled.new()
    capsys.readouterr()
    await filled.up()
    assert "Finishing" not in capsys.readouterr().out


async def test_a_constraint_of_a_busy_table_is_validated_when_it_is_free(
    filled, connection, server, database, impatient
):
    declared = [References("box_self", columns=("size",), to_table="box", to_columns=("id",))]
    columns = {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    await connection.execute("update box set size = null; alter table box enable row level security")
    await connection.execute("alter table box force row level security")
    filled.declare(table("Box", [*declared, RowSecurity()], **columns))
    await filled.new()
    other = await asyncpg.connect(**server.to(database))
    holding = other.transaction()

    async def hold(_step: object) -> None:  # a long report begins when the step has committed
        await transact(_step)
        await holding.start()
        await other.execute("select * from box")

    transact = run.transact
    run.transact = hold
    try:
        running = asyncio.create_task(filled.forwards())
        await asyncio.sleep(0.5)
        # Whoever comes now waits for a moment, and not for the report's end.
        assert not running.done()
        await asyncio.wait_for(connection.fetchval("select count(*) from box"), timeout=2)
        await holding.rollback()
        assert (await running).success
    finally:
        run.transact = transact
        await other.close()
    assert await connection.fetchval("select convalidated from pg_constraint where conname = 'box_self'")


async def test_the_safe_form_of_an_index_is_built_outside_of_the_transaction(filled, connection):
    index = Index("box_size", columns=("size",), concurrently=True)
    filled.declare(table("Box", [index], code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await filled.new()
    await filled.up()
    assert await filled.drift(connection) == []
    await filled.down()
    await filled.up()
    assert await filled.drift(connection) == []


async def test_a_column_that_no_row_has_a_value_for_says_how_it_comes(filled, connection):
    filled.declare(
        table(
            "Box", code=Varchar(length=20, default=None), size=Integer(default=None, null=True), n=Integer(default=None)
        )
    )
    await filled.new()
    result = await filled.forwards()
    assert not result.success
    assert "Rows are there that have no value for it: declare it with null=True" in result.message


async def test_an_index_that_is_added_to_a_table_is_built_beside_its_writers(filled, connection):
    """A reference and a blind index imply theirs, so nobody could declare it so. A unique one may fail: that is asked."""
    index = Index("box_size", columns=("size",))
    filled.declare(table("Box", [index], code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await filled.new()
    await filled.up()
    assert await filled.drift(connection) == []
    await filled.new()
    assert len(await rows(connection)) == 2


async def test_a_waiting_migrator_does_not_hold_an_index_build_up(filled, connection):
    """CREATE INDEX CONCURRENTLY waits for every snapshot, so nobody may wait for the lock inside of a statement."""
    index = Index("box_size", columns=("size",), concurrently=True)
    filled.declare(table("Box", [index], code=Varchar(length=20, default=None), size=Integer(default=None, null=True)))
    await filled.new()
    results = await asyncio.wait_for(asyncio.gather(*(filled.forwards() for _ in range(3))), timeout=20)
    assert all(result.success for result in results)


async def test_a_step_that_adds_a_blind_index_says_what_older_rows_need(filled, connection, capsys):
    filled.write(
        "2100",
        """
from core.columns import BlindIndex
manager.add_column(table_class_name="Box", tablename="box", column_name="code_exact", column_class=BlindIndex,
    params={"of": ["code"], "kind": "exact"})
""",
    )
    capsys.readouterr()
    await filled.up()
    assert "Searches miss older rows of box until you run: piccolo core reindex" in capsys.readouterr().out


async def test_a_uuid_default_of_piccolo_is_named(filled, connection):
    columns = {"code": Varchar(length=20, default=None), "size": Integer(default=None, null=True)}
    filled.declare(table("Box", key=UUID(default=UUID4()), **columns))
    await filled.new()
    result = await filled.forwards()
    assert "volatile_default on box" in result.message


async def test_a_function_is_made_before_the_tables_that_it_names(project, connection):  # noqa: F811
    count = Function(
        "public.boxes",
        source="create function public.boxes() returns bigint language sql as 'select count(*) from box'",
    )
    typed = Function(
        "public.code_of",
        signature="(box)",
        source="create function public.code_of(b box) returns text language sql as 'select b.code'",
        after_tables=True,
    )
    project.declare(table("Box", code=Varchar()), shared=[typed, count])
    empty = await catalog(connection)
    await project.new()
    await project.up()
    assert await connection.fetchval("select boxes()") == 0
    assert await project.drift(connection) == []
    await project.down()
    assert changes(empty, await catalog(connection)) == {}


def test_the_step_lock_is_not_the_session_lock():
    assert lock.STEP_LOCK.count("migration step of") == 1
    assert "migrations of" in lock.SESSION_LOCK
    assert toy.APP == "toy"


async def test_one_login_for_everything_may_set_role_and_inherits_nothing(server, database, connection, monkeypatch):  # noqa: F811
    if server.name == "configured":
        pytest.skip("its roles are not ours to make")
    monkeypatch.setattr("core.schema.role.application_login", lambda: None)
    await connection.execute("drop role if exists plain_migrator")
    try:
        await connection.execute("create role plain_migrator login createrole")
        await connection.execute(f"grant create on database {database} to plain_migrator")
    except asyncpg.InsufficientPrivilegeError:
        pytest.skip("this owner makes no such role")
    statements = Role("app_toy").create()
    if not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        await connection.execute("grant plain_migrator to current_user")
    await connection.execute("set role plain_migrator")
    for statement in statements * 2:  # the second time finds everything there
        await connection.execute(statement)
    assert await connection.fetchval("select pg_has_role('plain_migrator', 'app_toy', 'member')")
    await connection.execute("set role app_toy")
    await connection.execute("reset role")
    version = connection.get_server_version().major
    assert await connection.fetchval("select pg_has_role('plain_migrator', 'app_toy', 'usage')") == (version < 16)
    await connection.execute("set role plain_migrator")
    for statement in Role("app_toy").drop():
        await connection.execute(statement)
    await connection.execute("reset role")
    assert await connection.fetchval("select count(*) from pg_roles where rolname = 'app_toy'") == 0
    await connection.execute(f"revoke create on database {database} from plain_migrator; drop role plain_migrator")
