from core.columns import CreatedAt
from core.columns import RowId
from core.columns import TenantId
from core.columns import UpdatedAt
from core.ids import uuid7
from piccolo.columns.column_types import Integer
from piccolo.columns.column_types import JSONB
from piccolo.columns.column_types import Text
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000009"
VERSION = "1.38.0"
DESCRIPTION = "facility"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="Facility", tablename="facility", schema=None, columns=None
    )

    manager.add_column(
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="kind",
        db_column_name="kind",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "clinic",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="npi",
        db_column_name="npi",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="address",
        db_column_name="address",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="phone",
        db_column_name="phone",
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="license_number",
        db_column_name="license_number",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="capacity",
        db_column_name="capacity",
        column_class_name="Integer",
        column_class=Integer,
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
        table_class_name="Facility",
        tablename="facility",
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
        table_class_name="Facility",
        tablename="facility",
        column_name="status",
        db_column_name="status",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "active",
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
        name="charthold.capture_facility",
        source="""-- Records what happens to public.facility. See core/audit/capture.py.
create function charthold.capture_facility() returns trigger
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
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or octet_length(to_jsonb(r."address")::text) > 200000 + 300 * pg_column_size(r."address")::bigint or octet_length(to_jsonb(r."settings")::text) > 200000 + 300 * pg_column_size(r."settings")::bigint then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'facility', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('name', r."name", 'kind', r."kind", 'npi', r."npi", 'address', r."address", 'phone', r."phone", 'time_zone', r."time_zone", 'license_number', r."license_number", 'capacity', r."capacity", 'settings', r."settings", 'status', r."status") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'facility', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('name', r."name", 'kind', r."kind", 'npi', r."npi", 'address', r."address", 'phone', r."phone", 'time_zone', r."time_zone", 'license_number', r."license_number", 'capacity', r."capacity", 'settings', r."settings", 'status', r."status") as whole offset 0) as d;
    else
        if (old."name" collate "C", old."kind" collate "C", old."npi" collate "C", old."address"::text collate "C", old."phone" collate "C") is distinct from (new."name" collate "C", new."kind" collate "C", new."npi" collate "C", new."address"::text collate "C", new."phone" collate "C") then
            if old."name" collate "C" is distinct from new."name" collate "C" then
                before := before || jsonb_build_object('name', old."name");
                after := after || jsonb_build_object('name', new."name");
                changed := changed || 'name'::text;
            end if;
            if old."kind" collate "C" is distinct from new."kind" collate "C" then
                before := before || jsonb_build_object('kind', old."kind");
                after := after || jsonb_build_object('kind', new."kind");
                changed := changed || 'kind'::text;
            end if;
            if old."npi" collate "C" is distinct from new."npi" collate "C" then
                before := before || jsonb_build_object('npi', old."npi");
                after := after || jsonb_build_object('npi', new."npi");
                changed := changed || 'npi'::text;
            end if;
            if old."address"::text collate "C" is distinct from new."address"::text collate "C" then
                before := before || jsonb_build_object('address', old."address");
                after := after || jsonb_build_object('address', new."address");
                changed := changed || 'address'::text;
                if octet_length(to_jsonb(new."address")::text) > 200000 + 300 * pg_column_size(new."address")::bigint then
                    perform charthold.refuse_unreadable();
                end if;
            end if;
            if old."phone" collate "C" is distinct from new."phone" collate "C" then
                before := before || jsonb_build_object('phone', old."phone");
                after := after || jsonb_build_object('phone', new."phone");
                changed := changed || 'phone'::text;
            end if;
        end if;
        if (old."time_zone" collate "C", old."license_number" collate "C", old."capacity", old."settings"::text collate "C", old."status" collate "C") is distinct from (new."time_zone" collate "C", new."license_number" collate "C", new."capacity", new."settings"::text collate "C", new."status" collate "C") then
            if old."time_zone" collate "C" is distinct from new."time_zone" collate "C" then
                before := before || jsonb_build_object('time_zone', old."time_zone");
                after := after || jsonb_build_object('time_zone', new."time_zone");
                changed := changed || 'time_zone'::text;
            end if;
            if old."license_number" collate "C" is distinct from new."license_number" collate "C" then
                before := before || jsonb_build_object('license_number', old."license_number");
                after := after || jsonb_build_object('license_number', new."license_number");
                changed := changed || 'license_number'::text;
            end if;
            if old."capacity" is distinct from new."capacity" then
                before := before || jsonb_build_object('capacity', old."capacity");
                after := after || jsonb_build_object('capacity', new."capacity");
                changed := changed || 'capacity'::text;
            end if;
            if old."settings"::text collate "C" is distinct from new."settings"::text collate "C" then
                before := before || jsonb_build_object('settings', old."settings");
                after := after || jsonb_build_object('settings', new."settings");
                changed := changed || 'settings'::text;
                if octet_length(to_jsonb(new."settings")::text) > 200000 + 300 * pg_column_size(new."settings")::bigint then
                    perform charthold.refuse_unreadable();
                end if;
            end if;
            if old."status" collate "C" is distinct from new."status" collate "C" then
                before := before || jsonb_build_object('status', old."status");
                after := after || jsonb_build_object('status', new."status");
                changed := changed || 'status'::text;
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'facility', new.id,
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
        table="facility", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="facility", name="facility_pkey", columns=("tenant_id", "id")
    )

    manager.add_check(
        table="facility",
        name="facility_address_object",
        condition="jsonb_typeof(address) = 'object'",
    )

    manager.add_check(
        table="facility",
        name="facility_capacity_positive",
        condition="capacity > 0",
    )

    manager.add_check(
        table="facility",
        name="facility_kind_known",
        condition="kind in ('hospital', 'clinic', 'practice', 'laboratory', 'pharmacy', 'imaging', 'home_health', 'other')",
    )

    manager.add_check(
        table="facility",
        name="facility_name_given",
        condition="btrim(name) <> ''",
    )

    manager.add_check(
        table="facility",
        name="facility_npi_valid",
        condition="charthold.npi_is_valid(npi)",
    )

    manager.add_check(
        table="facility",
        name="facility_settings_object",
        condition="jsonb_typeof(settings) = 'object'",
    )

    manager.add_check(
        table="facility",
        name="facility_status_known",
        condition="status in ('active', 'inactive')",
    )

    manager.add_check(
        table="facility",
        name="facility_time_zone_form",
        condition="time_zone ~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$'",
    )

    manager.add_index(
        table="facility",
        name="facility_active_name_key",
        columns=("tenant_id", "name"),
        unique=True,
        where="status = 'active'",
    )

    manager.add_references(
        table="facility",
        name="facility_tenant_id_fkey",
        columns=("tenant_id",),
        to_table="tenant",
        to_columns=("id",),
    )

    manager.add_trigger(
        table="facility",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_facility",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="facility",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_facility",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="facility",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="facility",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_facility",
    )

    manager.add_trigger(
        table="facility",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="facility")

    manager.add_policy(
        table="facility",
        name="delete_by_role",
        command="delete",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
    )

    manager.add_policy(
        table="facility",
        name="delete_everywhere",
        command="delete",
        using="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="facility",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
    )

    manager.add_policy(
        table="facility",
        name="insert_everywhere",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="facility", name="select_by_role", command="select", using="true"
    )

    manager.add_policy(
        table="facility",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_policy(
        table="facility",
        name="update_by_role",
        command="update",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
        check="true",
    )

    manager.add_policy(
        table="facility",
        name="update_everywhere",
        command="update",
        using="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        check="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_grant(
        table="facility",
        privileges=("select", "insert", "update", "delete"),
        to="app_runtime",
    )

    manager.add_statement(
        name="planner_does_not_sample_facility",
        forwards="""alter table "public"."facility"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "name" set statistics 0,
    alter column "npi" set statistics 0,
    alter column "address" set statistics 0,
    alter column "phone" set statistics 0,
    alter column "time_zone" set statistics 0,
    alter column "license_number" set statistics 0,
    alter column "settings" set statistics 0""",
        backwards="""alter table "public"."facility"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "name" set statistics -1,
    alter column "npi" set statistics -1,
    alter column "address" set statistics -1,
    alter column "phone" set statistics -1,
    alter column "time_zone" set statistics -1,
    alter column "license_number" set statistics -1,
    alter column "settings" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
