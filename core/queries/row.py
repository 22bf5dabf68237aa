"""Queries about one row that change the instance, which then knows what the database holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from piccolo.query.methods.objects import UpdateSelf
from piccolo.query.methods.refresh import Refresh
from piccolo.table import Table

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable

__all__ = ["TenantRefresh", "TenantUpdateSelf"]


class TenantRefresh(Refresh):
    """``row.refresh()``."""

    async def run(self, in_pool: bool = True, node: str | None = None) -> Table:
        row = await super().run(in_pool=in_pool, node=node)
        kept = cast("ProtectedTable", row)
        values = kept._held()
        kept.remember({column._meta.name: values[column._meta.name] for column in self._columns}, read=True)
        for nested in kept._brought_along():
            nested.remember(read=True)
        return row


class TenantUpdateSelf(UpdateSelf):
    """``row.update_self({...})``."""

    async def run(self, node: str | None = None, in_pool: bool = True) -> None:
        await super().run(node=node, in_pool=in_pool)
        row: Any = self.row
        values = row._held()
        names = (c if isinstance(c, str) else c._meta.name for c in self.values)
        row.remember({name: values[name] for name in names})
