from core.columns import CreatedAt
from piccolo.columns.column_types import Bytea
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000005"
VERSION = "1.38.0"
DESCRIPTION = "token_key"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="TokenKeyRow",
        tablename="token_key",
        schema="charthold",
        columns=None,
    )

    manager.add_column(
        table_class_name="TokenKeyRow",
        tablename="token_key",
        column_name="id",
        db_column_name="id",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": None,
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
        table_class_name="TokenKeyRow",
        tablename="token_key",
        column_name="inner_pad",
        db_column_name="inner_pad",
        column_class_name="Bytea",
        column_class=Bytea,
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
        table_class_name="TokenKeyRow",
        tablename="token_key",
        column_name="outer_pad",
        db_column_name="outer_pad",
        column_class_name="Bytea",
        column_class=Bytea,
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
        table_class_name="TokenKeyRow",
        tablename="token_key",
        column_name="created_at",
        db_column_name="created_at",
        column_class_name="CreatedAt",
        column_class=CreatedAt,
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
        table_class_name="TokenKeyRow",
        tablename="token_key",
        column_name="retired_at",
        db_column_name="retired_at",
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

    manager.add_check(
        table="charthold.token_key",
        name="token_key_pads_are_blocks",
        condition="octet_length(inner_pad) = 64 and octet_length(outer_pad) = 64",
    )

    manager.add_row_security(table="charthold.token_key", forced=False)

    return manager
