"""What goes with a row that goes: each row that a cascade takes is recorded, with who began it and what it held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import pytest
from piccolo.columns import Text
from piccolo.columns.base import OnDelete

from core import scope, transaction
from core.columns import EncryptedText, TenantForeignKey
from core.engine import ChartholdEngine
from core.errors import ProtectedQueryError
from core.ids import uuid7
from core.tables import TenantTable
from piccolo_conf import APP_REGISTRY
from tests.conftest import Clinic
from tests.ledger import changes, create, recorded, signed, stored

CASCADE = OnDelete.cascade


class Ward(TenantTable, tablename="cascade_ward"):
    label = Text(default="")
    permissions: ClassVar[Any] = dict.fromkeys(("select", "insert", "update", "delete"), ("admin", "clinician"))


class Bed(TenantTable, tablename="cascade_bed"):
    """Goes with its ward. By hand only an admin may delete one."""

    ward_id = TenantForeignKey(Ward, on_delete=CASCADE)
    note = EncryptedText(null=True)


class Sheet(TenantTable, tablename="cascade_sheet"):
    """Goes with its bed; and with a ward directly, should both go."""

    bed_id = TenantForeignKey(Bed, on_delete=CASCADE)
    ward_id = TenantForeignKey(Ward, null=True, on_delete=CASCADE)


class Unit(TenantTable, tablename="cascade_unit"):
    """Goes with the unit that it is part of."""

    part_of = TenantForeignKey("self", null=True, on_delete=CASCADE)
    label = Text(default="")


class Lease(TenantTable, tablename="cascade_lease"):
    """Holds its ward."""

    ward_id = TenantForeignKey(Ward, on_delete=OnDelete.restrict)


TABLES = (Ward, Bed, Sheet, Unit, Lease)


@pytest.fixture(scope="module", autouse=True)
async def tables(database: ChartholdEngine) -> None:
    await create(database, *TABLES)


async def ward(owner: asyncpg.Connection, beds: int = 3, sheets: int = 2) -> tuple[Any, dict[UUID, Any]]:
    """A ward with beds and their sheets, and what each of the rows under it holds."""
    top = Ward(label="top")
    await top.save()
    below: list[Any] = [Bed(ward_id=top.id, note=f"bed {n}") for n in range(beds)]
    await Bed.insert(*below)
    below += [Sheet(bed_id=bed.id, ward_id=top.id if n else None) for bed in below for n in range(sheets)]
    await Sheet.insert(*(row for row in below if isinstance(row, Sheet)))
    return top, {row.id: (type(row), await held(owner, row)) for row in below}


async def held(owner: asyncpg.Connection, row: Any) -> dict[str, Any]:
    return recorded(type(row), await stored(owner, type(row), row.id))


async def delete(owner: asyncpg.Connection, *wards: Any) -> None:
    await Ward.delete().where(Ward.id.is_in([row.id for row in wards]))


async def remove(owner: asyncpg.Connection, *wards: Any) -> None:
    for row in wards:
        row_id = row.id
        await row.remove()
        row.id = row_id


async def delete_returning(owner: asyncpg.Connection, *wards: Any) -> None:
    await Ward.delete().where(Ward.id.is_in([row.id for row in wards])).returning(Ward.label)


async def raw(owner: asyncpg.Connection, *wards: Any) -> None:
    await Ward.raw("delete from cascade_ward where id = any ({}::uuid[])", [row.id for row in wards])


async def raw_in_a_with_clause(owner: asyncpg.Connection, *wards: Any) -> None:
    await Ward.raw(
        "with gone as (delete from cascade_ward where id = any ({}::uuid[]) returning id) select count(*) from gone",
        [row.id for row in wards],
    )


async def merge(owner: asyncpg.Connection, *wards: Any) -> None:
    await Ward.raw(
        "merge into cascade_ward as w using unnest({}::uuid[]) as s(id) on w.id = s.id when matched then delete",
        [row.id for row in wards],
    )


async def by_owner(owner: asyncpg.Connection, *wards: Any) -> None:
    await owner.execute("delete from cascade_ward where id = any ($1)", [row.id for row in wards])


async def in_a_transaction(owner: asyncpg.Connection, *wards: Any) -> None:
    async with transaction():
        for row in wards:
            await Ward.delete().where(Ward.id == row.id)


WAYS: list[Callable[..., Awaitable[None]]] = [
    delete, remove, delete_returning, raw, raw_in_a_with_clause, merge, by_owner, in_a_transaction,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_each_row_that_goes_with_another_leaves_one_record(
    way: Callable[..., Awaitable[None]], lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    reason = f"cascade by {way.__name__}"
    async with lakeside.as_admin(reason) as here:
        (one, under_one), (two, under_two) = await ward(owner), await ward(owner, beds=1)
        other, under_other = await ward(owner, beds=1)
        async with signed(owner, database, here):
            await way(owner, one, two)
    below = under_one | under_two
    found = [record for record in await changes(owner, one.id, two.id, *below) if record.action != "insert"]
    assert {record.row: (record.table, record.what) for record in found} == {
        row_id: (table._meta.tablename, ("delete", values, None)) for row_id, (table, values) in below.items()
    } | {row.id: ("cascade_ward", ("delete", {"label": "top"}, None)) for row in (one, two)}
    assert len(found) == len(below) + 2, "one record a row"
    assert {(record.user, record.reason, record.tenant) for record in found} == {
        (lakeside.admin, reason, lakeside.tenant)
    }
    assert len({record.transaction for record in found}) == (2 if way is remove else 1)
    assert all(record.action == "insert" for record in await changes(owner, other.id, *under_other))


async def test_a_cascade_is_recorded_in_the_name_of_who_began_it(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    # PostgreSQL follows a reference whatever the policies say: whoever may delete the ward takes its beds along.
    async with scope(
        tenant=lakeside.tenant, actor=lakeside.clinician, reason="rounds", request_id="req-7", source_ip="192.0.2.7"
    ):
        top, below = await ward(owner, beds=2, sheets=1)
        await Bed.delete().where(Bed.id.is_in(list(below)))
        assert await Bed.count().where(Bed.id.is_in(list(below))) == 2, "by hand a clinician may not"
        await Ward.delete().where(Ward.id == top.id)
    rows = await owner.fetch(
        "select * from user_action_audit_log where record_id = any ($1) and action_type = 'delete'", [top.id, *below]
    )
    assert {(r["user_id"], r["reason"], r["request_id"], str(r["source_ip"])) for r in rows} == {
        (lakeside.clinician, "rounds", "req-7", "192.0.2.7")
    }
    assert len(rows) == 5


async def test_a_tree_of_one_table_leaves_a_record_for_each_of_its_rows(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        levels: list[list[Any]] = [[Unit(label="0") for _ in range(2)]]
        for depth in range(1, 4):
            levels.append([Unit(label=str(depth), part_of=unit.id) for unit in levels[-1] for _ in range(2)])
        for level in levels:
            await Unit.insert(*level)
        units = [unit for level in levels for unit in level]
        values = {unit.id: await held(owner, unit) for unit in units}
        # A root, and beside it a row that would have gone with the root anyway.
        await Unit.delete().where(Unit.id.is_in([levels[0][0].id, levels[0][1].id, levels[2][0].id]))
    found = [record for record in await changes(owner, *values) if record.action != "insert"]
    assert {record.row: record.what for record in found} == {row: ("delete", old, None) for row, old in values.items()}
    assert len(found) == len(units) == 30


async def test_a_reference_that_holds_leaves_nothing_and_no_record(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        top, below = await ward(owner)
        await Lease(ward_id=top.id).save()
        with pytest.raises(asyncpg.PostgresError):
            await Ward.delete().where(Ward.id == top.id)
    assert [record.action for record in await changes(owner, top.id)] == ["insert"]
    assert {record.action for record in await changes(owner, *below)} == {"insert"}


async def test_a_cascade_that_is_rolled_back_leaves_no_record(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        top, below = await ward(owner)
        with pytest.raises(ZeroDivisionError):
            async with transaction():
                await Ward.delete().where(Ward.id == top.id)
                raise ZeroDivisionError
        assert await Bed.count().where(Bed.ward_id == top.id) == 3
    assert {record.action for record in await changes(owner, top.id, *below)} == {"insert"}


async def test_a_cascade_without_a_scope_is_refused(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        top, below = await ward(owner)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await by_owner(owner, top)
    assert refused.value.sqlstate == "CH001"
    assert {record.action for record in await changes(owner, top.id, *below)} == {"insert"}


async def test_what_a_cascade_took_can_still_be_told(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    async with lakeside.as_admin():
        top = Ward(label="top")
        await top.save()
        bed = Bed(ward_id=top.id, note="by the window")
        await bed.save()
        await top.remove()
        inserted, deleted = await bed.history()
    assert (inserted.action, inserted.new["note"]) == ("insert", "by the window")
    assert (deleted.action, deleted.old["note"], deleted.new) == ("delete", "by the window", {})


async def test_no_reference_moves_with_the_row_that_it_names(
    lakeside: Clinic, owner: asyncpg.Connection, database: ChartholdEngine
) -> None:
    """ON UPDATE has nothing to do: what a row is cannot be updated, and no constraint would pass it on."""
    async with lakeside.as_admin() as here:
        top, below = await ward(owner)
        with pytest.raises(ProtectedQueryError, match="cannot be updated"):
            await Ward.raw("update cascade_ward set id = {} where id = {}", uuid7(), top.id)
        with pytest.raises(asyncpg.PostgresError) as refused:
            async with signed(owner, database, here):
                await owner.execute("update cascade_ward set id = $1 where id = $2", uuid7(), top.id)
        assert refused.value.sqlstate == "CH010"
    assert {record.action for record in await changes(owner, top.id, *below)} == {"insert"}
    names = [
        table._meta.tablename
        for table in (*TABLES, *(t for app in APP_REGISTRY.app_configs.values() for t in app.table_classes))
    ]
    rules = await owner.fetch(
        "select conname, confupdtype::text as moves, confdeltype::text as goes from pg_constraint"
        " where contype = 'f' and conrelid = any (select to_regclass('public.' || n) from unnest($1::text[]) as n)",
        names,
    )
    assert len(rules) > len(TABLES)
    assert {row["moves"] for row in rules} == {"a"}, "NO ACTION"
    assert {row["goes"] for row in rules} == {"r", "c"}, "RESTRICT or CASCADE, never SET NULL"
