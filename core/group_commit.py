"""Group commit: statements of many requests that wait for a connection are sent together and reach the disk together.

Each statement is a transaction of its own, and most of what a small one costs does not depend on what it does: the
commit, the round trip, what PL/pgSQL prepares in each transaction anew. So when requests come faster than they are
served, those that wait with the same statement go as one message and one transaction, each with its own token, records
and answer. Nobody waits for company: a statement that finds a lane free is sent at once, by itself.

Only for statements that find at most one row by its id, or insert one: nobody waits for another's long search.

Threat: what happens to one request happens to another. PostgreSQL rolls a group back as a whole, and nobody was
answered before it committed. So when one fails, be it a duplicate or a user locked a moment ago, each is run again by
itself, elsewhere. The sessions here do not wait for a lock, so a row that somebody holds stops one request and no lane.
A scope that ends while its statement waits ends that statement. When the connection is lost, nobody knows whether the
group was kept, and each is told, as it would be by itself.

Threat: the context of one request serves another's statement. Each statement sets its token before it does anything,
and ``charthold.scope()`` believes what it found out for the very statement that asks, and for no other.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from core.errors import ChartholdError, PoolExhaustedError, ScopeError
from core.pool import Link, Pool
from core.scope import Scope

__all__ = ["LANES", "LOCK_TIMEOUT", "AgainError", "GroupCommit"]

LANES = 2  # connections: while one group is on the server, Python takes the last apart and makes the next
MOST = 8  # statements of a group
LOCK_TIMEOUT = "10ms"  # for the sessions of the lanes: longer than a group holds the locks of its rows


class AgainError(Exception):
    """The statement did nothing and is to be run by itself."""


class Member:
    """One request's statement, and who waits for its answer."""

    __slots__ = ("answer", "arguments", "scope", "since")

    def __init__(self, scope: Scope, arguments: Sequence[Any]) -> None:
        loop = asyncio.get_running_loop()
        self.scope = scope
        self.arguments = arguments
        self.since = loop.time()
        self.answer: asyncio.Future[list[Any]] = loop.create_future()

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():  # else its task was cancelled, and nobody waits
            self.answer.set_exception(error)


class GroupCommit:
    """The lanes of one event loop: as many as ``pool`` has connections. ``token`` makes a scope's token for one."""

    def __init__(self, pool: Pool, token: Callable[[Scope, Link], str]) -> None:
        self._pool = pool
        self._token = token
        self._busy = 0
        # By statement, those that have waited longest first.
        self._waiting: dict[str, list[Member]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._clock: asyncio.TimerHandle | None = None

    async def run(
        self, alone: Callable[[Link], Awaitable[Any]], grouped: str, scope: Scope, arguments: Sequence[Any]
    ) -> Any:
        """What ``alone`` answers, which sends the statement by itself, or the rows of its text in a group.

        Raises ``AgainError`` when the statement did nothing and is to be run elsewhere, ``PoolExhaustedError`` when it
        was not sent in time.
        """
        if self._busy < self._pool.size:
            self._busy += 1
            try:
                async with self._pool.lease() as link:
                    return await alone(link)
            except asyncpg.LockNotAvailableError:
                raise AgainError from None
            finally:
                self._leave()
        member = Member(scope, arguments)
        self._waiting.setdefault(grouped, []).append(member)
        if self._clock is None:
            self._clock = asyncio.get_running_loop().call_later(self._pool.seconds, self._give_up)
        return await member.answer

    async def close(self) -> None:
        """Close the connections that are idle, and the others as they come back."""
        await self._pool.close()

    def _leave(self) -> None:
        self._busy -= 1
        while self._waiting and self._busy < self._pool.size:
            self._busy += 1
            # In a context of its own: nothing of the request that was here last.
            task = asyncio.create_task(self._serve(), context=contextvars.Context())
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._send(*self._next())
                # Who was answered may have something to ask at once; together again.
                await asyncio.sleep(0)
        finally:
            self._leave()

    def _next(self) -> tuple[str, list[Member]]:
        grouped, members = next(iter(self._waiting.items()))
        del self._waiting[grouped]
        if len(members) > MOST:
            self._waiting[grouped] = members[MOST:]  # behind the others
        return grouped, members[:MOST]

    def _give_up(self) -> None:
        """Tell those who wait too long; the server is stuck, or there are too many of them."""
        loop, seconds = asyncio.get_running_loop(), self._pool.seconds
        members = [member for group in self._waiting.values() for member in group]
        for member in members:
            if member.since + seconds <= loop.time():
                member.fail(
                    PoolExhaustedError(
                        f"The server was too busy for {seconds:g} seconds. Let fewer requests in, or see what keeps it."
                    )
                )
        self._waiting = {
            grouped: left
            for grouped, group in self._waiting.items()
            if (left := [member for member in group if not member.answer.done()])
        }
        self._clock = loop.call_later(seconds / 2, self._give_up) if self._waiting else None

    async def _send(self, grouped: str, members: list[Member]) -> None:
        sent: list[Member] = []
        arguments: list[tuple[Any, ...]] = []
        try:
            async with self._pool.lease() as link:
                for member in members:
                    if member.answer.done():
                        continue
                    try:
                        arguments.append((*member.arguments, self._token(member.scope, link), len(sent)))
                    except ScopeError as over:
                        member.fail(over)
                    else:
                        sent.append(member)
                rows = await link.connection.fetchmany(grouped, arguments)
        except BaseException as error:
            for member in members:
                member.fail(_for_each(error))
            if not isinstance(error, Exception):
                raise
            return
        answers: list[list[Any]] = [[] for _ in sent]
        for row in rows:
            answers[row[-1]].append(row)
        for member, answer in zip(sent, answers, strict=True):
            if not member.answer.done():
                member.answer.set_result(answer)


def _for_each(error: BaseException) -> BaseException:
    """What an error of the group is to one of its members."""
    if isinstance(error, (ChartholdError, asyncio.CancelledError)):
        return type(error)(*error.args)  # nothing was sent, or the program ends
    if isinstance(error, asyncpg.InternalClientError):
        return AgainError()  # the server ended the idle session a moment ago: nothing was sent
    refused = isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError)
    # Without a severity, the driver could not encode an argument.
    if refused and getattr(error, "severity_en", None) in ("ERROR", None):
        return AgainError()
    return asyncpg.ConnectionDoesNotExistError(
        "the connection was lost while the statement ran; whether it was kept is not known"
    )
