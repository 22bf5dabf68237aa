"""A user who is bound to facilities sees what belongs to them, in tables that hold no facility too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from piccolo.columns import UUID as UUIDColumn
from piccolo.columns import Text

from core import ConfigurationError, ScopeError, current_scope, scope
from core.columns import EncryptedText, TenantForeignKey
from core.engine import ChartholdEngine
from core.tables import Client, Facility, TenantTable, User
from tests.conftest import Clinic
from tests.ledger import create


class Visit(TenantTable, tablename="facility_visit"):
    client_id = TenantForeignKey(Client)
    notes = EncryptedText(identifier="other", null=True)


class Finding(TenantTable, tablename="facility_finding"):
    """Two references away from a facility."""

    visit_id = TenantForeignKey(Visit)
    label = Text(default="")


class Room(TenantTable, tablename="facility_room"):
    facility_id = TenantForeignKey(Facility)
    label = Text(default="")


class Transfer(TenantTable, tablename="facility_transfer"):
    from_id = TenantForeignKey(Facility, null=True)
    to_id = TenantForeignKey(Facility, null=True)


class Letter(TenantTable, tablename="facility_letter"):
    """For everybody, whoever it is about."""

    client_id = TenantForeignKey(Client)
    facility_from = ()


class Member(TenantTable, tablename="facility_member"):
    """A tree of its own: what leads back to the table says nothing."""

    client_id = TenantForeignKey(Client)
    above_id = TenantForeignKey("self", null=True)


class Encounter(TenantTable, tablename="facility_encounter"):
    """It and its notes refer to each other; both are nearer to a facility by their client."""

    note_id = TenantForeignKey("Note", null=True)
    client_id = TenantForeignKey(Client)


class Note(TenantTable, tablename="facility_note"):
    encounter_id = TenantForeignKey(Encounter, null=True)
    client_id = TenantForeignKey(Client)
    visit_id = TenantForeignKey(Visit, null=True)


class Order(TenantTable, tablename="facility_order"):
    """Narrowed by two references, because it says so."""

    client_id = TenantForeignKey(Client)
    visit_id = TenantForeignKey(Visit, null=True)
    facility_from = ("client_id", "visit_id")


TABLES = (Visit, Finding, Room, Transfer, Letter, Member, Encounter, Note, Order)


class Place(NamedTuple):
    """A facility, with one row of each table that belongs to it."""

    facility: UUID
    client: UUID
    rows: dict[type[TenantTable], UUID]


@pytest.fixture(scope="module")
async def places(database: ChartholdEngine, lakeside: Clinic) -> tuple[Place, Place]:
    await create(database, *TABLES)
    async with lakeside.as_admin():
        return await furnish("Here"), await furnish("There")


async def furnish(name: str) -> Place:
    async def saved(row: Any) -> UUID:
        await row.save()
        return row.id

    facility = await saved(Facility(name=name))
    client = await saved(Client(facility_id=facility, first_name=name, last_name="Li", date_of_birth=date(1990, 1, 1)))
    visit = await saved(Visit(client_id=client, notes=name))
    rows = {
        Visit: visit,
        Finding: await saved(Finding(visit_id=visit)),
        Room: await saved(Room(facility_id=facility)),
        Transfer: await saved(Transfer(to_id=facility)),
        Letter: await saved(Letter(client_id=client)),
        Member: await saved(Member(client_id=client)),
        Encounter: await saved(Encounter(client_id=client)),
        Note: await saved(Note(client_id=client)),
        Order: await saved(Order(client_id=client, visit_id=visit)),
    }
    return Place(facility, client, rows)


@pytest.fixture(scope="module")
async def nurse(lakeside: Clinic, places: tuple[Place, Place]) -> UUID:
    """A clinician of the first facility."""
    bound = User(
        email="nurse@lakeside.example", full_name="Nurse", role="clinician", status="active",
        facility_scope=[places[0].facility],
    )  # fmt: skip
    async with lakeside.as_admin():
        await bound.save()
    return bound.id


@asynccontextmanager
async def at_work(clinic: Clinic, nurse: UUID) -> AsyncIterator[None]:
    async with scope(tenant=clinic.tenant, actor=nurse, reason="treatment"):
        yield


@pytest.mark.parametrize("table", [Visit, Finding, Room, Transfer, Member, Encounter, Note, Order])
async def test_a_row_is_seen_changed_and_made_by_who_sees_what_it_refers_to(
    table: type[TenantTable], lakeside: Clinic, nurse: UUID, places: tuple[Place, Place], owner: asyncpg.Connection
) -> None:
    here, there = places
    async with at_work(lakeside, nurse):
        seen = {row["id"] for row in await table.select(table.id)}
        assert here.rows[table] in seen
        assert there.rows[table] not in seen
        assert await table.count().where(table.id == there.rows[table]) == 0
        key = {Transfer: Transfer.to_id, Encounter: Encounter.client_id, Note: Note.client_id}.get(
            table, table._meta.foreign_key_columns[0]
        )
        # Nothing is moved out of sight or made there, and nothing that is there is reached.
        beyond = await owner.fetchval(
            f'select "{key._meta.name}" from {table._meta.tablename} where id = $1', there.rows[table]
        )
        with pytest.raises(ScopeError, match="row-level security"):
            await table.update({key: beyond}).where(table.id == here.rows[table])
        with pytest.raises(ScopeError, match="row-level security"):
            await table(**{key._meta.name: beyond}).save()
        await table.update({key: beyond}).where(table.id == there.rows[table])
        assert await table.select(table.id).where(table.id == here.rows[table])
    async with lakeside.as_admin():
        assert await table.count() == 2


async def test_a_row_that_refers_to_nothing_is_not_for_who_is_bound(
    lakeside: Clinic, nurse: UUID, places: tuple[Place, Place]
) -> None:
    here, there = places
    async with lakeside.as_admin():
        nowhere, both = Transfer(), Transfer(from_id=here.facility, to_id=there.facility)
        await nowhere.save()
        await both.save()
    async with at_work(lakeside, nurse):
        assert [row["id"] for row in await Transfer.select(Transfer.id)] == [here.rows[Transfer]]
    async with lakeside.as_admin():
        await Transfer.delete().where(Transfer.id.is_in([nowhere.id, both.id]))


async def test_a_table_that_says_so_is_for_the_whole_tenant(
    lakeside: Clinic, nurse: UUID, places: tuple[Place, Place]
) -> None:
    async with at_work(lakeside, nurse):
        assert {row["id"] for row in await Letter.select(Letter.id)} == {place.rows[Letter] for place in places}


async def test_an_audit_reader_of_one_facility_is_not_told_that_the_log_is_as_it_was_sealed(
    lakeside: Clinic, places: tuple[Place, Place]
) -> None:
    from core.audit.seal import seal
    from core.audit.verify import verify

    bound = User(
        email="auditor2@lakeside.example", full_name="Auditor", role="auditor", status="active",
        facility_scope=[places[0].facility],
    )  # fmt: skip
    async with lakeside.as_admin():
        await bound.save()
    async with scope(tenant=lakeside.tenant, actor=bound.id, reason="audit"):
        for work in (seal, verify):
            with pytest.raises(ScopeError, match="bound to no facility"):
                await work()


def test_a_reference_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="facility_from names 'patient_id'"):
        type("Wrong", (TenantTable,), {"client_id": TenantForeignKey(Client), "facility_from": ("patient_id",)})


def test_a_way_by_what_nobody_may_read_is_not_taken_for_none() -> None:
    """Threat: the whole tenant would see the rows."""

    class Sealed(TenantTable):
        client_id = TenantForeignKey(Client)
        permissions: ClassVar[dict[str, tuple[str, ...]]] = {"insert": ("admin",)}

    class Below(TenantTable):
        sealed_id = TenantForeignKey(Sealed)

    class Open(TenantTable):
        sealed_id = TenantForeignKey(Sealed)
        facility_from = ()

    with pytest.raises(ConfigurationError, match=r"Below\.sealed_id leads to a facility only by a table that no role"):
        Below.narrowed_by()
    assert Open.narrowed_by() == []


def test_each_table_is_narrowed_by_what_is_nearest_to_a_facility() -> None:
    assert {table.__name__: table.narrowed_by() for table in TABLES} == {
        "Visit": ["client_id"],
        "Finding": ["visit_id"],
        "Room": ["facility_id"],
        "Transfer": ["from_id", "to_id"],
        "Letter": [],
        "Member": ["client_id"],
        "Encounter": ["client_id"],
        "Note": ["client_id"],
        "Order": ["client_id", "visit_id"],
    }


def test_what_is_nearer_comes_before_what_is_required_and_that_before_what_may_be_missing() -> None:
    class Memo(TenantTable):
        visit_id = TenantForeignKey(Visit)
        client_id = TenantForeignKey(Client, null=True)

    class Bill(TenantTable):
        paid_by = TenantForeignKey(Client, null=True)
        client_id = TenantForeignKey(Client)

    class Twin(TenantTable):
        first_id = TenantForeignKey(Client)
        second_id = TenantForeignKey(Client)

    class Site(TenantTable):
        """Bound by a column that is no reference."""

        at = UUIDColumn(default=None)
        facility_column = "at"

    class OfSite(TenantTable):
        site_id = TenantForeignKey(Site)

    assert [table.narrowed_by() for table in (Memo, Bill, Twin)] == [["client_id"], ["client_id"], ["first_id"]]

    class Stay(TenantTable):
        """As near as its nearest way."""

        facility_id = TenantForeignKey(Facility)
        finding_id = TenantForeignKey(Finding)

    class OfStay(TenantTable):
        visit_id = TenantForeignKey(Visit)
        stay_id = TenantForeignKey(Stay)

    class Both(Stay):
        """As far as the farthest of the ways that all narrow it."""

        facility_from = ("facility_id", "finding_id")

    class OfBoth(TenantTable):
        both_id = TenantForeignKey(Both)
        visit_id = TenantForeignKey(Visit)

    class Theirs(TenantTable, tablename="facility", schema="elsewhere"):
        """Of another schema, and so none of ours."""

        permissions = {"select": ("admin",)}  # noqa: RUF012

    class OfTheirs(TenantTable):
        theirs_id = TenantForeignKey(Theirs)

    assert [table.narrowed_by() for table in (Site, OfSite)] == [["at"], ["site_id"]]
    assert [table.narrowed_by() for table in (OfStay, OfBoth, OfTheirs)] == [["stay_id"], ["visit_id"], []]


def test_a_reference_that_leads_to_no_facility_is_refused() -> None:
    """It would narrow nothing, and look as if it did."""

    class Wrong(TenantTable):
        user_id = TenantForeignKey(User)
        letter_id = TenantForeignKey(Letter)
        facility_from = ("user_id",)

    class WrongToo(TenantTable):
        user_id = TenantForeignKey(User)
        letter_id = TenantForeignKey(Letter)
        facility_from = ("letter_id",)

    for table in (Wrong, WrongToo):
        with pytest.raises(ConfigurationError, match="leads to no facility"):
            table.narrowed_by()


async def test_a_bound_users_list_finds_each_row_it_refers_to_by_its_key(
    lakeside: Clinic, nurse: UUID, places: tuple[Place, Place], database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    """Not by another index of the tenant, which reads all of its rows for each."""
    async with lakeside.as_admin():
        clients = [
            Client(facility_id=place.facility, first_name="M", last_name="Any", date_of_birth=date(1990, 1, 1))
            for place in places
            for _ in range(400)
        ]
        await Client.insert(*clients)
        visits = [Visit(client_id=client.id) for client in clients]
        await Visit.insert(*visits)
        await Finding.insert(*[Finding(visit_id=visit.id) for visit in visits])
    await owner.execute("analyze client, facility_visit, facility_finding")
    runtime = await database.connect(owner=False)
    async with at_work(lakeside, nurse), runtime.transaction():
        token = current_scope().token(database.token_key, runtime.get_server_pid())
        await runtime.fetchval("select set_config('charthold.scope', $1, true)", token)
        plan = "\n".join(row[0] for row in await runtime.fetch("explain select * from facility_finding"))
    await runtime.close()
    assert "facility_visit_pkey" in plan
    assert "client_pkey" in plan
