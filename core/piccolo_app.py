"""Registers the tables, the migrations and the commands of ``piccolo core``."""

from __future__ import annotations

from pathlib import Path

from core.commands.streams import stop_quietly

stop_quietly()  # the rest takes a second

# ruff: noqa: E402
from piccolo.conf.apps import AppConfig, Command

from core.access.principals import EmergencyRow, Principal, TenantDirectory, TokenKeyRow
from core.audit.partitions import make_partitions
from core.commands.audit import audit_history, audit_search, audit_who_saw
from core.commands.disclosures import disclosures
from core.commands.doctor import doctor
from core.commands.emergencies import emergencies, sign_off
from core.commands.family import refuse_unknown
from core.commands.import_synthea import import_synthea
from core.commands.install_token_key import install_token_key
from core.commands.partitions import partitions
from core.commands.pooler import pooler
from core.commands.record_set import record_set
from core.commands.reindex import reindex
from core.commands.rotate_keys import rotate_keys
from core.commands.seal_audit import seal_audit
from core.commands.shred_tenant import shred_tenant
from core.commands.verify_audit import verify_audit
from core.compliance.disclosures import Disclosure
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import ActivityReview
from core.foundation import FOUNDATION
from core.schema import register_shared
from core.schema.runner import after_forwards, install
from core.tables import AuditSeal, Client, Facility, Tenant, TenantKey, User, UserActionAuditLog
from core.tokenkeys import settle_token_key

register_shared("core", FOUNDATION)
install()


async def settle() -> None:
    """What the steps cannot hold: the key that signs scopes follows from the configuration, partitions from the day."""
    await settle_token_key()
    await make_partitions()


after_forwards("core", settle)

COMMANDS = (
    audit_history,
    audit_search,
    audit_who_saw,
    disclosures,
    doctor,
    emergencies,
    import_synthea,
    install_token_key,
    partitions,
    pooler,
    record_set,
    reindex,
    rotate_keys,
    seal_audit,
    shred_tenant,
    sign_off,
    verify_audit,
)

refuse_unknown("core", [callable_.__name__ for callable_ in COMMANDS])

APP_CONFIG = AppConfig(
    app_name="core",
    migrations_folder_path=str(Path(__file__).parent.parent / "piccolo_migrations"),
    table_classes=[
        TokenKeyRow,
        TenantDirectory,
        Principal,
        EmergencyRow,
        Tenant,
        User,
        Facility,
        Client,
        Disclosure,
        UserActionAuditLog,
        TenantKey,
        AuditSeal,
        EmergencyAccess,
        ActivityReview,
    ],
    commands=[Command(callable=callable_) for callable_ in COMMANDS],
)
