from core.columns import CreatedAt
from core.columns import RowId
from core.columns import TenantForeignKey
from core.columns import TenantId
from core.columns import UpdatedAt
from core.ids import uuid7
from piccolo.columns.base import OnDelete
from piccolo.columns.base import OnUpdate
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.indexes import IndexMethod
from piccolo.table import Table
from core.schema.migration import MigrationManager


class Client(Table, tablename="client", schema=None):
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


ID = "2026-01-01T00:00:00:000014"
VERSION = "1.38.0"
DESCRIPTION = "emergency_access"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="EmergencyAccess",
        tablename="emergency_access",
        schema=None,
        columns=None,
    )

    manager.add_column(
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
        column_name="updated_at",
        db_column_name="updated_at",
        column_class_name="UpdatedAt",
        column_class=UpdatedAt,
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
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
        column_name="client_id",
        db_column_name="client_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": Client,
            "on_delete": OnDelete.cascade,
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
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        table_class_name="EmergencyAccess",
        tablename="emergency_access",
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
        schema=None,
    )

    manager.add_function(
        name="charthold.capture_emergency_access",
        source="""-- Records what happens to public.emergency_access. See core/audit/capture.py.
create function charthold.capture_emergency_access() returns trigger
    language plpgsql security definer
    -- How bytes and numbers are written must not be the caller's choice: the log could not be read back.
    set bytea_output = hex
    set extra_float_digits = 1
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    before jsonb := '{}';
    after jsonb := '{}';
    changed text[] := '{}';
begin
    if tg_op = 'INSERT' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, new_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or r."until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."until") then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'emergency_access', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('user_id', r."user_id", 'client_id', r."client_id", 'reason', r."reason", 'until', r."until") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'emergency_access', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('user_id', r."user_id", 'client_id', r."client_id", 'reason', r."reason", 'until', r."until") as whole offset 0) as d;
    else
        if (old."user_id", old."client_id", old."reason" collate "C", old."until") is distinct from (new."user_id", new."client_id", new."reason" collate "C", new."until") then
            if old."user_id" is distinct from new."user_id" then
                before := before || jsonb_build_object('user_id', old."user_id");
                after := after || jsonb_build_object('user_id', new."user_id");
                changed := changed || 'user_id'::text;
            end if;
            if old."client_id" is distinct from new."client_id" then
                before := before || jsonb_build_object('client_id', old."client_id");
                after := after || jsonb_build_object('client_id', new."client_id");
                changed := changed || 'client_id'::text;
            end if;
            if old."reason" collate "C" is distinct from new."reason" collate "C" then
                before := before || jsonb_build_object('reason', old."reason");
                after := after || jsonb_build_object('reason', new."reason");
                changed := changed || 'reason'::text;
            end if;
            if old."until" is distinct from new."until" then
                before := before || jsonb_build_object('until', old."until");
                after := after || jsonb_build_object('until', new."until");
                changed := changed || 'until'::text;
            end if;
        end if;
        if (old."until") is distinct from (new."until") then
            if new."until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."until") then
                perform charthold.refuse_unreadable();
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'emergency_access', new.id,
            before, after, changed,
            substr(s, 54, 36)::uuid, nullif(split_part(s, chr(31), 2), ''),
            nullif(split_part(s, chr(31), 3), '')::inet, split_part(s, chr(31), 4),
            pg_current_xact_id()::text::bigint
        );
    end if;
    return null;
end
$$""",
    )

    manager.add_storage_parameters(
        table="emergency_access", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="emergency_access",
        name="emergency_access_pkey",
        columns=("tenant_id", "id"),
    )

    manager.add_check(
        table="emergency_access",
        name="emergency_access_reason_given",
        condition="reason ~ '[^[:space:]]' and length(reason) <= 500",
    )

    manager.add_check(
        table="emergency_access",
        name="emergency_access_until_later",
        condition="until > created_at",
    )

    manager.add_index(
        table="emergency_access",
        name="emergency_access_by_client_id",
        columns=("tenant_id", "client_id"),
    )

    manager.add_index(
        table="emergency_access",
        name="emergency_access_by_user_id",
        columns=("tenant_id", "user_id"),
    )

    manager.add_index(
        table="emergency_access",
        name="emergency_access_newest_first",
        columns=("tenant_id", "created_at desc"),
    )

    manager.add_references(
        table="emergency_access",
        name="emergency_access_client_id_fkey",
        columns=("tenant_id", "client_id"),
        to_table="client",
        to_columns=("tenant_id", "id"),
        on_delete="cascade",
    )

    manager.add_references(
        table="emergency_access",
        name="emergency_access_user_id_fkey",
        columns=("tenant_id", "user_id"),
        to_table="app_user",
        to_columns=("tenant_id", "id"),
    )

    manager.add_trigger(
        table="emergency_access",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_emergency_access",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="emergency_access",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_emergency_access",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="emergency_access",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="emergency_access",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_emergency_access",
    )

    manager.add_trigger(
        table="emergency_access",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="emergency_access")

    manager.add_policy(
        table="emergency_access",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'clinician')) then true end",
    )

    manager.add_policy(
        table="emergency_access",
        name="select_by_role",
        command="select",
        using="(select charthold.tenant_as('admin', 'auditor', 'system')) is not null and case when tenant_id = (select charthold.tenant_as('admin', 'auditor', 'system')) then true end",
    )

    manager.add_policy(
        table="emergency_access",
        name="select_everywhere",
        command="select",
        using="(select charthold.tenant_everywhere()) is not null and case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="emergency_access",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_grant(table="emergency_access", to="app_runtime")

    manager.add_statement(
        name="planner_does_not_sample_emergency_access",
        forwards="""alter table "public"."emergency_access"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "user_id" set statistics 0,
    alter column "client_id" set statistics 0,
    alter column "reason" set statistics 0,
    alter column "until" set statistics 0""",
        backwards="""alter table "public"."emergency_access"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "user_id" set statistics -1,
    alter column "client_id" set statistics -1,
    alter column "reason" set statistics -1,
    alter column "until" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
