"""Everything in Piccolo that reads or writes works on encrypted columns, or refuses with a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from piccolo.columns import ForeignKey, Text
from piccolo.columns.base import OnDelete
from piccolo.query.functions import Upper
from piccolo.querystring import QueryString
from piccolo.table import Table

from core import ProtectedQueryError, ScopeError, SealedValueError, transaction
from core.columns import BlindIndex, EncryptedText
from core.engine import ChartholdEngine
from core.ids import uuid7
from core.queries import shape
from core.queries.shape import SHAPES
from core.statements.arguments import bind
from core.tables import Client, Facility, Tenant, TenantTable, User, UserActionAuditLog
from tests.conftest import Clinic
from tests.ledger import create

BORN = date(1990, 7, 1)


def someone(clinic: Clinic, last_name: str, **values: Any) -> Client:
    return Client(facility_id=clinic.facility, first_name="Bo", last_name=last_name, date_of_birth=BORN, **values)


async def reads(owner: asyncpg.Connection, row: Any) -> int:
    return await owner.fetchval(
        "select count(*) from user_action_audit_log where action_type = 'read' and record_id = $1", row
    )


async def test_a_client_is_saved_found_changed_and_removed(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        new = someone(lakeside, "Öz Kaya", ssn="123-45-6789", address={"city": "Ulm"})
        assert await new.save() == [{"id": new.id}]
        assert new.tenant_id == lakeside.tenant
        found = await Client.objects().get(Client.last_name == "  oz  KAYA ")
        assert found == new
        assert (found.ssn, found.address, found.date_of_birth) == ("123-45-6789", {"city": "Ulm"}, BORN)
        found.phone = "030 1234567"
        await found.save()
        await new.refresh()
        assert new.phone == "030 1234567"
        await new.update_self({Client.notes: "likes tea"})
        assert new.notes == "likes tea"
    async with lakeside.as_admin():
        await found.remove()
        assert not await Client.exists().where(Client.last_name == "Öz Kaya")


class Colour(Table, tablename="colour"):
    """A table of the application's that belongs to no tenant."""

    name = Text(primary_key=True)


async def test_a_table_that_belongs_to_no_tenant_is_read_in_batches_without_a_scope(owner: asyncpg.Connection) -> None:
    await owner.execute("create table colour (name text primary key); insert into colour values ('red'), ('blue')")
    await owner.execute("grant select on colour to public")
    try:
        async with await Colour.select(Colour.name).order_by(Colour.name).batch(batch_size=1) as batch:
            assert [rows async for rows in batch] == [[{"name": "blue"}], [{"name": "red"}]]
    finally:
        await owner.execute("drop table colour")


async def test_a_table_of_a_tenant_is_not(lakeside: Clinic) -> None:
    for query in (Client.select(), Client.raw("select id from client")):
        with pytest.raises(ScopeError, match="No scope is open"):
            async with await query.batch(batch_size=1):
                pass


async def test_select_opens_any_columns_under_any_name(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        rows = await Client.select(
            Client.last_name.as_alias("surname"), Client.status, Client.notes, Client.facility_id.name
        ).where(Client.id == lakeside.client)
        assert rows == [
            {"surname": "Nguyen", "status": "active", "notes": "afraid of needles", "facility_id.name": "Main street"}
        ]
        everything = await Client.select().where(Client.id == lakeside.client).first()
        assert "last_name_folded" not in everything
        assert everything["email"] == "ana.nguyen@mail.example"
        assert await Client.select(Client.first_name).where(Client.id == lakeside.client).output(as_list=True) == [
            "Ana"
        ]
        as_json = await Client.select(Client.address).where(Client.id == lakeside.client).output(as_json=True)
        assert "Somerville" in as_json
        nested = await Client.select(Client.first_name, Client.facility_id.name).output(nested=True).first()
        assert nested["facility_id"] == {"name": "Main street"}


async def test_objects_prefetch_and_get_related_open_what_they_load(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        client = await Client.objects(Client.facility_id, Client.user_id).get(Client.id == lakeside.client)
        assert client.facility_id.name == "Main street"
        assert client.user_id.email == "clinician@lakeside.example"
        assert client.last_name == "Nguyen"
        plain = await Client.objects().get(Client.id == lakeside.client)
        assert (await plain.get_related(Client.facility_id)).name == "Main street"


async def test_searches_use_the_blind_indexes(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        for condition in (
            Client.last_name == "NGUYEN",
            Client.last_name.is_in(["nguyen", "nobody"]),
            Client.last_name.starts_with("ngu"),
            Client.date_of_birth == date(1980, 2, 29),
            Client.ssn == "999-17-5017",
            Client.ssn.ends_with("5017"),
            Client.phone.ends_with("0100"),
            Client.email == "Ana.Nguyen@mail.example",
            (Client.last_name == "nguyen") & (Client.date_of_birth == date(1980, 2, 29)) & (Client.status == "active"),
            (Client.last_name == "nobody") | (Client.ssn.ends_with("5017")),
        ):
            assert await Client.select(Client.id).where(condition) == [{"id": lakeside.client}], condition
        assert await Client.count().where(Client.last_name == "nobody") == 0
        assert await Client.count().where(Client.ssn.is_null()) == await Client.count() - 1
        assert lakeside.client not in await Client.select(Client.id).where(Client.last_name != "nguyen").output(
            as_list=True
        )


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Client.select().order_by(Client.last_name), "order by it"),
        (lambda: Client.objects().order_by(Client.date_of_birth), "order by it"),
        (lambda: Client.select(Client.last_name).group_by(Client.last_name), "group it"),
        (lambda: Client.select(Client.last_name).distinct(), "tell equal values apart"),
        (lambda: Client.select(Upper(Client.last_name)), "compute with it"),
        (lambda: Client.select().where(Client.first_name == "Ana"), 'BlindIndex("first_name", kind="folded")'),
        (lambda: Client.select().where(Client.notes.starts_with("afr")), 'kind="prefix", length=3'),
        (lambda: Client.update({Client.tenant_id: None}).where(Client.status == "active"), "cannot be set"),
        (lambda: Client.update({Client.last_name_folded: b""}).where(Client.status == "active"), "cannot be set"),
        (lambda: Client.select().where(Client.facility_id.is_in(Client.select(Client.last_name))), "cannot return"),
        (lambda: Client.count(distinct=[Client.last_name]), "tell equal values apart"),
    ],
)
async def test_what_ciphertext_cannot_do_is_refused_with_what_to_write(lakeside: Clinic, build: Any, says: str) -> None:
    async with lakeside.as_clinician():
        with pytest.raises(ProtectedQueryError) as refused:
            await build()
    assert says in str(refused.value)


def test_ranges_and_patterns_are_refused_when_they_are_written() -> None:
    with pytest.raises(ProtectedQueryError, match="compare its values"):
        Client.date_of_birth > BORN  # noqa: B015
    with pytest.raises(ProtectedQueryError, match="match patterns"):
        Client.last_name.like("Ng%")


async def test_many_rows_are_inserted_in_one_transaction_and_updated_each_under_its_own_envelope(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_clinician():
        rows = [someone(lakeside, f"Many {n}", mrn=f"many-{n}") for n in range(1_000)]
        assert len(await Client.insert(*rows)) == 1_000
        await Client.update({Client.notes: "the same", Client.status: "on_hold"}).where(
            Client.date_of_birth == BORN, Client.last_name.is_in([f"many {n}" for n in range(50)])
        )
        assert await Client.count().where(Client.status == "on_hold") == 50
        noted = await Client.select(Client.notes).where(Client.last_name == "many 7").first()
        assert noted == {"notes": "the same"}
    sealed = await owner.fetch("select notes from client where status = 'on_hold'")
    assert len({row["notes"] for row in sealed}) == 50


class Invoice(TenantTable, tablename="invoice", schema="billing"):
    """In a schema of its own."""

    payer = EncryptedText(identifier="name")
    payer_folded = BlindIndex("payer", kind="folded")
    note = EncryptedText(identifier="other", null=True)


async def test_rows_of_a_table_in_another_schema_are_updated_each_under_its_own_envelope(
    lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    as_owner = await database.connect(owner=True)
    await as_owner.execute("create schema billing; grant usage on schema billing to app_runtime")
    await as_owner.close()
    await create(database, Invoice)
    async with lakeside.as_admin():
        await Invoice.insert(Invoice(payer="Bo"), Invoice(payer="Bo"), Invoice(payer="Cy"))
        await Invoice.update({Invoice.note: "late"}).where(Invoice.payer == "bo")
        assert sorted(str(note) for note in await Invoice.select(Invoice.note).output(as_list=True)) == [
            "None", "late", "late",
        ]  # fmt: skip
        rows = await Invoice.objects().where(Invoice.payer == "bo").lock_rows("UPDATE", of=(Invoice,))
        assert [row.note for row in rows] == ["late", "late"]


class Code(Table, tablename="code"):
    """A catalogue that all tenants share."""

    name = Text()


class Diagnosis(TenantTable, tablename="diagnosis"):
    """What refers to it."""

    code_id = ForeignKey(Code, on_delete=OnDelete.restrict, null=False)
    note = EncryptedText(identifier="other", null=True)
    second_id = ForeignKey(Code, on_delete=OnDelete.restrict)


async def test_a_row_refers_to_a_catalogue_that_all_tenants_share(
    lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    await create(database, Code, Diagnosis)
    with pytest.raises(ScopeError, match=r'permission denied for table code.*Grant\(privileges=.*to="app_runtime"\)'):
        await Code.select()
    await owner.execute("grant select on code to app_runtime; insert into code (name) values ('flu'), ('cold')")
    async with lakeside.as_admin():
        await Diagnosis(code_id=2, note="sneezes").save()
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await Diagnosis(code_id=3).save()
        assert await Diagnosis.select(Diagnosis.note, Diagnosis.code_id.name) == [
            {"note": "sneezes", "code_id.name": "cold"}
        ]
        found = await Diagnosis.objects(Diagnosis.code_id).where(Diagnosis.code_id.name == "cold").first()
        assert (found.code_id.name, (await found.get_related(Diagnosis.code_id)).name) == ("cold", "cold")
    # A reference that is added to rows is checked past the policies, which know no scope here.
    await owner.execute("alter table diagnosis drop column second_id")
    await owner.execute(f"alter table diagnosis add column {Diagnosis.second_id.ddl}")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await owner.execute("delete from code where id = 2")


async def test_insert_updates_on_conflict_by_id_and_refuses_to_move_an_envelope(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        new = someone(lakeside, "Conflict", mrn="conflict")
        await new.save()
        new.last_name = "Solved"
        await Client.insert(new).on_conflict(Client.id, "DO UPDATE", [Client.last_name])
        assert (await Client.objects().get(Client.mrn == "conflict")).last_name == "Solved"
        assert await Client.exists().where(Client.last_name == "solved")
        with pytest.raises(ProtectedQueryError, match="another row"):
            await Client.insert(someone(lakeside, "X", mrn="conflict")).on_conflict(
                Client.mrn, "DO UPDATE", [Client.last_name]
            )
        twin = User(email="clinician@lakeside.example", full_name="Twin")
    async with lakeside.as_admin():
        assert await User.insert(twin).on_conflict(User.email, "DO NOTHING") == []
        await User.insert(twin).on_conflict(User.email, "DO UPDATE", [User.full_name])
        assert (await User.objects().get(User.email == twin.email)).full_name == "Twin"


async def test_get_or_create_returning_and_freeze(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_clinician():
        defaults = {Client.facility_id: lakeside.facility, Client.first_name: "Q", Client.date_of_birth: BORN}
        made = await Client.objects().get_or_create(Client.last_name == "Zed", defaults=defaults)
        again = await Client.objects().get_or_create(Client.last_name == "Zed", defaults=defaults)
        assert (made._was_created, again._was_created, made.id) == (True, False, again.id)
        returned = (
            await Client.update({Client.phone: "1"})
            .where(Client.id == made.id)
            .returning(Client.phone, Client.last_name)
        )
        assert returned == [{"phone": "1", "last_name": "Zed"}]
        frozen = Client.select(Client.last_name, Client.tenant_id).where(Client.mrn.is_not_null()).limit(1).freeze()
        assert (await frozen.run())[0]["tenant_id"] == lakeside.tenant
    async with hillside.as_clinician():
        # What was compiled under one tenant runs under another: nothing of the first is in it.
        assert await frozen.run() == [{"last_name": "Nguyen", "tenant_id": hillside.tenant}]


async def test_batches_are_opened_and_recorded_one_by_one(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_clinician():
        await Client.insert(*[someone(lakeside, f"Batch {n}", mrn=f"batch-{n}") for n in range(25)])
        seen = []
        ids = await Client.select(Client.id).where(Client.last_name.starts_with("bat")).output(as_list=True)
        query = Client.select(Client.id, Client.last_name).where(Client.last_name.starts_with("bat"))
        async with await query.batch(batch_size=10) as batch:
            async for rows in batch:
                seen += rows
                break
    assert len(seen) == 10
    assert {row["last_name"][:5] for row in seen} == {"Batch"}
    assert [await reads(owner, row["id"]) for row in seen] == [1] * 10
    unseen = set(ids) - {row["id"] for row in seen}
    assert {await reads(owner, row) for row in unseen} == {0}


async def test_every_row_whose_phi_is_shown_is_recorded_and_no_other(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async def recorded(query: Any) -> int:
        before = await reads(owner, lakeside.client)
        await query
        return await reads(owner, lakeside.client) - before

    me = Client.id == lakeside.client
    async with lakeside.as_clinician():
        assert await recorded(Client.select(Client.status).where(me)) == 0
        assert await recorded(Client.count().where(me)) == 0
        assert await recorded(Client.select(Client.last_name).where(me)) == 1
        assert await recorded(Client.objects().where(me)) == 1
        assert await recorded(Client.objects().get(me)) == 1
        assert await recorded(Client.objects(Client.facility_id).where(me)) == 1
        assert await recorded(Client.select().where(me)) == 1
        assert await recorded(Client.update({Client.notes: "n"}).where(me).returning(Client.notes)) == 1
        assert await recorded(Client.select(Client.last_name).where(me).freeze().run()) == 1
    last = await owner.fetchrow(
        "select * from user_action_audit_log where action_type = 'read' and record_id = $1 order by occurred_at desc limit 1",
        lakeside.client,
    )
    assert (last["table_name"], last["changed_columns"], last["user_id"]) == (
        "client",
        ["last_name"],
        lakeside.clinician,
    )


async def test_what_was_shown_in_a_transaction_that_rolls_back_stays_recorded(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    before = await reads(owner, lakeside.client)
    async with lakeside.as_clinician():
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                await Client.select(Client.last_name).where(Client.id == lakeside.client)
                raise ZeroDivisionError
        assert await reads(owner, lakeside.client) == before + 1
        async with transaction():
            with pytest.raises(ZeroDivisionError):
                async with transaction():
                    await Client.select(Client.last_name).where(Client.id == lakeside.client)
                    raise ZeroDivisionError
        assert await reads(owner, lakeside.client) == before + 2


async def test_raw_sql_keeps_to_the_scope_and_its_envelopes_stay_closed(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_clinician():
        rows = await Client.raw(
            "select id, last_name from client where id in ({}, {})", lakeside.client, hillside.client
        )
        assert [row["id"] for row in rows] == [lakeside.client]
        assert isinstance(rows[0]["last_name"], bytes)


async def test_rows_and_errors_print_no_values(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        client = await Client.objects().get(Client.id == lakeside.client)
        assert "Nguyen" not in f"{client!r} {client!s}"
        assert "Nguyen" not in str(Client.insert(someone(lakeside, "Nguyen")))
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await someone(lakeside, "Nguyen", status="Nguyen").save()
        assert "Nguyen" not in f"{refused.value!r} {refused.value} {vars(refused.value)}"
        with pytest.raises(asyncpg.PostgresError) as refused:
            await Client.select(Client.id).where(Client.admitted_on == "Nguyen")
        assert "Nguyen" not in f"{refused.value!r} {refused.value} {vars(refused.value)}"


async def test_an_argument_that_does_not_fit_is_named_by_its_column(lakeside: Clinic) -> None:
    wrong: Any = "Nguyen"
    queries = {
        "one row": Client.insert(someone(lakeside, "One", admitted_on=wrong)),
        "several rows": Client.insert(someone(lakeside, "One"), someone(lakeside, "Two", admitted_on=wrong)),
        "conflict": Client.insert(someone(lakeside, "One", admitted_on=wrong)).on_conflict(action="DO NOTHING"),
        "update": Client.update({Client.status: "active", Client.admitted_on: wrong}).where(Client.id == uuid7()),
        "condition": Client.select(Client.id).where(Client.status == "active", Client.admitted_on < wrong),
    }
    for what, query in queries.items():
        async with lakeside.as_clinician():
            with pytest.raises(
                asyncpg.DataError, match=r'type (str|list), for "admitted_on", \$\d+, does not'
            ) as refused:
                await query
            assert "Nguyen" not in str(refused.value), what


async def test_an_argument_beside_what_is_computed_is_named_by_its_place_and_no_other_column(lakeside: Clinic) -> None:
    row = someone(lakeside, "One", status=QueryString("coalesce({}, {})", "active", "on_hold"))
    row.admitted_on = "Nguyen"
    async with lakeside.as_clinician():
        with pytest.raises(asyncpg.DataError, match=r"A value of type str, for \$\d+, does not fit"):
            await row.save()


async def test_plaintext_cannot_be_stored_by_hand(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        with pytest.raises(asyncpg.CheckViolationError):
            await Client.raw("update client set notes = 'plain words'::bytea where id = {}", lakeside.client)


async def test_an_envelope_that_was_moved_to_another_row_does_not_open(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_clinician():
        other = someone(lakeside, "Other", notes="hers")
        await other.save()
        await Client.raw(
            "update client set notes = (select notes from client where id = {}) where id = {}",
            other.id,
            lakeside.client,
        )
        with pytest.raises(Exception, match="does not open"):
            await Client.select(Client.notes).where(Client.id == lakeside.client)
        await Client.update({Client.notes: "afraid of needles"}).where(Client.id == lakeside.client)


async def test_gather_works_inside_a_scope_and_is_refused_inside_a_transaction(lakeside: Clinic) -> None:
    async with lakeside.as_clinician():
        counts = await asyncio.gather(*[Client.count() for _ in range(20)])
        assert len(set(counts)) == 1
        async with transaction():
            with pytest.raises(ScopeError, match="task that opened it"):
                await asyncio.gather(Client.count(), Client.count())
            assert await Client.count() == counts[0]


async def test_a_transaction_that_set_up_opened_is_the_tests(lakeside: Clinic) -> None:
    """As unittest and pytest run them: in turn, each in a task of its own, in one context."""
    context = contextvars.copy_context()

    def in_turn(steps: Any) -> asyncio.Task:
        return asyncio.create_task(steps, context=context)

    async def set_up() -> contextlib.AsyncExitStack:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(lakeside.as_admin())
        await stack.enter_async_context(transaction())
        await Facility(name="Of the set-up").save()
        return stack

    async def test() -> None:
        assert await Facility.exists().where(Facility.name == "Of the set-up")
        with pytest.raises(ScopeError, match="task that opened it"):
            await asyncio.gather(Facility.count(), Facility.count())
        await Facility(name="Of the test").save()

    async def after() -> bool:
        return await Facility.exists().where(Facility.name.is_in(["Of the set-up", "Of the test"]))

    stack = await in_turn(set_up())
    await in_turn(test())
    assert await in_turn(after())
    await in_turn(stack.__aexit__(ZeroDivisionError, ZeroDivisionError(), None))
    async with lakeside.as_admin():
        assert not await after()


async def test_a_task_that_outlives_a_transaction_is_told_that_it_inherited_it(lakeside: Clinic) -> None:
    ended = asyncio.Event()

    async def later() -> int:
        await ended.wait()
        with pytest.raises(ScopeError, match="begun in its block and outlives it"):
            await Facility.count()
        async with transaction():
            return await Facility.count()

    async with lakeside.as_admin():
        async with transaction():
            task = asyncio.create_task(later())
        ended.set()
        assert await task == await Facility.count()


async def test_a_transaction_is_all_or_nothing_and_a_nested_one_is_a_savepoint(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                await Facility(name="Never").save()
                raise ZeroDivisionError
        assert not await Facility.exists().where(Facility.name == "Never")
        async with transaction():
            await Facility(name="Outer").save()
            with pytest.raises(asyncpg.UniqueViolationError):
                async with transaction():
                    await Facility(name="Inner").save()
                    await Facility(name="Outer").save()
            await Facility(name="After").save()
        kept = (
            await Facility.select(Facility.name)
            .where(Facility.name.is_in(["Outer", "Inner", "After"]))
            .output(as_list=True)
        )
        assert sorted(kept) == ["After", "Outer"]


async def test_a_tenant_sees_itself_only(lakeside: Clinic, hillside: Clinic) -> None:
    async with lakeside.as_admin():
        assert await Tenant.select(Tenant.slug).output(as_list=True) == ["lakeside"]
        await Tenant.update({Tenant.name: "Lakeside Clinic"}).where(Tenant.slug.is_in(["lakeside", "hillside"]))
    async with hillside.as_admin():
        assert await Tenant.select(Tenant.name).output(as_list=True) == ["Hillside"]


async def test_the_log_answers_through_the_orm(lakeside: Clinic, database: ChartholdEngine) -> None:
    async with lakeside.as_admin():
        mine = await UserActionAuditLog.count().where(UserActionAuditLog.user_id == lakeside.admin)
        assert mine > 0


async def test_save_writes_what_changed_and_nothing_else(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async def changes(row: Any) -> list[list[str]]:
        rows = await owner.fetch(
            "select changed_columns from user_action_audit_log where record_id = $1 and action_type = 'update'"
            " order by occurred_at, id",
            row,
        )
        return [r["changed_columns"] for r in rows]

    async with lakeside.as_clinician():
        new = someone(lakeside, "Dirty", address={"city": "Ulm"})
        await new.save()
        assert await new.save() == []
        new.address["city"] = "Bonn"
        await new.save()
        new.phone, new.notes = "1", "n"
        await new.save([Client.phone])
        await new.save()
        found = await Client.objects(Client.facility_id).get(Client.id == new.id)
        await found.save()
        found.last_name = "Clean"
        await found.save()
    indexes = ["last_name_folded", "last_name_prefix"]
    assert await changes(new.id) == [["address"], ["phone"], ["notes"], ["last_name", *indexes]]


async def test_common_queries_find_their_rows_by_an_index(
    lakeside: Clinic, runtime: asyncpg.Connection, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    async with lakeside.as_clinician() as here:
        await Client.insert(*[someone(lakeside, f"Index {n}", mrn=f"index-{n}") for n in range(2_000)])
        await owner.execute("analyze client")
        keys = await database.keys_of(here)
        me = Client.id == lakeside.client
        for query in (
            Client.objects().get(me),
            Client.select(Client.last_name).where(me),
            Client.objects().where(Client.last_name == "nguyen"),
            Client.select(Client.id).where(Client.ssn.ends_with("5017")),
            Client.select(Client.id).where(Client.user_id == lakeside.clinician),
            Client.update({Client.notes: "n"}).where(me),
            Client.delete().where(me),
        ):
            statement, arguments = query.querystrings[0].compiled()
            token = here.token(database.token_key, runtime.get_server_pid())
            plan = await runtime.fetch(f"explain {statement.gated}", *bind(arguments, lakeside.tenant, keys), token)
            text = "\n".join(row[0] for row in plan)
            assert "Index" in text, text
            assert "Seq Scan on client" not in text, text


# -- many rows at once -------------------------------------------------------------------------------------------------


def crowd(clinic: Clinic, number: int, **last: Any) -> list[Client]:
    """New clients with an MRN each; ``last`` changes the last one."""
    given = {"facility_id": clinic.facility, "first_name": "Bo", "date_of_birth": date(1990, 7, 1)}
    batch = uuid4().hex[:8]
    rows = [Client(**given, last_name=f"Crowd{n}", mrn=f"{batch}-{n}") for n in range(number)]
    for name, value in last.items():
        setattr(rows[-1], name, value)
    return rows


async def test_many_rows_go_in_together_in_their_order_with_a_record_each(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    rows = crowd(lakeside, 1_001)
    async with lakeside.as_admin():
        answer = await Client.insert(*rows)
        assert await Client.count().where(Client.id.is_in([row.id for row in rows])) == 1_001
        assert (await Client.objects().get(Client.id == rows[-1].id)).last_name == "Crowd1000"
    assert [row["id"] for row in answer] == [row.id for row in rows]
    assert all(row._exists_in_db for row in rows)
    written = await owner.fetch(
        "select record_id, transaction_id from user_action_audit_log where action_type = 'insert' and record_id = any($1)",
        [row.id for row in rows],
    )
    assert {r["record_id"] for r in written} == {row.id for row in rows}
    assert len(written) == 1_001
    assert len({r["transaction_id"] for r in written}) == 1


@pytest.mark.parametrize(
    ("last", "refusal"),
    [
        ({"mrn": "taken"}, asyncpg.UniqueViolationError),
        ({"facility_id": uuid7()}, asyncpg.ForeignKeyViolationError),
        ({"status": "sleeping"}, asyncpg.CheckViolationError),
        ({"first_name": 5}, SealedValueError),
    ],
    ids=["unique", "foreign key", "check", "not a text"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a transaction"])
async def test_of_many_rows_all_go_in_or_none(
    last: dict[str, Any],
    refusal: type[Exception],
    inside: bool,  # noqa: FBT001
    lakeside: Clinic,
) -> None:
    rows = crowd(lakeside, 601, **last)
    async with lakeside.as_admin():
        if not await Client.exists().where(Client.mrn == "taken"):
            await crowd(lakeside, 1, mrn="taken")[0].save()
        before = await Client.count()
        if inside:
            async with transaction():
                with pytest.raises(refusal):
                    await Client.insert(*rows)
                assert await Client.count() == before
                await crowd(lakeside, 1)[0].save()  # the transaction goes on
            assert await Client.count() == before + 1
        else:
            with pytest.raises(refusal):
                await Client.insert(*rows)
            assert await Client.count() == before
    assert not any(row._exists_in_db for row in rows)


@pytest.mark.parametrize("size", [1, 2, 100, 101])
async def test_when_a_trigger_leaves_one_row_out_none_goes_in(
    size: int, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        "create function public.leave_out() returns trigger language plpgsql"
        " as $$ begin if new.status = 'on_hold' then return null; end if; return new; end $$;"
        "create trigger leave_out before insert on client for each row execute function public.leave_out()"
    )
    try:
        rows = crowd(lakeside, size, status="on_hold")
        async with lakeside.as_admin():
            before = await Client.count()
            with pytest.raises(ProtectedQueryError, match="none was kept"):
                await Client.insert(*rows)
            assert await Client.count() == before
        assert not any(row._exists_in_db for row in rows)
    finally:
        await owner.execute("drop function public.leave_out() cascade")


async def test_many_rows_that_are_cancelled_half_way_leave_nothing(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        before = await Client.count()
        for pause in (0.0, 0.002, 0.01, 0.02, 0.03, 0.05):
            task = asyncio.create_task(Client.insert(*crowd(lakeside, 1_000)).run())
            await asyncio.sleep(pause)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            found = await Client.count()
            assert (found - before) % 1_000 == 0
            before = found


PAIRS = [
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind.as_alias("what"))),
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind).distinct()),
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind).limit(1)),
    (lambda: Facility.select(Facility.name), lambda: Facility.select(Facility.name).offset(1)),
    (lambda: Facility.select(Facility.name), lambda: Facility.select(Facility.name).order_by(Facility.name)),
    (
        lambda: Facility.select(Facility.name).order_by(Facility.name),
        lambda: Facility.select(Facility.name).order_by(Facility.name, ascending=False),
    ),
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind).group_by(Facility.kind)),
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind, Facility.status)),
    (lambda: Facility.select(Facility.kind), lambda: Facility.select(Facility.kind).lock_rows()),
    (
        lambda: Client.select(Client.facility_id.name),
        lambda: Client.select(Client.facility_id.name.as_alias("where")),
    ),
    (
        lambda: Facility.select().where(Facility.kind == "laboratory"),
        lambda: Facility.select().where(Facility.kind != "laboratory"),
    ),
    (
        lambda: Facility.select().where(Facility.kind.is_in(["laboratory", "x"])),
        lambda: Facility.select().where(Facility.kind.not_in(["laboratory", "x"])),
    ),
]


@pytest.mark.parametrize("searched", ["update", "delete", "select"])
async def test_a_query_that_searches_by_a_value_is_compiled_once(searched: str, lakeside: Clinic) -> None:
    def query(name: str) -> Any:
        return {
            "update": lambda: Client.update({Client.status: "active"}).where(Client.last_name == name),
            "delete": lambda: Client.delete().where(Client.last_name == name),
            "select": lambda: Client.select(Client.id).where(Client.last_name == name),
        }[searched]()

    async with lakeside.as_admin():
        SHAPES.clear()
        await query("nobody")
        assert len(SHAPES._kept) == 1
        kept = dict(SHAPES._kept)
        await query("nobody else")
        assert kept == SHAPES._kept


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("pair", PAIRS)
async def test_queries_that_differ_in_one_thing_do_not_answer_for_each_other(
    pair: tuple[Any, Any], first: int, lakeside: Clinic
) -> None:
    """Compiled statements are kept by their shape: what tells two queries apart is part of it."""
    async with lakeside.as_admin():
        if not await Facility.exists().where(Facility.kind == "laboratory"):
            await Facility.insert(*[Facility(name=f"Pair {n}", kind="laboratory") for n in (2, 1, 3)])
        alone = []
        for build in pair:
            SHAPES.clear()
            alone.append(await build())
        SHAPES.clear()
        together = {at: await pair[at]() for at in (first, 1 - first)}
        assert [together[0], together[1]] == alone
        assert [await pair[0](), await pair[1]()] == alone, "and once more, from what was kept"


async def test_long_lists_out_of_requests_take_no_memory(lakeside: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat: somebody asks for lists of each length, and for each a statement is kept, of a megabyte."""
    monkeypatch.setattr(shape, "LARGEST", 50_000)
    ids, often = [uuid7() for _ in range(2_006)], Facility.select(Facility.id).where(Facility.name == "x")

    def compile_one(count: int) -> None:
        Facility.select(Facility.id).where(Facility.id.is_in(ids[:count])).querystrings[0].compiled()  # type: ignore[attr-defined]

    SHAPES.clear()
    async with lakeside.as_admin():
        compile_one(2_000)
        tracemalloc.start()
        try:
            for count in range(2_001, 2_007):
                compile_one(count)
            assert tracemalloc.get_traced_memory()[0] < 300_000
        finally:
            tracemalloc.stop()
        assert 0 < sum(len(statement.sql) for statement in SHAPES._kept.values()) == SHAPES._size <= 50_000
        assert await often == []


def test_threads_that_compile_at_once_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread may have an event loop of its own; one lets go of the statement that another is about to."""
    monkeypatch.setattr(shape, "MOST", 8)
    ids = [uuid7() for _ in range(40)]
    SHAPES.clear()

    def compile_all(_: int) -> None:
        for count in [*range(1, 40)] * 20:
            Facility.select(Facility.id).where(Facility.id.is_in(ids[:count])).querystrings[0].compiled()  # type: ignore[attr-defined]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(compile_all, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert SHAPES._size == sum(len(kept.sql) for kept in SHAPES._kept.values())


async def test_what_raw_sql_does_wrong_is_said_without_a_value(lakeside: Clinic) -> None:
    async with lakeside.as_admin():
        with pytest.raises(asyncpg.DataError) as refused:
            await Client.raw("select id from client where created_at > {} and status = {}", "Nguyen", "active")
        assert str(refused.value).startswith("A value of type str, for $1, does not fit")
        with pytest.raises(asyncpg.PostgresSyntaxError, match="One statement at a time") as refused:
            await Client.raw("select 1; select 'Nguyen'")
        assert "Nguyen" not in str(refused.value)
