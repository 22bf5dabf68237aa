"""Tenants' keys, unwrapped: a bounded cache with a time limit.

Threat: a key provider that is slow, failing or rate-limited must neither stop a clinic that is at work nor
make anything open that should not. One unwrap serves all who wait; a failure reaches each of them and is not
cached; keys that are cached work on until their time is up, not longer. Time bounds how long a destroyed or
retired key still opens in a process that did not hear of it; the count bounds how many keys a memory dump
would hold.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from uuid import UUID

from core.crypto.datakey import DataKey, new_data_key
from core.crypto.derive import Secret
from core.crypto.envelope import MissingKeyError
from core.crypto.kms import KeyProvider
from core.crypto.sealer import RowSealer
from core.crypto.tenantkeys import KeyStatus, TenantKeys, WrappedKey
from core.errors import KeyProviderError, ScopeError

__all__ = ["Keyring", "MissingKeyError", "RowSealer", "TenantKeys", "WrappedKey", "new_data_key"]

RETRY_SECONDS = 1.0  # how soon the same absent version is looked for again


class _Entry:
    """What the cache holds: keys, until when, and which versions a reload did not find."""

    __slots__ = ("absent", "expires", "keys", "loaded")

    def __init__(self, keys: TenantKeys, loaded: float, seconds: float) -> None:
        self.keys = keys
        self.loaded = loaded
        self.expires = loaded + seconds
        self.absent: set[int] = set()


class Keyring(Secret):
    """The process's cache of tenant keys. ``load`` reads a tenant's wrapped keys from where they are stored.

    ``load`` runs in a task of its own, in a copy of the context of whoever asks first: in that scope, so that
    it must not use that transaction's connection. If that scope is refused, the others try again in their
    own. Nothing here belongs to an event loop for longer than one load.
    """

    __slots__ = (
        "_clock",
        "_entries",
        "_flights",
        "_load",
        "_most",
        "_provider",
        "_seconds",
        "_unwrap_seconds",
    )

    def __init__(
        self,
        provider: KeyProvider,
        load: Callable[[UUID], Awaitable[Sequence[WrappedKey]]],
        *,
        seconds: float = 300.0,
        most: int = 10_000,
        unwrap_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._load = load
        self._seconds = seconds
        self._most = most
        self._unwrap_seconds = unwrap_seconds
        self._clock = clock
        self._entries: OrderedDict[UUID, _Entry] = OrderedDict()
        self._flights: dict[UUID, asyncio.Task[_Entry]] = {}

    def __repr__(self) -> str:
        return f"<Keyring provider={self._provider.describe().get('provider')} tenants={len(self._entries)}>"

    @property
    def kek(self) -> str:
        """The name of the key-encrypting key that wraps new keys."""
        return self._provider.describe().get("kek", "")

    def cached(self, tenant_id: UUID) -> TenantKeys | None:
        """The tenant's keys if they are here and their time is not up: the hot path."""
        entry = self._entry(tenant_id)
        return None if entry is None else entry.keys

    async def for_tenant(self, tenant_id: UUID, *, version: int | None = None) -> TenantKeys:
        """The tenant's keys. With ``version``, keys that hold it: a cache that lacks it is loaded again.

        Raises ``KeyProviderError`` when they do not unwrap, ``MissingKeyError`` when there are none.
        """
        entry = self._entry(tenant_id)
        if entry is not None and (version is None or version in entry.keys.versions):
            return entry.keys
        asked = self._clock()
        if entry is None or version not in entry.absent or asked >= entry.loaded + RETRY_SECONDS:
            entry = await self._one_load(tenant_id)
            if version is not None and version not in entry.keys.versions and entry.loaded < asked:
                entry = await self._one_load(tenant_id)  # we had joined a load from before the version was made
        if version is not None and version not in entry.keys.versions:
            entry.absent.add(version)
            entry.keys.encryption(version)  # raises, and says which
        return entry.keys

    def forget(self, tenant_id: UUID) -> None:
        """Drop the tenant's keys; a load under way still answers those who wait, and is not kept."""
        self._entries.pop(tenant_id, None)
        self._flights.pop(tenant_id, None)

    async def make_key(self, tenant_id: UUID, version: int = 1, status: KeyStatus = "current") -> WrappedKey:
        """A new data key, wrapped; storing it is the caller's, and nothing is cached."""
        return await self._wrap(tenant_id, WrappedKey(version, b"", status), new_data_key())

    async def rewrap(self, tenant_id: UUID, key: WrappedKey) -> WrappedKey:
        """The same data key under the provider's current KEK."""
        return await self._wrap(tenant_id, key, await self._unwrapped(tenant_id, key))

    async def open_keys(self, tenant_id: UUID, stored: Sequence[WrappedKey]) -> TenantKeys:
        """Unwrap without the cache: for keys whose transaction has not been committed."""
        unwrapped = [(key, DataKey(tenant_id, key.version, await self._unwrapped(tenant_id, key))) for key in stored]
        return TenantKeys(tenant_id, unwrapped)

    def _entry(self, tenant_id: UUID) -> _Entry | None:
        entry = self._entries.get(tenant_id)
        if entry is None:
            return None
        if entry.expires <= self._clock():
            self._entries.pop(tenant_id, None)
            return None
        try:
            self._entries.move_to_end(tenant_id)
        except KeyError:  # another thread forgot it
            return None
        return entry

    async def _one_load(self, tenant_id: UUID) -> _Entry:
        """Join the load under way on this loop, or start one. A cancelled waiter leaves it to the others."""
        loop = asyncio.get_running_loop()
        while True:
            flight = self._flights.get(tenant_id)
            joined = flight is not None and not flight.done() and flight.get_loop() is loop
            if flight is None or not joined:
                flight = self._flights[tenant_id] = loop.create_task(self._load_entry(tenant_id))
                flight.add_done_callback(partial(self._landed, tenant_id))
            try:
                return await asyncio.shield(flight)
            except ScopeError:  # of the scope that asked first, not of ours
                if not joined:
                    raise

    def _landed(self, tenant_id: UUID, flight: asyncio.Task[_Entry]) -> None:
        # Asking for the exception marks it as seen, should nobody wait any more.
        failed = flight.cancelled() or flight.exception() is not None
        if self._flights.get(tenant_id) is not flight:  # forgotten meanwhile, or another loop's turn
            return
        del self._flights[tenant_id]
        if failed or self._seconds <= 0:
            return
        self._entries[tenant_id] = flight.result()
        self._entries.move_to_end(tenant_id)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)

    async def _load_entry(self, tenant_id: UUID) -> _Entry:
        loaded = self._clock()  # before the look: what happens while it runs is not covered by it
        return _Entry(await self.open_keys(tenant_id, await self._load(tenant_id)), loaded, self._seconds)

    async def _unwrapped(self, tenant_id: UUID, key: WrappedKey) -> bytes:
        try:
            async with asyncio.timeout(self._unwrap_seconds):
                return await self._provider.unwrap(tenant_id, key.wrapped, version=key.version)
        except Exception as error:  # noqa: BLE001 - a provider raises anything, and its text may hold anything
            failure = self._failure("unwrap", tenant_id, key.version, error)
        raise failure

    async def _wrap(self, tenant_id: UUID, key: WrappedKey, material: bytes) -> WrappedKey:
        try:
            kek = self.kek
            async with asyncio.timeout(self._unwrap_seconds):
                wrapped = await self._provider.wrap(tenant_id, material, version=key.version)
            return replace(key, wrapped=wrapped, kek=kek)
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._failure("wrap", tenant_id, key.version, error)
        del material
        raise failure

    def _failure(self, verb: str, tenant_id: UUID, version: int, error: Exception) -> KeyProviderError:
        if isinstance(error, KeyProviderError):
            return error.with_traceback(None)
        return KeyProviderError(
            f"The key provider could not {verb} key {version} of tenant {tenant_id} ({type(error).__name__}"
            "). Nothing was opened; tenants whose keys are cached go on until their time is up."
        )
