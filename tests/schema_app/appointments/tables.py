"""Appointments of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from piccolo.columns import OnDelete, Text, Timestamptz

from core.columns import EncryptedText, TenantForeignKey
from core.schema import Check, Index, SchemaObject
from core.tables import Client, TenantTable


class Appointment(TenantTable, tablename="appointment"):
    """When a client is seen. Isolation, audit, grants and the composite key come with ``TenantTable``."""

    client_id = TenantForeignKey(Client, on_delete=OnDelete.restrict)
    starts_at = Timestamptz(default=None)
    status = Text(default="booked")
    note = EncryptedText(identifier="other", null=True)

    permissions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "select": ("clinician", "billing", "admin", "auditor"),
        "insert": ("clinician", "admin"),
        "update": ("clinician", "admin"),
        "delete": ("admin",),
    }

    declares: ClassVar[Sequence[SchemaObject]] = (
        Check(name="appointment_status_known", condition="status in ('booked', 'kept', 'missed', 'cancelled')"),
        Index(name="appointment_upcoming", columns=("tenant_id", "starts_at"), where="status = 'booked'"),
    )
