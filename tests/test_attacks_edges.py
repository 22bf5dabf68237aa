"""Holes that a reviewer found at the edges of what is promised, each closed. The attacker has a genuine token and any SQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from piccolo.columns import Integer
from piccolo.query.functions import Cast, Count, Max
from piccolo.querystring import QueryString

import core.audit.seal as sealing
from core import ChartholdError, Disclosure, ProtectedQueryError, ScopeError, provision_tenant, scope, transaction
from core.audit.history import history
from core.audit.partitions import archive_partition
from core.audit.record import record_failed_login
from core.audit.recorded import ALTERED, DESTROYED
from core.audit.seal import seal
from core.columns import BlindIndex, EncryptedText
from core.engine import ChartholdEngine
from core.errors import SealedValueError
from core.ids import uuid7
from core.schema import Unique
from core.tables import Client, Facility, Tenant, TenantTable, User
from core.token import TokenKey
from tests.conftest import Clinic, schema_owner
from tests.ledger import create, signed
from tests.test_scope import someone as newcomer

LOG = "user_action_audit_log"

Attack = Callable[..., Awaitable[asyncpg.Connection]]


@pytest.fixture
async def attack(database: ChartholdEngine) -> AsyncIterator[Attack]:
    """Makes a connection of the application's role, in the scope of a tenant's user, for any SQL."""
    opened: list[asyncpg.Connection] = []

    async def connect(tenant: UUID, actor: UUID, **more: Any) -> asyncpg.Connection:
        connection = await database.connect(owner=False)
        opened.append(connection)
        given = {
            "tenant": tenant, "actor": actor, "expires": int(time.time()) + 600,
            "backend": connection.get_server_pid(), "reason": "attack",
        }  # fmt: skip
        token = database.token_key.sign(**given | more)
        await connection.fetchval("select set_config('charthold.scope', $1, false)", token)
        return connection

    yield connect
    for connection in opened:
        connection.terminate()


async def person(clinic: Clinic, role: str = "clinician", status: str = "active") -> User:
    made = User(email=f"{uuid4()}@x.example", full_name="Somebody", role=role, status=status)
    async with clinic.as_admin():
        await made.save()
    return made


async def patient(clinic: Clinic, **more: Any) -> Client:
    given = {"facility_id": clinic.facility, "first_name": "Zed", "date_of_birth": date(1950, 1, 1)}
    made = Client(**given | {"last_name": f"Z{uuid4().hex}"} | more)
    async with clinic.as_admin():
        await made.save()
    return made


# -- an old snapshot -----------------------------------------------------------------------------------------------------

LATER: dict[str, Callable[[Clinic, UUID], Awaitable[Any]]] = {
    "locked": lambda c, u: User.update({User.status: "locked"}).where(User.id == u).run(),
    "demoted": lambda c, u: User.update({User.role: "billing"}).where(User.id == u).run(),
    "bound to a facility": lambda c, u: User.update({User.facility_scope: [c.facility]}).where(User.id == u).run(),
}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable", "repeatable read, read only"])
@pytest.mark.parametrize("what", LATER)
async def test_whoever_is_changed_is_refused_though_the_transaction_looks_at_the_past(
    what: str, isolation: str, lakeside: Clinic, attack: Attack
) -> None:
    somebody = await person(lakeside, "admin")
    theirs = await attack(lakeside.tenant, somebody.id)
    await theirs.execute(f"begin isolation level {isolation}")
    assert await theirs.fetchval("select count(*) from facility") > 0
    async with lakeside.as_admin():
        await LATER[what](lakeside, somebody.id)
    statements = ["select count(*) from facility", "select wrapped from tenant_key"]
    if "read only" not in isolation:
        statements.append("update facility set phone = 'attacked'")
    for statement in statements:
        await theirs.execute("savepoint s")
        with pytest.raises(asyncpg.PostgresError) as refused:
            await theirs.fetch(statement)
        assert refused.value.sqlstate == "CH006"
        await theirs.execute("rollback to s")


async def test_a_transaction_that_looks_at_the_past_works_while_nobody_is_changed(
    lakeside: Clinic, attack: Attack, owner: asyncpg.Connection
) -> None:
    somebody = await person(lakeside, "admin")
    theirs = await attack(lakeside.tenant, somebody.id)
    # A change that was rolled back, and one before the transaction began, leave their mark on the row too.
    await owner.execute("begin")
    await owner.execute("update charthold.principal set role = 'auditor' where user_id = $1", somebody.id)
    await owner.execute("rollback")
    async with lakeside.as_admin():
        await User.update({User.role: "system"}).where(User.id == somebody.id)
    for _ in range(2):
        await theirs.execute("begin isolation level repeatable read")
        await theirs.execute("update facility set phone = '1'")
        assert await theirs.fetchval("select count(*) from facility where phone = '1'") > 0
        await theirs.execute("commit")


# -- blind indexes -------------------------------------------------------------------------------------------------------


async def test_a_blind_index_changes_with_its_value_only(lakeside: Clinic, attack: Attack) -> None:
    one, two = await patient(lakeside), await patient(lakeside)
    theirs = await attack(lakeside.tenant, lakeside.clinician)
    for statement in (
        f"update client set last_name_folded = (select last_name_folded from client where id = '{one.id}') where id = '{two.id}'",
        f"update client set last_name_folded = null, mrn_exact = null where id = '{one.id}'",
        f"update client set mrn_exact = '\\x00', notes = null where id = '{one.id}'",
        f"update client set last_name_prefix = null, first_name = first_name where id = '{one.id}'",
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await theirs.execute(statement)
        assert refused.value.sqlstate == "CH016"
    async with lakeside.as_clinician():
        assert await Client.select(Client.id).where(Client.last_name == one.last_name) == [{"id": one.id}]
        one.last_name = "Changed"
        await one.save()
        assert await Client.exists().where(Client.last_name == "changed", Client.id == one.id)
        with pytest.raises(ProtectedQueryError, match="not its index"):
            await Client.raw("update client set mrn_exact = null, last_name_folded = null where id = {}", one.id)


# -- what is shown while a transaction ends --------------------------------------------------------------------------------


async def seen(owner: asyncpg.Connection, reason: str) -> int:
    return await owner.fetchval(f"select count(*) from {LOG} where reason = $1 and action_type = 'read'", reason)


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("nested", [False, True], ids=["block", "nested block"])
async def test_what_was_shown_is_recorded_when_the_task_is_cancelled_while_it_is_rolled_back(
    steps: int,
    nested: bool,  # noqa: FBT001
    lakeside: Clinic,
    owner: asyncpg.Connection,
) -> None:
    reason, shown, failing = f"cancelled {uuid4()}", [], asyncio.Event()

    async def look() -> None:
        shown.extend(await Client.select(Client.notes).where(Client.id == lakeside.client))
        failing.set()
        raise ZeroDivisionError

    async def work() -> None:
        async with lakeside.as_admin(reason), transaction():
            if not nested:
                await look()
            with contextlib.suppress(ZeroDivisionError, asyncio.CancelledError):
                async with transaction():
                    await look()

    task = asyncio.create_task(work())
    await failing.wait()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert shown[0]["notes"] == "afraid of needles"
    assert await seen(owner, reason) >= 1


async def test_what_siblings_were_shown_is_recorded_when_both_fail(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    reasons = [f"sibling {uuid4()}" for _ in range(4)]

    async def work(reason: str) -> None:
        async with lakeside.as_admin(reason), transaction():
            await Client.select(Client.notes).where(Client.id == lakeside.client)
            raise ZeroDivisionError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for reason in reasons:
                group.create_task(work(reason))
    numbers = [await seen(owner, reason) for reason in reasons]
    assert numbers[0] >= 1
    assert all(number <= 2 for number in numbers)


# -- estimates -----------------------------------------------------------------------------------------------------------


async def test_no_date_of_another_tenant_is_told_by_estimates(
    lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, attack: Attack
) -> None:
    days = [date(2031, 3, 7)] * 40 + [date(2031, 5, 19)] * 3
    async with hillside.as_admin():
        given = {
            "facility_id": hillside.facility,
            "first_name": "x",
            "last_name": "y",
            "date_of_birth": date(1990, 1, 1),
        }
        await Client.insert(*[Client(**given, admitted_on=day) for day in days])
    await owner.execute("analyze client, app_user")
    theirs = await attack(lakeside.tenant, lakeside.admin)

    async def estimate(condition: str, table: str) -> Any:
        plan = await theirs.fetchval(
            f"explain (format json) select from generate_series(1, 100000000) as g join {table} as t on {condition} or g = -1"
        )
        return json.loads(plan)[0]["Plan"]["Plan Rows"]

    for column in ("admitted_on", "discharged_on"):
        told = {await estimate(f"t.{column} = '{day}'", "client") for day in ("2031-03-07", "2031-05-19", "2031-03-08")}
        assert len(told) == 1
    assert len({await estimate(f"t.last_login_at < '{day}'", "app_user") for day in ("2020-01-01", "2040-01-01")}) == 1


# -- users who acted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before it commits", "repeatable read", "sent back to invited"])
async def test_a_user_who_may_have_acted_is_not_deleted(
    how: str, hillside: Clinic, owner: asyncpg.Connection, attack: Attack
) -> None:
    somebody = await person(hillside, "admin")
    theirs = await attack(hillside.tenant, somebody.id)
    admin = await attack(hillside.tenant, hillside.admin)
    await admin.execute("begin" + (" isolation level repeatable read" if "read" in how else ""))
    await admin.fetchval("select 1")
    await theirs.execute(f"begin; update facility set phone = '{uuid4()}'")
    if "read" in how:
        await theirs.execute("commit")
    await admin.execute("set lock_timeout = '2s'")
    if "invited" in how:
        await admin.execute(f"update app_user set status = 'invited' where id = '{somebody.id}'")
    with pytest.raises(asyncpg.RestrictViolationError):
        await admin.execute(f"delete from app_user where id = '{somebody.id}'")
    await admin.execute("rollback")
    await theirs.execute("commit")
    assert await owner.fetchval(f"select count(*) from {LOG} where user_id = $1", somebody.id) == 1


@pytest.mark.parametrize("how", ["failed to log in", "is active, and those months are archived"])
async def test_a_user_whom_the_log_names_or_may_have_named_is_not_deleted(
    how: str, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    somebody = await person(hillside, status="invited" if "log in" in how else "active")
    if "log in" in how:
        await record_failed_login(tenant=hillside.tenant, user=somebody.id)
    else:
        async with owner.transaction():
            await owner.execute("set local session_replication_role = replica")
            await owner.execute(f"delete from {LOG} where $1 in (user_id, record_id)", somebody.id)
    async with hillside.as_admin():
        with pytest.raises(asyncpg.RestrictViolationError):
            await User.delete().where(User.id == somebody.id)


async def test_who_is_shown_no_history_deletes_no_user(
    hillside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    """The policies say so first: here they are out of the way."""
    somebody, bound = await person(hillside, status="invited"), await person(hillside, "admin")
    async with hillside.as_admin():
        await User.update({User.facility_scope: [hillside.facility]}).where(User.id == bound.id)
    async with scope(tenant=hillside.tenant, actor=bound.id, reason="attack") as here:
        async with signed(owner, database, here):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="delete a user"):
                await owner.execute("delete from app_user where id = $1", somebody.id)


async def test_a_user_who_never_was_active_is_deleted(hillside: Clinic) -> None:
    nobody = await person(hillside, status="invited")
    async with hillside.as_admin():
        await User.delete().where(User.id == nobody.id)
        assert not await User.exists().where(User.id == nobody.id)


# -- values that Python has none for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["infinity", "-infinity"])
async def test_history_tells_a_date_that_python_has_none_for(value: str, lakeside: Clinic, attack: Attack) -> None:
    one = await patient(lakeside)
    theirs = await attack(lakeside.tenant, lakeside.clinician)
    await theirs.execute(f"update client set admitted_on = '{value}' where id = '{one.id}'")
    await theirs.execute(f"update client set admitted_on = null where id = '{one.id}'")
    async with lakeside.as_admin():
        changes = await history(Client, one.id)
        assert changes[1].new["admitted_on"] == value
        assert (await one.as_of(datetime.now(UTC)))["admitted_on"] is None


UNREADABLE = {
    "a date before Christ": "update client set admitted_on = '0044-03-15 BC'",
    "a date after all": "update client set discharged_on = '12026-01-01'",
    "a login before Christ": "update app_user set last_login_at = '0044-03-15 BC'",
    "plain text for a hash": "update client set email = null, email_folded = 'ana.nguyen@mail.example'",
    "a hash of nothing": "update client set ssn = null, ssn_exact = ''",
    "a birth before Christ": "insert into facility (id, tenant_id, name, kind, status, address, time_zone, settings, created_at)"
    " select '{id}', tenant_id, 'BC', kind, status, address, time_zone, settings, '0044-03-15 BC' from facility limit 1",
    "a new client with plain text": "insert into client (id, tenant_id, facility_id, status, first_name, last_name,"
    " date_of_birth, mrn_exact) select '{id}', tenant_id, facility_id, status, first_name, last_name, date_of_birth,"
    " 'MRN 501787' from client limit 1",
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_what_nobody_could_read_back_is_not_written(what: str, lakeside: Clinic, attack: Attack) -> None:
    theirs = await attack(lakeside.tenant, lakeside.admin)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await theirs.execute(UNREADABLE[what].replace("{id}", str(uuid7())))
    assert refused.value.sqlstate in ("CH016", "CH017")


async def spoil(theirs: asyncpg.Connection, row: UUID, at: str = "octet_length(notes) - 1") -> None:
    """Change one byte of an envelope by hand."""
    await theirs.execute(
        f"update client set notes = set_byte(notes, {at}, (get_byte(notes, {at}) + 1) % 256) where id = '{row}'"
    )


@pytest.mark.parametrize("at", ["octet_length(notes) - 1", "4"])
async def test_an_envelope_that_is_spoilt_by_hand_can_be_mended_and_closes_no_history(
    at: str, lakeside: Clinic, attack: Attack
) -> None:
    one = await patient(lakeside, notes="before")
    moment = datetime.now(UTC)
    theirs = await attack(lakeside.tenant, lakeside.billing)
    await spoil(theirs, one.id, at)
    async with lakeside.as_admin():
        with pytest.raises(SealedValueError) as spoilt:
            await Client.select(Client.notes)
        assert at == "4" or str(one.id) in str(spoilt.value)
        await Client.update({Client.notes: "mended"}).where(Client.id == one.id)
        first, by_hand, mended = await one.history()
        wrong = DESTROYED if at == "4" else ALTERED
        assert [first.new["notes"], by_hand.new["notes"], mended.new["notes"]] == ["before", wrong, "mended"]
        assert by_hand.user_id == lakeside.billing
        assert (await one.as_of(datetime.now(UTC)))["notes"] == "mended"
        await one.revert(to=moment)
        assert one.notes == "before"
        with pytest.raises(ProtectedQueryError, match="opens no more"):
            await one.revert(to=by_hand.occurred_at)


async def test_hashes_that_are_moved_with_an_old_envelope_are_told(lakeside: Clinic, attack: Attack) -> None:
    one, two = await patient(lakeside, last_name="Nguyen"), await patient(lakeside, last_name="Zorn")
    theirs = await attack(lakeside.tenant, lakeside.billing)
    old = await theirs.fetchval("select last_name from client where id = $1", one.id)
    async with lakeside.as_clinician():
        await Client.update({Client.last_name: "Nguyen"}).where(Client.id == one.id)
    await theirs.execute(
        "update client set last_name = $1, last_name_folded = (select last_name_folded from client where id = $2)"
        " where id = $3", old, two.id, one.id,
    )  # fmt: skip
    async with lakeside.as_admin():
        told = await one.history()
        assert [change.action for change in told] == ["insert", "update"]  # not the one that only sealed it anew
        assert (told[1].user_id, told[1].old["last_name"], told[1].new["last_name"]) == (
            lakeside.billing, "Nguyen", "Nguyen",
        )  # fmt: skip


# -- looking without being shown -------------------------------------------------------------------------------------------


async def in_vain(query: Any) -> Any:
    """Ask, and go back before anything is kept."""
    with contextlib.suppress(ZeroDivisionError):
        async with transaction():
            await query
            raise ZeroDivisionError


GUESSES: dict[str, Callable[[Client], Any]] = {
    "an update that changes nothing": lambda c: Client.update({Client.status: "active"}).where(Client.ssn == c.ssn).returning(Client.id),
    "an update": lambda c: Client.update({Client.status: "active"}).where(Client.ssn == c.ssn),
    "a delete in vain": lambda c: in_vain(Client.delete().where(Client.ssn == c.ssn)),
    "an update in vain": lambda c: in_vain(Client.update({Client.phone: "1"}).where(Client.ssn == c.ssn)),
    "a select of nobody": lambda c: Client.select(Client.notes).where(Client.ssn == "000-00-0000"),
    "a get of nobody": lambda c: Client.objects().get(Client.ssn == "000-00-0000"),
    "a negation": lambda c: Client.select(Client.notes).where((Client.id == c.id) & (Client.date_of_birth != date(1950, 1, 1))),
    "a batch of nobody": lambda c: batch_of(Client.select(Client.notes).where(Client.ssn == "000-00-0000")),
    "nobody, in vain": lambda c: in_vain(Client.select(Client.notes).where(Client.ssn == "000-00-0000")),
    "a conflict": lambda c: Client.insert(someone(c)).on_conflict(action="DO NOTHING").returning(Client.id),
    "a conflict on a column": lambda c: Client.insert(someone(c)).on_conflict(Client.mrn, "DO NOTHING").returning(Client.id),
}  # fmt: skip


def someone(like: Client) -> Client:
    return Client(
        facility_id=like.facility_id, first_name="A", last_name="B", date_of_birth=date(2000, 1, 1), mrn=like.mrn
    )


async def batch_of(query: Any) -> None:
    async with await query.batch() as batch:
        async for _ in batch:
            pass


@pytest.mark.parametrize("how", GUESSES)
async def test_whoever_finds_out_who_has_a_value_leaves_a_record(
    how: str, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    one = await patient(lakeside, ssn=f"900-{uuid4().int % 90 + 10}-5017", mrn=uuid4().hex)
    reason = f"guess {uuid4()}"
    async with lakeside.as_admin(reason):
        guess = GUESSES[how](one)
        await guess
    found = await owner.fetch(f"select action_type from {LOG} where reason = $1", reason)
    assert [r["action_type"] for r in found if r["action_type"] not in ("update", "insert")] == ["search"]


@pytest.mark.parametrize(
    "query",
    [
        lambda: Client.select(Client.id, Client.ssn_exact),
        lambda: Client.select(Client.id).order_by(Client.ssn_exact),
        lambda: Client.select(Client.status, Count()).group_by(Client.status, Client.ssn_exact),
        lambda: Client.select(Client.id).distinct(on=[Client.ssn_exact]).order_by(Client.ssn_exact),
        lambda: Client.count(distinct=[Client.last_name_folded]),
        lambda: Client.select(Max(Client.last_name_folded)),
        lambda: Client.update({Client.phone: "1"}, force=True).returning(Client.ssn_exact),
    ],
)
async def test_hashes_are_for_searching_and_nothing_else(query: Any, lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        with pytest.raises(ProtectedQueryError, match="holds hashes for searching"):
            await query()


# -- who is locked or bound -------------------------------------------------------------------------------------------------


async def test_a_cursor_that_was_declared_before_reads_nothing_after_a_lock(lakeside: Clinic, attack: Attack) -> None:
    somebody = await person(lakeside)
    theirs = await attack(lakeside.tenant, somebody.id)
    await theirs.execute("begin")
    await theirs.execute("declare c1 cursor for select id, notes from client")
    async with lakeside.as_admin():
        await User.update({User.status: "locked"}).where(User.id == somebody.id)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await theirs.fetch("fetch all from c1")
    assert refused.value.sqlstate == "CH006"


async def test_a_user_is_locked_for_as_long_as_it_is_said(lakeside: Clinic) -> None:
    somebody = await person(lakeside, "admin")

    async def work() -> int:
        async with scope(tenant=lakeside.tenant, actor=somebody.id, reason="work"):
            return await Facility.count()

    async def locked(until: datetime | None) -> None:
        async with lakeside.as_admin():
            await User.update({User.locked_until: until}).where(User.id == somebody.id)

    assert await work() > 0
    await locked(datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(ScopeError, match="locked_until"):
        await work()
    await locked(datetime.now(UTC) + timedelta(milliseconds=300))
    await asyncio.sleep(0.5)
    assert await work() > 0
    await locked(None)
    assert await work() > 0


async def test_a_login_leaves_the_principal_as_it_is(lakeside: Clinic, attack: Attack) -> None:
    somebody = await person(lakeside, "admin")
    theirs = await attack(lakeside.tenant, somebody.id)
    await theirs.execute("begin isolation level repeatable read")
    assert await theirs.fetchval("select count(*) from facility") > 0
    async with lakeside.as_admin():
        await User.update({User.last_login_at: datetime.now(UTC)}).where(User.id == somebody.id)
    assert await theirs.fetchval("select count(*) from facility") > 0


async def test_an_admin_who_is_bound_to_a_facility_speaks_for_no_other(lakeside: Clinic) -> None:
    other = Facility(name=f"Other {uuid4().hex}")
    bound = User(
        email=f"{uuid4().hex}@x.example", full_name="B", role="admin", status="active",
        facility_scope=[lakeside.facility],
    )  # fmt: skip
    async with lakeside.as_admin():
        await other.save()
        await bound.save()
    async with scope(tenant=lakeside.tenant, actor=bound.id, reason="bound"):
        for query in (
            Facility.update({Facility.status: "inactive"}).where(Facility.id == other.id).returning(Facility.id),
            Tenant.update({Tenant.status: "closed"}, force=True).returning(Tenant.id),
        ):
            assert await query == []
        with pytest.raises(ScopeError):
            await Facility(name="More").save()


async def test_history_tells_a_list_with_nothing_in_it(lakeside: Clinic, attack: Attack) -> None:
    somebody = await person(lakeside)
    theirs = await attack(lakeside.tenant, lakeside.admin)
    await theirs.execute(f"update app_user set facility_scope = array[null]::uuid[] where id = '{somebody.id}'")
    async with lakeside.as_admin():
        assert (await history(User, somebody.id))[-1].new["facility_scope"] == [None]


async def test_each_change_of_a_document_is_recorded(
    lakeside: Clinic, owner: asyncpg.Connection, attack: Attack
) -> None:
    theirs = await attack(lakeside.tenant, lakeside.admin)
    for dose in ("1", "1.000"):
        before = await owner.fetchval(f"select count(*) from {LOG}")
        await theirs.execute(
            "update facility set settings = $1::text::jsonb where id = $2", f'{{"dose": {dose}}}', lakeside.facility
        )
        assert await owner.fetchval(f"select count(*) from {LOG}") == before + 1


# -- archiving -------------------------------------------------------------------------------------------------------------


async def month(owner: asyncpg.Connection, database: ChartholdEngine, clinic: Clinic, year: int) -> str:
    """A month of long ago with one record."""
    part = f"{LOG}_{year}_01"
    await owner.execute(
        f"create table {part} partition of {LOG} for values from ('{year}-01-01 00:00+00') to ('{year}-02-01 00:00+00');"
        f"alter table {part} enable row level security; alter table {part} force row level security;"
        f"alter table {part} owner to {await schema_owner(owner)}"
    )
    async with clinic.as_admin() as here, owner.transaction():
        token = here.token(database.token_key, owner.get_server_pid())
        await owner.execute("select set_config('charthold.scope', $1, true)", token)
        await owner.execute(
            f"insert into {LOG} (tenant_id, user_id, action_type, reason, occurred_at) values ($1, $2, 'login', 'old', $3)",
            clinic.tenant, clinic.admin, datetime(year, 1, 5, tzinfo=UTC),
        )  # fmt: skip
    return part


async def test_a_month_is_not_archived_on_the_word_of_a_seal_that_nobody_signed(
    hillside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine, attack: Attack
) -> None:
    part = await month(owner, database, hillside, 2015)
    theirs = await attack(hillside.tenant, hillside.auditor)
    await theirs.execute(
        "insert into audit_seal (id, tenant_id, version, tree_size, root_hash, era, cluster, horizon, sealed_at, leaf_list,"
        " previous, key_id, signature, frontier, record_ids, leaf_hashes)"
        f" values (charthold.uuid7(), '{hillside.tenant}', 1, 9000000000000000000, sha256('x'), 1, 1, 9000000000000000000,"
        " '2010-01-01', sha256('x'), sha256('x'), '0123456789abcdef', sha512('x'), '', '{}', '')"
    )
    with pytest.raises(ChartholdError, match="1 records that are not sealed"):
        await archive_partition(part)


async def test_a_month_that_is_sealed_is_archived(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    part = await month(owner, database, lakeside, 2014)
    async with lakeside.as_admin():
        await seal()
    # Threat: a record of today is given an old id and an old month, sealed, and "archived".
    with pytest.raises(ChartholdError, match="1 records that are not sealed, or not for the years"):
        await archive_partition(part)


async def test_a_month_that_was_sealed_when_it_was_young_is_archived(
    hillside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = await month(owner, database, hillside, 2013)
    monkeypatch.setattr(sealing, "_not_before", lambda *_: datetime(2013, 2, 1, tzinfo=UTC))
    await owner.execute("delete from audit_seal")
    async with hillside.as_admin():
        await seal()
    assert await archive_partition(part) == 1
    assert await owner.fetchval("select relforcerowsecurity from pg_class where relname = 'audit_seal'")


async def test_what_stands_at_the_horizon_is_not_sealed(
    hillside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    part = await month(owner, database, hillside, 2012)
    mine = await owner.fetchval(f"select transaction_id from {part}")
    for horizons, archived in (([mine], False), ([mine + 1], True)):
        async with database.as_owner() as connection:
            call = connection.fetchval(
                "select charthold.archive_partition($1, $2, $3)", part, [hillside.tenant], horizons
            )
            if archived:
                assert await call == 1
            else:
                with pytest.raises(asyncpg.PostgresError, match="1 records that are not sealed"):
                    await call


async def test_a_month_is_kept_for_its_youngest_record_and_who_keeps_longest_also_of_a_tenant_that_is_unknown(
    lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    """Threat: a tenant is taken out of the directory, and what it did goes with the others' months."""
    today = datetime.now(UTC)
    first = today.replace(year=today.year - 10, day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=40)).replace(day=1)
    part = f"{LOG}_{first:%Y_%m}"
    await owner.execute(
        f"create table {part} partition of {LOG} for values from ('{first:%Y-%m}-01 00:00+00') to"
        f" ('{following:%Y-%m}-01 00:00+00'); alter table {part} enable row level security;"
        f"alter table {part} force row level security; alter table {part} owner to {await schema_owner(owner)}"
    )
    for clinic, moment in ((hillside, first), (lakeside, following - timedelta(seconds=1))):
        async with clinic.as_admin() as here, owner.transaction():
            token = here.token(database.token_key, owner.get_server_pid())
            await owner.execute("select set_config('charthold.scope', $1, true)", token)
            await owner.execute(
                f"insert into {LOG} (tenant_id, user_id, action_type, reason, occurred_at)"
                " values ($1, $2, 'login', 'old', $3)",
                clinic.tenant, clinic.admin, moment,
            )  # fmt: skip

    async def archived(years: int, *sealed: UUID, known: bool = True) -> int:
        async with database.as_owner() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(
                    "update charthold.tenant_directory set retention_years = $1 where tenant_id = $2",
                    years, lakeside.tenant,
                )  # fmt: skip
                if not known:
                    await connection.execute(
                        "delete from charthold.tenant_directory where tenant_id = $1", lakeside.tenant
                    )
                return await connection.fetchval(
                    "select charthold.archive_partition($1, $2, $3)", part, sealed, [2**62] * len(sealed)
                )
            finally:
                await transaction.rollback()

    with pytest.raises(asyncpg.PostgresError, match="must be kept for 10 years"):
        await archived(10, hillside.tenant, lakeside.tenant)
    for known in (True, False):
        with pytest.raises(asyncpg.PostgresError, match="1 records that are not sealed"):
            await archived(9, hillside.tenant, known=known)
    assert await archived(9, hillside.tenant, lakeside.tenant) == 2


@pytest.mark.parametrize("years", [5, 101, 32_767])
async def test_a_tenant_keeps_its_records_for_a_possible_number_of_years(years: int, hillside: Clinic) -> None:
    async with hillside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError, match="tenant_retention_years_possible"):
            await Tenant.update({Tenant.retention_years: years}).where(Tenant.id == hillside.tenant)


async def test_a_slug_that_means_all_tenants_is_refused_by_the_database(hillside: Clinic) -> None:
    async with hillside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError, match="tenant_slug_free"):
            await Tenant.update({Tenant.slug: "all"}).where(Tenant.id == hillside.tenant)


# -- defaults and keys of others -----------------------------------------------------------------------------------------


async def test_a_logins_own_defaults_decide_nothing_about_the_log(
    database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    first = await database.connect(owner=False)
    login = await first.fetchval("select session_user")
    await owner.execute(
        f"alter role {login} set synchronous_commit = off; alter role {login} set debug_print_parse = on"
    )
    try:
        fresh = await database.connect(owner=False)
        assert await fresh.fetchval("show synchronous_commit") == "on"
        assert await fresh.fetchval("show debug_print_parse") == "off"
        await fresh.close()
    finally:
        await owner.execute(f"alter role {login} reset all")
        await first.close()


async def test_no_tenant_is_made_under_a_master_key_that_the_application_does_not_have(
    database: ChartholdEngine, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = f"s{uuid4().hex[:10]}"
    monkeypatch.setattr(database, "_token_key", TokenKey.derive(bytes(32)))
    with pytest.raises(ChartholdError, match="CHARTHOLD_MASTER_KEY is not the one"):
        await provision_tenant(slug=slug, name="Newone", admin_email="a@b.example")
    monkeypatch.undo()
    assert not await owner.fetchval("select exists (select from charthold.tenant_directory where slug = $1)", slug)
    assert await provision_tenant(slug=slug, name="Newone", admin_email="a@b.example")


# -- searching -----------------------------------------------------------------------------------------------------------


async def searches(owner: asyncpg.Connection, reason: str) -> list[tuple[str, Any]]:
    rows = await owner.fetch(
        f"select table_name, new_values from {LOG} where reason = $1 and action_type = 'search' order by occurred_at",
        reason,
    )
    return [(row["table_name"], json.loads(row["new_values"])) for row in rows]


async def test_whoever_finds_a_value_out_by_asking_for_it_is_recorded(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    reason, days = f"bisect {uuid4()}", [date(1980, 2, 25) + timedelta(n) for n in range(8)]
    async with lakeside.as_clinician(reason):
        while len(days) > 1:
            half = days[: len(days) // 2]
            hit = await Client.exists().where((Client.id == lakeside.client) & Client.date_of_birth.is_in(half))
            days = half if hit else days[len(days) // 2 :]
    assert days == [date(1980, 2, 29)]
    assert await searches(owner, reason) == [("client", {"rows": n, "columns": ["date_of_birth"]}) for n in (0, 1, 1)]


async def test_each_way_to_search_without_being_shown_anything_is_recorded(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    who = Client.last_name == "nguyen"
    both = who & Client.ssn.ends_with("5017")
    ways: list[tuple[Callable[[], Any], dict[str, Any]]] = [
        (lambda: Client.count().where(who), {"rows": 1, "columns": ["last_name"]}),
        (lambda: Client.count().where(Client.last_name == "nobody"), {"rows": 0, "columns": ["last_name"]}),
        (lambda: Client.select(Count()).where(Client.last_name == "nobody"), {"rows": 0, "columns": ["last_name"]}),
        (lambda: Client.exists().where(who), {"rows": 1, "columns": ["last_name"]}),
        (lambda: Client.exists().where(Client.last_name == "nobody"), {"rows": 0, "columns": ["last_name"]}),
        (lambda: Facility.exists().where(at_home(Client.mrn == "no such")), {"rows": 0, "columns": ["mrn"]}),
        (lambda: Client.select(Client.id).where(both), {"rows": 1, "columns": ["last_name", "ssn"]}),
        (
            lambda: Client.select(Client.status).where(Client.last_name == "nobody"),
            {"rows": 0, "columns": ["last_name"]},
        ),
        (
            lambda: Facility.select(Facility.name).where(
                Facility.id.is_in(Client.select(Client.facility_id).where(Client.mrn == "no such"))
            ),
            {"rows": 0, "columns": ["mrn"]},
        ),
    ]
    for build, said in ways:
        reason = f"search {uuid4()}"
        async with lakeside.as_clinician(reason):
            await build()
        assert [values for _, values in await searches(owner, reason)] == [said]
    reason = f"undone {uuid4()}"
    with contextlib.suppress(ZeroDivisionError):
        async with lakeside.as_clinician(reason), transaction():
            await Client.count().where(who)
            await Client.exists().where(Client.last_name == "nobody")
            raise ZeroDivisionError
    assert await searches(owner, reason) == [("client", {"rows": n, "columns": ["last_name"]}) for n in (1, 0)]
    reason = f"batch {uuid4()}"
    async with lakeside.as_clinician(reason), await Client.select(Client.id).where(who).batch(batch_size=1) as batch:
        assert [rows async for rows in batch]
    assert await searches(owner, reason) == [("client", {"columns": ["last_name"]})]


BENEATH: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "beneath another": (lambda: Client.select(Client.id).where(Client.last_name == "nguyen", by_ssn()), ["last_name", "ssn"]),
    "beneath a count": (lambda: Client.count().where(Client.last_name == "nguyen", by_ssn()), ["last_name", "ssn"]),
    "beneath rows that are shown": (lambda: Client.select(Client.notes).where(Client.last_name == "nguyen", by_ssn()), ["ssn"]),
    "beneath an update": (lambda: Client.update({Client.status: "active"}).where(Client.last_name == "nguyen", by_ssn()), ["last_name", "ssn"]),
    "beneath a delete in vain": (lambda: in_vain(Client.delete().where(Client.last_name == "zorn", by_ssn())), ["last_name", "ssn"]),
    "two beneath one": (lambda: Facility.exists().where(at_home(Client.mrn == "x"), at_home(Client.last_name == "y")), ["last_name", "mrn"]),
    "beneath SQL of one's own": (lambda: Client.raw("select exists({})", plan_by_ssn()), ["ssn"]),
    "beneath SQL of one's own, in vain": (lambda: in_vain(Client.raw("select exists({})", plan_by_ssn())), ["ssn"]),
    "beneath SQL of one's own, in a batch": (lambda: batch_of(Client.raw("select exists({})", plan_by_ssn())), ["ssn"]),
    "as the condition of a conflict": (lambda: conflict_by_ssn(), ["mrn", "ssn"]),
    "beneath rows that are inserted in vain": (lambda: in_vain(inserted_by_ssn()), ["ssn", "ssn"]),
    "in a batch": (lambda: batch_of(Client.select(Client.id).where(Client.last_name == "nguyen", by_ssn())), ["last_name", "ssn"]),
    "in a batch of rows that are shown": (lambda: batch_of(Client.select(Client.notes).where(Client.last_name == "nguyen", by_ssn())), ["ssn"]),
    "in a batch of nobody": (lambda: batch_of(Client.select(Client.notes).where(Client.last_name == "zorn", by_ssn())), ["last_name", "ssn"]),
}  # fmt: skip


def by_ssn() -> Any:
    return Client.id.is_in(Client.select(Client.id).where(Client.ssn.ends_with("5017")))


def plan_by_ssn() -> Any:
    return Client.select(Client.id).where(Client.ssn.ends_with("5017")).querystrings[0]


async def inserted_by_ssn() -> Any:
    found = QueryString(
        "coalesce(({}), 'on_hold')", Client.select(Client.status).where(by_ssn()).limit(1).querystrings[0]
    )
    site = await Facility.select(Facility.id).first()
    told = {"facility_id": site["id"], "first_name": "A", "last_name": "B", "date_of_birth": date(2000, 1, 1)}
    return await Client.insert(*(Client(**told, status=found) for _ in range(2)))


async def conflict_by_ssn() -> Any:
    known = await Client.objects().first()
    assert known is not None
    twin = Client(
        id=known.id, facility_id=known.facility_id, first_name="A", last_name="B", date_of_birth=date(2000, 1, 1)
    )
    values = [(Client.status, "active")]
    return await Client.insert(twin).on_conflict(Client.id, "DO UPDATE", values, Client.ssn == "no such")


def at_home(condition: Any) -> Any:
    return Facility.id.is_in(Client.select(Client.facility_id).where(condition))


@pytest.mark.parametrize("way", BENEATH)
async def test_each_search_of_a_statement_is_recorded(way: str, lakeside: Clinic, owner: asyncpg.Connection) -> None:
    """Threat: a search that is hidden beneath another finds out what the log does not say."""
    reason, (ask, searched) = f"beneath {uuid4()}", BENEATH[way]
    async with lakeside.as_admin(reason):
        await ask()
    assert sorted(values["columns"] for _, values in await searches(owner, reason)) == [[name] for name in searched]


async def test_a_search_of_a_client_by_what_refers_to_them_is_recorded_as_one_of_clients(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Threat: what is shown is the row that refers to the client, and its record says nothing of who was looked for."""
    reason, one = f"by reference {uuid4()}", await patient(lakeside, ssn="901-17-4321")
    async with lakeside.as_admin(reason):
        told = {"recipient": "County", "description": "measles", "purpose": "the law"}
        await Disclosure(client_id=one.id, disclosed_on=date.today(), basis="public_health", **told).save()
        there = Disclosure.client_id.ssn == one.ssn
        assert await Disclosure.select(Disclosure.recipient).where(there) == [{"recipient": "County"}]
        assert await Disclosure.count().where(there) == 1
    rows = {"rows": 1, "columns": ["ssn"]}
    assert await searches(owner, reason) == [("client", rows), ("client", rows)]


class Renamed(TenantTable, tablename="edge_renamed"):
    surname = EncryptedText(db_column_name="last_name", null=True)
    surname_exact = BlindIndex("surname", kind="exact")
    declares = (Unique(name="edge_renamed_key", columns=("tenant_id", "surname_exact")),)


async def test_a_search_names_columns_as_the_other_records_do(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(database, Renamed)
    monkeypatch.setattr("core.registered.tenant_tables", lambda: [Renamed])
    reason = f"renamed {uuid4()}"
    async with lakeside.as_clinician(reason):
        await Renamed(surname="Li").save()
        assert await Renamed.count().where(Renamed.surname == "Li") == 1
        assert await Renamed.insert(Renamed(surname="Li")).on_conflict(Renamed.surname, "DO NOTHING") == []
        with pytest.raises(asyncpg.UniqueViolationError):
            await Renamed(surname="Li").save()
    assert [said["columns"] for _, said in await searches(owner, reason)] == [["last_name"]] * 3


def by_an_error(condition: Any) -> dict[str, Callable[[], Any]]:
    """Statements that fail if the condition finds somebody."""
    number = Cast(Client.status, Integer())
    return {
        "a check": lambda: Client.update({Client.status: "no such"}).where(condition),
        "a policy": lambda: Client.update({Client.facility_id: uuid7()}).where(condition).returning(Client.id),
        "what is computed": lambda: Client.select(number).where(condition),
        "what is computed beside rows that are shown": lambda: Client.select(Client.notes, number).where(condition),
        "in a savepoint": lambda: undone(Client.update({Client.status: "no such"}).where(condition)),
        "in a batch": lambda: batch_of(Client.select(number).where(condition)),
        "in a batch of rows that are shown": lambda: batch_of(Client.select(Client.notes, number).where(condition)),
    }


async def undone(query: Any) -> None:
    """Run it in a savepoint, and commit what is around that."""
    caught: asyncpg.PostgresError | None = None
    async with transaction():
        try:
            async with transaction():
                await query
        except asyncpg.PostgresError as error:
            caught = error
    if caught is not None:
        raise caught


@pytest.mark.parametrize("way", by_an_error(None))
async def test_a_search_that_tells_by_an_error_is_recorded(
    way: str, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Threat: what fails if somebody has the value takes its own record along."""
    for guess in ("999-17-5017", "no such"):
        reason = f"guess {uuid4()}"
        async with lakeside.as_admin(reason):
            with pytest.raises((asyncpg.PostgresError, ScopeError)) if guess != "no such" else contextlib.nullcontext():
                await by_an_error(Client.ssn == guess)[way]()
        assert [values["columns"] for _, values in await searches(owner, reason)] == [["ssn"]]


async def test_what_fails_before_anybody_is_looked_for_is_no_search(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    reason = f"mistake {uuid4()}"
    async with lakeside.as_admin(reason):
        with pytest.raises(asyncpg.DataError):
            await Client.update({Client.admitted_on: "no date"}).where(Client.ssn == "999-17-5017")
    assert not await searches(owner, reason)


@pytest.mark.parametrize("way", ["insert", "several", "update", "savepoint", "rolled back", "SQL of one's own"])
async def test_who_is_refused_a_value_that_somebody_has_is_on_record(
    way: str, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Threat: who is whose number is asked by giving it to somebody else, and the refusal takes its own record along."""
    reason, taken = f"guess {uuid4()}", {"mrn": "lakeside-1"}
    async with lakeside.as_clinician(reason):
        other = newcomer(lakeside)
        await other.save()
        match way:
            case "insert":
                with pytest.raises(asyncpg.UniqueViolationError):
                    await newcomer(lakeside, **taken).save()
            case "several":
                with pytest.raises(asyncpg.UniqueViolationError):
                    await Client.insert(newcomer(lakeside), newcomer(lakeside, **taken))
            case "update":
                with pytest.raises(asyncpg.UniqueViolationError):
                    await Client.update(taken).where(Client.id == other.id)
            case "savepoint":
                async with transaction():
                    with pytest.raises(asyncpg.UniqueViolationError):
                        async with transaction():
                            await other.update_self(taken)
            case "SQL of one's own":
                with pytest.raises(asyncpg.UniqueViolationError):
                    await Client.raw("{}", Client.insert(newcomer(lakeside, **taken)).querystrings[0])
            case _:
                with contextlib.suppress(asyncpg.UniqueViolationError):
                    async with transaction():
                        await other.update_self(taken)
        with pytest.raises(asyncpg.UniqueViolationError):  # which asks for nothing sealed
            await Client.insert(other)
    assert await searches(owner, reason) == [("client", {"rows": 1, "columns": ["mrn"]})]


async def test_a_refusal_is_on_record_also_when_no_connection_is_free_and_nobody_waits_for_it(
    lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    """Threat: who keeps every connection busy, or gives up at once, is refused, and waits for no record of it."""
    reason, pool = f"guess {uuid4()}", database._here().pool
    async with lakeside.as_clinician(reason):
        await newcomer(lakeside).save()  # a lane is open
        held = [await pool.acquire() for _ in range(pool.size)]
        try:
            with pytest.raises(asyncpg.UniqueViolationError):
                async with asyncio.timeout(5):
                    await newcomer(lakeside, mrn="lakeside-1").save()
        finally:
            for link in held:
                await pool.release(link)
    assert await searches(owner, reason) == [("client", {"rows": 1, "columns": ["mrn"]})]


class Pump(TenantTable, tablename="edge_pump"):
    serial = EncryptedText(identifier="device_identifiers")
    serial_exact = BlindIndex("serial", kind="exact")
    declares = (Unique("edge_pump_serial_key", columns=("tenant_id", "serial_exact")),)


class Namesake(TenantTable, tablename="edge_pump", schema="elsewhere"):
    label = EncryptedText(identifier="device_identifiers")
    label_exact = BlindIndex("label", kind="exact")
    declares = (Unique("edge_pump_serial_key", table="elsewhere.edge_pump", columns=("tenant_id", "label_exact")),)


async def test_a_refusal_by_a_unique_constraint_is_on_record_too_and_names_the_columns_of_its_own_table(
    lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(database, Pump)
    monkeypatch.setattr("core.registered.tenant_tables", lambda: [Namesake, Pump])
    reason = f"guess {uuid4()}"
    async with lakeside.as_clinician(reason):
        await Pump(serial="A-1").save()
        with pytest.raises(asyncpg.UniqueViolationError):
            await Pump(serial="A-1").save()
        await Pump.insert(Pump(serial="A-1")).on_conflict(target=Pump.serial, action="DO NOTHING")
    columns = {"columns": ["serial"]}
    assert await searches(owner, reason) == [("edge_pump", {"rows": n, **columns}) for n in (1, 0)]


async def test_a_batch_that_would_open_phi_and_finds_nobody_is_a_search(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    reason = f"empty {uuid4()}"
    nobody = Client.select(Client.notes).where(Client.last_name == "nobody")
    async with lakeside.as_clinician(reason), await nobody.batch(batch_size=5) as batch:
        assert [rows async for rows in batch] == []
    assert await searches(owner, reason) == [("client", {"rows": 0, "columns": ["last_name"]})]


async def test_a_change_of_a_user_that_is_rolled_back_leaves_them_in(lakeside: Clinic) -> None:
    """The row that says who may act has the transaction that was rolled back for its xmax."""
    with contextlib.suppress(ZeroDivisionError):
        async with lakeside.as_admin(), transaction():
            await User.update({User.status: "locked"}).where(User.id == lakeside.clinician)
            raise ZeroDivisionError
    async with lakeside.as_clinician():
        assert await Client.count() > 0


async def test_what_is_shown_is_recorded_as_read_and_not_as_a_search_too(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    reason = f"undone {uuid4()}"
    with contextlib.suppress(ZeroDivisionError):
        async with lakeside.as_clinician(reason), transaction():
            await Client.select(Client.notes).where(Client.last_name == "nguyen")
            raise ZeroDivisionError
    assert (await searches(owner, reason), await seen(owner, reason)) == ([], 1)
    reason = f"shown {uuid4()}"
    async with lakeside.as_clinician(reason):
        await Client.select(Client.notes).where(Client.last_name == "nguyen")
        await Client.count().where(Client.status == "active")
    assert await searches(owner, reason) == []
    assert await seen(owner, reason) == 1
