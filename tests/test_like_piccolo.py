"""What users see of Piccolo does not change. Each of these was a difference that a comparison with plain Piccolo found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from enum import Enum
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.columns import JSONB, Array, Date, Integer, Text
from piccolo.query.functions import Case, Coalesce, Count, Length, Lower, Max, Min, Upper, When
from piccolo.utils.pydantic import create_pydantic_model

from core import ProtectedQueryError, transaction
from core.columns import EncryptedJSON, EncryptedText
from core.ids import uuid7
from core.tables import Client, Facility, User
from core.tenant_table import TenantTable
from tests.conftest import Clinic
from tests.ledger import create

BORN = date(1990, 7, 1)


class Basket(TenantTable, tablename="like_basket"):
    """Everything that a column can be trusted with."""

    name = Text()
    tags = Array(Text(), null=True, default=None)
    grid = Array(Array(Text()), null=True, default=None)
    numbers = Array(Integer(), null=True, default=None)
    days = Array(Date(), null=True, default=None)
    document = JSONB(null=True, default=None)
    secret = EncryptedText(identifier="other", null=True)
    sealed = EncryptedJSON(identifier="other", null=True)


@pytest.fixture(scope="module", autouse=True)
async def tables(database: Any) -> None:
    await create(database, Basket)


def client(clinic: Clinic, **values: Any) -> Client:
    given = {"first_name": "Bo", "last_name": "Like", "date_of_birth": BORN, "facility_id": clinic.facility}
    return Client(**{**given, **values})


def user(*facilities: Any) -> User:
    return User(email=f"{uuid4().hex}@x.example", full_name="A", role="clinician", facility_scope=list(facilities))


# -- arrays ------------------------------------------------------------------------------------------------------------


async def test_each_element_of_an_array_has_a_query_of_its_own(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        first, second = Facility(name="One"), Facility(name="Two")
        await Facility.insert(first, second)
        a, b = user(first.id, second.id), user(second.id, first.id)
        await User.insert(a, b)
        mine = User.id.is_in([a.id, b.id])
        assert await User.select(User.id).where(User.facility_scope[0] == uuid7()) == []
        assert await User.select(User.id).where(User.facility_scope[1] == first.id, mine) == [{"id": b.id}]
        assert await User.select(User.facility_scope[0].as_alias("f")).where(User.id == a.id) == [{"f": first.id}]
        assert await User.select(User.facility_scope[1].as_alias("f")).where(User.id == a.id) == [{"f": second.id}]
        assert await User.select(User.id).where(User.facility_scope == [first.id, second.id]) == [{"id": a.id}]
        await User.update({User.full_name: "B"}).where(User.facility_scope[0] == uuid7(), mine)
        await User.update({User.full_name: "C"}).where(User.facility_scope[1] == first.id, mine)
        named = {row["id"]: row["full_name"] for row in await User.select().where(mine)}
        assert named == {a.id: "A", b.id: "C"}
        await User.delete().where(User.facility_scope[0] == uuid7(), mine)
        await User.delete().where(User.facility_scope[1] == first.id, mine)
        assert [row["id"] for row in await User.select().where(mine)] == [a.id]


@pytest.mark.parametrize("size", [1, 2, 120])
async def test_arrays_are_stored_as_they_are_however_many_rows(size: int, lakeside: Clinic) -> None:
    given: dict[str, Any] = {
        "tags": ["a", None, "", "NULL", "null", 'q"uote', "back\\slash", "comma, brace {}", " blank ", "ünï\ncode"],
        "grid": [["a", "b"], ["c", None]],
        "numbers": [1, None, -3],
        "days": [date(2020, 2, 29), None, date(9999, 12, 31)],
    }
    async with lakeside.as_admin():
        rows = [Basket(name=f"basket {n}", **given) for n in range(size)] + [Basket(name="none")] * (size > 1)
        rows[-1] = Basket(name="last", **(given if size == 1 else {"tags": [], "numbers": None}))
        await Basket.insert(*rows)
        found = await Basket.select(*(getattr(Basket, name) for name in given)).where(Basket.id == rows[0].id).first()
        assert found == given
        if size > 1:
            last = await Basket.select(Basket.tags, Basket.numbers).where(Basket.id == rows[-1].id).first()
            assert last == {"tags": [], "numbers": None}


# -- documents and instances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, 1.5, True, False, [1, "a", None], {"a": {"b": None}}, '"text"'], ids=repr)
@pytest.mark.parametrize("size", [1, 2])
async def test_any_json_value_is_stored(value: Any, size: int, lakeside: Clinic) -> None:
    wanted = "text" if isinstance(value, str) else value
    async with lakeside.as_admin():
        rows = [Basket(name="json", document=value) for _ in range(size)]
        await Basket.insert(*rows)
        for row in rows:
            assert await Basket.select(Basket.document).where(Basket.id == row.id).output(load_json=True) == [
                {"document": wanted}
            ]
        await Basket.update({Basket.document: value}).where(Basket.id == rows[0].id)
        found = await Basket.objects().get(Basket.id == rows[0].id).output(load_json=True)
        assert found.document == wanted
        assert isinstance(found.document, type(wanted))


@pytest.mark.parametrize(("before", "after"), [(1, True), (True, 1), (0, False), (1, 1.5), (0.0, False)])
async def test_save_tells_a_number_in_a_document_from_a_truth_value(before: Any, after: Any, lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        row = Basket(name="types", sealed={"a": [before]}, document={"a": before})
        await row.save()
        row.sealed, row.document = {"a": [after]}, {"a": after}
        await row.save()
        found = await Basket.select(Basket.sealed, Basket.document).where(Basket.id == row.id).output(load_json=True)
    for value in (found[0]["sealed"]["a"][0], found[0]["document"]["a"]):
        assert (value, type(value)) == (after, type(after))


async def test_to_dict_shows_what_a_reference_brought(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        found = await Client.objects(Client.facility_id).get(Client.id == lakeside.client)
        shown = found.to_dict()
        assert shown["facility_id"]["name"] == "Main street"
        assert shown["last_name"] == "Nguyen"
        assert not {name for name in shown if name.endswith(("_folded", "_exact", "_prefix", "_last_four"))}
        assert found.to_dict(Client.last_name, Client.facility_id.name) == {
            "last_name": "Nguyen",
            "facility_id": {"name": "Main street"},
        }


async def test_a_row_is_made_of_columns_or_of_their_names_and_of_each_once(lakeside: Clinic) -> None:
    assert Facility({"name": "a"}).name == Facility({Facility.name: "a"}).name == Facility(name="a").name == "a"
    with pytest.raises(ValueError, match="name is given twice"):
        Facility({Facility.name: "a"}, name="b")
    async with lakeside.as_admin():
        made = await Facility.objects().get_or_create(Facility.name == "made", {"address": {"city": "Ulm"}})
        assert (made._was_created, made.address) == (True, {"city": "Ulm"})


def test_pydantic_knows_what_an_encrypted_column_holds() -> None:
    fields = create_pydantic_model(Client).model_fields
    assert [fields[n].annotation for n in ("last_name", "date_of_birth", "address")] == [
        str | None,
        date | None,
        dict | None,
    ]


async def test_a_member_of_an_enumeration_is_its_value(lakeside: Clinic) -> None:
    class Colour(Enum):
        RED = "red"

    async with lakeside.as_admin():
        rows = [Basket(name="enum", secret=Colour.RED) for _ in range(2)]
        await rows[0].save()
        await Basket.insert(rows[1], Basket(name="other"))
        await Basket.update({Basket.secret: Colour.RED}).where(Basket.id == rows[1].id)
        for row in rows:
            assert await Basket.select(Basket.secret).where(Basket.id == row.id) == [{"secret": "red"}]


# -- what was undone -----------------------------------------------------------------------------------------------------


class UndoneError(Exception):
    """Leaves a block."""


@pytest.mark.parametrize("how", ["block", "nested block", "savepoint", "rollback"])
async def test_what_a_rollback_took_back_is_saved_again(how: str, lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        site, person = Facility(name=f"Old {how}"), client(lakeside, phone="1")
        await site.save()
        await person.save()

        async def change() -> None:
            site.phone, person.phone = "2", "2"
            await site.save()
            await person.update_self({Client.phone: "2"})
            await new.save()

        new = Facility(name=f"New {how}")
        if how == "block":
            with pytest.raises(UndoneError):
                async with transaction():
                    await change()
                    raise UndoneError
        elif how == "nested block":
            async with transaction():
                with pytest.raises(UndoneError):
                    async with transaction():
                        await change()
                        raise UndoneError
        elif how == "savepoint":
            async with transaction() as outer:
                mark = await outer.savepoint()
                await change()
                await mark.rollback_to()
        else:
            async with transaction() as outer:
                await change()
                await outer.rollback()
        await site.save()
        await person.save()
        await new.save()
        assert (await Facility.objects().get(Facility.id == site.id)).phone == "2"
        assert (await Client.objects().get(Client.id == person.id)).phone == "2"
        assert (await Facility.objects().get(Facility.id == new.id)).name == f"New {how}"


async def test_what_was_saved_before_a_savepoint_stays_saved(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        site = Facility(name="Kept")
        async with transaction() as outer:
            await site.save()
            site.phone = "1"
            await site.save()
            mark = await outer.savepoint()
            site.phone = "2"
            await site.save()
            await mark.rollback_to()
        site.phone = "1"
        await site.save()
    changes = await owner.fetch("select action_type from user_action_audit_log where record_id = $1", site.id)
    assert [row["action_type"] for row in changes] == ["insert", "update"]


# -- encrypted columns -----------------------------------------------------------------------------------------------


async def test_an_update_finds_its_rows_through_a_reference_whatever_may_be_done_there(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        rows = [client(lakeside), client(lakeside, status="on_hold")]
        await Client.insert(*rows)
    mine = Client.id.is_in([row.id for row in rows])
    through = (
        (Client.facility_id.name == "Main street", 2),
        (Client.user_id.email.is_null(), 0),  # as Piccolo has it: NULL is not IN
        ((Client.user_id.email == "q@x.example") | (Client.status == "on_hold"), 1),
    )
    async with lakeside.as_clinician():  # who may not update facilities
        for where, number in through:
            changed = await Client.update({Client.notes: "x"}).where(where, mine).returning(Client.notes)
            assert changed == [{"notes": "x"}] * number


async def test_null_among_what_is_not_wanted_leaves_nothing(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        for column, value in ((Client.mrn, "m1"), (Client.status, "deceased")):
            assert await Client.select(Client.id).where(column.not_in([value, None])) == []
            assert await Client.select(Client.id).where(column.is_in([value, None])) == []


async def test_a_conflict_on_an_encrypted_column_is_one_on_its_unique_index(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        mrn = uuid4().hex
        assert await Client.insert(client(lakeside, mrn=mrn)).on_conflict(Client.mrn, "DO NOTHING")
        assert await Client.insert(client(lakeside, mrn=mrn)).on_conflict(Client.mrn, "DO NOTHING") == []
        with pytest.raises(ProtectedQueryError, match="notes is encrypted"):
            await Client.insert(client(lakeside)).on_conflict(Client.notes, "DO NOTHING")


REFUSED: dict[str, Callable[[], Any]] = {
    "order by a function": lambda: Client.select(Client.id).order_by(Length(Client.last_name)),
    "objects ordered by a function": lambda: Client.objects().order_by(Coalesce(Client.notes, Client.last_name)),
    "order by upper": lambda: Client.select(Client.id).order_by(Upper(Client.last_name)),
    "having a function": lambda: (
        Client.select(Client.status, Count()).group_by(Client.status).having(Max(Length(Client.last_name)) < 20)
    ),
    "having a function of it": lambda: (
        Client.select(Client.status, Count()).group_by(Client.status).having(Length(Min(Client.last_name)) > 1)
    ),
    "group by a function": lambda: Client.select(Count()).group_by(Upper(Client.last_name)),
    "compared with a function": lambda: Client.select(Client.id).where(
        Client.facility_id.capacity > Length(Client.last_name)
    ),
    "compared with a function, joined": lambda: Client.select(Client.id).where(
        Client.facility_id.name != Coalesce(Client.notes, Client.last_name)
    ),
    "equal to a function": lambda: Client.select(Client.id).where(Client.status == Lower(Client.last_name)),
    "one of": lambda: Client.select(Client.id).where(Client.status.is_in([Client.last_name])),
    "equal to another column": lambda: Client.select(Client.id).where(Client.status == Client.last_name),
    "text added": lambda: Client.select(Client.notes + "!"),
    "added to text": lambda: Client.select("!" + Client.notes),
    "a day added": lambda: Client.select(Client.date_of_birth + timedelta(days=1)),
    "a key": lambda: Client.select(Client.address.arrow("city")),
    "a path": lambda: Client.select(Client.address.from_path(["city"])),
    "an item": lambda: Client.select(Client.address["city"]),
    "joined on": lambda: Client.select(Client.first_name.join_on(User.full_name).email),
    "a case": lambda: Client.select(Case(When(Client.mrn == "m1", "yes"))),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
async def test_what_ciphertext_cannot_answer_is_refused_in_a_sentence(
    build: Callable[[], Any], lakeside: Clinic
) -> None:
    async with lakeside.as_clinician():
        with pytest.raises(ProtectedQueryError, match=r"(Client|User)\.[a-z_]+ is encrypted, so the database cannot"):
            await build()


async def test_values_that_are_there_are_counted(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        counted = Client.select(Client.status, Count(Client.mrn)).group_by(Client.status)
        assert await counted.having(Count(Client.last_name) > 0).order_by(Count(Client.last_name))
