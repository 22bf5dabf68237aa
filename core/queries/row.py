"""Queries about one row that change the instance: what they bring is what the database holds."""

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
        cast("ProtectedTable", row).remember(self._columns)
        return row


class TenantUpdateSelf(UpdateSelf):
    """``row.update_self({...})``."""

    async def run(self, node: str | None = None, in_pool: bool = True) -> None:
        await super().run(node=node, in_pool=in_pool)
        row: Any = self.row
        row.remember(row._meta.get_column_by_name(c) if isinstance(c, str) else c for c in self.values)
