"""Whoever runs any SQL in a scope does nothing beyond the role, and sees nothing of facilities beyond those that bind.

The statements are the attacker's own; afterwards the schema's owner, whom no policy binds here, looks at what changed.
"""

from __future__ import annotations

import contextlib
import time
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import scope
from core.compliance.disclosures import Disclosure
from core.engine import ChartholdEngine
from core.tables import Client, Facility, User
from tests.conftest import Clinic

SECRET = "1931-07-09"  # a day that stands in the other facility's row alone


class Attacker:
    """Somebody with a connection of the application and any SQL, in a scope of one user of Lakeside."""

    def __init__(self, database: ChartholdEngine, connection: asyncpg.Connection, clinic: Clinic, actor: UUID) -> None:
        self.connection = connection
        self.clinic = clinic
        self.seen: list[Any] = []
        self.own = database.token_key.sign(
            tenant=clinic.tenant, actor=actor, expires=int(time.time()) + 60,
            backend=connection.get_server_pid(), reason="attack",
        )  # fmt: skip
        # What the signature does not fit.
        self.as_admin = self.own[:128] + str(clinic.admin) + self.own[164:]
        connection.add_log_listener(lambda _, message: self.seen.append(message.as_dict()))

    async def sql(self, *statements: str) -> None:
        for statement in statements:
            await self.connection.execute("savepoint attempt")
            await self.connection.fetchval("select set_config('charthold.scope', $1, true)", self.own)
            try:
                self.seen += [tuple(row) for row in await self.connection.fetch(statement)]
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                self.seen.append((statement[:60], str(error), error.__dict__))
                with contextlib.suppress(asyncpg.PostgresError):
                    await self.connection.execute("rollback to attempt")


async def run(
    database: ChartholdEngine, clinic: Clinic, actor: UUID, names: dict[str, str], statements: tuple[str, ...]
) -> list[Any]:
    connection = await database.connect(owner=False)
    try:
        await connection.execute("set statement_timeout = '5s'; begin")
        attacker = Attacker(database, connection, clinic, actor)
        names = names | {"OWN_TOKEN": attacker.own, "ADMIN_TOKEN": attacker.as_admin}
        for statement in statements:
            for name, value in names.items():
                statement = statement.replace(name, value)
            await attacker.sql(statement)
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute("commit")
        return attacker.seen
    finally:
        connection.terminate()


async def fingerprint(owner: asyncpg.Connection, table: str, where: str = "true") -> Any:
    return await owner.fetchval(f"select sum(hashtextextended(t::text, 0)) from {table} as t where {where}")


# -- roles -------------------------------------------------------------------------------------------------------------

CLIENT_COLUMNS = "(id, tenant_id, facility_id, status, first_name, last_name, date_of_birth)"
# A row copied from one that may be read: envelopes are the attacker's to copy.
COPIED = (
    "select charthold.uuid7(), tenant_id, facility_id, status, first_name, last_name, date_of_birth from client limit 1"
)
SITE_COLUMNS = "(id, tenant_id, name, kind, address, time_zone, settings, status)"
SITE = "(charthold.uuid7(), 'A_TENANT', 'Planted', 'clinic', '{}', 'UTC', '{}', 'active')"
USER_COLUMNS = "(id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins)"
TOLD_COLUMNS = "(id, tenant_id, client_id, disclosed_on, recipient, description, purpose, basis)"
TOLD = "select charthold.uuid7(), tenant_id, id, '2020-02-02'::date, 'planted', first_name, last_name, 'other' from client limit 1"
PERSON = "(charthold.uuid7(), 'A_TENANT', 'planted@mail.example', 'Planted', 'admin', 'active', false, 0)"

INSERTS = {
    "client": (
        f"insert into client {CLIENT_COLUMNS} {COPIED}",
        f"insert into client {CLIENT_COLUMNS} {COPIED} on conflict do nothing",
        f"insert into client {CLIENT_COLUMNS} select id, tenant_id, facility_id, status, first_name, last_name, date_of_birth from client on conflict (tenant_id, id) do update set status = 'deceased'",
        f"with i as (insert into client {CLIENT_COLUMNS} {COPIED} returning *) select count(*) from i",
        f"merge into client as c using ({COPIED}) as s on false when not matched then insert {CLIENT_COLUMNS} values (charthold.uuid7(), s.tenant_id, s.facility_id, s.status, s.first_name, s.last_name, s.date_of_birth)",
        f"do $$ begin insert into client {CLIENT_COLUMNS} {COPIED}; exception when others then raise notice '%', sqlerrm; end $$",
        f"do $$ begin perform set_config('charthold.scope', 'ADMIN_TOKEN', true); insert into client {CLIENT_COLUMNS} {COPIED}; end $$",
        f"with s as materialized (select set_config('charthold.scope', 'ADMIN_TOKEN', true)) insert into client {CLIENT_COLUMNS} select charthold.uuid7(), tenant_id, facility_id, status, first_name, last_name, date_of_birth from client, s",
    ),
    "facility": (
        f"insert into facility {SITE_COLUMNS} values {SITE}",
        f"insert into facility {SITE_COLUMNS} values {SITE} on conflict do nothing",
        f"insert into facility {SITE_COLUMNS} select id, tenant_id, 'taken', kind, address, time_zone, settings, status from facility on conflict (tenant_id, id) do update set name = 'attacked'",
        f"merge into facility as f using (select 1) as s on false when not matched then insert {SITE_COLUMNS} values {SITE}",
    ),
    "app_user": (
        f"insert into app_user {USER_COLUMNS} values {PERSON}",
        f"merge into app_user as u using (select 1) as s on false when not matched then insert {USER_COLUMNS} values {PERSON}",
        f"insert into app_user {USER_COLUMNS} select id, tenant_id, email, full_name, 'admin', status, false, 0 from app_user on conflict (tenant_id, email) do update set role = 'admin'",
    ),
    "disclosure": (
        f"insert into disclosure {TOLD_COLUMNS} {TOLD}",
        f"merge into disclosure as d using ({TOLD}) as s on false when not matched then insert {TOLD_COLUMNS} values (charthold.uuid7(), s.tenant_id, s.id, '2020-02-02', 'planted', s.first_name, s.last_name, 'other')",
    ),
    "tenant_key": ("insert into tenant_key (id, tenant_id, version, wrapped, kek, status) values (charthold.uuid7(), 'A_TENANT', 9, 'x', '', 'next')",),
    "audit_seal": ("insert into audit_seal (id, tenant_id, tree_size) values (charthold.uuid7(), 'A_TENANT', 9)",),
    "user_action_audit_log": ("insert into user_action_audit_log (tenant_id, user_id, action_type, reason) values ('A_TENANT', 'A_ADMIN', 'read', 'forged')",),
}  # fmt: skip

UPDATES = {
    "client": (
        "update client set status = 'on_hold'",
        "update client as c set status = 'on_hold' from facility as f where f.id = c.facility_id",
        "update only client set status = 'on_hold' where id = 'A_CLIENT' returning *",
        "merge into client as c using facility as f on c.id is not null when matched then update set status = 'on_hold'",
        "with u as (update client set status = 'on_hold' returning id) select count(*) from u",
        "update client set status = set_config('charthold.scope', 'ADMIN_TOKEN', true)",
        "update client set status = 'on_hold' where set_config('charthold.scope', 'ADMIN_TOKEN', true) is not null",
        "do $$ declare c cursor for select * from client for update; r record; begin open c; fetch c into r; update client set status = 'on_hold' where current of c; end $$",
    ),
    "facility": (
        "update facility set phone = 'attacked'",
        "merge into facility as f using (select 1) as s on f.id is not null when matched then update set phone = 'attacked'",
        "do $$ begin begin perform set_config('charthold.scope', 'ADMIN_TOKEN', true); update facility set phone = 'attacked'; exception when others then perform set_config('charthold.scope', 'OWN_TOKEN', true); update facility set phone = 'attacked'; end; end $$",
        "update facility set phone = 'attacked' from (select set_config('charthold.scope', 'ADMIN_TOKEN', true) offset 0) as s",
    ),
    "app_user": ("update app_user set role = 'admin'", "update app_user set facility_scope = null", "merge into app_user as u using (select 1) as s on u.id is not null when matched then update set role = 'admin', facility_scope = null"),
    "tenant": ("update tenant set retention_years = 90", "merge into tenant as t using (select 1) as s on t.id is not null when matched then update set retention_years = 90"),
    "disclosure": ("update disclosure set withheld_until = '2999-12-31', basis = 'law_enforcement'", "merge into disclosure as d using (select 1) as s on d.id is not null when matched then update set recipient = 'nobody'"),
    "tenant_key": ("update tenant_key set status = 'retired'", "merge into tenant_key as k using (select 1) as s on k.id is not null when matched then update set status = 'retired'"),
    "audit_seal": ("update audit_seal set horizon = 0",),
    "user_action_audit_log": ("update user_action_audit_log set reason = 'x'", "merge into user_action_audit_log as l using (select 1) as s on l.id is not null when matched then update set reason = 'x'"),
}  # fmt: skip

DELETES = {
    table: (
        f"delete from {table}",
        f"delete from {table} using generate_series(1, 2) returning *",
        f"with d as (delete from {table} returning *) select count(*) from d",
        f"merge into {table} as t using (select 1) as s on t.id is not null when matched then delete",
        f"merge into {table} as t using (select 1) as s on t.id is not null when matched and set_config('charthold.scope', 'ADMIN_TOKEN', true) is not null then delete",
        f"merge into {table} as t using (select 1) as s on false when not matched by source then delete",
        f"do $$ declare c cursor for select * from {table} for update; r record; begin open c; fetch c into r; delete from {table} where current of c; end $$",
        f"delete from {table} where (select set_config('charthold.scope', 'ADMIN_TOKEN', true)) is not null",
        f"truncate {table}",
    )
    for table in (
        "client",
        "disclosure",
        "facility",
        "app_user",
        "tenant",
        "tenant_key",
        "audit_seal",
        "user_action_audit_log",
    )
}

# A target of MERGE of which no column is named is not filtered by the policies for reading: each row of the table is
# met, and the first of another tenant is an error. So here each names one.
COMMANDS = {"insert": INSERTS, "update": UPDATES, "delete": DELETES}

# Written out, not taken from core/access/permissions.py: what is forbidden is decided here a second time.
FORBIDDEN: dict[str, dict[str, tuple[str, ...]]] = {
    "auditor": {
        "insert": ("client", "disclosure", "facility", "app_user", "tenant_key", "user_action_audit_log"),
        "update": tuple(UPDATES), "delete": tuple(DELETES),
    },
    "billing": {
        "insert": tuple(INSERTS), "update": tuple(t for t in UPDATES if t != "client"), "delete": tuple(DELETES),
    },
    "clinician": {
        "insert": tuple(t for t in INSERTS if t not in ("client", "disclosure")), "update": tuple(t for t in UPDATES if t != "client"),
        "delete": tuple(DELETES),
    },
    "admin": {
        "insert": ("tenant_key", "user_action_audit_log"), "update": ("tenant_key", "audit_seal", "user_action_audit_log"),
        "delete": ("disclosure", "tenant", "tenant_key", "audit_seal", "user_action_audit_log"),
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
async def told(lakeside: Clinic) -> None:
    """Something to change and to delete."""
    async with lakeside.as_admin():
        await Disclosure(
            client_id=lakeside.client, disclosed_on=date(2020, 2, 2), recipient="A", description="B", purpose="C",
            basis="other",
        ).save()  # fmt: skip


@pytest.mark.parametrize("bound", [False, True], ids=["everywhere", "bound"])
@pytest.mark.parametrize("role", FORBIDDEN)
async def test_nothing_is_written_beyond_the_role(
    role: str, bound: bool, database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    actor = await somebody(lakeside, role, bound=bound)
    names = {"A_TENANT": str(lakeside.tenant), "A_CLIENT": str(lakeside.client), "A_ADMIN": str(lakeside.admin)}
    wrote = []
    for command, tables in FORBIDDEN[role].items():
        for table in tables:
            for statement in COMMANDS[command][table]:
                protected = {
                    t: await fingerprint(owner, t, "action_type in ('insert', 'update', 'delete')" if "log" in t else "true")
                    for t in (table, "user_action_audit_log")
                }  # fmt: skip
                await run(database, lakeside, actor, names, (statement,))
                for t, was in protected.items():
                    where = "action_type in ('insert', 'update', 'delete')" if "log" in t else "true"
                    if await fingerprint(owner, t, where) != was:
                        wrote.append((t, statement))
    assert wrote == []


async def test_the_statements_work_for_whoever_may(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    """A statement that failed for a reason of its own would prove nothing."""
    for clinic, statement in (
        *((lakeside, sql) for sql in (*INSERTS["disclosure"], *UPDATES["disclosure"])),
        (hillside, INSERTS["client"][0]),
        (hillside, INSERTS["client"][4]),
        (hillside, UPDATES["client"][3]),
        (hillside, UPDATES["facility"][1]),
        (hillside, DELETES["client"][3]),
    ):
        names = {"A_TENANT": str(clinic.tenant), "A_CLIENT": str(clinic.client), "A_ADMIN": str(clinic.admin)}
        before = await fingerprint(owner, "user_action_audit_log", "action_type <> 'read'")
        seen = await run(database, clinic, clinic.admin, names, (statement,))
        assert await fingerprint(owner, "user_action_audit_log", "action_type <> 'read'") != before, (statement, seen)


# -- facilities --------------------------------------------------------------------------------------------------------


async def somebody(clinic: Clinic, role: str, *, bound: bool) -> UUID:
    made = User(
        email=f"{uuid4()}@mail.example", full_name="Somebody", role=role, status="active",
        facility_scope=[clinic.facility] if bound else None,
    )  # fmt: skip
    async with clinic.as_admin():
        await made.save()
    return made.id


LOOK = "select id, facility_id, status, admitted_on from client"
BEYOND: dict[str, tuple[str, ...]] = {
    "the rows": (LOOK, f"{LOOK} where id = 'OTHER_CLIENT'", f"{LOOK} where facility_id = 'OTHER_SITE' or true", "table client"),
    "counts": ("select count(*) filter (where facility_id = 'OTHER_SITE') || ' of them' from client", "select facility_id, count(*) from client group by 1"),
    "joins": (f"select c.* from facility as f, lateral ({LOOK} where facility_id = f.id) as c", "select c.* from app_user as u join client as c on true"),
    "locks": (f"{LOOK} for update", f"{LOOK} for key share skip locked"),
    "an unsigned admin": ("select set_config('charthold.scope', 'ADMIN_TOKEN', true)", f"with s as materialized (select set_config('charthold.scope', 'ADMIN_TOKEN', true)) select c.* from s, ({LOOK}) as c"),
    "an unsigned admin from row to row": (
        f"with r as materialized (select g, set_config('charthold.scope', case when g % 2 = 1 then 'ADMIN_TOKEN' else 'OWN_TOKEN' end, true) as s from generate_series(1, 4) as g) select c.* from r, lateral ({LOOK} where r.s is not null offset 0) as c",
        f"select c.* from generate_series(1, 4) as g, lateral (select set_config('charthold.scope', case when g = 1 then 'OWN_TOKEN' else 'ADMIN_TOKEN' end, true) offset 0) as s (s), lateral ({LOOK} where s.s is not null offset 0) as c",
    ),
    "an unsigned admin between fetches": (
        f"do $$ declare c cursor for {LOOK}; r record; begin open c; perform set_config('charthold.scope', 'ADMIN_TOKEN', true); loop fetch c into r; exit when not found; raise notice '%', r; end loop; end $$",
        f"do $$ declare c cursor for {LOOK}; r record; begin open c; fetch c into r; perform set_config('charthold.scope', 'ADMIN_TOKEN', true); loop raise notice '%', r; fetch c into r; exit when not found; end loop; end $$",
        f"do $$ declare r record; begin for r in {LOOK} loop perform set_config('charthold.scope', 'ADMIN_TOKEN', true); raise notice '%', r; end loop; end $$",
    ),
    "an unsigned admin in an exception": (
        f"do $$ declare r record; begin begin perform set_config('charthold.scope', 'ADMIN_TOKEN', true); for r in {LOOK} loop raise notice '%', r; end loop; exception when others then for r in {LOOK} loop raise notice '%', r; end loop; end; end $$",
    ),
    "facilities of one's own": (
        "update app_user set facility_scope = null",
        "update app_user set facility_scope = array['OTHER_SITE']::uuid[]",
        LOOK,
    ),
    "updates": ("update client set status = 'deceased'", "update client set status = 'deceased' where id = 'OTHER_CLIENT'", "update client as c set status = 'deceased' from facility as f where f.id = 'OTHER_SITE' and c.facility_id = f.id"),
    "updates that return": ("update client set status = status where facility_id = 'OTHER_SITE' returning *", "update client set status = status returning old.*, new.*"),
    "moving a row out": ("update client set facility_id = 'OTHER_SITE'", "update client set facility_id = 'OTHER_SITE' where id = 'A_CLIENT'", "merge into client as c using (select 1) as s on c.id is not null when matched then update set facility_id = 'OTHER_SITE'"),
    "moving a row in": ("update client set facility_id = 'A_SITE' where id = 'OTHER_CLIENT'", "merge into client as c using (select 1) as s on c.id = 'OTHER_CLIENT' when matched then update set facility_id = 'A_SITE'"),
    "inserting there": (
        f"insert into client {CLIENT_COLUMNS} select charthold.uuid7(), tenant_id, 'OTHER_SITE', status, first_name, last_name, date_of_birth from client",
        f"merge into client as c using (select * from client) as s on false when not matched then insert {CLIENT_COLUMNS} values (charthold.uuid7(), s.tenant_id, 'OTHER_SITE', s.status, s.first_name, s.last_name, s.date_of_birth)",
    ),
    "taking over by conflict": (
        f"insert into client {CLIENT_COLUMNS} select 'OTHER_CLIENT', tenant_id, 'A_SITE', status, first_name, last_name, date_of_birth from client on conflict (tenant_id, id) do update set status = 'deceased'",
        f"insert into client {CLIENT_COLUMNS} select 'OTHER_CLIENT', tenant_id, 'A_SITE', status, first_name, last_name, date_of_birth from client on conflict (tenant_id, id) do update set facility_id = 'A_SITE' returning *",
        f"insert into client {CLIENT_COLUMNS} select 'OTHER_CLIENT', tenant_id, 'A_SITE', status, first_name, last_name, date_of_birth from client on conflict (tenant_id, id) do update set status = excluded.status where client.admitted_on = 'SECRET' returning old.*",
    ),
    "merging": (
        "merge into client as c using (select 1) as s on c.facility_id = 'OTHER_SITE' when matched then update set status = 'deceased'",
        "merge into client as c using (select 1) as s on c.id = 'OTHER_CLIENT' when matched then delete",
        "merge into client as c using (select 1) as s on false when not matched by source then update set status = 'deceased'",
        "merge into client as c using (select 1) as s on c.id is not null when matched then update set status = c.status returning merge_action(), old.*, new.*",
    ),
    "prepared and asked again": ("prepare look as select * from client", "execute look", "deallocate look"),
    "copied out": ("copy (select * from client) to stdout",),
    "errors": ("select 1 / (case when admitted_on = 'SECRET' then 0 else 1 end) from client", "select admitted_on::text::int from client where facility_id = 'OTHER_SITE'"),
    "in parallel": ("set local parallel_setup_cost = 0", "set local parallel_tuple_cost = 0", "set local min_parallel_table_scan_size = 0", LOOK),
    "as text": ("select query_to_xml('select * from client', true, false, '')", "select jsonb_agg(c) from client as c"),
}  # fmt: skip


@pytest.mark.parametrize("role", ["clinician", "billing"])
@pytest.mark.parametrize("name", BEYOND)
async def test_nothing_of_another_facility_is_gained_by(
    name: str, role: str, database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    async with lakeside.as_admin():
        elsewhere = Facility(name=f"Elsewhere {uuid4()}")
        await elsewhere.save()

        other = Client(
            facility_id=elsewhere.id, first_name="Bob", last_name="Moss", date_of_birth=date(1990, 1, 1),
            admitted_on=date.fromisoformat(SECRET),
        )  # fmt: skip
        await other.save()
    actor = await somebody(lakeside, role, bound=True)
    names = {
        "A_TENANT": str(lakeside.tenant), "A_CLIENT": str(lakeside.client), "A_SITE": str(lakeside.facility),
        "OTHER_CLIENT": str(other.id), "OTHER_SITE": str(elsewhere.id), "SECRET": SECRET,
    }  # fmt: skip
    there = f"facility_id <> '{lakeside.facility}'"
    before = await fingerprint(owner, "client", there)
    seen = await run(database, lakeside, actor, names, BEYOND[name])
    assert await fingerprint(owner, "client", there) == before
    shown = [row for row in seen if isinstance(row, tuple) and not isinstance(row[-1], dict)]
    assert "datetime.date(1931, 7, 9)" not in repr(seen)
    assert SECRET not in repr(shown)
    assert "1 of them" not in repr(shown)
    # And what is one's own was there to be seen.
    async with scope(tenant=lakeside.tenant, actor=actor, reason="test"):
        assert {row["facility_id"] for row in await Client.select(Client.facility_id)} == {lakeside.facility}
