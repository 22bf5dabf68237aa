"""Each constraint of the entities refuses what it is there to refuse, and is named in the error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from core import ChartholdError, Disclosure, provision_tenant
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import ActivityReview
from core.engine import ChartholdEngine
from core.ids import uuid7
from core.rotation import Target, acting
from core.schema import Check, Index, References, Unique, objects_of
from core.tables import (
    AuditSeal,
    Client,
    Facility,
    Tenant,
    TenantKey,
    User,
    UserActionAuditLog,
)
from tests.conftest import Clinic
from tests.ledger import signed


def facility(**values: Any) -> Facility:
    return Facility(**{"name": f"Site {uuid4()}", **values})


def user(**values: Any) -> User:
    return User(**{"email": f"{uuid4()}@x.example", "full_name": "Somebody", **values})


def client(clinic: Clinic, **values: Any) -> Client:
    born = date(1980, 1, 1)
    return Client(
        **{"facility_id": clinic.facility, "first_name": "A", "last_name": "B", "date_of_birth": born, **values}
    )


def review(**values: Any) -> ActivityReview:
    month = {"since": datetime(2020, 1, 1, tzinfo=UTC), "until": datetime(2020, 2, 1, tzinfo=UTC)}
    return ActivityReview(**month | values)


def disclosure(clinic: Clinic, **values: Any) -> Disclosure:
    told = {"recipient": "A", "description": "B", "purpose": "C", "basis": "other", "disclosed_on": date(2020, 2, 2)}
    return Disclosure(**{"client_id": clinic.client, **told, **values})


# constraint -> a row that violates it
ROWS: dict[str, Callable[[Clinic], Any]] = {
    "app_user_email_key": lambda c: user(email="clinician@lakeside.example"),
    "app_user_email_lower_case": lambda c: user(email="Ana@x.example"),
    "app_user_email_form": lambda c: user(email="no-at-sign.example"),
    "app_user_full_name_given": lambda c: user(full_name="  "),
    "app_user_role_known": lambda c: user(role="root"),
    "app_user_status_known": lambda c: user(status="asleep"),
    "app_user_failed_logins_positive": lambda c: user(failed_logins=-1),
    "facility_active_name_key": lambda c: facility(name="Main street"),
    "facility_name_given": lambda c: facility(name=" "),
    "facility_kind_known": lambda c: facility(kind="castle"),
    "facility_npi_valid": lambda c: facility(npi="1234567890"),
    "facility_capacity_positive": lambda c: facility(capacity=0),
    "facility_status_known": lambda c: facility(status="haunted"),
    "facility_time_zone_form": lambda c: facility(time_zone="'; drop"),
    "facility_address_object": lambda c: facility(address="[]"),
    "facility_settings_object": lambda c: facility(settings="3"),
    "client_facility_id_fkey": lambda c: client(c, facility_id=uuid7()),
    "client_user_id_fkey": lambda c: client(c, user_id=uuid7()),
    "client_mrn_key": lambda c: client(c, mrn="lakeside-1"),
    "client_status_known": lambda c: client(c, status="lost"),
    "client_discharged_has_date": lambda c: client(c, status="discharged"),
    "client_dates_in_order": lambda c: client(c, admitted_on=date(2020, 2, 2), discharged_on=date(2020, 2, 1)),
    "activity_review_finding_known": lambda c: review(finding="fine"),
    "activity_review_of_something": lambda c: review(until=None),
    "activity_review_of_the_past": lambda c: review(since=datetime(2020, 2, 2, tzinfo=UTC)),
    "activity_review_note_length": lambda c: review(note="x" * 2001),
    "disclosure_client_id_fkey": lambda c: disclosure(c, client_id=uuid7()),
    "disclosure_recipient_given": lambda c: disclosure(c, recipient=" "),
    "disclosure_not_in_the_future": lambda c: disclosure(c, disclosed_on=date.today() + timedelta(days=3)),
    "disclosure_basis_known": lambda c: disclosure(c, basis="curiosity"),
    "disclosure_withheld_for_whom": lambda c: disclosure(c, withheld_until=date(2030, 1, 1)),
}
# constraint -> version and status of a key that violates it; only the owner writes keys
KEYS: dict[str, tuple[int, str]] = {
    "tenant_key_version_key": (1, "next"),
    "tenant_key_status_known": (2, "lost"),
    "tenant_key_version_positive": (0, "next"),
    "tenant_key_shredded_is_empty": (2, "shredded"),
    "tenant_key_one_current": (2, "current"),
}


def seal(**values: Any) -> AuditSeal:
    whole = {
        "version": 1, "tree_size": 1, "root_hash": bytes(32), "era": 1, "cluster": 1, "horizon": 1,
        "sealed_at": datetime.now(UTC), "leaf_list": bytes(32), "previous": bytes(32), "key_id": "0" * 16,
        "signature": bytes(64), "frontier": b"", "record_ids": [uuid7()], "leaf_hashes": bytes(32),
    }  # fmt: skip
    return AuditSeal(**{**whole, **values})


SEALS: dict[str, dict[str, Any]] = {
    "audit_seal_tree_size_positive": {"tree_size": 0},
    "audit_seal_hash_lengths": {"root_hash": b"short"},
    "audit_seal_signature_length": {"signature": b"short"},
    "audit_seal_size": {"frontier": bytes(2_049)},
    "audit_seal_leaves_counted": {"leaf_hashes": b""},
    "audit_seal_key_id_form": {"key_id": "0123456789abcdeF"},
    "audit_seal_sealed_at_possible": {"sealed_at": datetime(1999, 12, 31, tzinfo=UTC)},
}
# constraint -> an update of the tenant that violates it
TENANT: dict[str, dict[Any, Any]] = {
    "tenant_slug_form": {Tenant.slug: "Not A Slug"},
    "tenant_name_given": {Tenant.name: ""},
    "tenant_status_known": {Tenant.status: "gone"},
    "tenant_retention_years_possible": {Tenant.retention_years: 5},
    "tenant_slug_free": {Tenant.slug: "all"},
    "tenant_time_zone_form": {Tenant.time_zone: "Mars; --"},
    "tenant_settings_object": {Tenant.settings: "[]"},
    "tenant_branding_object": {Tenant.branding: '"x"'},
}
ELSEWHERE = {
    "tenant_slug_key",  # below
    "app_user_tenant_id_fkey",  # below, by hand: a scope sets tenant_id
    "facility_tenant_id_fkey",
    "tenant_key_tenant_id_fkey",
    "audit_seal_tenant_id_fkey",
    "audit_seal_tree_size_key",
    "audit_seal_previous_key",
    "emergency_access_reason_given",  # tests/test_emergencies.py; the function alone inserts
    "emergency_access_until_later",
    "emergency_access_user_id_fkey",
    "emergency_access_client_id_fkey",
    "activity_review_tenant_id_fkey",
    "activity_review_emergency_id_fkey",  # what refers to no emergency, the policy refuses first
}


@pytest.mark.parametrize("name", ROWS)
async def test_a_row_that_violates_a_constraint_is_refused_by_name(lakeside: Clinic, name: str) -> None:
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
            await ROWS[name](lakeside).save()
    assert refused.value.constraint_name == name
    assert refused.value.detail is None, "DETAIL prints the row's values"


async def test_what_a_check_asks_for_stands_in_its_error(lakeside: Clinic) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await provision_tenant(slug="Lake Side", name="Lake Side", admin_email="a@b.example")
    assert str(refused.value).endswith(""""tenant_slug_form", which asks for: slug ~ '^[a-z][a-z0-9-]{1,62}$'""")
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError, match="status in \\('referred', 'active', "):
            await client(lakeside, status="new").save()


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_that_violates_a_constraint_is_refused_by_name(
    lakeside: Clinic, owner: asyncpg.Connection, name: str
) -> None:
    version, status = KEYS[name]
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
        async with acting(owner, Target(lakeside.tenant, "lakeside", lakeside.admin), "test"):
            await owner.execute(
                "insert into tenant_key (id, tenant_id, version, wrapped, kek, status)"
                " values (gen_random_uuid(), $1, $2, 'x', '', $3)",
                lakeside.tenant, version, status,
            )  # fmt: skip
    assert refused.value.constraint_name == name


@pytest.mark.parametrize("name", TENANT)
async def test_an_update_of_the_tenant_that_violates_a_constraint_is_refused_by_name(
    lakeside: Clinic, name: str
) -> None:
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await Tenant.update(TENANT[name]).where(Tenant.id == lakeside.tenant)
    assert refused.value.constraint_name == name


@pytest.mark.parametrize("name", SEALS)
async def test_a_malformed_seal_is_refused_by_name(lakeside: Clinic, name: str) -> None:
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await seal(**SEALS[name]).save()
    assert refused.value.constraint_name == name


async def test_a_tree_of_one_size_is_sealed_once_and_grows_once_from_each_head(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        await seal(tree_size=7).save()
        with pytest.raises(asyncpg.UniqueViolationError) as refused:
            await seal(tree_size=7, previous=bytes([1] * 32)).save()
        assert refused.value.constraint_name == "audit_seal_tree_size_key"
        with pytest.raises(asyncpg.UniqueViolationError) as refused:
            await seal(tree_size=8).save()
        assert refused.value.constraint_name == "audit_seal_previous_key"


async def test_a_slug_is_given_once(lakeside: Clinic) -> None:
    with pytest.raises(ChartholdError, match="slug 'lakeside' already"):
        await provision_tenant(slug="lakeside", name="Again", admin_email="a@b.example")
    with pytest.raises(ChartholdError, match="every tenant"):
        await provision_tenant(slug="all", name="All", admin_email="a@b.example")


@pytest.mark.parametrize(
    "statement",
    [
        "insert into app_user (id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins)"
        " values (gen_random_uuid(), gen_random_uuid(), 'a@b.example', 'A', 'admin', 'invited', false, 0)",
        "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status)"
        " values (gen_random_uuid(), gen_random_uuid(), 'A', 'clinic', '{}', 'UTC', '{}', 'active')",
        "insert into tenant_key (id, tenant_id, version, wrapped, kek, status)"
        " values (gen_random_uuid(), gen_random_uuid(), 1, 'x', '', 'current')",
    ],
)
async def test_a_row_of_no_tenant_is_refused(owner: asyncpg.Connection, statement: str) -> None:
    # As the owner and without the triggers, which would ask for a scope first.
    async with owner.transaction():
        await owner.execute("set local session_replication_role = origin")
        await owner.execute("alter table app_user disable trigger user")
        await owner.execute("alter table facility disable trigger user")
        await owner.execute("alter table tenant_key disable trigger user")
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="_tenant_id_fkey"):
            async with owner.transaction():
                await owner.execute(statement)
        await owner.execute("alter table app_user enable trigger user")
        await owner.execute("alter table facility enable trigger user")
        await owner.execute("alter table tenant_key enable trigger user")


async def test_users_and_facilities_with_history_cannot_be_deleted(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        # PostgreSQL 18 has a SQLSTATE of its own for RESTRICT.
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await Facility.delete().where(Facility.id == lakeside.facility)
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await User.delete().where(User.id == lakeside.admin)


async def test_a_valid_npi_is_accepted_and_a_closed_facilitys_name_is_free_again(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        closed = facility(name="West wing", npi="1245319599", status="inactive")
        await closed.save()
        await facility(name="West wing").save()
        rows = await Facility.select(Facility.npi, Facility.status).where(Facility.name == "West wing")
        assert {(row["npi"], row["status"]) for row in rows} == {("1245319599", "inactive"), (None, "active")}


async def test_updated_at_moves_by_itself_and_identity_stays(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        site = facility()
        await site.save()
        before = await Facility.select(Facility.created_at, Facility.updated_at).where(Facility.id == site.id).first()
        site.phone = "555 0100"
        await site.save([Facility.phone])
        after = await Facility.select(Facility.created_at, Facility.updated_at).where(Facility.id == site.id).first()
        assert before["created_at"] == after["created_at"]
        assert after["updated_at"] > before["updated_at"]
        for column in ("id", "tenant_id", "created_at"):
            value = "now()" if column == "created_at" else "gen_random_uuid()"
            with pytest.raises(Exception, match="cannot be updated|may not do that"):
                await Facility.raw(f"update facility set {column} = {value} where id = {{}}", site.id)


async def test_a_row_moves_to_no_other_tenant_where_no_policy_says_so_first(
    lakeside: Clinic, hillside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin() as here:
        await (site := facility()).save()
        async with signed(owner, database, here):
            with pytest.raises(asyncpg.PostgresError, match="cannot be updated"):
                await owner.execute("update facility set tenant_id = $1 where id = $2", hillside.tenant, site.id)


async def test_a_reference_to_another_tenants_row_cannot_be_written(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="client_facility_id_fkey"):
            await client(lakeside, facility_id=hillside.facility).save()


def test_every_declared_constraint_has_a_test() -> None:
    declared = {
        item.name
        for table in (
            Tenant,
            User,
            Facility,
            Client,
            Disclosure,
            UserActionAuditLog,
            TenantKey,
            AuditSeal,
            EmergencyAccess,
            ActivityReview,
        )  # fmt: skip
        for item in objects_of(table)
        if isinstance(item, (Check, Unique, References)) or (isinstance(item, Index) and item.unique)
    }
    assert declared == set(ROWS) | set(KEYS) | set(TENANT) | set(SEALS) | ELSEWHERE
