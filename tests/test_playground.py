"""The playground as a user meets it: in a terminal, typing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pexpect
import pytest

from core.commands.explore import QUESTION, THINGS, _find
from core.commands.family import Failure
from core.commands.import_synthea import import_export
from core.commands.options import existing_tenant
from core.engine import ChartholdEngine

PICCOLO = str(Path(sys.executable).with_name("piccolo"))
REPOSITORY = Path(__file__).parent.parent
COLOUR = r"\x1b\[[0-9;?]*[A-Za-z]"


def prompt(number: str = r"\d+") -> str:
    """IPython's prompt of that number, which comes in colours."""
    return rf"In \[(?:{COLOUR})*({number})(?:{COLOUR})*\]: "


@pytest.fixture(scope="module")
async def filled(database: ChartholdEngine) -> str:
    """The name of the module's database, with the sample in it."""
    assert await import_export(quiet=True) == 0
    assert database.database is not None
    return database.database


@pytest.fixture
async def empty(owner: asyncpg.Connection, template: str) -> AsyncIterator[str]:
    """The name of a migrated database without tenants."""
    name = f"charthold_empty_{uuid.uuid4().hex[:12]}"
    await owner.execute(f"create database {name} template {template} strategy file_copy")
    yield name
    await owner.execute(f"drop database {name} with (force)")


@pytest.fixture
def environ(filled: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a child process that works on the module's database, with a home of its own."""
    return child(filled, tmp_path)


def child(database: str | None, folder: Path) -> dict[str, str]:
    (folder / "child_conf.py").write_text(
        f"from piccolo_conf import APP_REGISTRY, DB\n\nDB.database = {database!r}\n", encoding="utf-8"
    )
    (folder / "home").mkdir()
    return {
        **os.environ,
        "PICCOLO_CONF": "child_conf",
        "PYTHONPATH": f"{folder}:{REPOSITORY}",
        "HOME": str(folder / "home"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }


class Terminal:
    """A session in a pseudo-terminal."""

    def __init__(self, environ: dict[str, str], *options: str) -> None:
        self.child = pexpect.spawn(
            PICCOLO, ["playground", "explore", *options], env=environ, cwd=str(REPOSITORY),
            encoding="utf-8", timeout=60, dimensions=(50, 140),
        )  # fmt: skip

    def until(self, pattern: str) -> str:
        """What is printed up to the pattern, without colours."""
        self.child.expect(pattern)
        return re.sub(COLOUR, "", str(self.child.before) + str(self.child.after)).replace("\r", "")

    def type(self, line: str) -> str:
        """Type a line at the prompt; what comes back before the next prompt."""
        number = int(self.child.match.group(1))
        self.child.send(f"{line}\r")
        return self.until(prompt(str(number + 1)))

    def leave(self) -> int:
        self.child.send("exit\r")
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture(scope="module")
def session(filled: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A session at a prompt, on the sample."""
    terminal = Terminal(child(filled, tmp_path_factory.mktemp("session")))
    terminal.until(prompt())
    yield terminal
    terminal.child.close(force=True)


def test_an_empty_database_is_offered_the_sample(empty: str, tmp_path: Path) -> None:
    environ = child(empty, tmp_path)
    for answer, outcome in (
        ("\r", "Nothing was loaded. Later: piccolo core import_synthea"),
        ("y\r", "63 facilities, 166 users beside the admin, 27 clients"),
    ):
        terminal = Terminal(environ)
        terminal.until(re.escape(QUESTION[-8:]))
        terminal.child.send(answer)
        terminal.until(outcome)
    assert "You are admin@synthea.example (admin) of Synthea." in terminal.until(prompt())
    assert terminal.leave() == 0


def test_the_five_things_of_the_banner_work(session: Terminal) -> None:
    shown = {}
    for number, (lines, _) in enumerate(THINGS, start=1):
        for line in lines:
            shown[number] = session.type(line)
            assert "Error" not in shown[number], line
    assert shown[1].count("'first_name': '") == 5
    assert shown[2].count("UUID(") == 1
    # Bytes that hold an apostrophe print in double quotes.
    assert "'last_name': b'\\x01" in shown[3] or "'last_name': b\"\\x01" in shown[3]
    assert "ANNA JAQUES HOSPITAL" in shown[4]
    assert "'action_type': 'read'" in shown[5]


def test_the_scope_is_open_for_lines_with_and_without_await(session: Terminal) -> None:
    assert "a look around in the playground" in session.type("current_scope()")
    assert "27" in session.type("await Client.count()")
    assert "27" in session.type("Client.count().run_sync()")
    assert "[27, 63]" in session.type("await asyncio.gather(Client.count(), Facility.count())")
    assert "\n63\n" in session.type("async with transaction(): print(await Facility.count())")


def test_an_error_of_ours_is_a_sentence(session: Terminal) -> None:
    printed = session.type('await Client.select().where(Client.notes == "x")')
    assert "ProtectedQueryError: Client.notes is encrypted" in printed
    assert "Traceback" not in printed
    assert "Traceback" not in session.type('await Client.raw("select nonsense from client")')
    assert "ZeroDivisionError" in session.type("1/0")


def test_an_expired_scope_is_opened_again(environ: dict[str, str]) -> None:
    environ["CHARTHOLD_SCOPE_SECONDS"] = "4"  # the banner is made in one such scope, also on a busy machine
    terminal = Terminal(environ)
    terminal.until(prompt())
    terminal.type("import time; time.sleep(4.5)")
    printed = terminal.type("await Client.count()")
    assert "The scope had expired; a new one is open." in printed
    assert "27" in printed
    assert terminal.leave() == 0


def test_ctrl_c_stops_a_statement_and_keeps_the_session(session: Terminal) -> None:
    session.child.send("print('sleep' + 'ing'); await asyncio.sleep(600)\r")
    session.child.expect("sleeping\r\n")
    session.child.sendintr()
    assert "Stopped." in session.until(prompt())
    assert "27" in session.type("await Client.count()")


def test_nothing_that_was_typed_stays_in_the_home(environ: dict[str, str]) -> None:
    terminal = Terminal(environ)
    terminal.until(prompt())
    terminal.type('await Client.count().where(Client.last_name == "Mosciski958")')
    terminal.leave()
    assert list(Path(environ["HOME"]).rglob("*")) == []


def explore(environ: dict[str, str], *options: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PICCOLO, "playground", "explore", *options],
        env=environ, cwd=REPOSITORY, input=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_lines_can_be_piped_in(environ: dict[str, str]) -> None:
    done = explore(environ, "--quiet", stdin="await Client.count()\n")
    assert done.returncode == 0
    assert "27" in done.stdout
    assert "Five things to try" not in done.stdout


@pytest.mark.parametrize("line", ["await Client.raw('select nonsense')", "1 +", "1/0"])
def test_a_piped_line_that_fails_is_told_by_the_status_after_the_rest_ran(environ: dict[str, str], line: str) -> None:
    done = explore(environ, "--quiet", stdin=f"{line}\nawait Client.count()\n")
    assert done.returncode == 2
    assert "27" in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tenant=nowhere"], "There is no tenant nowhere. Choose one with --tenant=SLUG: synthea."),
        (["--tenant=No Slug"], "--tenant takes a slug"),
        (["--actor=nobody@nowhere.example"], "The tenant has no user with the e-mail or id that --actor names."),
        ([f"--actor={uuid.uuid4()}"], "The actor is not an active user of this tenant"),
        (["--tennant=x"], "explore has no option --tennant. It takes --tenant, --actor, --quiet."),
        (["synthea"], "explore takes nothing beside its options, and got 1, as in: piccolo playground explore"),
    ],
)
def test_a_mistake_is_one_sentence(environ: dict[str, str], options: list[str], sentence: str) -> None:
    done = explore(environ, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


async def test_an_owner_who_looks_at_another_database_is_told(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def elsewhere(slug: str) -> None:
        """What the application's login finds in a database without tenants."""

    monkeypatch.setattr("core.commands.explore.find_tenant", elsewhere)
    monkeypatch.setattr("core.commands.options.find_tenant", elsewhere)
    for ask in (_find("", ""), _find("synthea", ""), existing_tenant("synthea")):
        with pytest.raises(Failure, match="none where DATABASE_URL leads"):
            await ask


def test_without_a_terminal_it_says_the_command(empty: str, tmp_path: Path) -> None:
    done = explore(child(empty, tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "The database has no tenants yet. Load the sample with: piccolo core import_synthea\n"


async def test_without_tables_it_says_the_command(owner: asyncpg.Connection, empty: str, tmp_path: Path) -> None:
    await owner.execute(f"drop database {empty} with (force)")
    await owner.execute(f"create database {empty}")
    done = explore(child(empty, tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Run: piccolo migrations forwards core\n")
    assert done.stderr.count("\n") == 1


def test_help_names_the_options(environ: dict[str, str]) -> None:
    done = explore(environ, "--help")
    assert done.returncode == 0
    assert "The tenant's slug; left out, synthea" in done.stdout
    assert "return" not in done.stdout
