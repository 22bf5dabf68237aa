from core.columns import RowId
from core.ids import uuid7
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.column_types import UUID
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000002"
VERSION = "1.38.0"
DESCRIPTION = "emergency"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="EmergencyRow",
        tablename="emergency",
        schema="charthold",
        columns=None,
    )

    manager.add_column(
        table_class_name="EmergencyRow",
        tablename="emergency",
        column_name="id",
        db_column_name="id",
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
        table_class_name="EmergencyRow",
        tablename="emergency",
        column_name="tenant_id",
        db_column_name="tenant_id",
        column_class_name="UUID",
        column_class=UUID,
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
        table_class_name="EmergencyRow",
        tablename="emergency",
        column_name="user_id",
        db_column_name="user_id",
        column_class_name="UUID",
        column_class=UUID,
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
        table_class_name="EmergencyRow",
        tablename="emergency",
        column_name="client_id",
        db_column_name="client_id",
        column_class_name="UUID",
        column_class=UUID,
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
        table_class_name="EmergencyRow",
        tablename="emergency",
        column_name="until",
        db_column_name="until",
        column_class_name="Timestamptz",
        column_class=Timestamptz,
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

    manager.add_primary_key(
        table="charthold.emergency",
        name="emergency_pkey",
        columns=("tenant_id", "id"),
    )

    manager.add_index(
        table="charthold.emergency",
        name="emergency_by_name",
        columns=(
            "((tenant_id::text || 'emer' || replace(id::text, '-', '')) collate \"C\")",
        ),
        unique=True,
    )

    manager.add_row_security(table="charthold.emergency", forced=False)

    return manager
