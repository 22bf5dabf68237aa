"""Charthold: isolated tenants, encrypted PHI and an audit log, on PostgreSQL, with Piccolo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.errors import (
    ChartholdError,
    ConfigurationError,
    KeyProviderError,
    MigrationError,
    PoolExhaustedError,
    ProtectedQueryError,
    ScopeError,
    SealedValueError,
)
from core.scope import Scope, current_scope, scope

if TYPE_CHECKING:
    from core.audit.record import record
    from core.provision import find_tenant, provision_tenant, set_tenant_status
    from core.transactions import Transaction

__all__ = [
    "ChartholdError",
    "ConfigurationError",
    "KeyProviderError",
    "MigrationError",
    "PoolExhaustedError",
    "ProtectedQueryError",
    "Scope",
    "ScopeError",
    "SealedValueError",
    "current_scope",
    "find_tenant",
    "provision_tenant",
    "record",
    "scope",
    "set_tenant_status",
    "transaction",
]


def transaction() -> Transaction:
    """Group statements of the open scope: all or nothing. Inside another transaction it is a savepoint."""
    from core.engine import engine  # late: it brings the driver, and piccolo_conf.py imports this package first

    return engine().transaction()


def __getattr__(name: str) -> Any:
    # Late, for the same reason: these need the tables, and the tables need an engine only when they are used.
    if name in {"find_tenant", "provision_tenant", "set_tenant_status"}:
        from core import provision

        return getattr(provision, name)
    if name == "record":
        from core.audit.record import record

        return record
    raise AttributeError(f"module 'core' has no attribute {name!r}")
