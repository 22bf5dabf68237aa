"""A scope says who acts, and holds no connection. What it promises when tasks, errors and time get in its way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from piccolo.columns.combination import WhereRaw

from core import (
    ConfigurationError,
    PoolExhaustedError,
    ProtectedQueryError,
    ScopeError,
    record_failed_login,
    scope,
    set_tenant_status,
    transaction,
)
from core.access.permissions import COMMANDS, PERMISSIONS, ROLES, roles_for
from core.audit.seal import seal
from core.compliance.disclosures import Disclosure
from core.compliance.emergencies import EmergencyAccess, break_glass
from core.compliance.reviews import ActivityReview
from core.crypto.kms import master_key
from core.engine import ChartholdEngine, owner_mode
from core.provision import find_tenant, provision_tenant
from core.settings import Settings, settings
from core.tables import AuditSeal, Client, Facility, Tenant, TenantKey, User, UserActionAuditLog
from core.token import TokenKey
from core.tokenkeys import install_token_key, settle_token_key
from core.wire.database import Database
from core.wire.pool import Pool
from tests.conftest import Clinic, make_clinic
from tests.reference import forget_all
from tests.test_envelope import told


def pool_of(db: ChartholdEngine) -> Pool:
    return db._here().pool


@asynccontextmanager
async def set_up(monkeypatch: pytest.MonkeyPatch, db: ChartholdEngine, **changed: Any) -> AsyncIterator[None]:
    """Other settings, with a pool made by them."""
    given = replace(settings(), **changed)
    await db.close_connection_pool()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Settings, "from_environ", lambda _: given)
            settings.cache_clear()
            yield
    finally:
        await db.close_connection_pool()
        settings.cache_clear()


def someone(clinic: Clinic, **values: Any) -> Client:
    return Client(
        **{"facility_id": clinic.facility, "first_name": "Bo", "last_name": "Li", "date_of_birth": date(1990, 7, 1)}
        | values
    )


async def add_user(clinic: Clinic, role: str, **values: Any) -> UUID:
    user = User(email=f"{uuid4().hex}@mail.example", full_name=role, role=role, status="active", **values)
    async with clinic.as_admin():
        await user.save()
    return user.id


# -- what may be asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tenant": "lakeside"}, "takes two UUIDs"),
        ({"actor": None}, "takes two UUIDs"),
        ({"reason": ""}, "needs a reason"),
        ({"reason": "  "}, "needs a reason"),
        ({"reason": "one\ntwo"}, "on one line"),
        ({"reason": "a\x1fb"}, "on one line"),
        ({"reason": "x" * 501}, "at most 500"),
        ({"request_id": "one\r\ntwo"}, "on one line"),
        ({"request_id": "a\x1fb"}, "on one line"),
        ({"source_ip": "not an address"}, "not an IP address"),
        ({"source_ip": "fe80::1%eth0"}, "has a zone"),
        ({"source_ip": "fe80::1%x|forged"}, "has a zone"),
        ({"source_ip": 5}, "source_ip is text"),
        ({"seconds": 0}, "lives 1 to 900 whole seconds"),
        ({"seconds": 10**9}, "whole seconds"),
        ({"seconds": 0.5}, "whole seconds"),
        ({"seconds": "5"}, "whole seconds"),
        ({"seconds": True}, "whole seconds"),
    ],
)
def test_a_scope_refuses_what_it_cannot_stand_for(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ScopeError, match=says):
        scope(**{"tenant": uuid4(), "actor": uuid4(), "reason": "test"} | arguments)


async def test_what_a_scope_was_given_stands_in_the_log_as_it_was(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    given = {"reason": "a|b ü | {'x'} \\", "request_id": "r|1|", "source_ip": "2001:db8::1"}
    async with scope(tenant=lakeside.tenant, actor=lakeside.admin, **given):
        made = Facility(name="Logged")
        await made.save()
    row = await owner.fetchrow(
        "select reason, request_id, host(source_ip) as source_ip from user_action_audit_log where record_id = $1",
        made.id,
    )
    assert dict(row) == given


# -- nesting, ending, expiring -----------------------------------------------------------------------------------------


async def test_a_scope_is_never_nested_and_never_used_twice(lakeside: Clinic, hillside: Clinic) -> None:
    used = lakeside.as_admin()
    async with used:
        for inner in (lakeside.as_admin(), hillside.as_admin()):
            with pytest.raises(ScopeError, match="open already"):
                async with inner:
                    pass
        with pytest.raises(ScopeError, match="open already"):
            async with used:
                pass
        assert await Tenant.select(Tenant.slug).output(as_list=True) == ["lakeside"]
    with pytest.raises(ScopeError, match="used already"):
        async with used:
            pass


@pytest.mark.parametrize(
    "statement",
    [
        lambda: Client.select(),
        lambda: Client.objects(),
        lambda: Client.count(),
        lambda: Client.exists(),
        lambda: Client.raw("select 1"),
        lambda: Client.update({Client.status: "active"}, force=True),
        lambda: Client.delete(force=True),
        lambda: Facility(name="Nobody's").save(),
        lambda: Tenant.select(),
        lambda: UserActionAuditLog.select(),
    ],
)
async def test_a_statement_outside_of_a_scope_says_what_to_write(database: ChartholdEngine, statement: Any) -> None:
    with pytest.raises(ScopeError, match=r"async with scope\(tenant=..., actor=..., reason="):
        await statement()
    with pytest.raises(ScopeError, match=r"async with scope"):
        async with await Client.select().batch():
            pass


async def test_an_expired_scope_is_refused_in_python_and_in_the_database(
    lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scope(tenant=lakeside.tenant, actor=lakeside.admin, reason="test", seconds=5) as open_scope:
        assert await Client.count() == 1
        later = time.time() + 6
        monkeypatch.setattr(time, "time", lambda: later)
        with pytest.raises(ScopeError, match="expired after 5 seconds"):
            await Client.count()
        monkeypatch.undo()
        # A clock that is wrong in Python changes nothing: the database has its own.
        open_scope._tokens.clear()
        open_scope._expires = int(time.time()) - 1
        monkeypatch.setattr(type(open_scope), "check", lambda _: None)
        with pytest.raises(ScopeError, match="has expired"):
            await Client.count()


async def test_a_scope_that_expires_ends_its_open_batch(lakeside: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lakeside.as_admin():
        await Facility.insert(*[Facility(name=f"Batch {n}") for n in range(4)])
        async with await Facility.select(Facility.name).batch(batch_size=2) as batch:
            assert len(await batch.__anext__()) == 2
            monkeypatch.setattr(time, "time", lambda: 1e12)
            with pytest.raises(ScopeError, match="expired"):
                await batch.__anext__()
            monkeypatch.undo()


async def test_who_is_locked_between_two_batches_gets_no_second_one(lakeside: Clinic) -> None:
    """Of a table without PHI too, of which nothing is recorded."""
    reader = await add_user(lakeside, "clinician")
    async with lakeside.as_admin():
        await Facility.insert(*[Facility(name=f"Locked {n}") for n in range(4)])
    async with scope(tenant=lakeside.tenant, actor=reader, reason="test"):
        async with await Facility.select(Facility.name).batch(batch_size=2) as batch:
            assert len(await anext(batch)) == 2

            async def lock() -> None:
                async with lakeside.as_admin():
                    await User.update({User.status: "locked"}).where(User.id == reader)

            await asyncio.create_task(lock(), context=contextvars.Context())
            with pytest.raises(ScopeError):
                await anext(batch)


async def test_a_task_that_outlives_its_scope_is_out_and_may_open_its_own(lakeside: Clinic, hillside: Clinic) -> None:
    ended = asyncio.Event()

    async def late() -> list[str]:
        assert await Client.count() == 1
        await ended.wait()
        with pytest.raises(ScopeError, match="has ended"):
            await Client.count()
        async with hillside.as_admin():
            return await Tenant.select(Tenant.slug).output(as_list=True)

    async with lakeside.as_admin():
        task = asyncio.create_task(late())
        await asyncio.sleep(0.05)
    ended.set()
    assert await task == ["hillside"]


async def test_a_task_that_outlives_its_transaction_may_open_its_own(lakeside: Clinic) -> None:
    ended = asyncio.Event()

    async def late() -> int:
        await ended.wait()
        with pytest.raises(ScopeError, match="has ended"):
            await Client.count()
        async with transaction():
            return await Client.count()

    async with lakeside.as_admin():
        async with transaction():
            await Client.count()
            task = asyncio.create_task(late())
        ended.set()
        assert await task == 1


async def test_thousands_of_scopes_at_once_each_see_their_own(lakeside: Clinic, hillside: Clinic) -> None:
    slugs = {lakeside.tenant: "lakeside", hillside.tenant: "hillside"}

    async def one(clinic: Clinic) -> None:
        async with clinic.as_clinician():
            await asyncio.sleep(0)
            assert await Tenant.select(Tenant.slug).output(as_list=True) == [slugs[clinic.tenant]]

    await asyncio.gather(*[one(random.choice((lakeside, hillside))) for _ in range(2_000)])


async def test_a_scope_is_entered_and_left_whatever_happens_inside(lakeside: Clinic) -> None:
    for error in (ValueError, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error):
            async with lakeside.as_admin():
                raise error
    async with lakeside.as_admin():
        assert await Client.count() == 1


# -- transactions ------------------------------------------------------------------------------------------------------


async def test_a_transaction_keeps_the_scope_of_its_first_statement(lakeside: Clinic, hillside: Clinic) -> None:
    async with transaction():
        async with lakeside.as_admin():
            assert await Tenant.select(Tenant.slug).output(as_list=True) == ["lakeside"]
        async with hillside.as_admin():
            for statement in (
                Tenant.select(),
                Client.raw("select slug from tenant"),
                Facility.insert(Facility(name="x")),
            ):
                with pytest.raises(ScopeError, match="keeps the scope"):
                    await statement
        with pytest.raises(ScopeError, match="No scope is open"):
            await Tenant.select()


async def test_everything_inside_a_scope_keeps_to_it(lakeside: Clinic, hillside: Clinic) -> None:
    theirs = hillside.client
    async with lakeside.as_admin():
        for look in (
            Client.select(Client.id).where(Client.id == theirs),
            Client.select(Client.id).where((Client.id == theirs) | (Client.tenant_id == hillside.tenant)),
            Client.select(Client.id, Client.facility_id.name).where(Client.facility_id == hillside.facility),
            Client.select(Client.id).where(Client.facility_id.name == "Main street", Client.id == theirs),
            Client.select(Client.id).where(Client.facility_id.is_in(Facility.select(Facility.id).where(Facility.id == hillside.facility))),
            Client.objects(Client.facility_id, Client.user_id).where(Client.id == theirs),
            Client.raw("select id from client where id = {}", theirs),
            Client.raw("select id from client where tenant_id = {}", hillside.tenant),
            Client.update({Client.status: "deceased"}).where(Client.id == theirs).returning(Client.id),
            Client.delete().where(Client.tenant_id == hillside.tenant).returning(Client.id),
        ):  # fmt: skip
            assert await look == []
        assert await Client.objects().get(Client.id == theirs) is None
        assert not await Client.exists().where(Client.id == theirs)
        assert await Client.count().where(Client.tenant_id == hillside.tenant) == 0
        async with await Client.select(Client.id).batch(batch_size=1) as batch:
            assert [row["id"] async for rows in batch for row in rows] == [lakeside.client]
        frozen = Client.select(Client.id).freeze()
    async with hillside.as_admin():
        assert await frozen.run() == [{"id": theirs}]
    async with hillside.as_clinician():
        assert (await Client.objects().get(Client.id == theirs)).status == "active"


async def test_an_object_of_another_tenant_is_not_saved_here(lakeside: Clinic, hillside: Clinic) -> None:
    async with hillside.as_admin():
        theirs = await Facility.objects().get(Facility.id == hillside.facility)
        fresh = Facility(name="Made there")
        fresh.tenant_id = hillside.tenant
    async with lakeside.as_admin():
        theirs.name = "Taken over"
        with pytest.raises(ProtectedQueryError, match="Nothing was saved"):
            await theirs.save()
        with pytest.raises(ScopeError, match="another tenant"):
            await fresh.save()
        with pytest.raises(ProtectedQueryError, match="UUIDv7"):
            await Facility(name="x", id=uuid4()).save()
    async with hillside.as_admin():
        assert (await Facility.objects().get(Facility.id == hillside.facility)).name == "Main street"


async def test_the_owner_does_not_work_on_tenants_rows(lakeside: Clinic) -> None:
    token = owner_mode.set(True)
    try:
        async with lakeside.as_admin():
            with pytest.raises(ScopeError, match="not for the owner"):
                async with transaction():
                    await Client.select()
    finally:
        owner_mode.reset(token)


# -- the pool ----------------------------------------------------------------------------------------------------------


async def test_a_pool_of_one_serves_transactions_keys_and_crowds(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with set_up(monkeypatch, database, pool_size=1, pool_seconds=2.0):
        forget_all(database.keyring)

        async def one(clinic: Clinic) -> str:
            async with clinic.as_clinician():
                async with transaction():  # holds the connection while the keys are loaded
                    return (await Client.objects().get(Client.id == clinic.client)).first_name

        assert await asyncio.gather(*[one(clinic) for clinic in (lakeside, hillside) * 20]) == ["Ana"] * 40
        assert (pool_of(database)._open, len(pool_of(database)._idle)) == (1, 1)


async def test_a_session_that_ends_as_it_begins_is_a_lost_connection(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(*_: Any, **__: Any) -> Any:
        raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

    async with lakeside.as_admin():
        await database.close_connection_pool()
        monkeypatch.setattr("core.wire.session.Connection.fetchrow", ended)
        with pytest.raises(asyncpg.ConnectionDoesNotExistError, match="nothing was sent"):
            await Client.count()
        monkeypatch.undo()
        assert await Client.count() == 1


async def test_a_full_pool_says_so_in_time(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with set_up(monkeypatch, database, pool_size=1, pool_seconds=0.2):
        held = await database.acquire()
        async with lakeside.as_admin():
            began = time.monotonic()
            with pytest.raises(PoolExhaustedError, match="CHARTHOLD_POOL_SIZE"):
                await Client.count()
            assert time.monotonic() - began < 1
            await database.release(held)
            assert await Client.count() == 1


async def test_cancellation_at_any_point_gives_the_connection_back_clean(
    database: ChartholdEngine,
    lakeside: Clinic,
    hillside: Clinic,
    owner: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(7)

    async def work(clinic: Clinic) -> None:
        async with clinic.as_admin():
            match chance.randrange(4):
                case 0:
                    async with transaction():
                        await Facility(name=f"Cancelled {uuid4()}").save()
                        await asyncio.sleep(0)
                        await Client.select(Client.first_name)
                        raise ZeroDivisionError
                case 1:
                    await Client.raw("select pg_sleep(0.01)")
                case 2:
                    async with await Client.select(Client.first_name).batch(batch_size=1) as batch:
                        async for _ in batch:
                            await asyncio.sleep(0)
                case _:
                    await Client.select(Client.first_name)

    async with set_up(monkeypatch, database, pool_size=3):
        for _ in range(40):
            tasks = [asyncio.create_task(work(chance.choice((lakeside, hillside)))) for _ in range(8)]
            for task in tasks:
                await asyncio.sleep(chance.random() / 500)
                if chance.random() < 0.7:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        pool = pool_of(database)
        assert pool._open == len(pool._idle) <= 3
        assert not [ready for ready in pool._waiting if not ready.done()]
        for link in pool._idle:
            assert not link.connection.is_in_transaction()
            assert not await link.connection.fetchval("select current_setting('charthold.scope', true)")
        for clinic in (lakeside, hillside):
            async with clinic.as_clinician():
                assert await Client.select(Client.id).output(as_list=True) == [clinic.client]
        assert await owner.fetchval("select count(*) from facility where name like 'Cancelled%'") == 0


async def test_an_error_in_a_statement_costs_no_connection(database: ChartholdEngine, lakeside: Clinic) -> None:
    pool = pool_of(database)
    async with lakeside.as_clinician():
        await Client.count()
        backends = {link.backend for link in pool._idle}
        for _ in range(5):
            with pytest.raises(ScopeError, match="may not do that"):
                await Facility(name="Not mine to make").save()
            with pytest.raises(asyncpg.CheckViolationError):
                await Client.update({Client.status: "gone"}).where(Client.id == lakeside.client)
    assert {link.backend for link in pool._idle} == backends


async def test_a_generator_that_another_task_closes_leaves_its_scope(lakeside: Clinic) -> None:
    async def patients() -> AsyncIterator[int]:
        async with lakeside.as_admin():
            yield await Client.count()

    stream = patients()
    assert await asyncio.create_task(anext(stream)) > 0  # type: ignore[arg-type]
    await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    with pytest.raises(ScopeError, match="No scope is open"):
        await Client.count()


async def test_a_connection_of_an_owner_or_a_superuser_is_refused(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = await owner.fetchval("select relowner::regrole::text from pg_class where relname = 'client'")
    names = f"x{uuid4().hex[:8]}_"
    made = {f"{names}a": "bypassrls", f"{names}b": "superuser", f"{names}c": f"in role {role}"}
    login = await database.connect(owner=False)
    application = await login.fetchval("select session_user")
    await login.close()
    try:
        for name, attribute in made.items():
            await owner.execute(
                f"create role {name}app_runtime {attribute}; grant {name}app_runtime to {application}; grant usage on schema public to {name}app_runtime"
            )
            async with set_up(monkeypatch, database, role_prefix=name):
                async with lakeside.as_admin():
                    with pytest.raises(ConfigurationError, match="is a superuser, an owner of our tables, or past"):
                        await Client.count()
                assert pool_of(database)._open == 0
    finally:
        for name in made:
            await owner.execute(f"drop owned by {name}app_runtime; drop role {name}app_runtime")


async def test_a_connection_whose_triggers_sleep_is_refused(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: a login that plays the replica writes what no trigger records."""
    login = await database.connect(owner=False)
    name = await login.fetchval("select session_user")
    await login.close()
    try:
        await owner.execute(f"alter role {name} set session_replication_role = replica")
        async with set_up(monkeypatch, database), lakeside.as_admin():
            with pytest.raises(ConfigurationError, match="session_replication_role"):
                await Client.count()
    finally:
        await owner.execute(f"alter role {name} reset session_replication_role")


# -- who may what ------------------------------------------------------------------------------------------------------


def attempts(clinic: Clinic) -> dict[tuple[str, str], Callable[[], Awaitable[Any]]]:
    """One statement for each table and command, which changes something if it is allowed."""

    def raw(sql: str) -> Callable[[], Awaitable[Any]]:
        return lambda: Client.raw(sql + " returning 1 as one")

    new = f"(charthold.uuid7(), '{clinic.tenant}'"
    found: dict[tuple[str, str], Callable[[], Awaitable[Any]]] = {}
    for table in (
        Tenant, User, Facility, Client, Disclosure, UserActionAuditLog, TenantKey, AuditSeal, EmergencyAccess, ActivityReview,
    ):  # fmt: skip
        name = table._meta.tablename
        found[name, "select"] = lambda name=name: Client.raw(f"select 1 as one from {name}")
        found[name, "update"] = raw(
            f"update {name} set updated_at = now()"
            if name != "user_action_audit_log"
            else f"update {name} set reason = 'x'"
        )
        found[name, "delete"] = raw(f"delete from {name} where {'tenant_id' if name != 'tenant' else 'id'} is not null")
    found |= {
        ("tenant", "insert"): raw("insert into tenant (id, slug, name, status, settings, branding, time_zone, retention_years) values (charthold.uuid7(), 'x-y', 'x', 'active', '{{}}', '{{}}', 'UTC', 6)"),
        ("app_user", "insert"): raw(f"insert into app_user (id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins) values {new}, charthold.uuid7()::text || '@mail.example', 'x', 'billing', 'invited', false, 0)"),
        ("facility", "insert"): raw(f"insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) values {new}, charthold.uuid7()::text, 'clinic', '{{{{}}}}', 'UTC', '{{{{}}}}', 'active')"),
        ("client", "insert"): raw(f"insert into client (id, tenant_id, facility_id, status, first_name, last_name, date_of_birth) select charthold.uuid7(), tenant_id, facility_id, status, first_name, last_name, date_of_birth from client where id = '{clinic.client}'"),
        ("disclosure", "insert"): raw(f"insert into disclosure (id, tenant_id, client_id, disclosed_on, recipient, description, purpose, basis) select charthold.uuid7(), tenant_id, id, current_date, 'x', first_name, last_name, 'other' from client where id = '{clinic.client}'"),
        ("user_action_audit_log", "insert"): raw(f"insert into user_action_audit_log (tenant_id, user_id, action_type, reason) values ('{clinic.tenant}', '{clinic.admin}', 'login', 'x')"),
        ("tenant_key", "insert"): raw(f"insert into tenant_key (id, tenant_id, version, wrapped, kek, status) values {new}, 99, 'x', '', 'retired')"),
        ("emergency_access", "insert"): raw(f"insert into emergency_access (id, tenant_id, user_id, client_id, reason, until) values {new}, '{clinic.clinician}', '{clinic.client}', 'x', now())"),
        ("activity_review", "insert"): raw(f"insert into activity_review (id, tenant_id, since, until, finding) values {new}, now() - interval '2 days', now() - interval '1 day', 'in_order')"),
        ("audit_seal", "insert"): lambda: Client.raw("select 1 as one where pg_catalog.has_table_privilege('audit_seal', 'insert')"),
    }  # fmt: skip
    return found


@pytest.fixture(scope="module")
async def roles(lakeside: Clinic) -> dict[str, UUID]:
    async with lakeside.as_admin():
        await seal()  # so that there is something to see
        await Disclosure(
            client_id=lakeside.client, disclosed_on=date(2020, 2, 2), recipient="A", description="B", purpose="C",
            basis="other",
        ).save()  # fmt: skip
        await ActivityReview(since=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2020, 2, 1, tzinfo=UTC)).save()
        bound = User(
            email="bound@lakeside.example", full_name="Bound", role="clinician", status="active", facility_scope=[]
        )
        await bound.save()
    async with scope(tenant=lakeside.tenant, actor=bound.id, reason="test"):
        await break_glass(lakeside.client, reason="test")
    return {role: await add_user(lakeside, role) for role in ROLES}


# Written by hand, so that a slip in core/access/permissions.py is noticed: who may select, insert, update, delete.
# A admin, C clinician, B billing, U auditor, S system; e a clinician in an emergency.
MATRIX = {
    "tenant": ("ACBUSe", "S", "AS", ""),
    "app_user": ("ACBUSe", "AS", "AS", "AS"),
    "facility": ("ACBUSe", "AS", "AS", "AS"),
    "client": ("ACBUSe", "ACS", "ACBS", "AS"),
    "disclosure": ("ACBUSe", "ACS", "AS", ""),
    "user_action_audit_log": ("AUS", "ACBUSe", "", ""),
    "tenant_key": ("ACBUSe", "AS", "AS", ""),
    "audit_seal": ("AUS", "AUS", "", ""),
    "emergency_access": ("AUS", "AC", "", ""),
    "activity_review": ("AUS", "AU", "", ""),
}
LETTERS = {"admin": "A", "clinician": "C", "billing": "B", "auditor": "U", "system": "S", "emergency": "e"}


def test_the_matrix_is_what_was_meant() -> None:
    said = {
        table: tuple("".join(sorted(LETTERS[role] for role in roles_for(table, command))) for command in COMMANDS)
        for table in PERMISSIONS
    }
    assert said == {table: tuple("".join(sorted(cell)) for cell in row) for table, row in MATRIX.items()}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", PERMISSIONS)
async def test_each_role_may_do_to_each_table_what_the_matrix_says(
    role: str, table: str, lakeside: Clinic, roles: dict[str, UUID], owner: asyncpg.Connection
) -> None:
    for command in COMMANDS:
        statement = attempts(lakeside)[table, command]
        allowed = role in roles_for(table, command)
        # Some policies are for definer functions alone: the application's role has no such privilege.
        allowed = allowed and await owner.fetchval("select has_table_privilege('app_runtime', $1, $2)", table, command)
        if table == "audit_seal" and command == "insert":
            continue  # tried with a real seal, where seals are tested
        done: Any
        try:
            async with scope(tenant=lakeside.tenant, actor=roles[role], reason="matrix"):
                async with transaction():
                    done = await statement()
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        except ScopeError:
            done = []
        except asyncpg.PostgresError as error:
            done = error.sqlstate.startswith("23")  # allowed, and stopped by a reference
        assert bool(done) is allowed, (role, table, command, done)


@pytest.mark.parametrize("status", ["suspended", "closed"])
async def test_in_a_suspended_or_closed_tenant_admins_and_auditors_read_and_nobody_writes(
    status: str, database: ChartholdEngine
) -> None:
    clinic = await make_clinic(f"shut-{status}")
    people = {role: getattr(clinic, role) for role in ("admin", "clinician", "billing", "auditor")}
    people["system"] = await add_user(clinic, "system")
    await set_tenant_status(tenant=clinic.tenant, actor=clinic.admin, status=status, reason="unpaid")
    for role, actor in people.items():
        for command, statement in (
            ("select", lambda: Client.select(Client.first_name)),
            ("insert", lambda: someone(clinic).save()),
            ("update", lambda: Client.update({Client.status: "on_hold"}).where(Client.id == clinic.client).returning(Client.id)),
            ("tenant", lambda: Tenant.update({Tenant.status: "active"}).where(Tenant.id == clinic.tenant).returning(Tenant.id)),
            ("key", lambda: TenantKey.update({TenantKey.status: "retired"}).where(TenantKey.version == 1).returning(TenantKey.id)),
            ("delete", lambda: Client.delete().where(Client.id == clinic.client).returning(Client.id)),
        ):  # fmt: skip
            done: Any = []
            try:
                async with scope(tenant=clinic.tenant, actor=actor, reason="look"):
                    done = await statement()
            except ScopeError:
                pass
            assert bool(done) is (command == "select" and role in ("admin", "auditor")), (role, command, done)
    await set_tenant_status(tenant=clinic.tenant, actor=clinic.admin, status="active", reason="paid")
    async with clinic.as_clinician():
        await someone(clinic).save()
        assert await Client.count() == 2


@pytest.mark.parametrize("status", ["locked", "deactivated", "invited"])
async def test_a_user_who_is_not_active_is_out_at_once(status: str, lakeside: Clinic) -> None:
    actor = await add_user(lakeside, "clinician")
    began = asyncio.Event()
    locked = asyncio.Event()

    async def work() -> None:
        async with scope(tenant=lakeside.tenant, actor=actor, reason="treatment"):
            assert await Client.count() > 0
            began.set()
            await locked.wait()
            for statement in (
                Client.count(),
                Client.select(),
                someone(lakeside).save(),
                Client.raw("select * from client"),
            ):
                with pytest.raises(ScopeError, match="not an active user"):
                    await statement

    task = asyncio.create_task(work())
    await began.wait()
    async with lakeside.as_admin():
        await User.update({User.status: status}).where(User.id == actor)
    locked.set()
    await task


async def test_a_change_of_role_holds_at_once(lakeside: Clinic) -> None:
    actor = await add_user(lakeside, "clinician")
    async with lakeside.as_admin():
        await User.update({User.role: "auditor"}).where(User.id == actor)
    async with scope(tenant=lakeside.tenant, actor=actor, reason="treatment"):
        with pytest.raises(ScopeError, match="may not do that"):
            await someone(lakeside).save()


@pytest.mark.parametrize("role", ROLES)
async def test_a_user_bound_to_facilities_sees_their_clients_only(
    role: str, database: ChartholdEngine, hillside: Clinic
) -> None:
    here, there = Facility(name=f"Here {role}"), Facility(name=f"There {role}")
    async with hillside.as_admin():
        await Facility.insert(here, there)
        mine, others = someone(hillside, facility_id=here.id), someone(hillside, facility_id=there.id)
        await Client.insert(mine, others)
    bound = await add_user(hillside, role, facility_scope=[here.id])
    nowhere = await add_user(hillside, role, facility_scope=[])
    async with scope(tenant=hillside.tenant, actor=bound, reason="treatment"):
        assert await Client.select(Client.id).output(as_list=True) == [mine.id]
        assert await Client.count().where(Client.facility_id == there.id) == 0
        assert await Client.update({Client.status: "on_hold"}).where(Client.id == others.id).returning(Client.id) == []
        if role in roles_for("client", "update"):
            with pytest.raises(ScopeError, match="may not do that"):
                await Client.update({Client.facility_id: there.id}).where(Client.id == mine.id)
        if role in roles_for("client", "insert"):
            with pytest.raises(ScopeError, match="may not do that"):
                await someone(hillside, facility_id=there.id).save()
        if role in roles_for("client", "delete"):
            assert await Client.delete().where(Client.id == others.id).returning(Client.id) == []
    async with scope(tenant=hillside.tenant, actor=nowhere, reason="treatment"):
        assert await Client.count() == 0


async def test_a_facility_of_the_same_id_in_another_tenant_is_another_facility(
    database: ChartholdEngine, hillside: Clinic, lakeside: Clinic
) -> None:
    twin = Facility(name="Twin")
    async with hillside.as_admin():
        await twin.save()
        mine = someone(hillside, facility_id=twin.id)
        await mine.save()
    async with lakeside.as_admin():
        await Facility(id=twin.id, name="Twin").save()
        theirs = someone(lakeside, facility_id=twin.id)
        await theirs.save()
    bound = await add_user(hillside, "clinician", facility_scope=[twin.id])
    async with scope(tenant=hillside.tenant, actor=bound, reason="treatment"):
        assert await Client.select(Client.id).output(as_list=True) == [mine.id]
        # By hand too, without the tenant that the ORM adds.
        assert [row["id"] for row in await Client.raw("select id from client")] == [mine.id]


# -- keys that sign ----------------------------------------------------------------------------------------------------


async def test_the_key_that_signs_scopes_rotates_while_scopes_are_open(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    old = database.token_key
    new = TokenKey.derive(os.urandom(32))
    try:
        async with lakeside.as_admin():
            assert await Client.count() > 0
            database._token_key = new
            with pytest.raises(ScopeError, match=r"CHARTHOLD_MASTER_KEY or .* is another.*install_token_key"):
                await Client.count()
            assert await install_token_key(retire_others_after=0.4)
            assert not await install_token_key()
            assert await Client.count() > 0  # signed with the new one
            database._token_key = old
            assert await Client.count() > 0  # another process still signs with the old one
            await asyncio.sleep(0.5)
            with pytest.raises(ScopeError, match="knows no key"):
                await Client.count()
            database._token_key = new
            assert await Client.count() > 0
    finally:
        database._token_key = old
        await install_token_key()
        await owner.execute("delete from charthold.token_key where id = $1", new.id)


async def test_migrations_leave_no_key_of_a_master_key_that_nobody_meant(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: a step is run with the wrong CHARTHOLD_MASTER_KEY, and a key that follows from it signs scopes ever after."""
    ours, another = master_key(settings()), os.urandom(32)
    before = await owner.fetch("select id from charthold.token_key")
    for known, changed in (
        (False, {"master_key": another}),
        (True, {"master_key": another, "retired_master_keys": (ours,)}),
        (True, {"master_key": ours, "token_generation": 3}),
    ):
        async with set_up(monkeypatch, database, **changed):
            database._token_key = None  # as a process that starts
            new = database.token_key.id
            with contextlib.nullcontext() if known else pytest.raises(ConfigurationError, match="not the one that the"):
                await settle_token_key()
            installed = await owner.fetch("delete from charthold.token_key where id = $1 returning id", new)
            assert [row["id"] for row in installed] == [new] * known
        database._token_key = None
    await settle_token_key()
    assert await owner.fetch("select id from charthold.token_key") == before


async def test_a_new_generation_of_the_key_that_signs_needs_no_new_master_key(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: a backup holds the key, and whoever has it and can run SQL signs a scope of their own."""
    stolen = database.token_key
    try:
        async with set_up(monkeypatch, database, token_generation=2):
            database._token_key = None  # as a process that starts
            new = database.token_key
            assert await install_token_key(retire_others_after=0)
            async with lakeside.as_admin():
                assert await Client.count() > 0
                database._token_key = stolen
                with pytest.raises(ScopeError, match="knows no key"):
                    await Client.count()
    finally:
        database._token_key = stolen
        await install_token_key()
        await owner.execute("delete from charthold.token_key where id = $1", new.id)


async def test_a_token_is_bound_to_a_backend_unless_that_is_switched_off(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lakeside.as_admin() as open_scope:
        link = await database.acquire()
        elsewhere = link.backend + 1
        await database.release(link)
        bound = open_scope.token(database.token_key, elsewhere)
        monkeypatch.setattr(open_scope, "_tokens", {})
        with pytest.raises(ScopeError, match="CHARTHOLD_BIND_BACKEND"):
            monkeypatch.setattr(type(open_scope), "token", lambda *_: bound)
            await Client.count()
        monkeypatch.undo()
    async with set_up(monkeypatch, database, bind_backend=False):
        async with lakeside.as_admin() as open_scope:
            free = open_scope.token(database.token_key, elsewhere)
            assert free[82:92] == "0" * 10
            with monkeypatch.context() as patch:
                patch.setattr(type(open_scope), "token", lambda *_: free)
                assert await Client.count() > 0
        async with scope(tenant=lakeside.tenant, actor=uuid4(), reason="test"):
            with pytest.raises(ScopeError, match="not an active user"):  # and not: of another connection
                await Client.count()


async def test_no_error_carries_a_token_or_a_password_in_its_frames(
    database: ChartholdEngine, lakeside: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat: who reports an error reports the locals of each frame, to a service that is not meant to sign in."""
    async with lakeside.as_admin() as here:
        for statement in (
            lambda: Client.update({Client.status: "nowhere"}).where(Client.id == lakeside.client),
            lambda: someone(lakeside, facility_id=uuid4()).save(),
            lambda: Client.select(Client.id).where(WhereRaw("1 / 0 = 1")),
        ):
            with pytest.raises(Exception) as failed:
                await statement()
            signed = {token[:64] for token in here._tokens.values()}
            assert signed
            assert not any(mac in told(failed.value) for mac in signed)
    made: list[str] = []
    sign = TokenKey.sign
    monkeypatch.setattr(TokenKey, "sign", lambda self, **said: made.append(sign(self, **said)) or made[-1])
    with pytest.raises(ScopeError) as nobody:
        await record_failed_login(tenant=lakeside.tenant, user=uuid4())
    assert made
    assert not any(token[:64] in told(nobody.value) for token in made)
    arguments = {"host": "127.0.0.1", "port": 1, "user": "app", "password": "hunter2", "database": "clinic"}
    monkeypatch.setattr(Database, "arguments", lambda *_, **__: arguments)
    with pytest.raises(ConfigurationError) as refused:
        await database.connect(owner=False)
    assert "hunter2" not in told(refused.value)
    key = base64.b64encode(os.urandom(32)).decode()
    with pytest.raises(ConfigurationError) as misspelt:
        Settings.from_environ({"CHARTHOLD_MASTER_KEY": key, "CHARTHOLD_POOL_SIZE": "many"})
    assert key not in told(misspelt.value)


# -- everything at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [800, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("size", "seed"), [(1, 1), (2, 2), (5, 3), (12, 4)])
async def test_no_interleaving_of_scopes_errors_and_cancellations_shows_another_tenants_row(
    size: int, seed: int, operations: int, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """For each size of the pool. Each operation looks at what it got, and each row says whose it is."""
    chance = random.Random(seed)
    done = 0

    async def own(clinic: Clinic, rows: list[dict[str, Any]]) -> None:
        nonlocal done
        done += 1
        assert {row["tenant_id"] for row in rows} <= {clinic.tenant}

    async def operation(clinic: Clinic, *, alone: bool = True) -> None:
        match chance.randrange(10):
            case 0 | 1 | 2:
                await own(clinic, await Facility.select(Facility.tenant_id, Facility.name).limit(5))
            case 3:
                await own(
                    clinic, await Client.select(Client.tenant_id, Client.first_name, Client.facility_id.name).limit(5)
                )
            case 4:
                await own(clinic, await Client.raw("select tenant_id from client union select tenant_id from facility"))
            case 5:
                rows = await Facility.insert(Facility(name=f"Random {uuid4()}")).returning(Facility.tenant_id)
                await own(clinic, rows)
            case 6:
                rows = (
                    await Facility.update({Facility.phone: "1"})
                    .where(Facility.name == "Main street")
                    .returning(Facility.tenant_id)
                )
                await own(clinic, rows)
            case 7:
                await own(clinic, [])
                await Facility(name="Main street").save()  # a unique violation
            case 8 if alone:  # a batch has a connection of its own, for which a transaction must not wait
                async with await Facility.select(Facility.tenant_id).limit(6).batch(batch_size=3) as batch:
                    async for rows in batch:
                        await own(clinic, rows)
            case _:
                await own(
                    clinic,
                    await Client.select(Client.tenant_id).where(Client.status.is_in(["active", "on_hold"])).limit(3),
                )

    async def request(clinic: Clinic) -> None:
        async with clinic.as_admin():
            if chance.random() < 0.3:
                async with transaction():
                    for _ in range(chance.randrange(1, 5)):
                        await operation(clinic, alone=False)
                    if chance.random() < 0.3:
                        raise ZeroDivisionError
            elif chance.random() < 0.3:
                await asyncio.gather(*[operation(clinic) for _ in range(3)], return_exceptions=True)
            else:
                for _ in range(chance.randrange(1, 4)):
                    await operation(clinic)

    async with set_up(monkeypatch, database, pool_size=size):
        while done < operations:
            tasks = [asyncio.create_task(request(chance.choice((lakeside, hillside)))) for _ in range(24)]
            for task in tasks:
                if chance.random() < 0.15:
                    await asyncio.sleep(chance.random() / 200)
                    task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert not isinstance(result, AssertionError | ScopeError), result
        pool = pool_of(database)
        assert pool._open == len(pool._idle) <= size
    assert done >= operations


async def test_a_tenant_on_trial_works_as_any_other_and_its_directory_follows_it(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    slug = f"trial-{uuid4().hex[:8]}"
    made = await provision_tenant(slug=slug, name="Trial", admin_email=f"ada@{slug}.example", trial=True)
    assert (await find_tenant(slug)).status == "trial"

    async def works(actor: UUID) -> None:
        async with scope(tenant=made.tenant_id, actor=actor, reason="test"):
            await Facility(name=str(uuid4())).save()

    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        second = User(email=f"bo@{slug}.example", full_name="Bo", role="admin", status="active")
        await second.save()
    await works(second.id)
    for status in ("active", "suspended", "trial"):
        await set_tenant_status(tenant=made.tenant_id, actor=made.admin_id, status=status, reason="test")
        assert (await find_tenant(slug)).status == status
        for actor in (made.admin_id, second.id) if status != "suspended" else ():
            await works(actor)
    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        await Tenant.update({Tenant.slug: f"{slug}-2"}).where(Tenant.id == made.tenant_id)
    assert await find_tenant(slug) is None
    assert (await find_tenant(f"{slug}-2")).tenant_id == made.tenant_id
