"""A clinician breaks the glass: one client's chart, for a while, to read, on record, and reviewed by somebody else."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import ChartholdError, Emergency, ProtectedQueryError, ScopeError, break_glass, record, scope, transaction
from core.access.permissions import ROLES
from core.audit.history import history
from core.columns import EncryptedText, TenantForeignKey
from core.compliance.emergencies import EmergencyAccess
from core.engine import ChartholdEngine
from core.errors import ConfigurationError
from core.ids import uuid7
from core.tables import Client, Facility, TenantTable, User, UserActionAuditLog
from core.token import TokenKey
from tests.conftest import Clinic
from tests.ledger import create
from tests.test_readme import README

WHY = "unconscious, nobody to ask"


class Visit(TenantTable, tablename="emergency_visit"):
    """Of a client, and so narrowed by it."""

    client_id = TenantForeignKey(Client)
    notes = EncryptedText(identifier="other", null=True)


class Finding(TenantTable, tablename="emergency_finding"):
    """Two references away from the client."""

    visit_id = TenantForeignKey(Visit)


class Stay(TenantTable, tablename="emergency_stay"):
    """Narrowed by a facility of its own, and of a client all the same. Every role may write it."""

    facility_id = TenantForeignKey(Facility)
    client_id = TenantForeignKey(Client, null=True)
    permissions = {"select": ROLES, "insert": ROLES, "update": ROLES, "delete": ROLES}  # noqa: RUF012


class Ward(TenantTable, tablename="emergency_ward"):
    """Of a facility, and of nobody."""

    facility_id = TenantForeignKey(Facility)


class Result(TenantTable, tablename="emergency_result"):
    """Narrowed by a facility of its own, and of a client by way of a visit."""

    facility_id = TenantForeignKey(Facility)
    visit_id = TenantForeignKey(Visit)


class Both(TenantTable, tablename="emergency_both"):
    """Narrowed by both, because it says so."""

    facility_id = TenantForeignKey(Facility)
    client_id = TenantForeignKey(Client)
    facility_from = ("facility_id", "client_id")


class Invoice(TenantTable, tablename="emergency_invoice"):
    """Of a client, and paid by another."""

    client_id = TenantForeignKey(Client)
    paid_by = TenantForeignKey(Client, null=True)
    notes = EncryptedText(identifier="other", null=True)


class Transplant(TenantTable, tablename="emergency_transplant"):
    """Of a facility, and of two clients: whose it is nobody said."""

    facility_id = TenantForeignKey(Facility)
    donor_id = TenantForeignKey(Client)
    receiver_id = TenantForeignKey(Client)


class Bill(TenantTable, tablename="emergency_bill"):
    """Of a facility, and of a client, whom another may pay for."""

    facility_id = TenantForeignKey(Facility)
    paid_by = TenantForeignKey(Client, null=True)
    client_id = TenantForeignKey(Client)


class Sample(TenantTable, tablename="emergency_sample"):
    """Of a facility, and of a client, whom it names itself and by way of a visit."""

    facility_id = TenantForeignKey(Facility)
    visit_id = TenantForeignKey(Visit)
    client_id = TenantForeignKey(Client)


class Order(TenantTable, tablename="emergency_order"):
    """Narrowed by two references that lead to a client, because it says so."""

    client_id = TenantForeignKey(Client)
    visit_id = TenantForeignKey(Visit)
    facility_from = ("client_id", "visit_id")


class Letter(TenantTable, tablename="emergency_letter"):
    """For the whole tenant, whoever it is about."""

    client_id = TenantForeignKey(Client)
    facility_from = ()


class Reply(TenantTable, tablename="emergency_reply"):
    """Of a facility, and of a client only by what everybody sees."""

    facility_id = TenantForeignKey(Facility)
    letter_id = TenantForeignKey(Letter)


TABLES = (Visit, Finding, Stay, Ward, Result, Both, Invoice, Transplant, Bill, Sample, Order, Letter, Reply)
CHARTS = (Client, Visit, Finding, Stay, Result, Both, Invoice, Bill, Sample, Order)


class Chart(NamedTuple):
    """A client, and a row of each table that tells of them."""

    facility: UUID
    client: UUID
    rows: dict[type[TenantTable], UUID]


@pytest.fixture(scope="module")
async def charts(database: ChartholdEngine, lakeside: Clinic) -> tuple[Chart, Chart, Chart]:
    """One here, and two in another facility."""
    await create(database, *TABLES)
    async with lakeside.as_admin():
        here, there = Facility(name="Here"), Facility(name="There")
        await Facility.insert(here, there)
        return await furnish(here, "Ida"), await furnish(there, "Tom"), await furnish(there, "Tim")


async def furnish(facility: Facility, name: str) -> Chart:
    client = Client(facility_id=facility.id, first_name=name, last_name="Li", date_of_birth=date(1990, 1, 1))
    await client.save()
    visit = Visit(client_id=client.id, notes=name)
    await visit.save()
    finding, ward = Finding(visit_id=visit.id), Ward(facility_id=facility.id)
    stay = Stay(facility_id=facility.id, client_id=client.id)
    result, both = (
        Result(facility_id=facility.id, visit_id=visit.id),
        Both(facility_id=facility.id, client_id=client.id),
    )
    invoice = Invoice(client_id=client.id, notes=name)
    transplant = Transplant(facility_id=facility.id, donor_id=client.id, receiver_id=client.id)
    bill, letter = Bill(facility_id=facility.id, client_id=client.id), Letter(client_id=client.id)
    await letter.save()
    reply = Reply(facility_id=facility.id, letter_id=letter.id)
    sample = Sample(facility_id=facility.id, visit_id=visit.id, client_id=client.id)
    order = Order(client_id=client.id, visit_id=visit.id)
    for row in (finding, stay, ward, result, both, invoice, transplant, bill, reply, sample, order):
        await row.save()
    rows = {
        type(row): row.id for row in (client, visit, finding, stay, ward, result, both, invoice, bill, sample, order)
    }
    return Chart(facility.id, client.id, rows)


@pytest.fixture
async def doctor(lakeside: Clinic, charts: tuple[Chart, Chart, Chart]) -> UUID:
    """A clinician of the first facility."""
    return await hire(lakeside, "clinician", charts[0].facility)


async def hire(clinic: Clinic, role: str, facility: UUID | None) -> UUID:
    user = User(
        email=f"{uuid7()}@lakeside.example", full_name="Doctor", role=role, status="active",
        facility_scope=[facility] if facility else None,
    )  # fmt: skip
    async with clinic.as_admin():
        await user.save()
    return user.id


async def declare(clinic: Clinic, user: UUID, client: UUID, minutes: int = 60) -> Emergency:
    async with scope(tenant=clinic.tenant, actor=user, reason="emergency room"):
        return await break_glass(client, reason=WHY, minutes=minutes)


async def test_in_an_emergency_one_chart_of_another_facility_is_seen_and_no_other(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    _, there, beside = charts
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="treatment"):
        assert await Client.objects().get(Client.id == there.client) is None
    emergency = await declare(lakeside, doctor, there.client)
    async with emergency.scope():
        chart = await Client.objects().get(Client.id == there.client)
        assert chart is not None
        assert chart.first_name == "Tom"
        for table in CHARTS:
            assert [row["id"] for row in await table.select(table.id)] == [there.rows[table]], table
        assert [row["notes"] for row in await Visit.select(Visit.notes)] == ["Tom"]
        assert await Ward.select(Ward.id) == []
        assert await Client.exists().where(Client.id == beside.client) is False
    # Outside of that scope the user sees what they saw before.
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="treatment"):
        assert [row["id"] for row in await Client.select(Client.id)] == [charts[0].client]


async def test_what_another_client_is_named_in_is_not_shown(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    """Who pays for a client sees in their own facility nothing of that client; nor does their emergency."""
    _, there, beside = charts
    async with lakeside.as_admin():
        paid = Invoice(client_id=beside.client, paid_by=there.client, notes="of somebody else")
        await paid.save()
        billed = Bill(facility_id=there.facility, client_id=beside.client, paid_by=there.client)
        await billed.save()
        ordered = Order(client_id=there.client, visit_id=beside.rows[Visit])
        await ordered.save()
    emergency = await declare(lakeside, doctor, there.client)
    async with emergency.scope():
        assert not await Invoice.exists().where(Invoice.id == paid.id)
        assert not await Bill.exists().where(Bill.id == billed.id)
        assert not await Order.exists().where(Order.id == ordered.id)
        assert await Transplant.count() == 0
        # By a letter that everybody sees each reply would be.
        assert (await Letter.count(), await Reply.count()) == (3, 0)
    async with lakeside.as_admin():
        await Invoice.delete().where(Invoice.id == paid.id)
        await Bill.delete().where(Bill.id == billed.id)
        await Order.delete().where(Order.id == ordered.id)


async def test_who_is_bound_sees_no_more_by_what_an_emergency_goes_by(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    here, there, _ = charts
    async with lakeside.as_admin():
        elsewhere = Result(facility_id=there.facility, visit_id=here.rows[Visit])
        await elsewhere.save()
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="treatment"):
        assert [row["id"] for row in await Result.select(Result.id)] == [here.rows[Result]]
    async with lakeside.as_admin():
        await Result.delete().where(Result.id == elsewhere.id)


async def test_what_is_read_in_an_emergency_is_on_record_as_such_in_the_name_of_who_read_it(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    client = charts[1].client
    async with scope(
        tenant=lakeside.tenant, actor=doctor, reason="emergency room", request_id="r-0", source_ip="192.0.2.6"
    ):
        emergency = await break_glass(client, reason=WHY)
    async with emergency.scope(request_id="r-1", source_ip="192.0.2.7"):
        await Client.objects().get(Client.id == client)
    rows = await owner.fetch(
        "select action_type, reason, request_id, host(source_ip) as ip, new_values from user_action_audit_log"
        " where record_id = $1 and user_id = $2 order by occurred_at",
        client,
        doctor,
    )
    broke, read = rows
    assert tuple(broke)[:4] == ("break_glass", WHY, "r-0", "192.0.2.6")
    said = json.loads(broke["new_values"])
    assert said.keys() == {"emergency", "until"}
    assert (UUID(said["emergency"]), datetime.fromisoformat(said["until"])) == (emergency.id, emergency.until)
    assert tuple(read)[:4] == ("read", f"break-glass: {WHY}", "r-1", "192.0.2.7")
    async with lakeside.as_admin():
        [row] = await EmergencyAccess.select().where(EmergencyAccess.id == emergency.id)
        assert (row["user_id"], row["client_id"], row["reason"]) == (doctor, client, WHY)
        assert row["until"] == emergency.until
        assert row["until"] - row["created_at"] == timedelta(minutes=60)
        assert [change.action for change in await history(EmergencyAccess, emergency.id)] == ["insert"]


async def test_many_reads_at_once_and_in_a_transaction_are_of_that_chart_and_recorded(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    client = charts[1].client
    emergency = await declare(lakeside, doctor, client)
    async with emergency.scope():
        rows = await asyncio.gather(*(Client.objects().get(Client.id == client) for _ in range(40)))
        assert {row and row.first_name for row in rows} == {"Tom"}
        async with transaction():
            assert await Client.objects().where(Client.last_name == "li")
            assert await Visit.objects()
    reads = await owner.fetchval(
        "select count(*) from user_action_audit_log where user_id = $1 and action_type = 'read'"
        " and table_name = 'client' and record_id = $2 and reason = $3",
        doctor, client, f"break-glass: {WHY}",
    )  # fmt: skip
    assert reads == 41


async def test_what_was_shown_in_a_transaction_that_failed_is_recorded_in_the_users_name(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    client = charts[1].client
    emergency = await declare(lakeside, doctor, client)
    async with emergency.scope():
        with pytest.raises(RuntimeError, match="on purpose"):
            async with transaction():
                await Client.objects().get(Client.id == client)
                raise RuntimeError("on purpose")
    [row] = await owner.fetch(
        "select reason, record_id, request_id, source_ip from user_action_audit_log"
        " where user_id = $1 and action_type = 'read'",
        doctor,
    )
    assert tuple(row) == (f"break-glass: {WHY}", client, None, None)


@pytest.mark.parametrize("table", [Client, Visit, Stay])
async def test_in_an_emergency_nothing_is_changed_nor_made_nor_deleted(
    table: type[TenantTable], lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    here, there, _ = charts
    emergency = await declare(lakeside, doctor, there.client)
    row = table._meta.primary_key == there.rows[table]
    moved = {Client: {Client.facility_id: here.facility}, Visit: {Visit.client_id: here.client}}.get(
        table, {Stay.facility_id: here.facility}
    )
    made = {
        Client: Client(facility_id=here.facility, first_name="A", last_name="B", date_of_birth=date(2000, 1, 1)),
        Visit: Visit(client_id=there.client),
        Stay: Stay(facility_id=here.facility, client_id=there.client),
    }[table]
    async with emergency.scope():
        await table.update(moved).where(row)
        await table.delete().where(row)
        with pytest.raises(ScopeError, match="row-level security"):
            await made.save()
    async with lakeside.as_admin():
        [after] = await table.select().where(row)
        assert {column._meta.name: after[column._meta.name] for column in moved} != {
            column._meta.name: value for column, value in moved.items()
        }
        assert not await table.exists().where(table._meta.primary_key == made.id)


async def test_an_emergency_ends(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor, charts[1].client, minutes=1)
    assert timedelta(seconds=50) < emergency.until - datetime.now(UTC) <= timedelta(seconds=61)
    async with emergency.scope():
        assert await Client.count() == 1
        await owner.execute("update charthold.emergency set until = clock_timestamp() where id = $1", emergency.id)
        with pytest.raises(ScopeError, match="emergency has ended"):
            await Client.count()


@pytest.mark.parametrize(
    "change",
    ["status = 'locked'", "locked_until = now() + interval '1 hour'", "role = 'billing'", "status = 'deactivated'"],
)
async def test_who_is_locked_or_no_clinician_any_more_is_out_at_once(
    change: str, lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor, charts[1].client)
    async with emergency.scope():
        assert await Client.count() == 1
        async with owner.transaction():
            await owner.execute(
                "select set_config('charthold.scope', charthold.sign($1, $2, 'test'), true)",
                lakeside.tenant, lakeside.admin,
            )  # fmt: skip
            await owner.execute(f"update app_user set {change} where id = $1", doctor)
        with pytest.raises(ScopeError, match="not an active user"):
            await Client.count()


async def test_in_a_tenant_that_is_suspended_there_are_no_emergencies(database: ChartholdEngine) -> None:
    from core import set_tenant_status
    from tests.conftest import make_clinic

    clinic = await make_clinic("closing")
    doctor = await hire(clinic, "clinician", uuid7())
    emergency = await declare(clinic, doctor, clinic.client)
    await set_tenant_status(tenant=clinic.tenant, actor=clinic.admin, status="suspended", reason="test")
    async with emergency.scope():
        with pytest.raises(ScopeError, match="suspended"):
            await Client.count()


async def test_only_who_is_bound_and_treats_or_administers_breaks_the_glass(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart]
) -> None:
    here, there, _ = charts
    for role in ("billing", "auditor", "system"):
        with pytest.raises(ScopeError, match="may not do that: break the glass"):
            await declare(lakeside, await hire(lakeside, role, here.facility), there.client)
    for whole in (lakeside.admin, lakeside.clinician):
        with pytest.raises(ProtectedQueryError, match="see the whole tenant"):
            await declare(lakeside, whole, there.client)
    admin = await declare(lakeside, await hire(lakeside, "admin", here.facility), there.client)
    async with admin.scope():
        assert await Client.count() == 1
        # And it is no way to the log, nor to users.
        with pytest.raises(ScopeError, match="The log is for users"):
            await history(Client, there.client)
        with pytest.raises(ScopeError, match="audit_read"):
            await UserActionAuditLog.count()
        with pytest.raises(ScopeError, match="break the glass"):
            await break_glass(charts[2].client, reason="one more")


async def test_an_emergency_names_a_client_a_reason_and_a_time(
    lakeside: Clinic, hillside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    there = charts[1].client
    for client in (uuid7(), hillside.client):
        with pytest.raises(ChartholdError, match="no client with that id"):
            await declare(lakeside, doctor, client)
    for minutes in (0, 241, 1.5, True):
        with pytest.raises(ChartholdError, match="1 to 240"):
            await declare(lakeside, doctor, there, minutes=minutes)  # type: ignore[arg-type]
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        for reason in ("", "  "):
            with pytest.raises(ChartholdError, match="needs a reason"):
                await break_glass(there, reason=reason)
        for reason in ("two\nlines", "x" * 501):
            with pytest.raises(ScopeError, match="printable text"):
                await break_glass(there, reason=reason)
    with pytest.raises(ScopeError, match="emergency is a UUID"):
        scope(tenant=lakeside.tenant, actor=doctor, reason="x", emergency="7")  # type: ignore[arg-type]


async def test_an_emergency_is_of_who_declared_it(
    lakeside: Clinic, hillside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID
) -> None:
    emergency = await declare(lakeside, doctor, charts[1].client)
    colleague = await hire(lakeside, "clinician", charts[0].facility)
    for tenant, actor in (
        (lakeside.tenant, colleague),
        (lakeside.tenant, lakeside.admin),
        (hillside.tenant, hillside.clinician),
        (hillside.tenant, doctor),
    ):
        async with scope(tenant=tenant, actor=actor, reason="x", emergency=emergency.id):
            with pytest.raises(ScopeError, match="not an active user"):
                await Client.count()
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="x", emergency=uuid7()):
        with pytest.raises(ScopeError, match="not an active user"):
            await Client.count()
    # Threat: an application takes the id from a request, and it is a user's.
    for user in (lakeside.clinician, doctor):
        async with scope(tenant=lakeside.tenant, actor=doctor, reason="x", emergency=user):
            with pytest.raises(ScopeError, match="not an active user"):
                await Client.count()


async def asked_with(connection: asyncpg.Connection, token: str) -> int:
    """How many clients who holds that token sees."""
    async with connection.transaction():
        await connection.execute("select set_config('charthold.scope', $1, true)", token)
        return await connection.fetchval("select count(*) from client")


async def test_an_emergency_is_believed_of_a_token_that_we_signed_for_this_connection(
    database: ChartholdEngine, lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID,
    owner: asyncpg.Connection, runtime: asyncpg.Connection,
) -> None:  # fmt: skip
    emergency = await declare(lakeside, doctor, charts[1].client)
    said = {
        "tenant": lakeside.tenant, "actor": doctor, "emergency": emergency.id, "reason": WHY,
        "backend": runtime.get_server_pid(), "expires": int(time.time()) + 600,
    }  # fmt: skip
    key, other = database.token_key, TokenKey.derive(bytes(32))
    good = key.sign(**said)
    assert await asked_with(runtime, good) == 1
    for bad, why in (
        (other.sign(**said), "not signed"),
        (good.replace(WHY, "a whim"), "not signed"),
        ("0" * 64 + good[64:], "not signed"),
        (key.sign(**said | {"expires": int(time.time()) - 1}), "expired"),
        (key.sign(**said | {"backend": runtime.get_server_pid() + 1}), "another connection"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=why):
            await asked_with(runtime, bad)


@pytest.mark.parametrize("kind", ["find", "late"])
async def test_what_acts_beyond_its_callers_rights_is_signed_for_this_connection_too(
    kind: str, database: ChartholdEngine, lakeside: Clinic, runtime: asyncpg.Connection
) -> None:
    """Threat: whoever writes such a token by hand sees the whole tenant, and nothing is recorded."""
    said = {
        "tenant": lakeside.tenant, "actor": kind + lakeside.admin.hex, "reason": "by hand\x1f\x1fa guess",
        "backend": runtime.get_server_pid(), "expires": int(time.time()) + 600,
    }  # fmt: skip
    key, other = database.token_key, TokenKey.derive(bytes(32))
    assert await asked_with(runtime, key.sign(**said)) > 0
    for bad, why in (
        (other.sign(**said), "not signed"),
        ("0" * 64 + key.sign(**said)[64:], "not signed"),
        (key.sign(**said | {"expires": int(time.time()) - 1}), "expired"),
        (key.sign(**said | {"backend": runtime.get_server_pid() + 1}), "another connection"),
        # And by a function of ours, which says something that nobody can guess.
        (key.sign(**said | {"reason": "by hand"}), "not an active user"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=why):
            await asked_with(runtime, bad)


async def test_an_old_snapshot_does_not_keep_an_emergency_of_who_was_locked(
    database: ChartholdEngine, lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID,
    runtime: asyncpg.Connection,
) -> None:  # fmt: skip
    emergency = await declare(lakeside, doctor, charts[1].client)
    async with emergency.scope() as here:
        token = here.token(database.token_key, runtime.get_server_pid())
    with pytest.raises(asyncpg.PostgresError, match="changed since this statement began"):
        async with runtime.transaction(isolation="repeatable_read"):
            assert await asked_with(runtime, token) == 1
            async with lakeside.as_admin():
                await User.update({User.status: "locked"}).where(User.id == doctor)
            await asked_with(runtime, token)


@pytest.mark.parametrize("kind", ["find", "late"])
async def test_what_acts_beyond_its_callers_rights_changes_nothing(
    kind: str, lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    async with owner.transaction():
        who = kind + lakeside.admin.hex
        token, another = [
            await owner.fetchval("select charthold.sign_as($1, $2, 'test')", lakeside.tenant, who) for _ in range(2)
        ]
        assert int(token[72:82]) <= time.time() + 61
        assert int(token[82:92]) == owner.get_server_pid()
        assert token[-36:] != another[-36:], "nobody can guess how it ends"
        await owner.execute("select set_config('charthold.scope', $1, true)", token)
        assert await owner.fetchval("select charthold.actor_role()") == "emergency"
        assert await owner.fetchval("select charthold.actor_id()") == lakeside.admin


async def test_sql_makes_no_emergency_and_lengthens_none(
    database: ChartholdEngine,
    lakeside: Clinic,
    charts: tuple[Chart, Chart, Chart],
    doctor: UUID,
    runtime: asyncpg.Connection,
) -> None:
    there = charts[1].client
    emergency = await declare(lakeside, doctor, there)
    mine = scope(tenant=lakeside.tenant, actor=doctor, reason="treatment")
    async with mine:
        token = mine.token(database.token_key, runtime.get_server_pid())
        for refused in (
            "insert into emergency_access (id, tenant_id, user_id, client_id, reason, until)"
            f" values (gen_random_uuid(), '{lakeside.tenant}', '{doctor}', '{there}', 'x', 'infinity')",
            f"update emergency_access set until = 'infinity' where id = '{emergency.id}'",
            "delete from emergency_access",
            "select * from charthold.emergency",
            "update charthold.emergency set until = 'infinity'",
            "select charthold.other_scope(current_setting('charthold.scope'))",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with runtime.transaction():
                    await runtime.execute("select set_config('charthold.scope', $1, true)", token)
                    await runtime.execute(refused)
        assert await Client.raw("select charthold.break_glass({}, {}, 240)", lakeside.client, WHY)
        for minutes in (0, 241, None):
            with pytest.raises(asyncpg.PostgresError, match="1 to 240 minutes"):
                async with runtime.transaction():
                    await runtime.execute("select set_config('charthold.scope', $1, true)", token)
                    await runtime.fetch("select * from charthold.break_glass($1, 'x', $2)", there, minutes)
        with pytest.raises(ProtectedQueryError, match="database alone records"):
            await record("break_glass", table=Client, record_id=there)


async def test_a_table_of_ones_own_cannot_let_an_emergency_write() -> None:
    with pytest.raises(ConfigurationError, match="'emergency'"):

        class Loose(TenantTable, tablename="emergency_loose"):
            permissions = {"insert": ("emergency",)}  # noqa: RUF012


async def test_what_was_opened_may_be_deleted_when_it_need_not_be_kept_and_the_log_remembers(
    lakeside: Clinic, charts: tuple[Chart, Chart, Chart], doctor: UUID, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        gone = Client(facility_id=charts[1].facility, first_name="A", last_name="B", date_of_birth=date(1900, 1, 1))
        await gone.save()
    emergency = await declare(lakeside, doctor, gone.id)
    async with lakeside.as_admin():
        await Client.delete().where(Client.id == gone.id)
        assert not await EmergencyAccess.exists().where(EmergencyAccess.id == emergency.id)
    async with emergency.scope():
        assert await Client.count() == 0
    actions = await owner.fetch(
        "select action_type from user_action_audit_log where record_id = any($1) order by occurred_at",
        [gone.id, emergency.id],
    )
    assert sorted(row["action_type"] for row in actions) == ["break_glass", "delete", "delete", "insert", "insert"]


async def test_the_example_of_the_readme_runs(
    database: ChartholdEngine, lakeside: Clinic, doctor: UUID, charts: tuple[Chart, Chart, Chart]
) -> None:
    async with lakeside.as_admin():
        await Client.update({Client.mrn: "A-1723"}).where(Client.id == charts[1].client)
    [source] = [block for block in README.read_text(encoding="utf-8").split("```python\n") if "break_glass(" in block]
    namespace: dict[str, Any] = {
        "Client": Client, "scope": scope, "break_glass": break_glass, "clinic": lakeside.tenant, "doctor": doctor,
    }  # fmt: skip
    body = f"async def example():\n{textwrap.indent(source.partition('```')[0], '    ')}\n    return chart\n"
    exec(compile(body, "README.md", "exec"), namespace)
    assert (await namespace["example"]()).first_name == "Tom"


async def searches(owner: asyncpg.Connection, user: UUID) -> list[Any]:
    rows = await owner.fetch(
        "select new_values -> 'indexes' as indexes, new_values -> 'rows' as rows, reason from user_action_audit_log"
        " where user_id = $1 and action_type = 'search' order by occurred_at",
        user,
    )
    return [(json.loads(row["indexes"]), int(row["rows"]), row["reason"]) for row in rows]


async def test_a_client_is_found_by_what_they_are_known_by_and_only_with_an_emergency(
    lakeside: Clinic, hillside: Clinic, doctor: UUID, charts: tuple[Chart, Chart, Chart], owner: asyncpg.Connection
) -> None:
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        for nobody in (
            Client.mrn == "hillside-1",  # of another tenant
            Client.last_name == "Nobody",
            (Client.last_name == "nguyen") & (Client.date_of_birth == date(1980, 2, 28)),
        ):
            with pytest.raises(ChartholdError, match="No client fits"):
                await break_glass(nobody, reason=WHY)
        with pytest.raises(ChartholdError, match="Several clients fit"):
            await break_glass(Client.last_name == "Li", reason=WHY)
        for one in (
            Client.mrn == "lakeside-1",
            (Client.last_name == "NGUYEN") & (Client.date_of_birth == date(1980, 2, 29)),
            Client.last_name.is_in(["Nguyen", "Nobody"]) & Client.ssn.ends_with("5017"),
        ):
            emergency = await break_glass(one, reason=WHY)
            assert emergency.client_id == lakeside.client
        # Whose scope it was is still open, and sees what it saw.
        assert [row["id"] for row in await Client.select(Client.id)] == [charts[0].client]
    async with emergency.scope():
        chart = await Client.objects().get(Client.id == lakeside.client)
        assert chart
        assert chart.first_name == "Ana"
    async with lakeside.as_admin():
        opened = await EmergencyAccess.select(EmergencyAccess.client_id).where(EmergencyAccess.user_id == doctor)
        assert [row["client_id"] for row in opened] == [lakeside.client] * 3, "none for one of several"
    assert [found[:2] for found in await searches(owner, doctor)] == [
        (["mrn_exact"], 0),
        (["last_name_folded"], 0),
        (["last_name_folded", "date_of_birth_exact"], 0),
        (["last_name_folded"], 2),
        (["mrn_exact"], 1),
        (["last_name_folded", "date_of_birth_exact"], 1),
        (["last_name_folded", "ssn_last_four"], 1),
    ]


async def test_a_search_for_a_client_is_on_record_though_its_transaction_failed(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        for condition, rows in ((Client.mrn == "none", 0), (Client.mrn == "lakeside-1", 1)):
            with pytest.raises((ChartholdError, RuntimeError)):
                async with transaction():
                    await break_glass(condition, reason=WHY)
                    raise RuntimeError("on purpose")
            assert (await searches(owner, doctor))[-1] == (["mrn_exact"], rows, "emergency room")
    async with lakeside.as_admin():
        assert not await EmergencyAccess.exists().where(EmergencyAccess.user_id == doctor)


@pytest.mark.parametrize("way", ["alone", "in a transaction", "SQL of one's own"])
async def test_an_emergency_of_an_id_that_is_no_clients_is_a_search_that_found_nobody(
    way: str, lakeside: Clinic, hillside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    """Threat: ids are tried until one is a client's, and the refusal takes its own record along."""
    tried = [uuid4(), hillside.client]
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        for client in tried:
            with pytest.raises((ChartholdError, asyncpg.ForeignKeyViolationError)):
                match way:
                    case "alone":
                        await break_glass(client, reason=WHY)
                    case "in a transaction":
                        async with transaction():
                            await break_glass(client, reason=WHY)
                    case _:
                        await Client.raw("select charthold.break_glass({}, {}, 5)", client, WHY)
    found = await owner.fetch(
        "select table_name, new_values, reason, record_id from user_action_audit_log"
        " where user_id = $1 and action_type = 'search' order by occurred_at, id",
        doctor,
    )
    said = ("client", {"emergency": True, "rows": 0}, "emergency room")
    assert [(table, json.loads(values), reason, row) for table, values, reason, row in found] == [
        (*said, client) for client in tried
    ]


async def test_a_search_for_a_client_is_for_who_may_break_the_glass_and_by_hashes_only(
    lakeside: Clinic, doctor: UUID, charts: tuple[Chart, Chart, Chart], owner: asyncpg.Connection
) -> None:
    for user in (lakeside.admin, await hire(lakeside, "billing", charts[0].facility)):
        async with scope(tenant=lakeside.tenant, actor=user, reason="emergency room"):
            # Nor is told that there is nobody, or that there are several.
            for condition in (Client.mrn == "lakeside-1", Client.mrn == "nobody", Client.last_name == "Li"):
                with pytest.raises((ScopeError, ProtectedQueryError), match="break the glass|whole tenant"):
                    await break_glass(condition, reason=WHY)
        assert await searches(owner, user) == []
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        for condition in (
            Client.status == "active",
            Client.id == lakeside.client,
            (Client.mrn == "lakeside-1") | (Client.mrn == "x"),
            (Client.mrn == "lakeside-1") & (Client.status == "active"),
            Client.mrn != "x",
            Client.mrn.is_not_null(),
        ):
            with pytest.raises(ProtectedQueryError, match="looks for a client by"):
                await break_glass(condition, reason=WHY)
        # Threat: a net that is cast once, over everybody who may be a patient here.
        with pytest.raises(ProtectedQueryError, match="at most 10"):
            await break_glass(Client.mrn.is_in([f"lakeside-{n}" for n in range(1, 12)]), reason=WHY)
    assert await searches(owner, doctor) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "array['mrn_exact'], array['{\\x00,nonsense']",
        "array['no such index'], array['{}']",
        "array['status'], array['{active}']",  # no hash
        "array['mrn_exact'') or (true'], array['{}']",
        "array['mrn_exact'], array['{}'') or (''1'' = ''1']",
        "array[null], array['{}']",
        "array['mrn_exact'], array[null]::text[]",
        "null, null",
        "'{}', '{}'",
        "array['mrn_exact', 'ssn_exact'], array['{}']",
        "array['mrn_exact'], array[array_fill('x'::bytea, array[21])::text]",
        "array_fill('mrn_exact'::text, array[11]), array_fill('{}'::text, array[11])",
    ],
)
async def test_nothing_is_left_of_the_scope_in_which_a_client_was_looked_for(
    arguments: str, database: ChartholdEngine, lakeside: Clinic, doctor: UUID, runtime: asyncpg.Connection
) -> None:
    """Threat: the search is made to fail half-way, in the scope of an admin, and the attacker goes on in that."""
    mine = scope(tenant=lakeside.tenant, actor=doctor, reason="treatment")
    async with mine:
        token = mine.token(database.token_key, runtime.get_server_pid())
    told: list[str] = []
    runtime.add_log_listener(lambda _, message: told.append(message.message))
    attack = f"""
do $$
begin
    perform set_config('charthold.scope', '{token}', true);
    begin
        perform charthold.break_glass_by({arguments}, 'why', 10);
        raise notice 'it passed';
    exception when query_canceled or assert_failure or others then
        raise notice 'failed: %', sqlerrm;
    end;
    raise notice 'sees %', (select count(*) from client);
    perform set_config('charthold.scope', overlay('{token}' placing '{lakeside.admin}' from 129), true);
    perform set_config('charthold.granted', extract(epoch from statement_timestamp())::text || '{lakeside.tenant}'
        || '{lakeside.admin}' || rpad('admin', 9) || '{lakeside.tenant}' || chr(31) || chr(31) || chr(31) || 'find', true);
    raise notice 'acting as %', charthold.actor_role();
end $$
"""
    with pytest.raises(asyncpg.PostgresError, match="not signed"):
        await runtime.execute(attack)
    assert told[0].startswith("failed: "), told
    assert told[1:] == ["sees 1"]


async def test_after_a_search_the_statement_goes_on_in_the_scope_that_it_began_in(
    database: ChartholdEngine, lakeside: Clinic, doctor: UUID, runtime: asyncpg.Connection
) -> None:
    mine = scope(tenant=lakeside.tenant, actor=doctor, reason="treatment")
    async with mine:
        token = mine.token(database.token_key, runtime.get_server_pid())
    async with runtime.transaction():
        await runtime.execute("select set_config('charthold.scope', $1, true)", token)
        row = await runtime.fetchrow(
            "select charthold.actor_id() as before, f.clients, charthold.actor_id() as after,"
            " (select count(*) from client) as seen"
            " from charthold.break_glass_by(array['mrn_exact'], array['{}'], 'why', 10) as f"
        )
        assert tuple(row) == (doctor, 0, doctor, 1)
        assert await runtime.fetchval("select current_setting('charthold.scope', true)") == token
