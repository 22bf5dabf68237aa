"""The commands as one family, as somebody meets them who types: the same options, the same statuses, one sentence."""

from __future__ import annotations

import asyncio
import base64
import importlib
import inspect
import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import asyncpg
import pexpect
import pytest
from targ import CLI, Command

from core.commands import family, streams
from core.commands.bar import bar
from core.commands.explore import explore
from core.commands.family import OPTIONS, STATUSES, Failure
from core.commands.seal_audit import seal_audit
from core.commands.verify_audit import verify_audit
from core.engine import ChartholdEngine, engine
from core.errors import ChartholdError
from core.piccolo_app import COMMANDS
from core.provision import find_admin
from core.scope import current_scope
from core.statements.explain import GONE
from core.tables import User
from core.wire.session import begin_session
from tests.conftest import Clinic, make_clinic
from tests.test_playground import PICCOLO, REPOSITORY, child

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
every = pytest.mark.parametrize("command", [*COMMANDS, explore], ids=lambda command: command.__name__)


@pytest.fixture
def environ(database: ChartholdEngine, tmp_path: Path) -> dict[str, str]:
    """The environment of a child process that works on the module's database."""
    return child(database.database, tmp_path)


def piccolo(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PICCOLO, *arguments],
        env=environ, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# -- by construction -----------------------------------------------------------------------------------------------


def helped(command: Callable[..., None]) -> str:
    """What --help prints."""
    said = io.StringIO()
    with redirect_stdout(said):
        Command(command).print_help()
    return said.getvalue()


@every
def test_the_help_shows_an_example_and_the_statuses(command: Callable[..., None]) -> None:
    said = helped(command)
    group = "playground" if command is explore else "core"
    assert f"piccolo {group} {command.__name__}" in said[said.index("Example") :]
    assert STATUSES in said
    assert "argument_" not in said
    assert "return" not in said.split("Args")[1]


@every
def test_the_options_have_the_same_names_and_mean_the_same(command: Callable[..., None]) -> None:
    parameters, said = inspect.signature(command).parameters, helped(command)
    assert "quiet" in parameters
    assert "json" in parameters or command is explore
    for option in ("json", "quiet", "csv"):
        assert (OPTIONS[option] in said) == (option in parameters)
    told = Command(command).command_docstring.params
    assert {param.arg_name for param in told if param.description} == set(parameters)
    # What stands without -- is what the command is about.
    places = {name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY}
    assert places <= {"record", "directory", "tenant"}


@every
def test_a_tenant_is_named_by_an_option(command: Callable[..., None]) -> None:
    parameters = inspect.signature(command).parameters
    assert not {"slug", "tenants", "name"} & set(parameters)
    if "actor" in parameters:
        assert "tenant" in parameters


def test_the_statuses_are_documented() -> None:
    told = README[README.index("| exit status |") :]
    for status in (0, family.FOUND, family.TROUBLE, family.SKIPPED, family.STOPPED, family.UNREAD):
        assert f"\n| {status} |" in told
        assert f"\n| {status} |" in (family.__doc__ or "")


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("audit_search --tenant lakeside", "--tenant needs a value, as in --tenant=VALUE"),
        ("audit_search", "audit_search needs --tenant, as in: piccolo core audit_search --tenant=lakeside"),
        ("audit_history", "audit_history needs --record and --tenant, as in: piccolo"),
        ("audit_search --tenant=lakeside --limit=many", "--limit takes a whole number."),
        ("audit_search --tenant=lakeside --limit", "--limit needs a value"),
        ("rotate_keys --wait=nan", "--wait takes a number."),
        ("doctor --quiet=yes", "--quiet is said or left out"),
        ("doctor -h", "Options begin with --"),
        ("shred_tenant lakeside --tenant=hillside", "shred_tenant got tenant twice"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(typed: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = typed.split()
    command = next(command for command in COMMANDS if command.__name__ == name)
    with pytest.raises(SystemExit) as stopped:
        Command(command).call_with(CLI()._get_arg_class(arguments))
    assert stopped.value.code == family.TROUBLE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_any_number_of_arguments_too_many_is_one_sentence(environ: dict[str, str]) -> None:
    for command, most in (("seal_audit", "nothing"), ("import_synthea", "one argument")):
        done = piccolo(environ, "core", command, *(str(number) for number in range(30)))
        assert (done.returncode, done.stdout) == (family.TROUBLE, "")
        assert done.stderr.startswith(f"{command} takes {most} beside its options, and got 30, as in: piccolo core ")
        assert done.stderr.count("\n") == 1


def test_a_command_that_does_not_exist_is_a_mistake(environ: dict[str, str]) -> None:
    """Threat: cron runs it every night and hears that all is well."""
    done = piccolo(environ, "core", "seal_audits", "--quiet")
    assert (done.returncode, done.stdout) == (family.TROUBLE, "")
    assert done.stderr == "piccolo core has no command seal_audits. Did you mean seal_audit?\n"
    done = piccolo(environ, "core", "frobnicate")
    assert done.returncode == family.TROUBLE
    assert done.stderr.startswith("piccolo core has no command frobnicate. It has audit_history, ")
    assert piccolo(environ, "core", "--help").returncode == 0


def test_a_server_that_is_down_and_a_url_that_is_none_are_sentences(environ: dict[str, str]) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    for url, sentence in (
        ("postgres://somebody:secret@127.0.0.1:1/none", "No connection to the server that DATABASE_URL names"),
        ("nonsense", "DATABASE_URL cannot be read. Write it as postgres://"),
        ("postgres://somebody:secret#more@127.0.0.1:1/none", "DATABASE_URL cannot be read. Write it as postgres://"),
        ("postgres://somebody:secret/more@127.0.0.1:1/none", "DATABASE_URL cannot be read. Write it as postgres://"),
        ("postgres://somebody:[secret@127.0.0.1:1/none", "DATABASE_URL cannot be read. Write it as postgres://"),
    ):
        done = piccolo(
            environ | {"DATABASE_URL": url, "DATABASE_OWNER_URL": url, "CHARTHOLD_MASTER_KEY": key},
            "core", "seal_audit",
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(sentence)
        assert "secret" not in done.stderr


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize(
    ("arguments", "stream"),
    [
        ("verify_audit --tenant=nobody", "2>/dev/full"),
        ("verify_audit --tenant=nobody", ">/dev/full 2>&1"),
        ("doctor --only=drift", ">/dev/full"),
        ("doctor --only=drift", ">/dev/full 2>&1"),
    ],
)
def test_where_no_problem_can_be_told_the_status_still_tells_it(
    arguments: str,
    stream: str,
    buffered: bool,  # noqa: FBT001
    environ: dict[str, str],
) -> None:
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" core {arguments} {stream}', PICCOLO],
        env={k: v for k, v in environ.items() if k != "PYTHONUNBUFFERED"} | unbuffered,
        cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == family.TROUBLE


async def test_with_the_wrong_master_key_no_key_is_touched(
    lakeside: Clinic, environ: dict[str, str], owner: asyncpg.Connection
) -> None:
    environ["CHARTHOLD_MASTER_KEY"] = base64.b64encode(os.urandom(32)).decode()
    done = await asyncio.to_thread(piccolo, environ, "core", "rotate_keys")
    assert done.returncode == 2
    assert done.stderr.startswith("CHARTHOLD_MASTER_KEY is not the one that the database knows")
    assert await owner.fetchval("select count(*) from tenant_key where tenant_id = $1", lakeside.tenant) == 1


# -- statuses ------------------------------------------------------------------------------------------------------


async def test_a_tenant_that_cannot_be_looked_at_is_skipped_and_told(
    lakeside: Clinic, hillside: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    async with hillside.as_admin():
        await User.update({User.status: "locked"}).where(User.role == "admin")
    for command in (seal_audit, verify_audit):
        assert await command.__wrapped__() == family.SKIPPED
        out, err = capsys.readouterr()
        assert err.startswith("hillside: ")
        assert "no active admin" in err
        assert out.startswith("lakeside: ")
        # One tenant that was asked for by name, and cannot be done, is no part of anything.
        with pytest.raises(ChartholdError, match="no active admin"):
            await command.__wrapped__(tenant="hillside")


@pytest.mark.parametrize("name", ["seal", "verify"])
async def test_whatever_stops_one_tenants_log_stops_no_others(
    name: str, lakeside: Clinic, hillside: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threat: one row that our side cannot read keeps every log from being sealed."""
    command = {"seal": seal_audit, "verify": verify_audit}[name]
    work = getattr(importlib.import_module(f"core.audit.{name}"), name)

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if current_scope().tenant == hillside.tenant:
            raise OverflowError("date value out of range")
        return await work(*args, **kwargs)

    monkeypatch.setattr(f"core.commands.{name}_audit.{name}", failing)
    monkeypatch.setattr(f"core.commands.{name}_audit.by_slug", lambda *_: both())

    async def both() -> dict[str, uuid.UUID]:
        return {"hillside": hillside.tenant, "lakeside": lakeside.tenant}

    assert await command.__wrapped__() == family.SKIPPED
    out, err = capsys.readouterr()
    assert "hillside" in err
    assert out.startswith("lakeside: ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ana\x1b[2K\x1b]0;title\x07", r"Ana\x1b[2K\x1b]0;title\x07"),
        ("a\rb\tc\x9bd\u202ee", r"a\rb\tc\x9bd\u202ee"),
        ("zwei\nZeilen, größer als 1", "zwei\nZeilen, größer als 1"),
    ],
)
def test_nothing_that_a_terminal_would_obey_is_printed(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    family.console().print(text)
    family.errors().print(text)
    assert capsys.readouterr() == (shown + "\n", shown + "\n")


@pytest.mark.parametrize(
    ("first", "acts"),
    [
        ("locked_until = now() + interval '1 hour'", False),
        ("locked_until = now() - interval '1 hour'", True),
        ("facility_scope = '{}'", False),
        ("role = 'clinician'", False),
        ("locked_until = null", True),
    ],
)
async def test_who_acts_when_nobody_is_named_is_the_first_admin_who_sees_everything(
    first: str, acts: bool, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    clinic = await make_clinic(f"unnamed-{uuid.uuid4().hex[:8]}")
    second = User(email="zoe@unnamed.example", full_name="Zoe", role="admin", status="active")
    async with clinic.as_admin():
        await second.save()
    assert clinic.admin < second.id
    await owner.execute(f"update charthold.principal set {first} where user_id = $1", clinic.admin)
    assert await find_admin(clinic.tenant) == (clinic.admin if acts else second.id)


async def test_what_is_found_outranks_what_is_skipped(
    lakeside: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def gone(tenant: str, actor: str) -> dict[str, uuid.UUID]:
        return {"lakeside": lakeside.tenant, "nobody": uuid.uuid4()}

    monkeypatch.setattr("core.commands.verify_audit.by_slug", gone)
    assert await verify_audit.__wrapped__(quiet=True) == family.SKIPPED
    monkeypatch.setattr("core.audit.report.Report.good", property(lambda report: False))
    assert await verify_audit.__wrapped__(quiet=True) == family.FOUND
    assert capsys.readouterr().err.count("nobody: not verified.") == 2


def test_output_that_nobody_reads_to_its_end_ends_the_command_silently(
    lakeside: Clinic, environ: dict[str, str]
) -> None:
    for typed in ("audit_search --tenant=lakeside --json", "doctor", "doctor --help"):
        done = subprocess.run(
            ["bash", "-c", f"{PICCOLO} core {typed} | true; echo ${{PIPESTATUS[0]}}"],
            env=environ, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.stderr == "", typed
        assert int(done.stdout) == family.UNREAD or typed == "doctor --help"


# -- Ctrl-C --------------------------------------------------------------------------------------------------------


async def test_ctrl_c_in_the_middle_of_an_import_leaves_what_the_next_run_completes(
    environ: dict[str, str], sample: Path, tmp_path: Path, owner: asyncpg.Connection
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "organizations.csv").write_bytes((sample / "organizations.csv").read_bytes())
    (export / "providers.csv").write_bytes((sample / "providers.csv").read_bytes())
    rows = "".join(f"{uuid.UUID(int=n)},1980-02-29,Ana,Nguyen\n" for n in range(1, 8001))
    (export / "patients.csv").write_text(f"Id,BIRTHDATE,FIRST,LAST\n{rows}")
    command = ["core", "import_synthea", str(export), "--tenant=stopped", "--quiet"]
    process = await asyncio.create_subprocess_exec(
        PICCOLO, *command, env=environ, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    count = "select count(*) from client as c join tenant as t on t.id = c.tenant_id where t.slug = 'stopped'"
    while not await owner.fetchval(count):
        assert process.returncode is None, await process.communicate()
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == family.STOPPED
    assert (out, err.decode()) == (b"", "Stopped. What was loaded stays; run the command again to load the rest.\n")
    assert 0 < await owner.fetchval(count) < 8000
    done = await asyncio.to_thread(piccolo, environ, *command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert await owner.fetchval(count) == 8000


async def test_ctrl_c_at_a_question_needs_no_answer(lakeside: Clinic, environ: dict[str, str]) -> None:
    terminal = pexpect.spawn(
        PICCOLO, ["core", "shred_tenant", "--tenant=lakeside"], env=environ, cwd=str(REPOSITORY),
        encoding="utf-8", timeout=60,
    )  # fmt: skip
    await asyncio.to_thread(terminal.expect, "Type the slug to confirm:")
    terminal.sendintr()
    await asyncio.to_thread(terminal.expect, pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == family.STOPPED
    assert "Stopped. Run the command again" in terminal.before
    assert "Traceback" not in terminal.before


# -- the bar -------------------------------------------------------------------------------------------------------


async def test_a_bar_comes_after_a_moment_on_a_terminal_and_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.commands.bar.SOON", 0.1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with bar("looking", show=True) as progress:
        progress("sealing lakeside", 1, 2)
    assert capsys.readouterr().err.strip("\x1b[?25h\n\r") == "", "too short for a bar"
    with bar("looking", show=True) as progress:
        progress("sealing lakeside", 1, 2)
        await asyncio.sleep(0.4)
    shown = capsys.readouterr()
    assert "sealing lakeside" in shown.err
    assert shown.out == ""
    with bar("looking", show=False):
        await asyncio.sleep(0.2)
    assert capsys.readouterr().err == ""


async def test_results_that_are_piped_on_are_not_drawn_with_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.commands.bar.SOON", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bar("looking", show=True):
        await asyncio.sleep(0.2)
        print("a result")
    assert "a result" in capsys.readouterr().out


def test_ctrl_c_before_a_command_begins_is_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: usual.append(error[0].__name__))
    streams.stop_quietly()
    assert sys.excepthook.__name__ == "<lambda>", "an application keeps its own ways"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/piccolo", "core", "doctor"])
    streams.stop_quietly()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "Stopped.\n"
    sys.excepthook(ValueError, ValueError(), None)
    assert usual == ["ValueError"]


@pytest.mark.parametrize(
    "down", ["no server", "idle session ended", asyncpg.AdminShutdownError(), asyncpg.CannotConnectNowError()]
)
async def test_a_server_that_is_gone_is_told_once_and_not_for_each_tenant(
    down: Any,
    lakeside: Clinic,
    owner: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def sealing(*_: Any) -> None:
        if down == "no server":
            await begin_session({"dsn": "postgres://x@127.0.0.1:1/x"}, role=None, named_by="DATABASE_URL", bound=True)
        if down == "idle session ended":
            async with engine().as_owner() as connection:
                await owner.execute("select pg_terminate_backend($1)", connection.get_server_pid())
                time.sleep(0.2)  # noqa: ASYNC251  # the process computes, and the driver sees nothing of it
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # it has read why, and not yet that the socket is closed
                await connection.execute("select 1")
        raise down

    monkeypatch.setattr(importlib.import_module("core.commands.seal_audit"), "_seal_all", sealing)
    with pytest.raises(GONE) as gone:
        await seal_audit.__wrapped__(quiet=True)
    assert capsys.readouterr().err == ""
    assert "connection" in family.sentence(gone.value).lower()


def test_a_failure_is_an_error_of_ours() -> None:
    assert family.sentence(Failure("Do this.")) == "Do this."
    assert family.sentence(OSError(28, "No space left on device")) == "The system refused: No space left on device."
    assert "Run the command again later" in family.sentence(asyncpg.QueryCanceledError())
    assert "disk of the database server is full" in family.sentence(asyncpg.DiskFullError())
    assert "raise its max_connections" in family.sentence(asyncpg.TooManyConnectionsError())
    assert family.sentence(asyncpg.DataError()) == "The database refused: DataError (SQLSTATE 22000)."
