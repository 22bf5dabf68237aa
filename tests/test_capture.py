"""Every table of tenants, every way of writing: one record a row, with the right old and new values."""

from __future__ import annotations

import json
from datetime import date
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from core.engine import ChartholdEngine
from core.ids import uuid7
from core.tables import Client, Facility, TenantTable, User
from tests.conftest import Clinic


def new_row(table: type[TenantTable], clinic: Clinic) -> Any:
    if table is User:
        return User(email=f"{uuid4()}@x.example", full_name="Before")
    if table is Facility:
        return Facility(name=f"Before {uuid4()}", phone="Before")
    born = date(1980, 1, 1)
    return Client(facility_id=clinic.facility, first_name="A", last_name="B", date_of_birth=born, status="active")


# table -> a plain column, and two values of it
CHANGES: dict[type[TenantTable], tuple[str, str, str]] = {
    User: ("full_name", "Before", "After"),
    Facility: ("phone", "Before", "After"),
    Client: ("status", "active", "on_hold"),
}


async def records(owner: asyncpg.Connection, row: Any) -> list[tuple[str, Any, Any]]:
    found = await owner.fetch(
        "select action_type, old_values, new_values from user_action_audit_log where record_id = $1"
        " and action_type <> 'read' order by occurred_at, id",
        row,
    )
    return [
        (r["action_type"], json.loads(r["old_values"] or "null"), json.loads(r["new_values"] or "null")) for r in found
    ]


async def by_save(table, row, column, value, owner):
    setattr(row, column, value)
    await row.save()


async def by_update(table, row, column, value, owner):
    await table.update({getattr(table, column): value}).where(table.id == row.id)


async def by_bulk_update(table, row, column, value, owner):
    await table.update({getattr(table, column): value}).where(table.id.is_in([row.id, uuid7()]))


async def by_upsert(table, row, column, value, owner):
    await table.insert(row).on_conflict(table.id, "DO UPDATE", [(getattr(table, column), value)])


async def by_raw(table, row, column, value, owner):
    await table.raw(f"update {table._meta.tablename} set {column} = {{}} where id = {{}}", value, row.id)


async def by_merge(table, row, column, value, owner):
    await table.raw(
        f"merge into {table._meta.tablename} as t using (select {{}}::uuid as id) as s on t.id = s.id"
        f" when matched then update set {column} = {{}}",
        row.id,
        value,
    )


async def by_owner(table, row, column, value, owner):
    await owner.execute(f"update {table._meta.tablename} set {column} = $1 where id = $2", value, row.id)


@pytest.mark.parametrize("write", [by_save, by_update, by_bulk_update, by_upsert, by_raw, by_merge, by_owner])
@pytest.mark.parametrize("table", CHANGES, ids=lambda table: table.__name__)
async def test_an_update_leaves_one_record_with_both_values(
    table: type[TenantTable], write: Any, lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    column, before, after = CHANGES[table]
    row = new_row(table, lakeside)
    async with lakeside.as_admin() as here:
        await row.save()
        async with owner.transaction():
            token = here.token(database.token_key, owner.get_server_pid())
            await owner.execute("select set_config('charthold.scope', $1, true)", token)
            await write(table, row, column, after, owner)
    inserted, updated = await records(owner, row.id)
    assert (inserted[0], inserted[1], inserted[2][column]) == ("insert", None, before)
    assert updated == ("update", {column: before}, {column: after})


@pytest.mark.parametrize("table", CHANGES, ids=lambda table: table.__name__)
async def test_bulk_inserts_and_deletes_leave_one_record_a_row(
    table: type[TenantTable], lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    column, before, _ = CHANGES[table]
    rows = [new_row(table, lakeside) for _ in range(30)]
    async with lakeside.as_admin():
        await table.insert(*rows)
        await table.delete().where(table.id.is_in([row.id for row in rows]))
    for row in rows:
        inserted, deleted = await records(owner, row.id)
        assert (inserted[0], inserted[2][column]) == ("insert", before)
        assert (deleted[0], deleted[1][column], deleted[2]) == ("delete", before, None)


async def test_copy_as_the_owner_is_recorded_and_refused_without_a_scope(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    ids = [uuid7() for _ in range(20)]
    rows = [(row, lakeside.tenant, f"Copied {row}", "clinic", "{}", "UTC", "{}", "active") for row in ids]
    columns = ("id", "tenant_id", "name", "kind", "address", "time_zone", "settings", "status")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await owner.copy_records_to_table("facility", records=rows, columns=columns)
    assert refused.value.sqlstate == "CH001"
    async with lakeside.as_admin() as here, owner.transaction():
        token = here.token(database.token_key, owner.get_server_pid())
        await owner.execute("select set_config('charthold.scope', $1, true)", token)
        await owner.copy_records_to_table("facility", records=rows, columns=columns)
    for row in ids:
        [(action, old, new)] = await records(owner, row)
        assert (action, old, new["name"]) == ("insert", None, f"Copied {row}")
