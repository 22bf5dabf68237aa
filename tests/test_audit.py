"""Every change is recorded once, by whatever way it is made; and the log answers."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import asyncpg
import pytest
from piccolo.querystring import QueryString

import core.audit.seal as sealing
from core import ChartholdError, ProtectedQueryError, ScopeError, scope, transaction
from core.audit.history import who_saw
from core.audit.partitions import archive_partition, make_partitions
from core.audit.record import record, record_failed_login
from core.audit.seal import seal
from core.audit.search import Filter, search
from core.engine import ChartholdEngine
from core.settings import settings
from core.tables import ACTION_TYPES, Client, Facility, Tenant, User, UserActionAuditLog
from tests.conftest import Clinic, make_clinic, schema_owner
from tests.ledger import signed

BORN = date(1990, 7, 1)


def someone(clinic: Clinic, last_name: str, **values: Any) -> Client:
    return Client(facility_id=clinic.facility, first_name="Bo", last_name=last_name, date_of_birth=BORN, **values)


async def recorded(owner: asyncpg.Connection, row: Any) -> list[str]:
    rows = await owner.fetch(
        "select action_type from user_action_audit_log where record_id = $1 and action_type <> 'read' order by occurred_at, id",
        row,
    )
    return [r["action_type"] for r in rows]


async def test_each_way_of_writing_leaves_one_record_a_row(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        one = someone(lakeside, "One")
        await one.save()
        many = [someone(lakeside, f"Many{n}") for n in range(20)]
        await Client.insert(*many)
        one.status = "on_hold"
        await one.save([Client.status])
        await Client.update({Client.status: "on_hold"}).where(Client.last_name.starts_with("man"))
        await Client.raw("update client set status = 'active' where id = {}", one.id)
        await Client.insert(one).on_conflict(Client.id, "DO UPDATE", [(Client.status, "on_hold")])
        await Client.raw(
            "merge into client as c using (select {}::uuid as id) as s on c.id = s.id and c.tenant_id = {}"
            " when matched then update set status = 'active'",
            one.id,
            lakeside.tenant,
        )
        await Client.raw("with gone as (delete from client where id = {} returning id) select id from gone", one.id)
        await Client.delete().where(Client.id.is_in([c.id for c in many]))
    assert await recorded(owner, one.id) == ["insert", "update", "update", "update", "update", "delete"]
    for row in many:
        assert await recorded(owner, row.id) == ["insert", "update", "delete"]


async def test_a_write_by_hand_is_recorded_with_a_scope_and_refused_without(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with lakeside.as_admin():
        site = Facility(name="By hand")
        await site.save()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await owner.execute("update facility set phone = '1' where id = $1", site.id)
    assert refused.value.sqlstate == "CH001"
    async with lakeside.as_admin("by hand") as here, owner.transaction():
        token = here.token(database.token_key, owner.get_server_pid())
        await owner.execute("select set_config('charthold.scope', $1, true)", token)
        await owner.execute("update facility set phone = '1' where id = $1", site.id)
    assert await recorded(owner, site.id) == ["insert", "update"]
    last = await owner.fetchrow(
        "select * from user_action_audit_log where record_id = $1 order by occurred_at desc, id desc limit 1", site.id
    )
    assert (last["user_id"], last["reason"], last["changed_columns"]) == (lakeside.admin, "by hand", ["phone"])
    assert (last["old_values"], last["new_values"]) == ('{"phone": null}', '{"phone": "1"}')


async def test_an_update_that_changes_nothing_records_nothing(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        site = Facility(name="Still")
        await site.save()
        await site.save()
        await Facility.update({Facility.name: "Still"}).where(Facility.id == site.id)
    assert await recorded(owner, site.id) == ["insert"]


async def test_the_record_says_who_why_in_which_request_and_from_where(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with scope(
        tenant=lakeside.tenant,
        actor=lakeside.clinician,
        reason="a | reason: with ümlauts",
        request_id="req|7",
        source_ip="2001:db8::1",
    ):
        new = someone(lakeside, "Who")
        await new.save()
    row = await owner.fetchrow("select * from user_action_audit_log where record_id = $1", new.id)
    assert row["user_id"] == lakeside.clinician
    assert row["reason"] == "a | reason: with ümlauts"
    assert row["request_id"] == "req|7"
    assert str(row["source_ip"]) == "2001:db8::1"
    assert row["transaction_id"] > 0
    assert "Who" not in row["new_values"], "PHI is recorded as the envelope that it is"


async def test_history_tells_each_field_and_is_itself_recorded(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        new = someone(lakeside, "Hist", ssn="1", address={"city": "Ulm"})
        await new.save()
        new.last_name, new.address = "Ory", {"city": "Bonn"}
        await new.save()
        await Client.update({Client.admitted_on: date(2024, 2, 29)}).where(Client.id == new.id)
        reads = await owner.fetchval(
            "select count(*) from user_action_audit_log where action_type = 'read' and record_id = $1", new.id
        )
        trail = await new.history()
        assert [c.action for c in trail] == ["insert", "update", "update"]
        assert trail[0].new["last_name"] == "Hist"
        assert trail[0].new["date_of_birth"] == BORN
        assert trail[0].new["facility_id"] == lakeside.facility
        assert trail[1].changed == ("address", "last_name")
        assert (trail[1].old["last_name"], trail[1].new["last_name"]) == ("Hist", "Ory")
        assert (trail[1].old["address"], trail[1].new["address"]) == ({"city": "Ulm"}, {"city": "Bonn"})
        assert (trail[2].old["admitted_on"], trail[2].new["admitted_on"]) == (None, date(2024, 2, 29))
        assert "Ory" not in repr(trail)
        assert (
            await owner.fetchval(
                "select count(*) from user_action_audit_log where action_type = 'read' and record_id = $1", new.id
            )
            == reads + 1
        )


async def test_the_past_can_be_seen_and_brought_back(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        before = datetime.now(UTC)
        new = someone(lakeside, "Past", phone="1")
        await new.save()
        then = datetime.now(UTC)
        new.last_name, new.phone = "Present", None
        await new.save()
        was = await new.as_of(then)
        assert (was.last_name, was.phone, was.facility_id) == ("Past", "1", lakeside.facility)
        assert await new.as_of(before) is None
        assert new.id in {row.id for row in await Client.as_of(then)}
        assert new.id not in {row.id for row in await Client.as_of(before)}
        await new.revert(to=then)
        assert (new.last_name, new.phone) == ("Past", "1")
        assert (await Client.objects().get(Client.last_name == "past")).id == new.id
        with pytest.raises(ProtectedQueryError, match="no such Client"):
            await new.revert(to=before)
        now = datetime.now(UTC)
        await Client.delete().where(Client.id == new.id)
        assert (await new.as_of(now)).last_name == "Past"
        assert await new.as_of(datetime.now(UTC)) is None
        assert new.id not in {row.id for row in await Client.as_of(datetime.now(UTC))}
        # Gone now, and there then.
        assert new.id in {row.id for row in await Client.as_of(now)}


async def test_a_long_history_has_every_change_once_and_in_order(
    lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pages are, also when several changes are of one moment."""
    async with lakeside.as_admin():
        new = someone(lakeside, "Paged", phone="0")
        await new.save()
        async with transaction():
            for n in range(1, 11):
                await Client.update({Client.phone: str(n)}).where(Client.id == new.id)
        whole = [change.new.get("phone") for change in await new.history()]
        assert whole == [str(n) for n in range(11)]
        for page in (1, 2, 3, 11):
            monkeypatch.setattr("core.audit.history.PAGE", page)
            assert [change.new.get("phone") for change in await new.history()] == whole


async def test_who_saw_names_each_reader_and_the_columns(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        new = someone(lakeside, "Seen")
        await new.save()
    async with lakeside.as_clinician("rounds"):
        await Client.select(Client.last_name, Client.ssn).where(Client.id == new.id)
    async with lakeside.as_admin():
        seen = await new.who_saw()
        assert [(s.user_id, s.columns, s.reason) for s in seen] == [
            (lakeside.clinician, ("last_name", "ssn"), "rounds")
        ]
    async with lakeside.as_clinician():
        ways = (
            new.who_saw,
            new.history,
            lambda: new.as_of(datetime.now(UTC)),
            lambda: Client.as_of(datetime.now(UTC)),
            lambda: new.revert(to=datetime.now(UTC)),
            lambda: search(Filter()),
        )
        for way in ways:
            # An empty answer would say that nobody saw it, and that nothing happened.
            with pytest.raises(ScopeError, match="The log is for users"):
                await way()
    async with lakeside.as_admin():
        assert len(await new.who_saw()) == 1, "and who was refused saw nothing"


async def test_the_log_is_searched_page_by_page(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        everything = await search(Filter(action="insert"), limit=1_000)
        first = await search(Filter(action="insert"), limit=3)
        second = await search(Filter(action="insert", before=first[-1]["id"]), limit=3)
        for nobody in (uuid4(), UUID(int=2**128 - 1), UUID(int=0)):
            with pytest.raises(ProtectedQueryError, match="There is no record of that id"):
                await search(Filter(before=nobody))
        assert [r["id"] for r in first + second] == [r["id"] for r in everything[:6]]
        assert all(r["user_id"] == lakeside.clinician for r in await search(Filter(user_id=lakeside.clinician)))
        assert await search(Filter(until=datetime(2000, 1, 1, tzinfo=UTC))) == []


@pytest.mark.parametrize("time", ["2026-01-31", date(2026, 1, 31), datetime(2026, 1, 31)], ids=repr)  # noqa: DTZ001
async def test_what_is_no_moment_is_a_sentence(lakeside: Clinic, time: Any) -> None:
    async with lakeside.as_admin():
        who = await Client.objects().get(Client.id == lakeside.client)
        for ask in (who.as_of, lambda at: who.revert(to=at), lambda at: who.who_saw(since=at), Client.as_of):
            with pytest.raises(ProtectedQueryError, match="tzinfo=UTC"):
                await ask(time)


async def test_other_actions_are_recorded_and_the_databases_own_cannot_be_forged(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_clinician("night shift"):
        made = await record("login", new={"mfa": True})
        for forged in ("insert", "update", "delete", "read"):
            with pytest.raises(ProtectedQueryError, match="The database alone records"):
                await record(forged, table=Client, record_id=lakeside.client)
        with pytest.raises(ProtectedQueryError, match=r"no such kind of record\. There are .*, login, .*, seal\."):
            await record("nap")
    row = await owner.fetchrow("select * from user_action_audit_log where id = $1", made)
    assert (row["action_type"], row["user_id"], row["reason"]) == ("login", lakeside.clinician, "night shift")


async def test_every_kind_of_record_that_is_not_the_databases_own_can_be_made(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    ours = set(ACTION_TYPES) - {"insert", "update", "delete", "read", "break_glass"}
    async with lakeside.as_admin("end of day"):
        for kind in ours:
            await record(kind)
    made = await owner.fetch("select action_type from user_action_audit_log where reason = 'end of day'")
    assert sorted(row["action_type"] for row in made) == sorted(ours)


async def test_the_ids_of_records_are_uuids_of_version_7_of_the_present_and_never_the_same(
    owner: asyncpg.Connection,
) -> None:
    # Worst case: the generator is set back by somebody before each record.
    made = [
        row[0]
        for _ in range(20)
        for row in await owner.fetch(
            "select charthold.uuid7() from generate_series(1, 100), (select setseed(0.5)) as s"
        )
    ]
    assert len(set(made)) == 2_000
    assert {(uuid.version, uuid.variant) for uuid in made} == {(7, RFC_4122)}
    assert all(abs((uuid.int >> 80) / 1000 - time.time()) < 60 for uuid in made)


@pytest.mark.parametrize(
    "statement",
    [
        "update user_action_audit_log set reason = 'x'",
        "delete from user_action_audit_log",
        "truncate user_action_audit_log",
        "insert into user_action_audit_log (tenant_id, user_id, action_type, reason)"
        " values (charthold.tenant_id(), charthold.actor_id(), 'login', 'x')",
    ],
)
async def test_nobody_in_the_application_writes_to_the_log_by_hand(lakeside: Clinic, statement: str) -> None:
    async with lakeside.as_admin():
        with pytest.raises(ScopeError, match="may not do that"):
            await UserActionAuditLog.raw(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "update user_action_audit_log set reason = 'x'",
        "delete from user_action_audit_log",
        "truncate user_action_audit_log",
        "truncate client",
    ],
)
async def test_the_owner_does_not_change_the_log_either(
    owner: asyncpg.Connection, lakeside: Clinic, statement: str
) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await owner.execute(statement)
    assert refused.value.sqlstate in ("CH012", "CH011", "0A000")


async def test_every_committed_change_of_concurrent_writers_has_exactly_one_record(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        sites = [Facility(name=f"Busy {n}") for n in range(4)]
        await Facility.insert(*sites)

        async def write(number: int) -> None:
            for turn in range(10):
                try:
                    async with transaction():
                        await Facility.update({Facility.phone: f"{number}-{turn}"}).where(
                            Facility.id == sites[number % 4].id
                        )
                        if turn % 3 == 0:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    pass

        await asyncio.gather(*[write(n) for n in range(8)])
    for site in sites:
        assert (await recorded(owner, site.id)).count("update") == 2 * 6


async def stray(database: ChartholdEngine, owner: asyncpg.Connection, clinic: Clinic, *moments: datetime) -> None:
    """Records of moments whose months have no partition."""
    async with clinic.as_admin() as here, signed(owner, database, here):
        await logged(owner, clinic, *moments)


async def logged(owner: asyncpg.Connection, clinic: Clinic, *moments: datetime) -> None:
    await owner.execute(
        "insert into user_action_audit_log (tenant_id, user_id, action_type, reason, occurred_at)"
        " select $1, $2, 'login', 'stray', moment from unnest($3::timestamptz[]) as moment",
        clinic.tenant,
        clinic.admin,
        moments,
    )


async def test_months_are_made_ahead_and_strays_move_out_of_the_default_partition(
    database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic
) -> None:
    far = datetime.now(UTC).replace(year=datetime.now(UTC).year + 1, day=15)
    # A month holds its first moment, and not the next one's.
    first = far.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=40)).replace(day=1)
    await stray(database, owner, lakeside, far, first, following)
    assert await owner.fetchval("select count(*) from user_action_audit_log_default") == 3
    made = [row["p"] for row in await owner.fetch("select charthold.ensure_partitions(14) as p")]
    assert f"user_action_audit_log_{far:%Y_%m}" in made
    assert await owner.fetchval("select count(*) from user_action_audit_log_default") == 0
    assert await owner.fetchval(f"select count(*) from user_action_audit_log_{far:%Y_%m}") == 2
    assert await owner.fetchval(f"select count(*) from user_action_audit_log_{following:%Y_%m}") == 1
    assert not await owner.fetch("select charthold.ensure_partitions(14) as p")
    forced = await owner.fetch(
        "select relname from pg_class where relname like 'user_action_audit_log_%' and relkind = 'r'"
        " and not (relrowsecurity and relforcerowsecurity)"
    )
    assert forced == []


async def test_a_month_that_is_past_before_anybody_made_its_partition_gets_it_too(
    database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic
) -> None:
    missed = (datetime.now(UTC).replace(day=1) - timedelta(days=40)).replace(day=15)
    await stray(database, owner, lakeside, missed)
    assert await owner.fetchval("select count(*) from user_action_audit_log_default") == 1
    assert f"user_action_audit_log_{missed:%Y_%m}" in await make_partitions()
    assert await owner.fetchval("select count(*) from user_action_audit_log_default") == 0
    assert await owner.fetchval(f"select count(*) from user_action_audit_log_{missed:%Y_%m}") == 1
    assert await make_partitions() == []


async def test_a_part_of_the_log_that_is_made_is_guarded_as_the_log_is_also_a_default_that_was_dropped(
    database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic
) -> None:
    await owner.execute("drop table user_action_audit_log_default")
    await make_partitions()
    far = datetime.now(UTC).replace(year=datetime.now(UTC).year + 4, day=15)
    await stray(database, owner, lakeside, far)
    await make_partitions()
    for part in ("user_action_audit_log_default", f"user_action_audit_log_{far:%Y_%m}"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await owner.execute(f"truncate {part}")
        forced = "select relrowsecurity and relforcerowsecurity from pg_class where oid = $1::regclass"
        assert await owner.fetchval(forced, part)
        sampled = await owner.fetch(
            "select attname from pg_attribute as log where attrelid = 'user_action_audit_log'::regclass"
            " and attstattarget = 0 and not exists (select from pg_attribute as a where a.attrelid = $1::regclass"
            " and a.attname = log.attname and a.attstattarget = 0)",
            part,
        )
        assert sampled == []


@pytest.mark.parametrize(("zone", "ahead"), [("America/Los_Angeles", 6), ("Pacific/Auckland", 7)])
async def test_a_month_is_utcs_wherever_who_makes_it_is(
    zone: str, ahead: int, database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic
) -> None:
    first = datetime(datetime.now(UTC).year + ahead, 3, 1, tzinfo=UTC)
    last = first + timedelta(days=31, microseconds=-1)
    await stray(database, owner, lakeside, first, last)
    await owner.execute(f"set timezone = '{zone}'")
    part = f"user_action_audit_log_{first:%Y_%m}"
    assert [row["p"] for row in await owner.fetch("select charthold.ensure_partitions(0) as p")] == [part]
    assert await owner.fetchval(f"select count(*) from {part}") == 2
    await owner.execute("set timezone = 'UTC'")
    assert f"FROM ('{first:%Y-%m-%d} 00:00:00+00') TO ('{last + timedelta(microseconds=1):%Y-%m-%d} 00:00:00+00')" in (
        await owner.fetchval("select pg_get_expr(relpartbound, oid) from pg_class where oid = $1::regclass", part)
    )


async def test_a_month_that_was_detached_is_attached_again(
    owner: asyncpg.Connection, lakeside: Clinic, database: ChartholdEngine
) -> None:
    far = datetime.now(UTC).replace(year=datetime.now(UTC).year + 5, day=15)
    part = f"user_action_audit_log_{far:%Y_%m}"
    await stray(database, owner, lakeside, far)
    await make_partitions()
    await owner.execute(f"alter table user_action_audit_log detach partition {part}")
    await stray(database, owner, lakeside, far)  # another, meanwhile
    assert await make_partitions() == [part]
    assert await owner.fetchval(f"select count(*) from {part}") == 2


async def test_making_partitions_does_not_keep_all_tenants_waiting_behind_an_open_transaction(
    lakeside: Clinic, runtime: asyncpg.Connection
) -> None:
    async with runtime.transaction():
        await runtime.execute("lock table user_action_audit_log in access share mode")
        with pytest.raises(ChartholdError, match="held the log for five seconds"):
            await make_partitions(30)
        async with asyncio.timeout(2), lakeside.as_admin():
            assert await UserActionAuditLog.count()
    assert await make_partitions(30)


async def test_who_wrote_may_look_at_the_log_while_strays_wait_to_be_moved(
    database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic
) -> None:
    """Threat: each waits for what the other holds, and PostgreSQL ends the work of one."""
    await stray(database, owner, lakeside, datetime.now(UTC).replace(year=datetime.now(UTC).year + 8, day=15))
    async with lakeside.as_admin(), transaction():
        await Facility(name="Meanwhile").save()
        making = asyncio.create_task(make_partitions(0), context=contextvars.Context())
        while not await owner.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.01)
        assert await UserActionAuditLog.count()
    assert len(await making) == 1


async def test_a_failed_login_is_recorded_though_the_user_is_locked_or_was_never_active(
    owner: asyncpg.Connection,
) -> None:
    """164.308(a)(5)(ii)(C): whom somebody tries to get in as is known, and need not be able to act."""
    clinic = await make_clinic("login-page")
    async with clinic.as_admin():
        invited = User(email="new@login-page.example", full_name="New")
        await invited.save()
        await User.update({User.status: "locked"}).where(User.id == clinic.clinician)
    for user in (clinic.clinician, invited.id, clinic.admin):
        await record_failed_login(tenant=clinic.tenant, user=user, source_ip="192.0.2.7", request_id="r-1")
    rows = await owner.fetch(
        "select user_id, reason, request_id, host(source_ip) as source_ip from user_action_audit_log"
        " where action_type = 'login_failed' and tenant_id = $1 order by occurred_at, id",
        clinic.tenant,
    )
    said = ("login", "r-1", "192.0.2.7")
    assert [tuple(row) for row in rows] == [(user, *said) for user in (clinic.clinician, invited.id, clinic.admin)]


async def test_a_failed_login_of_nobody_or_in_the_middle_of_something_is_refused(
    lakeside: Clinic, hillside: Clinic
) -> None:
    for tenant, user in ((lakeside.tenant, uuid4()), (lakeside.tenant, hillside.admin), (uuid4(), lakeside.admin)):
        with pytest.raises(ScopeError, match="The tenant has no such user"):
            await record_failed_login(tenant=tenant, user=user)
    async with lakeside.as_admin(), transaction():
        with pytest.raises(ScopeError, match="outside of every transaction"):
            await record_failed_login(tenant=lakeside.tenant, user=lakeside.clinician)


async def test_a_deactivated_users_records_stay(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        await User.update({User.status: "deactivated"}).where(User.id == lakeside.billing)
        with pytest.raises(ScopeError):
            await User.raw("delete from user_action_audit_log where user_id = {}", lakeside.billing)


async def test_a_month_is_archived_only_when_it_is_old_and_sealed(
    database: ChartholdEngine, owner: asyncpg.Connection, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def month(back: int) -> str:
        first = datetime.now(UTC).replace(year=datetime.now(UTC).year - back, day=1)
        name = f"user_action_audit_log_{first:%Y_%m}"
        await owner.execute(
            f"create table {name} partition of user_action_audit_log for values"
            f" from ('{first:%Y-%m}-01 00:00+00') to (timestamptz '{first:%Y-%m}-01 00:00+00' + interval '1 month')"
        )
        await owner.execute(f"alter table {name} owner to {await schema_owner(owner)}")
        await owner.execute(f"alter table {name} enable row level security")
        await owner.execute(f"alter table {name} force row level security")
        async with lakeside.as_admin() as here, owner.transaction():
            token = here.token(database.token_key, owner.get_server_pid())
            await owner.execute("select set_config('charthold.scope', $1, true)", token)
            await owner.execute(
                "insert into user_action_audit_log (tenant_id, user_id, action_type, reason, occurred_at)"
                " values ($1, $2, 'login', 'long ago', $3)",
                lakeside.tenant,
                lakeside.admin,
                first.replace(day=2),
            )
        return name

    young, old = await month(5), await month(8)
    with pytest.raises(Exception, match="must be kept for 6 years"):
        await archive_partition(young)
    with pytest.raises(Exception, match="1 records that are not sealed"):
        await archive_partition(old)
    for other in ("client", "user_action_audit_log_default", "user_action_audit_log_1999_01"):
        with pytest.raises(Exception, match="not a month"):
            await archive_partition(other)
    with monkeypatch.context() as then:
        # Sealed while it was young, as cron does.
        then.setattr(sealing, "_not_before", lambda now, _: now - timedelta(days=365 * 8))
        async with lakeside.as_admin():
            await seal()
    with pytest.raises(Exception, match="must be kept for 6 years"):
        await archive_partition(young)
    async with lakeside.as_admin():
        await Tenant.update({Tenant.retention_years: 9}).where(Tenant.id == lakeside.tenant)
    with pytest.raises(Exception, match="must be kept for 9 years"):
        await archive_partition(old)
    async with lakeside.as_admin():
        await Tenant.update({Tenant.retention_years: 6}).where(Tenant.id == lakeside.tenant)
    assert await archive_partition(old) == 1
    assert await owner.fetchval("select count(*) from user_action_audit_log where reason = 'long ago'") == 1
    forced = await owner.fetch("select relforcerowsecurity from pg_class where relname = any($1)", [old, young])
    assert [row["relforcerowsecurity"] for row in forced] == [True, True]


async def test_a_month_of_several_tenants_is_kept_as_long_as_any_of_them_asks(
    database: ChartholdEngine, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long, elsewhere = [await make_clinic(f"kept-{uuid4().hex[:8]}") for _ in range(3)]
    for clinic, years in ((long, 7), (elsewhere, 50)):
        async with clinic.as_admin():
            await Tenant.update({Tenant.retention_years: years}, force=True)
    edge = datetime.now(UTC) - timedelta(days=7 * 365 + 2)  # seven years ago, within a day
    days = [edge + timedelta(days=n) for n in (-2, 2)]
    part, bounds = "user_action_audit_log_1901_01", (edge - timedelta(days=3), edge + timedelta(days=3))
    await owner.execute(
        f"create table {part} partition of user_action_audit_log for values from ('{bounds[0]}') to ('{bounds[1]}')"
    )
    await owner.execute(f"alter table {part} owner to {await schema_owner(owner)}")
    await owner.execute(f"select charthold.keep_partition('{part}')")
    await stray(database, owner, long, *days)

    async def seal_at_once(clinic: Clinic) -> None:
        async with clinic.as_admin():
            await seal()

    with monkeypatch.context() as then:
        then.setattr(sealing, "_not_before", lambda now, _: now - timedelta(days=365 * 8))
        await seal_at_once(long)
        async with short.as_admin() as here, signed(owner, database, here):
            await logged(owner, short, days[0])
            await asyncio.create_task(seal_at_once(short), context=contextvars.Context())
    with pytest.raises(Exception, match="must be kept for 7 years"):
        await archive_partition(part)
    async with long.as_admin():
        await Tenant.update({Tenant.retention_years: 6}, force=True)
    with pytest.raises(Exception, match="1 records that are not sealed"):
        await archive_partition(part)
    with monkeypatch.context() as then:
        then.setattr(sealing, "_not_before", lambda now, _: now - timedelta(days=365 * 8))
        await seal_at_once(short)
    assert await archive_partition(part) == 3


async def test_a_month_of_a_tenant_that_is_gone_is_kept_for_six_years(
    database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    part, tenant, then = "user_action_audit_log_1901_02", uuid4(), datetime.now(UTC) - timedelta(days=3 * 365)
    await owner.execute(
        f"create table {part} partition of user_action_audit_log"
        f" for values from ('{then - timedelta(days=1)}') to ('{then + timedelta(days=1)}')"
    )
    await owner.execute(f"alter table {part} owner to {await schema_owner(owner)}")
    await owner.execute(f"select charthold.keep_partition('{part}')")
    async with owner.transaction():
        await owner.execute("set local session_replication_role = replica")
        await owner.execute(
            "insert into user_action_audit_log (tenant_id, user_id, action_type, reason, occurred_at, transaction_id)"
            " values ($1, $1, 'login', 'gone', $2, 7)",
            tenant,
            then,
        )
    with pytest.raises(asyncpg.PostgresError, match="must be kept for 6 years"):
        await owner.fetchval("select charthold.archive_partition($1, $2, $3)", part, [tenant], [2**40])
    await owner.execute(f"drop table {part}")


async def test_relaxed_read_records_do_not_wait_for_the_disk_and_writes_still_do(
    lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests' server does not wait for the disk; this database does, from here on.
    await owner.execute(f"alter database {database.database} set synchronous_commit = on")
    await database.close_connection_pool()
    relaxed = dataclasses.replace(settings(), durable_reads=False)
    query = Client.select(Client.last_name).where(Client.id == lakeside.client)
    # A function may write, so what is computed waits for the disk.
    shown = QueryString("current_setting('synchronous_commit')").as_alias("commit")
    computed = Client.select(Client.last_name, shown).where(Client.id == lakeside.client)
    sent: list[str] = []
    send = type(database)._send

    async def noted(self: ChartholdEngine, link: Any, scope_: Any, sql: str, *rest: Any, **options: Any) -> Any:
        sent.append(sql)
        return await send(self, link, scope_, sql, *rest, **options)

    monkeypatch.setattr(type(database), "_send", noted)

    async def waits() -> bool:
        await query.first()
        return "synchronous_commit" not in sent[-1]

    async with lakeside.as_clinician():
        assert await waits()
        monkeypatch.setattr(type(database), "settings", property(lambda _: relaxed))
        assert not await waits()
        assert (await computed.first())["commit"] == "on"
        async with transaction():
            assert await waits()
        await Client.update({Client.notes: "n"}).where(Client.id == lakeside.client)
        assert "synchronous_commit" not in sent[-1]
    monkeypatch.undo()
    async with lakeside.as_admin():
        assert len(await who_saw(Client, lakeside.client)) >= 3


@pytest.mark.parametrize(
    "look",
    [
        lambda: UserActionAuditLog.select(),
        lambda: UserActionAuditLog.select(UserActionAuditLog.action_type).limit(3),
        lambda: UserActionAuditLog.objects().first(),
        lambda: UserActionAuditLog.count(),
        lambda: UserActionAuditLog.exists().where(UserActionAuditLog.action_type == "insert"),
        lambda: UserActionAuditLog.select().freeze(),
        lambda: User.select(User.id).where(User.id.is_in(UserActionAuditLog.select(UserActionAuditLog.user_id))),
    ],
    ids=["select", "some columns", "objects", "count", "exists", "frozen", "sub-select"],
)
async def test_a_query_of_the_log_is_recorded_once(look: Any, lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async def looks() -> int:
        return await owner.fetchval(
            "select count(*) from user_action_audit_log where action_type = 'audit_read'"
            " and table_name = 'user_action_audit_log' and user_id = $1 and new_values ? 'rows'",
            lakeside.admin,
        )

    before = await looks()
    async with lakeside.as_admin("looking around"):
        await look().run()
        assert await looks() == before + 1
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                await look().run()
                1 / 0  # noqa: B018
        assert await looks() == before + 2, "what was looked at stays looked at"


async def test_the_log_in_batches_is_recorded_before_the_first(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    count = "select count(*) from user_action_audit_log where action_type = 'audit_read' and user_id = $1"
    before = await owner.fetchval(count, lakeside.admin)
    async with lakeside.as_admin("looking around"):
        async with await UserActionAuditLog.select().batch(batch_size=2) as batch:
            async for _ in batch:
                break
    assert await owner.fetchval(count, lakeside.admin) == before + 1


async def test_what_history_showed_in_a_transaction_that_fails_stays_recorded(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    count = "select count(*) from user_action_audit_log where action_type = $2 and record_id = $1"
    async with lakeside.as_admin("review"):
        client = someone(lakeside, "Osei")
        await client.save()
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                assert await client.history()
                await who_saw(Client, client.id)
                1 / 0  # noqa: B018
    assert await owner.fetchval(count, client.id, "read") == 1
    assert await owner.fetchval(count, client.id, "audit_read") == 1
