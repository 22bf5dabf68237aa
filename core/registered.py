"""What the apps of the program register: theirs and ours live in the same schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo.conf.apps import Finder

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["tenant_tables"]


def tenant_tables() -> list[type[TenantTable]]:
    """The tables of every app whose rows belong to tenants."""
    from core.tenant_table import TenantTable  # late: the tables need an engine

    tables = [table for app in Finder().get_app_configs() for table in app.table_classes]
    return [table for table in tables if issubclass(table, TenantTable)]
