"""A small LIFO pool of connections: the warmest prepared statements are used first.

Threat: whoever runs SQL on a connection can leave traps in its session for the next tenant: temporary objects,
settings, prepared statements under the driver's names, listeners, locks. asyncpg's own pool resets some of that with a
round trip after every statement. Here a connection that ran only statements which we compiled pays nothing, because
their context is local to the transaction; one that ran anything else is ``dirty`` and is closed, session and all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import asyncpg

from core.crypto.derive import forgetful_later
from core.errors import ChartholdError, PoolExhaustedError

__all__ = ["LOST", "Lease", "Link", "Pool"]

# What a statement fails with when the server ended the session before it or meanwhile.
LOST = (asyncpg.InternalClientError, asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, OSError)


class Link:
    """One connection of the pool and what we know of its session."""

    __slots__ = ("backend", "born", "connection", "dirty", "pool")

    def __init__(self, connection: asyncpg.Connection[Any], pool: Pool | None = None) -> None:
        self.connection = connection
        # Where it goes back to; the schema's owner has no pool.
        self.pool = pool
        self.backend: int = connection.get_server_pid()
        self.dirty = False
        self.born = asyncio.get_running_loop().time()

    def lost_by(self, error: BaseException) -> bool:
        """Whether the connection is no more, as that error says; the driver may not have seen the socket close yet."""
        return self.connection.is_closed() or isinstance(error, LOST)

    async def soil(self) -> None:
        """Say that SQL which we did not compile ran in the session: it is closed when its transaction ends.

        Threat: until then, another text stands under the name of a query that the driver prepared. So it prepares anew.
        """
        self.dirty = True
        await self.connection.reload_schema_state()

    @forgetful_later
    async def carry(self, token: str) -> None:
        """Set the context for the rest of the transaction."""
        await self.connection.fetchval("select pg_catalog.set_config('charthold.scope', $1, true)", token)

    async def carry_nothing(self) -> None:
        """Set no context for the rest of the transaction, and forget what was found out about the last one."""
        await self.connection.fetchval(
            "select pg_catalog.set_config('charthold.scope', '', true),"
            " pg_catalog.set_config('charthold.granted', '', true)"
        )


class Lease:
    """A connection for one statement: ``async with pool.lease() as link``. Written out: a generator takes 3 us more."""

    __slots__ = ("_acquire", "_link", "_pool")

    def __init__(self, pool: Pool, acquire: Callable[[], Awaitable[Link]]) -> None:
        self._pool = pool
        self._acquire = acquire

    async def __aenter__(self) -> Link:
        self._link = await self._acquire()
        return self._link

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # When the server calls it an ERROR, the statement failed by itself and its transaction with it: the session
            # is clean. A driver's DataError is an argument that it cannot encode: nothing was sent. Whatever else
            # happened, a lost connection or a cancelled task, nobody knows what it is.
            failed = isinstance(error, (ChartholdError, asyncpg.DataError))
            failed = failed or getattr(error, "severity_en", None) == "ERROR"
            self._link.dirty = self._link.dirty or not failed
        await self._pool.release(self._link)


class Pool:
    """At most ``size`` connections of one event loop; whoever waits longer than ``seconds`` for one gets an error."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]], *, size: int, seconds: float) -> None:
        self._connect = connect
        self._idle: list[Link] = []
        self._waiting: deque[asyncio.Future[Link | None]] = deque()
        self._open = 0
        self.size = size
        self.seconds = seconds
        self._closed = False

    @property
    def room(self) -> int:
        """How many could have a connection at once."""
        return len(self._idle) + self.size - self._open

    async def acquire(self) -> Link:
        """A connection in no transaction. Raises ``PoolExhaustedError`` after the time-out."""
        link = self._warm()
        if link is None:
            if self._open < self.size:
                self._open += 1
            else:
                link = await self._wait()
        return await self._new() if link is None or link.connection.is_closed() else link

    def lease(self, acquire: Callable[[], Awaitable[Link]] | None = None) -> Lease:
        """A connection for one statement: ``acquire``, or the caller's own way to get one, and then ``release``."""
        return Lease(self, acquire or self.acquire)

    async def spare(self) -> Link:
        """A connection without waiting in line, beyond the size if need be.

        For what somebody who holds a connection waits for: were both to stand in one line, neither would move.
        """
        return self._warm() or await self.fresh()

    async def fresh(self) -> Link:
        """The same, begun now."""
        self._open += 1
        over = self._open > self.size
        link = await self._new()
        link.dirty = over
        return link

    def _warm(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if not link.connection.is_closed():
                return link
            self._open -= 1
        return None

    async def _new(self) -> Link:
        """A connection for a place that is counted already."""
        try:
            return Link(await self._connect(), self)
        except BaseException:
            self._leave()
            raise

    async def release(self, link: Link) -> None:
        """Give a connection back. One that is dirty, or still in a transaction, is closed instead."""
        connection = link.connection
        if link.dirty or self._closed or connection.is_closed() or connection.is_in_transaction():
            # Not awaited politely: a poisoned or cancelled session has nothing to say that we want to hear.
            connection.terminate()
            self._leave()
        elif not self._give(link):
            self._idle.append(link)

    async def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        while self._idle:
            self._open -= 1
            connection = self._idle.pop().connection
            try:
                await connection.close(timeout=5)
            except (TimeoutError, OSError):
                connection.terminate()  # the others are closed all the same

    async def _wait(self) -> Link | None:
        """A connection that somebody gave back; None: the place of one that was closed."""
        ready: asyncio.Future[Link | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(ready)
        try:
            async with asyncio.timeout(self.seconds):
                return await ready
        except BaseException as error:
            if ready.done() and not ready.cancelled():
                # It was given and the wait given up at once: it is the next one's.
                if (link := ready.result()) is None:
                    self._leave()
                else:
                    await self.release(link)
            if isinstance(error, TimeoutError):
                raise PoolExhaustedError(
                    f"All {self.size} connections were busy for {self.seconds:g} seconds. Raise "
                    "CHARTHOLD_POOL_SIZE, shorten the transactions, or let fewer requests in."
                ) from None
            raise

    def _give(self, link: Link | None) -> bool:
        """Hand a connection, or its place, to whoever waits longest: put back, it could go to a newcomer."""
        while self._waiting:
            ready = self._waiting.popleft()
            if not ready.done():
                ready.set_result(link)
                return True
        return False

    def _leave(self) -> None:
        """Give up the place of a connection that is no more."""
        if self._open > self.size or not self._give(None):
            self._open -= 1
