"""What the table does, printed as JSON."""

import asyncio
import datetime as dt
import json

import asyncpg
from appointments.tables import Appointment

from core import provision_tenant, scope
from core.doctor import examine
from core.tables import Client, Facility


async def main() -> None:
    told: dict = {"drift": [difference.as_dict() for difference in (await examine(only=["drift"])).drift]}
    lakeside = await provision_tenant(slug="lakeside", name="Lakeside", admin_email="ada@lakeside.example")
    hillside = await provision_tenant(slug="hillside", name="Hillside", admin_email="bob@hillside.example")
    async with scope(tenant=lakeside.tenant_id, actor=lakeside.admin_id, reason="treatment"):
        site = Facility(name="Main street")
        await site.save()
        client = Client(facility_id=site.id, first_name="Ana", last_name="Nguyen", date_of_birth=dt.date(1980, 2, 29))
        await client.save()
        visit = Appointment(client_id=client.id, starts_at=dt.datetime(2026, 5, 4, tzinfo=dt.UTC), note="knee")
        await visit.save()
        visit.status = "kept"
        await visit.save([Appointment.status])
        told["notes"] = [row["note"] for row in await Appointment.select(Appointment.note)]
        told["actions"] = [record.action for record in await visit.history()]
    async with scope(tenant=hillside.tenant_id, actor=hillside.admin_id, reason="treatment"):
        told["of_another_tenant"] = await Appointment.count()
        stolen = Appointment(client_id=client.id, starts_at=dt.datetime(2026, 5, 4, tzinfo=dt.UTC))
        try:
            await stolen.save()
        except asyncpg.ForeignKeyViolationError as error:
            told["stolen"] = error.constraint_name
    print(json.dumps(told))


asyncio.run(main())
