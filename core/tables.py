"""The five entities. The two tables that support them, wrapped data keys and seals, stand in ``core/supporting.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from piccolo.columns import (
    JSONB,
    UUID,
    Array,
    Boolean,
    Date,
    Integer,
    SmallInt,
    Text,
    Timestamptz,
)
from piccolo.columns.base import OnDelete

from core.access.permissions import ROLES
from core.access.policies import policies
from core.audit.capture import capture_function, capture_triggers
from core.columns import (
    BlindIndex,
    CreatedAt,
    EncryptedDate,
    EncryptedJSON,
    EncryptedText,
    Inet,
    LogId,
    RowId,
    TenantForeignKey,
    TenantId,
    TransactionId,
    UpdatedAt,
)
from core.schema import (
    Check,
    Grant,
    Index,
    Partitions,
    PrimaryKey,
    RowSecurity,
    SchemaObject,
    Statement,
    Trigger,
    Unique,
)
from core.schema.constraint import json_object, one_of
from core.supporting import AuditSeal, TenantKey
from core.tenant_table import ProtectedTable, TenantTable

__all__ = [
    "AuditSeal",
    "Client",
    "Facility",
    "Tenant",
    "TenantKey",
    "TenantTable",
    "User",
    "UserActionAuditLog",
]

TENANT_STATUSES = ("trial", "active", "suspended", "closed")
USER_STATUSES = ("invited", "active", "locked", "deactivated")
FACILITY_KINDS = (
    "hospital",
    "clinic",
    "practice",
    "laboratory",
    "pharmacy",
    "imaging",
    "home_health",
    "other",
)
FACILITY_STATUSES = ("active", "inactive")
CLIENT_STATUSES = ("referred", "active", "on_hold", "discharged", "deceased")
# The kinds of record. charthold.record() refuses any other; a check of the log would cost more than one of its indexes.
ACTION_TYPES = (
    "insert", "update", "delete", "read", "export", "login", "login_failed", "logout", "break_glass", "search",
    "key_rotation", "key_shredding", "tenant_change", "audit_read", "seal",
)  # fmt: skip


class Tenant(ProtectedTable, tablename="tenant"):
    """An organisation whose data is nobody else's. Isolated by its own id; made by ``provision_tenant``."""

    id = RowId()
    created_at = CreatedAt()
    updated_at = UpdatedAt()
    slug = Text(default=None, required=True)
    name = Text(default=None, required=True)
    status = Text(default="trial")
    settings = JSONB()
    branding = JSONB()
    time_zone = Text(default="UTC")
    # 164.316(b)(2)(i): six years, and state law may ask for more.
    retention_years = SmallInt(default=6)

    waived: ClassVar[Mapping[str, str]] = {
        "name": "an organisation's",
        "settings": "configuration of an organisation",
        "branding": "configuration of an organisation",
    }

    # Who is bound to facilities does not speak for all of them.
    whole_tenant = ("update",)

    declares: ClassVar[Sequence[SchemaObject]] = (
        PrimaryKey(name="tenant_pkey", columns=("id",)),
        Unique(name="tenant_slug_key", columns=("slug",)),
        Check(name="tenant_slug_form", condition="slug ~ '^[a-z][a-z0-9-]{1,62}$'"),
        Check(name="tenant_name_given", condition="btrim(name) <> ''"),
        one_of("tenant_status_known", "status", TENANT_STATUSES),
        # What "all" names to the commands is every tenant.
        Check(name="tenant_slug_free", condition="slug <> 'all'"),
        Check(name="tenant_retention_years_possible", condition="retention_years between 6 and 100"),
        # PostgreSQL itself checks zone names only when they are used; this is their form.
        Check(name="tenant_time_zone_form", condition="time_zone ~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$'"),
        json_object("tenant_settings_object", "settings"),
        json_object("tenant_branding_object", "branding"),
        RowSecurity(),
        *policies("tenant", "id", whole_tenant=whole_tenant),
        Grant(privileges=("select", "update"), to="app_runtime"),
        Trigger(
            name="keep_identity", timing="before", events=("update",), level="row", function="charthold.touch"
        ),
        Trigger(
            name="follow", timing="after", events=("insert", "update", "delete"), level="row",
            function="charthold.follow_tenant",
        ),
        capture_function(
            "tenant", ("slug", "name", "status", "settings", "branding", "time_zone", "retention_years"), tenant="id",
            loose=("settings", "branding"), texts=("slug", "name", "status", "time_zone"),
        ),
        *capture_triggers("tenant"),
    )  # fmt: skip


class User(TenantTable, tablename="app_user"):
    """Somebody who acts. 164.312(a)(2)(i): one person, one user; only active users open scopes."""

    email = Text(default=None, required=True)
    full_name = Text(default=None, required=True)
    role = Text(default="clinician")
    status = Text(default="invited")
    mfa_enrolled = Boolean(default=False)
    last_login_at = Timestamptz(default=None, null=True)
    failed_logins = Integer(default=0)
    # The application counts failed logins, and says until when. No scope of the user is believed before.
    locked_until = Timestamptz(default=None, null=True)
    password_changed_at = Timestamptz(default=None, null=True)
    # The facilities whose clients the user sees; null means all of the tenant's.
    facility_scope = Array(base_column=UUID(default=None), default=None, null=True)

    waived: ClassVar[Mapping[str, str]] = {
        "email": "of the workforce, not of a patient",
        "full_name": "of the workforce, not of a patient",
    }

    # Or an admin who is bound to facilities would widen their own.
    whole_tenant = ("insert", "update", "delete")

    declares: ClassVar[Sequence[SchemaObject]] = (
        Unique(name="app_user_email_key", columns=("tenant_id", "email")),
        Check(name="app_user_email_lower_case", condition="email = lower(email)"),
        Check(name="app_user_email_form", condition="email ~ '^[^@[:space:]]+@[^@[:space:]]+[.][^@[:space:]]+$'"),
        Check(name="app_user_full_name_given", condition="btrim(full_name) <> ''"),
        one_of("app_user_role_known", "role", ROLES),
        one_of("app_user_status_known", "status", USER_STATUSES),
        Check(name="app_user_failed_logins_positive", condition="failed_logins >= 0"),
        Trigger(
            name="keep_history", timing="before", events=("delete",), level="row", function="charthold.keep_history"
        ),
        Index(name="app_user_active_by_role", columns=("tenant_id", "role"), where="status = 'active'"),
        Trigger(
            name="follow", timing="after", events=("insert", "update", "delete"), level="row",
            function="charthold.follow_user",
        ),
    )  # fmt: skip


class Facility(TenantTable, tablename="facility"):
    """A place where clients are seen."""

    # Who is bound to some of them does not change the others.
    whole_tenant = ("insert", "update", "delete")

    name = Text(default=None, required=True)
    kind = Text(default="clinic")
    npi = Text(default=None, null=True)
    address = JSONB()
    phone = Text(default=None, null=True)
    time_zone = Text(default="UTC")
    license_number = Text(default=None, null=True)
    capacity = Integer(default=None, null=True)
    settings = JSONB()
    status = Text(default="active")

    waived: ClassVar[Mapping[str, str]] = {
        "name": "an organisation's",
        "npi": "the facility's, in a public register",
        "address": "an organisation's",
        "phone": "an organisation's",
        "license_number": "an organisation's",
        "settings": "configuration of an organisation",
    }

    declares: ClassVar[Sequence[SchemaObject]] = (
        # A closed facility's name may be given again.
        Index(
            name="facility_active_name_key",
            columns=("tenant_id", "name"),
            unique=True,
            where="status = 'active'",
        ),
        Check(name="facility_name_given", condition="btrim(name) <> ''"),
        one_of("facility_kind_known", "kind", FACILITY_KINDS),
        Check(name="facility_npi_valid", condition="charthold.npi_is_valid(npi)"),
        Check(name="facility_capacity_positive", condition="capacity > 0"),
        one_of("facility_status_known", "status", FACILITY_STATUSES),
        Check(name="facility_time_zone_form", condition="time_zone ~ '^[A-Za-z][A-Za-z0-9_+/-]{1,63}$'"),
        json_object("facility_address_object", "address"),
        json_object("facility_settings_object", "settings"),
    )


class Client(TenantTable, tablename="client"):
    """A person who receives care. Every direct identifier is sealed, 164.514(b)(2).

    The two dates of a stay are plain, and ``waived`` says why.
    """

    # RESTRICT: a facility with clients is made inactive, never deleted; its clients' records must be kept.
    facility_id = TenantForeignKey(Facility, on_delete=OnDelete.restrict, required=True)
    # RESTRICT: the responsible clinician is deactivated, and clients handed over by name, not silently orphaned.
    user_id = TenantForeignKey(User, null=True, on_delete=OnDelete.restrict)
    status = Text(default="active")
    first_name = EncryptedText(identifier="name", required=True)
    last_name = EncryptedText(identifier="name", required=True)
    date_of_birth = EncryptedDate(identifier="date", required=True)
    ssn = EncryptedText(identifier="ssn", null=True)
    mrn = EncryptedText(identifier="mrn", null=True)
    email = EncryptedText(identifier="email", null=True)
    phone = EncryptedText(identifier="telephone", null=True)
    address = EncryptedJSON(identifier="geography", null=True)
    insurance_member_id = EncryptedText(identifier="health_plan", null=True)
    emergency_contact = EncryptedJSON(identifier="name", null=True)
    notes = EncryptedText(identifier="other", null=True)
    admitted_on = Date(default=None, null=True)
    discharged_on = Date(default=None, null=True)

    waived: ClassVar[Mapping[str, str]] = {
        "admitted_on": "an identifier, plain so that stays can be counted; policies and grants protect it",
        "discharged_on": "an identifier, plain so that stays can be counted; policies and grants protect it",
    }

    last_name_folded = BlindIndex("last_name", kind="folded")
    last_name_prefix = BlindIndex("last_name", kind="prefix", length=3)
    date_of_birth_exact = BlindIndex("date_of_birth", kind="exact")
    ssn_exact = BlindIndex("ssn", kind="exact")
    ssn_last_four = BlindIndex("ssn", kind="last", length=4)
    mrn_exact = BlindIndex("mrn", kind="exact")
    email_folded = BlindIndex("email", kind="folded")
    phone_last_four = BlindIndex("phone", kind="last", length=4)

    facility_column = "facility_id"

    declares: ClassVar[Sequence[SchemaObject]] = (
        # Two clients of one tenant cannot have one MRN; the hash is keyed, so it tells nothing beyond the tenant.
        Index(name="client_mrn_key", columns=("tenant_id", "mrn_exact"), unique=True),
        one_of("client_status_known", "status", CLIENT_STATUSES),
        Check(
            name="client_discharged_has_date",
            condition="(status = 'discharged') <= (discharged_on is not null)",
        ),
        Check(name="client_dates_in_order", condition="discharged_on >= admitted_on"),
        # The common look-ups: the newest of all, of a state, of a facility. None is partial: a generic plan does not
        # know that the status it will be given is the index's.
        Index(name="client_newest_first", columns=("tenant_id", "created_at desc")),
        Index(name="client_newest_by_status", columns=("tenant_id", "status", "created_at desc")),
        Index(name="client_newest_by_facility", columns=("tenant_id", "facility_id", "created_at desc")),
    )  # fmt: skip


class UserActionAuditLog(ProtectedTable, tablename="user_action_audit_log"):
    """Who did what, when and why, 164.312(b). Written by the database alone, and only ever appended to.

    ``occurred_at`` is its ``created_at``; nothing is ever updated. The primary key holds it: PostgreSQL wants the
    partition key there.
    """

    id = LogId()
    tenant_id = TenantId()
    occurred_at = CreatedAt()
    # No foreign key in the database: see core/schema/sql/keep_history.sql.
    user_id = TenantForeignKey(User, on_delete=OnDelete.restrict)
    action_type = Text(default=None)
    table_name = Text(default=None, null=True)
    record_id = UUID(default=None, null=True)
    old_values = JSONB(default=None, null=True)
    new_values = JSONB(default=None, null=True)
    changed_columns = Array(base_column=Text(default=None), default=None, null=True)
    reason = Text(default=None)
    request_id = Text(default=None, null=True)
    source_ip = Inet(null=True)
    transaction_id = TransactionId()

    reading_is_recorded = True
    # It has no facilities, and its records are of all of them.
    whole_tenant = ("select",)

    waived: ClassVar[Mapping[str, str]] = {
        "table_name": "the name of a table",
        "old_values": "copies of columns, each as the column holds it: PHI stays sealed",
        "new_values": "copies of columns, each as the column holds it: PHI stays sealed",
        "reason": "why a user acted, in the application's words; a text about a patient does not belong there",
        "source_ip": "the user's, not a patient's",
    }

    declares: ClassVar[Sequence[SchemaObject]] = (
        Partitions(by="range (occurred_at)"),
        PrimaryKey(name="user_action_audit_log_pkey", columns=("tenant_id", "occurred_at", "id")),
        # The common questions: what happened to this record, what did this user do. When is the primary key.
        Index(
            name="user_action_audit_log_by_record",
            columns=("tenant_id", "record_id", "occurred_at"),
        ),
        Index(name="user_action_audit_log_by_user", columns=("tenant_id", "user_id", "occurred_at")),
        # What the next seal adds. Rows lie in the order of their transactions, so a few bytes for each 128 pages do.
        Index(name="user_action_audit_log_by_transaction", columns=("transaction_id",), method="brin"),
        RowSecurity(),
        *policies("user_action_audit_log", "tenant_id", whole_tenant=whole_tenant),
        Grant(privileges=("select",), to="app_runtime"),
        Grant(privileges=("select",), to="app_auditor"),
        # What no month holds yet is caught; partitions are made ahead by ``piccolo core partitions``.
        Statement(
            name="user_action_audit_log_default",
            forwards="""do $$
begin
    create table public.user_action_audit_log_default partition of public.user_action_audit_log default;
    perform charthold.keep_partition('user_action_audit_log_default');
end
$$""",
            backwards="drop table public.user_action_audit_log_default",
            after_tables=True,
        ),
        Trigger(
            name="append_only", timing="before", events=("update", "delete"), level="row",
            function="charthold.refuse_change",
        ),
        Trigger(
            name="append_only_truncate", timing="before", events=("truncate",), level="statement",
            function="charthold.refuse_change",
        ),
    )  # fmt: skip
