"""Each thing that Piccolo does, with each kind of encrypted column: it works, or it is refused with a sentence."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Any, ClassVar

import asyncpg
import pytest
from piccolo.columns import Text
from piccolo.columns.combination import WhereRaw
from piccolo.columns.m2m import M2M
from piccolo.columns.readable import Readable
from piccolo.columns.reference import LazyTableReference
from piccolo.query.functions import Concat, Length, Lower, Max, Upper
from piccolo.query.functions.aggregate import Count

from core import ProtectedQueryError, transaction
from core.columns import (
    BlindIndex,
    EncryptedDate,
    EncryptedDecimal,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedText,
    TenantForeignKey,
)
from core.engine import ChartholdEngine
from core.schema import objects_of
from core.tables import Client, TenantTable
from tests.conftest import Clinic, make_clinic

BORN = date(1990, 7, 1)


class Reading(TenantTable, tablename="reading"):
    """One column of each kind, and indexes of few bits."""

    client_id = TenantForeignKey(Client)
    label = Text(default="")
    weight = EncryptedDecimal(null=True)
    beats = EncryptedInteger(null=True)
    details = EncryptedJSON(null=True)
    taken_on = EncryptedDate(null=True)
    title = EncryptedText(null=True)

    weight_exact = BlindIndex("weight", kind="exact")
    beats_exact = BlindIndex("beats", kind="exact")
    taken_on_month = BlindIndex("taken_on", kind="month")
    taken_on_year = BlindIndex("taken_on", kind="year")
    title_few = BlindIndex("title", kind="folded", bits=8)
    title_beats = BlindIndex("title", "beats", kind="compound", parts=("folded", "exact"), bits=16)
    client_title = BlindIndex("title", kind="prefix", length=2)

    permissions: ClassVar[Any] = dict.fromkeys(("select", "insert", "update", "delete"), ("admin", "clinician"))


class Tag(TenantTable, tablename="tag"):
    """A many-to-many relation whose other side is encrypted."""

    word = EncryptedText()
    word_folded = BlindIndex("word", kind="folded")
    readings = M2M(LazyTableReference("ReadingTag", module_path=__name__))


class ReadingTag(TenantTable, tablename="reading_tag"):
    reading_id = TenantForeignKey(Reading)
    tag_id = TenantForeignKey(Tag)


@pytest.fixture(scope="module")
async def clinic(database: ChartholdEngine) -> Clinic:
    """A tenant, in a database with our tables, made from what they declare."""
    connection = await database.connect(owner=True)
    for table in (Reading, Tag, ReadingTag):
        columns = ", ".join(column.ddl for column in table._meta.columns)
        await connection.execute(f"create table {table._meta.tablename} ({columns})")
        for item in objects_of(table):
            for statement in item.create():
                await connection.execute(statement)
    await connection.close()
    return await make_clinic("encrypted")


def reading(clinic: Clinic, **values: Any) -> Reading:
    return Reading(client_id=clinic.client, **values)


WHOLE: dict[str, Any] = {
    "weight": Decimal("71.50"),
    "beats": -(2**80),
    "details": {"a": [1, None, {"b": "é"}], "c": True},
    "taken_on": date(2024, 2, 29),
    "title": "Ä\u0000b" * 40,
}


async def test_every_kind_comes_back_as_it_was_by_every_way_in(clinic: Clinic) -> None:
    async with clinic.as_clinician():
        one, two, three = (reading(clinic, **WHOLE, label=f"way {n}") for n in range(3))
        await one.save()
        await Reading.insert(two, three)
        made = await Reading.objects().create(client_id=clinic.client, **WHOLE, label="way 3")
        assert isinstance(made, Reading)
        rows = await Reading.select().where(Reading.label.like("way%"))
        assert len(rows) == 4
        for row in rows:
            found = {name: row[name] for name in WHOLE}
            assert found == WHOLE
            assert [type(v) for v in found.values() if not isinstance(v, dict)] == [Decimal, int, date, str]
            assert str(found["weight"]) == "71.50", "the scale is kept"
        for found in await Reading.objects().where(Reading.label.like("way%")):
            assert {name: getattr(found, name) for name in WHOLE} == WHOLE
        empty = reading(clinic, label="nothing")
        await empty.save()
        nothing = await Reading.objects().get(Reading.label == "nothing")
        assert {name: getattr(nothing, name) for name in WHOLE} == dict.fromkeys(WHOLE)
        assert await Reading.count().where(Reading.label == "nothing", Reading.weight.is_null()) == 1
        assert await Reading.count().where(Reading.label == "nothing", Reading.weight.is_not_null()) == 0


async def test_numbers_dates_and_documents_are_updated_and_searched(clinic: Clinic) -> None:
    async with clinic.as_clinician():
        rows = [reading(clinic, label="numbers", beats=n, weight=Decimal(n) / 2) for n in range(20)]
        await Reading.insert(*rows)
        mine = Reading.label == "numbers"
        assert await Reading.count().where(mine, Reading.beats == 7) == 1
        assert await Reading.count().where(mine, Reading.weight == Decimal("3.500")) == 1
        assert await Reading.count().where(mine, Reading.beats.is_in([1, 2, 99])) == 2
        assert await Reading.count().where(mine, Reading.beats != 7) == 19
        assert await Reading.count().where(mine, Reading.beats.not_in([1, 2])) == 18
        # Many rows, one value: each gets its own envelope; NULL takes the digests with it.
        await Reading.update({Reading.taken_on: date(2020, 5, 5), Reading.details: [1]}).where(mine)
        assert await Reading.count().where(mine, Reading.taken_on.in_month(2020, 5)) == 20
        assert await Reading.count().where(mine, Reading.taken_on.in_year(2020)) == 20
        await Reading.update({"taken_on": None, "beats": 5, "label": "numbers"}).where(
            mine, Reading.beats.is_in([3, 4])
        )
        assert await Reading.count().where(mine, Reading.taken_on.is_null()) == 2
        assert await Reading.count().where(mine, Reading.taken_on.in_year(2020)) == 18
        assert await Reading.count().where(mine, Reading.beats == 5) == 3
        await Reading.update(beats=6, force=True).where(Reading.id == rows[0].id)
        assert await Reading.select(Reading.beats).where(Reading.id == rows[0].id) == [{"beats": 6}]
        for wrong in ({Reading.beats: "7"}, {Reading.beats: True}, {Reading.taken_on: "2020-05-05"}):
            with pytest.raises(Exception, match="sealed (integer|date) cannot be made"):
                await Reading.update(wrong).where(Reading.id == rows[0].id)


async def test_updates_and_deletes_return_opened_columns(clinic: Clinic) -> None:
    async with clinic.as_clinician():
        rows = [reading(clinic, label="returned", beats=n, title=f"t{n}") for n in range(3)]
        inserted = await Reading.insert(*rows).returning(Reading.beats, Reading.label)
        assert sorted(row["beats"] for row in inserted) == [0, 1, 2]
        mine = Reading.label == "returned"
        returned = (
            await Reading.update({Reading.title: "same"})
            .where(mine)
            .returning(Reading.title, Reading.beats, Reading.id)
        )
        assert {(r["title"], r["beats"], r["id"]) for r in returned} == {("same", r.beats, r.id) for r in rows}
        async with transaction():
            gone = await Reading.delete().where(mine).returning(Reading.beats)
        assert sorted(row["beats"] for row in gone) == [0, 1, 2]


async def test_a_compound_index_follows_each_of_its_parts(clinic: Clinic) -> None:
    async with clinic.as_clinician():
        one = reading(clinic, label="compound", title="Ana", beats=60)
        await one.save()
        both = (Reading.title == "ana") & (Reading.beats == 60)
        assert [r["id"] for r in await Reading.select(Reading.id).where(both)] == [one.id]
        one.beats = 61
        await one.save()
        assert await Reading.select(Reading.id).where(both) == []
        await Reading.update({Reading.title: "Bo"}).where(Reading.label == "compound")
        both = (Reading.beats == 61) & (Reading.title == "bo") & (Reading.label == "compound")
        assert [r["id"] for r in await Reading.select(Reading.id).where(both)] == [one.id]
        await one.refresh()
        assert (one.title, one.beats) == ("Bo", 61)
        await one.update_self({"title": "Cy", Reading.beats: 62})
        assert (one.title, one.beats) == ("Cy", 62)
        assert await one.save() == [], "what update_self brought is known to be stored"


# -- what few bits find -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def crowd(clinic: Clinic) -> int:
    """More titles than 8 bits have values."""
    async with clinic.as_clinician():
        await Reading.insert(*(reading(clinic, label="crowd", title=f"Title {n}", beats=n % 3) for n in range(600)))
    return 600


async def test_what_an_index_of_few_bits_finds_too_much_is_left_out(
    clinic: Clinic, crowd: int, owner: asyncpg.Connection
) -> None:
    async with clinic.as_clinician():
        digests = Counter(
            row["title_few"] for row in await owner.fetch("select title_few from reading where label = 'crowd'")
        )
        assert max(map(len, digests)) == 1
        assert max(digests.values()) > 1, "or there is nothing to leave out"
        for n in range(0, crowd, 50):
            mine = Reading.title == f"TITLE {n}"
            assert [r["beats"] for r in await Reading.select(Reading.beats).where(mine)] == [n % 3]
            assert [r.title for r in await Reading.objects().where(mine)] == [f"Title {n}"]
            wanted = [f"title {n}", f"title {n + 1}", "nobody"]
            rows = await Reading.select(Reading.title).where(Reading.title.is_in(wanted)).order_by(Reading.created_at)
            assert sorted(rows, key=str) == sorted([{"title": f"Title {n}"}, {"title": f"Title {n + 1}"}], key=str)
            both = (Reading.title == f"title {n}") & (Reading.beats == n % 3) & (Reading.label == "crowd")
            assert await Reading.select(Reading.label).where(both).output(as_list=True) == ["crowd"]
            assert await Reading.select(Reading.id).where(both & (Reading.title == "title 999")) == []


async def test_few_bits_over_joins_batches_frozen_queries_and_prefetched_objects(clinic: Clinic, crowd: int) -> None:
    async with clinic.as_clinician():
        tag = Tag(word="w")
        await tag.save()
        one = await Reading.select(Reading.id).where(Reading.title == "title 77").order_by(Reading.id)
        link = ReadingTag(reading_id=one[0]["id"], tag_id=tag.id)
        await link.save()
        assert await ReadingTag.select(ReadingTag.id).where(ReadingTag.reading_id.title == "title 77") == [
            {"id": link.id}
        ]
        assert await ReadingTag.select(ReadingTag.id).where(ReadingTag.reading_id.title == "title 78") == []
        frozen = Reading.select(Reading.title).where(Reading.title == "title 77").freeze()
        assert await frozen.run() == await frozen.run() == [{"title": "Title 77"}]
        seen: list[Any] = []
        async with await Reading.select(Reading.title).where(Reading.title == "title 77").batch(batch_size=1) as batch:
            async for rows in batch:
                seen += rows
        assert seen == [{"title": "Title 77"}]
        [found] = await Reading.objects(Reading.client_id).where(Reading.title == "title 77")
        assert found.client_id.last_name == "Nguyen"


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Reading.count().where(Reading.title == "x"), "COUNT"),
        (lambda: Reading.exists().where(Reading.title == "x"), "EXISTS"),
        (lambda: Reading.select().where(Reading.title == "x").limit(3), "LIMIT"),
        (lambda: Reading.select().where(Reading.title == "x").first(), "LIMIT"),
        (lambda: Reading.objects().get(Reading.title == "x"), "LIMIT"),
        (lambda: Reading.objects().where(Reading.title == "x").offset(3), "OFFSET"),
        (lambda: Reading.select(Reading.label).where(Reading.title == "x").distinct(), "DISTINCT"),
        (
            lambda: Reading.select(Reading.label, Count()).where(Reading.title == "x").group_by(Reading.label),
            "GROUP BY",
        ),
        (lambda: Reading.select(Max(Reading.label)).where(Reading.title == "x"), "what is computed"),
        (lambda: Reading.update({Reading.label: "y"}).where(Reading.title == "x"), "UPDATE"),
        (lambda: Reading.update({Reading.beats: 1}).where(Reading.title == "x"), "UPDATE"),
        (lambda: Reading.delete().where(Reading.title == "x"), "DELETE"),
        (lambda: Reading.select().where((Reading.title == "x") | (Reading.label == "y")), "OR"),
        (lambda: Reading.select().where(Reading.title != "x"), "negated"),
        (lambda: Reading.select().where(Reading.title.not_in(["x"])), "negated"),
        (
            lambda: Tag.select().where(Tag.id.is_in(Reading.select(Reading.id).where(Reading.title == "x"))),
            "sub-select",
        ),
        (lambda: ReadingTag.delete().where(ReadingTag.reading_id.title == "x"), "DELETE"),
    ],
)
async def test_what_cannot_wait_for_the_opening_is_refused_for_few_bits(clinic: Clinic, build: Any, what: str) -> None:
    async with clinic.as_clinician():
        with pytest.raises(ProtectedQueryError) as refused:
            await build()
    assert what in str(refused.value)
    assert "bits=64" in str(refused.value)


async def test_every_opened_row_is_recorded_also_those_that_are_left_out(
    clinic: Clinic, crowd: int, owner: asyncpg.Connection
) -> None:
    async with clinic.as_clinician("few bits"):
        await Reading.select(Reading.label).where(Reading.title == "title 5")
    recorded = await owner.fetch(
        "select record_id, changed_columns from user_action_audit_log where action_type = 'read' and reason = 'few bits'"
    )
    same = await owner.fetch(
        "select id from reading where title_few = (select title_few from reading where id = any ($1::uuid[])"
        " and title_few is not null limit 1)",
        [row["record_id"] for row in recorded],
    )
    assert {row["record_id"] for row in recorded} == {row["id"] for row in same}
    assert {tuple(row["changed_columns"]) for row in recorded} == {("title",)}


# -- selects --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def one(clinic: Clinic) -> Reading:
    async with clinic.as_clinician():
        one = reading(clinic, label="the one", weight=Decimal("1.5"), beats=60, title="First", details={"k": [1]})
        await one.save()
    return one


async def test_columns_are_selected_in_any_number_order_and_name(clinic: Clinic, one: Reading) -> None:
    me = Reading.id == one.id
    async with clinic.as_clinician():
        assert await Reading.select(Reading.beats).where(me) == [{"beats": 60}]
        assert await Reading.select("beats", "title").where(me) == [{"beats": 60, "title": "First"}]
        assert await Reading.select(Reading.beats, Reading.beats.as_alias("again")).where(me) == [
            {"beats": 60, "again": 60}
        ]
        assert list((await Reading.select(Reading.title, Reading.id, Reading.beats).where(me))[0]) == [
            "title",
            "id",
            "beats",
        ]
        joined = await Reading.select(
            Reading.title,
            Reading.client_id.last_name,
            Reading.client_id.last_name.as_alias("surname"),
            Reading.client_id.facility_id.name,
            Reading.client_id.address,
        ).where(me)
        assert joined == [
            {
                "title": "First",
                "client_id.last_name": "Nguyen",
                "surname": "Nguyen",
                "client_id.facility_id.name": "Main street",
                "client_id.address": {"street": "784 Stamm Lock", "city": "Somerville"},
            }
        ]
        everything = (await Reading.select(*Reading.client_id.all_columns()).where(me))[0]
        assert everything["client_id.ssn"] == "999-17-5017"
        assert not any("folded" in name or "exact" in name for name in everything)
        # What a person is shown as a whole row can be written back; hashes are nobody's to see.
        secretless = (await Reading.select(*Reading._meta.columns, exclude_secrets=True).where(me))[0]
        assert set(secretless) == {column._meta.name for column in Reading.all_columns()}
        assert secretless["title"] == "First"


async def test_outputs(clinic: Clinic, one: Reading) -> None:
    me = Reading.id == one.id
    async with clinic.as_clinician():
        columns = (Reading.title, Reading.weight, Reading.details, Reading.client_id.first_name)
        nested = await Reading.select(*columns).where(me).output(nested=True)
        assert nested == [
            {"title": "First", "weight": Decimal("1.5"), "details": {"k": [1]}, "client_id": {"first_name": "Ana"}}
        ]
        assert await Reading.select(Reading.weight).where(me).output(as_list=True) == [Decimal("1.5")]
        as_json = json.loads(await Reading.select(Reading.title, Reading.details).where(me).output(as_json=True))
        assert as_json == [{"title": "First", "details": {"k": [1]}}]
        assert await Reading.select(Reading.details).where(me).output(load_json=True) == [{"details": {"k": [1]}}]
        assert (await Reading.objects().where(me).output(load_json=True))[0].details == {"k": [1]}
        first = await Reading.select(Reading.title).where(me).first()
        assert first == {"title": "First"}
        shown: list[Any] = []
        await Reading.select(Reading.title).where(me).callback(shown.append)
        assert shown == [[{"title": "First"}]]
        assert (await Reading.select(Reading.title).where(me).lock_rows("UPDATE"))[0]["title"] == "First"
        assert one.to_dict(Reading.title) == {"title": "First"}


async def test_joins_conditions_and_related_rows(clinic: Clinic, one: Reading) -> None:
    async with clinic.as_clinician():
        for condition in (
            Reading.client_id.last_name == "nguyen",
            Reading.client_id.ssn.ends_with("5017"),
            Reading.client_id.mrn.is_in(["encrypted-1"]),
            Reading.client_id.date_of_birth.is_not_null(),
            (Reading.client_id.last_name == "nguyen") | (Reading.client_id.email == "nobody"),
            WhereRaw("reading.title is not null"),
        ):
            rows = await Reading.select(Reading.title).where(condition, Reading.id == one.id)
            assert rows == [{"title": "First"}], condition
        assert await Reading.count().where(Reading.client_id.last_name == "nobody") == 0
        found = await Reading.objects(Reading.client_id, Reading.client_id.facility_id).get(Reading.id == one.id)
        assert (found.client_id.last_name, found.client_id.facility_id.name) == ("Nguyen", "Main street")
        related = await one.get_related(Reading.client_id)
        assert related.ssn == "999-17-5017"
        # The rows that another table's column chooses, in an update and a delete.
        await Reading.update({Reading.label: "the one"}).where(
            Reading.client_id.last_name == "nguyen", Reading.id == one.id
        )
        await Reading.delete().where(Reading.client_id.last_name == "nobody")
        assert await Reading.exists().where(Reading.id == one.id)


async def test_counts_functions_and_groups_that_do_not_look_inside(clinic: Clinic, one: Reading) -> None:
    me = Reading.id == one.id
    async with clinic.as_clinician():
        assert await Reading.select(Count(Reading.title)).where(me) == [{"count": 1}]
        assert await Reading.count(column=Reading.taken_on).where(me) == 0
        assert await Reading.select(Upper(Reading.label), Reading.title).where(me) == [
            {"upper": "THE ONE", "title": "First"}
        ]
        grouped = await Reading.select(Reading.label, Count()).where(me).group_by(Reading.label).having(Count() > 0)
        assert grouped == [{"label": "the one", "count": 1}]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Reading.select().order_by("title"), "order by it"),
        (lambda: Reading.select().order_by(Reading.client_id.last_name), "order by it"),
        (lambda: Reading.objects().order_by(Reading.weight, ascending=False), "order by it"),
        (lambda: Reading.select(Lower(Reading.title)), "compute with it"),
        (lambda: Reading.select(Length(Reading.title)), "compute with it"),
        (lambda: Reading.select(Concat(Reading.label, Reading.title)), "compute with it"),
        (lambda: Reading.select(Max(Reading.beats)), "compute with it"),
        (lambda: Reading.select(Readable(template="%s", columns=[Reading.title])), "compute with it"),
        (lambda: Reading.select().where(Upper(Reading.title) == "X"), "compute with it"),
        (lambda: Reading.select().where((Reading.label == "x") & (Length(Reading.title) > 3)), "compute with it"),
        (lambda: Reading.select(Reading.label, Count()).group_by(Reading.label).having(Reading.title == "x"), "after grouping"),
        (lambda: Reading.select(Reading.label).distinct(on=[Reading.title]), "tell equal values apart"),
        (lambda: Reading.update({Reading.title: Reading.label}).where(Reading.label == "x"), "compute its new value"),
        (lambda: Reading.update({Reading.label: Reading.title}).where(Reading.label == "x"), "written into another column"),
        (lambda: Reading.select().where(Reading.title == Reading.client_id.last_name), "the database computes"),
        (lambda: Reading.select().where(Reading.label == Reading.title), "compare it with another column"),
        (lambda: Reading.select().where(Reading.title.is_in(Reading.select(Reading.label))), "the database computes"),
        (lambda: Reading.select().where(Reading.details == {"k": [1]}), "for an EncryptedJSON. Keep what is searched"),
        (lambda: Reading.select().where(Reading.taken_on == BORN), 'BlindIndex("taken_on", kind="exact")'),
        (lambda: Reading.select().where(Reading.taken_on.is_in([BORN])), 'BlindIndex("taken_on", kind="exact")'),
        (lambda: Reading.select().where(Reading.title.ends_with("12")), 'kind="last", length=2'),
    ],
)  # fmt: skip
async def test_what_ciphertext_cannot_answer_is_refused(clinic: Clinic, build: Any, says: str) -> None:
    async with clinic.as_clinician():
        with pytest.raises(ProtectedQueryError) as refused:
            await build()
    assert says in str(refused.value)


async def test_many_to_many_opens_the_other_side(clinic: Clinic, one: Reading) -> None:
    async with clinic.as_clinician():
        tags = [Tag(word=word) for word in ("red", "blue")]
        await Tag.insert(*tags)
        for tag in tags:
            await tag.add_m2m(one, m2m=Tag.readings)
        rows = await Tag.select(Tag.word, Tag.readings(Reading.title, Reading.beats)).where(Tag.word == "red")
        assert rows == [{"word": "red", "readings": [{"title": "First", "beats": 60}]}]
        assert await Tag.select(Tag.readings(Reading.label, as_list=True)).where(Tag.word == "blue") == [
            {"readings": ["the one"]}
        ]
        [found] = await tags[0].get_m2m(Tag.readings)
        assert (found.title, found.beats) == ("First", 60)
        with pytest.raises(ProtectedQueryError, match="compute with it"):
            await Tag.select(Tag.readings(Reading.title, as_list=True))
    async with clinic.as_admin():
        await tags[0].remove_m2m(one, m2m=Tag.readings)
        assert await tags[0].get_m2m(Tag.readings) == []


async def test_get_or_create_upsert_and_frozen_queries(clinic: Clinic) -> None:
    async with clinic.as_clinician():
        where = (Reading.beats == 4711) & (Reading.weight == Decimal("2.50"))
        made = await Reading.objects().get_or_create(where, {Reading.client_id: clinic.client, Reading.label: "upsert"})
        again = await Reading.objects(Reading.client_id).get_or_create(where)
        assert (made._was_created, again._was_created, made.id) == (True, False, again.id)
        assert (again.beats, again.weight, again.client_id.last_name) == (4711, Decimal("2.50"), "Nguyen")
        made.beats = 4712
        await Reading.insert(made).on_conflict(target=Reading.id, action="DO UPDATE", values=[Reading.beats])
        assert await Reading.exists().where(Reading.beats == 4712)
        assert not await Reading.exists().where(Reading.beats == 4711)
        await Reading.insert(made, reading(clinic, beats=4713)).on_conflict(target=Reading.id, action="DO NOTHING")
        assert await Reading.count().where(Reading.beats.is_in([4712, 4713])) == 2
        frozen = Reading.objects().where(Reading.beats == 4713).freeze()
        assert [row.beats for row in await frozen.run()] == [4713]
        changed = Reading.update({Reading.label: "frozen", Reading.weight: Decimal(90125)}).where(Reading.id == made.id)
        await changed.freeze().run()
        await made.refresh()
        assert (made.label, made.weight) == ("frozen", 90125)
        with pytest.raises(ProtectedQueryError, match="cannot be frozen"):
            Reading.update({Reading.beats: 1}).where(Reading.label == "frozen").freeze()
        together = await asyncio.gather(*[Reading.objects().get(Reading.weight == Decimal(90125)) for _ in range(5)])
        assert {row.id for row in together} == {made.id}


async def test_objects_in_batches(clinic: Clinic, one: Reading) -> None:
    async with clinic.as_clinician():
        async with await Reading.objects().where(Reading.id == one.id).batch(batch_size=10) as batch:
            found = [row async for rows in batch for row in rows]
        assert [(row.title, row.beats) for row in found] == [("First", 60)]
