"""The engine: one path on which every statement runs.

A planned statement (``core.statements.plan``) runs in the open scope: the engine binds the tenant, the token and the
ciphertext, sends one statement, and opens what comes back. A statement about tables that belong to no tenant runs
without a scope. Migrations and key commands ask for ``owner_mode``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, cast
from uuid import UUID

import asyncpg
from piccolo.engine import engine_finder
from piccolo.engine.postgres import PostgresEngine
from piccolo.query.base import Query
from piccolo.querystring import QueryString

from core.crypto.keyring import Keyring, MissingKeyError, TenantKeys, WrappedKey
from core.crypto.kms import master_key, provider_from_settings
from core.errors import ConfigurationError, ProtectedQueryError, ScopeError
from core.scope import Scope, current_scope
from core.settings import Settings
from core.statements.arguments import LATE, bind, needs_keys
from core.statements.batch import Batch
from core.statements.explain import explain
from core.statements.failure import told_by
from core.statements.late import record_after
from core.statements.plan import Plan, RawPlan, Statement, open_rows
from core.statements.residue import ends_a_transaction, leaves_nothing
from core.statements.shown import Look, Record
from core.statements.transactions import Transaction, to_the_end
from core.token import TokenKey
from core.wire.connections import Connections
from core.wire.database import Database
from core.wire.group_commit import RetryError, is_small
from core.wire.pool import Lease, Link

__all__ = ["ChartholdEngine", "engine", "owner_mode"]

# True while migrations and key commands run: their statements go to the owner's connection.
owner_mode: ContextVar[bool] = ContextVar("charthold_owner_mode", default=False)

# The scope in which a tenant's wrapped keys are read. A load is a task, in a copy of the context of who began it.
_asker: ContextVar[Scope] = ContextVar("charthold_asker")


class ChartholdEngine(PostgresEngine):
    """Piccolo's engine, taught to run planned statements in the open scope. Connects on first use, not on import."""

    __slots__ = ("_connections", "_keyring", "_token_key", "place")

    def __init__(self) -> None:
        self.place = Database()
        self._keyring: Keyring | None = None
        self._token_key: TokenKey | None = None
        # Connections belong to an event loop, and the command line uses several in turn.
        self._connections: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Connections]
        self._connections = weakref.WeakKeyDictionary()
        super().__init__(config={}, extensions=())

    # Piccolo connects when the engine is made, which would start a server for `piccolo --help`.
    async def check_version(self) -> None: ...
    async def prep_database(self) -> None: ...

    # -- where to connect ------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The process's settings, read when first needed."""
        return self.place.settings

    @property
    def database(self) -> str | None:
        """The database's name where another is used than the settings name."""
        return self.place.name

    @database.setter
    def database(self, name: str | None) -> None:
        self.place.name = name

    @property
    def config(self) -> dict[str, Any]:
        """Where Piccolo's own commands connect."""
        return self.place.for_piccolo()

    @config.setter
    def config(self, _: dict[str, Any]) -> None:
        """Piccolo's constructor sets it."""

    async def use(self, database: str | None) -> None:
        """Work on another database of the same server from now on: for tests, each of which has its own."""
        await self.close_connection_pool()
        self.database = database
        self._keyring = self._token_key = None

    async def connect(self, *, owner: bool, lock_timeout: str | None = None) -> asyncpg.Connection[Any]:
        """A new connection, as the schema's owner or as the application's role."""
        return await self.place.connect(owner=owner, lock_timeout=lock_timeout)

    @contextlib.asynccontextmanager
    async def as_owner(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """A connection as the schema's owner, closed afterwards."""
        connection = await self.connect(owner=True)
        try:
            yield connection
        finally:
            await connection.close()

    async def get_new_connection(self) -> asyncpg.Connection[Any]:
        """A connection for what runs outside of a scope."""
        return await self.connect(owner=owner_mode.get())

    def _here(self) -> Connections:
        """The connections of this event loop."""
        loop = asyncio.get_running_loop()
        found = self._connections.get(loop)
        if found is None:
            # A connection keeps its loop alive, so nothing else would let go of those whose loop is closed.
            for past in [known for known in self._connections if known.is_closed()]:
                del self._connections[past]
            found = self._connections[loop] = Connections(
                self.connect, self._token, size=self.settings.pool_size, seconds=self.settings.pool_seconds
            )
        return found

    async def acquire(self) -> Link:
        """A connection for a transaction."""
        if owner_mode.get():
            return Link(await self.connect(owner=True))
        return await self._here().pool.acquire()

    async def release(self, link: Link) -> None:
        """Give it back, or close it."""
        if link.pool is None:
            await link.connection.close()
        else:
            await link.pool.release(link)

    def spare(self, *, fresh: bool = False) -> Lease:
        """A connection of the application's role for what somebody who holds one waits for; ``fresh``: begun now."""
        pool = self._here().pool
        return pool.lease(pool.fresh if fresh else pool.spare)

    async def close_connection_pool(self) -> None:
        """Close this event loop's connections."""
        if (found := self._connections.pop(asyncio.get_running_loop(), None)) is not None:
            await found.close()

    async def start_connection_pool(self, **_: Any) -> None:
        """Nothing to do: connections are opened as they are needed and kept."""

    # -- keys ------------------------------------------------------------------------------------------------------

    @property
    def keyring(self) -> Keyring:
        """The tenants' data keys, unwrapped when first needed."""
        if self._keyring is None:
            self._keyring = Keyring(
                provider_from_settings(self.settings),
                self._load_keys,
                seconds=self.settings.key_cache_seconds,
            )
        return self._keyring

    @property
    def token_key(self) -> TokenKey:
        """The key that signs scopes; follows from the master key and the generation."""
        if self._token_key is None:
            self._token_key = TokenKey.derive(master_key(self.settings), self.settings.token_generation)
        return self._token_key

    async def _load_keys(self, tenant: UUID) -> Sequence[WrappedKey]:
        """A tenant's wrapped data keys, read in the scope of whoever asks: no scope, no keys."""
        async with self.spare() as link:
            rows = await self._send(
                link,
                _asker.get(),
                "with r as materialized ("
                " select version, wrapped, status, kek from public.tenant_key"
                " where tenant_id = $1 and wrapped is not null"
                ") select * from r where (select pg_catalog.set_config('charthold.scope', $2, true)) is not null",
                [tenant],
            )
        return [WrappedKey(**row) for row in rows]

    async def keys_of(self, scope: Scope, version: int | None = None) -> TenantKeys:
        """The keys of the scope's tenant; with ``version``, keys that hold this one."""
        if version is None and (cached := self.keyring.cached(scope.tenant)) is not None:
            return cached
        _asker.set(scope)
        return await self.keyring.for_tenant(scope.tenant, version=version)

    # -- running statements ----------------------------------------------------------------------------------------

    async def run_querystring(self, querystring: QueryString, in_pool: bool = True) -> Any:
        """Run a statement: a planned one in the open scope, any other outside of every scope."""
        if isinstance(querystring, Plan):
            return await self.run_plan(querystring)
        sql, arguments = querystring.compile_string()
        if isinstance(querystring, RawPlan):
            return await self._run_raw(querystring, sql, arguments)
        return await self._run_plain(sql, arguments)

    async def run_ddl(self, ddl: str, in_pool: bool = True) -> Any:
        """Run a statement of a migration."""
        return await self._run_plain(ddl, [])

    async def run_plan(self, plan: Plan) -> list[dict[str, Any]]:
        """Run a planned statement in the open scope and open what it returns."""
        if plan.more is not None:
            return await self._run_in_turn(plan, plan.more())
        scope = current_scope()
        statement, arguments = plan.compiled()
        keys = await self.keys_of(scope) if plan.opened or needs_keys(arguments) else None
        bound = bind(arguments, scope.tenant, keys)
        transaction = self.open_transaction
        try:
            rows = await (
                self._autocommit(statement, scope, arguments, bound)
                if transaction is None
                else self._in_transaction(transaction, statement, scope, bound)
            )
        except Exception as failed:
            self._note_what_is_told(failed, plan.looks)
            raise
        if transaction is not None and plan.looks:
            transaction.shown += [
                look.record(look.found(rows) if plan.returns else rows[0][0])
                for look in plan.looks
                if not (look.unless_shown and rows)
            ]
        if not plan.returns:
            if statement.counted:
                _all_of(plan, rows)
            return plan.answer
        if transaction is not None:
            transaction.shown += [opened.record(rows) for opened in plan.opened]
        try:
            return open_rows(plan, rows, keys)
        except MissingKeyError as missing:
            # Another process rotated the tenant's key a moment ago.
            return open_rows(plan, rows, await self.keys_of(scope, missing.version))

    async def _in_transaction(
        self, transaction: Transaction, statement: Statement, scope: Scope, bound: list[Any]
    ) -> Any:
        """Send a statement as a part of a transaction."""
        transaction.keep_scope(scope)
        link = transaction.link
        try:
            # There may be writes beside a read, so the commit of a transaction always waits for the disk.
            return await self._send(link, scope, statement.gated, bound, counted=statement.counted)
        finally:
            if not statement.trusted:
                await link.soil()

    async def _autocommit(self, statement: Statement, scope: Scope, arguments: list[Any], bound: list[Any]) -> Any:
        """Send a statement that is a transaction of its own: by itself, or with those of other requests."""
        durable = self.settings.durable_reads
        sql, grouped = (statement.gated if durable else statement.relaxed), statement.grouped[0 if durable else 1]

        async def alone(link: Link) -> Any:
            link.dirty |= not statement.trusted
            try:
                return await self._send(link, scope, sql, bound, counted=statement.counted)
            except Exception as failed:
                # On the same connection: whoever is refused could keep every other busy.
                if records := told_by(failed, statement.looks):
                    await to_the_end(record_after(self, link, scope, records))
                raise

        here = self._here()
        if grouped and here.lanes is not None and is_small(bound):
            with contextlib.suppress(RetryError):
                rows = await here.lanes.run(alone, grouped, scope, bound, reads=statement.returns)
                return len(rows) if statement.counted and isinstance(rows, list) else rows
            # It may have waited so long that the tenant's key was rotated meanwhile.
            keys = await self.keys_of(scope) if needs_keys(arguments) else None
            bound = bind(arguments, scope.tenant, keys)
        async with here.pool.lease() as link:
            return await alone(link)

    async def _run_in_turn(self, plan: Plan, more: Iterable[Plan]) -> list[dict[str, Any]]:
        """Run plans that return nothing, all or none. While one is on the wire, the next is made and sealed."""
        scope = current_scope()
        sending: asyncio.Task[Any] | None = None
        written = 0
        async with self.transaction() as transaction:
            transaction.keep_scope(scope)
            link = transaction.link
            try:
                for part in itertools.chain([plan], more):
                    statement, arguments = part.compiled()
                    if not statement.trusted:
                        await link.soil()
                    bound = bind(arguments, scope.tenant, await self.keys_of(scope))
                    if sending is not None:
                        written += await sending
                    transaction.shown += [look.record(None) for look in part.looks]
                    sending = asyncio.create_task(self._send(link, scope, statement.gated, bound, counted=True))
                    await asyncio.sleep(0)  # until it is sent
                if sending is not None:
                    written += await sending
                _all_of(plan, written)
            except Exception as failed:
                self._note_what_is_told(failed)
                raise
            finally:
                # Nothing is on the wire when the transaction ends, whatever happened to the next.
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        return plan.answer

    def _note_what_is_told(self, failed: Exception, looks: Sequence[Look] = ()) -> None:
        """Note that a failure told who has a sealed value: no record of a failure stays."""
        for record in told_by(failed, looks):
            self.note(record)

    async def _run_raw(self, plan: RawPlan, sql: str, arguments: Sequence[Any]) -> list[asyncpg.Record]:
        """Run SQL that a person wrote, in the open scope. Envelopes in it stay closed.

        It cannot be wrapped (a data-modifying CTE must stand at the top), so the context is set first, in the same
        transaction; and it can leave anything behind, so the connection is not used again.
        """
        scope = current_scope()
        keys = await self.keys_of(scope) if needs_keys(arguments) else None
        bound = bind(arguments, scope.tenant, keys)
        transaction = self.open_transaction
        if transaction is None:
            async with self.transaction():
                return await self._run_raw(plan, sql, bound)
        _refuse_the_end(transaction, sql)
        transaction.keep_scope(scope)
        link = transaction.link
        await self.set_scope(link, scope)
        try:
            for gate in plan.gates:
                await link.connection.fetchval(f"select {gate}")
            for record in [look.record(None) for look in plan.looks]:
                await record.write(link)
                transaction.shown.append(record)
            return await link.connection.fetch(sql, *bound)
        except asyncpg.PostgresError as error:
            self._note_what_is_told(error)
            raise explain(error, bound) from None
        finally:
            await link.soil()

    def _token(self, scope: Scope, link: Link) -> str:
        return scope.token(self.token_key, link.backend)

    async def set_scope(self, link: Link, scope: Scope) -> None:
        """Set the context for the rest of the link's transaction."""
        await link.carry(self._token(scope, link))

    async def _send(
        self, link: Link, scope: Scope, sql: str, arguments: Sequence[Any], *, counted: bool = False
    ) -> Any:
        """The rows of a statement; for one that is counted, how many it wrote, as its tag says: "INSERT 0 1"."""
        token = self._token(scope, link)
        try:
            if counted:
                return int((await link.connection.execute(sql, *arguments, token)).rpartition(" ")[2])
            return await link.connection.fetch(sql, *arguments, token)
        except asyncpg.PostgresError as error:
            # Threat: who reports an error reports the frames that it passed through, and these hold a token, which with
            # CHARTHOLD_BIND_BACKEND=off is good everywhere.
            failure = explain(error, arguments, sql).with_traceback(None)
        except asyncpg.InternalClientError:
            # The server ended the idle session a moment ago, and the driver has not seen the socket close yet.
            failure = asyncpg.ConnectionDoesNotExistError("the server closed the connection; nothing was sent")
        except asyncpg.InterfaceError as error:
            failure = error.with_traceback(None)
        token, arguments = "", ()
        try:
            raise failure
        finally:
            del failure  # else the frame and the exception keep each other alive

    @contextlib.asynccontextmanager
    async def outside(self) -> AsyncIterator[Link]:
        """A connection of the application's role for what comes before a scope; refused inside a transaction."""
        if self.open_transaction is not None:
            raise ScopeError("This happens outside of every transaction. Do it before, or after.")
        async with self._here().pool.lease() as link:
            yield link

    async def _run_plain(self, sql: str, arguments: Sequence[Any]) -> Any:
        if any(isinstance(argument, LATE) for argument in arguments):
            raise ProtectedQueryError("A query on a tenant's table cannot be part of this statement; run it by itself.")
        transaction = self.open_transaction
        if transaction is not None:
            _refuse_the_end(transaction, sql)
            link = transaction.link
            if transaction.scope_is_over:
                await link.carry_nothing()
            try:
                return await _fetched(link, sql, arguments)
            finally:
                if not leaves_nothing(sql):
                    await link.soil()
        if owner_mode.get():
            async with self.as_owner() as connection:
                return await connection.fetch(sql, *arguments)
        async with self._here().pool.lease() as link:
            link.dirty |= not leaves_nothing(sql)
            return await _fetched(link, sql, arguments)

    async def batch(  # type: ignore[override]  # Piccolo's engine makes batches of its own
        self, query: Query[Any, Any], batch_size: int = 100, node: str | None = None
    ) -> Batch:
        """Rows in batches; see ``core.statements.batch``."""
        return Batch(self, query, batch_size)

    def transform_response_to_dicts(self, results: Any) -> list[dict[str, Any]]:
        """Opened rows are dicts already."""
        return [row if type(row) is dict else dict(row) for row in results]

    def transaction(self, allow_nested: bool = True) -> Transaction:
        """Group statements; nested, a savepoint."""
        return Transaction(self, allow_nested=allow_nested)

    @property
    def open_transaction(self) -> Transaction | None:
        """The transaction that we are in."""
        return cast("Transaction | None", self.current_transaction.get())

    def note(self, record: Record) -> None:
        """Note what was recorded, to be recorded again should a rollback of the open transaction take it."""
        if (transaction := self.open_transaction) is not None:
            transaction.shown.append(record)


def _all_of(plan: Plan, written: int) -> None:
    """Raise when not all of the rows were written that the plan is to write."""
    if plan.expected is not None and written != plan.expected[0]:
        raise ProtectedQueryError(plan.expected[1])


async def _fetched(link: Link, sql: str, arguments: Sequence[Any]) -> list[asyncpg.Record]:
    """The rows of a statement about tables that belong to no tenant. Where a right is missing the error says which."""
    try:
        return await link.connection.fetch(sql, *arguments)
    except asyncpg.InsufficientPrivilegeError as error:
        raise explain(error) from None


def _refuse_the_end(transaction: Transaction, sql: str) -> None:
    if transaction.shown and ends_a_transaction(sql):
        raise ProtectedQueryError(
            "SQL that a person wrote cannot end a transaction or go back in it: what was shown would be taken out "
            "of the log. Leave the transaction() block, by an error to undo it; nest another for a savepoint."
        )


def engine() -> ChartholdEngine:
    """The engine of ``piccolo_conf.py``. Raises ``ConfigurationError`` when that names another kind."""
    found = engine_finder()
    if not isinstance(found, ChartholdEngine):
        raise ConfigurationError("piccolo_conf.py must set DB = ChartholdEngine(); see the one that Charthold brings.")
    return found
