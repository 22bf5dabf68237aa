"""PostgreSQL servers for the tests of migrations: ours, and a Debian one of version 15 where it is installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.engine.postgres import PostgresEngine

from core import embedded
from core.schema import lock
from core.settings import settings

DEBIAN = Path("/usr/lib/postgresql/15/bin")
PSQL = "psql"


@dataclass(frozen=True)
class Server:
    """How to reach a server as an owner who is no superuser where that can be had."""

    name: str
    connect: dict[str, Any]
    psql: Path

    def to(self, database: str) -> dict[str, Any]:
        return {**self.connect, "database": database}

    def environ(self, database: str) -> dict[str, str]:
        names = {
            "host": "PGHOST",
            "port": "PGPORT",
            "user": "PGUSER",
            "password": "PGPASSWORD",
            "database": "PGDATABASE",
        }
        return {names[key]: str(value) for key, value in self.to(database).items()}

    @asynccontextmanager
    async def database(self, options: str = "strategy file_copy", template: str = "template0") -> AsyncIterator[str]:
        """A database of its own: an empty one, or a copy."""
        name = f"migrations_{uuid4().hex[:12]}"
        admin = await asyncpg.connect(**self.to("postgres"))
        try:
            await admin.execute(f"create database {name} template {template} {options}")
            yield name
        finally:
            try:
                await dropped(admin, name)
            finally:
                await admin.close()


async def dropped(admin: asyncpg.Connection, name: str) -> None:
    """Drop the database; when an autovacuum worker is in it, which only a superuser may end, when that is done."""
    for left in reversed(range(100)):
        try:
            await admin.execute(f"drop database if exists {name} with (force)")
        except asyncpg.InsufficientPrivilegeError:
            if not left:
                raise
            await asyncio.sleep(0.2)
        else:
            return


def servers() -> list[str]:
    if not settings().embedded:
        return ["configured"]
    return ["embedded", "debian"] if DEBIAN.exists() and os.getuid() == 0 else ["embedded"]


@pytest.fixture(scope="session", params=servers())
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "embedded":
        running = embedded.start(settings().home, fast=True)
        dsn = running.dsn(login="owner", database="postgres")
        del dsn["database"]
        yield Server("embedded", dsn, running.bin_dir / "psql")
    elif request.param == "debian":
        yield from debian()
    else:
        yield Server("configured", {"dsn": settings().owner_url}, Path(PSQL))


def debian() -> Iterator[Server]:
    """A throw-away cluster; its owner may create roles and databases, and is no superuser."""
    place = Path(tempfile.mkdtemp(prefix="pg15-", dir="/tmp"))  # a short path: the socket's name is limited
    account = pwd.getpwnam("postgres")
    os.chown(place, account.pw_uid, account.pw_gid)

    def run(*command: object) -> None:
        subprocess.run(
            [str(part) for part in command], check=True, cwd="/", user="postgres", group=account.pw_gid, extra_groups=[],
            stdout=subprocess.DEVNULL, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        )  # fmt: skip

    data = place / "data"
    run(DEBIAN / "initdb", "-D", data, "--no-sync", "--auth=trust", "--username=postgres", "--locale=C.UTF-8")
    options = f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off -c max_connections=60"
    run(DEBIAN / "pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, "start")
    try:
        run(
            DEBIAN / "psql", "-h", place, "-d", "postgres", "-U", "postgres", "-q",
            "-c", "create role migrator login createrole createdb",
            "-c", f"create role {embedded.APPLICATION} login",
        )  # fmt: skip
        yield Server("debian", {"host": str(place), "user": "migrator"}, DEBIAN / "psql")
    finally:
        run(DEBIAN / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


async def forget_roles(server: Server) -> None:
    """Roles outlive databases: those that an earlier test left, and nothing uses, are in the way."""
    admin = await asyncpg.connect(**server.to("postgres"))
    if not await admin.fetchval("select rolsuper or rolcreaterole from pg_roles where rolname = current_user"):
        await admin.close()
        pytest.skip("makes roles, and the login of DATABASE_OWNER_URL has no CREATEROLE")
    for role in ("app_toy", "app_runtime", "app_auditor"):
        with suppress(asyncpg.DependentObjectsStillExistError, asyncpg.InsufficientPrivilegeError):
            await admin.execute(f"drop role if exists {role}")
    await admin.close()


def work_on(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the migrator works on that database."""
    engine = PostgresEngine(config={**server.to(database), "server_settings": {"timezone": "UTC"}})
    monkeypatch.setattr(lock, "engine_finder", lambda: engine)


@pytest.fixture
async def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """An empty database, on which the migrator works."""
    await forget_roles(server)
    async with server.database() as name:
        work_on(server, name, monkeypatch)
        yield name


@pytest.fixture
async def connection(server: Server, database: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The owner's connection to it."""
    connection = await asyncpg.connect(**server.to(database))
    yield connection
    await connection.close()
