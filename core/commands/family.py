"""What all commands have in common: a user's mistake is one sentence and an exit status, and so is Ctrl-C.

| status | means |
|---|---|
| 0 | done; a check found nothing |
| 1 | a check found something: a safeguard that fails, a record that is not as it was sealed |
| 2 | trouble: a mistake in the call or the configuration, or a failure half-way; a sentence says which |
| 3 | done, but part was skipped, and reported |
| 130 | stopped with Ctrl-C |
| 141 | whoever read the output stopped reading |
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import asyncpg
from rich.console import Console

from core.commands.streams import nobody_reads
from core.engine import engine
from core.errors import ChartholdError
from core.statements.explain import lost, refusal

__all__ = [
    "FOUND",
    "OPTIONS",
    "SKIPPED",
    "STATUSES",
    "TROUBLE",
    "Failure",
    "command",
    "console",
    "errors",
    "printable",
    "refuse_unknown",
    "sentence",
]

FOUND, TROUBLE, SKIPPED, STOPPED, UNREAD = 1, 2, 3, 130, 141
STATUSES = (
    "Exit status: 0 done, 1 a check found something, 2 a mistake or a failure, 3 part was skipped and reported, "
    "130 stopped with Ctrl-C, 141 nobody reads the output any more."
)
MIGRATE = "piccolo migrations forwards core"

# What an option means in every command that has it and does not say otherwise.
OPTIONS = {
    "tenant": "The tenant's slug.",
    "actor": "In whose name, by e-mail or id; left out, the tenant's first admin.",
    "json": "Print the result as JSON.",
    "csv": "Print the result as CSV.",
    "quiet": "Print no progress and no remarks: only problems, and what was asked for.",
}

# Names for the arguments that are typed without --; there are never more of them than words were typed.
PLACES = tuple(f"argument_{place}" for place in range(len(sys.argv)))


class Failure(ChartholdError):  # noqa: N818  # a sentence and a status rather than an error of the library
    """A command ends with this sentence."""


class _Console(Console):
    """Threat: a name with line breaks and escape sequences in it looks like another line, or hides one."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1


def printable(text: str, *, lines: bool = True) -> str:
    """The text with whatever a terminal would obey, or would not show, written out; ``lines``: these stay lines."""
    kept = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def console() -> Console:
    """Where results go. Made when asked for, so that it sees the standard output of now."""
    return _Console(highlight=False, markup=False, soft_wrap=True)


def errors() -> Console:
    """Where problems and progress go: what is piped on holds results only."""
    return _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def command(*, stopped: str = "Stopped.") -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function, async or not, which returns its exit status or None for 0.

    ``stopped`` is what Ctrl-C answers. Its parameters are the options; those that are not keyword-only may be given
    without ``--``. The function itself stays at ``__wrapped__``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            args += tuple(kwargs.pop(place) for place in PLACES if place in kwargs)
            try:
                outcome = function(**_arguments(function, args, kwargs))
                status = asyncio.run(_to_the_end(outcome)) if inspect.iscoroutine(outcome) else outcome
                sys.stdout.flush()
            except KeyboardInterrupt:
                _end(stopped, STOPPED)
            except BrokenPipeError:
                nobody_reads()
                sys.exit(UNREAD)
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends as a sentence and a status
                if "--trace" in sys.argv and not isinstance(error, ChartholdError):
                    traceback.print_exc()
                    sys.exit(TROUBLE)
                _end(sentence(error), TROUBLE)
            if status:
                sys.exit(status)

        # To a call that does not fit, the command line (targ) answers with its own help and status. So every call fits:
        # there is a place for each argument that was typed, none has a type, and ``_arguments`` looks at them. It
        # counts the places in the signature of ``run``, and takes the help from the function that this wraps.
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect looks there
            [inspect.Parameter(place, inspect.Parameter.POSITIONAL_OR_KEYWORD) for place in PLACES]
        )
        wrapper = functools.update_wrapper(functools.partial(run), function)
        wrapper.__doc__ = described(function)
        wrapper.__annotations__ = dict.fromkeys(inspect.signature(function).parameters, object)
        return wrapper

    return decorate


def refuse_unknown(app: str, names: Iterable[str]) -> None:
    """End the process when it is to run a command of the app that does not exist.

    Threat: the command line answers that with its help and status 0, and cron, or a gate of a deployment, is content.
    """
    typed = [word for word in sys.argv[1:] if not word.startswith("-")]
    if Path(sys.argv[0]).stem != "piccolo" or typed[:1] != [app] or len(typed) == 1 or typed[1] in (known := [*names]):
        return
    close = get_close_matches(typed[1], known, n=1)
    others = f"Did you mean {close[0]}?" if close else f"It has {', '.join(known)}."
    _end(f"piccolo {app} has no command {typed[1]}. {others}", TROUBLE)


def described(function: Callable[..., Any]) -> str:
    """The function's docstring, with what is the same for all commands."""
    text, colon, options = inspect.cleandoc(function.__doc__ or "").partition(":param")
    shared = [
        f":param {name}:\n    {OPTIONS[name]}"
        for name in inspect.signature(function).parameters
        if name in OPTIONS and f" {name}:" not in options
    ]
    return "\n".join([text.rstrip(), "", STATUSES, "", (colon + options).rstrip(), *shared])


def sentence(error: Exception) -> str:
    """What to say about an error. Values that it may hold are left out."""
    if isinstance(error, ChartholdError):
        return str(error)
    if isinstance(error, asyncpg.UndefinedFunctionError | asyncpg.UndefinedTableError | asyncpg.InvalidSchemaNameError):
        return f"The database has no tables of Charthold yet, or old ones. Run: {MIGRATE}"
    if lost(error):
        return "The connection to the database was lost. What was committed stays; run the command again."
    if isinstance(error, asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError):
        return "The database was too busy, or somebody held a lock for too long. Run the command again later."
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return "The login may not do that: it is the owner's work. Set DATABASE_OWNER_URL to the owner of the schema."
    if isinstance(error, asyncpg.PostgresError):
        return refusal(error)
    if isinstance(error, OSError):
        return f"The system refused: {error.strerror or type(error).__name__}."
    return f"This should not happen: {type(error).__name__}. Run it again with --trace and report what it prints."


async def _to_the_end(work: Any) -> Any:
    """Do the work and close the loop's connections, whatever happens."""
    try:
        return await work
    finally:
        await engine().close_connection_pool()


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, each of its type. targ passes on what was typed; t and false it reads as yes and no."""
    name, signature, hints = function.__name__, inspect.signature(function), get_type_hints(function)
    example = re.search(r"Examples?: (.*)", function.__doc__ or "")
    shown = f", as in: {example[1]}" if example else "."
    if unknown := [option for option in kwargs if option not in signature.parameters]:
        options = ", ".join(f"--{option}" for option in signature.parameters)
        raise Failure(f"{name} has no option --{unknown[0]}. It takes {options}.")
    # First of all: whoever writes "--tenant lakeside" gives an option without a value and an argument too many.
    given = {option: _value(option, value, hints[option]) for option, value in kwargs.items()}
    if any(isinstance(value, str) and value.startswith("-") for value in args):
        raise Failure(f"Options begin with -- and have their value behind a ={shown}")
    places = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(places):
        most = "nothing" if not places else "one argument" if len(places) == 1 else f"{len(places)} arguments"
        raise Failure(f"{name} takes {most} beside its options, and got {len(args)}{shown}")
    for place, value in zip(places, args, strict=False):
        if place in given:
            raise Failure(f"{name} got {place} twice: without -- and as --{place}.")
        given[place] = _value(place, value, hints[place])
    missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise Failure(f"{name} needs {' and '.join(f'--{option}' for option in missing)}{shown}")
    return given


def _value(option: str, value: Any, hint: type) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise Failure(f"--{option} is said or left out; it takes no value.")
    elif isinstance(value, bool):
        raise Failure(
            f"--{option} needs a value, as in --{option}=VALUE; t, f, true and false are taken for yes and no."
        )
    elif hint in (int, float):
        try:
            value = hint(value)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise Failure(f"--{option} takes a {'whole ' if hint is int else ''}number.")
    return value


def _end(message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody can be told, and the status is the same
        errors().print(message)
    sys.exit(status)
