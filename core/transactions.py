"""Statements that succeed together, and what was shown among them when they fail together."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from piccolo.engine.postgres import PostgresTransaction, Savepoint

from core.errors import ScopeError
from core.pool import Link
from core.scope import Scope

if TYPE_CHECKING:
    from core.engine import ChartholdEngine

__all__ = ["RECORD_LOOK", "RECORD_READ", "Shown", "Transaction"]

Shown = tuple[str, tuple[Any, ...]]

# Rows were shown, with these columns opened; the log was looked at.
RECORD_READ = "select charthold.record_read($1, $2::uuid[], $3::text[])"
RECORD_LOOK = "select charthold.record('audit_read', $1, $2, null, $3::jsonb)"


class Mark(Savepoint):
    """``await transaction.savepoint()``. To go back to it takes no record of what was shown away."""

    async def rollback_to(self) -> None:
        await super().rollback_to()  # type: ignore[no-untyped-call]  # Piccolo's
        await cast("Transaction", self.transaction).record_since(self.name)


class Transaction(PostgresTransaction):
    """Statements that succeed together. Nested, it is a savepoint. It belongs to the task that opened it."""

    __slots__ = ("_link", "_marks", "_savepoint", "_scope", "_shown_before", "_task", "engine_", "shown")

    def __init__(self, engine: ChartholdEngine, *, allow_nested: bool = True) -> None:
        super().__init__(engine, allow_nested=allow_nested)
        self.engine_ = engine
        if self._parent is not None and cast("Transaction", self._parent)._link is None:
            self._parent = None  # it ended; this task outlived it
        self._link: Link | None = None
        self._savepoint: Any = None
        self._scope: Scope | None = None
        self._task: asyncio.Task[Any] | None = None
        # What recorded that something was shown in it: SQL and arguments.
        self.shown: list[Shown] = []
        self._shown_before = 0
        # How much had been shown when each savepoint was made.
        self._marks: dict[str, int] = {}

    @property
    def link(self) -> Link:
        """The connection, for a statement of the task and the scope that the transaction was opened in."""
        if self._link is None:
            raise ScopeError("This transaction has ended. Open another.")
        if self._task is not asyncio.current_task():
            raise ScopeError(
                "A transaction belongs to the task that opened it: one connection runs one statement at a time. "
                "Await the statements in turn, or gather them outside of the transaction."
            )
        return self._link

    async def __aenter__(self) -> Self:
        if self._parent is not None:
            # Piccolo would do nothing here, and a caught error would keep the inner block's writes.
            parent = cast("Transaction", self._parent)
            self._savepoint = parent.link.connection.transaction()
            self._shown_before = len(parent.shown)
            await self._savepoint.start()
            return cast("Self", parent)
        self._task = asyncio.current_task()
        link = self._link = await self.engine_.acquire()
        try:
            self.connection = link.connection
            self.transaction = self.connection.transaction()
            await self.transaction.start()
        except BaseException:
            self._link = None
            link.dirty = True
            await self.engine_.release(link)
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
        await super().rollback()  # type: ignore[no-untyped-call]  # Piccolo's
        await self.engine_.record_after(self.link, self._scope, self.shown)

    async def savepoint(self, name: str | None = None) -> Savepoint:
        made = await super().savepoint(name)
        self._marks[made.name] = len(self.shown)
        return Mark(made.name, self)

    async def rollback_to(self, savepoint_name: str) -> None:
        await Mark(savepoint_name, self).rollback_to()

    async def record_since(self, mark: str) -> None:
        """Record again what was shown since that savepoint was made."""
        await self.record_again(self.shown[self._marks.get(mark, 0) :])

    async def record_again(self, shown: list[Shown]) -> None:
        """Record again what was shown before a savepoint's rollback took its records away: what was seen stays seen."""
        if shown and self._scope is not None and self._link is not None:
            await self.engine_.record_again(self._link, self._scope, shown)

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if self._savepoint is not None:
            parent = cast("Transaction", self._parent)
            if exception:
                await self._savepoint.rollback()
                await parent.record_again(parent.shown[self._shown_before :])
            else:
                await self._savepoint.commit()
            return False
        link, self._link = self._link, None
        if link is None:
            return False
        try:
            if not self._committed and not self._rolled_back:
                undone = exception is not None
                try:
                    await (self.transaction.rollback() if undone else self.transaction.commit())
                except BaseException:
                    undone = True
                    raise
                finally:
                    if undone:
                        await self.engine_.record_after(link, self._scope, self.shown)
        except BaseException:
            link.dirty = True
            raise
        finally:
            # In this order whatever happened: Piccolo's own leaks the connection when the rollback fails.
            self._link = None
            self.engine_.current_transaction.reset(self.context)
            await self.engine_.release(link)
        return False
