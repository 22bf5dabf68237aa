"""To whom the plaintext of a column is shown, 164.502(b): a role that does not need it opens and finds out nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.columns import Text

from core import (
    WITHHELD,
    ConfigurationError,
    Disclosure,
    ProtectedQueryError,
    ScopeError,
    break_glass,
    record_set,
    scope,
    transaction,
)
from core.columns import BlindIndex, Encrypted, EncryptedText
from core.doctor import examine
from core.engine import ChartholdEngine
from core.queries.shape import SHAPES
from core.rotation import Target, rotate
from core.tables import Client, Facility, TenantTable, User
from tests.conftest import KEY_CACHE, Clinic
from tests.ledger import create
from tests.ways_of_reading import OPENED, TABLES, Way, populate, shown

LOG = "user_action_audit_log"


@pytest.fixture(scope="module", autouse=True)
async def tables(database: ChartholdEngine) -> None:
    await create(database, *TABLES, Member)


pytestmark = pytest.mark.usefixtures("short_key_cache")
Show = Callable[..., None]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Iterator[Show]:
    """Says to whom columns of a table are shown; statements that were compiled before do not know of it."""

    def say(table: type[TenantTable], **columns: tuple[str, ...]) -> None:
        monkeypatch.setattr(table, "shown_to", columns)
        SHAPES.clear()

    yield say
    monkeypatch.undo()
    SHAPES.clear()


def as_billing(clinic: Clinic, reason: str = "test") -> Any:
    return scope(tenant=clinic.tenant, actor=clinic.billing, reason=reason)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tables are an application's, too."""
    monkeypatch.setattr("core.rotation.rows.tenant_tables", lambda: [Client, Disclosure, *TABLES, Member])


async def recorded(owner: asyncpg.Connection, reason: str, *actions: str) -> list[asyncpg.Record]:
    return await owner.fetch(
        f"select * from {LOG} where reason = $1 and action_type = any($2) order by occurred_at", reason, list(actions)
    )


# -- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize("way", OPENED, ids=lambda way: way.run.__name__)
async def test_no_way_of_reading_shows_a_role_what_is_not_for_it(
    way: Way, able: bool, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine, show: Show
) -> None:
    async with lakeside.as_admin("populate"):
        w = await populate(database)
    for table in TABLES:
        sealed = [column._meta.name for column in table._meta.columns if isinstance(column, Encrypted)]
        show(table, **dict.fromkeys(sealed, ("clinician", *(["admin"] if able else []))))
    reason, result = f"treatment {uuid4()}", None
    async with lakeside.as_admin(reason):
        with contextlib.nullcontext() if able else contextlib.suppress(ScopeError):
            result = await way.run(w)
    assert bool(shown(result)) == able
    assert bool(await recorded(owner, reason, "read")) == able


async def test_what_is_for_every_role_is_shown_beside_it_when_it_is_asked_for(lakeside: Clinic, show: Show) -> None:
    show(Client, notes=("admin", "clinician"), ssn=("admin", "billing"))
    here = Client.id == lakeside.client
    async with as_billing(lakeside):
        assert await Client.select(Client.last_name, Client.ssn).where(here) == [
            {"last_name": "Nguyen", "ssn": "999-17-5017"}
        ]
        for query in (Client.select().where(here), Client.objects().get(here), Client.select(Client.notes).where(here)):
            with pytest.raises(ScopeError, match=r"\(notes of client: for admin, clinician, emergency\)"):
                await query
    async with lakeside.as_clinician():
        assert (await Client.select(Client.notes).where(here).first()) == {"notes": "afraid of needles"}
        # Of two columns each must be for the role.
        with pytest.raises(ScopeError, match=r"\(ssn of client: for admin, billing\)"):
            await Client.select(Client.notes, Client.ssn).where(here)
    async with lakeside.as_admin():
        assert len(await Client.select().where(here)) == 1


async def test_requests_that_come_together_are_each_asked(lakeside: Clinic, show: Show) -> None:
    show(Client, notes=("clinician",))

    async def notes(user: Any) -> Any:
        async with scope(tenant=lakeside.tenant, actor=user, reason="test"):
            try:
                return (await Client.objects().get(Client.id == lakeside.client)).notes
            except ScopeError:
                return "refused"

    users = [lakeside.clinician, lakeside.billing] * 20
    told = await asyncio.gather(*[asyncio.create_task(notes(user)) for user in users])
    assert told == ["afraid of needles", "refused"] * 20


async def test_a_user_who_gets_another_role_meanwhile_is_shown_no_further_batch(
    lakeside: Clinic, show: Show, owner: asyncpg.Connection
) -> None:
    show(Client, notes=("billing", "admin"))
    async with lakeside.as_admin():
        for _ in range(2):
            await newcomer(lakeside).save()
    try:
        async with as_billing(lakeside):
            with pytest.raises(ScopeError, match="is not shown"):
                async with await Client.select(Client.notes).batch(batch_size=1) as batch:
                    async for rows in batch:
                        assert len(rows) == 1
                        async with asyncio.timeout(10):
                            await demoted(lakeside, owner)
    finally:
        await owner.execute("update app_user set role = 'billing' where id = $1", lakeside.billing)


async def demoted(clinic: Clinic, owner: asyncpg.Connection) -> None:
    await owner.execute(
        "select set_config('charthold.scope', charthold.sign($1, $2, 'test'), false)", clinic.tenant, clinic.admin
    )
    await owner.execute("update app_user set role = 'clinician' where id = $1", clinic.billing)


def newcomer(clinic: Clinic, **given: Any) -> Client:
    born = date(2000, 1, 1)
    return Client(facility_id=clinic.facility, first_name="A", last_name="B", date_of_birth=born, **given)


async def test_who_writes_a_column_need_not_see_it(lakeside: Clinic, show: Show) -> None:
    show(Client, notes=("clinician",))
    async with lakeside.as_admin():
        one = newcomer(lakeside, notes="told by phone")
        await one.save()
        await Client.update({Client.notes: "told again"}).where(Client.id == one.id)
    async with lakeside.as_clinician():
        assert (await Client.objects().get(Client.id == one.id)).notes == "told again"


class Member(TenantTable, tablename="minimum_member"):
    number = EncryptedText(null=True)
    plan = EncryptedText(null=True)
    number_plan = BlindIndex("number", "plan", kind="compound", parts=("exact", "exact"))


async def test_who_writes_a_part_of_what_is_searched_together_need_not_see_the_other(
    lakeside: Clinic, show: Show
) -> None:
    show(Member, plan=("clinician",))
    async with lakeside.as_admin():
        one = Member(number="1", plan="gold")
        await one.save()
        await Member.update({Member.number: "2"}).where(Member.id == one.id)
        for query in (
            Member.update({Member.number: "3"}).where(Member.id == one.id).returning(Member.plan),
            Member.update({Member.number: "3"}).where((Member.number == "2") & (Member.plan == "gold")),
        ):
            with pytest.raises(ScopeError, match=r"plan of minimum_member: for clinician"):
                await query
    async with lakeside.as_clinician():
        assert await Member.count().where((Member.number == "2") & (Member.plan == "gold")) == 1


async def test_in_an_emergency_a_clinician_is_shown_what_is_for_clinicians(
    lakeside: Clinic, show: Show, database: ChartholdEngine
) -> None:
    async with lakeside.as_admin():
        site = Facility(name="Elsewhere")
        await site.save()
        bound = User(
            email=f"{uuid4()}@x.example", full_name="Bo", role="clinician", status="active", facility_scope=[site.id]
        )
        await bound.save()
    async with scope(tenant=lakeside.tenant, actor=bound.id, reason="test"):
        emergency = await break_glass(lakeside.client, reason="unconscious")
    show(Client, notes=("clinician",))
    async with emergency.scope():
        assert (await Client.objects().get(Client.id == lakeside.client)).notes == "afraid of needles"
    show(Client, notes=("admin",))
    async with emergency.scope():
        with pytest.raises(ScopeError, match="is not shown"):
            await Client.objects().get(Client.id == lakeside.client)


async def test_no_glass_is_broken_by_what_is_not_for_the_role(
    lakeside: Clinic, show: Show, owner: asyncpg.Connection
) -> None:
    """Threat: who may not ask whose number it is declares an emergency, and is told."""
    async with lakeside.as_admin():
        site = Facility(name=f"Site {uuid4()}")
        await site.save()
        bound = User(
            email=f"{uuid4()}@x.example", full_name="Bo", role="clinician", status="active", facility_scope=[site.id]
        )
        await bound.save()
    show(Client, ssn=("billing",), mrn=("clinician",))
    async with scope(tenant=lakeside.tenant, actor=bound.id, reason="test"):
        for guess in ("999-17-5017", "no such"):
            with pytest.raises(ScopeError, match=r"\(ssn of client: for billing\)"):
                await break_glass((Client.ssn == guess) & (Client.mrn == "lakeside-1"), reason="unconscious")
        emergency = await break_glass(Client.mrn == "lakeside-1", reason="unconscious")
    assert emergency.client_id == lakeside.client
    assert await owner.fetchval("select count(*) from emergency_access where user_id = $1", bound.id) == 1


# -- what is found out -----------------------------------------------------------------------------------------------


SEARCHES: dict[str, Callable[[], Any]] = {
    "a select": lambda: Client.select(Client.id).where(Client.ssn == "999-17-5017"),
    "a select of another column": lambda: Client.select(Client.last_name).where(Client.ssn.ends_with("5017")),
    "a count": lambda: Client.count().where(Client.ssn == "999-17-5017"),
    "one that exists": lambda: Client.exists().where(Client.ssn == "999-17-5017"),
    "one of two": lambda: Client.select(Client.id).where((Client.last_name == "x") | (Client.ssn == "999-17-5017")),
    "an update": lambda: Client.update({Client.status: "active"}).where(Client.ssn == "999-17-5017"),
    "an update of what is sealed": lambda: Client.update({Client.phone: "1"}).where(Client.ssn == "999-17-5017"),
    "a delete": lambda: Client.delete().where(Client.ssn == "no such"),
    "one beneath another": lambda: Facility.exists().where(
        Facility.id.is_in(Client.select(Client.facility_id).where(Client.ssn == "999-17-5017"))
    ),
    "SQL of one's own": lambda: Client.raw("select exists({})", Client.select(Client.id).where(Client.ssn == "x").querystrings[0]),
    "a join": lambda: Facility.select(Facility.name).where(Facility.id.is_in(Client.select(Client.facility_id).where(Client.ssn != "x"))),
}  # fmt: skip


@pytest.mark.parametrize("how", SEARCHES)
async def test_no_search_tells_a_role_who_has_what_is_not_for_it(
    how: str, lakeside: Clinic, show: Show, owner: asyncpg.Connection
) -> None:
    show(Client, ssn=("billing",))
    reason = f"guess {uuid4()}"
    async with lakeside.as_admin(reason):
        with pytest.raises(ScopeError, match=r"\(ssn of client: for billing\)"):
            await SEARCHES[how]()
    assert not await recorded(owner, reason, "read", "update", "delete")
    async with as_billing(lakeside):
        assert await Client.count().where(Client.ssn == "999-17-5017") == 1


CONFLICTS: dict[str, dict[str, Any]] = {
    "a condition": {"target": Client.id, "where": Client.ssn == "999-17-5017"},
    "the sealed column": {"target": Client.mrn},
    "its index": {"target": (Client.tenant_id, Client.mrn_exact)},
}


@pytest.mark.parametrize("how", CONFLICTS)
async def test_no_conflict_tells_a_role_who_has_what_is_not_for_it(how: str, lakeside: Clinic, show: Show) -> None:
    def conflict() -> Any:
        known = newcomer(lakeside, mrn="lakeside-1")
        if how == "a condition":
            known.id = lakeside.client
        chosen = {"action": "DO UPDATE", "values": [(Client.status, "active")], **CONFLICTS[how]}
        return Client.insert(known).on_conflict(**chosen).returning(Client.id)

    show(Client, ssn=("clinician",), mrn=("clinician",))
    async with lakeside.as_admin():
        with pytest.raises(ScopeError, match=r"of client: for clinician, emergency\)"):
            await conflict()
        # To write a value is to be told that it is taken.
        assert await Client.insert(newcomer(lakeside, mrn="lakeside-1")).on_conflict(action="DO NOTHING") == []
    async with lakeside.as_clinician():
        assert await conflict() == [{"id": lakeside.client}]


@pytest.mark.parametrize("how", ["a select", "SQL of one's own"])
async def test_a_search_in_batches_is_refused_before_the_first(how: str, lakeside: Clinic, show: Show) -> None:
    show(Client, ssn=("billing",))
    async with lakeside.as_admin():
        with pytest.raises(ScopeError, match="is not shown"):
            async with await SEARCHES[how]().batch():
                pass


# -- the log ---------------------------------------------------------------------------------------------------------


async def test_the_past_of_a_withheld_column_says_that_it_changed_and_not_to_what(
    lakeside: Clinic, show: Show, owner: asyncpg.Connection, registered: None
) -> None:
    async with lakeside.as_admin():
        one = newcomer(lakeside, notes="first")
        await one.save()
        made = datetime.now(UTC)
        one.notes = "second"
        await one.save()
    await rotate([Target(lakeside.tenant, "lakeside", lakeside.admin)], wait=KEY_CACHE)
    show(Client, notes=("clinician",))
    reason = f"looked up {uuid4()}"
    async with lakeside.as_admin(reason):
        told = await one.history()
        assert [change.action for change in told] == ["insert", "update"]  # not the one of the rotation
        assert (told[0].new["last_name"], told[0].new["notes"]) == ("B", WITHHELD)
        assert told[1].changed == ("notes",)
        assert (told[1].old["notes"], told[1].new["notes"]) == (WITHHELD, WITHHELD)
        assert (await one.as_of(made))["notes"] is WITHHELD
        assert {row.notes for row in await Client.as_of(made)} <= {WITHHELD, None}
        with pytest.raises(ScopeError, match="your role is not shown notes"):
            await one.revert(to=made)
    for read in await recorded(owner, reason, "read"):
        assert "notes" not in read["changed_columns"]
        assert "last_name" in read["changed_columns"]


async def test_a_history_that_shows_no_phi_is_recorded_as_a_look_at_the_log(
    lakeside: Clinic, show: Show, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    topic = TABLES[3]
    async with lakeside.as_admin():
        one = topic(word="secret")
        await one.save()
    show(topic, word=("clinician",))
    reason = f"looked up {uuid4()}"
    async with lakeside.as_admin(reason):
        [change] = await one.history()
        assert change.new["word"] is WITHHELD
    assert [row["action_type"] for row in await recorded(owner, reason, "read", "audit_read")] == ["audit_read"]


# -- what else is made of it -----------------------------------------------------------------------------------------


async def test_a_copy_for_a_client_is_not_made_with_gaps(lakeside: Clinic, show: Show) -> None:
    show(Client, notes=("clinician",))
    async with lakeside.as_admin():
        with pytest.raises(ProtectedQueryError, match="The role admin is not shown notes of Client"):
            await record_set(lakeside.client)
    show(Client, notes=("clinician", "admin"))
    async with lakeside.as_admin():
        assert (await record_set(lakeside.client)).rows["client"][0]["notes"] == "afraid of needles"


async def test_keys_are_rotated_whoever_is_shown_the_columns(lakeside: Clinic, show: Show, registered: None) -> None:
    show(Client, notes=(), ssn=("clinician",))
    [outcome] = await rotate([Target(lakeside.tenant, "lakeside", lakeside.admin)], wait=KEY_CACHE)
    assert not outcome.problem
    async with lakeside.as_clinician(), transaction():
        assert await Client.count().where(Client.ssn == "999-17-5017") == 1


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"note": ("admin",)}, "names 'note'. It may name encrypted columns: notes."),
        ({"status": ("admin",)}, "names 'status'. It may name encrypted columns: notes."),
        ({"notes": ("doctor",)}, "names 'doctor'. It may name roles: admin, clinician, billing, auditor, system."),
    ],
)
async def test_a_misspelt_name_is_refused_because_it_would_protect_nothing(
    said: dict[str, tuple[str, ...]], names: str, lakeside: Clinic, show: Show
) -> None:
    with pytest.raises(ConfigurationError, match=f"Chart.shown_to {names}"):

        class Chart(TenantTable, tablename="minimum_chart"):
            notes = EncryptedText(identifier="other", null=True)
            status = Text(default="")
            shown_to = said

    show(Client, **said if "notes" not in said else {"notes": ("doctor",)})
    async with lakeside.as_admin():
        with pytest.raises(ConfigurationError, match="Client.shown_to names"):
            await Client.select(Client.last_name)


async def test_the_doctor_says_what_is_shown_to_whom(lakeside: Clinic, show: Show) -> None:
    [found] = (await examine(["minimum_necessary"])).findings
    assert (found.safeguard, found.verdict) == ("164.502(b)", "pass")
    assert "Every role that sees a row is shown all of it" in found.evidence
    show(Client, notes=("admin", "clinician"))
    [found] = (await examine(["minimum_necessary"])).findings
    assert "notes of public.client for admin, clinician, emergency" in found.evidence
    show(Client, note=("admin", "clinician"))
    [found] = (await examine(["minimum_necessary"])).findings
    assert (found.verdict, found.subject) == ("fail", "table public.client")
