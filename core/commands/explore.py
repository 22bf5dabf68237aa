"""``piccolo playground explore``: an IPython shell on the data, with a scope open and top-level ``await``."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

import core
from core import tables
from core.commands.family import SKIPPED, TROUBLE, Failure, command, console, errors
from core.commands.import_synthea import import_export
from core.commands.options import interruptible, known_tenants, reason_for, resolve_actor, slug_of, unknown_tenant
from core.engine import engine
from core.errors import ChartholdError
from core.provision import find_tenant
from core.scope import Scope, scope
from core.tables import Tenant, User

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult
    from IPython.terminal.interactiveshell import TerminalInteractiveShell

__all__ = ["THINGS", "explore"]

DEFAULT = "synthea"
REASON = "a look around in the playground"
OFFER = "piccolo core import_synthea"
QUESTION = "The database has no tenants yet. Load the sample (63 facilities, 166 users, 27 clients)? [y/N] "

# What the banner shows: lines to type, and what they show.
THINGS = (
    (
        ("await Client.select(Client.first_name, Client.last_name, Client.date_of_birth).limit(5)",),
        "Names, opened for you. Each row that you see leaves a record.",
    ),
    (
        (
            "who = await Client.objects().first()",
            "await Client.select(Client.id, Client.last_name).where(Client.last_name == who.last_name.upper())",
        ),
        "A search in encrypted names, by blind index; case does not matter.",
    ),
    (
        ('await Client.raw("select id, last_name, date_of_birth from client limit 1")',),
        "The same table in plain SQL: envelopes, and this tenant's rows only.",
    ),
    (
        ("await Facility.select(Facility.name, Facility.phone).order_by(Facility.name).limit(5)",),
        "What is no PHI reads as in any other database.",
    ),
    (
        (
            "log = UserActionAuditLog",
            "newest = log.select(log.occurred_at, log.action_type, log.table_name, log.changed_columns).limit(5)",
            "await newest.order_by(log.occurred_at, ascending=False)",
        ),
        "Who did and saw what: your own reads are on top.",
    ),
)

BANNER = """
Charthold playground. You are {email} ({role}) of {name}. Your scope ends at {until} UTC; the next line opens another.
At hand: Tenant, Facility, User, Client, UserActionAuditLog, transaction. Five things to try:

{things}
Nothing that you type is kept in a history file. Leave with Ctrl-D.
"""


@dataclass(frozen=True)
class Visitor:
    """For whom the scope is opened."""

    tenant: UUID
    actor: UUID
    reason: str

    def scope(self) -> Scope:
        return scope(tenant=self.tenant, actor=self.actor, reason=self.reason)


@command(stopped="")
def explore(*, tenant: str = "", actor: str = "", quiet: bool = False) -> int:
    """Open an IPython shell on a tenant's data: a scope is open, and await works at the top level.

    With an empty database it offers to load the sample. Lines can be piped in, too: each is run, and when one of them
    failed the status is 2.

    Examples: piccolo playground explore --tenant=lakeside
              echo "await Client.count()" | piccolo playground explore --quiet

    :param tenant:
        The tenant's slug; left out, synthea or the only one there is.
    """
    # One loop for the whole session, because connections belong to a loop.
    with asyncio.Runner() as runner:
        try:
            visitor = runner.run(_find(tenant, actor))
            if visitor is None:
                return 0
            banner = runner.run(_banner(visitor))
            # IPython wants a folder; nothing that was typed stays in one.
            with _scope_kept_open(visitor) as keep_open, tempfile.TemporaryDirectory() as folder:
                if not quiet:
                    console().print(banner)
                shell, failures = _shell(runner, keep_open, folder), 0

                def count(result: ExecutionResult) -> None:
                    nonlocal failures
                    failures += not result.success

                shell.events.register("post_run_cell", count)
                shell.mainloop()  # type: ignore[no-untyped-call]  # IPython's
                # Who types sees that a line failed; a script that pipes them in does not.
                return TROUBLE if failures and not sys.stdin.isatty() else 0
        finally:
            runner.run(engine().close_connection_pool())


async def _find(tenant: str, actor: str) -> Visitor | None:
    """The tenant and the actor; None when there is no tenant yet and nobody wants the sample."""
    slug = slug_of(tenant) if tenant else DEFAULT
    found = await find_tenant(slug)
    if found is None:
        there = await known_tenants()
        if not tenant and len(there) == 1:
            slug = there[0]
        elif there:
            raise await unknown_tenant(slug)
        elif not await _sample_wanted(slug):
            return None
        found = await find_tenant(slug)
        if found is None:
            raise await unknown_tenant(slug)
    if not found.is_open:
        raise Failure(f"The tenant {slug} is {found.status}, so nobody works in it.")
    who = await resolve_actor(found.tenant_id, actor)
    return Visitor(found.tenant_id, who, reason_for(REASON, actor))


async def _sample_wanted(slug: str) -> bool:
    """Offer the sample, and load it if it is wanted."""
    load = OFFER + ("" if slug == DEFAULT else f" --tenant={slug}")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure(f"The database has no tenants yet. Load the sample with: {load}")
    answer = ""
    with suppress(EOFError), interruptible():
        answer = input(QUESTION)  # noqa: ASYNC250  # nothing else runs
    if answer.strip().lower() not in {"y", "yes"}:
        console().print(f"Nothing was loaded. Later: {load}")
        return False
    return await import_export(tenant=slug) in {0, SKIPPED}


async def _banner(visitor: Visitor) -> str:
    async with visitor.scope() as opened:
        tenant = await Tenant.select(Tenant.name).first()
        user = await User.select(User.email, User.role).where(User.id == visitor.actor).first()
        assert tenant is not None
        assert user is not None
        until = dt.datetime.fromtimestamp(opened.expires, dt.UTC)
        things = ""
        for number, (lines, shows) in enumerate(THINGS, start=1):
            things += f"  {number}. " + "\n     ".join((*lines, f"# {shows}")) + "\n\n"
        return BANNER.format(**user, **tenant, until=f"{until:%H:%M}", things=things.rstrip() + "\n").rstrip()


@contextmanager
def _scope_kept_open(visitor: Visitor) -> Iterator[Callable[[], None]]:
    """A scope in the context of this thread, which each line of the shell inherits. Yields what renews it."""
    opened: Scope | None = None

    def step(coroutine: Coroutine[Any, Any, Any]) -> None:
        # Entering and leaving a scope waits for nothing. Run as a task, it would set the scope of that task only.
        with suppress(StopIteration):
            coroutine.send(None)

    def keep_open() -> None:
        nonlocal opened
        if opened is not None and time.time() >= opened.expires:
            step(opened.__aexit__(None, None, None))
            opened = None
            console().print("The scope had expired; a new one is open.")
        if opened is None:
            opened = visitor.scope()
            step(opened.__aenter__())

    keep_open()
    try:
        yield keep_open
    finally:
        if opened is not None:
            step(opened.__aexit__(None, None, None))


def _shell(runner: asyncio.Runner, keep_open: Callable[[], None], folder: str) -> TerminalInteractiveShell:
    # Late: every command of piccolo imports this file, and would wait for them.
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from traitlets.config import Config

    config = Config()
    # Threat: a condition on a name is PHI, and IPython would keep each line in a file of the home, in plain text.
    config.HistoryManager.hist_file = ":memory:"
    config.TerminalInteractiveShell.update(
        autoawait=True, banner1="", confirm_exit=False, term_title=False, colors="neutral"
    )
    names: dict[str, Any] = {name: getattr(tables, name) for name in tables.__all__}
    names |= {name: getattr(core, name) for name in core.__all__}
    names |= {"asyncio": asyncio, "date": dt.date, "UUID": uuid.UUID}
    shell: TerminalInteractiveShell = TerminalInteractiveShell.instance(
        config=config, user_ns=names, ipython_dir=folder
    )

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        keep_open()
        # A copy of now: the runner's own context was made before there was a scope.
        return runner.run(coroutine, context=contextvars.copy_context())

    shell.loop_runner = run
    explained = (ChartholdError, asyncpg.PostgresError, asyncio.CancelledError)
    shell.set_custom_exc(explained, _explain)  # type: ignore[no-untyped-call]  # IPython's
    return shell


def _explain(
    shell: TerminalInteractiveShell,  # noqa: ARG001  # IPython passes it
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,  # noqa: ARG001  # likewise
    tb_offset: int | None = None,  # noqa: ARG001  # likewise
) -> None:
    """An error of ours, or of the database, says what is wrong; where in our code it was raised helps nobody."""
    errors().print("Stopped." if kind is asyncio.CancelledError else f"{kind.__name__}: {error}")
