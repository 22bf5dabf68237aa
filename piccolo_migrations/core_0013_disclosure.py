from core.columns import CreatedAt
from core.columns import EncryptedText
from core.columns import RowId
from core.columns import TenantForeignKey
from core.columns import TenantId
from core.columns import UpdatedAt
from core.ids import uuid7
from piccolo.columns.base import OnDelete
from piccolo.columns.base import OnUpdate
from piccolo.columns.column_types import Date
from piccolo.columns.column_types import Text
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


ID = "2026-01-01T00:00:00:000013"
VERSION = "1.38.0"
DESCRIPTION = "disclosure"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="Disclosure", tablename="disclosure", schema=None, columns=None
    )

    manager.add_column(
        table_class_name="Disclosure",
        tablename="disclosure",
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
        table_class_name="Disclosure",
        tablename="disclosure",
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
        table_class_name="Disclosure",
        tablename="disclosure",
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
        table_class_name="Disclosure",
        tablename="disclosure",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="client_id",
        db_column_name="client_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": Client,
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="disclosed_on",
        db_column_name="disclosed_on",
        column_class_name="Date",
        column_class=Date,
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="recipient",
        db_column_name="recipient",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="recipient_address",
        db_column_name="recipient_address",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="description",
        db_column_name="description",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "other",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="purpose",
        db_column_name="purpose",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "other",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="basis",
        db_column_name="basis",
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
        table_class_name="Disclosure",
        tablename="disclosure",
        column_name="withheld_until",
        db_column_name="withheld_until",
        column_class_name="Date",
        column_class=Date,
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
        name="charthold.capture_disclosure",
        source="""-- Records what happens to public.disclosure. See core/audit/capture.py.
create function charthold.capture_disclosure() returns trigger
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
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or r."disclosed_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(r."disclosed_on") or r."withheld_until" not between date '0001-01-01' and date '9999-12-31' and isfinite(r."withheld_until") then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'disclosure', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('client_id', r."client_id", 'disclosed_on', r."disclosed_on", 'recipient', r."recipient", 'recipient_address', r."recipient_address", 'description', r."description", 'purpose', r."purpose", 'basis', r."basis", 'withheld_until', r."withheld_until") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'disclosure', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('client_id', r."client_id", 'disclosed_on', r."disclosed_on", 'recipient', r."recipient", 'recipient_address', r."recipient_address", 'description', r."description", 'purpose', r."purpose", 'basis', r."basis", 'withheld_until', r."withheld_until") as whole offset 0) as d;
    else
        if (old."client_id", old."disclosed_on", old."recipient" collate "C", old."recipient_address" collate "C", old."description") is distinct from (new."client_id", new."disclosed_on", new."recipient" collate "C", new."recipient_address" collate "C", new."description") then
            if old."client_id" is distinct from new."client_id" then
                before := before || jsonb_build_object('client_id', old."client_id");
                after := after || jsonb_build_object('client_id', new."client_id");
                changed := changed || 'client_id'::text;
            end if;
            if old."disclosed_on" is distinct from new."disclosed_on" then
                before := before || jsonb_build_object('disclosed_on', old."disclosed_on");
                after := after || jsonb_build_object('disclosed_on', new."disclosed_on");
                changed := changed || 'disclosed_on'::text;
            end if;
            if old."recipient" collate "C" is distinct from new."recipient" collate "C" then
                before := before || jsonb_build_object('recipient', old."recipient");
                after := after || jsonb_build_object('recipient', new."recipient");
                changed := changed || 'recipient'::text;
            end if;
            if old."recipient_address" collate "C" is distinct from new."recipient_address" collate "C" then
                before := before || jsonb_build_object('recipient_address', old."recipient_address");
                after := after || jsonb_build_object('recipient_address', new."recipient_address");
                changed := changed || 'recipient_address'::text;
            end if;
            if old."description" is distinct from new."description" then
                before := before || jsonb_build_object('description', old."description");
                after := after || jsonb_build_object('description', new."description");
                changed := changed || 'description'::text;
            end if;
        end if;
        if (old."purpose", old."basis" collate "C", old."withheld_until") is distinct from (new."purpose", new."basis" collate "C", new."withheld_until") then
            if old."purpose" is distinct from new."purpose" then
                before := before || jsonb_build_object('purpose', old."purpose");
                after := after || jsonb_build_object('purpose', new."purpose");
                changed := changed || 'purpose'::text;
            end if;
            if old."basis" collate "C" is distinct from new."basis" collate "C" then
                before := before || jsonb_build_object('basis', old."basis");
                after := after || jsonb_build_object('basis', new."basis");
                changed := changed || 'basis'::text;
            end if;
            if old."withheld_until" is distinct from new."withheld_until" then
                before := before || jsonb_build_object('withheld_until', old."withheld_until");
                after := after || jsonb_build_object('withheld_until', new."withheld_until");
                changed := changed || 'withheld_until'::text;
            end if;
        end if;
        if (old."disclosed_on", old."withheld_until") is distinct from (new."disclosed_on", new."withheld_until") then
            if new."disclosed_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(new."disclosed_on") or new."withheld_until" not between date '0001-01-01' and date '9999-12-31' and isfinite(new."withheld_until") then
                perform charthold.refuse_unreadable();
            end if;
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'disclosure', new.id,
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
        table="disclosure", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="disclosure", name="disclosure_pkey", columns=("tenant_id", "id")
    )

    manager.add_check(
        table="disclosure",
        name="disclosure_basis_known",
        condition="basis in ('required_by_law', 'public_health', 'abuse_or_neglect', 'health_oversight', 'judicial', 'law_enforcement', 'decedents', 'organ_donation', 'research', 'serious_threat', 'government_function', 'workers_compensation', 'breach', 'other')",
    )

    manager.add_check(
        table="disclosure",
        name="disclosure_not_in_the_future",
        condition="disclosed_on <= (created_at at time zone 'UTC' + interval '14 hours')::date",
    )

    manager.add_check(
        table="disclosure",
        name="disclosure_recipient_given",
        condition="btrim(recipient) <> ''",
    )

    manager.add_check(
        table="disclosure",
        name="disclosure_withheld_for_whom",
        condition="withheld_until is null or basis in ('health_oversight', 'law_enforcement')",
    )

    manager.add_index(
        table="disclosure",
        name="disclosure_by_client",
        columns=("tenant_id", "client_id", "disclosed_on"),
    )

    manager.add_references(
        table="disclosure",
        name="disclosure_client_id_fkey",
        columns=("tenant_id", "client_id"),
        to_table="client",
        to_columns=("tenant_id", "id"),
    )

    manager.add_trigger(
        table="disclosure",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_disclosure",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="disclosure",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_disclosure",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="disclosure",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="disclosure",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_disclosure",
    )

    manager.add_trigger(
        table="disclosure",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="disclosure")

    manager.add_policy(
        table="disclosure",
        name="facility_isolation",
        using='case when tenant_id = (select charthold.tenant_everywhere()) then true else exists (select from "public"."client" as parent where parent.id = "public"."disclosure"."client_id" and case when parent.tenant_id = "public"."disclosure".tenant_id then true end) end',
        check='case when tenant_id = (select charthold.tenant_everywhere()) then true else exists (select from "public"."client" as parent where parent.id = "public"."disclosure"."client_id" and case when parent.tenant_id = "public"."disclosure".tenant_id then true end) end',
        restrictive=True,
    )

    manager.add_policy(
        table="disclosure",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'clinician', 'system')) then true end",
    )

    manager.add_policy(
        table="disclosure", name="select_by_role", command="select", using="true"
    )

    manager.add_policy(
        table="disclosure",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_policy(
        table="disclosure",
        name="update_by_role",
        command="update",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
        check="true",
    )

    manager.add_grant(
        table="disclosure",
        privileges=("select", "insert", "update"),
        to="app_runtime",
    )

    manager.add_statement(
        name="planner_does_not_sample_disclosure",
        forwards="""alter table "public"."disclosure"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "client_id" set statistics 0,
    alter column "disclosed_on" set statistics 0,
    alter column "recipient" set statistics 0,
    alter column "recipient_address" set statistics 0,
    alter column "description" set statistics 0,
    alter column "purpose" set statistics 0,
    alter column "basis" set statistics 0,
    alter column "withheld_until" set statistics 0""",
        backwards="""alter table "public"."disclosure"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "client_id" set statistics -1,
    alter column "disclosed_on" set statistics -1,
    alter column "recipient" set statistics -1,
    alter column "recipient_address" set statistics -1,
    alter column "description" set statistics -1,
    alter column "purpose" set statistics -1,
    alter column "basis" set statistics -1,
    alter column "withheld_until" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
