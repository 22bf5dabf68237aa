from core.columns import RowId
from core.ids import uuid7
from piccolo.columns.column_types import Array
from piccolo.columns.column_types import Boolean
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.column_types import UUID
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000003"
VERSION = "1.38.0"
DESCRIPTION = "principal"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="Principal",
        tablename="principal",
        schema="charthold",
        columns=None,
    )

    manager.add_column(
        table_class_name="Principal",
        tablename="principal",
        column_name="user_id",
        db_column_name="user_id",
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
        table_class_name="Principal",
        tablename="principal",
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
        table_class_name="Principal",
        tablename="principal",
        column_name="role",
        db_column_name="role",
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
        table_class_name="Principal",
        tablename="principal",
        column_name="facility_scope",
        db_column_name="facility_scope",
        column_class_name="Array",
        column_class=Array,
        params={
            "default": None,
            "base_column": UUID(
                default=None,
                null=False,
                primary_key=False,
                unique=False,
                index=False,
                index_method=IndexMethod.btree,
                choices=None,
                db_column_name=None,
                secret=False,
            ),
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

    manager.add_column(
        table_class_name="Principal",
        tablename="principal",
        column_name="locked_until",
        db_column_name="locked_until",
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

    manager.add_column(
        table_class_name="Principal",
        tablename="principal",
        column_name="tenant_open",
        db_column_name="tenant_open",
        column_class_name="Boolean",
        column_class=Boolean,
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
        table_class_name="Principal",
        tablename="principal",
        column_name="standing",
        db_column_name="standing",
        column_class_name="Text",
        column_class=Text,
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
        table="charthold.principal",
        name="principal_pkey",
        columns=("tenant_id", "user_id"),
    )

    manager.add_index(
        table="charthold.principal",
        name="principal_by_name",
        columns=('((tenant_id::text || user_id::text) collate "C")',),
        unique=True,
    )

    manager.add_trigger(
        table="charthold.principal",
        name="stand",
        timing="before",
        events=("insert", "update"),
        function="charthold.stand",
    )

    manager.add_row_security(table="charthold.principal", forced=False)

    return manager
