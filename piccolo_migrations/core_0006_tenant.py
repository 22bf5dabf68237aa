from core.columns import CreatedAt
from core.columns import RowId
from core.columns import UpdatedAt
from core.ids import uuid7
from piccolo.columns.column_types import JSONB
from piccolo.columns.column_types import SmallInt
from piccolo.columns.column_types import Text
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000006"
VERSION = "1.38.0"
DESCRIPTION = "tenant"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="Tenant", tablename="tenant", schema=None, columns=None
    )

    manager.add_column(
        table_class_name="Tenant",
        tablename="tenant",
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
        table_class_name="Tenant",
        tablename="tenant",
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
        table_class_name="Tenant",
        tablename="tenant",
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
        table_class_name="Tenant",
        tablename="tenant",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="Tenant",
        tablename="tenant",
        column_name="name",
        db_column_name="name",
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
        table_class_name="Tenant",
        tablename="tenant",
        column_name="status",
        db_column_name="status",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "trial",
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
        table_class_name="Tenant",
        tablename="tenant",
        column_name="settings",
        db_column_name="settings",
        column_class_name="JSONB",
        column_class=JSONB,
        params={
            "default": "{}",
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
        table_class_name="Tenant",
        tablename="tenant",
        column_name="branding",
        db_column_name="branding",
        column_class_name="JSONB",
        column_class=JSONB,
        params={
            "default": "{}",
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
        table_class_name="Tenant",
        tablename="tenant",
        column_name="time_zone",
        db_column_name="time_zone",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "UTC",
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
        table_class_name="Tenant",
        tablename="tenant",
        column_name="retention_years",
        db_column_name="retention_years",
        column_class_name="SmallInt",
        column_class=SmallInt,
        params={
            "default": 6,
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
        name="charthold.capture_tenant",
        source="""-- Records what happens to public.tenant. See core/audit/capture.py.
create function charthold.capture_tenant() returns trigger
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
        select case when octet_length(to_jsonb(r."settings")::text) > 200000 + 300 * pg_column_size(r."settings")::bigint or octet_length(to_jsonb(r."branding")::text) > 200000 + 300 * pg_column_size(r."branding")::bigint then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() else r."id" end, 'insert', 'tenant', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('slug', r."slug", 'name', r."name", 'status', r."status", 'settings', r."settings", 'branding', r."branding", 'time_zone', r."time_zone", 'retention_years', r."retention_years") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() else r."id" end, 'delete', 'tenant', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('slug', r."slug", 'name', r."name", 'status', r."status", 'settings', r."settings", 'branding', r."branding", 'time_zone', r."time_zone", 'retention_years', r."retention_years") as whole offset 0) as d;
    else
        if (old."slug" collate "C", old."name" collate "C", old."status" collate "C", old."settings"::text collate "C", old."branding"::text collate "C") is distinct from (new."slug" collate "C", new."name" collate "C", new."status" collate "C", new."settings"::text collate "C", new."branding"::text collate "C") then
            if old."slug" collate "C" is distinct from new."slug" collate "C" then
                before := before || jsonb_build_object('slug', old."slug");
                after := after || jsonb_build_object('slug', new."slug");
                changed := changed || 'slug'::text;
            end if;
            if old."name" collate "C" is distinct from new."name" collate "C" then
                before := before || jsonb_build_object('name', old."name");
                after := after || jsonb_build_object('name', new."name");
                changed := changed || 'name'::text;
            end if;
            if old."status" collate "C" is distinct from new."status" collate "C" then
                before := before || jsonb_build_object('status', old."status");
                after := after || jsonb_build_object('status', new."status");
                changed := changed || 'status'::text;
            end if;
            if old."settings"::text collate "C" is distinct from new."settings"::text collate "C" then
                before := before || jsonb_build_object('settings', old."settings");
                after := after || jsonb_build_object('settings', new."settings");
                changed := changed || 'settings'::text;
                if octet_length(to_jsonb(new."settings")::text) > 200000 + 300 * pg_column_size(new."settings")::bigint then
                    perform charthold.refuse_unreadable();
                end if;
            end if;
            if old."branding"::text collate "C" is distinct from new."branding"::text collate "C" then
                before := before || jsonb_build_object('branding', old."branding");
                after := after || jsonb_build_object('branding', new."branding");
                changed := changed || 'branding'::text;
                if octet_length(to_jsonb(new."branding")::text) > 200000 + 300 * pg_column_size(new."branding")::bigint then
                    perform charthold.refuse_unreadable();
                end if;
            end if;
        end if;
        if (old."time_zone" collate "C", old."retention_years") is distinct from (new."time_zone" collate "C", new."retention_years") then
            if old."time_zone" collate "C" is distinct from new."time_zone" collate "C" then
                before := before || jsonb_build_object('time_zone', old."time_zone");
                after := after || jsonb_build_object('time_zone', new."time_zone");
                changed := changed || 'time_zone'::text;
            end if;
            if old."retention_years" is distinct from new."retention_years" then
                before := before || jsonb_build_object('retention_years', old."retention_years");
                after := after || jsonb_build_object('retention_years', new."retention_years");
                changed := changed || 'retention_years'::text;
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() else new."id" end, 'update', 'tenant', new.id,
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

    manager.add_primary_key(table="tenant", name="tenant_pkey", columns=("id",))

    manager.add_unique(table="tenant", name="tenant_slug_key", columns=("slug",))

    manager.add_check(
        table="tenant",
        name="tenant_branding_object",
        condition="jsonb_typeof(branding) = 'object'",
    )

    manager.add_check(
        table="tenant", name="tenant_name_given", condition="btrim(name) <> ''"
    )

    manager.add_check(
        table="tenant",
        name="tenant_retention_years_possible",
        condition="retention_years between 6 and 100",
    )

    manager.add_check(
        table="tenant",
        name="tenant_settings_object",
        condition="jsonb_typeof(settings) = 'object'",
    )

    manager.add_check(
        table="tenant",
        name="tenant_slug_form",
        condition="slug ~ '^[a-z][a-z0-9-]{1,62}$'",
    )

    manager.add_check(
        table="tenant", name="tenant_slug_free", condition="slug <> 'all'"
    )

    manager.add_check(
        table="tenant",
        name="tenant_status_known",
        condition="status in ('trial', 'active', 'suspended', 'closed')",
    )

    manager.add_check(
        table="tenant",
        name="tenant_time_zone_form",
        condition="time_zone ~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$'",
    )

    manager.add_trigger(
        table="tenant",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_tenant",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="tenant",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_tenant",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="tenant",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="tenant",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_tenant",
    )

    manager.add_trigger(
        table="tenant",
        name="follow",
        timing="after",
        events=("insert", "update", "delete"),
        function="charthold.follow_tenant",
    )

    manager.add_trigger(
        table="tenant",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch",
    )

    manager.add_row_security(table="tenant")

    manager.add_policy(
        table="tenant",
        name="insert_by_role",
        command="insert",
        check="case when id = (select charthold.tenant_as('system')) then true end",
    )

    manager.add_policy(
        table="tenant", name="select_by_role", command="select", using="true"
    )

    manager.add_policy(
        table="tenant",
        name="tenant_isolation",
        using="id = any (array[(select charthold.tenant_id())])",
        check="id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_policy(
        table="tenant",
        name="update_by_role",
        command="update",
        using="case when id = (select charthold.tenant_as('admin', 'system')) then true end",
        check="true",
    )

    manager.add_policy(
        table="tenant",
        name="update_everywhere",
        command="update",
        using="case when id = (select charthold.tenant_everywhere()) then true end",
        check="case when id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_grant(
        table="tenant", privileges=("select", "update"), to="app_runtime"
    )

    manager.add_statement(
        name="planner_does_not_sample_tenant",
        forwards="""alter table "public"."tenant"
    alter column "id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "slug" set statistics 0,
    alter column "name" set statistics 0,
    alter column "settings" set statistics 0,
    alter column "branding" set statistics 0,
    alter column "time_zone" set statistics 0""",
        backwards="""alter table "public"."tenant"
    alter column "id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "slug" set statistics -1,
    alter column "name" set statistics -1,
    alter column "settings" set statistics -1,
    alter column "branding" set statistics -1,
    alter column "time_zone" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
