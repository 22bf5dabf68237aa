"""As the README recommends it: the owner of the schema is an ordinary role, whom FORCE binds as anybody."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.apps.migrations.commands.backwards import backwards
from piccolo.apps.migrations.commands.check import check
from piccolo.apps.migrations.commands.clean import clean
from piccolo.apps.migrations.commands.forwards import forwards, run_forwards

import core.wire.session
from core import (
    ScopeError,
    break_glass,
    find_tenant,
    record_failed_login,
    scope,
    set_tenant_status,
    transaction,
)  # fmt: skip
from core.audit.history import who_saw
from core.audit.verify import verify
from core.doctor.examination import examine
from core.schema import References
from core.schema.migration import MigrationManager
from core.settings import settings
from core.tables import Client, Facility, Tenant, User, UserActionAuditLog
from piccolo_conf import DB
from tests.conftest import SUPERUSER, Clinic, make_clinic, owner_execute

OWNER = "ordinary_owner"


@pytest.fixture(scope="module")
async def clinic(server: None) -> AsyncIterator[Clinic]:
    """A clinic in a database of an ordinary owner, with roles of its own."""
    if not SUPERUSER:
        pytest.skip("makes roles of the server, and DATABASE_OWNER_URL names an ordinary owner")
    patch = pytest.MonkeyPatch()
    name = f"ordinary_{uuid4().hex[:8]}"
    await owner_execute(None, f"create role {OWNER} createrole", f"create database {name} owner {OWNER}")
    try:
        await DB.use(name)
        await owner_execute(name, f"alter schema public owner to {OWNER}")
        patch.setattr(core.wire.session, "OWNER_SESSION", core.wire.session.OWNER_SESSION | {"role": OWNER})
        patch.setenv("CHARTHOLD_ROLE_PREFIX", "ordinary_")
        settings.cache_clear()
        await asyncio.create_task(run_forwards(app_name="core"))
        yield await make_clinic("lakeside")
    finally:
        await DB.use(None)
        patch.undo()
        settings.cache_clear()
        await owner_execute(
            None,
            f"drop database {name} with (force)",
            "drop role ordinary_app_runtime, ordinary_app_auditor",
            f"drop role {OWNER}",
        )


@pytest.fixture
async def ordinary(clinic: Clinic) -> AsyncIterator[asyncpg.Connection]:
    connection = await DB.connect(owner=True)
    yield connection
    await connection.close()


async def test_the_doctor_finds_nothing_amiss(clinic: Clinic) -> None:
    found = await examine()
    assert [f for f in found.findings if f.verdict == "fail"] == []
    async with clinic.as_admin():
        assert await Client.count() == 1
        assert (await verify()).good


@pytest.mark.parametrize("command", ["forwards", "backwards", "check", "clean"])
async def test_migrations_with_the_applications_login_say_whose_they_are(
    command: str, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(core.wire.session.OWNER_SESSION, "role", "ordinary_app_runtime")
    run = {"forwards": forwards, "backwards": backwards, "check": check, "clean": clean}[command]
    with pytest.raises(SystemExit) as ended:
        await run("core")
    said = capsys.readouterr().err + (ended.value.code if isinstance(ended.value.code, str) else "")
    assert "permission denied for table migration. Set DATABASE_OWNER_URL to the owner." in said
    assert ended.value.code


async def step(*operations: str, backwards: bool = False) -> MigrationManager:
    """Run a step that adds these references."""
    manager = MigrationManager(migration_id=uuid4().hex, app_name="ordinary", description="")
    for operation in operations:
        kind, table, to = operation.split()
        getattr(manager, f"{kind}_references")(
            table=table, name=f"{table}_{to}_more", columns=("tenant_id", "facility_id" if to == "facility" else "id"),
            to_table=to, to_columns=("tenant_id", "id"),
        )  # fmt: skip
    await asyncio.create_task(manager.run(backwards=backwards))
    return manager


async def validated(connection: asyncpg.Connection, name: str) -> bool | None:
    return await connection.fetchval("select convalidated from pg_constraint where conname = $1", name)


@pytest.mark.parametrize("to", ["facility", "client"])
async def test_a_reference_is_added_to_a_table_that_has_rows(
    to: str, clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    await step(f"add client {to}")
    assert await validated(ordinary, f"client_{to}_more") is True
    await step(f"drop client {to}")
    assert await validated(ordinary, f"client_{to}_more") is None
    assert [f for f in (await examine(["drift", "row_security"])).findings if f.verdict == "fail"] == []


@pytest.mark.parametrize("to", ["facility", "visit"])
async def test_a_reference_is_added_to_a_table_that_is_empty(
    to: str, clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    await ordinary.execute(
        "create table visit (id uuid, tenant_id uuid, facility_id uuid, primary key (tenant_id, id));"
        "alter table visit enable row level security; alter table visit force row level security;"
        "create policy here on visit using (tenant_id = (select charthold.tenant_id()))"
    )
    try:
        await step(f"add visit {to}")
        assert await validated(ordinary, f"visit_{to}_more") is True
        assert await ordinary.fetchval("select relforcerowsecurity from pg_class where relname = 'visit'")
    finally:
        await ordinary.execute("drop table visit")


@pytest.mark.parametrize(
    "broken",
    [
        "alter table client drop constraint client_facility_id_fkey",
        "alter table client drop constraint client_facility_id_fkey, add constraint client_facility_id_fkey"
        " foreign key (tenant_id, facility_id) references facility (tenant_id, id) on delete restrict not valid",
    ],
)
async def test_the_mend_of_a_reference_works(broken: str, clinic: Clinic, ordinary: asyncpg.Connection) -> None:
    await ordinary.execute(broken)
    findings = [f for f in (await examine()).findings if f.verdict == "fail"]
    assert len(findings) == 1
    await ordinary.execute(findings[0].sql)
    assert [f for f in (await examine()).findings if f.verdict == "fail"] == []


async def test_an_extension_that_a_superuser_made_is_left_where_it_is(clinic: Clinic) -> None:
    patched = core.wire.session.OWNER_SESSION
    core.wire.session.OWNER_SESSION = {name: value for name, value in patched.items() if name != "role"}
    try:
        await owner_execute(DB.database, "create extension if not exists pg_trgm schema public")
    except asyncpg.FeatureNotSupportedError:
        pytest.skip("this server has no pg_trgm")
    finally:
        core.wire.session.OWNER_SESSION = patched
    assert [f for f in (await examine(["drift"])).findings if f.verdict == "fail"] == []


async def test_a_tenant_that_the_directory_does_not_know_is_missed(
    clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    await ordinary.execute(
        "create table kept as table charthold.tenant_directory; delete from charthold.tenant_directory"
    )
    try:
        findings = {(f.check, f.subject) for f in (await examine(["admins"])).findings if f.verdict == "fail"}
        assert findings == {("admins", "table charthold.tenant_directory")}
    finally:
        await ordinary.execute("insert into charthold.tenant_directory select * from kept; drop table kept")
    assert not [f for f in (await examine(["admins"])).findings if f.verdict == "fail"]


# What a function that signs for somebody else leaves in the session, whatever fails in it, is written back by hand.
ESCALATION = """
do $$
declare
    token text := 'TOKEN';
    tenant text := substr(token, 93, 36);
begin
    begin
        perform charthold.record_late(token, ARGUMENTS);
    exception when query_canceled or assert_failure or others then
        raise notice 'failed: %', sqlerrm;
    end;
    perform set_config('charthold.scope', repeat('0', 92) || tenant || 'ADMIN', true);
    perform set_config('charthold.granted', extract(epoch from statement_timestamp())::text || tenant || 'ADMIN'
        || rpad('admin', 9) || tenant || chr(31) || chr(31) || chr(31) || 'record for a user who may be locked', true);
    raise notice 'acting as %', charthold.actor_role();
end $$
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "'read', repeat('x', 300), array[charthold.uuid7()], null, null",  # too long a name
        "'read', 'client', array[charthold.uuid7()], null, null",
        "'audit_read', 'client', array[charthold.uuid7()], null, null",  # not of this role
        "'search', 'client', array[null]::uuid[], null, to_jsonb(repeat('x', 70000000))",
        "'login_failed', null, array[null]::uuid[], null, null",
    ],
)
async def test_nothing_is_left_of_the_scope_in_which_a_late_record_was_written(arguments: str, clinic: Clinic) -> None:
    """Threat: a locked user has a record fail half-way, in the scope of an admin, and goes on in that."""
    async with clinic.as_admin():
        locked = User(email=f"{uuid4()}@mail.example", full_name="Locked", role="billing", status="active")
        await locked.save()
    connection = await DB.connect(owner=False)
    told: list[str] = []
    connection.add_log_listener(lambda _, message: told.append(message.message))
    try:
        async with scope(tenant=clinic.tenant, actor=locked.id, reason="mine") as mine:
            token = mine.token(DB.token_key, connection.get_server_pid())
        async with clinic.as_admin():
            await User.update({User.status: "locked"}).where(User.id == locked.id)
        attack = ESCALATION.replace("TOKEN", token).replace("ARGUMENTS", arguments).replace("ADMIN", str(clinic.admin))
        with pytest.raises(asyncpg.PostgresError, match="not signed"):
            await connection.execute(attack)
        assert not [line for line in told if line.startswith("acting")]
    finally:
        connection.terminate()


# A cancel comes while the failure is handled: what the session remembers is not forgotten. What was answered is made anew of
# what is known.
CANCELLED = """
do $$
declare
    began timestamptz := statement_timestamp();
begin
    begin
        while clock_timestamp() < began + interval 'DELAY microseconds' loop end loop;
        perform charthold.record_late('TOKEN', 'audit_read', repeat('x', 300), array[null::uuid], null, null);
    exception when query_canceled then null; when others then raise notice 'late'; return;
    end;
    perform set_config('charthold.granted', extract(epoch from began)::text || 'TENANTADMIN' || rpad('admin', 9)
        || 'TENANT' || chr(31) || chr(31) || chr(31) || 'record for a user who may be locked', true);
    perform set_config('charthold.scope', repeat('0', 92) || 'TENANTADMIN', true);
    raise notice 'acting as %', charthold.actor_role();
end $$
"""


async def test_nothing_is_left_of_a_scope_whose_failure_was_cancelled_too(clinic: Clinic) -> None:
    """Threat: a statement_timeout that fires in the handler, tried again and again."""
    async with clinic.as_admin():
        locked = User(email=f"{uuid4()}@mail.example", full_name="Locked", role="billing", status="active")
        await locked.save()
    connection = await DB.connect(owner=False)
    told: list[str] = []
    connection.add_log_listener(lambda _, message: told.append(message.message))
    try:
        async with scope(tenant=clinic.tenant, actor=locked.id, reason="mine") as mine:
            token = mine.token(DB.token_key, connection.get_server_pid())
        async with clinic.as_admin():
            await User.update({User.status: "locked"}).where(User.id == locked.id)
        attack = (
            CANCELLED.replace("TOKEN", token).replace("TENANT", str(clinic.tenant)).replace("ADMIN", str(clinic.admin))
        )
        await connection.execute("set statement_timeout = '20ms'")
        chance, delay, refused = random.Random(7), 18_500, 0
        for _ in range(250):
            told.clear()
            try:
                await connection.execute(attack.replace("DELAY", str(delay)))
            except asyncpg.InternalServerError as error:
                refused += "not signed" in str(error) or "charthold" in str(error)
            except asyncpg.PostgresError:
                refused += 1
            # To and fro over the moment at which the handler is at work.
            delay += chance.randint(0, 60) * (1 if told[:1] == ["late"] else -1)
            assert not [line for line in told if line.startswith("acting")]
        assert refused
    finally:
        connection.terminate()


async def invited_to_a_tenant_of_their_own() -> tuple[Clinic, User]:
    closing = await make_clinic(f"closing-{uuid4().hex[:8]}")
    async with closing.as_admin():
        sleeper = User(email=f"{uuid4()}@mail.example", full_name="Sleeper", role="admin", status="invited")
        await sleeper.save()
    return closing, sleeper


async def test_a_user_who_is_made_active_while_the_tenant_is_closed_is_out(
    clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    closing, sleeper = await invited_to_a_tenant_of_their_own()
    async with closing.as_admin():
        async with transaction():
            await User.update({User.status: "active"}).where(User.id == sleeper.id)
            # In a context of its own: this task is in a transaction.
            closed = asyncio.create_task(
                set_tenant_status(tenant=closing.tenant, actor=closing.admin, status="closed", reason="test"),
                context=contextvars.Context(),
            )
            await asyncio.sleep(0.5)
            assert not closed.done()
    await closed
    standing = await ordinary.fetch(
        "select distinct tenant_open from charthold.principal where tenant_id = $1", closing.tenant
    )
    assert [row["tenant_open"] for row in standing] == [False]
    async with scope(tenant=closing.tenant, actor=sleeper.id, reason="late"):
        with pytest.raises(ScopeError):
            await Facility(name="After closing").save()


async def test_a_user_whose_change_waits_for_the_tenant_to_close_is_out(
    clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    closing, sleeper = await invited_to_a_tenant_of_their_own()
    async with closing.as_admin():
        async with ordinary.transaction():
            call = "select charthold.set_tenant_status($1, $2, 'closed', 'test')"
            await ordinary.execute(call, closing.tenant, closing.admin)
            changed = asyncio.create_task(User.update({User.status: "active"}).where(User.id == sleeper.id).run())
            await asyncio.sleep(0.4)
            assert not changed.done()
        await changed
    standing = await ordinary.fetch(
        "select tenant_open from charthold.principal where tenant_id = $1 and user_id = $2", closing.tenant, sleeper.id
    )
    assert [row["tenant_open"] for row in standing] == [False]


async def test_who_is_demoted_while_the_owner_closes_the_tenant_in_their_name_stays_demoted(
    clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    closing = await make_clinic(f"closing-{uuid4().hex[:8]}")
    async with closing.as_admin(), transaction():
        await User.update({User.role: "billing", User.facility_scope: []}).where(User.id == closing.clinician)
        # In a context of its own: this task is in a transaction.
        closed = asyncio.create_task(
            set_tenant_status(tenant=closing.tenant, actor=closing.clinician, status="closed", reason="test"),
            context=contextvars.Context(),
        )
        await asyncio.sleep(0.5)
        assert not closed.done()
    await closed
    stands = await ordinary.fetchrow(
        "select role, facility_scope, tenant_open from charthold.principal where user_id = $1", closing.clinician
    )
    assert stands is not None
    assert tuple(stands) == ("billing", [], False)


@pytest.mark.parametrize("who", ["clinician", "billing", "bound", "locked"])
async def test_whoever_the_owner_names_a_tenant_is_suspended(
    who: str, clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    """Threat: the only admin makes themselves unfit for it, and the owner hears nothing."""
    slug = f"unfit-{uuid4().hex[:8]}"
    theirs = await make_clinic(slug)
    actor = theirs.clinician if who == "clinician" else theirs.billing if who == "billing" else theirs.admin
    async with theirs.as_admin():
        if who == "bound":
            await User.update({User.facility_scope: []}).where(User.id == actor)
        elif who == "locked":
            later = datetime.now(UTC) + timedelta(hours=1)
            await User.update({User.locked_until: later}).where(User.id == actor)
    before = await ordinary.fetch(
        "select user_id, role, facility_scope, locked_until from charthold.principal where tenant_id = $1 order by 1",
        theirs.tenant,
    )
    for status in ("suspended", "closed", "active"):
        await set_tenant_status(tenant=theirs.tenant, actor=actor, status=status, reason="test")
        found = await find_tenant(slug)
        assert found
        assert found.status == status
        rows = await ordinary.fetch(
            "select user_id, role, facility_scope, locked_until, tenant_open from charthold.principal"
            " where tenant_id = $1 order by 1",
            theirs.tenant,
        )
        assert {row["tenant_open"] for row in rows} == {status == "active"}
        assert [tuple(row)[:4] for row in rows] == [tuple(row) for row in before]
    with pytest.raises(ScopeError):
        await set_tenant_status(tenant=theirs.tenant, actor=uuid4(), status="suspended", reason="test")
    found = [f.evidence for f in (await examine(["admins"])).findings if f.verdict == "fail"]
    assert found == [f"{slug} is open and has no active admin who sees all of it and is not locked."] * (
        who in ("bound", "locked")
    )
    await set_tenant_status(tenant=theirs.tenant, actor=actor, status="closed", reason="test")


@pytest.mark.parametrize("change", [{"status": "locked"}, {"role": "billing"}, {"status": "deactivated"}])
async def test_what_an_auditor_was_shown_is_recorded_whatever_they_are_by_then(
    change: dict[str, str], clinic: Clinic
) -> None:
    async with clinic.as_admin():
        auditor = User(email=f"{uuid4()}@mail.example", full_name="Auditor", role="auditor", status="active")
        await auditor.save()

    async def changed() -> None:
        async with clinic.as_admin():
            await User.update(change).where(User.id == auditor.id)

    with pytest.raises(RuntimeError, match="on purpose"):
        async with scope(tenant=clinic.tenant, actor=auditor.id, reason="a look"), transaction():
            assert await UserActionAuditLog.count()
            await asyncio.create_task(changed(), context=contextvars.Context())
            raise RuntimeError("on purpose")
    async with clinic.as_admin():
        assert await UserActionAuditLog.exists().where(
            UserActionAuditLog.user_id == auditor.id, UserActionAuditLog.action_type == "audit_read"
        )


async def test_a_late_record_has_columns_that_can_be_read_back(clinic: Clinic) -> None:
    connection = await DB.connect(owner=False)
    try:
        async with clinic.as_clinician("late") as mine:
            token = mine.token(DB.token_key, connection.get_server_pid())
        for columns in ("{{a,b},{c,d}}", "{NULL,ssn}", "[5:6]={ssn,notes}", "{}"):
            await connection.execute(
                f"select charthold.record_late('{token}', 'read', 'client', array['{clinic.client}'::uuid],"
                f" '{columns}', null)"
            )
    finally:
        connection.terminate()
    async with clinic.as_admin():
        seen = await who_saw(Client, clinic.client)
        late = sorted(sighting.columns for sighting in seen if sighting.reason == "late")
        assert late == [(), ("a", "b", "c", "d"), ("ssn",), ("ssn", "notes")]
        assert (await verify()).good


def printed(text: str) -> str:
    """A text as PostgreSQL prints a constant in a plan, byte by byte, without the spaces."""
    return "".join(map(str, text.encode()))


async def doctor_of(clinic: Clinic) -> User:
    """A clinician of no facility."""
    doctor = User(
        email=f"{uuid4()}@mail.example", full_name="Doctor", role="clinician", status="active", facility_scope=[]
    )
    async with clinic.as_admin():
        await doctor.save()
    return doctor


async def test_no_plan_that_is_printed_holds_a_token_that_a_function_signed_for_itself(clinic: Clinic) -> None:
    """Threat: plans of statements within our functions, with their arguments, are sent to whoever asks for them."""
    doctor = await doctor_of(clinic)
    connection = await DB.connect(owner=False)
    told: list[str] = []
    # PostgreSQL breaks long lines of a plan wherever they end, also within a number: so all spaces are left out.
    connection.add_log_listener(lambda _, said: told.append("".join(f"{said.message} {said.detail}".split())))
    try:
        async with scope(tenant=clinic.tenant, actor=doctor.id, reason="mine alone") as mine:
            token = mine.token(DB.token_key, connection.get_server_pid())
        for setting in ("parse", "rewritten", "plan"):
            await connection.execute(f"set debug_print_{setting} = on")
        await connection.execute("set client_min_messages = log; set plan_cache_mode = force_custom_plan")
        for call in (
            "charthold.break_glass_by(array['mrn_exact'], array['{}'], 'x', 5)",
            f"charthold.record_late('{token}', 'read', 'client', array['{clinic.client}'::uuid], '{{ssn}}', null)",
        ):
            async with connection.transaction():
                await connection.execute(f"select set_config('charthold.scope', '{token}', true)")
                await connection.execute(f"select * from {call}")
    finally:
        connection.terminate()
    assert any(printed("mine alone") in line for line in told), "their own is printed, so this test would see it"
    for ours in ("find a client", "record late", "find" + doctor.id.hex, "late" + doctor.id.hex):
        assert not any(printed(ours) in line or ours.replace(" ", "") in line for line in told), ours


@pytest.mark.parametrize("how", [{"status": "deactivated"}, {"facility_scope": []}, {"locked_until": "later"}])
async def test_a_client_is_found_in_an_emergency_though_no_admin_could_look(
    how: dict[str, Any], ordinary: asyncpg.Connection
) -> None:
    """Threat: who makes the admin's logins fail switches emergencies off."""
    theirs = await make_clinic(f"alone-{uuid4().hex[:8]}")
    doctor = await doctor_of(theirs)
    async with theirs.as_admin():
        await Client.update({Client.mrn: "A-1"}).where(Client.id == theirs.client)
        changed = {n: datetime.now(UTC) + timedelta(hours=1) if v == "later" else v for n, v in how.items()}
        await User.update(changed).where(User.id == theirs.admin)
    async with scope(tenant=theirs.tenant, actor=doctor.id, reason="emergency room"):
        emergency = await break_glass(Client.mrn == "A-1", reason="unconscious")
    async with emergency.scope():
        assert await Client.count() == 1
    # So is a failed login, of the last who could act.
    await record_failed_login(tenant=theirs.tenant, user=theirs.admin)


async def test_changes_of_users_and_of_their_tenant_do_not_stop_each_other(clinic: Clinic) -> None:
    people = [await doctor_of(clinic) for _ in range(12)]

    async def change(user: User) -> None:
        async with clinic.as_admin(), transaction():
            await User.update({User.role: "billing"}).where(User.id == user.id)
            await asyncio.sleep(0.02)
            await Tenant.update({Tenant.name: str(uuid4())}).where(Tenant.id == clinic.tenant)

    await asyncio.gather(*map(change, people))


async def test_what_was_shown_is_recorded_again_though_somebody_holds_the_users(clinic: Clinic) -> None:
    """Threat: whoever writes SQL may lock app_user, and a record that waits for it is given up in the end."""
    holder = await DB.connect(owner=False)
    try:
        async with clinic.as_clinician(reason := str(uuid4())):
            with pytest.raises(RuntimeError, match="on purpose"):
                async with transaction():
                    assert await Client.select(Client.notes)
                    await holder.execute("begin; lock table app_user in access exclusive mode")
                    raise RuntimeError("on purpose")
    finally:
        holder.terminate()
    async with clinic.as_admin():
        assert await UserActionAuditLog.exists().where(UserActionAuditLog.reason == reason)


SIGNING = ("break_glass_by", "provision_tenant", "record_late", "set_tenant_status")
QUIET = "".join(f"    set debug_print_{kind} = off\n" for kind in ("parse", "rewritten", "plan"))


@pytest.mark.parametrize("file", SIGNING)
def test_every_function_that_signs_for_itself_forgets_it_whatever_fails(file: str) -> None:
    folder = Path(core.__file__).parent / "schema" / "sql"
    signing = {
        path.stem
        for path in folder.glob("*.sql")
        if "charthold.sign" in "".join(line for line in path.read_text().splitlines() if not line.startswith("--"))
    }
    assert signing == {*SIGNING, "sign", "sign_as"}
    # Threat: the plans of its statements, with the token in them, are printed to whoever asks for them.
    assert QUIET in (folder / f"{file}.sql").read_text()
    end = (
        (folder / f"{file}.sql").read_text().split("exception when query_canceled or assert_failure or others then")[1]
    )
    assert "perform charthold.forget_scope();\n    raise;" in end


def test_the_statements_of_a_reference_stand_together() -> None:
    one = References("x", columns=("a",), to_table="facility", to_columns=("id",), table="client")
    (statement,) = one.validate()
    assert statement.startswith('revoke select on "public"."client" from current_user;\n')


async def test_steps_without_files_are_forgotten_in_the_owners_name(
    clinic: Clinic, ordinary: asyncpg.Connection
) -> None:
    await ordinary.execute("insert into migration (name, app_name, ran_on) values ('2020', 'core', now())")
    await asyncio.create_task(clean(app_name="core", auto_agree=True))
    assert not await ordinary.fetchval("select exists (select from migration where name = '2020')")
