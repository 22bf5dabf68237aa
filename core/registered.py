"""What the apps of the program register: theirs and ours live in the same schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo.conf.apps import Finder
from piccolo.table import Table

from core.schema import SchemaObject, shared_objects

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["shared", "tables", "tenant_tables"]


def tables() -> list[type[Table]]:
    """The tables of every app."""
    return [table for app in Finder().get_app_configs() for table in app.table_classes]


def tenant_tables() -> list[type[TenantTable]]:
    """Those whose rows belong to tenants."""
    from core.tenant_table import TenantTable  # late: the tables need an engine

    return [table for table in tables() if issubclass(table, TenantTable)]


def shared() -> list[SchemaObject]:
    """What the tables of each app share."""
    return [item for app in Finder().get_app_configs() for item in shared_objects(app.app_name)]
