"""Piccolo's steps around a query. Their frames hold plaintext, so no exception carries them away with it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any, NoReturn, Self

from piccolo.columns.m2m import M2MAddRelated
from piccolo.custom_types import TableInstance
from piccolo.query.base import Timer
from piccolo.query.methods.objects import Create, GetOrCreate
from piccolo.query.methods.select import SelectJSON, SelectList
from piccolo.query.mixins import ValuesDelegate
from piccolo.utils.sync import run_sync

from core.crypto.derive import forgetful_later
from core.errors import ChartholdError

__all__ = ["AddRelated", "Kept", "QuietCreate", "QuietGetOrCreate", "QuietJSON", "QuietList", "QuietValues"]


class Kept:
    """Part of each query that holds values: it can be copied, as Piccolo does, but neither pickled nor sent away."""

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        for name in (slot for kind in type(self).__mro__ for slot in getattr(kind, "__slots__", ())):
            if hasattr(self, name):
                setattr(copied, name, getattr(self, name))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ChartholdError("A query may hold PHI and is not pickled. Run it, or build it where it is to run.")

    if not TYPE_CHECKING:  # Piccolo's says what comes of it

        def run_sync(self, node: str | None = None, timed: bool = False, in_pool: bool = False) -> Any:
            """Run it where nothing can be awaited, on a loop of its own: in the caller's scope, and then closed."""
            query: Any = self
            context = contextvars.copy_context()

            async def run() -> Any:
                try:
                    return await asyncio.create_task(query.run(node=node, in_pool=in_pool), context=context)
                finally:
                    await query.table._meta.db.close_connection_pool()

            with Timer() if timed else contextlib.nullcontext():
                return run_sync(run())


class QuietValues(ValuesDelegate):
    """What an update writes."""

    def __repr__(self) -> str:
        return f"<values of {', '.join(column._meta.name for column in self._values)}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ChartholdError("The values of an update may hold PHI and are not pickled.")


class AddRelated(M2MAddRelated):
    """``row.add_m2m(...)``. Piccolo makes the joining rows first and sets their references later; ours need them."""

    async def _run(self) -> Any:
        unsaved = [row for row in self.rows if not row._exists_in_db]
        if unsaved:
            await type(self.rows[0]).insert(*unsaved)
        meta = self.m2m._meta
        ours, theirs = (key._meta.name for key in (meta.primary_foreign_key, meta.secondary_foreign_key))
        joining: Any = meta.resolved_joining_table
        extra: dict[str, Any] = self.resolved_extra_column_values
        mine: Any = self.target_row
        rows: Any = self.rows
        return await joining.insert(*(joining(**extra, **{ours: mine.id, theirs: row.id}) for row in rows))


class QuietList(SelectList):
    """``select(...).output(as_list=True)``."""

    @forgetful_later
    async def run(self, node: str | None = None, in_pool: bool = True) -> list[Any]:
        return await super().run(node=node, in_pool=in_pool)


class QuietJSON(SelectJSON):
    """``select(...).output(as_json=True)``."""

    @forgetful_later
    async def run(self, node: str | None = None, in_pool: bool = True) -> str:
        return await super().run(node=node, in_pool=in_pool)


class QuietGetOrCreate(GetOrCreate[TableInstance]):
    """``objects().get_or_create(...)``."""

    @forgetful_later
    async def run(self, node: str | None = None, in_pool: bool = True) -> TableInstance:
        return await super().run(node=node, in_pool=in_pool)


class QuietCreate(Create[TableInstance]):
    """``objects().create(...)``."""

    @forgetful_later
    async def run(self, node: str | None = None, in_pool: bool = True) -> TableInstance:
        return await super().run(node=node, in_pool=in_pool)
