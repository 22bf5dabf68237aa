"""Registers the tables, the migrations and the commands of ``piccolo core``."""

from __future__ import annotations

from pathlib import Path

from piccolo.conf.apps import AppConfig

from core.foundation import FOUNDATION
from core.principals import Principal, TenantDirectory, TokenKeyRow
from core.schema import register_shared
from core.schema.autogenerate import install
from core.tables import AuditSeal, Client, Facility, Tenant, TenantKey, User, UserActionAuditLog

register_shared("core", FOUNDATION)
install()

APP_CONFIG = AppConfig(
    app_name="core",
    migrations_folder_path=str(Path(__file__).parent.parent / "piccolo_migrations"),
    table_classes=[
        TokenKeyRow,
        TenantDirectory,
        Principal,
        Tenant,
        User,
        Facility,
        Client,
        UserActionAuditLog,
        TenantKey,
        AuditSeal,
    ],
    commands=[],
)
