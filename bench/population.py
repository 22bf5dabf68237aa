"""Tenants, clients and audit records by the million, in minutes: rows made through Charthold, and filler around them.

Whatever is asked for is real. A filler row is written by SQL, with triggers and foreign keys off: its envelopes are
copies of a real row's, which open nowhere else and are never opened; its blind indexes are random, with as many distinct
values as they would have in life.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

import asyncpg

from core import provision_tenant, scope
from core.columns import BlindIndex, Encrypted
from core.scope import Scope
from core.tables import Client, Facility

__all__ = ["REAL", "Clinic", "client", "fill_clients", "fill_log", "make_tenants", "name_of", "settle"]

REAL = 80  # clients of a clinic that were made through Charthold

# How many distinct values a column has in a tenant, where not every client has another.
DISTINCT = {"last_name_folded": 5_000, "last_name_prefix": 1_000, "ssn_last_four": 10_000, "phone_last_four": 10_000}
RECORDS = 1_000_000  # audit records a statement


@dataclass
class Clinic:
    """A tenant whose clients are asked for. ``clients`` in the order in which they were made."""

    tenant: UUID
    admin: UUID
    facility: UUID
    clients: list[UUID] = field(default_factory=list)

    def scope(self) -> Scope:
        return scope(tenant=self.tenant, actor=self.admin, reason="bench")


def name_of(number: int) -> str:
    """The last name of a clinic's client, which no other client of it has."""
    return f"Nguyen{number}"


def client(clinic: Clinic, number: int) -> Client:
    """A client with eight PHI fields."""
    return Client(
        facility_id=clinic.facility,
        first_name="Ana",
        last_name=name_of(number),
        date_of_birth=date(1980, 1, 1 + number % 28),
        ssn=f"{number:09}",
        mrn=f"M{number}",
        email=f"ana{number}@mail.example",
        phone=f"+1 617 55{number % 100_000:05}",
        address={"street": "784 Stamm Lock", "city": "Somerville"},
    )


async def make_tenants(first: int, last: int, *, real: int = REAL) -> list[Clinic]:
    """Tenants ``first`` to ``last``, each with a facility and ``real`` clients, all through Charthold."""
    made = []
    for number in range(first, last + 1):
        slug = f"clinic-{number}"
        new = await provision_tenant(slug=slug, name=slug.title(), admin_email=f"ada@{slug}.example")
        async with scope(tenant=new.tenant_id, actor=new.admin_id, reason="bench"):
            site = Facility(name="Main street")
            await site.save()
            clinic = Clinic(new.tenant_id, new.admin_id, site.id)
            clients = [client(clinic, n) for n in range(real)]
            if clients:
                await Client.insert(*clients)
        clinic.clients = [row.id for row in clients]
        made.append(clinic)
    return made


async def fill_clients(owner: asyncpg.Connection, each: int) -> None:
    """Fill every tenant up to ``each`` clients. The fillers are older than whatever is real."""
    random = "substr(sha256((c.tenant_id::text || '{name}' || {number})::bytea), 1, 8)"
    values = {
        "id": "charthold.uuid7()",
        "tenant_id": "c.tenant_id",
        "facility_id": "c.facility_id",
        "created_at": "timestamptz '2020-01-01' - n * interval '1 minute'",
        "updated_at": "timestamptz '2020-01-01'",
        "status": "case when n % 10 = 0 then 'discharged' else 'active' end",
    }
    for column in Client._meta.columns:
        name = column._meta.db_column_name
        if isinstance(column, Encrypted):
            values[name] = f"r.{name}"
        elif isinstance(column, BlindIndex):
            number = f"n % {DISTINCT[name]}" if name in DISTINCT else "n"
            values[name] = random.format(name=name, number=number)
    values["discharged_on"] = "case when n % 10 = 0 then date '2020-01-01' end"
    await _without_triggers(owner)
    await owner.execute(
        f"insert into client ({', '.join(values)}) select {', '.join(values.values())}"
        " from (select f.tenant_id, f.id as facility_id,"
        " (select count(*) from client as k where k.tenant_id = f.tenant_id) as there from facility as f) as c"
        " cross join (select * from client limit 1) as r"
        f" cross join lateral generate_series(c.there + 1, {each}) as n"
        " order by c.tenant_id",
        timeout=3_600,
    )


async def fill_log(owner: asyncpg.Connection, first: int, last: int) -> None:
    """Audit records ``first`` to ``last``: of ten, eight are reads and two updates of clients, by the tenant's admin.

    A thousand at a time are of one tenant, then comes the next, so that a tenant's records lie all over the log.
    """
    await _without_triggers(owner)
    tenants = await owner.fetchval("select count(*) from app_user")
    for start in range(first, last + 1, RECORDS):
        await owner.execute(
            "insert into user_action_audit_log (id, tenant_id, occurred_at, user_id, action_type, table_name,"
            " record_id, old_values, new_values, changed_columns, reason, transaction_id)"
            # All in this month, so that they are in one partition, and before whatever is asked for.
            " select gen_random_uuid(), tenant_id, date_trunc('month', now()) + g * interval '1 microsecond',"
            " user_id, case when read then 'read' else 'update' end, 'client',"
            # A hundred clients of a tenant, who are as good as any: nobody asks for them.
            " md5(n || '-' || hashint8(g) % 100)::uuid,"
            ' case when not read then \'{"status": "on_hold"}\'::jsonb end,'
            ' case when not read then \'{"status": "active"}\'::jsonb end,'
            " case when read then '{address,date_of_birth,first_name,last_name,mrn}'::text[] else '{status}' end,"
            " 'bench', 1"
            f" from (select g, g / 1000 % {tenants} as n, g % 10 > 1 as read"
            f" from generate_series({start}, {min(start + RECORDS - 1, last)}) as g) as made"
            " join (select row_number() over (order by tenant_id) - 1 as n, tenant_id, id as user_id from app_user) as u"
            " using (n)",
            timeout=3_600,
        )


async def settle(owner: asyncpg.Connection) -> None:
    """What a database that grew slowly has had long ago: vacuum, statistics, and nothing left to be written."""
    await owner.execute("vacuum (analyze) client", timeout=3_600)
    await owner.execute("vacuum (analyze) user_action_audit_log", timeout=3_600)
    await owner.execute("analyze; checkpoint", timeout=3_600)


async def _without_triggers(owner: asyncpg.Connection) -> None:
    await owner.execute("set session_replication_role = replica; set synchronous_commit = off; set work_mem = '64MB'")
