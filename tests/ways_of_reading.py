"""The ways in which Piccolo can bring an encrypted column back, and a world of rows to go them in.

Every value says of which row and column it is, so nobody need be told what a query shows: it can be seen in what came
back.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from piccolo.columns import Text
from piccolo.columns.combination import WhereRaw
from piccolo.columns.m2m import M2M
from piccolo.columns.readable import Readable
from piccolo.columns.reference import LazyTableReference
from piccolo.query import SelectRaw
from piccolo.query import functions as f
from piccolo.query.functions.array import ArrayOverlap
from piccolo.query.functions.conditional import Case, When
from piccolo.query.functions.datetime import AtTimeZone
from piccolo.query.operators.json import GetChildElement, GetElementFromPath
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.audit.history import Change
from core.columns import BlindIndex, EncryptedJSON, EncryptedText, TenantForeignKey
from core.engine import ChartholdEngine
from core.tables import TenantTable, UserActionAuditLog


class Patient(TenantTable, tablename="read_patient"):
    label = Text(default="")
    name = EncryptedText()
    address = EncryptedJSON(null=True)
    name_exact = BlindIndex("name", kind="exact")
    topics = M2M(LazyTableReference("PatientTopic", module_path=__name__))


class Visit(TenantTable, tablename="read_visit"):
    patient_id = TenantForeignKey(Patient)
    referrer_id = TenantForeignKey(Patient, null=True)
    label = Text(default="")
    note = EncryptedText()


class Item(TenantTable, tablename="read_item"):
    visit_id = TenantForeignKey(Visit)
    label = Text(default="")
    dose = EncryptedText()


class Topic(TenantTable, tablename="read_topic"):
    label = Text(default="")
    word = EncryptedText()


class PatientTopic(TenantTable, tablename="read_patient_topic"):
    patient_id = TenantForeignKey(Patient)
    topic_id = TenantForeignKey(Topic)


class Card(TenantTable, tablename="read_card"):
    """At most one a patient, so it can be reached from there."""

    patient_id = TenantForeignKey(Patient, unique=True)
    code = EncryptedText()


TABLES = (Patient, Visit, Item, Topic, PatientTopic, Card)

# -- what is shown ----------------------------------------------------------------------------------------------------

MARK = re.compile(r"<(read_\w+)/([0-9a-f-]{36})/(\w+)>")
Place = tuple[str, UUID, str]  # table, row, column


def marked(row: Any, column: str) -> str:
    """A value that says where it stands."""
    return f"<{row._meta.tablename}/{row.id}/{column}>"


def strings(value: Any) -> Iterator[str]:
    """Every text in what a query returned."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("latin1")
    elif isinstance(value, Table):
        for column in value._meta.columns:
            yield from strings(value.__dict__.get(column._meta.name))
    elif isinstance(value, Change):
        yield from strings([value.old, value.new])
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def shown(result: Any) -> Counter[Place]:
    """How often each value came back."""
    found = (match for text in strings(result) for match in MARK.finditer(text))
    return Counter((match[1], UUID(match[2]), match[3]) for match in found)


def rows_of(places: Counter[Place]) -> Counter[tuple[str, UUID, tuple[str, ...]]]:
    """The records that there must be for what was shown: as many for a row as it was shown, with its columns."""
    times: dict[tuple[str, UUID], Counter[str]] = {}
    for (table, row, column), count in places.items():
        times.setdefault((table, row), Counter())[column] = count
    for columns in times.values():
        assert len(set(columns.values())) == 1, "say which way shows what"
    return Counter({(*row, tuple(sorted(columns))): max(columns.values()) for row, columns in times.items()})


# -- who is there to be shown -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class World:
    """Two patients, two visits of the first, to one of which the second sent her, and what hangs on them."""

    label: str
    patient: Patient
    other: Patient
    visit: Visit
    second: Visit
    item: Item
    topics: list[Topic]
    database: ChartholdEngine

    @property
    def mine(self) -> Any:
        return Patient.label == self.label

    @property
    def me(self) -> Any:
        return Patient.id == self.patient.id

    def new_patient(self) -> Patient:
        new = Patient(label=self.label, name="")
        new.name, new.address = marked(new, "name"), {"lives": [marked(new, "address")]}
        return new


async def populate(database: ChartholdEngine) -> World:
    label = str(uuid4())
    patient, other = (Patient(label=label, name="") for _ in range(2))
    visit = Visit(patient_id=patient.id, referrer_id=other.id, label=label, note="")
    second = Visit(patient_id=patient.id, label=label, note="")
    item = Item(visit_id=visit.id, label=label, dose="")
    topics = [Topic(label=label, word="") for _ in range(2)]
    card = Card(patient_id=patient.id, code="")
    for row in (patient, other):
        row.name, row.address = marked(row, "name"), {"lives": [marked(row, "address")]}
    words = [(topic, "word") for topic in topics]
    for row, column in ((visit, "note"), (second, "note"), (item, "dose"), (card, "code"), *words):
        setattr(row, column, marked(row, column))
    await Patient.insert(patient, other)
    await Visit.insert(visit, second)
    await item.save()
    await card.save()
    await Topic.insert(*topics)
    await PatientTopic.insert(*(PatientTopic(patient_id=patient.id, topic_id=topic.id) for topic in topics))
    return World(label, patient, other, visit, second, item, topics, database)


Run = Callable[[World], Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of reading, and which of Piccolo's members it goes through."""

    run: Run
    through: tuple[str, ...]
    # What it must record, when what comes back does not say so by itself.
    records: Callable[[World], Counter[tuple[str, UUID, tuple[str, ...]]]] | None = None
    # It writes before it reads, in statements of their own.
    several: bool = False


OPENED: list[Way] = []
CLOSED: list[Way] = []
REFUSED: list[Way] = []


def way(ways: list[Way], *through: str, **more: Any) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        ways.append(Way(run, through, **more))
        return run

    return add


def opens(*through: str, **more: Any) -> Callable[[Run], Run]:
    """What comes back is PHI."""
    return way(OPENED, *through, **more)


def stays_closed(*through: str) -> Callable[[Run], Run]:
    """No PHI comes back, so none is recorded as read."""
    return way(CLOSED, *through)


def refused(*through: str) -> Callable[[Run], Run]:
    """Nothing comes back at all."""
    return way(REFUSED, *through)


def whole(row: Any) -> Counter[tuple[str, UUID, tuple[str, ...]]]:
    """One record of a patient's row with all of its sealed columns."""
    return Counter({("read_patient", row.id, ("address", "name")): 1})


# -- select -----------------------------------------------------------------------------------------------------------


@opens("Table.select", "Select.run", "Select.where")
async def select_columns(w: World) -> Any:
    return await Patient.select(Patient.name, Patient.label).where(w.mine)


@opens()
async def select_all(w: World) -> Any:
    return await Patient.select().where(w.mine)


@opens("Select.columns")
async def select_columns_later(w: World) -> Any:
    return await Patient.select(Patient.name).columns(Patient.address).where(w.mine)


@opens()
async def select_by_name(w: World) -> Any:
    return await Visit.select("note", "patient_id.name").where(Visit.label == w.label)


@opens("ForeignKey.as_alias")
async def select_under_another_name(w: World) -> Any:
    return await Patient.select(Patient.name.as_alias("charthold_row_0"), Patient.id).where(w.mine)


@opens(records=lambda w: Counter({("read_patient", w.patient.id, ("name",)): 1}))
async def select_twice_the_same(w: World) -> Any:
    return await Patient.select(Patient.name, Patient.name.as_alias("again")).where(w.me)


@opens("Table.all_columns", "Select.output", "Select.output(nested)")
async def select_nested(w: World) -> Any:
    return await Visit.select(Visit.note, Visit.patient_id.address).where(Visit.label == w.label).output(nested=True)


@opens("Select.output(as_list)", "select.SelectList")
async def select_as_list(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).output(as_list=True)


@opens("Select.output(as_json)", "select.SelectJSON")
async def select_as_json(w: World) -> Any:
    return await Patient.select(Patient.name, Patient.address).where(w.mine).output(as_json=True)


@opens("Select.output(load_json)")
async def select_load_json(w: World) -> Any:
    return await Patient.select(Patient.address).where(w.mine).output(load_json=True)


@opens("Select.first", "select.First")
async def select_first(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).first()


@opens("Select.limit", "Select.offset", "Select.order_by")
async def select_page(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).order_by(Patient.created_at).offset(1).limit(1)


@opens("Select.lock_rows")
async def select_locked(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).lock_rows("UPDATE")


@opens("Select.distinct")
async def select_distinct(w: World) -> Any:
    return (
        await Visit.select(Visit.patient_id, Visit.note)
        .where(Visit.label == w.label)
        .distinct(on=[Visit.patient_id])
        .order_by(Visit.patient_id)
    )


@opens("Select.group_by", "Select.having")
async def select_grouped(w: World) -> Any:
    return (
        await Patient.select(Patient.name, f.Count())
        .where(w.mine)
        .group_by(Patient.tenant_id, Patient.id)
        .having(f.Count() > 0)
    )


@opens("Select.callback")
async def select_callback(w: World) -> Any:
    told: list[Any] = []
    await Patient.select(Patient.name).where(w.mine).callback(told.append)
    return told


@opens("Select.freeze", "base.FrozenQuery")
async def select_frozen(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).freeze().run()


@opens("proxy.Proxy")
async def select_first_frozen(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).first().freeze().run()


@opens()
async def select_as_list_frozen(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).output(as_list=True).freeze().run()


@opens("Select.batch", "base.BaseBatch", "postgres.AsyncBatch")
async def select_batch(w: World) -> Any:
    async with await Patient.select(Patient.name).where(w.mine).batch(batch_size=1) as batch:
        return [row async for rows in batch for row in rows]


@opens()
async def select_first_batch(w: World) -> Any:
    async with await Patient.select(Patient.name).where(w.mine).first().batch(batch_size=10) as batch:
        return [row async for rows in batch for row in rows]


@opens()
async def select_by_blind_index(w: World) -> Any:
    return await Patient.select(Patient.name).where(Patient.name == w.patient.name)


@opens()
async def select_with_raw_condition(w: World) -> Any:
    return await Patient.select(Patient.name).where(WhereRaw("read_patient.label = {}", w.label))


@opens()
async def select_beside_a_function(w: World) -> Any:
    return await Patient.select(f.Upper(Patient.label), Patient.name).where(w.mine)


@opens()
async def select_where_a_sub_select_says_so(w: World) -> Any:
    visited = Visit.select(Visit.patient_id).where(Visit.label == w.label)
    return await Patient.select(Patient.name).where(Patient.id.is_in(visited))


# -- joins ------------------------------------------------------------------------------------------------------------


@opens()
async def join(w: World) -> Any:
    # Both visits show the same patient: two rows are shown, and two are recorded.
    return await Visit.select(Visit.note, Visit.patient_id.name).where(Visit.label == w.label)


@opens()
async def join_two_ways_to_one_table(w: World) -> Any:
    # The second visit has no referrer: no row is shown, and none is recorded.
    return await Visit.select(Visit.patient_id.name, Visit.referrer_id.name).where(Visit.label == w.label)


@opens()
async def join_over_two_tables(w: World) -> Any:
    return await Item.select(Item.dose, Item.visit_id.note, Item.visit_id.patient_id.name).where(Item.label == w.label)


@opens()
async def join_only_the_far_side(w: World) -> Any:
    return await Item.select(Item.visit_id.patient_id.name).where(Item.label == w.label)


@opens("ForeignKey.all_columns")
async def join_all_columns(w: World) -> Any:
    return await Visit.select(*Visit.patient_id.all_columns()).where(Visit.label == w.label)


@opens("ForeignKey.reverse")
async def join_backwards(w: World) -> Any:
    return await Patient.select(Patient.name, Card.patient_id.reverse().code).where(w.mine)


@opens("ForeignKey.join_on")
async def join_on(w: World) -> Any:
    return await Item.select(Item.label.join_on(Visit.label).note, Item.dose).where(Item.label == w.label).limit(1)


# -- objects ----------------------------------------------------------------------------------------------------------


@opens("Table.objects", "Objects.run", "Objects.where")
async def objects(w: World) -> Any:
    return await Patient.objects().where(w.mine)


@opens("Objects.get", "objects.Get")
async def objects_get(w: World) -> Any:
    return await Patient.objects().get(w.me)


@opens("Objects.first", "objects.First")
async def objects_first(w: World) -> Any:
    return await Patient.objects().where(w.mine).first()


@opens("Objects.get_or_create", "objects.GetOrCreate")
async def objects_get_or_create_existing(w: World) -> Any:
    return await Patient.objects().get_or_create(w.me)


@opens(several=True)
async def objects_get_or_create_new_with_prefetch(w: World) -> Any:
    made = await Visit.objects(Visit.patient_id).get_or_create(
        Visit.label == str(uuid4()), {Visit.patient_id: w.patient.id, Visit.note: "new"}
    )
    assert made._was_created
    made.note = marked(made, "note")  # it could not be known before
    return made


@opens("Objects.limit", "Objects.offset", "Objects.order_by")
async def objects_page(w: World) -> Any:
    return await Patient.objects().where(w.mine).order_by(Patient.created_at).offset(1).limit(1)


@opens("Objects.lock_rows")
async def objects_locked(w: World) -> Any:
    return await Patient.objects().where(w.mine).lock_rows("SHARE")


@opens("Objects.callback")
async def objects_callback(w: World) -> Any:
    told: list[Any] = []
    await Patient.objects().where(w.mine).callback(told.append)
    return told


@opens("Objects.output", "Objects.output(load_json)")
async def objects_load_json(w: World) -> Any:
    return await Patient.objects().where(w.mine).output(load_json=True)


@opens("Objects.freeze")
async def objects_frozen(w: World) -> Any:
    return await Patient.objects().where(w.mine).freeze().run()


@opens("Objects.batch")
async def objects_batch(w: World) -> Any:
    async with await Patient.objects().where(w.mine).batch(batch_size=1) as batch:
        return [row async for rows in batch for row in rows]


@opens("Objects.prefetch")
async def prefetch(w: World) -> Any:
    return await Visit.objects().prefetch(Visit.patient_id, Visit.referrer_id).where(Visit.label == w.label)


@opens()
async def prefetch_over_two_tables(w: World) -> Any:
    return await Item.objects(Item.visit_id.patient_id).where(Item.label == w.label)


@opens("ForeignKey.all_related")
async def prefetch_all_related(w: World) -> Any:
    return await Item.objects(*Item.visit_id.all_related()).where(Item.label == w.label)


@opens()
async def prefetch_batch(w: World) -> Any:
    async with await Visit.objects(Visit.patient_id).where(Visit.label == w.label).batch(batch_size=1) as batch:
        return [row async for rows in batch for row in rows]


@opens()
async def prefetch_frozen(w: World) -> Any:
    return await Visit.objects(Visit.patient_id).where(Visit.label == w.label).freeze().run()


# -- from a row to others ---------------------------------------------------------------------------------------------


@opens("Table.get_related", "objects.GetRelated")
async def get_related(w: World) -> Any:
    return await w.visit.get_related(Visit.patient_id)


@opens()
async def get_related_by_name(w: World) -> Any:
    return await w.visit.get_related("referrer_id")


@opens()
async def get_related_over_two_tables(w: World) -> Any:
    return await w.item.get_related(Item.visit_id.patient_id)


@opens()
async def get_related_backwards(w: World) -> Any:
    return await w.patient.get_related(Card.patient_id.reverse())


@opens("Table.get_m2m", "m2m.M2MGetRelated")
async def get_m2m(w: World) -> Any:
    return await w.patient.get_m2m(Patient.topics)


@opens("m2m.M2MSelect")
async def many_to_many(w: World) -> Any:
    return await Patient.select(Patient.name, Patient.topics(Topic.word)).where(w.mine)


@opens()
async def many_to_many_beside_plain_columns(w: World) -> Any:
    return await Patient.select(Patient.topics(Topic.word, Topic.label)).where(w.mine)


@opens()
async def many_to_many_all_columns(w: World) -> Any:
    return await Patient.select(Patient.label, Patient.topics()).where(w.mine)


@opens("M2M.__call__(load_json)")
async def many_to_many_load_json(w: World) -> Any:
    return await Patient.select(Patient.topics(Topic.word, load_json=True)).where(w.mine)


@opens("Table.refresh", "refresh.Refresh")
async def refresh(w: World) -> Any:
    w.patient.name, w.patient.address = "stale", None
    return await w.patient.refresh()


@opens("Table.refresh(columns)")
async def refresh_columns(w: World) -> Any:
    w.patient.name = "stale"
    await w.patient.refresh([Patient.name])
    return w.patient.name


@opens("Table.refresh(load_json)")
async def refresh_with_prefetched(w: World) -> Any:
    # The visit knows its patient, and both are fetched again.
    visit = Visit(_exists_in_db=True, **w.visit.to_dict())
    visit.id, visit.patient_id = w.visit.id, w.patient
    w.patient.name, w.patient.address, visit.note = "stale", None, "stale"
    return await visit.refresh(load_json=True)


# -- what writes and shows --------------------------------------------------------------------------------------------


@opens("Table.insert", "Insert.run", "Insert.returning", "Insert.add")
async def insert_returning(w: World) -> Any:
    return await Patient.insert().add(w.new_patient()).returning(Patient.name)


@opens()
async def insert_many_returning(w: World) -> Any:
    return await Patient.insert(w.new_patient(), w.new_patient()).returning(Patient.name, Patient.address, Patient.id)


@opens("Insert.freeze")
async def insert_frozen_returning(w: World) -> Any:
    return await Patient.insert(w.new_patient()).returning(Patient.name).freeze().run()


@opens("Insert.on_conflict")
async def upsert_returning(w: World) -> Any:
    return (
        await Patient.insert(w.patient)
        .on_conflict(Patient.id, "DO UPDATE", [Patient.name])
        .returning(Patient.name, Patient.address)
    )


@opens("Table.save")
async def save_new_returning(w: World) -> Any:
    return await w.new_patient().save().returning(*Patient.all_columns())


@opens()
async def save_returning(w: World) -> Any:
    w.patient.label = "saved"
    return await w.patient.save().returning(Patient.name)


@opens("Table.update", "Update.run", "Update.where", "Update.returning", "Update.values")
async def update_returning(w: World) -> Any:
    return await Patient.update().values({Patient.label: "u"}).where(w.mine).returning(Patient.name, Patient.address)


@opens()
async def update_sealed_returning(w: World) -> Any:
    return await Patient.update({Patient.address: "moved"}).where(w.mine).returning(Patient.name)


@opens()
async def update_sealed_by_id_returning(w: World) -> Any:
    return await Patient.update({Patient.address: "moved"}).where(w.me).returning(Patient.name)


@opens("Update.freeze")
async def update_frozen_returning(w: World) -> Any:
    return await Patient.update({Patient.label: "u"}).where(w.me).returning(Patient.name).freeze().run()


@opens("Table.update_self", "objects.UpdateSelf")
async def update_self(w: World) -> Any:
    # What the database wrote is read back.
    row = w.patient
    was, row.name = row.name, "stale"
    await row.update_self({Patient.name: was})
    return row.name


@opens("Table.delete", "Delete.run", "Delete.where", "Delete.returning")
async def delete_returning(w: World) -> Any:
    return await Item.delete().where(Item.label == w.label).returning(Item.dose)


@opens("Delete.freeze")
async def delete_frozen_returning(w: World) -> Any:
    return await Item.delete().where(Item.label == w.label).returning(Item.dose).freeze().run()


@opens("Table.remove")
async def remove_returning(w: World) -> Any:
    return await w.item.remove().returning(Item.dose)


# -- from the log -----------------------------------------------------------------------------------------------------


@opens("TenantTable.history", records=lambda w: whole(w.patient))
async def history(w: World) -> Any:
    return await w.patient.history()


@opens("TenantTable.as_of", records=lambda w: whole(w.patient))
async def row_as_of(w: World) -> Any:
    return await w.patient.as_of(datetime.now(UTC))


@opens()
async def rows_as_of(w: World) -> Any:
    then = datetime.now(UTC)
    return await Card.as_of(then)


@opens("TenantTable.revert", records=lambda w: whole(w.patient))
async def revert(w: World) -> Any:
    then = datetime.now(UTC)
    w.patient.name = "stale"
    await w.patient.revert(to=then)
    return w.patient.name


# -- what shows no PHI ------------------------------------------------------------------------------------------------


@stays_closed()
async def select_plain(w: World) -> Any:
    return await Patient.select(Patient.id, Patient.label).where(w.mine)


@stays_closed()
async def select_plain_by_blind_index(w: World) -> Any:
    return await Patient.select(Patient.label).where(Patient.name == w.patient.name)


@stays_closed()
async def select_no_row(w: World) -> Any:
    return await Patient.select().where(Patient.label == "nobody")


@opens("Table.select(exclude_secrets)")
async def select_without_secrets(w: World) -> Any:
    return await Patient.select(exclude_secrets=True).where(w.mine)


@stays_closed("Table.get_readable", "readable.Readable")
async def select_readable(w: World) -> Any:
    return await Patient.select(Patient.get_readable(), Patient.label).where(w.mine)


@stays_closed("select.SelectRaw")
async def select_raw_fragment(w: World) -> Any:
    return await Patient.select(SelectRaw("read_patient.name"), Patient.label).where(w.mine)


@stays_closed("functions.Count")
async def select_count_of_sealed(w: World) -> Any:
    return await Patient.select(f.Count(Patient.name)).where(w.mine)


@stays_closed("M2M.__call__(as_list)")
async def many_to_many_plain(w: World) -> Any:
    return await Patient.select(Patient.topics(Topic.label, as_list=True), Patient.topics(Topic.id)).where(w.mine)


@stays_closed("Table.count", "Count.run", "Count.where", "Count.distinct", "Count.freeze")
async def count(w: World) -> Any:
    return await Patient.count(column=Patient.name).where(w.mine), await Patient.count().where(w.mine).freeze().run()


@stays_closed("Table.exists", "Exists.run", "Exists.where", "Exists.freeze")
async def exists(w: World) -> Any:
    return await Patient.exists().where(w.mine), await Patient.exists().where(w.mine).freeze().run()


@stays_closed("Table.raw", "Raw.run", "Raw.freeze")
async def raw(w: World) -> Any:
    rows = await Patient.raw("select *, encode(name, 'escape') as text from read_patient where label = {}", w.label)
    return rows + await Patient.raw("select name from read_patient where label = {}", w.label).freeze().run()


@stays_closed("Raw.batch")
async def raw_batch(w: World) -> Any:
    async with await Patient.raw("select * from read_patient where label = {}", w.label).batch(batch_size=1) as batch:
        return [row async for rows in batch for row in rows]


@stays_closed()
async def raw_returning(w: World) -> Any:
    return await Patient.raw("update read_patient set label = 'r' where label = {} returning *", w.label)


@stays_closed()
async def insert_and_save(w: World) -> Any:
    new = w.new_patient()
    return await Patient.insert(w.new_patient(), w.new_patient()), await new.save()


@stays_closed("Objects.create", "objects.Create")
async def objects_create(w: World) -> Any:
    return (await Patient.objects().create(label=w.label, name=w.patient.name)).label


@stays_closed()
async def objects_get_or_create_new(w: World) -> Any:
    return (await Patient.objects().get_or_create(Patient.label == "new", {Patient.name: "n"})).label


@stays_closed()
async def update_and_delete(w: World) -> Any:
    w.patient.name = "changed"
    saved = await w.patient.save()
    updated = await Patient.update({Patient.address: "moved"}).where(w.mine)
    returned = await Patient.update({Patient.label: "u"}).where(w.mine).returning(Patient.label, Patient.id)
    return saved, updated, returned, await Item.delete().where(Item.label == w.label).returning(Item.id)


@stays_closed("Table.add_m2m", "m2m.M2MAddRelated", "Table.remove_m2m", "m2m.M2MRemoveRelated")
async def relate(w: World) -> Any:
    added = await w.other.add_m2m(w.topics[0], m2m=Patient.topics)
    return added, await w.other.remove_m2m(w.topics[0], m2m=Patient.topics)


@stays_closed("base.BaseAtomic", "postgres.Atomic")
async def atomic(w: World) -> Any:
    # Its queries run, and what they return is thrown away.
    return await w.database.atomic().run()


@stays_closed()
async def the_log_itself(w: World) -> Any:
    rows = await UserActionAuditLog.select().where(UserActionAuditLog.record_id == w.patient.id)
    assert rows
    return rows


@stays_closed("TenantTable.who_saw")
async def who_saw(w: World) -> Any:
    return [sighting.columns for sighting in await w.patient.who_saw()]


# -- what is refused --------------------------------------------------------------------------------------------------


@refused()
async def readable_of_sealed(w: World) -> Any:
    return await Patient.select(Readable(template="%s", columns=[Patient.name])).where(w.mine)


@refused()
async def many_to_many_as_list(w: World) -> Any:
    return await Patient.select(Patient.topics(Topic.word, as_list=True)).where(w.mine)


@refused()
async def sub_select_of_sealed(w: World) -> Any:
    return await Patient.select(Patient.id).where(Patient.label.is_in(Patient.select(Patient.name)))


@refused()
async def distinct_sealed(w: World) -> Any:
    return await Patient.select(Patient.name).where(w.mine).distinct()


@refused()
async def update_from_sealed(w: World) -> Any:
    return await Patient.update({Patient.label: Patient.name}).where(w.mine).returning(Patient.label)


# Every function and operator, of a sealed column.
FUNCTIONS: dict[str, Callable[[], Any]] = {
    "functions.Avg": lambda: f.Avg(Patient.name),
    "functions.Max": lambda: f.Max(Patient.name),
    "functions.Min": lambda: f.Min(Patient.name),
    "functions.Sum": lambda: f.Sum(Patient.name),
    "functions.ArrayAppend": lambda: f.ArrayAppend(Patient.name, "x"),
    "functions.ArrayCat": lambda: f.ArrayCat(Patient.name, Patient.name),
    "functions.ArrayOverlap": lambda: ArrayOverlap(Patient.name, Patient.name),
    "functions.ArrayPrepend": lambda: f.ArrayPrepend("x", Patient.name),
    "functions.ArrayRemove": lambda: f.ArrayRemove(Patient.name, "x"),
    "functions.ArrayReplace": lambda: f.ArrayReplace(Patient.name, "x", "y"),
    "functions.Case": lambda: Case(When(Patient.label != "x", Patient.name)),
    "functions.When": lambda: Case(When(f.Upper(Patient.name) == "x", "x"), default="y"),
    "functions.Coalesce": lambda: f.Coalesce(Patient.name, Patient.label),
    "functions.NullIf": lambda: f.NullIf(Patient.name, "x"),
    "functions.AtTimeZone": lambda: AtTimeZone(Patient.name, "UTC"),
    "functions.Extract": lambda: f.Extract(Patient.name, "year"),
    "functions.Strftime": lambda: f.Strftime(Patient.name, "%Y"),
    "functions.Abs": lambda: f.Abs(Patient.name),
    "functions.Ceil": lambda: f.Ceil(Patient.name),
    "functions.Floor": lambda: f.Floor(Patient.name),
    "functions.Round": lambda: f.Round(Patient.name),
    "functions.Concat": lambda: f.Concat(Patient.name, Patient.label),
    "functions.Length": lambda: f.Length(Patient.name),
    "functions.Lower": lambda: f.Lower(Patient.name),
    "functions.Ltrim": lambda: f.Ltrim(Patient.name),
    "functions.Replace": lambda: f.Replace(Patient.name, "x", "y"),
    "functions.Reverse": lambda: f.Reverse(Patient.name),
    "functions.Rtrim": lambda: f.Rtrim(Patient.name),
    "functions.Upper": lambda: f.Upper(Patient.name),
    "functions.Cast": lambda: f.Cast(Patient.name, Text()),
    "json.GetChildElement": lambda: GetChildElement(Patient.address, "lives"),
    "json.GetElementFromPath": lambda: GetElementFromPath(Patient.address, ["lives"]),
    "querystring.QueryString": lambda: QueryString("encode({}, 'hex')", Patient.name),
}
