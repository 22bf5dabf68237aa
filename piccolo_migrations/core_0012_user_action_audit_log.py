from core.columns import CreatedAt
from core.columns import Inet
from core.columns import LogId
from core.columns import RowId
from core.columns import TenantForeignKey
from core.columns import TenantId
from core.columns import TransactionId
from core.ids import uuid7
from piccolo.columns.base import OnDelete
from piccolo.columns.base import OnUpdate
from piccolo.columns.column_types import Array
from piccolo.columns.column_types import JSONB
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import UUID
from piccolo.columns.indexes import IndexMethod
from piccolo.table import Table
from core.schema.migration import MigrationManager


class User(Table, tablename="app_user", schema=None):
    id = RowId(
        default=uuid7,
        null=False,
        primary_key=True,
        unique=False,
        index=False,
        index_method=IndexMethod.btree,
        choices=None,
        db_column_name=None,
        secret=False,
    )


ID = "2026-01-01T00:00:00:000012"
VERSION = "1.38.0"
DESCRIPTION = "user_action_audit_log"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        schema=None,
        columns=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="id",
        db_column_name="id",
        column_class_name="LogId",
        column_class=LogId,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="tenant_id",
        db_column_name="tenant_id",
        column_class_name="TenantId",
        column_class=TenantId,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="occurred_at",
        db_column_name="occurred_at",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="user_id",
        db_column_name="user_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": User,
            "on_delete": OnDelete.restrict,
            "on_update": OnUpdate.no_action,
            "target_column": None,
            "null": False,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="action_type",
        db_column_name="action_type",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="table_name",
        db_column_name="table_name",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="record_id",
        db_column_name="record_id",
        column_class_name="UUID",
        column_class=UUID,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="old_values",
        db_column_name="old_values",
        column_class_name="JSONB",
        column_class=JSONB,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="new_values",
        db_column_name="new_values",
        column_class_name="JSONB",
        column_class=JSONB,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="changed_columns",
        db_column_name="changed_columns",
        column_class_name="Array",
        column_class=Array,
        params={
            "default": None,
            "base_column": Text(
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="reason",
        db_column_name="reason",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="request_id",
        db_column_name="request_id",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="source_ip",
        db_column_name="source_ip",
        column_class_name="Inet",
        column_class=Inet,
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
        schema=None,
    )

    manager.add_column(
        table_class_name="UserActionAuditLog",
        tablename="user_action_audit_log",
        column_name="transaction_id",
        db_column_name="transaction_id",
        column_class_name="TransactionId",
        column_class=TransactionId,
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
        schema=None,
    )

    manager.add_partitions(
        table="user_action_audit_log", by="range (occurred_at)"
    )

    manager.add_primary_key(
        table="user_action_audit_log",
        name="user_action_audit_log_pkey",
        columns=("tenant_id", "occurred_at", "id"),
    )

    manager.add_index(
        table="user_action_audit_log",
        name="user_action_audit_log_by_record",
        columns=("tenant_id", "record_id", "occurred_at"),
    )

    manager.add_index(
        table="user_action_audit_log",
        name="user_action_audit_log_by_transaction",
        columns=("transaction_id",),
        method="brin",
    )

    manager.add_index(
        table="user_action_audit_log",
        name="user_action_audit_log_by_user",
        columns=("tenant_id", "user_id", "occurred_at"),
    )

    manager.add_trigger(
        table="user_action_audit_log",
        name="append_only",
        timing="before",
        events=("update", "delete"),
        function="charthold.refuse_change",
    )

    manager.add_trigger(
        table="user_action_audit_log",
        name="append_only_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_change",
    )

    manager.add_row_security(table="user_action_audit_log")

    manager.add_policy(
        table="user_action_audit_log",
        name="insert_by_role",
        command="insert",
        check="true",
    )

    manager.add_policy(
        table="user_action_audit_log",
        name="select_by_role",
        command="select",
        using="(select charthold.tenant_as('admin', 'auditor', 'system')) is not null and case when tenant_id = (select charthold.tenant_as('admin', 'auditor', 'system')) then true end",
    )

    manager.add_policy(
        table="user_action_audit_log",
        name="select_everywhere",
        command="select",
        using="(select charthold.tenant_everywhere()) is not null and case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="user_action_audit_log",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_grant(table="user_action_audit_log", to="app_auditor")

    manager.add_grant(table="user_action_audit_log", to="app_runtime")

    manager.add_statement(
        name="planner_does_not_sample_user_action_audit_log",
        forwards="""alter table "public"."user_action_audit_log"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "occurred_at" set statistics 0,
    alter column "user_id" set statistics 0,
    alter column "record_id" set statistics 0,
    alter column "old_values" set statistics 0,
    alter column "new_values" set statistics 0,
    alter column "changed_columns" set statistics 0,
    alter column "reason" set statistics 0,
    alter column "request_id" set statistics 0,
    alter column "source_ip" set statistics 0""",
        backwards="""alter table "public"."user_action_audit_log"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "occurred_at" set statistics -1,
    alter column "user_id" set statistics -1,
    alter column "record_id" set statistics -1,
    alter column "old_values" set statistics -1,
    alter column "new_values" set statistics -1,
    alter column "changed_columns" set statistics -1,
    alter column "reason" set statistics -1,
    alter column "request_id" set statistics -1,
    alter column "source_ip" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    manager.add_statement(
        name="user_action_audit_log_default",
        forwards="""do $$
begin
    create table public.user_action_audit_log_default partition of public.user_action_audit_log default;
    perform charthold.keep_partition('user_action_audit_log_default');
end
$$""",
        backwards="drop table public.user_action_audit_log_default",
        after_tables=True,
        declared=True,
    )

    return manager
