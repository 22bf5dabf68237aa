"""What a role may do: role x table x command, in one place. ``TenantTable`` compiles it to policies.

164.312(a)(1): access only for those who have been granted it. A table that is not named here gets ``DEFAULT``; a table
of your own names its own with ``permissions = {...}``; ``{}`` lets nobody in. What no role is granted, no role may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["COMMANDS", "DEFAULT", "EMERGENCY", "PERMISSIONS", "ROLES", "Command", "roles_for"]

Command = Literal["select", "insert", "update", "delete"]

ROLES = ("admin", "clinician", "billing", "auditor", "system")
# The role of a user who broke the glass (core/compliance/emergencies.py): it reads as a clinician, and changes nothing.
EMERGENCY = "emergency"
COMMANDS: tuple[Command, ...] = ("select", "insert", "update", "delete")

EVERYBODY = ROLES
STAFF = ("admin", "clinician", "system")
ADMINS = ("admin", "system")

DEFAULT: Mapping[str, tuple[str, ...]] = {
    "select": EVERYBODY,
    "insert": STAFF,
    "update": STAFF,
    "delete": ADMINS,
}

PERMISSIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # A tenant is made by provision_tenant, as "system", and never deleted while its records must be kept.
    "tenant": {"select": EVERYBODY, "insert": ("system",), "update": ADMINS},
    # The first admin is made by provision_tenant.
    "app_user": {"select": EVERYBODY, "insert": ADMINS, "update": ADMINS, "delete": ADMINS},
    "facility": {"select": EVERYBODY, "insert": ADMINS, "update": ADMINS, "delete": ADMINS},
    # Billing keeps insurance data up to date. Whom a user bound to facilities sees is narrowed further.
    "client": {"select": EVERYBODY, "insert": STAFF, "update": (*STAFF, "billing"), "delete": ADMINS},
    # 164.528: kept for six years. Who sees a client sees its disclosures: an accounting without them would be wrong.
    "disclosure": {"select": EVERYBODY, "insert": STAFF, "update": ADMINS},
    # The log is written by triggers and definer functions only; no role has the INSERT grant.
    "user_action_audit_log": {"select": ("admin", "auditor", "system"), "insert": (*EVERYBODY, EMERGENCY)},
    # Whoever may read PHI needs the wrapped keys, which are worthless without the key-encrypting key.
    "tenant_key": {"select": EVERYBODY, "insert": ADMINS, "update": ADMINS},
    # Read by those who review them. Only charthold.break_glass() inserts what a clinician may.
    "emergency_access": {"select": ("admin", "auditor", "system"), "insert": ("admin", "clinician")},
    "activity_review": {"select": ("admin", "auditor", "system"), "insert": ("admin", "auditor")},
    "audit_seal": {"select": ("admin", "auditor", "system"), "insert": ("admin", "auditor", "system")},
}


def roles_for(table: str, command: str, permissions: Mapping[str, tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The roles that may run the command on the table, in the order of ``ROLES``, and ``EMERGENCY`` behind them."""
    granted = (PERMISSIONS.get(table, DEFAULT) if permissions is None else permissions).get(command, ())
    if command == "select" and "clinician" in granted:
        granted = (*granted, EMERGENCY)
    return tuple(role for role in (*ROLES, EMERGENCY) if role in granted)
