"""Who outside was told of a client, and the accounting of it, 164.528."""

from __future__ import annotations

import json
import textwrap
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from core import Disclosure, ProtectedQueryError, ScopeError, accounting_of_disclosures, scope
from core.commands.disclosures import disclosures as command
from core.compliance import disclosures
from core.engine import ChartholdEngine
from core.errors import ChartholdError
from core.ids import uuid7
from core.tables import Client, Facility, User
from tests.conftest import Clinic
from tests.test_readme import README

TODAY = (datetime.now(UTC) - timedelta(hours=12)).date()
SIX_YEARS_AGO = date(TODAY.year - 6, TODAY.month, 28 if (TODAY.month, TODAY.day) == (2, 29) else TODAY.day)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)


def disclosure(client: UUID, **values: Any) -> Disclosure:
    usual = {
        "disclosed_on": TODAY - 8 * WEEK, "recipient": "County Health Department",
        "recipient_address": "1 Court Square", "description": "a positive test for measles",
        "purpose": "a report that state law requires", "basis": "public_health",
    }  # fmt: skip
    return Disclosure(client_id=client, **{**usual, **values})


@pytest.fixture
async def client(lakeside: Clinic) -> UUID:
    """A client of Lakeside, whom nobody was told of yet."""
    async with lakeside.as_admin():
        return await admitted(lakeside.facility)


async def admitted(facility: UUID) -> UUID:
    row = Client(facility_id=facility, first_name="Bo", last_name="Li", date_of_birth=date(1990, 1, 1))
    await row.save()
    return row.id


async def told(client: UUID, **asked: Any) -> list[str]:
    """The descriptions in the accounting."""
    return [row.description for row in await accounting_of_disclosures(client, **asked)]


# -- the accounting --------------------------------------------------------------------------------------------------


async def test_what_was_entered_is_accounted_for_oldest_first(lakeside: Clinic, client: UUID) -> None:
    async with lakeside.as_clinician():
        await disclosure(client, description="second", disclosed_on=TODAY - WEEK).save()
        await disclosure(client, description="first", disclosed_on=TODAY - 2 * WEEK).save()
        await disclosure(lakeside.client, description="of somebody else").save()
        first, second = await accounting_of_disclosures(client)
    assert [first.description, second.description] == ["first", "second"]
    assert (first.disclosed_on, first.recipient) == (TODAY - 2 * WEEK, "County Health Department")
    assert (first.recipient_address, first.purpose) == ("1 Court Square", "a report that state law requires")


async def test_what_is_withheld_is_left_out_until_its_day_has_passed(
    lakeside: Clinic, client: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lakeside.as_admin():
        await disclosure(client, description="open").save()
        await disclosure(
            client, description="withheld", basis="law_enforcement", withheld_until=TODAY, disclosed_on=TODAY - WEEK
        ).save()
        assert await told(client) == ["open"]
        assert await Disclosure.count().where(Disclosure.client_id == client) == 2, "it stays in the register"
        monkeypatch.setattr(disclosures, "_today", lambda: TODAY + DAY)
        assert await told(client) == ["open", "withheld"]


async def test_an_accounting_goes_six_years_back_or_as_far_as_is_asked(lakeside: Clinic, client: UUID) -> None:
    async with lakeside.as_admin():
        await disclosure(client, description="too old", disclosed_on=SIX_YEARS_AGO - DAY).save()
        await disclosure(client, description="just due", disclosed_on=SIX_YEARS_AGO).save()
        await disclosure(client, description="today", disclosed_on=TODAY).save()
        assert await told(client) == ["just due", "today"]
        assert await told(client, since=SIX_YEARS_AGO + DAY) == ["today"]
        assert await told(client, until=TODAY - DAY) == ["just due"]
        assert await told(client, since=SIX_YEARS_AGO, until=SIX_YEARS_AGO) == ["just due"]
        assert await told(client, since=date(2000, 1, 1)) == ["too old", "just due", "today"]


@pytest.mark.parametrize(("hour", "day"), [(11, 9), (12, 10)])
async def test_a_day_begins_when_it_has_begun_everywhere(hour: int, day: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(2026, 5, 10, hour, 30, tzinfo=tz)

    monkeypatch.setattr(disclosures, "datetime", Clock)
    assert disclosures._today() == date(2026, 5, day)


async def test_on_the_leap_day_too(lakeside: Clinic, client: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disclosures, "_today", lambda: date(2028, 2, 29))
    async with lakeside.as_admin():
        await disclosure(client, description="too old", disclosed_on=date(2022, 2, 27)).save()
        await disclosure(client, description="due", disclosed_on=date(2022, 2, 28)).save()
        assert await told(client) == ["due"]


async def test_the_accounting_is_recorded_and_so_is_each_disclosure_that_it_shows(
    lakeside: Clinic, client: UUID, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        shown, withheld = (
            disclosure(client), disclosure(client, basis="health_oversight", withheld_until=TODAY + DAY)
        )  # fmt: skip
        await Disclosure.insert(shown, withheld)
    async with scope(tenant=lakeside.tenant, actor=lakeside.clinician, reason="asked by letter", request_id="r-7"):
        await accounting_of_disclosures(client, since=TODAY - 9 * WEEK)
    [export] = await owner.fetch(
        "select * from user_action_audit_log where action_type = 'export' and record_id = $1", client
    )
    assert (export["table_name"], export["user_id"], export["reason"]) == (
        "client",
        lakeside.clinician,
        "asked by letter",
    )
    assert json.loads(export["new_values"]) == {"disclosures": 1, "since": str(TODAY - 9 * WEEK), "until": None}
    reads = await owner.fetch(
        "select record_id, changed_columns from user_action_audit_log"
        " where action_type = 'read' and table_name = 'disclosure' and request_id = 'r-7'"
    )
    assert [(row["record_id"], {*row["changed_columns"]}) for row in reads] == [(shown.id, {"description", "purpose"})]


async def test_an_accounting_that_cannot_be_recorded_is_not_given(
    lakeside: Clinic, client: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ChartholdError("no record")

    monkeypatch.setattr(disclosures, "record", refuse)
    async with lakeside.as_admin():
        with pytest.raises(ChartholdError, match="no record"):
            await accounting_of_disclosures(client)


async def test_an_accounting_of_nobody_is_refused(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_admin():
        for nobody in (uuid7(), hillside.client):
            with pytest.raises(ProtectedQueryError, match="There is no such client, or it is not yours to see"):
                await accounting_of_disclosures(nobody)
    with pytest.raises(ScopeError):
        await accounting_of_disclosures(lakeside.client)


async def test_days_in_the_wrong_order_are_refused(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        with pytest.raises(ProtectedQueryError, match="until 2001-01-01 has no day. Give an earlier since"):
            await accounting_of_disclosures(lakeside.client, until=date(2001, 1, 1))


# -- the register ----------------------------------------------------------------------------------------------------


async def test_another_tenants_disclosures_are_not_there(lakeside: Clinic, hillside: Clinic, client: UUID) -> None:
    async with lakeside.as_admin():
        mine = disclosure(client)
        await mine.save()
    async with hillside.as_admin():
        assert not await Disclosure.exists().where(Disclosure.id == mine.id)
        await Disclosure.update({Disclosure.recipient: "nobody"}).where(Disclosure.id == mine.id)
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await disclosure(client).save()
    async with lakeside.as_admin():
        assert await told(client) == ["a positive test for measles"]


@pytest.fixture
async def bound(lakeside: Clinic) -> tuple[UUID, UUID, UUID]:
    """A clinician who is bound to a facility, a client there and one elsewhere."""
    async with lakeside.as_admin():
        here, there = (Facility(name=f"Wing {uuid7()}") for _ in range(2))
        await Facility.insert(here, there)
        user = User(
            email=f"{uuid7()}@lakeside.example", full_name="Bound", role="clinician", status="active",
            facility_scope=[here.id],
        )  # fmt: skip
        await user.save()
        clients = await admitted(here.id), await admitted(there.id)
        for one in clients:
            await disclosure(one).save()
    return user.id, *clients


async def test_who_is_bound_to_facilities_sees_the_disclosures_of_the_clients_whom_they_see(
    lakeside: Clinic, bound: tuple[UUID, UUID, UUID]
) -> None:
    user, mine, other = bound
    async with scope(tenant=lakeside.tenant, actor=user, reason="test"):
        assert await told(mine) == ["a positive test for measles"]
        with pytest.raises(ProtectedQueryError, match="no such client"):
            await accounting_of_disclosures(other)
        assert [row["client_id"] for row in await Disclosure.select(Disclosure.client_id)] == [mine]
        await disclosure(mine).save()
        with pytest.raises(ScopeError):
            await disclosure(other).save()


async def test_what_tells_of_the_patient_is_sealed_at_rest(
    lakeside: Clinic, client: UUID, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        row = disclosure(client, purpose="court order 12-345")
        await row.save()
    stored = await owner.fetchrow(
        "select description::bytea as description, purpose::bytea as purpose, d::text as whole from disclosure as d"
        " where id = $1", row.id,
    )  # fmt: skip
    assert "measles" not in stored["whole"]
    assert "12-345" not in stored["whole"]
    for word in (b"measles", b"12-345"):
        assert word not in stored["description"] + stored["purpose"]
    logged = await owner.fetchval(
        "select new_values::text from user_action_audit_log where record_id = $1 and action_type = 'insert'", row.id
    )
    assert "County Health Department" in logged
    assert "measles" not in logged


@pytest.mark.parametrize("role", ["billing", "auditor"])
async def test_billing_and_auditors_account_for_disclosures_and_enter_none(
    lakeside: Clinic, client: UUID, role: str
) -> None:
    async with lakeside.as_clinician():
        await disclosure(client).save()
    async with scope(tenant=lakeside.tenant, actor=getattr(lakeside, role), reason="test"):
        assert len(await accounting_of_disclosures(client)) == 1
        with pytest.raises(ScopeError):
            await disclosure(client).save()


async def test_only_admins_correct_a_disclosure_and_the_log_holds_what_it_was(lakeside: Clinic, client: UUID) -> None:
    async with lakeside.as_clinician():
        row = disclosure(client)
        await row.save()
        row.recipient = "somebody else"
        with pytest.raises(ProtectedQueryError):
            await row.save()
    async with lakeside.as_admin():
        row.description = "a negative test for measles"
        row.recipient = "State Laboratory"
        await row.save()
        insert, update = await row.history()
    assert (insert.action, update.action) == ("insert", "update")
    assert update.old["description"] == "a positive test for measles"
    assert update.new["recipient"] == "State Laboratory"


async def test_nobody_deletes_a_disclosure_nor_the_client_it_is_of(
    lakeside: Clinic, client: UUID, runtime: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        row = disclosure(client)
        await row.save()
        with pytest.raises(ScopeError):
            await Disclosure.delete().where(Disclosure.id == row.id)
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="disclosure_client_id_fkey"):
            await Client.delete().where(Client.id == client)
        assert await Disclosure.exists().where(Disclosure.id == row.id)
    for statement in ("delete from disclosure", "truncate disclosure"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await runtime.execute(statement)


@pytest.mark.parametrize("basis", ["health_oversight", "law_enforcement"])
async def test_an_agency_or_an_official_may_have_a_disclosure_withheld(
    lakeside: Clinic, client: UUID, basis: str
) -> None:
    async with lakeside.as_clinician():
        await disclosure(client, basis=basis, withheld_until=TODAY + DAY).save()
        assert await told(client) == []


# -- the command -----------------------------------------------------------------------------------------------------


async def test_the_command_prints_the_accounting(lakeside: Clinic, client: UUID, capsys: Any) -> None:
    async with lakeside.as_clinician():
        await disclosure(client).save()
        await disclosure(client, description="later", disclosed_on=TODAY - 2 * WEEK, recipient_address=None).save()
    options = {"tenant": "lakeside", "client": str(client)}
    await command.__wrapped__(**options)
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.splitlines() == [
        f"disclosed_on      {TODAY - 8 * WEEK}",
        "recipient         County Health Department",
        "recipient_address 1 Court Square",
        "description       a positive test for measles",
        "purpose           a report that state law requires",
        "basis             public_health",
    ]
    assert "later" in second
    await command.__wrapped__(**options, json=True, since=str(TODAY - 3 * WEEK), until=str(TODAY - 2 * WEEK))
    assert json.loads(capsys.readouterr().out) == [
        {
            "disclosed_on": str(TODAY - 2 * WEEK), "recipient": "County Health Department", "recipient_address": None,
            "description": "later", "purpose": "a report that state law requires", "basis": "public_health",
        }
    ]  # fmt: skip
    await command.__wrapped__(**options, csv=True)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "disclosed_on,recipient,recipient_address,description,purpose,basis"
    assert len(rows) == 2


async def test_the_command_says_that_there_is_nothing(lakeside: Clinic, client: UUID, capsys: Any) -> None:
    options = {"tenant": "lakeside", "client": str(client)}
    await command.__wrapped__(**options)
    assert capsys.readouterr().out == "Nothing found.\n"
    await command.__wrapped__(**options, quiet=True)
    assert capsys.readouterr().out == ""
    await command.__wrapped__(**options, json=True)
    assert capsys.readouterr().out == "[]\n"


async def test_a_disclosure_cannot_be_taken_for_another(lakeside: Clinic, client: UUID, capsys: Any) -> None:
    async with lakeside.as_clinician():
        await disclosure(client, description="x\n\ndisclosed_on  2026-01-01\x1b[2K").save()
    await command.__wrapped__(tenant="lakeside", client=str(client))
    shown = capsys.readouterr().out
    assert r"x\n\ndisclosed_on  2026-01-01\x1b[2K" in shown
    assert "\x1b" not in shown


async def test_the_command_acts_in_the_name_of_its_actor(
    lakeside: Clinic, client: UUID, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "zoe")
    latest = "select user_id, reason from user_action_audit_log where action_type = 'export' and record_id = $1"
    options = {"tenant": "lakeside", "client": str(client), "quiet": True}
    await command.__wrapped__(**options, actor="auditor@lakeside.example")
    await command.__wrapped__(**options)
    assert [tuple(row) for row in await owner.fetch(latest + " order by occurred_at", client)] == [
        (lakeside.auditor, "accounting of disclosures"),
        (lakeside.admin, "accounting of disclosures; run by the system's user zoe, who named no actor"),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tenant": "nobody"}, "There is no tenant nobody"),
        ({"client": "Ana"}, "An id is a UUID"),
        ({"client": str(uuid7())}, "There is no such client"),
        ({"since": "yesterday"}, "A day is written 2026-01-31"),
        ({"until": "2026-01-31T08:00"}, "A day is written 2026-01-31"),
        ({"since": "2026-02-01", "until": "2026-01-31"}, "has no day"),
        ({"actor": "nobody@lakeside.example"}, "no user with the e-mail"),
    ],
)
async def test_a_mistake_is_one_sentence(lakeside: Clinic, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ChartholdError, match=says):
        await command.__wrapped__(**{"tenant": "lakeside", "client": str(lakeside.client), **options})


# -- the README ------------------------------------------------------------------------------------------------------


async def test_the_example_of_the_readme_runs(database: ChartholdEngine, lakeside: Clinic, client: UUID) -> None:
    [source] = [block for block in README.read_text(encoding="utf-8").split("```python\n") if "Disclosure(" in block]
    namespace: dict[str, Any] = {"date": date, "ana": await named(lakeside, client)}
    body = f"async def example():\n{textwrap.indent(source.partition('```')[0], '    ')}\n    return due\n"
    exec(compile(body, "README.md", "exec"), namespace)
    async with lakeside.as_clinician():
        [due] = await namespace["example"]()
    assert due.client_id == client


async def named(clinic: Clinic, client: UUID) -> Client:
    async with clinic.as_clinician():
        return await Client.objects().get(Client.id == client)
