"""The running server: starting it, stopping it, and asking where it is."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.embedded.cluster import DATABASE, ROLES, Login, Tools, launch, make, password_of
from core.embedded.place import WAY_OUT, account_for, beside, explained, place_of, readable, settle, wheel_folder
from core.errors import ConfigurationError

__all__ = ["Server", "lock_beside", "running", "start", "status", "stop"]

PATIENCE = 120.0  # seconds for a start or a stop: recovery after a crash takes its time
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


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
            "password": password_of(self.data_dir.parent, login),
            "database": database,
        }

    def environ(self, login: Login = "owner", database: str = DATABASE) -> dict[str, str]:
        """Variables for psql, pg_dump and all that speak libpq. They hold the password."""
        dsn = self.dsn(login=login, database=database)
        return {f"PG{name.upper()}": str(value) for name, value in dsn.items()}

    @property
    def bin_dir(self) -> Path:
        """The folder of psql, pg_dump and their like, of the server's own version."""
        return wheel_folder() / "pginstall" / "bin"


def start(home: Path, *, fast: bool = False) -> Server:
    """Start the home's server if it is not running, making it first if there is none; return where it is.

    The server outlives this process. ``fast`` trades crash safety for speed; a running server stays as it is.
    Raises ``ConfigurationError``, one sentence that says why and names the way out.
    """
    home = home.absolute()
    if server := status(home):
        return server
    with explained(home), tempfile.TemporaryFile() as complaints:
        wheel = wheel_folder()  # first: what follows needs a Unix, and so does the wheel
        account = account_for(home)
        place = settle(home, account)
        launched = False
        # Of several that start at once, one has the lock and works; the others wait for its server to answer.
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if server := status(home):
                return server
            if (lock := lock_beside(place)) is not None:
                try:
                    tools = Tools(readable(wheel, account), account, lock, complaints, fast)
                    if launched:  # and the lock is free again
                        raise tools.failure("ended at once")
                    if not place.exists():
                        make(place, tools)
                    launch(place, tools)
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
    with explained(home):
        place = place_of(home)
        if not place.exists():
            return False
        socket_dir: Path | None = None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := running(place):
                if socket_dir is None:
                    # It answers, so it lives, and a live postmaster sees to it that the file holds its pid.
                    os.kill(found.pid, STOP_SIGNALS[mode])
                    socket_dir = found.server.socket_dir
            elif (lock := lock_beside(place)) is not None:
                if socket_dir:
                    with suppress(OSError):  # started by hand, it may have used a folder with other things
                        socket_dir.rmdir()
                os.close(lock)
                return socket_dir is not None
            time.sleep(0.01)
        raise ConfigurationError(f"The embedded PostgreSQL in {place} does not stop; close its clients first.")


def status(home: Path) -> Server | None:
    """Where the home's server is, if it runs and takes connections."""
    with explained(home):
        found = running(place_of(home.absolute()))
        return found.server if found and found.ready else None


class Running(NamedTuple):
    pid: int
    ready: bool
    server: Server


def running(place: Path) -> Running | None:
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


def lock_beside(place: Path) -> int | None:
    """Take the lock beside ``place`` and return its descriptor; None while a starter or the server has it."""
    import fcntl  # late: Windows has none, and is told about the missing wheel instead

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = os.open(beside(place, ".lock"), flags, 0o600)
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
