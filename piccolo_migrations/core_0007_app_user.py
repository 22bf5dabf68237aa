from core.columns import CreatedAt
from core.columns import RowId
from core.columns import TenantId
from core.columns import UpdatedAt
from core.ids import uuid7
from piccolo.columns.column_types import Array
from piccolo.columns.column_types import Boolean
from piccolo.columns.column_types import Integer
from piccolo.columns.column_types import Text
from piccolo.columns.column_types import Timestamptz
from piccolo.columns.column_types import UUID
from piccolo.columns.indexes import IndexMethod
from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000007"
VERSION = "1.38.0"
DESCRIPTION = "app_user"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="User", tablename="app_user", schema=None, columns=None
    )

    manager.add_column(
        table_class_name="User",
        tablename="app_user",
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
        table_class_name="User",
        tablename="app_user",
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
        table_class_name="User",
        tablename="app_user",
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
        table_class_name="User",
        tablename="app_user",
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
        table_class_name="User",
        tablename="app_user",
        column_name="email",
        db_column_name="email",
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
        table_class_name="User",
        tablename="app_user",
        column_name="full_name",
        db_column_name="full_name",
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
        table_class_name="User",
        tablename="app_user",
        column_name="role",
        db_column_name="role",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "clinician",
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
        table_class_name="User",
        tablename="app_user",
        column_name="status",
        db_column_name="status",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "invited",
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
        table_class_name="User",
        tablename="app_user",
        column_name="mfa_enrolled",
        db_column_name="mfa_enrolled",
        column_class_name="Boolean",
        column_class=Boolean,
        params={
            "default": False,
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
        table_class_name="User",
        tablename="app_user",
        column_name="last_login_at",
        db_column_name="last_login_at",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="User",
        tablename="app_user",
        column_name="failed_logins",
        db_column_name="failed_logins",
        column_class_name="Integer",
        column_class=Integer,
        params={
            "default": 0,
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
        table_class_name="User",
        tablename="app_user",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="User",
        tablename="app_user",
        column_name="password_changed_at",
        db_column_name="password_changed_at",
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
        schema=None,
    )

    manager.add_column(
        table_class_name="User",
        tablename="app_user",
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
        schema=None,
    )

    manager.add_function(
        name="charthold.capture_app_user",
        source="""-- Records what happens to public.app_user. See core/audit/capture.py.
create function charthold.capture_app_user() returns trigger
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
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or r."last_login_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."last_login_at") or r."locked_until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."locked_until") or r."password_changed_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."password_changed_at") then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'app_user', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('email', r."email", 'full_name', r."full_name", 'role', r."role", 'status', r."status", 'mfa_enrolled', r."mfa_enrolled", 'last_login_at', r."last_login_at", 'failed_logins', r."failed_logins", 'locked_until', r."locked_until", 'password_changed_at', r."password_changed_at", 'facility_scope', r."facility_scope") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'app_user', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('email', r."email", 'full_name', r."full_name", 'role', r."role", 'status', r."status", 'mfa_enrolled', r."mfa_enrolled", 'last_login_at', r."last_login_at", 'failed_logins', r."failed_logins", 'locked_until', r."locked_until", 'password_changed_at', r."password_changed_at", 'facility_scope', r."facility_scope") as whole offset 0) as d;
    else
        if (old."email" collate "C", old."full_name" collate "C", old."role" collate "C", old."status" collate "C", old."mfa_enrolled") is distinct from (new."email" collate "C", new."full_name" collate "C", new."role" collate "C", new."status" collate "C", new."mfa_enrolled") then
            if old."email" collate "C" is distinct from new."email" collate "C" then
                before := before || jsonb_build_object('email', old."email");
                after := after || jsonb_build_object('email', new."email");
                changed := changed || 'email'::text;
            end if;
            if old."full_name" collate "C" is distinct from new."full_name" collate "C" then
                before := before || jsonb_build_object('full_name', old."full_name");
                after := after || jsonb_build_object('full_name', new."full_name");
                changed := changed || 'full_name'::text;
            end if;
            if old."role" collate "C" is distinct from new."role" collate "C" then
                before := before || jsonb_build_object('role', old."role");
                after := after || jsonb_build_object('role', new."role");
                changed := changed || 'role'::text;
            end if;
            if old."status" collate "C" is distinct from new."status" collate "C" then
                before := before || jsonb_build_object('status', old."status");
                after := after || jsonb_build_object('status', new."status");
                changed := changed || 'status'::text;
            end if;
            if old."mfa_enrolled" is distinct from new."mfa_enrolled" then
                before := before || jsonb_build_object('mfa_enrolled', old."mfa_enrolled");
                after := after || jsonb_build_object('mfa_enrolled', new."mfa_enrolled");
                changed := changed || 'mfa_enrolled'::text;
            end if;
        end if;
        if (old."last_login_at", old."failed_logins", old."locked_until", old."password_changed_at", old."facility_scope") is distinct from (new."last_login_at", new."failed_logins", new."locked_until", new."password_changed_at", new."facility_scope") then
            if old."last_login_at" is distinct from new."last_login_at" then
                before := before || jsonb_build_object('last_login_at', old."last_login_at");
                after := after || jsonb_build_object('last_login_at', new."last_login_at");
                changed := changed || 'last_login_at'::text;
            end if;
            if old."failed_logins" is distinct from new."failed_logins" then
                before := before || jsonb_build_object('failed_logins', old."failed_logins");
                after := after || jsonb_build_object('failed_logins', new."failed_logins");
                changed := changed || 'failed_logins'::text;
            end if;
            if old."locked_until" is distinct from new."locked_until" then
                before := before || jsonb_build_object('locked_until', old."locked_until");
                after := after || jsonb_build_object('locked_until', new."locked_until");
                changed := changed || 'locked_until'::text;
            end if;
            if old."password_changed_at" is distinct from new."password_changed_at" then
                before := before || jsonb_build_object('password_changed_at', old."password_changed_at");
                after := after || jsonb_build_object('password_changed_at', new."password_changed_at");
                changed := changed || 'password_changed_at'::text;
            end if;
            if old."facility_scope" is distinct from new."facility_scope" then
                before := before || jsonb_build_object('facility_scope', old."facility_scope");
                after := after || jsonb_build_object('facility_scope', new."facility_scope");
                changed := changed || 'facility_scope'::text;
            end if;
        end if;
        if (old."last_login_at", old."locked_until", old."password_changed_at") is distinct from (new."last_login_at", new."locked_until", new."password_changed_at") then
            if new."last_login_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."last_login_at") or new."locked_until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."locked_until") or new."password_changed_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."password_changed_at") then
                perform charthold.refuse_unreadable();
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'app_user', new.id,
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
        table="app_user", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="app_user", name="app_user_pkey", columns=("tenant_id", "id")
    )

    manager.add_unique(
        table="app_user",
        name="app_user_email_key",
        columns=("tenant_id", "email"),
    )

    manager.add_check(
        table="app_user",
        name="app_user_email_form",
        condition="email ~ '^[^@[:space:]]+@[^@[:space:]]+[.][^@[:space:]]+$'",
    )

    manager.add_check(
        table="app_user",
        name="app_user_email_lower_case",
        condition="email = lower(email)",
    )

    manager.add_check(
        table="app_user",
        name="app_user_failed_logins_positive",
        condition="failed_logins >= 0",
    )

    manager.add_check(
        table="app_user",
        name="app_user_full_name_given",
        condition="btrim(full_name) <> ''",
    )

    manager.add_check(
        table="app_user",
        name="app_user_role_known",
        condition="role in ('admin', 'clinician', 'billing', 'auditor', 'system')",
    )

    manager.add_check(
        table="app_user",
        name="app_user_status_known",
        condition="status in ('invited', 'active', 'locked', 'deactivated')",
    )

    manager.add_index(
        table="app_user",
        name="app_user_active_by_role",
        columns=("tenant_id", "role"),
        where="status = 'active'",
    )

    manager.add_references(
        table="app_user",
        name="app_user_tenant_id_fkey",
        columns=("tenant_id",),
        to_table="tenant",
        to_columns=("id",),
    )

    manager.add_trigger(
        table="app_user",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_app_user",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="app_user",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_app_user",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="app_user",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="app_user",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_app_user",
    )

    manager.add_trigger(
        table="app_user",
        name="follow",
        timing="after",
        events=("insert", "update", "delete"),
        function="charthold.follow_user",
    )

    manager.add_trigger(
        table="app_user",
        name="keep_history",
        timing="before",
        events=("delete",),
        function="charthold.keep_history",
    )

    manager.add_trigger(
        table="app_user",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="app_user")

    manager.add_policy(
        table="app_user",
        name="delete_by_role",
        command="delete",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
    )

    manager.add_policy(
        table="app_user",
        name="delete_everywhere",
        command="delete",
        using="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="app_user",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
    )

    manager.add_policy(
        table="app_user",
        name="insert_everywhere",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="app_user", name="select_by_role", command="select", using="true"
    )

    manager.add_policy(
        table="app_user",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_policy(
        table="app_user",
        name="update_by_role",
        command="update",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
        check="true",
    )

    manager.add_policy(
        table="app_user",
        name="update_everywhere",
        command="update",
        using="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        check="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_grant(
        table="app_user",
        privileges=("select", "insert", "update", "delete"),
        to="app_runtime",
    )

    manager.add_statement(
        name="planner_does_not_sample_app_user",
        forwards="""alter table "public"."app_user"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "email" set statistics 0,
    alter column "full_name" set statistics 0,
    alter column "last_login_at" set statistics 0,
    alter column "locked_until" set statistics 0,
    alter column "password_changed_at" set statistics 0,
    alter column "facility_scope" set statistics 0""",
        backwards="""alter table "public"."app_user"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "email" set statistics -1,
    alter column "full_name" set statistics -1,
    alter column "last_login_at" set statistics -1,
    alter column "locked_until" set statistics -1,
    alter column "password_changed_at" set statistics -1,
    alter column "facility_scope" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
