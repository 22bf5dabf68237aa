"""The mixin that makes a table's rows answer for themselves. Part of ``TenantTable``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, overload

from core.audit.history import Change, Sighting, as_of, history, revert, rows_as_of, who_saw

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["Audited"]

T = TypeVar("T")


class AsOf:
    """``await client.as_of(time)``: the row as it was then, or None. ``await Client.as_of(time)``: all rows then."""

    @overload
    def __get__(self, row: None, table: type[T]) -> Callable[[datetime], Awaitable[list[T]]]: ...
    @overload
    def __get__(self, row: T, table: type[T]) -> Callable[[datetime], Awaitable[T | None]]: ...
    def __get__(self, row: Any, table: type[Any]) -> Callable[[datetime], Awaitable[Any]]:
        async def one(time: datetime) -> Any:
            values = await as_of(table, row.id, time)
            return None if values is None else table(id=row.id, _exists_in_db=True, **values)

        async def everything(time: datetime) -> list[Any]:
            return await rows_as_of(table, time)

        return everything if row is None else one


class Audited:
    """Declares the capture of every change, and answers what happened to a row and who saw it.

    The capture itself is in the database (``core.audit.capture``): what Python does not see is recorded too.
    """

    audited: ClassVar[bool] = True

    as_of = AsOf()

    @property
    def _row(self) -> TenantTable:
        return cast("TenantTable", self)

    async def history(self, *, since: datetime | None = None, until: datetime | None = None) -> list[Change]:
        """What happened to this row, oldest first, field by field, PHI opened; recorded as a read."""
        return await history(type(self._row), self._row.id, since=since, until=until)

    async def revert(self, *, to: datetime) -> None:
        """Give this row the values that it had then, as an ordinary, recorded update."""
        await revert(self._row, to)

    async def who_saw(
        self, *, since: datetime | None = None, until: datetime | None = None, limit: int = 1_000
    ) -> list[Sighting]:
        """Who was shown this row's PHI, the latest first; asking is recorded."""
        return await who_saw(type(self._row), self._row.id, since=since, until=until, limit=limit)
