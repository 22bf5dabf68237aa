"""Every table of tenants, every way of writing: one record a row, with the right old and new values."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from piccolo.columns import Array, DoublePrecision, Interval, Numeric, Text

from core import provision_tenant, transaction
from core.compliance.disclosures import Disclosure
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import ActivityReview
from core.engine import ChartholdEngine
from core.errors import ChartholdError
from core.ids import uuid7
from core.schema import Function
from core.tables import AuditSeal, Client, Facility, Tenant, TenantKey, TenantTable, User, UserActionAuditLog
from core.tenant_table import ProtectedTable
from piccolo_conf import APP_REGISTRY
from tests.conftest import Clinic
from tests.ledger import changes, recorded, signed, stored
from tests.ledger import create as make_tables

OWNER_IS_SUPERUSER = True

# Tables without capture, and why.
UNAUDITED = {
    AuditSeal: "a record of a seal would call for the next seal",
    UserActionAuditLog: "the log itself, which is only appended to",
}

number = itertools.count(2)


@dataclass(frozen=True)
class Case:
    """How a table is written. ``closed``: what no role of the application may do with it."""

    new: Callable[[Clinic], ProtectedTable]
    # A plain column, and two values of it.
    column: str
    before: Any
    after: Any
    # What no two rows may share.
    unique: Callable[[], dict[str, Any]] = field(default=dict)
    closed: frozenset[str] = frozenset()


def new_client(clinic: Clinic) -> Client:
    born = date(1980, 1, 1)
    return Client(facility_id=clinic.facility, first_name="A", last_name="B", date_of_birth=born, status="active")


CASES: dict[type[ProtectedTable], Case] = {
    User: Case(
        lambda _: User(email=f"{uuid4()}@x.example", full_name="Before", facility_scope=[uuid7()]),
        "full_name", "Before", "After", lambda: {"email": f"{uuid4()}@x.example"},
    ),
    Facility: Case(
        lambda _: Facility(name=f"Before {uuid4()}", phone="Before", address={"city": "Ulm"}),
        "phone", "Before", "After", lambda: {"name": f"Before {uuid4()}"},
    ),
    Client: Case(new_client, "status", "active", "on_hold"),
    Disclosure: Case(
        lambda clinic: Disclosure(
            client_id=clinic.client, disclosed_on=date(2020, 2, 2), recipient="Before", description="A", purpose="B",
            basis="other",
        ),
        "recipient", "Before", "After", closed=frozenset({"delete"}),
    ),
    Tenant: Case(
        lambda _: Tenant(slug=f"t-{uuid4()}", name="Before", settings={}, branding={}),
        "name", "Before", "After", lambda: {"slug": f"t-{uuid4()}"}, closed=frozenset({"insert", "delete"}),
    ),
    EmergencyAccess: Case(
        lambda clinic: EmergencyAccess(
            user_id=clinic.clinician, client_id=clinic.client, reason="Before", until=datetime(2099, 1, 1, tzinfo=UTC)
        ),
        "reason", "Before", "After", closed=frozenset({"insert", "update", "delete"}),
    ),
    ActivityReview: Case(
        lambda _: ActivityReview(
            since=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2020, 2, 1, tzinfo=UTC), note="Before"
        ),
        "note", "Before", "After", lambda: {"created_at": str(datetime.now(UTC))}, closed=frozenset({"update", "delete"}),
    ),
    TenantKey: Case(
        lambda _: TenantKey(version=next(number), status="shredded", kek="Before"),
        "kek", "Before", "After", lambda: {"version": next(number)}, closed=frozenset({"insert", "update", "delete"}),
    ),
}  # fmt: skip


@dataclass
class Writer:
    """Somebody who writes to a table: the application in the open scope, or the owner with the scope's token."""

    table: type[ProtectedTable]
    case: Case
    clinic: Clinic
    owner: asyncpg.Connection

    @property
    def name(self) -> str:
        return self.table._meta.tablename

    async def seed(self) -> Any:
        """A row to begin with."""
        row: Any = self.case.new(self.clinic)
        if "insert" not in self.case.closed:
            await row.save()
            return row
        document = {
            c._meta.db_column_name: getattr(row, c._meta.name)
            for c in self.table._meta.columns
            if getattr(row, c._meta.name) is not None
        }
        if "tenant_id" in {c._meta.name for c in self.table._meta.columns}:
            document["tenant_id"] = self.clinic.tenant
        await self.owner.execute(
            f"insert into {self.name} select (jsonb_populate_record(null::{self.name},"
            " jsonb_build_object('created_at', now(), 'updated_at', now()) || $1)).*",
            json.dumps(document, default=str),
        )
        row._exists_in_db = True
        row.remember()
        return row

    async def twin(self, row: Any) -> dict[str, Any]:
        """The document of another row like this one. Its envelopes do not open; that is nothing to the capture."""
        document = await stored(self.owner, self.table, row.id)
        return document | {"id": str(uuid7())} | self.case.unique()

    def columns(self, source: str = "") -> str:
        return ", ".join(f'{source}"{c._meta.db_column_name}"' for c in self.table._meta.columns)


Way = Callable[[Writer, Any], Awaitable[Any]]
INSERTS: list[tuple[str, Way]] = []
UPDATES: list[tuple[str, Way]] = []
DELETES: list[tuple[str, Way]] = []


def way(ways: list[tuple[str, Way]], *, owner: bool = False) -> Callable[[Way], Way]:
    """Names a way of writing, and who goes it."""

    def add(function: Way) -> Way:
        ways.append(("owner" if owner else "runtime", function))
        return function

    return add


def named(ways: list[tuple[str, Way]]) -> Any:
    return pytest.mark.parametrize(("who", "write"), ways, ids=[f"{who}-{w.__name__}" for who, w in ways])


each_table = pytest.mark.parametrize("table", CASES, ids=lambda table: table.__name__)

POPULATED = "(jsonb_populate_record(null::{}, {}::jsonb)).*"


# -- ways to insert: each gets a row to be like, and says which rows it made ------------------------------------------


@way(INSERTS)
async def save(w: Writer, row: Any) -> list[UUID]:
    new: Any = w.case.new(w.clinic)
    await new.save()
    return [new.id]


@way(INSERTS)
async def create(w: Writer, row: Any) -> list[UUID]:
    new: Any = w.case.new(w.clinic)
    given = {n: v for n, v in new.to_dict().items() if n not in ("id", "tenant_id", "created_at", "updated_at")}
    return [(await w.table.objects().create(**given)).id]


@way(INSERTS)
async def insert_many(w: Writer, row: Any) -> list[UUID]:
    rows: Any = [w.case.new(w.clinic) for _ in range(30)]
    await w.table.insert(*rows)
    return [new.id for new in rows]


@way(INSERTS)
async def insert_or_update(w: Writer, row: Any) -> list[UUID]:
    new: Any = w.case.new(w.clinic)
    await w.table.insert(new).on_conflict(w.table.id, "DO UPDATE", [getattr(w.table, w.case.column)])
    return [new.id]


@way(INSERTS)
async def raw_insert(w: Writer, row: Any) -> list[UUID]:
    twin = await w.twin(row)
    await w.table.raw(f"insert into {w.name} select {POPULATED.format(w.name, '{}')}", json.dumps(twin))
    return [UUID(twin["id"])]


@way(INSERTS)
async def raw_insert_in_a_with_clause(w: Writer, row: Any) -> list[UUID]:
    twins = [await w.twin(row) for _ in range(3)]
    await w.table.raw(
        f"with n as (insert into {w.name} select x.* from jsonb_populate_recordset(null::{w.name}, {{}}::jsonb) as x"
        " returning id) select count(*) from n",
        json.dumps(twins),
    )
    return [UUID(twin["id"]) for twin in twins]


@way(INSERTS)
async def raw_merge(w: Writer, row: Any) -> list[UUID]:
    twin = await w.twin(row)
    await w.table.raw(
        f"merge into {w.name} as t using (select {POPULATED.format(w.name, '{}')}) as s on t.id = s.id"
        f" when not matched then insert ({w.columns()}) values ({w.columns('s.')})",
        json.dumps(twin),
    )
    return [UUID(twin["id"])]


@way(INSERTS, owner=True)
async def insert(w: Writer, row: Any) -> list[UUID]:
    twins = [await w.twin(row) for _ in range(5)]
    await w.owner.execute(
        f"insert into {w.name} select * from jsonb_populate_recordset(null::{w.name}, $1)", json.dumps(twins)
    )
    return [UUID(twin["id"]) for twin in twins]


@way(INSERTS, owner=True)
async def copy(w: Writer, row: Any) -> list[UUID]:
    twins = [await w.twin(row) for _ in range(20)]
    lines = io.BytesIO()
    await w.owner.copy_from_query(
        f"select x.* from jsonb_populate_recordset(null::{w.name}, $1) as x", json.dumps(twins), output=lines
    )
    lines.seek(0)
    await w.owner.copy_to_table(w.name, source=lines)
    return [UUID(twin["id"]) for twin in twins]


# -- ways to update one row -------------------------------------------------------------------------------------------


def value(w: Writer) -> dict[Any, Any]:
    return {getattr(w.table, w.case.column): w.case.after}


@way(UPDATES)
async def save_changed(w: Writer, row: Any) -> None:
    setattr(row, w.case.column, w.case.after)
    await row.save()


@way(UPDATES)
async def save_columns(w: Writer, row: Any) -> None:
    setattr(row, w.case.column, w.case.after)
    await row.save([w.case.column])


@way(UPDATES)
async def update_self(w: Writer, row: Any) -> None:
    await row.update_self(value(w))


@way(UPDATES)
async def update(w: Writer, row: Any) -> None:
    await w.table.update(value(w)).where(w.table.id == row.id)


@way(UPDATES)
async def update_many(w: Writer, row: Any) -> None:
    await w.table.update(value(w)).where(w.table.id.is_in([row.id, uuid7()]))


@way(UPDATES)
async def upsert(w: Writer, row: Any) -> None:
    column = getattr(w.table, w.case.column)
    await w.table.insert(row).on_conflict(w.table.id, "DO UPDATE", [(column, w.case.after)])


@way(UPDATES)
async def raw_update(w: Writer, row: Any) -> None:
    await w.table.raw(f"update {w.name} set {w.case.column} = {{}} where id = {{}}", w.case.after, row.id)


@way(UPDATES)
async def raw_update_in_a_with_clause(w: Writer, row: Any) -> None:
    await w.table.raw(
        f"with u as (update {w.name} set {w.case.column} = {{}} where id = {{}} returning id) select count(*) from u",
        w.case.after,
        row.id,
    )


@way(UPDATES)
async def raw_update_merge(w: Writer, row: Any) -> None:
    await w.table.raw(
        f"merge into {w.name} as t using (select {{}}::uuid as id) as s on t.id = s.id"
        f" when matched then update set {w.case.column} = {{}}",
        row.id,
        w.case.after,
    )


@way(UPDATES, owner=True)
async def owner_update(w: Writer, row: Any) -> None:
    await w.owner.execute(f"update {w.name} set {w.case.column} = $1 where id = $2", w.case.after, row.id)


@way(UPDATES, owner=True)
async def owner_upsert(w: Writer, row: Any) -> None:
    document = await stored(w.owner, w.table, row.id) | {w.case.column: w.case.after}
    key = "id" if w.table is Tenant else "tenant_id, id"
    await w.owner.execute(
        f"insert into {w.name} select {POPULATED.format(w.name, '$1')} on conflict ({key})"
        f" do update set {w.case.column} = excluded.{w.case.column}",
        json.dumps(document),
    )


@way(UPDATES, owner=True)
async def owner_merge(w: Writer, row: Any) -> None:
    await w.owner.execute(
        f"merge into {w.name} as t using (select $1::uuid as id) as s on t.id = s.id"
        f" when matched then update set {w.case.column} = $2",
        row.id,
        w.case.after,
    )


# -- ways to delete ---------------------------------------------------------------------------------------------------


@way(DELETES)
async def delete(w: Writer, rows: Any) -> None:
    await w.table.delete().where(w.table.id.is_in([row.id for row in rows]))


@way(DELETES)
async def remove(w: Writer, rows: Any) -> None:
    for row in rows:
        row_id = row.id
        await row.remove()
        row.id = row_id


@way(DELETES)
async def raw_delete(w: Writer, rows: Any) -> None:
    await w.table.raw(f"delete from {w.name} where id = any ({{}}::uuid[])", [row.id for row in rows])


@way(DELETES)
async def raw_delete_in_a_with_clause(w: Writer, rows: Any) -> None:
    await w.table.raw(
        f"with gone as (delete from {w.name} where id = any ({{}}::uuid[]) returning id) select count(*) from gone",
        [row.id for row in rows],
    )


@way(DELETES)
async def raw_delete_merge(w: Writer, rows: Any) -> None:
    await w.table.raw(
        f"merge into {w.name} as t using unnest({{}}::uuid[]) as s(id) on t.id = s.id when matched then delete",
        [row.id for row in rows],
    )


@way(DELETES, owner=True)
async def owner_delete(w: Writer, rows: Any) -> None:
    await w.owner.execute(f"delete from {w.name} where id = any ($1)", [row.id for row in rows])


@way(DELETES, owner=True)
async def owner_delete_merge(w: Writer, rows: Any) -> None:
    await w.owner.execute(
        f"merge into {w.name} as t using unnest($1::uuid[]) as s(id) on t.id = s.id when matched then delete",
        [row.id for row in rows],
    )


# -- what they leave --------------------------------------------------------------------------------------------------


def is_open(case: Case, who: str, *commands: str) -> bool:
    """Whether that somebody may do that. The owner is above policies and grants, and below the triggers."""
    return who == "owner" or case.closed.isdisjoint(commands)


@each_table
@named(INSERTS)
async def test_each_inserted_row_leaves_one_record_with_its_values(
    table: type[ProtectedTable], who: str, write: Way, lakeside: Clinic, owner: Any, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    log = "select count(*) from user_action_audit_log where action_type not in ('read', 'search') and table_name = $1"
    reason = f"insert {uuid4()}"
    async with lakeside.as_admin(reason) as here:
        async with signed(owner, database, here):
            row = await w.seed()
        before = await owner.fetchval(log, w.name)
        # An upsert may update.
        if not is_open(w.case, who, "insert", *(["update"] if write is insert_or_update else [])):
            with pytest.raises((ChartholdError, asyncpg.PostgresError)):
                await write(w, row)
            assert await owner.fetchval(log, w.name) == before
            return
        async with signed(owner, database, here):
            made = await write(w, row)
    assert await owner.fetchval(log, w.name) == before + len(made)
    found = {record.row: record for record in await changes(owner, *made)}
    assert found.keys() == set(made)
    for row_id, record in found.items():
        whole = recorded(table, await stored(owner, table, row_id))
        assert whole[w.case.column] == w.case.before
        assert record.what == ("insert", None, whole)
        assert (record.table, record.user, record.reason) == (w.name, lakeside.admin, reason)
        assert record.tenant == (row_id if table is Tenant else lakeside.tenant)
    assert len({record.transaction for record in found.values()}) == 1


@each_table
@named(UPDATES)
async def test_an_update_leaves_one_record_with_both_values(
    table: type[ProtectedTable], who: str, write: Way, lakeside: Clinic, owner: Any, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    reason = f"update {uuid4()}"
    async with lakeside.as_admin(reason) as here:
        if table is Tenant and who == "runtime":
            # The application's only tenant is its own.
            await Tenant.update({Tenant.name: w.case.before}).where(Tenant.id == lakeside.tenant)
            row: Any = await Tenant.objects().get(Tenant.id == lakeside.tenant)
        else:
            async with signed(owner, database, here):
                row = await w.seed()
        earlier = len(await changes(owner, row.id))
        # An upsert asks to insert, also where it then updates.
        if not is_open(w.case, who, "update", *(["insert"] if write is upsert else [])):
            with pytest.raises((ChartholdError, asyncpg.PostgresError)):
                await write(w, row)
            assert len(await changes(owner, row.id)) == earlier
            return
        async with signed(owner, database, here):
            await write(w, row)
    [record] = (await changes(owner, row.id))[earlier:]
    column = w.case.column
    assert record.what == ("update", {column: w.case.before}, {column: w.case.after})
    assert record.changed == (column,)
    assert (record.table, record.user, record.reason) == (w.name, lakeside.admin, reason)
    assert (await stored(owner, table, row.id))[column] == w.case.after


@each_table
@named(DELETES)
async def test_each_deleted_row_leaves_one_record_with_what_it_held(
    table: type[ProtectedTable], who: str, write: Way, lakeside: Clinic, owner: Any, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    reason = f"delete {uuid4()}"
    async with lakeside.as_admin(reason) as here:
        async with signed(owner, database, here):
            rows = [await w.seed() for _ in range(4)]
        held = {row.id: recorded(table, await stored(owner, table, row.id)) for row in rows}
        if not is_open(w.case, who, "delete"):
            with pytest.raises((ChartholdError, asyncpg.PostgresError)):
                await write(w, rows)
            assert [r.action for r in await changes(owner, *held)] == ["insert"] * 4
            return
        async with signed(owner, database, here):
            await write(w, rows)
    found = [record for record in await changes(owner, *held) if record.action != "insert"]
    assert {record.row: record.what for record in found} == {row: ("delete", old, None) for row, old in held.items()}
    assert len(found) == 4
    assert {(record.table, record.user, record.reason) for record in found} == {(w.name, lakeside.admin, reason)}


@each_table
async def test_an_update_of_many_rows_leaves_a_record_for_each_that_changed(
    table: type[ProtectedTable], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    async with lakeside.as_admin() as here:
        async with signed(owner, database, here):
            rows = [await w.seed() for _ in range(12)]
            # What is so already does not change.
            await w.owner.execute(f"update {w.name} set {w.case.column} = $1 where id = $2", w.case.after, rows[0].id)
        ids = [row.id for row in rows]
        if table is Tenant or "update" in w.case.closed:  # not the application's own, or closed to it
            async with signed(owner, database, here):
                await owner.execute(f"update {w.name} set {w.case.column} = $1 where id = any ($2)", w.case.after, ids)
        else:
            await table.update(value(w)).where(table.id.is_in(ids))
    updated = [record for record in await changes(owner, *ids) if record.action == "update"]
    assert sorted(record.row for record in updated) == sorted(ids)
    column = w.case.column
    assert {(*r.old.items(), *r.new.items()) for r in updated} == {((column, w.case.before), (column, w.case.after))}


@each_table
async def test_one_merge_that_inserts_updates_and_deletes_leaves_a_record_for_each(
    table: type[ProtectedTable], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    async with lakeside.as_admin() as here, signed(owner, database, here):
        kept, gone, same = [await w.seed() for _ in range(3)]
        new = await w.twin(kept)
        source = [await stored(owner, table, row.id) for row in (kept, gone, same)] + [new]
        source[0][w.case.column] = w.case.after
        await owner.execute(
            f"merge into {w.name} as t using jsonb_populate_recordset(null::{w.name}, $1) as s on t.id = s.id"
            f" when matched and s.id = $2 then delete"
            f" when matched then update set {w.case.column} = s.{w.case.column}"
            f" when not matched then insert ({w.columns()}) values ({w.columns('s.')})",
            json.dumps(source),
            gone.id,
        )
    assert [r.action for r in await changes(owner, kept.id)] == ["insert", "update"]
    assert [r.action for r in await changes(owner, gone.id)] == ["insert", "delete"]
    assert [r.action for r in await changes(owner, same.id)] == ["insert"], "nothing changed"
    assert [r.action for r in await changes(owner, UUID(new["id"]))] == ["insert"]


@pytest.mark.parametrize("table", [User, Facility, Client], ids=lambda table: table.__name__)
async def test_an_upsert_of_old_and_new_rows_records_each_as_what_happened_to_it(
    table: type[TenantTable], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    case = CASES[table]
    old: list[Any] = [case.new(lakeside) for _ in range(3)]
    new: list[Any] = [case.new(lakeside) for _ in range(3)]
    async with lakeside.as_admin():
        await table.insert(*old)
        for row in (*old, *new):
            setattr(row, case.column, case.after)
        await table.insert(*old[:2], *new[:2]).on_conflict(table.id, "DO UPDATE", [getattr(table, case.column)])
        await table.insert(old[2], new[2]).on_conflict(table.id, "DO NOTHING")
    for row in old[:2]:
        inserted, updated = await changes(owner, row.id)
        assert (inserted.action, updated.what) == (
            "insert",
            ("update", {case.column: case.before}, {case.column: case.after}),
        )
    for row in new:
        [inserted] = await changes(owner, row.id)
        assert (inserted.action, inserted.new[case.column]) == ("insert", case.after)
    assert [r.action for r in await changes(owner, old[2].id)] == ["insert"], "what did nothing leaves nothing"


async def test_an_update_of_a_sealed_column_records_the_envelopes_that_stood_there(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        rows = [new_client(lakeside) for _ in range(3)]
        await Client.insert(*rows)
        before = {row.id: await stored(owner, Client, row.id) for row in rows}
        await Client.update({Client.last_name: "C", Client.notes: "N"}).where(Client.id.is_in([r.id for r in rows]))
    for row in rows:
        _, updated = await changes(owner, row.id)
        now = await stored(owner, Client, row.id)
        assert updated.old == {name: before[row.id][name] for name in ("last_name", "notes")}
        assert updated.new == {name: now[name] for name in ("last_name", "notes")}
        # The prefix's three letters are more than the value has, before and after.
        assert set(updated.changed) == {"last_name", "notes", "last_name_folded"}


async def test_a_new_tenant_its_admin_and_its_key_are_recorded_as_the_admins_work(
    database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    made = await provision_tenant(slug="newcomer", name="Newcomer", admin_email="ada@newcomer.example")
    found = await owner.fetch(
        "select * from user_action_audit_log where tenant_id = $1 order by occurred_at, id", made.tenant_id
    )
    assert [(r["action_type"], r["table_name"], r["user_id"], r["reason"]) for r in found] == [
        ("insert", table, made.admin_id, "provision") for table in ("tenant", "app_user", "tenant_key")
    ]
    assert json.loads(found[0]["new_values"])["slug"] == "newcomer"
    assert "wrapped" not in json.loads(found[2]["new_values"]), "a copy in the log would outlive its shredding"


@each_table
async def test_the_owner_writes_nothing_without_a_scope(
    table: type[ProtectedTable], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    async with lakeside.as_admin() as here, signed(owner, database, here):
        row = await w.seed()
    for write, given in (
        (insert, row),
        (copy, row),
        (owner_update, row),
        (owner_upsert, row),
        (owner_merge, row),
        (owner_delete, [row]),
        (owner_delete_merge, [row]),
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await write(w, given)
        assert refused.value.sqlstate == "CH001", write.__name__
    with pytest.raises(asyncpg.PostgresError) as refused:
        await owner.execute(f"truncate {w.name} cascade")
    assert refused.value.sqlstate == "CH011"
    assert [r.action for r in await changes(owner, row.id)] == ["insert"]


@each_table
async def test_the_application_cannot_copy_into_a_table(
    table: type[ProtectedTable],
    lakeside: Clinic,
    owner: asyncpg.Connection,
    runtime: asyncpg.Connection,
    database: ChartholdEngine,
) -> None:
    # COPY FROM looks at no policy, so PostgreSQL refuses it where there are some.
    w = Writer(table, CASES[table], lakeside, owner)
    async with lakeside.as_admin() as here:
        async with signed(owner, database, here):
            row = await w.seed()
            twin = await w.twin(row)
        lines = io.BytesIO()
        await owner.copy_from_query(
            f"select {POPULATED.format(w.name, '$1')}", json.dumps(twin), output=lines, format="text"
        )
        lines.seek(0)
        with pytest.raises((asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError)):
            async with signed(runtime, database, here):
                await runtime.copy_to_table(w.name, source=lines)
    assert await changes(owner, UUID(twin["id"])) == []


@each_table
async def test_what_is_rolled_back_leaves_no_record(
    table: type[ProtectedTable], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    w = Writer(table, CASES[table], lakeside, owner)
    async with lakeside.as_admin() as here:
        async with signed(owner, database, here):
            row = await w.seed()
        earlier = len(await changes(owner, row.id))
        with pytest.raises(ZeroDivisionError):
            async with signed(owner, database, here):
                made = await insert(w, row)
                await owner_update(w, row)
                await owner_delete(w, [row])
                raise ZeroDivisionError
        if table is Facility:
            with pytest.raises(ZeroDivisionError):
                async with transaction():
                    await update(w, row)
                    raise ZeroDivisionError
    assert len(await changes(owner, row.id)) == earlier
    assert await changes(owner, *made) == []


# -- by construction --------------------------------------------------------------------------------------------------


def protected() -> set[type[ProtectedTable]]:
    """The tables of tenants in every registered app."""
    return {
        table
        for app in APP_REGISTRY.app_configs.values()
        for table in app.table_classes
        if issubclass(table, ProtectedTable)
    }


def test_every_table_of_tenants_is_written_to_by_these_tests() -> None:
    missing = protected() - CASES.keys() - UNAUDITED.keys()
    assert missing == set(), "say in CASES how its rows are made and changed"
    assert set(CASES).isdisjoint(UNAUDITED)
    assert {table for table in protected() if issubclass(table, TenantTable) and not table.audited} == {AuditSeal}


async def test_the_database_captures_every_table_that_belongs_to_a_tenant(owner: asyncpg.Connection) -> None:
    # Asked of the catalog, so that a table which no class declares is found too. A month of the log is the log.
    rows = await owner.fetch(
        """
        select c.relname as name, array(
            select t.tgname || ' ' || t.tgenabled::text from pg_trigger as t
            where t.tgrelid = c.oid and not t.tgisinternal and t.tgname like 'audit%' order by 1
        ) as triggers
        from pg_class as c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
            and (c.relname = 'tenant' or exists (
                select from pg_attribute as a where a.attrelid = c.oid and a.attname = 'tenant_id'
            ))
        """
    )
    captured = {row["name"]: row["triggers"] for row in rows}
    assert captured.keys() == {table._meta.tablename for table in CASES.keys() | UNAUDITED.keys()}
    for table in UNAUDITED:
        assert captured.pop(table._meta.tablename) == []
    every = [f"audit_{event} O" for event in ("delete", "insert", "truncate", "update")]
    assert captured == dict.fromkeys(captured, every)


class Dose(TenantTable, tablename="capture_dose"):
    every = Interval(default=None)
    amount = Numeric(default=None)
    rate = DoublePrecision(default=None)
    steps = Array(base_column=Numeric(default=None), default=None)
    unit = Text(default="mg")


@pytest.mark.parametrize(
    ("column", "first", "then"),
    [
        ("every", "'30 days'", "'1 mon'"),
        ("every", "'30 days'", "'720 hours'"),
        ("amount", "1.0", "1.000"),
        ("rate", "'0'", "'-0'"),
        ("steps", "array[1, 2]", "array[1.0, 2]"),
        ("unit", "'ml'", "'mL'"),
    ],
)
async def test_a_change_is_recorded_though_postgresql_calls_both_values_equal(
    column: str, first: str, then: str, lakeside: Clinic, database: ChartholdEngine, owner: asyncpg.Connection
) -> None:
    """A month is not thirty days: a history that leaves the change out tells another interval than the row has."""
    if not await owner.fetchval("select to_regclass('capture_dose') is not null"):
        await make_tables(database, Dose)
        with contextlib.suppress(asyncpg.FeatureNotSupportedError):
            await owner.execute(
                "create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
                "alter table capture_dose alter column unit type text collate folded"
            )
    if column == "unit" and not await owner.fetchval(
        "select exists (select from pg_collation where collname = 'folded')"
    ):
        pytest.skip("the server has no ICU, and so no collation by which texts of other bytes are equal")
    async with lakeside.as_admin():
        row = Dose(every=timedelta(days=30), amount=Decimal("1.0"), rate=0.0, steps=[Decimal(1), Decimal(2)])
        await row.save()
        for value in (first, then):
            await Dose.raw(f"update capture_dose set {column} = {value} where id = {{}}", row.id)
        found = await owner.fetch(
            "select new_values from user_action_audit_log where record_id = $1 and action_type = 'update'", row.id
        )
    assert column in found[-1]["new_values"]
    stored = await owner.fetchval(f"select to_jsonb({column}) from capture_dose where id = $1", row.id)
    assert json.loads(found[-1]["new_values"]) == {column: json.loads(stored)}


def test_texts_are_compared_by_their_bytes() -> None:
    """On a server without collations that could tell the difference too."""
    [capture] = [o for o in Dose.implied_objects() if isinstance(o, Function)]
    assert 'old."unit" collate "C" is distinct from new."unit" collate "C"' in capture.source
