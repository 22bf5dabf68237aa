"""Behind a transaction pooler: sessions are the pooler's, and must begin as ours do and keep nothing."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from core import ConfigurationError, transaction
from core.engine import ChartholdEngine
from core.tables import Client
from core.wire.database import Database
from core.wire.pooler import MARK, configuration
from core.wire.session import SESSION, begin_session
from tests.conftest import Clinic
from tests.test_scope import set_up

PORT = 6432


def direct(database: ChartholdEngine) -> dict[str, Any]:
    """How the application connects: host, port, user, password and database, also where a URL says it."""
    arguments = dict(database.place.arguments(owner=False))
    url = urlsplit(arguments.pop("dsn", ""))
    if url.query or (url.scheme and not url.hostname):
        pytest.skip("needs a DATABASE_URL that names a host and no more")
    said = {"host": url.hostname, "port": url.port or 5432, "user": url.username, "password": url.password or ""}
    return (said if url.scheme else {}) | arguments


class Deaf:
    """What a pooler is to our session's beginning: it passes on who connects to what, and nothing else."""

    def __init__(self, server: dict[str, Any]) -> None:
        self.server = server

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4))
        words = (await reader.readexactly(size - 4))[4:].rstrip(b"\0").split(b"\0")
        kept = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] in (b"user", b"database")]
        start = (196608).to_bytes(4) + b"".join(name + b"\0" + value + b"\0" for name, value in kept) + b"\0"
        host, port = self.server["host"], self.server["port"]
        back, there = await (
            asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if host.startswith("/")
            else asyncio.open_connection(host, port)
        )
        there.write((len(start) + 4).to_bytes(4) + start)
        await asyncio.gather(pipe(reader, there), pipe(back, writer))


async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
    sink.close()


@pytest.fixture
async def deaf(database: ChartholdEngine, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """How to connect through one."""
    arguments = direct(database)
    async with await asyncio.start_unix_server(Deaf(arguments), tmp_path / f".s.PGSQL.{PORT}"):
        yield {**arguments, "host": str(tmp_path), "port": PORT}


async def begin(arguments: dict[str, Any], *, bound: bool = False, role: str | None = "app_runtime") -> Any:
    return await begin_session(arguments, role=role, named_by="DATABASE_URL", bound=bound)


async def test_the_function_that_poolers_call_begins_a_session_as_ours_begin(runtime: asyncpg.Connection) -> None:
    await runtime.execute("set search_path = pg_temp; set row_security = off; set random_page_cost = 4")
    await runtime.execute("set default_transaction_read_only = on; set charthold.scope = 'x'")
    await runtime.execute("reset all")  # to what it began with, so take that away as well
    for name in SESSION:
        await runtime.execute(f"set {name} to default")
    await runtime.execute("select charthold.begin_session()")
    for name, setting in SESSION.items():
        assert await runtime.fetchval("select current_setting($1)", name) == setting


async def test_tokens_bound_to_a_backend_go_through_no_pooler(deaf: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CHARTHOLD_BIND_BACKEND=off and see piccolo core pooler"):
        await begin(deaf, bound=True)


async def test_a_pooler_whose_sessions_begin_otherwise_is_refused(deaf: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="The pooler's sessions have .* the lines that piccolo core pooler"):
        await begin(deaf)


async def test_a_pooler_whose_sessions_keep_what_was_left_in_them_is_refused(
    deaf: dict[str, Any], owner: asyncpg.Connection
) -> None:
    login = deaf["user"]
    try:
        for name, setting in {**SESSION, "role": "app_runtime"}.items():
            value = setting if name == "search_path" else f"'{setting}'"
            await owner.execute(f"alter role {login} set {name} = {value}")
        with pytest.raises(ConfigurationError, match="leaves its sessions as the last transaction left them"):
            await begin(deaf)
    finally:
        await owner.execute(f"alter role {login} reset all")


async def test_migrations_go_through_no_pooler(deaf: dict[str, Any], database: ChartholdEngine) -> None:
    owner = {**database.place.arguments(owner=True), "host": deaf["host"], "port": deaf["port"]}
    with pytest.raises(ConfigurationError, match="Name the server itself in DATABASE_OWNER_URL"):
        await begin(owner, role=None)


async def test_a_connection_of_ours_is_not_taken_for_a_poolers(
    database: ChartholdEngine, runtime: asyncpg.Connection
) -> None:
    assert re.fullmatch("[0-9a-f]{16}", await runtime.fetchval("select current_setting($1)", MARK))


# -- a real one --------------------------------------------------------------------------------------------------------


def pgbouncer() -> str | None:
    """The program, when it is on the machine and new enough to pass prepared statements on and see them dropped."""
    path = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    return path if found and (int(found[1]), int(found[2])) >= (1, 22) else None


needs_pgbouncer = pytest.mark.skipif(pgbouncer() is None, reason="needs PgBouncer 1.22 or later")


@pytest.fixture
async def pooled(database: ChartholdEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChartholdEngine]:
    """The engine behind a PgBouncer that has two sessions and was told what the command prints."""
    behind, as_owner = direct(database), database.place.arguments(owner=True)
    # In a folder of its own: those of pytest are root's alone, which each run of it sees to.
    with tempfile.TemporaryDirectory(prefix="pooler-") as name:
        folder = Path(name)
        process = await asyncio.create_subprocess_exec(*program(folder, behind), stderr=asyncio.subprocess.DEVNULL)
        try:
            while not (folder / f".s.PGSQL.{PORT}").exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
            arguments = {**behind, "host": name, "port": PORT}
            monkeypatch.setattr(Database, "arguments", lambda self, *, owner: as_owner if owner else arguments)
            async with set_up(monkeypatch, database, bind_backend=False):
                yield database
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def program(folder: Path, behind: dict[str, Any]) -> list[str]:
    """The command that starts a PgBouncer before that server, with what it reads in that folder."""
    told = configuration("app_runtime", SESSION)
    query = told.pop("connect_query")
    asks = "scram-sha-256" if behind["password"] else "trust"
    lines = {"listen_port": PORT, "unix_socket_dir": folder, "auth_type": asks, "default_pool_size": 2}
    lines |= told | {"auth_file": folder / "users", "logfile": folder / "log", "pidfile": folder / "pid"}
    (folder / "users").write_text(f'"{behind["user"]}" "{behind["password"]}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{behind['database']} = host={behind['host']} port={behind['port']} connect_query='{query}'\n"
        "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    command = [str(pgbouncer()), str(folder / "pgbouncer.ini")]
    if getpass.getuser() != "root":
        return command
    # It does not work for root. Whoever owns the server's socket may use it.
    account = Path(behind["host"]).owner() if behind["host"].startswith("/") else "nobody"
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, account)
    return ["runuser", "-u", account, "--", *command]


@needs_pgbouncer
async def test_many_requests_of_two_tenants_share_two_sessions_of_a_pooler(
    pooled: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    async def visit(clinic: Clinic) -> None:
        async with clinic.as_clinician():
            for n in range(10):
                assert {row.tenant_id for row in await Client.objects()} == {clinic.tenant}
                found = await Client.objects().get(Client.id == clinic.client)
                assert found is not None
                found.phone = f"+1 617 555 01{n:02}"
                await found.save()
                async with transaction():
                    assert await Client.count().where(Client.last_name == "nguyen") == 1
                    await Client.raw("select set_config('search_path', 'pg_temp', false)")

    await asyncio.gather(*[visit(clinic) for clinic in (lakeside, hillside) * 8])
    async with lakeside.as_admin():
        sessions = {(await Client.raw("select pg_backend_pid() as pid"))[0]["pid"] for _ in range(20)}
        assert len(sessions) <= 2


@needs_pgbouncer
async def test_no_trap_in_a_poolers_session_waits_for_the_next_tenant(
    pooled: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    """Settings, prepared statements under the pooler's own names, roles, locks: gone when the transaction is."""
    async with hillside.as_clinician():
        await Client.objects()  # prepared in both
    async with lakeside.as_admin():
        for trap in (
            "select set_config('charthold.trap', 'sprung', false), set_config('search_path', 'pg_temp', false)",
            "select pg_advisory_lock(4711)",
            "select set_config('role', 'none', false)",
        ):
            await Client.raw(trap)
        for n in range(1, 60):
            with contextlib.suppress(asyncpg.PostgresError, ConfigurationError):
                async with transaction():
                    await Client.raw(f'deallocate "PGBOUNCER_{n}"')
                    await Client.raw(f'prepare "PGBOUNCER_{n}" as select 4711')
    async with hillside.as_clinician():
        for _ in range(10):
            rows = await Client.objects()
            assert {row.tenant_id for row in rows} == {hillside.tenant}
            [left] = await Client.raw(
                "select current_user as who, coalesce(current_setting('charthold.trap', true), '') as trap,"
                " current_setting('search_path') as path,"
                " (select count(*) from pg_locks where locktype = 'advisory' and objid = 4711) as locks"
            )
            assert left == {"who": "app_runtime", "trap": "", "path": SESSION["search_path"], "locks": 0}
