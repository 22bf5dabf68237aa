from core.columns import ActorId
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


class EmergencyAccess(Table, tablename="emergency_access", schema=None):
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


ID = "2026-01-01T00:00:00:000015"
VERSION = "1.38.0"
DESCRIPTION = "activity_review"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="ActivityReview",
        tablename="activity_review",
        schema=None,
        columns=None,
    )

    manager.add_column(
        table_class_name="ActivityReview",
        tablename="activity_review",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="reviewed_by",
        db_column_name="reviewed_by",
        column_class_name="ActorId",
        column_class=ActorId,
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="emergency_id",
        db_column_name="emergency_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": EmergencyAccess,
            "on_delete": OnDelete.cascade,
            "on_update": OnUpdate.no_action,
            "target_column": None,
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="since",
        db_column_name="since",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="until",
        db_column_name="until",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="finding",
        db_column_name="finding",
        column_class_name="Text",
        column_class=Text,
        params={
            "default": "in_order",
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
        table_class_name="ActivityReview",
        tablename="activity_review",
        column_name="note",
        db_column_name="note",
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

    manager.add_function(
        name="charthold.capture_activity_review",
        source="""-- Records what happens to public.activity_review. See core/audit/capture.py.
create function charthold.capture_activity_review() returns trigger
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
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or r."since" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."since") or r."until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."until") then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'activity_review', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('emergency_id', r."emergency_id", 'since', r."since", 'until', r."until", 'finding', r."finding", 'note', r."note") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'activity_review', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('emergency_id', r."emergency_id", 'since', r."since", 'until', r."until", 'finding', r."finding", 'note', r."note") as whole offset 0) as d;
    else
        if (old."emergency_id", old."since", old."until", old."finding" collate "C", old."note" collate "C") is distinct from (new."emergency_id", new."since", new."until", new."finding" collate "C", new."note" collate "C") then
            if old."emergency_id" is distinct from new."emergency_id" then
                before := before || jsonb_build_object('emergency_id', old."emergency_id");
                after := after || jsonb_build_object('emergency_id', new."emergency_id");
                changed := changed || 'emergency_id'::text;
            end if;
            if old."since" is distinct from new."since" then
                before := before || jsonb_build_object('since', old."since");
                after := after || jsonb_build_object('since', new."since");
                changed := changed || 'since'::text;
            end if;
            if old."until" is distinct from new."until" then
                before := before || jsonb_build_object('until', old."until");
                after := after || jsonb_build_object('until', new."until");
                changed := changed || 'until'::text;
            end if;
            if old."finding" collate "C" is distinct from new."finding" collate "C" then
                before := before || jsonb_build_object('finding', old."finding");
                after := after || jsonb_build_object('finding', new."finding");
                changed := changed || 'finding'::text;
            end if;
            if old."note" collate "C" is distinct from new."note" collate "C" then
                before := before || jsonb_build_object('note', old."note");
                after := after || jsonb_build_object('note', new."note");
                changed := changed || 'note'::text;
            end if;
        end if;
        if (old."since", old."until") is distinct from (new."since", new."until") then
            if new."since" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."since") or new."until" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(new."until") then
                perform charthold.refuse_unreadable();
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'activity_review', new.id,
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
        table="activity_review", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="activity_review",
        name="activity_review_pkey",
        columns=("tenant_id", "id"),
    )

    manager.add_check(
        table="activity_review",
        name="activity_review_finding_known",
        condition="finding in ('in_order', 'follow_up', 'violation')",
    )

    manager.add_check(
        table="activity_review",
        name="activity_review_note_length",
        condition="length(note) <= 2000",
    )

    manager.add_check(
        table="activity_review",
        name="activity_review_of_something",
        condition="num_nulls(since, until) = case when emergency_id is null then 0 else 2 end",
    )

    manager.add_check(
        table="activity_review",
        name="activity_review_of_the_past",
        condition="since < until and until <= created_at",
    )

    manager.add_index(
        table="activity_review",
        name="activity_review_by_emergency_id",
        columns=("tenant_id", "emergency_id"),
    )

    manager.add_index(
        table="activity_review",
        name="activity_review_newest_first",
        columns=("tenant_id", "created_at desc"),
    )

    manager.add_references(
        table="activity_review",
        name="activity_review_emergency_id_fkey",
        columns=("tenant_id", "emergency_id"),
        to_table="emergency_access",
        to_columns=("tenant_id", "id"),
        on_delete="cascade",
    )

    manager.add_references(
        table="activity_review",
        name="activity_review_tenant_id_fkey",
        columns=("tenant_id",),
        to_table="tenant",
        to_columns=("id",),
    )

    manager.add_trigger(
        table="activity_review",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_activity_review",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="activity_review",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_activity_review",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="activity_review",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="activity_review",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_activity_review",
    )

    manager.add_trigger(
        table="activity_review",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="activity_review")

    manager.add_policy(
        table="activity_review",
        name="insert_as_oneself",
        command="insert",
        check="reviewed_by = (select charthold.actor_id()) and created_at between (select now()) - interval '1 minute' and (select statement_timestamp()) + interval '1 minute'",
        restrictive=True,
    )

    manager.add_policy(
        table="activity_review",
        name="insert_by_another",
        command="insert",
        check="emergency_id is null and coalesce(until <= now(), true) or exists (select from public.emergency_access as e where e.id = activity_review.emergency_id and e.tenant_id = activity_review.tenant_id and e.until <= now() and e.user_id <> (select charthold.actor_id()))",
        restrictive=True,
    )

    manager.add_policy(
        table="activity_review",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'auditor')) then true end",
    )

    manager.add_policy(
        table="activity_review",
        name="insert_everywhere",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="activity_review",
        name="select_by_role",
        command="select",
        using="(select charthold.tenant_as('admin', 'auditor', 'system')) is not null and case when tenant_id = (select charthold.tenant_as('admin', 'auditor', 'system')) then true end",
    )

    manager.add_policy(
        table="activity_review",
        name="select_everywhere",
        command="select",
        using="(select charthold.tenant_everywhere()) is not null and case when tenant_id = (select charthold.tenant_everywhere()) then true end",
        restrictive=True,
    )

    manager.add_policy(
        table="activity_review",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_grant(
        table="activity_review", privileges=("select", "insert"), to="app_runtime"
    )

    manager.add_statement(
        name="planner_does_not_sample_activity_review",
        forwards="""alter table "public"."activity_review"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "reviewed_by" set statistics 0,
    alter column "emergency_id" set statistics 0,
    alter column "since" set statistics 0,
    alter column "until" set statistics 0,
    alter column "finding" set statistics 0,
    alter column "note" set statistics 0""",
        backwards="""alter table "public"."activity_review"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "reviewed_by" set statistics -1,
    alter column "emergency_id" set statistics -1,
    alter column "since" set statistics -1,
    alter column "until" set statistics -1,
    alter column "finding" set statistics -1,
    alter column "note" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
