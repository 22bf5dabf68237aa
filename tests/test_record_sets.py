"""The copy that a client may have of all that is kept about them, 164.524."""

from __future__ import annotations

import asyncio
import json
import textwrap
from contextvars import Context
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from piccolo.columns import Bytea, Numeric, Text

from core import (
    ConfigurationError,
    Disclosure,
    ProtectedQueryError,
    RecordSet,
    ScopeError,
    break_glass,
    record_set,
    scope,
    transaction,
)
from core.columns import EncryptedJSON, EncryptedText, TenantForeignKey
from core.commands.record_set import record_set as command
from core.compliance import record_sets
from core.doctor import examine
from core.engine import ChartholdEngine
from core.errors import ChartholdError
from core.ids import uuid7
from core.tables import Client, Facility, TenantTable, User
from tests.conftest import Clinic
from tests.ledger import create
from tests.test_readme import README


class Visit(TenantTable, tablename="set_visit"):
    client_id = TenantForeignKey(Client)
    notes = EncryptedText(identifier="other", null=True)
    plan = EncryptedJSON(identifier="other", null=True)


class Finding(TenantTable, tablename="set_finding"):
    """Two references away from the client."""

    visit_id = TenantForeignKey(Visit)
    amount = Numeric(digits=(8, 2), default=Decimal(0))
    image = Bytea(default=b"")
    link = Text(default="a token", secret=True)
    # What is secret is not copied, so whoever is not shown it may make the copy.
    password = EncryptedText(identifier="other", null=True, secret=True)
    shown_to = {"password": ("billing",)}
    waived = {"image": "of a test", "link": "of a test"}


class Letter(TenantTable, tablename="set_letter"):
    """For everybody in the tenant, whoever it is about; still the client's."""

    client_id = TenantForeignKey(Client)
    answered_id = TenantForeignKey("self", null=True)
    facility_from = ()


class Invoice(TenantTable, tablename="set_invoice"):
    """Of a client, and paid by another."""

    client_id = TenantForeignKey(Client)
    paid_by = TenantForeignKey(Client, null=True)


class Call(TenantTable, tablename="set_call"):
    """Of a client, of a visit or of both."""

    client_id = TenantForeignKey(Client, null=True)
    visit_id = TenantForeignKey(Visit, null=True)
    facility_from = ("client_id", "visit_id")


class Sample(TenantTable, tablename="set_sample"):
    """Of a client, or else of a visit; nobody said so."""

    facility_id = TenantForeignKey(Facility)
    client_id = TenantForeignKey(Client, null=True)
    visit_id = TenantForeignKey(Visit, null=True)


class Message(TenantTable, tablename="set_message"):
    """Of a client, or an answer to one that is."""

    client_id = TenantForeignKey(Client, null=True)
    answers = TenantForeignKey("self", null=True)


class Psychotherapy(TenantTable, tablename="set_psychotherapy"):
    client_id = TenantForeignKey(Client)
    in_record_set = False


class Session(TenantTable, tablename="set_session"):
    """What belongs to psychotherapy alone goes with it."""

    of_id = TenantForeignKey(Psychotherapy)


class Room(TenantTable, tablename="set_room"):
    """Nobody's."""

    facility_id = TenantForeignKey(Facility)


class Transplant(TenantTable, tablename="set_transplant"):
    """Of a facility, and of two clients: whose it is nobody said."""

    facility_id = TenantForeignKey(Facility)
    donor_id = TenantForeignKey(Client)
    receiver_id = TenantForeignKey(Client)


class Complaint(TenantTable, tablename="set_complaint"):
    client_id = TenantForeignKey(Client)
    permissions = {"select": ("admin",), "insert": ("admin",), "update": ("admin",)}


TABLES = (Visit, Finding, Letter, Invoice, Call, Psychotherapy, Session, Room)
EVERYTHING = (Client, Disclosure, *TABLES)
PARTS = ["client", "set_visit", "set_letter", "set_invoice", "set_finding", "set_call"]


@pytest.fixture(scope="module")
async def tables(database: ChartholdEngine) -> None:
    await create(database, *TABLES, Transplant, Complaint, Sample, Message)


@pytest.fixture(autouse=True)
def registered(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sets, "tenant_tables", lambda: list(EVERYTHING))


@pytest.fixture
async def clients(lakeside: Clinic) -> tuple[UUID, UUID]:
    """Two clients of Lakeside, with a row in each table."""
    async with lakeside.as_admin():
        return await furnish(lakeside.facility, "Ida"), await furnish(lakeside.facility, "Tom")


async def furnish(facility: UUID, name: str) -> UUID:
    client = Client(facility_id=facility, first_name=name, last_name="Li", date_of_birth=date(1990, 1, 1))
    await client.save()
    visit = Visit(client_id=client.id, notes=f"notes of {name}", plan={"of": name})
    await visit.save()
    therapy, letter = Psychotherapy(client_id=client.id), Letter(client_id=client.id)
    rows = (
        letter, therapy, Finding(visit_id=visit.id, amount=Decimal("1.50"), image=b"\x00\xff"), Invoice(client_id=client.id),
        Call(client_id=client.id, visit_id=visit.id), Session(of_id=therapy.id), Room(facility_id=facility),
        Disclosure(
            client_id=client.id, disclosed_on=date(2026, 1, 31), recipient="Sheriff", description="whereabouts",
            purpose="warrant", basis="law_enforcement", withheld_until=date(9999, 1, 1),
        ),
    )  # fmt: skip
    for row in (therapy, *rows):
        if not row._exists_in_db:
            await row.save()
    return client.id


def ids(copy: RecordSet, table: type[TenantTable]) -> list[UUID]:
    return [row["id"] for row in copy.rows[table._meta.tablename]]


async def test_a_copy_has_the_clients_row_and_all_that_refers_to_it_and_nothing_of_anybody_else(
    lakeside: Clinic, clients: tuple[UUID, UUID]
) -> None:
    ida, tom = clients
    async with lakeside.as_clinician():
        of_ida, of_tom = await record_set(ida), await record_set(tom)
    assert sorted(of_ida.rows) == sorted(PARTS)
    assert next(iter(of_ida.rows)) == "client"
    for copy, client, name in ((of_ida, ida, "Ida"), (of_tom, tom, "Tom")):
        assert {part: len(rows) for part, rows in copy.rows.items()} == dict.fromkeys(PARTS, 1)
        assert (copy.client_id, ids(copy, Client)) == (client, [client])
        [visit] = copy.rows["set_visit"]
        assert (visit["notes"], visit["plan"]) == (f"notes of {name}", {"of": name})
    assert not {row["id"] for rows in of_ida.rows.values() for row in rows} & {
        row["id"] for rows in of_tom.rows.values() for row in rows
    }


async def test_a_row_of_the_copy_has_its_values_but_no_tenant_no_hashes_and_no_secrets(
    lakeside: Clinic, clients: tuple[UUID, UUID]
) -> None:
    async with lakeside.as_clinician():
        copy = await record_set(clients[0])
    [client], [finding] = copy.rows["client"], copy.rows["set_finding"]
    assert (client["first_name"], client["date_of_birth"]) == ("Ida", date(1990, 1, 1))
    assert {"id", "created_at", "facility_id", "status", "ssn"} <= client.keys()
    assert not {"tenant_id", "last_name_folded", "ssn_exact"} & client.keys()
    assert (finding["image"], "link" in finding) == (b"\x00\xff", False)
    assert "Ida" not in repr(copy)


async def test_who_paid_for_another_has_no_copy_of_their_invoice(lakeside: Clinic, clients: tuple[UUID, UUID]) -> None:
    ida, tom = clients
    async with lakeside.as_admin():
        await Invoice(client_id=ida, paid_by=tom).save()
        of_ida, of_tom = await record_set(ida), await record_set(tom)
    assert (len(of_ida.rows["set_invoice"]), len(of_tom.rows["set_invoice"])) == (2, 1)


async def test_of_several_references_that_narrow_a_table_all_that_are_given_must_be_the_clients(
    lakeside: Clinic, clients: tuple[UUID, UUID]
) -> None:
    ida, tom = clients
    async with lakeside.as_admin():
        [of_ida, of_tom] = [
            row["id"]
            for row in await Visit.select(Visit.id).where(Visit.client_id.is_in([ida, tom])).order_by(Visit.id)
        ]
        one, two, neither = Call(client_id=ida), Call(visit_id=of_ida), Call(client_id=ida, visit_id=of_tom)
        for call in (one, two, neither, Call()):
            await call.save()
        calls = ids(await record_set(ida), Call)
    assert calls[1:] == [one.id, two.id]


async def test_a_row_without_the_reference_that_says_whose_it_is_goes_by_the_next_that_it_has(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_sets, "tenant_tables", lambda: [*EVERYTHING, Sample])
    ida, tom = clients
    async with lakeside.as_admin():
        visit = (await Visit.select(Visit.id).where(Visit.client_id == ida).first())["id"]
        references = ({"client_id": ida}, {"visit_id": visit}, {"client_id": tom, "visit_id": visit}, {})
        samples = [Sample(facility_id=lakeside.facility, **given) for given in references]
        for sample in samples:
            await sample.save()
        of_ida, of_tom = await record_set(ida), await record_set(tom)
    assert (ids(of_ida, Sample), ids(of_tom, Sample)) == ([samples[0].id, samples[1].id], [samples[2].id])


def test_a_row_does_not_go_by_another_reference_where_its_class_names_one_or_it_must_have_one() -> None:
    class Named(TenantTable):
        client_id = TenantForeignKey(Client, null=True)
        paid_by = TenantForeignKey(Client, null=True)
        facility_from = ("client_id",)

    class Referral(TenantTable):
        client_id = TenantForeignKey(Client)
        sent_by = TenantForeignKey(Client, null=True)
        paid_by = TenantForeignKey(Client, null=True)

    for table in (Named, Referral):
        part = record_sets.part_of(table, UUID(int=1))
        assert part is not None
        assert "client_id" in str(part.condition)
        assert "_by" not in str(part.condition)


async def test_the_oldest_row_comes_first(lakeside: Clinic, clients: tuple[UUID, UUID]) -> None:
    async with lakeside.as_admin():
        later = [Letter(client_id=clients[0]) for _ in range(3)]
        for letter in later:
            await letter.save()
        assert ids(await record_set(clients[0]), Letter)[1:] == [letter.id for letter in later]


async def test_the_copy_is_recorded_and_so_is_each_row_whose_phi_it_shows(
    lakeside: Clinic, clients: tuple[UUID, UUID], owner: asyncpg.Connection
) -> None:
    async with scope(tenant=lakeside.tenant, actor=lakeside.clinician, reason="asked by letter", request_id="copy-1"):
        copy = await record_set(clients[0])
    records = await owner.fetch(
        "select action_type, table_name, record_id, new_values from user_action_audit_log where request_id = 'copy-1'"
    )
    [export] = [row for row in records if row["action_type"] == "export"]
    assert (export["table_name"], export["record_id"]) == ("client", clients[0])
    assert json.loads(export["new_values"]) == {"record_set": dict.fromkeys(PARTS, 1)}
    shown = {(row["table_name"], row["record_id"]) for row in records if row["action_type"] == "read"}
    assert {("client", clients[0]), ("set_visit", ids(copy, Visit)[0])} <= shown
    assert all(
        row["record_id"] not in shown for row in records if row["table_name"] in ("set_psychotherapy", "disclosure")
    )


async def test_a_copy_that_cannot_be_recorded_is_not_made(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ChartholdError("no record")

    monkeypatch.setattr(record_sets, "record", refuse)
    async with lakeside.as_admin():
        with pytest.raises(ChartholdError, match="no record"):
            await record_set(clients[0])


async def test_a_copy_is_of_one_moment(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    ida, tom = clients
    refuse_lost = record_sets._refuse_lost

    async def give_to_tom() -> None:
        async with lakeside.as_admin():
            await Visit.update({Visit.client_id: tom}).where(Visit.client_id == ida)

    async def meanwhile(table: type[TenantTable], *given: Any) -> None:
        await refuse_lost(table, *given)
        if table is Visit:
            await asyncio.create_task(give_to_tom(), context=Context())

    monkeypatch.setattr(record_sets, "_refuse_lost", meanwhile)
    async with lakeside.as_clinician():
        copy = await record_set(ida)
    assert {part: len(rows) for part, rows in copy.rows.items()} == dict.fromkeys(PARTS, 1)


async def test_no_rollback_takes_the_record_of_a_copy(
    lakeside: Clinic, clients: tuple[UUID, UUID], owner: asyncpg.Connection
) -> None:
    async with scope(tenant=lakeside.tenant, actor=lakeside.clinician, reason="test", request_id="copy-2"):
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                await record_set(clients[0])
                raise ZeroDivisionError
    exports = await owner.fetch(
        "select user_id, record_id, new_values from user_action_audit_log"
        " where request_id = 'copy-2' and action_type = 'export'"
    )
    assert [(row["user_id"], row["record_id"]) for row in exports] == [(lakeside.clinician, clients[0])]
    assert json.loads(exports[0]["new_values"]) == {"record_set": dict.fromkeys(PARTS, 1)}


# -- what would leave gaps -------------------------------------------------------------------------------------------


async def test_nobody_has_a_copy_of_a_client_who_is_not_theirs(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_admin():
        for nobody in (uuid7(), hillside.client):
            with pytest.raises(ProtectedQueryError, match="There is no such client, or it is not yours to see"):
                await record_set(nobody)
    with pytest.raises(ScopeError):
        await record_set(lakeside.client)


async def test_who_is_bound_to_facilities_makes_no_copy(lakeside: Clinic, clients: tuple[UUID, UUID]) -> None:
    async with lakeside.as_admin():
        user = User(
            email=f"{uuid7()}@lakeside.example", full_name="Bound", role="clinician", status="active",
            facility_scope=[lakeside.facility],
        )  # fmt: skip
        await user.save()
    async with scope(tenant=lakeside.tenant, actor=user.id, reason="test"):
        with pytest.raises(ProtectedQueryError, match="Who is bound to facilities does not see all"):
            await record_set(clients[0])
        emergency = await break_glass(clients[0], reason="test")
    async with emergency.scope():
        with pytest.raises(ProtectedQueryError, match="An emergency shows a part of the record"):
            await record_set(clients[0])


async def test_whose_role_does_not_see_a_table_makes_no_copy(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_sets, "tenant_tables", lambda: [*EVERYTHING, Complaint])
    async with lakeside.as_clinician():
        with pytest.raises(ProtectedQueryError, match="role clinician does not see Complaint.*ask who is: admin"):
            await record_set(clients[0])
    async with lakeside.as_admin():
        assert (await record_set(clients[0])).rows["set_complaint"] == []
        monkeypatch.setattr(Complaint, "permissions", {"select": ("clinician",)})
        with pytest.raises(ProtectedQueryError, match=r"ask who is: clinician\."):  # who breaks the glass makes none
            await record_set(clients[0])


async def test_no_copy_is_made_that_would_lack_what_follows_a_row_of_the_clients_and_names_nobody(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_sets, "tenant_tables", lambda: [*EVERYTHING, Message])
    ida, tom = clients
    async with lakeside.as_admin():
        asked = Message(client_id=ida)
        await asked.save()
        answer = Message(answers=asked.id)
        await answer.save()
        with pytest.raises(ProtectedQueryError, match=r"A row of Message follows .* Fill in client_id there\."):
            await record_set(ida)
        assert (await record_set(tom)).rows["set_message"] == []
        await answer.update_self({Message.client_id: ida})
        assert ids(await record_set(ida), Message) == [asked.id, answer.id]


async def test_a_table_of_which_nobody_can_tell_whose_its_rows_are_is_named(
    lakeside: Clinic, clients: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_sets, "tenant_tables", lambda: [*EVERYTHING, Transplant])
    async with lakeside.as_admin():
        with pytest.raises(ConfigurationError, match=r"Transplant are: .* by donor_id and by receiver_id\."):
            await record_set(clients[0])


async def test_the_doctor_names_the_tables_of_a_copy_and_one_of_which_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.registered.tables", lambda: [Facility, *EVERYTHING])
    [found] = (await examine(["record_sets"])).findings
    assert found.evidence == (
        "A client's copy has rows of 6 tables: public.client, public.set_visit, public.set_finding, public.set_letter, "
        "public.set_invoice, public.set_call. Left out, because their classes say so: public.disclosure, "
        "public.set_psychotherapy."
    )
    monkeypatch.setattr("core.registered.tables", lambda: [Facility, *EVERYTHING, Transplant])
    [found] = (await examine(["record_sets"])).findings
    assert (found.verdict, found.subject) == ("fail", "table public.set_transplant")
    assert "Nobody can tell whose the rows of Transplant are" in found.evidence


@pytest.mark.parametrize(("told", "how"), [(True, "for select"), (True, "for all"), (False, "for update")])
async def test_the_doctor_warns_of_a_policy_that_hides_rows_from_a_copy(
    told: bool, how: str, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.registered.tables", lambda: [Facility, *EVERYTHING])
    await owner.execute(f"create policy office_hours on set_visit as restrictive {how} using (true)")
    try:
        [found] = (await examine(["record_sets"])).findings
    finally:
        await owner.execute("drop policy office_hours on set_visit")
    says = ("warn", "policy office_hours on public.set_visit") if told else ("pass", "")
    assert (found.verdict, found.subject) == says


# -- the command -----------------------------------------------------------------------------------------------------


async def test_the_command_prints_the_copy(lakeside: Clinic, clients: tuple[UUID, UUID], capsys: Any) -> None:
    options = {"tenant": "lakeside", "client": str(clients[0])}
    await command.__wrapped__(**options, json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["client_id"] == str(clients[0])
    assert datetime.now(UTC) - datetime.fromisoformat(said["made_at"]) < timedelta(minutes=1)
    assert [len(said["record_set"][part]) for part in PARTS] == [1] * len(PARTS)
    [visit], [finding] = said["record_set"]["set_visit"], said["record_set"]["set_finding"]
    assert (visit["plan"], finding["amount"], finding["image"]) == ({"of": "Ida"}, "1.50", "AP8=")
    await command.__wrapped__(**options)
    text = capsys.readouterr().out
    assert "client: 1 row\n" in text
    assert "notes of Ida" in text
    assert "notes of Tom" not in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tenant": "nobody"}, "There is no tenant nobody"),
        ({"client": "Ana"}, "An id is a UUID"),
        ({"client": str(uuid7())}, "There is no such client"),
        ({"actor": "nobody@lakeside.example"}, "no user with the e-mail"),
    ],
)
async def test_a_mistake_is_one_sentence(lakeside: Clinic, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ChartholdError, match=says):
        await command.__wrapped__(**{"tenant": "lakeside", "client": str(lakeside.client), **options})


# -- the README ------------------------------------------------------------------------------------------------------


async def test_the_example_of_the_readme_runs(lakeside: Clinic, clients: tuple[UUID, UUID]) -> None:
    [source] = [block for block in README.read_text(encoding="utf-8").split("```python\n") if "record_set(" in block]
    async with lakeside.as_clinician():
        namespace: dict[str, Any] = {"date": date, "ana": await Client.objects().get(Client.id == clients[0])}
        body = f"async def example():\n{textwrap.indent(source.partition('```')[0], '    ')}\n    return copy\n"
        exec(compile(body, "README.md", "exec"), namespace)
        copy = await namespace["example"]()
    assert copy.client_id == clients[0]
