"""Piccolo's queries, taught to pin the tenant, seal, open and record."""

from __future__ import annotations

from core.queries.delete import TenantDelete
from core.queries.insert import TenantInsert
from core.queries.read import TenantCount, TenantExists, TenantObjects, TenantRaw, TenantSelect
from core.queries.row import TenantRefresh, TenantUpdateSelf
from core.queries.update import TenantUpdate

__all__ = [
    "TenantCount",
    "TenantDelete",
    "TenantExists",
    "TenantInsert",
    "TenantObjects",
    "TenantRaw",
    "TenantRefresh",
    "TenantSelect",
    "TenantUpdate",
    "TenantUpdateSelf",
]
