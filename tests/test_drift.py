"""Whatever is changed by hand is found, and the SQL that comes with it mends it."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import asyncpg
import pytest
from piccolo.columns import Integer

from core.commands.doctor import doctor
from core.errors import MigrationError
from core.schema import (
    Check,
    Comment,
    Domain,
    Function,
    Namespace,
    Partitions,
    Role,
    RowSecurity,
    Trigger,
    register_shared,
)
from core.schema.drift import Difference
from tests.schema_app.fixtures import connection, database, made_in, project, server  # noqa: F401
from tests.schema_app.project import Project, table
from tests.schema_app.server import Server, forget_roles, work_on
from tests.test_autogenerate import BareId, item, objects, shared, shelf


class Copies:
    """Databases in which the step ran. To make one takes longer than most tests, so who leaves it as it was gives it back."""

    def __init__(self, server: Server, template: str) -> None:  # noqa: F811
        self.server, self.template = server, template
        self.stack = AsyncExitStack()
        self.unused: list[str] = []

    async def take(self) -> str:
        if self.unused:
            return self.unused.pop()
        return await self.stack.enter_async_context(self.server.database(template=self.template))

    def give_back(self, name: str) -> None:
        self.unused.append(name)


@pytest.fixture(scope="module")
async def copies(server, tmp_path_factory):  # noqa: F811
    await forget_roles(server)
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = made_in(tmp_path_factory.mktemp("toy"), monkeypatch)
        async with server.database() as name:
            work_on(server, name, monkeypatch)
            await declared(made).new()
            await made.up()
            connection = await asyncpg.connect(**server.to(name))  # noqa: F811
            assert await made.drift(connection) == []
            await connection.close()
            copies = Copies(server, name)
            async with copies.stack:
                yield copies


@pytest.fixture
async def copy(server, copies, monkeypatch):  # noqa: F811
    name = await copies.take()
    work_on(server, name, monkeypatch)
    return name


@pytest.fixture
async def by_hand(server, copy):  # noqa: F811
    """The owner's connection to the copy."""
    connection = await asyncpg.connect(**server.to(copy))
    yield connection
    await connection.close()


@pytest.fixture
def migrated(project, copy):  # noqa: F811
    return declared(project)


def declared(project: Project) -> Project:  # noqa: F811
    return project.declare(item(*objects()), shelf(), shared=shared())


# what was done by hand -> the kinds and names that must be told
BY_HAND: dict[str, set[tuple[str, str, str]]] = {
    # dropped
    "drop policy sized on item": {("policy", "sized on public.item", "missing")},
    "drop trigger stamp on item": {("trigger", "stamp on public.item", "missing")},
    "drop index item_big": {("index", "public.item_big", "missing")},
    "alter table item drop constraint item_size_positive": {
        ("constraint", "item_size_positive on public.item", "missing")
    },
    "alter table item drop constraint item_code_key": {("constraint", "item_code_key on public.item", "missing")},
    "alter table item drop constraint item_shelf_fkey": {("constraint", "item_shelf_fkey on public.item", "missing")},
    "alter table item drop constraint item_pkey": {("constraint", "item_pkey on public.item", "missing")},
    "alter table item disable row level security": {("row_security", "public.item", "changed")},
    "alter table item no force row level security": {("row_security", "public.item", "changed")},
    "revoke insert on item from app_toy": {("grant", "public.item insert to app_toy", "missing")},
    "revoke update (size) on item from app_toy": {("column_grant", "public.item.size update to app_toy", "missing")},
    "revoke usage on schema toy from app_toy": {("schema_grant", "toy usage to app_toy", "missing")},
    "revoke execute on function toy.stamp() from app_toy": {("function_grant", "toy.stamp() to app_toy", "missing")},
    "comment on table item is null": {("comment", "table public.item", "missing")},
    "comment on column item.size is null": {("comment", "table column public.item.size", "missing")},
    "alter table item reset (fillfactor)": {("storage_parameters", "public.item fillfactor", "missing")},
    "alter table item drop column note": {
        ("column", "public.item.note", "missing"),
        ("index", "public.item_big", "missing"),
    },
    "drop table item": {("table", "public.item", "missing")},
    "drop domain toy.code": {("domain", "toy.code", "missing"), ("type_grant", "toy.code to owner", "missing"),
                             ("type_grant", "toy.code to public", "missing")},
    # changed
    "alter policy sized on item using (true)": {("policy", "sized on public.item", "changed")},
    "alter policy sized on item to public": {("policy", "sized on public.item", "changed")},
    "alter table item disable trigger stamp": {("trigger", "stamp on public.item", "changed")},
    "create or replace trigger stamp after insert on item for each row execute function toy.stamp()": {
        ("trigger", "stamp on public.item", "changed")
    },
    "drop index item_big; create index item_big on item (code)": {("index", "public.item_big", "changed")},
    "alter table item drop constraint item_size_positive, add constraint item_size_positive check (size > 1)": {
        ("constraint", "item_size_positive on public.item", "changed")
    },
    "alter table item drop constraint item_size_positive, "
    "add constraint item_size_positive check (size > 0) not valid": {
        ("constraint", "item_size_positive on public.item", "changed")
    },
    "create or replace function toy.stamp() returns trigger language plpgsql as 'begin return null; end'": {
        ("function", "toy.stamp()", "changed")
    },
    "alter function toy.stamp() security definer": {("function", "toy.stamp()", "changed")},
    "alter function toy.stamp() set search_path = toy": {("function", "toy.stamp()", "changed")},
    "alter domain toy.code drop constraint code_check": {("domain", "toy.code", "changed")},
    "alter domain toy.code set default 'a'": {("domain", "toy.code", "changed")},
    "alter table item set (fillfactor = 50)": {("storage_parameters", "public.item fillfactor", "changed")},
    "comment on table item is 'other'": {("comment", "table public.item", "changed")},
    "alter table item alter column note set default 'x'": {("column", "public.item.note", "changed")},
    "alter table item alter column note drop not null": {("column", "public.item.note", "changed")},
    "alter table item alter column note type varchar(50)": {
        ("column", "public.item.note", "changed"),
    },
    "alter table item alter column note set storage external": {("column", "public.item.note", "changed")},
    "grant insert on item to app_toy with grant option": {("grant", "public.item insert to app_toy", "changed")},
    "alter role app_toy createdb": {("role", "app_toy", "changed")},
    # added
    "create policy open on item for select using (true)": {("policy", "open on public.item", "unexpected")},
    "create trigger more after insert on item for each row execute function toy.stamp()": {
        ("trigger", "more on public.item", "unexpected")
    },
    "create index more on item (size)": {("index", "public.more", "unexpected")},
    "alter table item add constraint more check (size < 9)": {("constraint", "more on public.item", "unexpected")},
    "alter table item add constraint more unique (note)": {("constraint", "more on public.item", "unexpected")},
    "alter table item add column more integer": {("column", "public.item.more", "unexpected")},
    "create table more (id integer)": {("table", "public.more", "unexpected")},
    "create view more as select 1 as one": {
        ("view", "public.more", "unexpected"), ("column", "public.more.one", "unexpected"),
        *(("grant", f"public.more {p} to owner", "unexpected")
          for p in ("delete", "insert", "references", "select", "trigger", "truncate", "update")),
    },
    "create sequence more": {
        ("sequence", "public.more", "unexpected"),
        *(("grant", f"sequence public.more {p} to owner", "unexpected") for p in ("select", "update", "usage")),
    },
    "create function more() returns int language sql as 'select 1'": {
        ("function", "public.more()", "unexpected"),
        ("function_grant", "public.more() to owner", "unexpected"),
        ("function_grant", "public.more() to public", "unexpected"),
    },
    "create type more as enum ('a')": {
        ("type", "public.more", "unexpected"),
        ("type_grant", "public.more to owner", "unexpected"),
        ("type_grant", "public.more to public", "unexpected"),
    },
    "create statistics more on code, size from item": {("statistics", "public.more", "unexpected")},
    "create rule more as on delete to shelf do instead nothing": {("rule", "more on public.shelf", "unexpected")},
    "alter table shelf enable row level security": {("row_security", "public.shelf", "unexpected")},
    "grant select on shelf to public": {("grant", "public.shelf select to public", "unexpected")},
    "grant truncate on item to app_toy": {("grant", "public.item truncate to app_toy", "unexpected")},
    "grant select (size) on item to public": {("column_grant", "public.item.size select to public", "unexpected")},
    "grant execute on function toy.stamp() to public": {("function_grant", "toy.stamp() to public", "unexpected")},
    "grant create on schema toy to public": {("schema_grant", "toy create to public", "unexpected")},
    "alter default privileges in schema toy grant select on tables to app_toy": {
        ("default_privileges", "toy r select to app_toy", "unexpected")
    },
    "alter default privileges grant select on tables to app_toy": {
        ("default_privileges", "r select to app_toy", "unexpected")
    },
    "comment on policy sized on item is 'x'": {("comment", "policy sized on public.item", "unexpected")},
    "comment on function toy.stamp() is 'x'": {("comment", "function toy.stamp()", "unexpected")},
    "grant pg_monitor to app_toy": {("membership", "app_toy in pg_monitor", "unexpected")},
    "revoke select on item from current_user": {("grant", "public.item select to owner", "missing")},
}  # fmt: skip

# What only a person can decide: rows would be lost, or the definition is gone.
BY_A_PERSON = ("add column more", "create table more")


@pytest.mark.parametrize("statement", list(BY_HAND))
async def test_what_was_done_by_hand_is_found_and_mended(migrated, by_hand, statement, copies, copy):
    if "pg_monitor" in statement and not await by_hand.fetchval(
        "select rolsuper from pg_roles where rolname = current_user"
    ):
        pytest.skip("only a superuser may")
    await by_hand.execute(statement)
    found = await migrated.drift(by_hand)
    told = {(d.kind, d.name, d.problem) for d in found}
    if "note type varchar" in statement:
        told = {t for t in told if t[0] == "column"}
    if "create view" in statement:
        told -= {("grant", "public.more maintain to owner", "unexpected")}  # since version 17
    assert told == BY_HAND[statement]
    if any(words in statement for words in BY_A_PERSON):
        assert all(difference.mend == "" for difference in found)
        return
    for difference in sorted(found, key=mending_order):
        if difference.mend and not gone_with_another(difference, found):
            await by_hand.execute(difference.mend)
    assert await migrated.drift(by_hand) == []
    copies.give_back(copy)


def mending_order(difference: Difference) -> int:
    order = ["role", "domain", "table", "column", "constraint", "index"]
    return order.index(difference.kind) if difference.kind in order else len(order)


def gone_with_another(difference: Difference, found: list[Difference]) -> bool:
    """Grants of what is dropped go with it."""
    whole = {d.name for d in found if d.kind in {"view", "sequence", "function", "type"} and d.problem == "unexpected"}
    grants = {"grant", "function_grant", "type_grant", "column"}
    return difference.kind in grants and any(name in difference.name for name in whole)


async def test_looking_for_drift_changes_nothing(migrated, by_hand):
    from tests.schema_app.project import catalog, changes

    before = await catalog(by_hand)
    await migrated.drift(by_hand)
    assert changes(before, await catalog(by_hand)) == {}
    assert await by_hand.fetchval("select count(*) from pg_namespace where nspname like 'live %'") == 0


async def test_looking_for_drift_waits_for_no_reader_and_no_writer(migrated, by_hand, server, copy):  # noqa: F811
    other = await asyncpg.connect(**server.to(copy))
    transaction = other.transaction()
    await transaction.start()
    await other.execute("lock table item in row exclusive mode")
    assert await migrated.drift(by_hand) == []
    await transaction.rollback()
    await other.close()


async def test_drift_is_found_when_the_declarations_moved_on(migrated, by_hand):
    migrated.declare(item(*objects(comment=Comment("New."))), shelf(), shared=shared())
    [difference] = await migrated.drift(by_hand)
    assert (difference.kind, difference.problem) == ("comment", "changed")
    assert difference.mend == "comment on table public.item is 'New.';"


async def test_declarations_that_do_not_build_are_told_by_the_statement_that_fails(migrated, by_hand, copies, copy):
    broken = Check("holds_nothing", condition="nowhere > 0")
    migrated.declare(item(*objects()), shelf(), table("Box", [broken]), shared=shared())
    with pytest.raises(MigrationError) as told:
        await migrated.drift(by_hand)
    assert "do not build" in str(told.value)
    assert str(told.value).endswith('at: alter table "public"."box" add constraint "holds_nothing" check (nowhere > 0)')
    assert await declared(migrated).drift(by_hand) == []
    copies.give_back(copy)


async def test_a_missing_function_and_domain_are_built_by_their_mend(project, connection):  # noqa: F811
    project.declare(shared=[])
    await project.new()
    register_shared(
        "toy",
        [
            Domain("public.code", type="text", check="length(value) < 20"),
            Function("public.one", source="create function public.one() returns int language sql as 'select 1'"),
        ],
    )
    found = await project.drift(connection)
    for difference in sorted(found, key=lambda d: d.kind):
        await connection.execute(difference.mend)
    left = await project.drift(connection)
    for difference in left:  # PUBLIC may execute what was made by hand, until it is revoked
        await connection.execute(difference.mend)
    assert await project.drift(connection) == []


class Conf:
    def __init__(self, project) -> None:
        self.project = project

    def get_app_configs(self):
        return [self.project.config]


async def test_the_doctor_exits_with_1_and_prints_json(migrated, by_hand, monkeypatch, capsys):
    monkeypatch.setattr("core.registered.Finder", lambda: Conf(migrated))
    look = doctor.__wrapped__
    capsys.readouterr()
    assert await look(only="drift", quiet=True) == 0
    assert capsys.readouterr().out == ""
    await by_hand.execute("drop policy sized on item")
    assert await look(only="drift", json=True) == 1
    [difference] = json.loads(capsys.readouterr().out)["drift"]
    assert difference["name"] == "sized on public.item"
    assert await look(only="drift") == 1
    assert "create policy sized on public.item" in capsys.readouterr().out


async def test_a_partition_that_can_be_read_around_its_parent_is_found(project, connection):  # noqa: F811
    log = table(
        "Log", [RowSecurity(), Partitions("range (at)")], id=BareId(primary_key=True, default=None), at=Integer()
    )
    project.declare(log, shared=[Role("app_toy", application=False)])
    await project.new()
    await project.up()
    await connection.execute("create table log_1 partition of log for values from (0) to (9)")
    [difference] = await project.drift(connection)
    assert (difference.kind, difference.name, difference.problem) == ("row_security", "public.log_1", "missing")
    await connection.execute(difference.mend)
    assert await project.drift(connection) == []
    await connection.execute("grant select on log_1 to app_toy")
    [difference] = await project.drift(connection)
    assert (difference.kind, difference.problem) == ("grant", "unexpected")
    await connection.execute(difference.mend)
    assert await project.drift(connection) == []


async def test_a_statements_trigger_of_a_parent_may_stand_on_a_partition_too(project, connection):  # noqa: F811
    refuse = Function("toy.refuse", source="create function toy.refuse() returns trigger language plpgsql as"
        " 'begin return null; end'")  # fmt: skip
    empty = Trigger("kept", timing="before", events=("truncate",), level="statement", function="toy.refuse")
    log = table("Log", [Partitions("range (at)"), empty], id=BareId(primary_key=True, default=None), at=Integer())
    project.declare(log, shared=[Namespace("toy"), refuse])
    await project.new()
    await project.up()
    await connection.execute(
        "create table log_1 partition of log for values from (0) to (9);"
        "create trigger kept before truncate on log_1 for each statement execute function toy.refuse()"
    )
    assert await project.drift(connection) == []
    await connection.execute(
        "create trigger swallow before truncate on log_1 for each statement execute function toy.refuse()"
    )
    assert [d.name for d in await project.drift(connection)] == ["swallow on public.log_1"]
