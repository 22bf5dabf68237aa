"""Running a step, or printing it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import asyncpg

from core.errors import MigrationError
from core.schema.lock import STEP_LOCK, engine
from core.schema.step import Raw, Step
from core.schema.unfinished import unfinished, whole
from core.settings import settings

__all__ = ["BUSY", "failed", "preamble", "print_step", "run_after", "run_step", "terminated"]

ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; doubled before each further one

NOT_FINISHED = "Not finished; the next forwards tries again"
NOT_NULL = "23502"
WITHOUT_A_VALUE = (
    "Rows are there that have no value for it: declare it with null=True, fill it in a scope of each tenant, with "
    "save(), and leave null=True out in a later step."
)
CONCURRENT = ("create index concurrently", "create unique index concurrently", "drop index concurrently")

# Tables are locked while a step runs: another transaction in the way, or a cycle, is worth another try.
BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


def preamble() -> list[str]:
    """The settings of a step's transaction."""
    configured = settings()
    return [
        # A temporary table must not stand in for one of ours.
        "set local search_path = public, pg_temp",
        f"set local lock_timeout = '{configured.lock_timeout * 1000:.0f}ms'",
        f"set local statement_timeout = '{configured.statement_timeout * 1000:.0f}ms'",
        # Bodies may name tables that the step makes after the function.
        "set local check_function_bodies = off",
    ]


async def run_step(connection: asyncpg.Connection[Any], step: Step) -> None:
    """Run the transaction, again while locks are in the way, and then what must stand outside of it.

    A step that is nothing but index builds outside of a transaction is recorded when they are done. In any other step
    they follow the commit; a crash between leaves them to the next ``forwards``, which finishes what is unfinished.
    """
    if not step.pieces:
        await run_after(connection, await unfinished(connection, step.after))
        await attempt(step)
    else:
        await attempt(step)
        await run_after(connection, await unfinished(connection, step.after))


async def attempt(step: Step) -> None:
    """Run the step's transaction, at most ``ATTEMPTS`` times."""
    await patiently(lambda: transact(step), f"Step {step.migration_id} changed nothing")


async def patiently(work: Callable[[], Awaitable[object]], left: str) -> None:
    """Do what takes locks, again while others hold them; whoever waits for long holds up all who come after."""
    pause = PAUSE
    for more in reversed(range(ATTEMPTS)):
        try:
            await work()
        except BUSY as error:
            if not more:
                raise MigrationError(
                    f"{left}: it did not get its locks in {ATTEMPTS} attempts ({error.args[0]}). "
                    "Run it when the long transaction is over, or raise CHARTHOLD_LOCK_TIMEOUT."
                ) from None
            await asyncio.sleep(pause)
            pause *= 2
        else:
            return


async def transact(step: Step) -> None:
    """The step and its bookkeeping row, in one transaction."""
    running = ""
    try:
        async with engine().transaction() as transaction:
            for running in (*preamble(), STEP_LOCK):
                await transaction.connection.execute(running)
            await refuse_twice(transaction.connection, step)
            for piece in step.pieces:
                if isinstance(piece, Raw):
                    running = piece.name
                    if inspect.isawaitable(result := piece.function()):
                        await result
                else:
                    running = piece
                    await transaction.connection.execute(piece)
            running = step.bookkeeping
            await transaction.connection.execute(running)
    except BUSY:
        raise
    except asyncpg.PostgresError as error:
        raise failed(f"Step {step.migration_id} failed and changed nothing", running, error) from None


def failed(what: str, statement: str, error: asyncpg.PostgresError) -> MigrationError:
    """An error that names the statement.

    Threat: DETAIL, and messages about data (class 22), quote values, and values may be PHI.
    """
    code = getattr(error, "sqlstate", None) or "?????"
    message = "a value does not fit" if code.startswith("22") else error.args[0]
    at = f"{what}: {message} (SQLSTATE {code}), at: {' '.join(statement.split())[:300]}"
    return MigrationError(f"{at}. {WITHOUT_A_VALUE}" if code == NOT_NULL else at)


async def refuse_twice(connection: asyncpg.Connection[Any], step: Step) -> None:
    """The bookkeeping may have moved while the step waited for its lock."""
    there = await connection.fetchval(
        "select exists (select from public.migration where name = $1 and app_name = $2)",
        step.migration_id,
        step.app_name,
    )
    if there != step.backwards:
        raise MigrationError(
            f"Step {step.migration_id} of {step.app_name} is {'' if there else 'not '}recorded as run already: "
            "another process was faster. Nothing was changed."
        )


async def run_after(connection: asyncpg.Connection[Any], statements: list[str]) -> None:
    """Build indexes and validate constraints outside of a transaction."""
    timeout = settings().statement_timeout
    for statement in statements:
        try:
            await connection.execute(f"set statement_timeout = '{timeout * 1000:.0f}ms'; {lock_timeout(statement)}")
            await patiently(partial(connection.execute, statement), NOT_FINISHED)
        except asyncpg.PostgresError as error:
            raise failed(NOT_FINISHED, statement, error) from None


def lock_timeout(statement: str) -> str:
    """The setting for it. What is built concurrently may wait for older transactions: nobody waits behind it."""
    seconds = 0 if statement.startswith(CONCURRENT) else settings().lock_timeout
    return f"set lock_timeout = '{seconds * 1000:.0f}ms'"


def terminated(statement: str) -> str:
    """With a semicolon that no trailing comment swallows."""
    statement = statement.rstrip().rstrip(";")
    return f"{statement}\n;" if "--" in statement.rsplit("\n", 1)[-1] else f"{statement};"


def print_step(step: Step, description: str, unsafe: Iterable[object] = ()) -> None:
    """All of the step's SQL, for psql -v ON_ERROR_STOP=1, and what forwards would stop for."""
    direction = "backwards" if step.backwards else "forwards"
    print(f"-- {step.app_name} {step.migration_id} {direction}{f': {description}' if description else ''}")
    for finding in unsafe:
        print("\n".join(f"-- {line}" for line in f"Unsafe: {finding}".splitlines()))
    print("begin;")
    for statement in (*preamble(), STEP_LOCK):
        print(terminated(statement))
    for piece in step.pieces:
        print(f"-- Python runs here: {piece.name}" if isinstance(piece, Raw) else terminated(piece))
    print(terminated(step.bookkeeping))
    print("commit;")
    for item in step.after:
        for statement in whole(item):
            print(terminated(lock_timeout(statement)))
            print(terminated(statement))
