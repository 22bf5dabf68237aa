from core.columns import BlindIndex
from core.columns import CreatedAt
from core.columns import EncryptedDate
from core.columns import EncryptedJSON
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


class Facility(Table, tablename="facility", schema=None):
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


ID = "2026-01-01T00:00:00:000011"
VERSION = "1.38.0"
DESCRIPTION = "client"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_table(
        class_name="Client", tablename="client", schema=None, columns=None
    )

    manager.add_column(
        table_class_name="Client",
        tablename="client",
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
        table_class_name="Client",
        tablename="client",
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
        table_class_name="Client",
        tablename="client",
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
        table_class_name="Client",
        tablename="client",
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
        table_class_name="Client",
        tablename="client",
        column_name="facility_id",
        db_column_name="facility_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": Facility,
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
        table_class_name="Client",
        tablename="client",
        column_name="user_id",
        db_column_name="user_id",
        column_class_name="TenantForeignKey",
        column_class=TenantForeignKey,
        params={
            "references": User,
            "on_delete": OnDelete.restrict,
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
        table_class_name="Client",
        tablename="client",
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

    manager.add_column(
        table_class_name="Client",
        tablename="client",
        column_name="first_name",
        db_column_name="first_name",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "name",
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
        table_class_name="Client",
        tablename="client",
        column_name="last_name",
        db_column_name="last_name",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "name",
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
        table_class_name="Client",
        tablename="client",
        column_name="date_of_birth",
        db_column_name="date_of_birth",
        column_class_name="EncryptedDate",
        column_class=EncryptedDate,
        params={
            "default": None,
            "identifier": "date",
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
        table_class_name="Client",
        tablename="client",
        column_name="ssn",
        db_column_name="ssn",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "ssn",
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
        table_class_name="Client",
        tablename="client",
        column_name="mrn",
        db_column_name="mrn",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "mrn",
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
        table_class_name="Client",
        tablename="client",
        column_name="email",
        db_column_name="email",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "email",
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
        table_class_name="Client",
        tablename="client",
        column_name="phone",
        db_column_name="phone",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "telephone",
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
        table_class_name="Client",
        tablename="client",
        column_name="address",
        db_column_name="address",
        column_class_name="EncryptedJSON",
        column_class=EncryptedJSON,
        params={
            "default": None,
            "identifier": "geography",
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
        table_class_name="Client",
        tablename="client",
        column_name="insurance_member_id",
        db_column_name="insurance_member_id",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "health_plan",
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
        table_class_name="Client",
        tablename="client",
        column_name="emergency_contact",
        db_column_name="emergency_contact",
        column_class_name="EncryptedJSON",
        column_class=EncryptedJSON,
        params={
            "default": None,
            "identifier": "name",
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
        table_class_name="Client",
        tablename="client",
        column_name="notes",
        db_column_name="notes",
        column_class_name="EncryptedText",
        column_class=EncryptedText,
        params={
            "default": None,
            "identifier": "other",
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
        table_class_name="Client",
        tablename="client",
        column_name="admitted_on",
        db_column_name="admitted_on",
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

    manager.add_column(
        table_class_name="Client",
        tablename="client",
        column_name="discharged_on",
        db_column_name="discharged_on",
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

    manager.add_column(
        table_class_name="Client",
        tablename="client",
        column_name="last_name_folded",
        db_column_name="last_name_folded",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["last_name"],
            "kind": "folded",
            "length": None,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="last_name_prefix",
        db_column_name="last_name_prefix",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["last_name"],
            "kind": "prefix",
            "length": 3,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="date_of_birth_exact",
        db_column_name="date_of_birth_exact",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["date_of_birth"],
            "kind": "exact",
            "length": None,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="ssn_exact",
        db_column_name="ssn_exact",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["ssn"],
            "kind": "exact",
            "length": None,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="ssn_last_four",
        db_column_name="ssn_last_four",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["ssn"],
            "kind": "last",
            "length": 4,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="mrn_exact",
        db_column_name="mrn_exact",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["mrn"],
            "kind": "exact",
            "length": None,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="email_folded",
        db_column_name="email_folded",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["email"],
            "kind": "folded",
            "length": None,
            "parts": [],
            "bits": 64,
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
        table_class_name="Client",
        tablename="client",
        column_name="phone_last_four",
        db_column_name="phone_last_four",
        column_class_name="BlindIndex",
        column_class=BlindIndex,
        params={
            "default": None,
            "of": ["phone"],
            "kind": "last",
            "length": 4,
            "parts": [],
            "bits": 64,
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
        name="charthold.capture_client",
        source="""-- Records what happens to public.client. See core/audit/capture.py.
create function charthold.capture_client() returns trigger
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
        select case when r."created_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."created_at") or r."updated_at" not between timestamptz '0001-01-01 00:00:00+00' and timestamptz '9999-12-31 23:59:59.999999+00' and isfinite(r."updated_at") or r."admitted_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(r."admitted_on") or r."discharged_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(r."discharged_on") or octet_length(r."last_name_folded") <> 8 or octet_length(r."last_name_prefix") <> 8 or octet_length(r."date_of_birth_exact") <> 8 or octet_length(r."ssn_exact") <> 8 or octet_length(r."ssn_last_four") <> 8 or octet_length(r."mrn_exact") <> 8 or octet_length(r."email_folded") <> 8 or octet_length(r."phone_last_four") <> 8 then charthold.refuse_unreadable() when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'insert', 'client', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, new_rows as r, lateral (select jsonb_build_object('facility_id', r."facility_id", 'user_id', r."user_id", 'status', r."status", 'first_name', r."first_name", 'last_name', r."last_name", 'date_of_birth', r."date_of_birth", 'ssn', r."ssn", 'mrn', r."mrn", 'email', r."email", 'phone', r."phone", 'address', r."address", 'insurance_member_id', r."insurance_member_id", 'emergency_contact', r."emergency_contact", 'notes', r."notes", 'admitted_on', r."admitted_on", 'discharged_on', r."discharged_on") as whole offset 0) as d;
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, user_id, request_id, source_ip, reason, transaction_id)
        select case when pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole) then charthold.refuse_large() when r."tenant_id" = who.tenant then r."tenant_id" else charthold.refuse_stranger() end, 'delete', 'client', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from (
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who, old_rows as r, lateral (select jsonb_build_object('facility_id', r."facility_id", 'user_id', r."user_id", 'status', r."status", 'first_name', r."first_name", 'last_name', r."last_name", 'date_of_birth', r."date_of_birth", 'ssn', r."ssn", 'mrn', r."mrn", 'email', r."email", 'phone', r."phone", 'address', r."address", 'insurance_member_id', r."insurance_member_id", 'emergency_contact', r."emergency_contact", 'notes', r."notes", 'admitted_on', r."admitted_on", 'discharged_on', r."discharged_on") as whole offset 0) as d;
    else
        if (old."facility_id", old."user_id", old."status" collate "C", old."first_name", old."last_name") is distinct from (new."facility_id", new."user_id", new."status" collate "C", new."first_name", new."last_name") then
            if old."facility_id" is distinct from new."facility_id" then
                before := before || jsonb_build_object('facility_id', old."facility_id");
                after := after || jsonb_build_object('facility_id', new."facility_id");
                changed := changed || 'facility_id'::text;
            end if;
            if old."user_id" is distinct from new."user_id" then
                before := before || jsonb_build_object('user_id', old."user_id");
                after := after || jsonb_build_object('user_id', new."user_id");
                changed := changed || 'user_id'::text;
            end if;
            if old."status" collate "C" is distinct from new."status" collate "C" then
                before := before || jsonb_build_object('status', old."status");
                after := after || jsonb_build_object('status', new."status");
                changed := changed || 'status'::text;
            end if;
            if old."first_name" is distinct from new."first_name" then
                before := before || jsonb_build_object('first_name', old."first_name");
                after := after || jsonb_build_object('first_name', new."first_name");
                changed := changed || 'first_name'::text;
            end if;
            if old."last_name" is distinct from new."last_name" then
                before := before || jsonb_build_object('last_name', old."last_name");
                after := after || jsonb_build_object('last_name', new."last_name");
                changed := changed || 'last_name'::text;
            end if;
        end if;
        if (old."date_of_birth", old."ssn", old."mrn", old."email", old."phone") is distinct from (new."date_of_birth", new."ssn", new."mrn", new."email", new."phone") then
            if old."date_of_birth" is distinct from new."date_of_birth" then
                before := before || jsonb_build_object('date_of_birth', old."date_of_birth");
                after := after || jsonb_build_object('date_of_birth', new."date_of_birth");
                changed := changed || 'date_of_birth'::text;
            end if;
            if old."ssn" is distinct from new."ssn" then
                before := before || jsonb_build_object('ssn', old."ssn");
                after := after || jsonb_build_object('ssn', new."ssn");
                changed := changed || 'ssn'::text;
            end if;
            if old."mrn" is distinct from new."mrn" then
                before := before || jsonb_build_object('mrn', old."mrn");
                after := after || jsonb_build_object('mrn', new."mrn");
                changed := changed || 'mrn'::text;
            end if;
            if old."email" is distinct from new."email" then
                before := before || jsonb_build_object('email', old."email");
                after := after || jsonb_build_object('email', new."email");
                changed := changed || 'email'::text;
            end if;
            if old."phone" is distinct from new."phone" then
                before := before || jsonb_build_object('phone', old."phone");
                after := after || jsonb_build_object('phone', new."phone");
                changed := changed || 'phone'::text;
            end if;
        end if;
        if (old."address", old."insurance_member_id", old."emergency_contact", old."notes", old."admitted_on") is distinct from (new."address", new."insurance_member_id", new."emergency_contact", new."notes", new."admitted_on") then
            if old."address" is distinct from new."address" then
                before := before || jsonb_build_object('address', old."address");
                after := after || jsonb_build_object('address', new."address");
                changed := changed || 'address'::text;
            end if;
            if old."insurance_member_id" is distinct from new."insurance_member_id" then
                before := before || jsonb_build_object('insurance_member_id', old."insurance_member_id");
                after := after || jsonb_build_object('insurance_member_id', new."insurance_member_id");
                changed := changed || 'insurance_member_id'::text;
            end if;
            if old."emergency_contact" is distinct from new."emergency_contact" then
                before := before || jsonb_build_object('emergency_contact', old."emergency_contact");
                after := after || jsonb_build_object('emergency_contact', new."emergency_contact");
                changed := changed || 'emergency_contact'::text;
            end if;
            if old."notes" is distinct from new."notes" then
                before := before || jsonb_build_object('notes', old."notes");
                after := after || jsonb_build_object('notes', new."notes");
                changed := changed || 'notes'::text;
            end if;
            if old."admitted_on" is distinct from new."admitted_on" then
                before := before || jsonb_build_object('admitted_on', old."admitted_on");
                after := after || jsonb_build_object('admitted_on', new."admitted_on");
                changed := changed || 'admitted_on'::text;
            end if;
        end if;
        if (old."discharged_on") is distinct from (new."discharged_on") then
            if old."discharged_on" is distinct from new."discharged_on" then
                before := before || jsonb_build_object('discharged_on', old."discharged_on");
                after := after || jsonb_build_object('discharged_on', new."discharged_on");
                changed := changed || 'discharged_on'::text;
            end if;
        end if;
        if (old."last_name_folded", old."last_name_prefix", old."date_of_birth_exact", old."ssn_exact", old."ssn_last_four", old."mrn_exact", old."email_folded", old."phone_last_four", old."admitted_on", old."discharged_on") is distinct from (new."last_name_folded", new."last_name_prefix", new."date_of_birth_exact", new."ssn_exact", new."ssn_last_four", new."mrn_exact", new."email_folded", new."phone_last_four", new."admitted_on", new."discharged_on") then
            if (old."last_name_folded") is distinct from (new."last_name_folded") and (old."last_name") is not distinct from (new."last_name") or (old."last_name_prefix") is distinct from (new."last_name_prefix") and (old."last_name") is not distinct from (new."last_name") or (old."date_of_birth_exact") is distinct from (new."date_of_birth_exact") and (old."date_of_birth") is not distinct from (new."date_of_birth") or (old."ssn_exact") is distinct from (new."ssn_exact") and (old."ssn") is not distinct from (new."ssn") or (old."ssn_last_four") is distinct from (new."ssn_last_four") and (old."ssn") is not distinct from (new."ssn") or (old."mrn_exact") is distinct from (new."mrn_exact") and (old."mrn") is not distinct from (new."mrn") or (old."email_folded") is distinct from (new."email_folded") and (old."email") is not distinct from (new."email") or (old."phone_last_four") is distinct from (new."phone_last_four") and (old."phone") is not distinct from (new."phone") then
                raise exception using errcode = 'CH016', message = 'a blind index changes with its value only';
            end if;
            if new."admitted_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(new."admitted_on") or new."discharged_on" not between date '0001-01-01' and date '9999-12-31' and isfinite(new."discharged_on") or octet_length(new."last_name_folded") <> 8 or octet_length(new."last_name_prefix") <> 8 or octet_length(new."date_of_birth_exact") <> 8 or octet_length(new."ssn_exact") <> 8 or octet_length(new."ssn_last_four") <> 8 or octet_length(new."mrn_exact") <> 8 or octet_length(new."email_folded") <> 8 or octet_length(new."phone_last_four") <> 8 then
                perform charthold.refuse_unreadable();
            end if;
            changed := changed || array_remove(array[case when old."last_name_folded" is distinct from new."last_name_folded" then 'last_name_folded' end, case when old."last_name_prefix" is distinct from new."last_name_prefix" then 'last_name_prefix' end, case when old."date_of_birth_exact" is distinct from new."date_of_birth_exact" then 'date_of_birth_exact' end, case when old."ssn_exact" is distinct from new."ssn_exact" then 'ssn_exact' end, case when old."ssn_last_four" is distinct from new."ssn_last_four" then 'ssn_last_four' end, case when old."mrn_exact" is distinct from new."mrn_exact" then 'mrn_exact' end, case when old."email_folded" is distinct from new."email_folded" then 'email_folded' end, case when old."phone_last_four" is distinct from new."phone_last_four" then 'phone_last_four' end]::text[], null);
        end if;
        if changed = '{}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, user_id, request_id, source_ip, reason, transaction_id)
        values (
            case when pg_column_size(before) > 8000 and charthold.is_large(before) or pg_column_size(after) > 8000 and charthold.is_large(after) then charthold.refuse_large() when new."tenant_id" = substr(s, 18, 36)::uuid then new."tenant_id" else charthold.refuse_stranger() end, 'update', 'client', new.id,
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
        table="client", parameters={"fillfactor": "80"}
    )

    manager.add_primary_key(
        table="client", name="client_pkey", columns=("tenant_id", "id")
    )

    manager.add_check(
        table="client",
        name="client_dates_in_order",
        condition="discharged_on >= admitted_on",
    )

    manager.add_check(
        table="client",
        name="client_discharged_has_date",
        condition="(status = 'discharged') <= (discharged_on is not null)",
    )

    manager.add_check(
        table="client",
        name="client_status_known",
        condition="status in ('referred', 'active', 'on_hold', 'discharged', 'deceased')",
    )

    manager.add_index(
        table="client",
        name="client_by_date_of_birth_exact",
        columns=("tenant_id", "date_of_birth_exact"),
    )

    manager.add_index(
        table="client",
        name="client_by_email_folded",
        columns=("tenant_id", "email_folded"),
    )

    manager.add_index(
        table="client",
        name="client_by_last_name_folded",
        columns=("tenant_id", "last_name_folded"),
    )

    manager.add_index(
        table="client",
        name="client_by_last_name_prefix",
        columns=("tenant_id", "last_name_prefix"),
    )

    manager.add_index(
        table="client",
        name="client_by_phone_last_four",
        columns=("tenant_id", "phone_last_four"),
    )

    manager.add_index(
        table="client",
        name="client_by_ssn_exact",
        columns=("tenant_id", "ssn_exact"),
    )

    manager.add_index(
        table="client",
        name="client_by_ssn_last_four",
        columns=("tenant_id", "ssn_last_four"),
    )

    manager.add_index(
        table="client", name="client_by_user_id", columns=("tenant_id", "user_id")
    )

    manager.add_index(
        table="client",
        name="client_mrn_key",
        columns=("tenant_id", "mrn_exact"),
        unique=True,
    )

    manager.add_index(
        table="client",
        name="client_newest_by_facility",
        columns=("tenant_id", "facility_id", "created_at desc"),
    )

    manager.add_index(
        table="client",
        name="client_newest_by_status",
        columns=("tenant_id", "status", "created_at desc"),
    )

    manager.add_index(
        table="client",
        name="client_newest_first",
        columns=("tenant_id", "created_at desc"),
    )

    manager.add_references(
        table="client",
        name="client_facility_id_fkey",
        columns=("tenant_id", "facility_id"),
        to_table="facility",
        to_columns=("tenant_id", "id"),
    )

    manager.add_references(
        table="client",
        name="client_user_id_fkey",
        columns=("tenant_id", "user_id"),
        to_table="app_user",
        to_columns=("tenant_id", "id"),
    )

    manager.add_trigger(
        table="client",
        name="audit_delete",
        timing="after",
        events=("delete",),
        level="statement",
        function="charthold.capture_client",
        old_table="old_rows",
    )

    manager.add_trigger(
        table="client",
        name="audit_insert",
        timing="after",
        events=("insert",),
        level="statement",
        function="charthold.capture_client",
        new_table="new_rows",
    )

    manager.add_trigger(
        table="client",
        name="audit_truncate",
        timing="before",
        events=("truncate",),
        level="statement",
        function="charthold.refuse_truncate",
    )

    manager.add_trigger(
        table="client",
        name="audit_update",
        timing="after",
        events=("update",),
        function="charthold.capture_client",
    )

    manager.add_trigger(
        table="client",
        name="keep_identity",
        timing="before",
        events=("update",),
        function="charthold.touch_tenant_row",
    )

    manager.add_row_security(table="client")

    manager.add_policy(
        table="client",
        name="delete_by_role",
        command="delete",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'system')) then true end",
    )

    manager.add_policy(
        table="client",
        name="facility_isolation",
        using='case when tenant_id = (select charthold.tenant_everywhere()) then true else tenant_id::text || "facility_id"::text = any ((select charthold.actor_places())::text[]) or tenant_id::text || "id"::text = (select charthold.emergency_client()) end',
        check='case when tenant_id = (select charthold.tenant_everywhere()) then true else tenant_id::text || "facility_id"::text = any ((select charthold.actor_places())::text[]) or tenant_id::text || "id"::text = (select charthold.emergency_client()) end',
        restrictive=True,
    )

    manager.add_policy(
        table="client",
        name="insert_by_role",
        command="insert",
        check="case when tenant_id = (select charthold.tenant_as('admin', 'clinician', 'system')) then true end",
    )

    manager.add_policy(
        table="client", name="select_by_role", command="select", using="true"
    )

    manager.add_policy(
        table="client",
        name="tenant_isolation",
        using="tenant_id = any (array[(select charthold.tenant_id())])",
        check="tenant_id = any (array[(select charthold.tenant_id())])",
        restrictive=True,
    )

    manager.add_policy(
        table="client",
        name="update_by_role",
        command="update",
        using="case when tenant_id = (select charthold.tenant_as('admin', 'clinician', 'billing', 'system')) then true end",
        check="true",
    )

    manager.add_grant(
        table="client",
        privileges=("select", "insert", "update", "delete"),
        to="app_runtime",
    )

    manager.add_statement(
        name="planner_does_not_sample_client",
        forwards="""alter table "public"."client"
    alter column "id" set statistics 0,
    alter column "tenant_id" set statistics 0,
    alter column "created_at" set statistics 0,
    alter column "updated_at" set statistics 0,
    alter column "facility_id" set statistics 0,
    alter column "user_id" set statistics 0,
    alter column "first_name" set statistics 0,
    alter column "last_name" set statistics 0,
    alter column "date_of_birth" set statistics 0,
    alter column "ssn" set statistics 0,
    alter column "mrn" set statistics 0,
    alter column "email" set statistics 0,
    alter column "phone" set statistics 0,
    alter column "address" set statistics 0,
    alter column "insurance_member_id" set statistics 0,
    alter column "emergency_contact" set statistics 0,
    alter column "notes" set statistics 0,
    alter column "admitted_on" set statistics 0,
    alter column "discharged_on" set statistics 0,
    alter column "last_name_folded" set statistics 0,
    alter column "last_name_prefix" set statistics 0,
    alter column "date_of_birth_exact" set statistics 0,
    alter column "ssn_exact" set statistics 0,
    alter column "ssn_last_four" set statistics 0,
    alter column "mrn_exact" set statistics 0,
    alter column "email_folded" set statistics 0,
    alter column "phone_last_four" set statistics 0""",
        backwards="""alter table "public"."client"
    alter column "id" set statistics -1,
    alter column "tenant_id" set statistics -1,
    alter column "created_at" set statistics -1,
    alter column "updated_at" set statistics -1,
    alter column "facility_id" set statistics -1,
    alter column "user_id" set statistics -1,
    alter column "first_name" set statistics -1,
    alter column "last_name" set statistics -1,
    alter column "date_of_birth" set statistics -1,
    alter column "ssn" set statistics -1,
    alter column "mrn" set statistics -1,
    alter column "email" set statistics -1,
    alter column "phone" set statistics -1,
    alter column "address" set statistics -1,
    alter column "insurance_member_id" set statistics -1,
    alter column "emergency_contact" set statistics -1,
    alter column "notes" set statistics -1,
    alter column "admitted_on" set statistics -1,
    alter column "discharged_on" set statistics -1,
    alter column "last_name_folded" set statistics -1,
    alter column "last_name_prefix" set statistics -1,
    alter column "date_of_birth_exact" set statistics -1,
    alter column "ssn_exact" set statistics -1,
    alter column "ssn_last_four" set statistics -1,
    alter column "mrn_exact" set statistics -1,
    alter column "email_folded" set statistics -1,
    alter column "phone_last_four" set statistics -1""",
        after_tables=True,
        declared=True,
    )

    return manager
