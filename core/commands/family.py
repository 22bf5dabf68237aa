"""What all commands have in common: a user's mistake is one sentence and an exit status, and so is Ctrl-C.

| status | means |
|---|---|
| 0 | done |
| 1 | a mistake in the call or the configuration; nothing was done |
| 2 | it failed half-way: the database refused or went away, or a bug |
| 3 | done, but part of the input was skipped, and reported |
| 130 | stopped with Ctrl-C |
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, cast, get_type_hints
from uuid import UUID

import asyncpg
from rich.console import Console

from core.errors import ChartholdError, ConfigurationError
from core.provision import engine, find_admin
from core.scope import scope
from core.tables import User

__all__ = ["MIGRATE", "Failure", "command", "console", "errors", "known_tenants", "resolve_actor", "slug_of"]

MISTAKE, FAILED, SKIPPED, STOPPED = 1, 2, 3, 130
MIGRATE = "piccolo migrations forwards core"
SLUG = re.compile(r"[a-z][a-z0-9-]{1,62}")


class Failure(ChartholdError):  # noqa: N818  # a sentence and a status rather than an error of the library
    """A command ends with this sentence and exit status."""

    def __init__(self, sentence: str, status: int = MISTAKE) -> None:
        super().__init__(sentence)
        self.status = status


def console() -> Console:
    """Where results go. Made when asked for, so that it sees the standard output of now."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def errors() -> Console:
    """Where problems and progress go: what is piped on holds results only."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def command(*, stopped: str = "Stopped.") -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function, async or not, which returns its exit status or None for 0.

    ``stopped`` is what Ctrl-C answers. The command line (targ) sees the function's own signature; it prints the whole
    help for any exception, so none reaches it. The function itself stays at ``__wrapped__``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                given = _arguments(function, signature, args, kwargs)
                outcome = function(**given)
                status = asyncio.run(_to_the_end(outcome)) if inspect.iscoroutine(outcome) else outcome
            except KeyboardInterrupt:
                _end(stopped, STOPPED)
            except BrokenPipeError:
                # Whoever read our output has seen enough. Python must not complain when it flushes the rest.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(FAILED)
            except Exception as error:
                if "--trace" in sys.argv and not isinstance(error, ChartholdError):
                    raise
                _end(*sentence(error))
            if status:
                sys.exit(status)

        # targ counts positional arguments with getfullargspec, which looks at this.
        run.__signature__ = signature  # type: ignore[attr-defined]
        # It would list what is returned among the arguments.
        run.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
        return run

    return decorate


def sentence(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit status. Values that an error may hold are left out."""
    if isinstance(error, ChartholdError):
        return str(error), getattr(error, "status", MISTAKE)
    if isinstance(
        error,
        (asyncpg.UndefinedFunctionError, asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError),
    ):
        return f"The database has no tables of Charthold yet, or old ones. Run: {MIGRATE}", MISTAKE
    if isinstance(error, (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError)):
        return "The connection to the database was lost. What was committed stays; run the command again.", FAILED
    if isinstance(error, asyncpg.PostgresError):
        named = getattr(error, "constraint_name", None) or type(error).__name__
        return f"The database refused: {named} (SQLSTATE {error.sqlstate}).", FAILED
    return (
        f"This should not happen: {type(error).__name__}. Run it again with --trace and report what it prints.",
        FAILED,
    )


async def known_tenants() -> list[str]:
    """The slugs of all open tenants. Only the schema's owner may see them together; for others there are none."""
    connection = await engine().connect(owner=True)
    try:
        rows = await connection.fetch(
            "select slug from charthold.tenant_directory where status in ('trial', 'active') order by slug"
        )
    except asyncpg.InsufficientPrivilegeError:
        return []
    finally:
        await connection.close()
    return [row["slug"] for row in rows]


async def resolve_actor(tenant: UUID, actor: str) -> UUID:
    """The user that a command acts as: named by id or e-mail, or else the tenant's first admin."""
    try:
        return UUID(actor)
    except ValueError:
        pass
    try:
        admin = await find_admin(tenant)
    except asyncpg.InsufficientPrivilegeError:
        raise ConfigurationError(
            "Name the actor by id, --actor=UUID. Looking one up takes the owner's login: set DATABASE_OWNER_URL."
        ) from None
    if not actor:
        return admin
    async with scope(tenant=tenant, actor=admin, reason="look up the actor of a command"):
        found = await User.select(User.id).where(User.email == actor.strip().lower()).first()
    if found is None:
        raise Failure("The tenant has no user with the e-mail or id that --actor names.")
    return cast("UUID", found["id"])


def slug_of(tenant: str) -> str:
    """The ``--tenant`` argument, checked."""
    if not SLUG.fullmatch(tenant):
        raise Failure(
            "--tenant takes a slug: 2 to 63 small letters, digits and hyphens, a letter first, as in --tenant=lakeside."
        )
    return tenant


async def _to_the_end(work: Any) -> Any:
    """Do the work and close the loop's connections, whatever happens."""
    try:
        return await work
    finally:
        await engine().close_connection_pool()


def _arguments(
    function: Callable[..., Any], signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments by name. targ passes on whatever was typed, and reads ``t`` and ``false`` as yes and no."""
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        options = ", ".join(f"--{name}" for name in signature.parameters)
        raise Failure(f"That does not fit the command: {error}. It takes {options}.") from None
    hints = get_type_hints(function)
    for name, value in given.items():
        if hints[name] is bool and not isinstance(value, bool):
            raise Failure(f"--{name} is said or left out; it takes no value.")
        if hints[name] is str and not isinstance(value, str):
            raise Failure(
                f"--{name} needs a value, as in --{name}=VALUE; t, f, true and false are taken for yes and no."
            )
    return given


def _end(message: str, status: int) -> NoReturn:
    errors().print(message)
    sys.exit(status)
