"""Somebody signs that they looked: at an emergency, or at what was done in a time; and the doctor asks whether they did."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from core import Emergency, break_glass, scope
from core.commands.emergencies import emergencies, sign_off
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import ActivityReview
from core.doctor.examination import examine
from core.engine import ChartholdEngine
from core.errors import ChartholdError
from core.ids import uuid7
from core.tables import Client, Facility, User
from tests.conftest import Clinic

ADA, AUDITOR = "ada@lakeside.example", "auditor@lakeside.example"


@pytest.fixture
async def doctor(lakeside: Clinic) -> UUID:
    """An admin of another facility than the client's."""
    facility = Facility(name=str(uuid7()))
    async with lakeside.as_admin():
        await facility.save()
        user = User(
            email=f"{uuid7()}@lakeside.example", full_name="Doctor", role="admin", status="active",
            facility_scope=[facility.id],
        )  # fmt: skip
        await user.save()
    return user.id


async def declare(clinic: Clinic, user: UUID, reason: str = "unconscious") -> Emergency:
    async with scope(tenant=clinic.tenant, actor=user, reason="emergency room"):
        return await break_glass(clinic.client, reason=reason)


async def age(owner: asyncpg.Connection, emergency: Emergency, days: int) -> None:
    """Time passes."""
    await only_for_superusers(owner)
    await owner.execute("set session_replication_role = replica")
    back = f"interval '{days} days'"
    await owner.execute(
        f"update emergency_access set created_at = created_at - {back}, until = until - {back} where id = $1",
        emergency.id,
    )
    await owner.execute(f"update charthold.emergency set until = until - {back} where id = $1", emergency.id)
    await owner.execute("reset session_replication_role")


async def only_for_superusers(owner: asyncpg.Connection) -> None:
    if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("only a superuser can make it older")


async def told(capsys: Any, **options: Any) -> list[dict[str, Any]]:
    await emergencies.__wrapped__(tenant="lakeside", json=True, **options)
    return json.loads(capsys.readouterr().out)


async def verdicts(name: str) -> dict[str, str]:
    """The doctor's verdicts of a check, each with what it says."""
    return {finding.verdict: finding.evidence for finding in (await examine([name])).findings}


async def test_nobody_reviews_their_own_emergency_nor_without_seeing_everything(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    await age(owner, emergency, days=1)

    async def signed(user: UUID) -> None:
        async with scope(tenant=lakeside.tenant, actor=user, reason="review"):
            await ActivityReview(emergency_id=emergency.id).save()

    for user in (doctor, lakeside.clinician, lakeside.billing):
        with pytest.raises(ChartholdError, match="row-level security"):
            await signed(user)
    # Who was bound when they broke the glass, and is not any more, does not review it either.
    async with lakeside.as_admin():
        await User.update({User.facility_scope: None}).where(User.id == doctor)
    with pytest.raises(ChartholdError, match="row-level security"):
        await signed(doctor)
    await signed(lakeside.auditor)


async def test_who_is_bound_to_facilities_neither_reviews_nor_sees_what_was_reviewed(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    await age(owner, emergency, days=1)
    async with lakeside.as_admin():
        await ActivityReview(emergency_id=emergency.id).save()
        another = User(
            email=f"{uuid7()}@lakeside.example", full_name="Bound", role="admin", status="active", facility_scope=[]
        )
        await another.save()
    async with scope(tenant=lakeside.tenant, actor=another.id, reason="review"):
        assert (await EmergencyAccess.count(), await ActivityReview.count()) == (0, 0)
        with pytest.raises(ChartholdError, match="row-level security"):
            await ActivityReview(emergency_id=emergency.id).save()
        with pytest.raises(ChartholdError, match="row-level security"):
            # Nor what was done in a time, though SQL of one's own asks for nothing back.
            await ActivityReview.raw(
                "insert into activity_review (id, tenant_id, reviewed_by, since, until)"
                " values (charthold.uuid7(), {}, {}, now() - interval '2 days', now() - interval '1 day')",
                lakeside.tenant,
                another.id,
            )


async def test_a_review_goes_with_the_client_whose_emergency_it_is_of(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        client = Client(facility_id=lakeside.facility, first_name="A", last_name="B", date_of_birth=date(1900, 1, 1))
        await client.save()
    async with scope(tenant=lakeside.tenant, actor=doctor, reason="emergency room"):
        emergency = await break_glass(client.id, reason="unconscious")
    await age(owner, emergency, days=1)
    async with lakeside.as_admin():
        await ActivityReview(emergency_id=emergency.id).save()
        await Client.delete().where(Client.id == client.id)
        assert not await ActivityReview.exists().where(ActivityReview.emergency_id == emergency.id)


async def test_a_review_is_by_who_writes_it_and_not_changed(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    async with lakeside.as_admin("too early"):
        with pytest.raises(ChartholdError, match="row-level security"):
            await ActivityReview(emergency_id=emergency.id).save()
    await age(owner, emergency, days=1)
    async with scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review"):
        made = ActivityReview(emergency_id=emergency.id, note="came by ambulance")
        await made.save()
        [row] = await ActivityReview.select().where(ActivityReview.id == made.id)
        assert (row["reviewed_by"], row["note"]) == (lakeside.auditor, "came by ambulance")
        with pytest.raises(ChartholdError, match="permission denied"):
            await ActivityReview.update({ActivityReview.finding: "violation"}).where(ActivityReview.id == made.id)
        with pytest.raises(ChartholdError, match="permission denied"):
            await ActivityReview.delete().where(ActivityReview.id == made.id)


async def test_nobody_reviews_in_anothers_name(
    database: ChartholdEngine, lakeside: Clinic, runtime: asyncpg.Connection
) -> None:
    mine = scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review")
    async with mine:
        token = mine.token(database.token_key, runtime.get_server_pid())
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with runtime.transaction():
            await runtime.execute("select set_config('charthold.scope', $1, true)", token)
            await runtime.execute(
                "insert into activity_review (id, tenant_id, reviewed_by, since, until, finding)"
                " values (gen_random_uuid(), $1, $2, now() - interval '1 day', now() - interval '1 hour', 'in_order')",
                lakeside.tenant,
                lakeside.admin,
            )


@pytest.mark.parametrize("written", ["now() + interval '1 hour'", "now() - interval '1 year'", "'infinity'", "default"])
async def test_no_review_is_written_at_another_time_than_now(
    written: str, database: ChartholdEngine, lakeside: Clinic, runtime: asyncpg.Connection
) -> None:
    """Threat: the last word counts, and somebody says theirs in the future; or what was due last year is signed today."""
    mine = scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review")
    async with mine:
        token = mine.token(database.token_key, runtime.get_server_pid())
    honest = written == "default"
    with contextlib.nullcontext() if honest else pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with runtime.transaction():
            await runtime.execute("select set_config('charthold.scope', $1, true)", token)
            await runtime.execute(
                "insert into activity_review (id, tenant_id, reviewed_by, since, until, finding, created_at)"
                f" values (gen_random_uuid(), $1, $2, '-infinity', now() - interval '2 years', 'in_order', {written})",
                lakeside.tenant,
                lakeside.auditor,
            )


async def test_a_review_is_of_an_emergency_or_of_a_time_that_is_over(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    month = timedelta(days=30)
    emergency = await declare(lakeside, doctor)
    await age(owner, emergency, days=1)
    async with scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review"):
        await ActivityReview(since=now - month, until=now).save()
        with pytest.raises(asyncpg.CheckViolationError):
            await ActivityReview(since=now - month, until=now, emergency_id=emergency.id).save()
        for since, until in ((None, None), (now, None), (now, now - month)):
            with pytest.raises(asyncpg.CheckViolationError):
                await ActivityReview(since=since, until=until).save()
        with pytest.raises(ChartholdError, match="row-level security"):
            await ActivityReview(since=now - month, until=now + month).save()
        with pytest.raises(asyncpg.CheckViolationError):
            await ActivityReview(since=now - month, until=now, finding="fine").save()


async def test_emergencies_are_listed_until_they_are_signed_off(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection, capsys: Any
) -> None:
    first, second = await declare(lakeside, doctor, "first"), await declare(lakeside, doctor, "second")
    rows = await told(capsys, open=True)
    assert [row["reason"] for row in rows][:2] == ["second", "first"]
    assert rows[0] | {"user": ""} == {
        "id": str(second.id), "declared": rows[0]["declared"], "until": str(second.until), "user": "",
        "user_id": str(doctor), "client_id": str(lakeside.client), "reason": "second",
        "finding": None, "reviewed_by": None,
    }  # fmt: skip
    with pytest.raises(ChartholdError, match="when it has ended"):
        await sign_off.__wrapped__(tenant="lakeside", actor=AUDITOR, emergency=str(first.id))
    await age(owner, first, days=1)
    await sign_off.__wrapped__(tenant="lakeside", actor=AUDITOR, emergency=str(first.id), finding="follow_up")
    assert capsys.readouterr().out == f"The emergency {first.id} is signed off: follow_up.\n"
    assert str(first.id) not in {row["id"] for row in await told(capsys, open=True)}
    # What counts is the last word.
    await sign_off.__wrapped__(tenant="lakeside", actor=ADA, emergency=str(first.id), finding="violation", quiet=True)
    [row] = [row for row in await told(capsys) if row["id"] == str(first.id)]
    assert (row["finding"], row["reviewed_by"]) == ("violation", ADA)
    await emergencies.__wrapped__(tenant="lakeside", limit=1, csv=True)
    captured = capsys.readouterr()
    header, *lines = csv.reader(io.StringIO(captured.out))
    assert [line[header.index("id")] for line in lines] == [str(second.id)]
    assert "there are more" in captured.err
    assert await told(capsys, since="2099-01-01") == []


async def test_what_is_signed_off_is_told_and_stands_there(lakeside: Clinic, capsys: Any) -> None:
    month = {"tenant": "lakeside", "since": "2026-01-01", "until": "2026-02-01T08:00"}
    await sign_off.__wrapped__(**month, actor=AUDITOR, note="three readings of one chart")
    assert capsys.readouterr().out == "What was done from 2026-01-01 until 2026-02-01T08:00 is signed off: in_order.\n"
    await sign_off.__wrapped__(**month, actor=ADA, finding="violation", json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["finding"] == "violation"
    await sign_off.__wrapped__(**month, actor=ADA, quiet=True)
    assert capsys.readouterr().out == ""
    async with lakeside.as_admin():
        since, until = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, 8, tzinfo=UTC)
        first, second, third = (
            await ActivityReview.select().where(ActivityReview.since == since).order_by(ActivityReview.created_at)
        )
        assert {row["until"] for row in (first, second, third)} == {until}
        assert [(row["reviewed_by"], row["finding"], row["note"]) for row in (first, second, third)] == [
            (lakeside.auditor, "in_order", "three readings of one chart"),
            (lakeside.admin, "violation", None),
            (lakeside.admin, "in_order", None),
        ]
        assert printed["id"] == str(second["id"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "Sign off one emergency, --emergency=ID, or a time"),
        ({"since": "2026-01-01"}, "Sign off one emergency, --emergency=ID, or a time"),
        ({"emergency": "E", "since": "2026-01-01"}, "Sign off one emergency, --emergency=ID, or a time"),
        ({"since": "2026-01-01", "until": "2099-01-01"}, "is over"),
        ({"since": "2026-02-01", "until": "2026-01-01"}, "is over"),
        ({"since": "yesterday", "until": "2026-01-01"}, "A time is written"),
        ({"emergency": "nonsense"}, "An id is a UUID"),
        ({"emergency": "0198c0de-0000-7000-8000-000000000001"}, "no emergency with that id"),
        ({"emergency": "E", "finding": "fine"}, "--finding takes one of in_order, follow_up, violation"),
        ({"emergency": "E", "actor": "nobody@lakeside.example"}, "no user with the e-mail"),
        ({"emergency": "E", "actor": "clinician@lakeside.example"}, "no emergency with that id that the actor may see"),
        ({"since": "2026-01-01", "until": "2026-02-01", "actor": "clinician@lakeside.example"}, "bound to no facility"),
    ],
)
async def test_what_cannot_be_signed_off_is_said_in_a_sentence(
    options: dict[str, str], says: str, lakeside: Clinic, doctor: UUID
) -> None:
    emergency = await declare(lakeside, doctor)
    given = {name: str(emergency.id) if value == "E" else value for name, value in options.items()}
    with pytest.raises(ChartholdError, match=says):
        await sign_off.__wrapped__(**{"tenant": "lakeside", "actor": ADA} | given)


async def test_the_doctor_misses_the_review_of_an_emergency(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    assert "on record" in (await verdicts("emergency_access"))["pass"]
    await age(owner, emergency, days=6)
    assert "warn" not in await verdicts("emergency_access")
    await age(owner, emergency, days=2)
    assert "nobody has reviewed" in (await verdicts("emergency_access"))["warn"]

    async def violations() -> int:
        told = (await verdicts("emergency_access"))["pass"]
        return sum(map(int, re.findall(r"(\d+) of them found to be a violation", told)))

    async def found(finding: str) -> None:
        async with scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review"):
            await ActivityReview(emergency_id=emergency.id, finding=finding).save()

    await found("in_order")
    before = await violations()
    await found("violation")
    assert await violations() == before + 1


@pytest.mark.parametrize(
    "by_hand",
    [
        "update charthold.emergency set until = until + interval '1 day' where id = $1",
        "update charthold.emergency set client_id = gen_random_uuid() where id = $1",
        "update charthold.emergency set user_id = gen_random_uuid() where id = $1",
        "insert into charthold.emergency select gen_random_uuid(), tenant_id, user_id, client_id, until"
        " from charthold.emergency where id = $1",
        # It has ended by now.
        "insert into charthold.emergency select gen_random_uuid(), tenant_id, user_id, client_id, until - interval '1 day'"
        " from charthold.emergency where id = $1",
        # In both places, so that they agree.
        "with longer as (update charthold.emergency set until = until + interval '4 hours' where id = $1 returning id)"
        " update emergency_access as e set until = until + interval '4 hours' from longer where e.id = longer.id",
    ],
)
async def test_the_doctor_finds_an_emergency_that_nobody_declared(
    by_hand: str, lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    await only_for_superusers(owner)
    await owner.execute("create table kept as table charthold.emergency")
    await owner.execute("set session_replication_role = replica")
    await owner.execute(by_hand, emergency.id)
    try:
        assert "that nobody declared so" in (await verdicts("emergency_access"))["fail"]
    finally:
        await owner.execute("delete from charthold.emergency; insert into charthold.emergency select * from kept")
        await owner.execute("update emergency_access as e set until = k.until from kept as k where k.id = e.id")
        await owner.execute("drop table kept")
    assert "fail" not in await verdicts("emergency_access")


async def test_the_doctor_finds_an_emergency_of_long_ago_that_somebody_opened_again(
    lakeside: Clinic, doctor: UUID, owner: asyncpg.Connection
) -> None:
    emergency = await declare(lakeside, doctor)
    await age(owner, emergency, days=800)
    assert "fail" not in await verdicts("emergency_access")
    await owner.execute("update charthold.emergency set until = now() + interval '1 hour' where id = $1", emergency.id)
    async with emergency.scope():
        assert await Client.exists().where(Client.id == lakeside.client)
    assert "that nobody declared so" in (await verdicts("emergency_access"))["fail"]
    await owner.execute("delete from charthold.emergency where id = $1", emergency.id)


async def test_the_doctor_misses_a_sign_off_of_a_tenant_that_is_old_enough(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    await only_for_superusers(owner)
    assert "No tenant is old enough for a sign-off" in (await verdicts("activity_review"))["pass"]
    await owner.execute("set session_replication_role = replica")
    await owner.execute("update tenant set created_at = created_at - interval '60 days'")
    await owner.execute("delete from activity_review where emergency_id is null")
    await owner.execute("reset session_replication_role")
    assert "have no sign-off" in (await verdicts("activity_review"))["warn"]
    now = datetime.now(UTC)
    async with scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review"):
        await ActivityReview(since=now - timedelta(days=70), until=now - timedelta(days=40)).save()
    assert "have no sign-off" in (await verdicts("activity_review"))["warn"]
    async with scope(tenant=lakeside.tenant, actor=lakeside.auditor, reason="review"):
        await ActivityReview(since=now - timedelta(days=40), until=now - timedelta(days=1)).save()
    assert "In 1 tenant somebody signed off" in (await verdicts("activity_review"))["pass"]
