from core.columns import RowId
from core.ids import uuid7
from piccolo.columns.column_types import SmallInt
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000004"
VERSION = "1.38.0"
DESCRIPTION = "tenant_directory"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="TenantDirectory",
        tablename="tenant_directory",
        schema="charthold",
        columns=None,
    )

    manager.add_column(
        table_class_name="TenantDirectory",
        tablename="tenant_directory",
        column_name="tenant_id",
        db_column_name="tenant_id",
        column_class_name="RowId",
        column_class=RowId,
        params={
            "default": uuid7,
            "null": False,
            "primary_key": True,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema="charthold",
    )

    manager.add_column(
        table_class_name="TenantDirectory",
        tablename="tenant_directory",
        column_name="slug",
        db_column_name="slug",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": None,
            "null": False,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema="charthold",
    )

    manager.add_column(
        table_class_name="TenantDirectory",
        tablename="tenant_directory",
        column_name="status",
        db_column_name="status",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": None,
            "null": False,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema="charthold",
    )

    manager.add_column(
        table_class_name="TenantDirectory",
        tablename="tenant_directory",
        column_name="retention_years",
        db_column_name="retention_years",
        column_class_name="SmallInt",
        column_class=SmallInt,
        params={
            "default": None,
            "null": False,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema="charthold",
    )

    manager.add_column(
        table_class_name="TenantDirectory",
        tablename="tenant_directory",
        column_name="shred_requested_at",
        db_column_name="shred_requested_at",
        column_class_name="Timestamptz",
        column_class=Timestamptz,
        params={
            "default": None,
            "null": True,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema="charthold",
    )

    manager.add_primary_key(
        table="charthold.tenant_directory",
        name="tenant_directory_pkey",
        columns=("tenant_id",),
    )

    manager.add_unique(
        table="charthold.tenant_directory",
        name="tenant_directory_slug_key",
        columns=("slug",),
    )

    manager.add_row_security(table="charthold.tenant_directory", forced=False)

    return manager
