"""Statements that succeed together, and the records of what was shown when they fail together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import asyncpg
from piccolo.engine.postgres import PostgresTransaction, Savepoint

from core.errors import ScopeError
from core.scope import Scope
from core.statements.late import record_after, record_again
from core.statements.shown import Record
from core.wire.pool import LOST, Link

if TYPE_CHECKING:
    from core.engine import ChartholdEngine
    from core.tenant_table import ProtectedTable

__all__ = ["Transaction", "to_the_end"]

PATIENCE = 10.0  # seconds for which a task that is cancelled waits for its rollback


class Mark(Savepoint):
    """``await transaction.savepoint()``. Going back to it takes away no record of what was shown."""

    async def rollback_to(self) -> None:
        await to_the_end(self._roll_back())

    async def _roll_back(self) -> None:
        await super().rollback_to()  # type: ignore[no-untyped-call]  # Piccolo's
        await cast("Transaction", self.transaction).gone_back_to(self.name)


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that must not stop half-way; whoever is cancelled meanwhile ends when it is done.

    Threat: a deadline or a sibling's failure cancels a task while its transaction is rolled back, between what was
    shown and the record of it.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while not task.done() and loop.time() < until:
            with contextlib.suppress(asyncio.CancelledError):  # cancelled once more, which changes nothing
                await asyncio.wait({task}, timeout=until - loop.time())
        task.cancel()  # the server does not answer
        await asyncio.wait({task})
        raise


@dataclass(slots=True)
class Moment:
    """How far a transaction was: what had been shown, and which instances had been written."""

    shown: int = 0
    written: int = 0


class Transaction(PostgresTransaction):
    """Statements that succeed together; nested, a savepoint. It is the opening task's own, until that task is done."""

    __slots__ = ("_before", "_link", "_marks", "_savepoint", "_scope", "_task", "_written", "engine_", "shown")

    def __init__(self, engine: ChartholdEngine, *, allow_nested: bool = True) -> None:
        super().__init__(engine, allow_nested=allow_nested)
        self.engine_ = engine
        if self._parent is not None and cast("Transaction", self._parent)._link is None:
            self._parent = None  # it ended; this task outlived it
        self._link: Link | None = None
        self._savepoint: Any = None
        self._scope: Scope | None = None
        self._task: asyncio.Task[Any] | None = None
        # What recorded that something was shown in it.
        self.shown: list[Record] = []
        # Instances that were written in it, with what they took for stored before.
        self._written: list[tuple[ProtectedTable, dict[str, Any], bool]] = []
        # How far it was when this block, or each savepoint, began.
        self._before = Moment()
        self._marks: dict[str, Moment] = {}

    @property
    def link(self) -> Link:
        """The connection, for a statement of the task and the scope that the transaction was opened in."""
        if self._link is None:
            raise ScopeError(
                "This transaction has ended. Open another; a task that was begun in its block and outlives it opens "
                "its own: async with transaction()."
            )
        if self._task is not asyncio.current_task():
            self._take_over()
        return self._link

    def _take_over(self) -> None:
        """Let this task have it when the one that had it is done: a fixture and its test are tasks that run in turn."""
        if self._task is not None and not self._task.done():
            raise ScopeError(
                "A transaction belongs to the task that opened it: one connection runs one statement at a time. "
                "Await the statements in turn, or gather them outside of the transaction."
            )
        self._task = asyncio.current_task()

    async def __aenter__(self) -> Self:
        if self._parent is not None:
            # Piccolo would do nothing here, and a caught error would keep the inner block's writes.
            parent = cast("Transaction", self._parent)
            self._savepoint = parent.link.connection.transaction()
            self._before = parent._now
            await self._savepoint.start()
            return cast("Self", parent)
        self._task = asyncio.current_task()
        link = self._link = await self.engine_.acquire()
        try:
            self.connection = link.connection
            self.transaction = self.connection.transaction()
            await self.transaction.start()
        except BaseException as error:
            self._link = None
            link.dirty = True
            await self.engine_.release(link)
            if isinstance(error, asyncpg.InternalClientError):
                # The server ended the idle session a moment ago, and the driver has not seen the socket close yet.
                raise asyncpg.ConnectionDoesNotExistError(
                    "the server closed the connection; nothing was sent"
                ) from None
            raise
        self.context = self.engine_.current_transaction.set(self)
        return self

    def keep_scope(self, scope: Scope) -> None:
        """The first statement's scope is the transaction's; another would switch the tenant half-way."""
        if self._link is not None and self._link.pool is None:
            raise ScopeError("A tenant's rows are not for the owner of the schema. Do it outside of the migration.")
        if self._scope is None:
            self._scope = scope
        elif self._scope is not scope:
            raise ScopeError(
                "A transaction keeps the scope of its first statement. End it before you change the scope."
            )

    @property
    def scope_is_over(self) -> bool:
        """Whether the scope whose context the transaction carries has ended or expired."""
        return self._scope is not None and self._scope.is_over

    async def rollback(self) -> None:
        """Roll back before the block ends; what was shown stays recorded."""
        link = self.link
        self._rolled_back = True  # also when it fails
        await to_the_end(self._undo(link))

    async def savepoint(self, name: str | None = None) -> Savepoint:
        made = await super().savepoint(name)
        self._marks[made.name] = self._now
        return Mark(made.name, self)

    async def rollback_to(self, savepoint_name: str) -> None:
        await Mark(savepoint_name, self).rollback_to()

    async def gone_back_to(self, mark: str) -> None:
        """What follows from the rollback to that savepoint."""
        await self._gone_back(self._marks.get(mark, Moment()))

    def remembers(self, row: ProtectedTable, before: dict[str, Any]) -> None:
        """Note what the instance took for stored, to be put back when the transaction is rolled back."""
        self._written.append((row, before, row._exists_in_db))

    @property
    def _now(self) -> Moment:
        return Moment(len(self.shown), len(self._written))

    async def _gone_back(self, moment: Moment) -> None:
        """A savepoint's rollback took the records away with the writes. What was seen stays seen: record it again."""
        self._forget(moment)
        if (shown := self.shown[moment.shown :]) and self._scope is not None and self._link is not None:
            await record_again(self.engine_, self._link, self._scope, shown)

    def _forget(self, moment: Moment) -> None:
        """Put back what the instances written since took for stored, so that their next ``save()`` writes again."""
        undone, self._written = self._written[moment.written :], self._written[: moment.written]
        for row, stored, exists in reversed(undone):
            row._stored, row._exists_in_db = stored, exists

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if self._savepoint is not None:
            await (to_the_end(self._undo_savepoint()) if exception is not None else self._savepoint.commit())
            return False
        link, self._link = self._link, None
        if link is None:
            return False
        try:
            if not self._committed and not self._rolled_back:
                await (to_the_end(self._undo(link)) if exception is not None else self._commit(link))
        except BaseException:
            link.dirty = True
            raise
        finally:
            # In this order whatever happened: Piccolo's own leaks the connection when the rollback fails.
            self._link = None
            # A generator that is closed by another task leaves here in that task's context, where nothing was set.
            with contextlib.suppress(ValueError):
                self.engine_.current_transaction.reset(self.context)
            await self.engine_.release(link)
        return False

    async def _undo_savepoint(self) -> None:
        parent = cast("Transaction", self._parent)
        if await parent._rolled(self._savepoint):
            await parent._gone_back(self._before)
        else:
            parent._forget(self._before)  # what was shown is recorded when the parent ends

    async def _commit(self, link: Link) -> None:
        try:
            await self.transaction.commit()
        except BaseException:
            await to_the_end(self._undone(link))
            raise

    async def _undo(self, link: Link) -> None:
        try:
            await self._rolled(self.transaction, link)
        finally:
            await self._undone(link)

    async def _rolled(self, transaction: asyncpg.transaction.Transaction, link: Link | None = None) -> bool:
        """Roll back. False: the connection is lost, and the transaction with it; what failed says more than that."""
        link = link or self._link
        try:
            await transaction.rollback()
        except (*LOST, asyncpg.InterfaceError) as error:
            if link is None or not link.lost_by(error):
                raise
            link.dirty = True
            return False
        return True

    async def _undone(self, link: Link) -> None:
        """What was shown stays recorded, and what was written is not taken for stored."""
        self._forget(Moment())
        await record_after(self.engine_, link, self._scope, self.shown)
