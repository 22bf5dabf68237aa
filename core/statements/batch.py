"""Rows in batches, through a server-side cursor: each batch is recorded as read before it is shown."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import asyncpg
from piccolo.engine.base import BaseBatch
from piccolo.query.base import Query

from core.crypto.keyring import MissingKeyError
from core.scope import Scope, current_scope
from core.statements.arguments import bind, needs_keys
from core.statements.explain import explain
from core.statements.failure import told_by
from core.statements.late import record_after
from core.statements.plan import Plan, RawPlan, open_rows
from core.statements.shown import Record
from core.statements.transactions import to_the_end
from core.wire.pool import LOST

if TYPE_CHECKING:
    from core.crypto.tenantkeys import TenantKeys
    from core.engine import ChartholdEngine
    from core.wire.pool import Link

__all__ = ["Batch"]


class Batch(BaseBatch):
    """``async with await Client.select().batch(batch_size=100) as batch: async for rows in batch: ...``.

    It has a connection and a transaction of its own, which end with the block.
    """

    def __init__(self, engine: ChartholdEngine, query: Query[Any, Any], size: int) -> None:
        self._engine = engine
        self._query = query
        self._size = size
        self._link: Link | None = None
        self._transaction: Any = None
        self._cursor: Any = None
        self._scope: Scope | None = None
        self._keys: TenantKeys | None = None
        # The records of rows that were shown, to be written again should the server take them back.
        self._shown: list[Record] = []
        self._found = False
        self._broken = False

    async def __aenter__(self) -> Self:
        self._query._validate()
        plan = self._query.querystrings[0]
        sql, arguments = plan.compile_string()
        self._plan = plan if isinstance(plan, Plan) else None
        self._looks, self._gates = (plan.looks, plan.gates) if isinstance(plan, (Plan, RawPlan)) else ((), [])
        # A table that belongs to no tenant is read without a scope.
        self._scope = scope = current_scope() if isinstance(plan, (Plan, RawPlan)) else None
        if scope is not None:
            opens = self._plan is not None and self._plan.opened
            self._keys = await self._engine.keys_of(scope) if opens or needs_keys(arguments) else None
            arguments = bind(arguments, scope.tenant, self._keys)
        link = self._link = await self._engine.acquire()
        try:
            # SQL that a person wrote may leave anything behind in the session.
            link.dirty = self._plan is None or not self._plan.compiled()[0].trusted
            transaction = link.connection.transaction()
            await transaction.start()
            self._transaction = transaction
            if scope is not None:
                await self._engine.set_scope(link, scope)
            await self._ask_who_is_shown()
            await self._record(link, [look.record(None) for look in self._looks if not look.unless_shown])
            self._cursor = await link.connection.cursor(sql, *arguments)
        except BaseException as error:
            self._broken = True
            await self._end(failed=True)
            if isinstance(error, asyncpg.PostgresError):
                raise explain(error) from None
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not (shown := await self._next()):
            pass  # a search by few bits found only rows of other values
        return await self._query._process_results(shown)

    async def _next(self) -> Any:
        assert self._link is not None
        if self._scope is not None:
            self._scope.check()
        try:
            rows = await self._cursor.fetch(self._size)
            if not rows:
                if not self._found:
                    await self._record(self._link, [look.record(0) for look in self._looks if look.unless_shown])
                raise StopAsyncIteration
            self._found = True
            shown = rows
            if self._plan is not None:
                # No record, no rows: the record is written in the cursor's transaction, before anything is opened.
                await self._ask_who_is_shown()
                if not self._plan.opened:
                    # The policies were asked when the cursor was opened. A user who was locked since is refused here.
                    await self._link.connection.fetchval("select charthold.tenant_id()")
                await self._record(self._link, [opened.record(rows) for opened in self._plan.opened])
                try:
                    shown = open_rows(self._plan, rows, self._keys)
                except MissingKeyError as missing:
                    # Another process rotated the tenant's key a moment ago.
                    assert self._scope is not None
                    self._keys = await self._engine.keys_of(self._scope, missing.version)
                    shown = open_rows(self._plan, rows, self._keys)
        except asyncpg.PostgresError as error:
            self._broken = True
            self._shown += told_by(error, [look for look in self._looks if look.unless_shown and not self._found])
            raise explain(error) from None
        except asyncio.CancelledError:
            self._broken = True  # the statement was cancelled, which PostgreSQL takes for an error
            raise
        return shown

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        await self._end(failed=exception is not None)
        return False

    async def _ask_who_is_shown(self) -> None:
        """Refuse a role to whom the rows, or the searches for them, are not for."""
        assert self._link is not None
        for gate in self._gates:
            await self._link.connection.fetchval(f"select {gate}")

    async def _record(self, link: Link, records: list[Record]) -> None:
        for record in records:
            await record.write(link)
        self._shown += records

    async def _commit(self, link: Link) -> None:
        try:
            await self._transaction.commit()
        except BaseException:
            await to_the_end(record_after(self._engine, link, self._scope, self._shown))
            raise

    async def _undo(self, link: Link) -> None:
        try:
            await self._transaction.rollback()
        except (*LOST, asyncpg.InterfaceError) as error:
            if not link.lost_by(error):
                raise
            link.dirty = True  # the transaction is lost with it, and what failed says more than that
        finally:
            await record_after(self._engine, link, self._scope, self._shown)

    async def _end(self, *, failed: bool) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        try:
            if self._transaction is not None:
                # What was shown stays shown when the caller fails, so its records are committed. SQL that a person
                # wrote may have changed something, so it is rolled back.
                if self._broken or (failed and self._plan is None):
                    await to_the_end(self._undo(link))
                else:
                    await self._commit(link)
        except BaseException:
            link.dirty = True
            raise
        finally:
            await self._engine.release(link)
