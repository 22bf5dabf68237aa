"""Whoever runs SQL in one scope leaves nothing in the session for the tenant who gets the connection next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from piccolo.columns.combination import WhereRaw
from piccolo.columns.readable import Readable
from piccolo.query import OrderByRaw
from piccolo.query.functions import Concat, Upper
from piccolo.querystring import QueryString
from piccolo.table import Table

from core import ConfigurationError, ProtectedQueryError, ScopeError, find_tenant, transaction
from core.engine import ChartholdEngine
from core.statements.residue import is_one_statement, leaves_nothing
from core.tables import Client, Facility, Tenant
from core.wire.session import OWNER_SESSION, SESSION
from tests.conftest import Clinic

# One SQL expression that changes the session, for wherever an expression may stand.
TRAP = "set_config('charthold.trap', 'sprung', false)"


def trap(*arguments: Any) -> QueryString:
    """The trap as a fragment; with a column in it, it looks like something that Piccolo built."""
    return QueryString(TRAP + " || {}" * len(arguments), *arguments)


async def state(db: ChartholdEngine) -> dict[str, Any]:
    """The session that the next tenant gets, and what it would find there."""
    link = await db.acquire()
    try:
        fetch = link.connection.fetch
        return {
            "backend": link.backend,
            "trap": await link.connection.fetchval("select current_setting('charthold.trap', true)") or "",
            "scope": await link.connection.fetchval("select current_setting('charthold.scope', true)") or "",
            "role": await link.connection.fetchval("select current_user"),
            "search_path": await link.connection.fetchval("select current_setting('search_path')"),
            "settings": await fetch(
                "select name, setting from pg_settings where source = 'session' and name not in ('role', 'jit')"
            ),
            "channels": await fetch("select pg_listening_channels()"),
            "cursors": await fetch("select name from pg_cursors where name <> ''"),
            "locks": await fetch("select * from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"),
            "temporary": await fetch("select relname from pg_class where relnamespace = pg_my_temp_schema()"),
            "functions": await fetch("select proname from pg_proc where pronamespace = pg_my_temp_schema()"),
            "statements": await fetch(
                "select name from pg_prepared_statements where statement ilike '%' || 'spr' || 'ung%'"
            ),
        }
    finally:
        link.dirty = False
        await db.release(link)


CLEAN: dict[str, Any] = {
    "trap": "",
    "scope": "",
    "role": "app_runtime",
    "search_path": SESSION["search_path"],
    "settings": [],
    "channels": [],
    "cursors": [],
    "locks": [],
    "temporary": [],
    "functions": [],
    "statements": [],
}


async def backend(db: ChartholdEngine) -> int:
    return (await state(db))["backend"]


RAW = {
    "a setting": "set charthold.trap = 'sprung'",
    "a setting by function": f"select {TRAP}",
    "the scope of the session": "select set_config('charthold.scope', current_setting('charthold.scope'), false)",
    "the search path": "set search_path = pg_temp, public",
    "the role": "set role none",
    "row security off": "set row_security = off",
    "a read-only session": "set default_transaction_read_only = on",
    "a short statement time-out": "set statement_timeout = '1ms'",
    "a temporary table": "create temp table client (id uuid, tenant_id uuid, first_name bytea)",
    "a temporary table kept over commits": "create temp table tenant on commit preserve rows as select 'sprung' as slug",
    "a temporary function": "create function pg_temp.set_config(text, text, boolean) returns text language sql as $$ select 'sprung' $$",
    "a temporary view": "create temp view facility as select 'sprung'::text as name",
    "a prepared statement": "prepare trap as select 'sprung'",
    "all prepared statements gone": "deallocate all",
    "a listener": "listen trap",
    "an advisory lock": "select pg_advisory_lock(4711)",
    "a cursor with hold": "declare trap cursor with hold for select 'sprung'",
    "an end of the transaction": "commit",
    "a rollback": "rollback",
    "everything discarded": "discard all",
    "a seed": "select setseed(0.5)",
    "a do block": "do $$ begin perform set_config('charthold.trap', 'sprung', false); end $$",
    "a failed statement behind a setting": f"select 1 / (length({TRAP}) - 6)",
    "a session authorization": "set session authorization default",
    "a savepoint released wrongly": "release savepoint nothing",
}


@pytest.mark.parametrize("name", RAW)
async def test_nothing_stays_of(name: str, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic) -> None:
    before = await backend(database)
    async with lakeside.as_admin():
        try:
            await Client.raw(RAW[name])
        except (asyncpg.PostgresError, ScopeError):
            pass
    after = await state(database)
    assert after.pop("backend") != before
    assert after == CLEAN
    async with hillside.as_clinician():
        assert await Facility.select(Facility.name).output(as_list=True) == ["Main street"]
        assert (await Client.objects().get(Client.id == hillside.client)).first_name == "Ana"


async def test_a_statement_under_the_drivers_name_is_not_met_again(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    async with hillside.as_clinician():
        await Facility.select(Facility.name)
    async with lakeside.as_admin():
        async with transaction():
            names = await Client.raw("select name, statement from pg_prepared_statements")
            assert names
            await Client.raw(
                "do $$ declare r record; begin for r in select name from pg_prepared_statements loop"
                " execute format('deallocate %I', r.name);"
                " execute format('prepare %I as select ''sprung''::text as name', r.name); end loop; end $$"
            )
    async with hillside.as_clinician():
        assert await Facility.select(Facility.name).output(as_list=True) == ["Main street"]


FRAGMENTS: dict[str, Callable[[], Awaitable[Any]]] = {
    "select": lambda: Client.select(trap()),
    "select, with a column": lambda: Client.select(trap(Client.status)),
    "select, in a function": lambda: Client.select(Upper(trap())),
    "select, in a function, with a column": lambda: Client.select(Concat(Client.status, trap(Client.status))),
    "select, in arithmetic": lambda: Facility.select(Facility.capacity + QueryString(f"length({TRAP})")),
    "an alias": lambda: Client.select(Client.status.as_alias(f'a", {TRAP} as "b')),
    "an alias of a fragment": lambda: Client.select(QueryString("1").as_alias(f'a", {TRAP} as "b')),
    "a readable": lambda: Facility.select(Readable(f"', {TRAP}, '%s", [Facility.name])),
    "where": lambda: Client.select(Client.id).where(WhereRaw(f"{TRAP} is not null")),
    "where, with a column": lambda: Client.select(Client.id).where(trap(Client.status) == "x"),
    "where, as the value": lambda: Client.select(Client.id).where(Client.status == trap()),
    "where, as a value with a column": lambda: Client.select(Client.id).where(Client.status == trap(Client.status)),
    "where, among values": lambda: Client.select(Client.id).where(Client.status.is_in(["active", trap()])),
    "where, deep": lambda: Client.select(Client.id).where((Client.status == "x") | ((Client.status == "y") | WhereRaw(f"{TRAP} = ''"))),
    "order": lambda: Client.select(Client.id).order_by(OrderByRaw(TRAP)),
    "order, with a column": lambda: Client.select(Client.id).order_by(trap(Client.status)),
    "group": lambda: Client.select(Client.status).group_by(Client.status).having(WhereRaw(f"{TRAP} is not null")),
    "objects": lambda: Client.objects().where(WhereRaw(f"{TRAP} is not null")),
    "count": lambda: Client.count().where(WhereRaw(f"{TRAP} is not null")),
    "exists": lambda: Client.exists().where(WhereRaw(f"{TRAP} is not null")),
    "update": lambda: Facility.update({Facility.phone: trap()}).where(Facility.name == "Main street"),
    "update, with a column": lambda: Facility.update({Facility.phone: trap(Facility.name)}).where(Facility.name == "Main street"),
    "update, where": lambda: Facility.update({Facility.phone: "1"}).where(WhereRaw(f"{TRAP} = ''")),
    "delete": lambda: Facility.delete().where(WhereRaw(f"{TRAP} = ''")),
    "insert, as a value": lambda: Facility.insert(Facility(name="Trapped", phone=trap())),
    "insert, on conflict": lambda: Facility.insert(Facility(name="Trapped too")).on_conflict(
        action="DO UPDATE", target=Facility.id, values=[(Facility.phone, trap())]
    ),
    "a sub-select": lambda: Client.select(Client.id).where(Client.facility_id.is_in(Facility.select(Facility.id).where(WhereRaw(f"{TRAP} is not null")))),
    "an advisory lock": lambda: Client.select(QueryString("pg_advisory_lock(1)::text")),
    "sql run by a function": lambda: Client.select(QueryString(f"query_to_xml('select {TRAP.replace(chr(39), chr(39) * 2)}', true, false, '')::text")),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAGMENTS)
async def test_a_connection_that_ran_a_fragment_is_not_used_again(
    name: str, database: ChartholdEngine, lakeside: Clinic
) -> None:
    before = await backend(database)
    async with lakeside.as_admin():
        try:
            await FRAGMENTS[name]()
        except (asyncpg.PostgresError, ProtectedQueryError, TypeError, ValueError):
            pass
    after = await state(database)
    # Either it never reached the database, or the connection is gone.
    assert after.pop("backend") != before or after["trap"] == ""
    assert after == CLEAN


async def test_the_traps_work_where_nobody_takes_care(database: ChartholdEngine, lakeside: Clinic) -> None:
    link = await database.acquire()
    async with lakeside.as_admin() as scope:
        await link.connection.execute("begin")
        await database.set_scope(link, scope)
        await link.connection.fetch(f"select {TRAP} from client")
        await link.connection.execute("commit")
    await database.release(link)  # not said to be dirty
    poisoned = await state(database)
    assert (poisoned["backend"], poisoned["trap"]) == (link.backend, "sprung")
    link.connection.terminate()


async def test_fragments_in_a_batch_and_in_a_transaction_cost_the_connection(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    before = await backend(database)
    async with lakeside.as_admin():
        async with await Client.select(Client.id, trap()).batch(batch_size=2) as batch:
            async for _ in batch:
                pass
        between = await state(database)
        assert between.pop("backend") != before
        assert between == CLEAN
        async with transaction():
            await Client.select(trap(Client.status))
            assert await Client.count() == 1
    assert (await state(database))["trap"] == ""


COMPILED: dict[str, Callable[[Clinic], Awaitable[Any]]] = {
    "select": lambda c: Client.select(Client.first_name, Client.facility_id.name).where(Client.status == "active").limit(5),
    "objects": lambda c: Client.objects(Client.facility_id).order_by(Client.created_at),
    "functions": lambda c: Facility.select(Upper(Facility.name), Facility.capacity + 1),
    "count": lambda c: Client.count(),
    "exists": lambda c: Client.exists().where(Client.last_name == "nguyen"),
    "insert": lambda c: Facility(name="Another").save(),
    "update": lambda c: Facility.update({Facility.capacity: Facility.capacity + 1}).where(Facility.name == "Another"),
    "update of PHI": lambda c: Client.update({Client.notes: "tea"}).where(Client.status == "active"),
    "delete": lambda c: Facility.delete().where(Facility.name == "Another"),
    "a failed statement": lambda c: Facility(name="Main street").save(),
    "a refused statement": lambda c: Tenant.delete(force=True),
    "a harmless fragment": lambda c: Client.select(QueryString("count(*)")),
    "a statement without a scope": lambda c: find_tenant("lakeside"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
async def test_a_connection_that_ran_compiled_statements_is_used_again(
    name: str, database: ChartholdEngine, lakeside: Clinic
) -> None:
    before = await backend(database)
    async with lakeside.as_admin():
        try:
            await COMPILED[name](lakeside)
        except (asyncpg.PostgresError, ScopeError):
            pass
    after = await state(database)
    assert after.pop("backend") == before
    assert after == CLEAN


class Plain(Table, tablename="pg_am", schema="pg_catalog"):
    """A table of no tenant."""


async def test_a_poisoned_connection_without_a_scope_answers_nobody_else(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    # Otherwise a login page could be told another tenant's id.
    await find_tenant("hillside")
    await Plain.raw("deallocate all")
    await Plain.raw("create temp table tenant_directory (tenant_id uuid)")
    await Plain.raw(f"select {TRAP}")
    found = await find_tenant("hillside")
    assert found is not None
    assert found.tenant_id == hillside.tenant
    after = await state(database)
    after.pop("backend")
    assert after == CLEAN


@pytest.mark.parametrize(
    "fragment",
    [
        "true) select * from r where $2::text is not null --",
        "true), s as (select 1) select * from r --",
        "true; select 1",
        "true /* ",
        "true) select * from r union all (select * from r",
    ],
)
async def test_a_fragment_cannot_end_the_statement_before_its_gate_and_its_records(
    fragment: str, database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    seen = "select count(*) from user_action_audit_log where action_type = 'read'"
    async with lakeside.as_admin():
        async with transaction():
            await Facility.count()  # the context is set from here on, so the gate would not be missed
            before = await owner.fetchval(seen)
            with pytest.raises(ProtectedQueryError, match="does not stand by itself"):
                await Client.select(Client.ssn).where(WhereRaw(fragment))
    assert await owner.fetchval(seen) == before


async def test_a_comment_at_the_end_of_a_fragment_hides_nothing(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    seen = "select count(*) from user_action_audit_log where action_type = 'read'"
    before = await owner.fetchval(seen)
    async with lakeside.as_admin():
        rows = await Client.select(Client.ssn).order_by(OrderByRaw("1 --"))
    assert await owner.fetchval(seen) == before + len(rows) > before


async def test_a_cancelled_statement_leaves_the_next_tenant_a_clean_session(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    async with lakeside.as_admin():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Client.raw("select pg_sleep(5), set_config('charthold.trap', 'sprung', false)")
    after = await state(database)
    after.pop("backend")
    assert after == CLEAN


@pytest.mark.parametrize(
    ("sql", "harmless"),
    [
        ("select count(*), upper(x), x at time zone 'utc', extract(year from y) from t", True),
        ("insert into t select * from unnest($1::uuid[])", True),
        ("with d as (delete from t returning *) select * from d", True),
        ("select charthold.record('login', null, null, null, null)", True),
        (f"select 1 where {TRAP} is null", False),
        ("select pg_catalog.pg_advisory_lock(1)", False),
        ("select public.count(*)", False),
        ('select "Count"(*)', False),
        ("select a operator(pg_temp.=) b from t", False),
        ("select * into temporary t2 from t", False),
        ("select * from lo_create(1)", False),
        ("select 1; select 2", False),
        ("set search_path = x", False),
        ("listen x", False),
        ("not sql", False),
        ("", False),
    ],
)
def test_what_a_statement_leaves_is_judged_by_its_text(sql: str, harmless: bool) -> None:
    assert leaves_nothing(sql) is harmless


def test_one_statement_is_one() -> None:
    assert is_one_statement("select 1 -- and a comment")
    assert not is_one_statement("select 1; select 2")
    assert not is_one_statement("select 1) select (2")


EVIL = {
    "search_path": "evil", "row_security": "off", "bytea_output": "escape", "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable", "timezone": "Asia/Tokyo", "intervalstyle": "sql_standard",
    "standard_conforming_strings": "off",
}  # fmt: skip
EVIL_FOR_THE_APPLICATION = EVIL | {
    "transform_null_equals": "on", "plan_cache_mode": "force_custom_plan", "synchronous_commit": "off", "jit": "on",
    "debug_print_parse": "on", "debug_print_rewritten": "on", "debug_print_plan": "on", "application_name": "evil",
}  # fmt: skip


@pytest.mark.parametrize("of_owner", [False, True])
async def test_a_logins_own_defaults_do_not_reach_the_session(
    of_owner: bool, database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """A login may change its own defaults, for ever: they must not decide what is shown or how the log is written."""
    session, evil = (
        (OWNER_SESSION, EVIL | {"quote_all_identifiers": "on"}) if of_owner else (SESSION, EVIL_FOR_THE_APPLICATION)
    )
    login = await database.connect(owner=of_owner)
    name = await login.fetchval("select session_user")
    try:
        await login.execute("set role none")
        for setting, value in evil.items():
            await login.execute(f"alter role {name} set {setting} = '{value}'")
        fresh = await database.connect(owner=of_owner)
        found = {setting: await fresh.fetchval("select current_setting($1)", setting) for setting in evil}
        await fresh.close()
        assert found == {setting: session.get(setting) for setting in evil}
        assert not {setting for setting in evil if found[setting] == evil[setting]}
    finally:
        await owner.execute(f"alter role {name} reset all")
        await login.close()


async def test_a_statement_that_somebody_prepared_under_our_name_is_not_run_for_us(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Threat: within one transaction SQL that a person wrote puts another text under the name of a prepared query."""
    search = Client.select(Client.first_name).where(Client.status == "on_hold")
    reads = "select count(*) from user_action_audit_log where action_type = 'read' and tenant_id = $1"
    async with lakeside.as_admin(), transaction():
        assert await search == []
        before = await owner.fetchval(reads, lakeside.tenant)
        [ours] = await Client.raw(
            "select name, statement from pg_prepared_statements"
            " where statement like '%record_read%' and statement not like '%pg_prepared%'"
        )
        evil = ours["statement"].split(" and (select charthold.record_read")[0]
        evil = evil.replace('"client"."status" = $2', "($2::text is not null)")
        assert evil.count("record_read") == 0
        for statement in (f'deallocate "{ours["name"]}"', f'prepare "{ours["name"]}" as {evil}'):
            with contextlib.suppress(asyncpg.PostgresError, ConfigurationError):  # the driver closed it already
                async with transaction():
                    await Client.raw(statement)
        assert await search == []
    assert await owner.fetchval(reads, lakeside.tenant) == before
