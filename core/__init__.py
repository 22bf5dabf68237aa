"""Charthold: isolated tenants, encrypted PHI and an audit log, on PostgreSQL, with Piccolo."""

from __future__ import annotations

import importlib
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
    from core.audit.history import Change, Sighting
    from core.audit.record import record, record_failed_login
    from core.audit.recorded import ALTERED, DESTROYED, WITHHELD
    from core.compliance.disclosures import Disclosure, accounting_of_disclosures
    from core.compliance.emergencies import Emergency, break_glass
    from core.compliance.record_sets import RecordSet, record_set
    from core.provision import (
        FoundTenant,
        ListedTenant,
        ProvisionedTenant,
        find_tenant,
        list_tenants,
        provision_tenant,
        set_tenant_status,
    )
    from core.statements.transactions import Transaction

__all__ = [
    "ALTERED",
    "DESTROYED",
    "WITHHELD",
    "Change",
    "ChartholdError",
    "ConfigurationError",
    "Disclosure",
    "Emergency",
    "FoundTenant",
    "KeyProviderError",
    "ListedTenant",
    "MigrationError",
    "PoolExhaustedError",
    "ProtectedQueryError",
    "ProvisionedTenant",
    "RecordSet",
    "Scope",
    "ScopeError",
    "SealedValueError",
    "Sighting",
    "Transaction",
    "accounting_of_disclosures",
    "break_glass",
    "current_scope",
    "find_tenant",
    "list_tenants",
    "provision_tenant",
    "record",
    "record_failed_login",
    "record_set",
    "scope",
    "set_tenant_status",
    "transaction",
]

# Where the names are that are looked up late: they need the tables, and the tables an engine, only when they are used.
LATE = {
    "ALTERED": "core.audit.recorded",
    "Change": "core.audit.history",
    "DESTROYED": "core.audit.recorded",
    "Disclosure": "core.compliance.disclosures",
    "Emergency": "core.compliance.emergencies",
    "FoundTenant": "core.provision",
    "ListedTenant": "core.provision",
    "ProvisionedTenant": "core.provision",
    "RecordSet": "core.compliance.record_sets",
    "Sighting": "core.audit.history",
    "WITHHELD": "core.audit.recorded",
    "Transaction": "core.statements.transactions",
    "accounting_of_disclosures": "core.compliance.disclosures",
    "break_glass": "core.compliance.emergencies",
    "find_tenant": "core.provision",
    "list_tenants": "core.provision",
    "provision_tenant": "core.provision",
    "record": "core.audit.record",
    "record_failed_login": "core.audit.record",
    "record_set": "core.compliance.record_sets",
    "set_tenant_status": "core.provision",
}


def transaction() -> Transaction:
    """Group statements of the open scope: all or nothing. Inside another transaction it is a savepoint.

    Raises ``ScopeError`` for a statement of another task or of another scope than its first.
    """
    from core.engine import engine  # late: it brings the driver, and piccolo_conf.py imports this package first

    return engine().transaction()


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(importlib.import_module(LATE[name]), name)
    raise AttributeError(f"module 'core' has no attribute {name!r}")
