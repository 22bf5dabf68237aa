"""A real PostgreSQL, and in it a database of its own for each module: a copy of one that was migrated once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import hypothesis
import pytest

# Before anything of ours is imported: a home of the tests' own, so that they never touch a developer's data.
if not os.environ.get("DATABASE_URL"):
    os.environ["CHARTHOLD_HOME"] = tempfile.mkdtemp(prefix="charthold-tests-")
    # As root the server runs as an account of its own, which must be able to enter the folder.
    Path(os.environ["CHARTHOLD_HOME"]).chmod(0o755)  # noqa: S103

from piccolo.apps.migrations.commands.forwards import run_forwards

import core.wire.session
from core import embedded, provision_tenant, scope
from core.engine import ChartholdEngine
from core.settings import settings
from core.tables import Client, Facility, User
from piccolo_conf import DB

# A job that a script runs in the background ignores Ctrl-C, and so would the commands that the tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast a shared machine is at the moment is no property of our code.
hypothesis.settings.register_profile(
    "charthold", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("charthold")

TEMPLATE = f"charthold_template_{os.getpid()}"

# The schema's owner is an ordinary role, as the README recommends: no policy binds a superuser, so that attacks upon
# functions that act as their owner would not show. The tests look as the superuser that the embedded server logs in. A
# module that breaks what only a superuser can break says OWNER_IS_SUPERUSER = True.
OWNER = f"charthold_tests_owner_{os.getpid()}"


async def _is_superuser() -> bool:
    connection = await DB.connect(owner=True)
    try:
        return await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    finally:
        await connection.close()


# A server that DATABASE_OWNER_URL names may be an ordinary owner's, with CREATEDB: then nobody looks past the policies.
SUPERUSER = settings().embedded or asyncio.run(_is_superuser())


IN_ITS_FILES = pytest.mark.skipif(
    not settings().embedded, reason="looks into the server's files, and DATABASE_URL names another's"
)


@dataclass(frozen=True)
class Clinic:
    """A tenant with somebody of each role, a facility and a client."""

    tenant: UUID
    admin: UUID
    clinician: UUID
    billing: UUID
    auditor: UUID
    facility: UUID
    client: UUID

    def as_admin(self, reason: str = "test"):
        return scope(tenant=self.tenant, actor=self.admin, reason=reason)

    def as_clinician(self, reason: str = "test"):
        return scope(tenant=self.tenant, actor=self.clinician, reason=reason)


def pytest_configure(config: pytest.Config) -> None:
    if not settings().embedded and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(
            "Roles belong to a server, and some tests spoil them for a moment. On the one that DATABASE_URL names run the "
            "tests in one process: leave --numprocesses out."
        )


def pytest_sessionfinish() -> None:
    if settings().embedded:
        embedded.stop(settings().home, mode="immediate")
        shutil.rmtree(settings().home, ignore_errors=True)


@pytest.fixture(scope="session")
async def server() -> AsyncIterator[None]:
    if settings().embedded:
        embedded.start(settings().home, fast=True)
    if SUPERUSER:
        await owner_execute(None, f"create role {OWNER} createrole")
    yield
    if SUPERUSER:
        await owner_execute(None, f"drop owned by {OWNER}", f"drop role {OWNER}")


async def superuser_connection() -> asyncpg.Connection:
    """A connection as who made the server: one whom no policy binds."""
    if not SUPERUSER:
        pytest.skip("looks as a superuser, and DATABASE_OWNER_URL names an ordinary owner")
    return await connection_of_the_login()


async def connection_of_the_login() -> asyncpg.Connection:
    """A connection as who makes databases, and roles: also the one that owns the schema, which may not be there yet."""
    with owned_by(None):
        return await DB.connect(owner=True)


async def schema_owner(connection: asyncpg.Connection) -> str:
    """Whose the tables are."""
    return await connection.fetchval("select tableowner from pg_tables where tablename = 'user_action_audit_log'")


async def owner_execute(database: str | None, *statements: str) -> None:
    """Run statements as who makes databases, in one of them."""
    was = DB.database
    DB.database = database
    try:
        connection = await connection_of_the_login()
    finally:
        DB.database = was
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.contextmanager
def owned_by(role: str | None) -> Iterator[None]:
    """What is made meanwhile belongs to that role; None: to who made the server."""
    before = core.wire.session.OWNER_SESSION.pop("role", None)
    if role is not None:
        core.wire.session.OWNER_SESSION["role"] = role
    try:
        yield
    finally:
        core.wire.session.OWNER_SESSION.pop("role", None)
        if before is not None:
            core.wire.session.OWNER_SESSION["role"] = before


@pytest.fixture(scope="module", autouse=True)
def owner_of_the_schema(request: pytest.FixtureRequest) -> Iterator[None]:
    ordinary = SUPERUSER and not getattr(request.module, "OWNER_IS_SUPERUSER", False)
    with owned_by(OWNER if ordinary else None):
        yield


@pytest.fixture(scope="session")
async def template(server: None) -> AsyncIterator[str]:
    """A migrated database that nobody uses, to be copied."""
    with owned_by(OWNER if SUPERUSER else None):
        await migrated(TEMPLATE)
    yield TEMPLATE
    await owner_execute(None, f"drop database if exists {TEMPLATE} with (force)")


async def migrated(name: str) -> str:
    """A new database with our tables."""
    await owner_execute(None, f"create database {name}{whose()}")
    if whose():
        await owner_execute(name, f"alter schema public owner to {OWNER}")
    await DB.use(name)
    # In a task of its own: the migrator works in owner mode until its task ends.
    await asyncio.create_task(run_forwards(app_name="core"))
    await DB.use(None)
    return name


def whose() -> str:
    """To whom a new database is given."""
    return f" owner {OWNER}" if "role" in core.wire.session.OWNER_SESSION else ""


@pytest.fixture(scope="module")
async def database(template: str, owner_of_the_schema: None) -> AsyncIterator[ChartholdEngine]:
    """The module's own copy; the engine works on it."""
    name = f"charthold_test_{uuid4().hex[:12]}"
    if whose() or not SUPERUSER:
        await owner_execute(None, f"create database {name} template {template} strategy file_copy{whose()}")
    else:
        await migrated(name)
    await DB.use(name)
    yield DB
    await DB.use(None)
    await owner_execute(None, f"drop database {name} with (force)")


async def make_clinic(slug: str) -> Clinic:
    """A populated tenant."""
    made = await provision_tenant(slug=slug, name=slug.title(), admin_email=f"ada@{slug}.example")
    async with scope(tenant=made.tenant_id, actor=made.admin_id, reason="test"):
        people = {
            role: User(email=f"{role}@{slug}.example", full_name=role.title(), role=role, status="active")
            for role in ("clinician", "billing", "auditor")
        }
        await User.insert(*people.values())
        facility = Facility(name="Main street")
        await facility.save()
        client = Client(
            facility_id=facility.id,
            user_id=people["clinician"].id,
            first_name="Ana",
            last_name="Nguyen",
            date_of_birth=__import__("datetime").date(1980, 2, 29),
            ssn="999-17-5017",
            mrn=f"{slug}-1",
            email="ana.nguyen@mail.example",
            phone="+1 617 555 0100",
            address={"street": "784 Stamm Lock", "city": "Somerville"},
            notes="afraid of needles",
        )
        await client.save()
    return Clinic(
        tenant=made.tenant_id,
        admin=made.admin_id,
        facility=facility.id,
        client=client.id,
        **{role: person.id for role, person in people.items()},
    )


KEY_CACHE = 0.3  # seconds


@pytest.fixture(scope="module")
def short_key_cache(database: ChartholdEngine) -> Iterator[None]:
    """Keys are cached for a moment, so that a rotation's waits are short."""
    os.environ["CHARTHOLD_KEY_CACHE_SECONDS"] = str(KEY_CACHE)
    settings.cache_clear()
    yield
    del os.environ["CHARTHOLD_KEY_CACHE_SECONDS"]
    settings.cache_clear()


@pytest.fixture(scope="module")
async def lakeside(database: ChartholdEngine) -> Clinic:
    return await make_clinic("lakeside")


@pytest.fixture(scope="module")
async def hillside(database: ChartholdEngine) -> Clinic:
    return await make_clinic("hillside")


@pytest.fixture
async def owner(database: ChartholdEngine) -> AsyncIterator[asyncpg.Connection]:
    """A connection as who made the server, above all policies, to look at everything."""
    connection = await superuser_connection()
    yield connection
    await connection.close()


@pytest.fixture
async def runtime(database: ChartholdEngine) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the application's role, with no scope."""
    connection = await database.connect(owner=False)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def sample() -> Path:
    import core

    return Path(core.__file__).parent / "sample" / "synthea"
