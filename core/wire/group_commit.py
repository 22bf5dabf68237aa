"""Group commit: statements of many requests that wait for a connection are sent together and reach the disk together.

Each statement is a transaction of its own, and most of what a small one costs does not depend on what it does: the
commit, the round trip, what PL/pgSQL prepares in each transaction anew. So when requests come faster than they are
served, those that wait with the same statement go as one message and one transaction, each with its own token, records
and answer. Nobody waits for company: a statement that finds a lane free is sent at once, by itself.

Only for small statements that find one row by its id, or insert one: nobody waits for another's long search, large
document or cascade. One that has waited a moment all the same is sent by itself when an ordinary connection is free.

Threat: what happens to one request happens to another. PostgreSQL rolls a group back as a whole, and nobody was
answered before it committed. So when one fails, be it a duplicate or a user who was locked a moment ago, each is run
again by itself, elsewhere. The sessions here wait for no lock, so a row that somebody holds stops one request, no lane.
A scope that ends while its statement waits ends that statement. When the connection is lost, a read is run again; of a
write nobody knows whether it was kept, and each is told, as it would be by itself.

Threat: an error carries the frames that it passed through, and those here hold the rows and tokens of others. So each
member gets an error of its own, made for it.

Threat: the context of one request serves another's statement. Each statement sets its token, and clears what was found
out about the last one, before it does anything. A trigger that waits for the commit, or that comes before a whole
statement, would find another member's context: where there is one, there are no lanes. A lane looks for them when it is
opened, and is not kept for long.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from core.errors import PoolExhaustedError, ScopeError
from core.scope import Scope
from core.wire.pool import Link, Pool

__all__ = ["LANES", "LOCK_TIMEOUT", "GroupCommit", "RetryError", "is_small"]

LANES = 2  # connections: while one group is on the server, Python takes the last apart and makes the next
MOST = 16  # statements of a group
SMALL = 7_000  # bytes of a statement's arguments: with it, the driver sends a group in one go
LOCK_TIMEOUT = "10ms"  # for the sessions of the lanes: longer than a group holds the locks of its rows
PATIENCE = 0.05  # seconds after which who waits may go by itself
LIFETIME = 300.0  # seconds that a lane is kept
REST = 10.0  # seconds without lanes after one could not be opened


class RetryError(Exception):
    """The statement did nothing, or only read, and is to be run by itself."""


def is_small(arguments: Sequence[Any]) -> bool:
    """Whether a statement with these arguments may go with others."""
    return _size(arguments) <= SMALL


def _size(arguments: Sequence[Any]) -> int:
    size = 0
    for argument in arguments:
        kind = type(argument)
        if kind is bytes:
            size += len(argument)
        elif kind is str:
            size += len(argument) if argument.isascii() else 4 * len(argument)
        elif kind is list:
            size += _size(argument) + 8 * len(argument)
    return size


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
        """End it with an error that was made for it alone."""
        if not self.answer.done():  # else its task was cancelled, and nobody waits
            self.answer.set_exception(error)


class GroupCommit:
    """The lanes of one event loop: as many as ``pool`` has connections. ``token`` makes a scope's token for one.

    ``ordinary`` is the pool of the connections on which statements run by themselves.
    """

    def __init__(self, pool: Pool, ordinary: Pool, token: Callable[[Scope, Link], str]) -> None:
        self._pool = pool
        self._ordinary = ordinary
        self._token = token
        self._busy = 0
        self._in_flight = 0  # members whose answer is on its way
        self._rests_until = 0.0
        # By statement, and whether it reads: those that have waited longest first.
        self._queue: dict[tuple[str, bool], list[Member]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._clock: asyncio.TimerHandle | None = None

    async def run(
        self,
        alone: Callable[[Link], Awaitable[Any]],
        grouped: str,
        scope: Scope,
        arguments: Sequence[Any],
        *,
        reads: bool,
    ) -> Any:
        """What ``alone`` answers, which sends the statement by itself; or the rows of ``grouped``, sent with others.

        Raises ``RetryError`` when it is to be run elsewhere, and ``PoolExhaustedError`` when it was not sent in time.
        """
        if self._resting:
            raise RetryError
        if self._busy < self._pool.size:
            self._busy += 1
            try:
                async with self._pool.lease(self._lane) as link:
                    return await alone(link)
            except asyncpg.LockNotAvailableError:
                raise RetryError from None
            finally:
                self._leave()
        member = Member(scope, arguments)
        self._queue.setdefault((grouped, reads), []).append(member)
        if self._clock is None:
            self._check_queue_in(PATIENCE)
        return await member.answer

    async def close(self) -> None:
        """Close the connections that are idle, and the others as they come back."""
        await self._pool.close()

    @property
    def _resting(self) -> bool:
        return self._rests_until > 0 and asyncio.get_running_loop().time() < self._rests_until

    async def _lane(self) -> Link:
        """A lane. Raises ``RetryError`` when none can be opened; an ordinary connection will, or tell what is wrong."""
        if not self._resting:
            try:
                link = await self._pool.acquire()
                while link.born + LIFETIME < asyncio.get_running_loop().time():
                    link.dirty = True
                    await self._pool.release(link)
                    link = await self._pool.acquire()
                return link  # noqa: TRY300  # the loop is part of the attempt
            except Exception:  # noqa: BLE001  # whatever it is, who is run again meets it too, if it lasts
                self._rests_until = asyncio.get_running_loop().time() + REST
        raise RetryError

    @property
    def _queued(self) -> int:
        """How many wait."""
        return sum(map(len, self._queue.values()))

    def _share(self, answered: int = 0) -> int:
        """How many statements a lane takes: if one took all, the other would have nothing to do."""
        return min(MOST, -(-(self._in_flight + self._queued + answered) // self._pool.size))

    def _leave(self) -> None:
        self._busy -= 1
        while self._queue and self._busy < self._pool.size:
            self._busy += 1
            # In a context of its own: nothing of the request that was here last.
            task = asyncio.create_task(self._serve(), context=contextvars.Context())
            self._serving.add(task)
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._leave()

    async def _serve(self) -> None:
        while self._queue:
            statement, members = self._next()
            await self._send(statement, members)
            if self._queued < self._share(len(members)):
                # Those who were answered may ask again at once; then they go together again.
                await asyncio.sleep(0)

    def _next(self) -> tuple[tuple[str, bool], list[Member]]:
        most = self._share()
        statement, members = next(iter(self._queue.items()))
        del self._queue[statement]
        if len(members) > most:
            self._queue[statement] = members[most:]  # behind the others
        return statement, members[:most]

    def _check_queue(self) -> None:
        now, seconds, room = asyncio.get_running_loop().time(), self._pool.seconds, self._ordinary.room
        left: dict[tuple[str, bool], list[Member]] = {}
        for statement, members in self._queue.items():
            for member in members:
                if member.since + seconds <= now + PATIENCE / 2:
                    # The server is stuck, or there are too many. Rather early than late: rotating keys counts on it.
                    member.fail(
                        PoolExhaustedError(
                            f"The server was too busy for {seconds:g} seconds. Let fewer requests in, or see what "
                            "keeps it."
                        )
                    )
                elif room > 0 and member.since + PATIENCE <= now:
                    room -= 1
                    member.fail(RetryError())
            if still := [member for member in members if not member.answer.done()]:
                left[statement] = still
        self._queue = left
        self._clock = None
        if left:
            self._check_queue_in(PATIENCE / 2)

    def _check_queue_in(self, seconds: float) -> None:
        # In a context of its own, as the tasks are.
        loop = asyncio.get_running_loop()
        self._clock = loop.call_later(seconds, self._check_queue, context=contextvars.Context())

    async def _send(self, statement: tuple[str, bool], members: list[Member]) -> None:
        grouped, reads = statement
        sent: list[Member] = []
        arguments: list[tuple[Any, ...]] = []
        try:
            async with self._pool.lease(self._lane) as link:
                for member in members:
                    if member.answer.done():
                        continue
                    try:
                        arguments.append((*member.arguments, self._token(member.scope, link), len(sent)))
                    except ScopeError as over:
                        member.fail(ScopeError(*over.args))
                    else:
                        sent.append(member)
                self._in_flight += len(sent)
                try:
                    rows = await link.connection.fetchmany(grouped, arguments)
                except asyncpg.DataError:
                    link.dirty = True  # the others' were written already, and perhaps sent
                    raise
                finally:
                    self._in_flight -= len(sent)
        except BaseException as error:
            for member in members:
                member.fail(_member_error(error, reads=reads))
            if not isinstance(error, Exception):
                raise
            return
        answers: list[list[Any]] = [[] for _ in sent]
        for row in rows:
            answers[row[-1]].append(row)
        for member, answer in zip(sent, answers, strict=True):
            if not member.answer.done():
                member.answer.set_result(answer)


def _member_error(error: BaseException, *, reads: bool) -> BaseException:
    """What an error of the group is to one of its members."""
    if isinstance(error, asyncio.CancelledError):
        return asyncio.CancelledError()  # the program ends
    # What reads can be run again whatever happened, at worst with a record too many. A write only if it is certain that
    # it was rolled back: the server calls it an ERROR; or that nothing was sent: no lane could be opened, an argument
    # could not be encoded, or the server had closed the idle connection, which is this error and none of its children.
    rolled_back = getattr(error, "severity_en", None) == "ERROR"
    nothing_sent = isinstance(error, (RetryError, asyncpg.DataError)) or type(error) is asyncpg.InternalClientError
    if reads or rolled_back or nothing_sent:
        return RetryError()
    return asyncpg.ConnectionDoesNotExistError(
        "the connection was lost while the statement ran; whether it was kept is not known"
    )
