"""Nothing is shown, and no row of the log is looked at, without a record that stays; and no record breaks another's answer.

Each way is one that a program could take by itself, through the ORM: an error that it catches, a table of its own, a
sub-select in an update.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.apps.migrations.tables import Migration
from piccolo.columns import Text
from piccolo.querystring import QueryString

from core import ProtectedQueryError, ScopeError, record, scope, transaction
from core.audit.canonical import RECORD_SQL, decode, encode
from core.audit.history import history
from core.audit.seal import seal
from core.audit.verify import verify
from core.engine import ChartholdEngine
from core.scope import open_scope
from core.tables import Client, Facility, Tenant, TenantTable, User, UserActionAuditLog
from tests.conftest import Clinic, make_clinic
from tests.ledger import create
from tests.test_scope import someone

LOG = UserActionAuditLog
RECORDS = "select count(*) from user_action_audit_log where tenant_id = $1 and action_type = $2"


async def person(clinic: Clinic, role: str, *, bound: bool = False) -> User:
    """Another user of the clinic."""
    made = User(
        email=f"{uuid4()}@mail.example", full_name="Somebody", role=role, status="active",
        facility_scope=[clinic.facility] if bound else None,
    )  # fmt: skip
    async with clinic.as_admin():
        await made.save()
    return made


# -- PHI that was shown ------------------------------------------------------------------------------------------------


async def an_error_that_is_caught(shown: list[Any]) -> None:
    async with transaction():
        shown += await Client.select(Client.notes)
        with contextlib.suppress(asyncpg.PostgresError):
            await Client.raw("select 1 / 0")


async def a_constraint_that_is_caught(shown: list[Any]) -> None:
    async with transaction():
        shown += await Client.select(Client.notes)
        with contextlib.suppress(asyncpg.PostgresError):
            await Facility.update({Facility.capacity: -1}, force=True)


async def a_timeout_that_is_caught(shown: list[Any]) -> None:
    async with transaction():
        shown += await Client.select(Client.notes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await Client.raw("select pg_sleep(5)")


async def an_error_that_is_caught_outside_of_a_savepoint(shown: list[Any]) -> None:
    async with transaction():
        shown += await Client.select(Client.notes)
        with contextlib.suppress(asyncpg.PostgresError):
            async with transaction():
                with contextlib.suppress(asyncpg.PostgresError):
                    await Client.raw("select 1 / 0")


async def an_error_that_is_caught_before_a_commit_by_hand(shown: list[Any]) -> None:
    async with transaction() as open_transaction:
        shown += await Client.select(Client.notes)
        with contextlib.suppress(asyncpg.PostgresError):
            await Client.raw("select 1 / 0")
        await open_transaction.commit()


async def a_rollback_by_another_table(shown: list[Any]) -> None:
    async with transaction():
        shown += await Client.select(Client.notes)
        with contextlib.suppress(ProtectedQueryError):
            await Migration.raw("rollback")


async def a_savepoint_by_another_table(shown: list[Any]) -> None:
    async with transaction():
        await Migration.raw("savepoint mine")
        shown += await Client.select(Client.notes)
        with contextlib.suppress(ProtectedQueryError):
            await Migration.raw("rollback to mine")


SHOWING: dict[str, Callable[[list[Any]], Awaitable[None]]] = {
    f.__name__.replace("_", " "): f
    for f in (
        an_error_that_is_caught, a_constraint_that_is_caught, a_timeout_that_is_caught,
        an_error_that_is_caught_outside_of_a_savepoint, an_error_that_is_caught_before_a_commit_by_hand,
        a_rollback_by_another_table, a_savepoint_by_another_table,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWING)
async def test_what_was_shown_stays_recorded_after(name: str, lakeside: Clinic, owner: asyncpg.Connection) -> None:
    before = await owner.fetchval(RECORDS, lakeside.tenant, "read")
    async with lakeside.as_admin():
        shown: list[Any] = []
        with contextlib.suppress(Exception):  # to raise is allowed, to forget is not
            await SHOWING[name](shown)
    assert shown[0]["notes"]
    assert await owner.fetchval(RECORDS, lakeside.tenant, "read") > before


async def test_a_transaction_that_failed_does_not_end_as_if_it_had_not(lakeside: Clinic) -> None:
    """COMMIT of a transaction in which a statement failed is a rollback, of which PostgreSQL says nothing."""
    name = f"Lost {uuid4()}"
    with contextlib.suppress(Exception):
        async with lakeside.as_admin(), transaction():
            await Facility(name=name).save()
            with contextlib.suppress(asyncpg.PostgresError):
                await Facility.raw("select 1 / 0")
        pytest.fail("what was written is gone, and nobody was told")
    async with lakeside.as_admin():
        assert not await Facility.exists().where(Facility.name == name)


# -- the log -----------------------------------------------------------------------------------------------------------


async def history_of_a_table_without_phi(clinic: Clinic) -> Any:
    return await history(Facility, clinic.facility)


async def a_table_without_phi_as_it_was(clinic: Clinic) -> Any:
    return await Facility.as_of(datetime.now(UTC))


async def a_row_without_phi_as_it_was(clinic: Clinic) -> Any:
    site = await Facility.objects().get(Facility.id == clinic.facility)
    return await site.as_of(datetime.now(UTC))


async def an_update_that_asks_the_log(clinic: Clinic) -> Any:
    asked = LOG.select(LOG.record_id).where(LOG.table_name == "facility")
    await Facility.update({Facility.capacity: 7}).where(Facility.id.is_in(asked))
    return await Facility.select(Facility.capacity).where(Facility.capacity == 7)


async def an_update_that_copies_the_log(clinic: Clinic) -> Any:
    copied = LOG.select(LOG.reason).where(LOG.table_name == "facility").limit(1).querystrings[0]
    await Facility.update({Facility.phone: QueryString("({})", copied)}, force=True)
    return [row for row in await Facility.select(Facility.phone) if row["phone"]]


async def a_delete_that_asks_the_log(clinic: Clinic) -> Any:
    site = Facility(name=f"Gone {uuid4()}")
    await site.save()
    await Facility.delete().where((Facility.id == site.id) & Facility.id.is_in(LOG.select(LOG.record_id)))
    return not await Facility.exists().where(Facility.id == site.id)


async def a_batch_that_loses_its_connection(clinic: Clinic) -> Any:
    shown: list[Any] = []
    with contextlib.suppress(Exception):
        async with await LOG.select(LOG.reason).batch(batch_size=1) as batch:
            async for rows in batch:
                shown += rows
                batch._link.connection.terminate()
    return shown


async def a_batch_that_fails(clinic: Clinic) -> Any:
    shown: list[Any] = []
    broken = QueryString("1 / (case when action_type = 'update' then 0 else 1 end) = 1")
    await Facility.update({Facility.capacity: 8}, force=True)
    with contextlib.suppress(Exception):
        async with await LOG.select(LOG.reason).where(broken).batch(batch_size=1) as batch:
            async for rows in batch:
                shown += rows
    return shown


async def counting(clinic: Clinic) -> Any:
    return await LOG.count()


async def asking_whether(clinic: Clinic) -> Any:
    return await LOG.exists()


async def a_sub_select(clinic: Clinic) -> Any:
    return await Facility.select(Facility.id).where(Facility.id.is_in(LOG.select(LOG.record_id)))


async def a_count_by_a_sub_select(clinic: Clinic) -> Any:
    return await Facility.count().where(Facility.id.is_in(LOG.select(LOG.record_id)))


LOOKING: dict[str, Callable[[Clinic], Awaitable[Any]]] = {
    f.__name__.replace("_", " "): f
    for f in (
        history_of_a_table_without_phi, a_table_without_phi_as_it_was, a_row_without_phi_as_it_was,
        an_update_that_asks_the_log, an_update_that_copies_the_log, a_delete_that_asks_the_log,
        a_batch_that_loses_its_connection, a_batch_that_fails, counting, asking_whether, a_sub_select,
        a_count_by_a_sub_select,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKING)
async def test_the_log_is_not_looked_at_unrecorded_by(name: str, lakeside: Clinic, owner: asyncpg.Connection) -> None:
    before = await owner.fetchval(RECORDS, lakeside.tenant, "audit_read")
    async with lakeside.as_admin():
        assert await LOOKING[name](lakeside), "nothing was shown, so nothing is proved"
    assert await owner.fetchval(RECORDS, lakeside.tenant, "audit_read") > before


# -- facilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["admin", "auditor", "system"])
async def test_the_log_shows_nobody_what_the_table_does_not(role: str, hillside: Clinic) -> None:
    """Somebody who is bound to facilities, and may read the log, is shown no client of another facility by it."""
    bound = await person(hillside, role, bound=True)
    async with hillside.as_admin():
        elsewhere = Facility(name=f"Elsewhere {uuid4()}")
        await elsewhere.save()
        client = Client(
            facility_id=elsewhere.id, first_name="Bob", last_name="Moss", date_of_birth=datetime(1990, 1, 1, tzinfo=UTC).date(),
            notes="of another facility",
        )  # fmt: skip
        await client.save()
    async with scope(tenant=hillside.tenant, actor=bound.id, reason="test"):
        assert client.id not in {row["id"] for row in await Client.select(Client.id)}
        told = []
        with contextlib.suppress(Exception):
            told += ["history"] * bool(await history(Client, client.id))
        with contextlib.suppress(Exception):
            told += ["as of"] * (client.id in {row.id for row in await Client.as_of(datetime.now(UTC))})
        with contextlib.suppress(Exception):
            told += ["log"] * bool(await LOG.select(LOG.new_values).where(LOG.record_id == client.id))
    assert told == []


# -- records that break answers ----------------------------------------------------------------------------------------

# What a session may say about how values are written as text.
SPELLINGS = (
    "set local bytea_output = 'escape'",
    "set local datestyle = 'SQL, DMY'",
    "set local intervalstyle = 'sql_standard'",
    "set local timezone = 'Asia/Kathmandu'",
    "set local extra_float_digits = -15",
    "set local array_nulls = off",
    "set local standard_conforming_strings = off",
    "set local transform_null_equals = on",
    "set local xmlbinary = 'hex'",
    "set local default_text_search_config = 'simple'",
    "set local search_path = pg_temp",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_session_cannot_write_a_record_that_no_history_reads(spelling: str, lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        client = Client(
            facility_id=lakeside.facility, first_name="Eve", last_name="Moss", notes="as it was",
            date_of_birth=datetime(1990, 1, 1, tzinfo=UTC).date(), admitted_on=datetime(2026, 3, 4, tzinfo=UTC).date(),
        )  # fmt: skip
        await client.save()
        async with transaction():
            await Client.raw(spelling)
            await Client.raw(
                "update public.client set notes = null, admitted_on = '2026-05-04', status = 'on_hold' where id = {}",
                client.id,
            )
        told = await client.history()
        assert told[-1].old["notes"] == "as it was"
        assert str(told[-1].old["admitted_on"]) == "2026-03-04"


FORGERIES = (
    "select charthold.record_read('client', array['{id}']::uuid[], '{{{{a,b}},{{c,d}}}}')",
    "select charthold.record_read('client', array['{id}']::uuid[], '[5:6]={{a,b}}')",
    "select charthold.record_read('client', array['{id}', '{id}']::uuid[], array[null, '']::text[])",
    "select charthold.record_read(null, array['{id}']::uuid[], null)",
    "select charthold.record_read(repeat('x', 200), 'ID', array[e'\\n', chr(31)])",
    "select charthold.record('login', repeat('x', 200), '{id}', null, null)",
    "select charthold.record('login', 'client', '{id}', '{{\"a\": 1e3, \"b\": -0.000, \"c\": \"\\u2028\"}}', 'null')",
    "select charthold.record('audit_read', 'client', '{id}', to_jsonb('1e1000'::numeric), null)",
    "select setseed(0.5), charthold.record('login', null, null, null, null), setseed(0.5), charthold.record('login', null, null, null, null) from generate_series(1, 200)",
    "select count(setseed(0.5)), charthold.record_read('client', array(select '{id}'::uuid from generate_series(1, 5000) where setseed(0.5) is not null), '{{}}')",
)  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_no_record_breaks_what_is_proved_of_the_log(forgery: str, hillside: Clinic) -> None:
    """The canonical form of each record is the one that the server writes, and can be read back."""
    statement = forgery.replace("{id}", str(hillside.client)).replace("ID", f"{{{{{hillside.client}}}}}")
    async with hillside.as_admin():
        began = datetime.now(UTC)
        await LOG.raw(statement)
        await seal()
        assert (await verify()).findings == []
        async with transaction():
            rows = await LOG.raw(
                f"select *, {RECORD_SQL} as canonical from public.user_action_audit_log"
                " where occurred_at >= {} order by occurred_at limit 3",
                began,
            )
            assert rows
            for row in rows:
                decode(row["canonical"])
                assert encode(row) == row["canonical"]


# -- after the end -----------------------------------------------------------------------------------------------------


async def test_a_scope_that_has_ended_leaves_no_context_in_the_transaction(lakeside: Clinic) -> None:
    shown: list[Any] = []
    with contextlib.suppress(Exception):
        async with transaction():
            async with lakeside.as_admin():
                await Client.select(Client.notes)
            shown += await Migration.raw("select * from client")
    assert shown == []


async def test_a_rollback_does_not_lengthen_a_scope(lakeside: Clinic) -> None:
    done: list[Any] = []
    with contextlib.suppress(Exception):
        async with scope(tenant=lakeside.tenant, actor=lakeside.admin, reason="test", seconds=1), transaction():
            with contextlib.suppress(ZeroDivisionError):
                async with transaction():
                    await Client.select(Client.notes)
                    await asyncio.sleep(2.1)
                    raise ZeroDivisionError
            done += await Migration.raw("update facility set capacity = 4 returning capacity")
    assert done == []


# -- reads that need not wait ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    ["charthold.record('login', null, null, null, null)", "public.writes_something()", "nextval('x')"],
)
async def test_a_select_that_writes_waits_for_the_disk(written: str, lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        plan = Client.select(Client.notes, QueryString(f"{written} as written")).querystrings[0]
        assert "synchronous_commit" not in plan.compiled()[0].relaxed


async def test_a_write_never_relaxes(
    lakeside: Clinic, monkeypatch: pytest.MonkeyPatch, database: ChartholdEngine
) -> None:
    async with lakeside.as_admin():
        for query in (
            Client.insert(
                Client(
                    facility_id=lakeside.facility,
                    first_name="a",
                    last_name="b",
                    date_of_birth=datetime(1990, 1, 1, tzinfo=UTC).date(),
                )
            ).returning(Client.notes),
            Client.update({Client.status: "active"}).where(Client.id == lakeside.client).returning(Client.notes),
            Client.delete().where(Client.id == uuid4()).returning(Client.notes),
        ):
            assert "synchronous_commit" not in query.querystrings[0].compiled()[0].relaxed


# -- rows that were not inserted ---------------------------------------------------------------------------------------


async def test_a_row_that_a_trigger_skipped_is_not_taken_for_inserted(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        "create function public.skips() returns trigger language plpgsql as"
        " $$ begin return case when new.name like 'Skip%' then null else new end; end $$;"
        " grant execute on function public.skips() to public;"
        " create trigger a_skip before insert on facility for each row execute function public.skips()"
    )
    try:
        async with lakeside.as_admin():
            one, two = Facility(name=f"Skip {uuid4()}"), Facility(name=f"Keep {uuid4()}")
            for rows in ((one,), (one, two)):
                with pytest.raises(ProtectedQueryError, match="Not every row was inserted"):
                    await Facility.insert(*rows)
                assert not one._exists_in_db
                assert await Facility.count().where(Facility.name.is_in([one.name, two.name])) == 0
    finally:
        await owner.execute("drop trigger a_skip on facility; drop function public.skips()")


async def test_rows_of_several_tenants_are_refused_together(lakeside: Clinic, hillside: Clinic) -> None:
    ours, theirs = Facility(name=f"Ours {uuid4()}"), Facility(name=f"Theirs {uuid4()}")
    async with hillside.as_admin():
        await theirs.save()
    async with lakeside.as_admin():
        for rows in ((ours, theirs), (theirs,), (theirs, ours)):
            with pytest.raises(Exception, match="another tenant"):
                await Facility.insert(*rows)
        theirs.tenant_id = None
        theirs._exists_in_db = False
        await Facility.insert(theirs)  # the same id, of this tenant: another row
        assert await Facility.count().where(Facility.id == theirs.id) == 1
    async with hillside.as_admin():
        assert await Facility.count().where(Facility.id == theirs.id) == 1


async def test_a_conflict_does_not_take_a_row_for_inserted(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        first = Facility(name=f"Once {uuid4()}")
        await first.save()
        second = Facility(id=first.id, name="Never")
        answered = await Facility.insert(second).on_conflict(target=Facility.id, action="DO NOTHING")
        assert answered == []
        assert not second._exists_in_db
        assert await Facility.select(Facility.name).where(Facility.id == first.id) == [{"name": first.name}]


# -- what cannot be read back, or is taken away ------------------------------------------------------------------------

TOO_LONG = '{"a": [' + ", ".join(["1e131071"] * 9000) + "]}"  # 80 kB; as PostgreSQL writes it, more than a gigabyte


async def test_no_document_makes_a_record_that_is_too_long_to_be_sealed(hillside: Clinic) -> None:
    async with hillside.as_admin():
        with pytest.raises((ProtectedQueryError, asyncpg.ProgramLimitExceededError)):
            await Facility(name="big", settings=TOO_LONG).save()
        with pytest.raises((ProtectedQueryError, asyncpg.ProgramLimitExceededError)):
            await LOG.raw("select charthold.record('login', null, null, {}::jsonb, null)", TOO_LONG)
        with pytest.raises(ProtectedQueryError, match="does not fit into one record"):
            await LOG.raw(
                "select charthold.record_read('client', array[{}::uuid], array(select 'x' || n from generate_series(1,"
                " 50000) as n))",
                hillside.client,
            )
        await seal()
        assert (await verify()).findings == []


@pytest.mark.parametrize("way", ["insert", "update", "delete"])
async def test_no_long_text_makes_a_record_that_cannot_be_read_back(way: str, hillside: Clinic) -> None:
    """A row may grow beyond what one record takes, an update at a time; then it is emptied before it is deleted."""
    long = "jsonb_build_object('a', repeat('x', 40000000))"
    async with hillside.as_admin():
        site = Facility(name=f"Long {uuid4()}")
        await site.save()
        for column in ("settings", "address") if way == "delete" else ():
            await Facility.raw(f"update facility set {column} = {long} where id = {{}}", site.id)
        longer = {
            "insert": f"insert into facility (id, tenant_id, name, settings) select {{}}, '{hillside.tenant}', 'Long',"
            f" {long} || jsonb_build_object('b', repeat('x', 40000000))",
            "update": f"update facility set settings = {long}, address = {long} where id = {{}}",
            "delete": "delete from facility where id = {}",
        }[way]
        with pytest.raises(ProtectedQueryError, match="does not fit into one record"):
            await Facility.raw(longer, uuid4() if way == "insert" else site.id)
        if way == "delete":
            await Facility.raw("update facility set settings = jsonb_build_object() where id = {}", site.id)
            await Facility.raw(longer, site.id)


async def test_what_one_value_is_too_long_for_is_said_as_of_several(hillside: Clinic) -> None:
    """PostgreSQL itself gives up where a value is too long for any document, before anything asks how long the record is."""
    async with hillside.as_admin():
        with pytest.raises(ProtectedQueryError, match="does not fit into one record"):
            await Facility.raw(
                "update facility set license_number = repeat('x', 268435456) where id = {}", hillside.facility
            )


class Scan(TenantTable, tablename="records_scan"):
    pages = Text(default="")
    title = Text(default="")
    unrecorded = ("pages",)


async def test_what_the_log_does_not_hold_may_be_longer_than_a_record(
    hillside: Clinic, database: ChartholdEngine
) -> None:
    await create(database, Scan)
    made, tenant, long = uuid4(), hillside.tenant, "repeat('x', 65000000)"
    async with hillside.as_admin():
        await Scan.raw(f"insert into records_scan (id, tenant_id, pages) values ({{}}, {{}}, {long})", made, tenant)
        await Scan.raw("delete from records_scan where id = {}", made)
        with pytest.raises(ProtectedQueryError, match="does not fit into one record"):
            await Scan.raw(f"insert into records_scan (id, tenant_id, title) values ({{}}, {{}}, {long})", made, tenant)


@pytest.mark.parametrize(
    "call",
    [
        "record('login', repeat('x', 201), null, null, null)",
        "record('login', null, null, jsonb_build_object('a', repeat('x', 65000000)), null)",
        "record('login', null, null, null, jsonb_build_object('a', repeat('x', 65000000)))",
        "record_read(repeat('x', 201), array['ID'::uuid], null)",
        "record_read('client', array['ID'::uuid], array_fill(repeat('x', 100), array[1000]))",
        "record_late(TOKEN, 'search', repeat('x', 201), array[null]::uuid[], null, null)",
        "record_late(TOKEN, 'read', 'client', array['ID'::uuid], array_fill(repeat('x', 100), array[1000]), null)",
        "record_late(TOKEN, 'search', 'client', array[null]::uuid[], null, jsonb_build_object('a', repeat('x', 65000000)))",
    ],
)
async def test_whoever_writes_a_record_writes_no_long_one(call: str, hillside: Clinic) -> None:
    said = call.replace("ID", str(hillside.client)).replace("TOKEN", "current_setting('charthold.scope')")
    async with hillside.as_admin():
        with pytest.raises(ProtectedQueryError, match="does not fit into one record"):
            await LOG.raw(f"select charthold.{said}")


FEW_BYTES = '{"a": [' + ", ".join(["1e131071"] * 400) + "]}"  # 4 kB, of which PostgreSQL makes 50 MB of text


@pytest.mark.parametrize("way", ["insert", "update", "update of the tenant", "record", "record late"])
async def test_no_few_bytes_make_a_record_that_takes_seconds_to_seal(way: str, hillside: Clinic) -> None:
    """Threat: a user writes in a second what keeps whoever seals all tenants' logs, or shows a list, for an hour."""
    async with hillside.as_admin():
        site = Facility(name=f"Numbers {uuid4()}", settings='{"a": [1e131071, -1e-16000]}')
        await site.save()
        with pytest.raises(ProtectedQueryError, match="digits"):
            match way:
                case "insert":
                    await Facility(name="bomb", settings=FEW_BYTES).save()
                case "update":
                    await Facility.update({Facility.settings: FEW_BYTES}).where(Facility.id == site.id)
                case "update of the tenant":
                    await Tenant.update({Tenant.branding: FEW_BYTES}, force=True)
                case "record":
                    await LOG.raw("select charthold.record('login', null, null, null, {}::jsonb)", FEW_BYTES)
                case _:
                    late = "select charthold.record_late(current_setting('charthold.scope'), 'search', 'client',"
                    await LOG.raw(f"{late} array[null]::uuid[], null, {{}}::jsonb)", FEW_BYTES)


async def test_large_records_are_sealed_and_verified_in_little_memory(hillside: Clinic) -> None:
    """Threat: what one user writes takes the memory of the process that seals every tenant's log."""
    large = "select count(charthold.record('login', null, null, jsonb_build_object('a', repeat('x', 2000000)), null))"
    async with hillside.as_admin():
        await LOG.raw(f"{large} from generate_series(1, 12)")
        tracemalloc.start()
        try:
            assert (await seal()).added >= 12
            assert (await verify()).findings == []
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "row",
    [
        {"sealed_at": "'294000-01-01'"},
        {"sealed_at": "'4000-01-01 BC'"},
        {"sealed_at": "'infinity'"},
        {"key_id": r"E'\x1b[2K all is well'"},
        # A list that whoever seals or verifies has no memory for, as 16 million ids would be.
        {"frontier": "decode(repeat('00', 2049), 'hex')"},
        {
            "record_ids": "array(select gen_random_uuid() from generate_series(1, 65537))",
            "leaf_hashes": "decode(repeat('00', 32 * 65537), 'hex')",
        },
    ],
)
async def test_a_seal_that_our_side_cannot_read_or_that_writes_on_a_terminal_is_refused(
    row: dict[str, str], hillside: Clinic
) -> None:
    said = {
        "id": "charthold.uuid7()", "tenant_id": f"'{hillside.tenant}'", "version": "1", "tree_size": "9000000000",
        "root_hash": "sha256('x')", "era": "1", "cluster": "1", "horizon": "1", "sealed_at": "now()",
        "leaf_list": "sha256('x')", "previous": "sha256('x')", "key_id": "'0123456789abcdef'",
        "signature": "sha512('x')", "frontier": "''", "record_ids": "'{{}}'", "leaf_hashes": "''",
    } | row  # fmt: skip
    async with hillside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError, match="audit_seal_"):
            await LOG.raw(f"insert into audit_seal ({', '.join(said)}) values ({', '.join(said.values())})")


async def test_the_owner_empties_no_month_of_the_log(owner: asyncpg.Connection, hillside: Clinic) -> None:
    parts = await owner.fetch(
        "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'user_action_audit_log'::regclass"
    )
    assert len(parts) > 2
    for part in parts:
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await owner.execute(f"truncate {part['name']}")


@pytest.mark.parametrize("end", ["locked", "suspended"])
@pytest.mark.parametrize("way", ["transaction", "batch", "savepoint"])
async def test_what_a_user_saw_stays_recorded_when_the_user_is_out_before_the_end(
    way: str, end: str, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    """Threat: somebody exports what they can, is locked half-way, and the failing statement takes the records along."""
    clinic = await make_clinic(f"{way}-{end}")
    async with clinic.as_admin():
        await Client.insert(*[someone(clinic, first_name=f"N{n}") for n in range(4)])
        shown = await Client.count()
    reads = "select count(*), min(reason) from user_action_audit_log where action_type = 'read' and user_id = $1"
    with pytest.raises(ScopeError, match="not an active user"):
        async with clinic.as_clinician("leaving"):
            if way == "batch":
                async with await Client.select(Client.first_name).batch(batch_size=shown - 1) as batch:
                    assert len(await anext(batch)) == shown - 1
                    await out(clinic, end, owner)
                    await anext(batch)
            elif way == "transaction":
                async with transaction():
                    assert len(await Client.select(Client.first_name)) == shown
                    await out(clinic, end, owner)
                    await Client.select(Client.first_name)
            else:
                async with transaction():
                    with contextlib.suppress(ZeroDivisionError):
                        async with transaction():
                            assert len(await Client.select(Client.first_name)) == shown
                            await out(clinic, end, owner)
                            raise ZeroDivisionError
                    await Client.select(Client.first_name)
    assert tuple(await owner.fetchrow(reads, clinic.clinician)) == (shown - (way == "batch"), "leaving")


TAKEN = """do $$ begin
for n in 1..4000 loop
    begin
        execute format('prepare %I as select 1', '__asyncpg_stmt_' || to_hex(n) || '__');
    exception when duplicate_prepared_statement then null;
    end;
end loop; end $$"""


@pytest.mark.parametrize("within", ["a transaction", "a savepoint"])
async def test_what_was_shown_stays_recorded_though_somebody_took_the_names_of_the_drivers_statements(
    within: str, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    reason = f"taken within {within}"
    with pytest.raises((ZeroDivisionError, asyncpg.PostgresError)):
        async with hillside.as_clinician(reason), transaction():
            if within == "a savepoint":
                async with transaction():
                    assert await Client.select(Client.notes).where(Client.id == hillside.client)
                    await Client.raw(TAKEN)
                    raise ZeroDivisionError
            assert await Client.select(Client.notes).where(Client.id == hillside.client)
            await Client.raw(TAKEN)
            raise ZeroDivisionError
    reads = "select count(*) from user_action_audit_log where action_type = 'read' and reason = $1"
    assert await owner.fetchval(reads, reason) == 1


async def out(clinic: Clinic, end: str, owner: asyncpg.Connection) -> None:
    """Lock the clinician, or suspend the tenant, in a session of its own."""
    if end == "suspended":
        await owner.execute(
            "select charthold.set_tenant_status($1, $2, 'suspended', 'test')", clinic.tenant, clinic.admin
        )
        return

    async def lock() -> None:
        async with clinic.as_admin():
            await User.update({User.status: "locked"}).where(User.id == clinic.clinician)

    await asyncio.create_task(lock(), context=contextvars.Context())


async def test_what_is_recorded_again_wants_a_token_of_ours_and_says_who_it_is(
    hillside: Clinic, lakeside: Clinic, database: ChartholdEngine, runtime: asyncpg.Connection
) -> None:
    async with hillside.as_clinician("mine"):
        here = open_scope()
        token = here.last_token(database.token_key, runtime.get_server_pid())
        elsewhere = here.last_token(database.token_key, runtime.get_server_pid() + 1)
    late = "select charthold.record_late($1, $2, 'client', array[$3::uuid], array['notes'], null)"
    assert await runtime.fetchval(late, token, "read", hillside.client) == 1
    # What an outer join did not find was not shown.
    beside = late.replace("array[$3::uuid]", "array[$3::uuid, null]")
    assert await runtime.fetchval(beside, token, "read", hillside.client) == 1
    forged = token[:128] + str(hillside.admin) + token[164:]
    for bad in (forged, elsewhere, "", token[:64] + "0" * 8 + token[72:]):
        with pytest.raises(asyncpg.PostgresError):
            await runtime.fetchval(late, bad, "read", hillside.client)
    for action in ("insert", "update", "delete", "login", None):
        with pytest.raises(asyncpg.PostgresError, match="not written late"):
            await runtime.fetchval(late, token, action, hillside.client)
    # Nor more than one at a time, or with what a kind does not say.
    many = "select charthold.record_late($1, $2, null, array[null, null]::uuid[], null, null)"
    for action in ("search", "audit_read", "login_failed"):
        with pytest.raises(asyncpg.PostgresError, match="not written late"):
            await runtime.fetchval(many, token, action)
    said = "select charthold.record_late($1, $2, 'client', array[$3::uuid], null, '{}')"
    for action in ("read", "login_failed"):
        with pytest.raises(asyncpg.PostgresError, match="not written late"):
            await runtime.fetchval(said, token, action, hillside.client)
    # The role may have been another when it was shown.
    assert await runtime.fetchval(said, token, "audit_read", hillside.client) == 1
    # It leaves no scope behind, also for who asks in the same transaction.
    async with runtime.transaction():
        await runtime.fetchval(late, token, "read", hillside.client)
        with pytest.raises(asyncpg.PostgresError, match="no scope"):
            async with runtime.transaction():
                await runtime.fetchval("select charthold.tenant_id()")


@pytest.mark.parametrize("kind", ["audit_read", "seal", "key_rotation", "key_shredding", "tenant_change"])
async def test_nobody_records_what_only_others_do(kind: str, hillside: Clinic) -> None:
    for role in (hillside.clinician, hillside.billing):
        async with scope(tenant=hillside.tenant, actor=role, reason="test"):
            with pytest.raises(ScopeError, match=f"a record of {kind}"):
                await record(kind, new={"verified": {"good": True}})
