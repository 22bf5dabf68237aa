"""Breaking the glass, 164.312(a)(2)(ii): a clinician reads the chart of a client elsewhere, for a while, on record.

Who is bound to facilities does not see the clients of others. In an emergency they name one, and say why::

    async with scope(tenant=clinic, actor=doctor, reason="emergency room"):
        emergency = await break_glass(Client.mrn == "A-1723", reason="unconscious, nobody to ask")
    async with emergency.scope():
        chart = await Client.objects().get(Client.id == emergency.client_id)

Inside that scope the user reads that chart, and what refers to it, as any clinician of its facility does, and changes
nothing. The database keeps both promises (``core/schema/sql/break_glass.sql``). Afterwards somebody else reviews it
(``core/compliance/reviews.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, cast
from uuid import UUID

import asyncpg
from piccolo.columns import Text, Timestamptz
from piccolo.columns.base import OnDelete
from piccolo.custom_types import Combinable

from core.columns import TenantForeignKey
from core.engine import engine
from core.errors import ChartholdError
from core.queries.searches import looks_of
from core.queries.where import equalities, protect
from core.schema import Check, Index, SchemaObject
from core.scope import Scope, current_scope, one_line, scope
from core.statements.arguments import Deferred
from core.statements.plan import Plan
from core.statements.shown import Record
from core.tables import Client, TenantTable, User

__all__ = ["LONGEST", "Emergency", "EmergencyAccess", "break_glass"]

LONGEST = 240  # minutes


class EmergencyAccess(TenantTable, tablename="emergency_access"):
    """That a user broke the glass for a client. Written by ``charthold.break_glass()`` alone, and never changed."""

    # RESTRICT: who did it can be found.
    user_id = TenantForeignKey(User, on_delete=OnDelete.restrict, required=True)
    # CASCADE: a client is deleted when nothing need be kept any more; the log still says that the chart was opened.
    client_id = TenantForeignKey(Client, on_delete=OnDelete.cascade, required=True)
    reason = Text(default=None, required=True)
    until = Timestamptz(default=None, required=True)

    waived: ClassVar[Mapping[str, str]] = {
        "reason": "why the user acted; a text about a patient does not belong there",
        "until": "when the user's access ends",
    }

    # Of the organisation's own affairs.
    in_record_set = False

    whole_tenant = ("select",)
    # Its user does not see the client.
    facility_from = ()

    # Threat: a user makes an emergency that lasts for ever, or that is somebody else's.
    privileges = ("select",)

    declares: ClassVar[Sequence[SchemaObject]] = (
        Check(name="emergency_access_reason_given", condition="reason ~ '[^[:space:]]' and length(reason) <= 500"),
        Check(name="emergency_access_until_later", condition="until > created_at"),
        Index(name="emergency_access_newest_first", columns=("tenant_id", "created_at desc")),
    )


@dataclass(frozen=True)
class Emergency:
    """Leave for one user to read one client's chart, until a time."""

    id: UUID
    tenant: UUID
    actor: UUID
    client_id: UUID
    reason: str
    until: datetime

    def scope(self, *, request_id: str | None = None, source_ip: str | None = None) -> Scope:
        """The scope in which the chart can be read, with the emergency's reason."""
        return scope(
            tenant=self.tenant,
            actor=self.actor,
            reason=self.reason,
            request_id=request_id,
            source_ip=source_ip,
            emergency=self.id,
        )


async def break_glass(client: UUID | Combinable, *, reason: str, minutes: int = 60) -> Emergency:
    """Let the scope's user read one client's chart for some minutes (1 to 240), wherever in the tenant it is.

    ``client`` is an id, or what the client is known by: ``(Client.last_name == "Li") & (Client.date_of_birth == ...)``,
    which must fit one client only. Such a search is recorded, whatever it finds. ``reason`` (1 to 500 characters, never
    PHI) stands in each record of what is read. Keep the emergency's ``id`` for the next request:
    ``scope(tenant=..., actor=..., reason=..., emergency=id)``. Raises ``ScopeError`` for a user who is no clinician or
    admin, or is not shown what the client is known by, and ``ChartholdError`` for one who sees the whole tenant anyway,
    or when no client fits, or several do.
    """
    if type(minutes) is not int or not 0 < minutes <= LONGEST:
        raise ChartholdError(f"An emergency lasts 1 to {LONGEST} whole minutes.")
    reason = one_line("reason", reason)
    if not reason:
        raise ChartholdError("An emergency needs a reason; whoever reviews it reads that first.")
    here = current_scope()
    if isinstance(client, UUID):
        plan = Plan("select id, until from charthold.break_glass({}, {}, {})", client, reason, minutes)
    else:
        names, hashes = zip(*equalities(client), strict=True)
        asked = [gate for look in looks_of(protect(client)) for gate in look.gates]
        plan = Plan(
            "select id, until, client, clients from charthold.break_glass_by({}::text[], {}::text[], {}, {})"
            + "".join(f" {'and' if n else 'where'} {gate}" for n, gate in enumerate(asked)),
            list(names),
            Deferred(lambda keys: [_array(found.make(keys)) for found in hashes]),
            reason,
            minutes,
        )
    try:
        [row] = await engine().run_plan(plan)
    except asyncpg.ForeignKeyViolationError:
        raise ChartholdError("The tenant has no client with that id, so there is no glass to break.") from None
    if not isinstance(client, UUID):
        # The answer was given, so the search is recorded again should a rollback take its record away.
        said = json.dumps({"emergency": True, "indexes": list(names), "rows": row["clients"]})
        engine().note(Record.of_action("search", "client", None, said))
        if row["clients"] != 1:
            fit = "Several clients fit" if row["clients"] else "No client fits"
            raise ChartholdError(
                f"{fit}, so no glass was broken; the search is on record. Look for one client by more, such as last "
                "name and date of birth."
            )
        client = cast("UUID", row["client"])
    return Emergency(
        id=cast("UUID", row["id"]),
        tenant=here.tenant,
        actor=here.actor,
        client_id=client,
        reason=reason,
        until=cast("datetime", row["until"]),
    )


def _array(hashes: Sequence[bytes]) -> str:
    """An array of bytes, as PostgreSQL reads it."""
    return "{" + ",".join(f'"\\\\x{found.hex()}"' for found in hashes) + "}"
