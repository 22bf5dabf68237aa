"""The register of disclosures to others, and the accounting of them that an individual may ask for, 45 CFR 164.528.

A disclosure is entered unless it was for treatment, payment or operations, to the individual, or authorised by them;
164.528(a)(1) has the other exceptions. The audit log says who inside the organisation saw what; this register says who
outside was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar
from uuid import UUID

from piccolo.columns import Date, Text
from piccolo.columns.base import OnDelete

from core.audit.record import record
from core.columns import EncryptedText, TenantForeignKey
from core.engine import engine
from core.errors import ProtectedQueryError
from core.schema import Check, Index, SchemaObject
from core.schema.constraint import one_of
from core.tables import Client
from core.tenant_table import TenantTable

__all__ = ["BASES", "YEARS", "Disclosure", "accounting_of_disclosures"]

YEARS = 6  # 164.528(a)(1): before the day of the request

# What allowed it: the paragraphs of 164.512 in their order. Nothing allows a breach.
BASES = (
    "required_by_law", "public_health", "abuse_or_neglect", "health_oversight", "judicial", "law_enforcement",
    "decedents", "organ_donation", "research", "serious_threat", "government_function", "workers_compensation",
    "breach", "other",
)  # fmt: skip
# Who may ask that the individual is not told for a time, 164.528(a)(2).
WITHHOLDING = ("health_oversight", "law_enforcement")


class Disclosure(TenantTable, tablename="disclosure"):
    """One disclosure: when, to whom, of what, and why, 164.528(b)(2). No role deletes one; admins correct it.

    ``withheld_until`` is the last day on which the accounting leaves it out, because an agency or an official asked.
    """

    # RESTRICT: what must be accounted for, for six years, would be deleted with the client.
    client_id = TenantForeignKey(Client, on_delete=OnDelete.restrict, required=True)
    disclosed_on = Date(default=None, required=True)
    recipient = Text(default=None, required=True)
    recipient_address = Text(default=None, null=True)
    description = EncryptedText(identifier="other", required=True)
    # Sealed: the number of a court order leads to the patient.
    purpose = EncryptedText(identifier="other", required=True)
    basis = Text(default=None, required=True)
    withheld_until = Date(default=None, null=True)

    waived: ClassVar[Mapping[str, str]] = {
        "disclosed_on": "plain so that an accounting can be asked for by time; policies and grants protect it",
        "recipient": "who was told: not the patient, at times their employer; plain so that it can be asked for",
        "recipient_address": "of who was told, not of the patient",
        "withheld_until": "of an agency's request; plain so that an accounting can leave out what is withheld",
    }

    # Accounted for by itself, without what is withheld.
    in_record_set = False

    declares: ClassVar[Sequence[SchemaObject]] = (
        Check(name="disclosure_recipient_given", condition="btrim(recipient) <> ''"),
        # Compared with the day of the entry, where days begin first. Not with now(): a restored row must pass, too.
        Check(
            name="disclosure_not_in_the_future",
            condition="disclosed_on <= (created_at at time zone 'UTC' + interval '14 hours')::date",
        ),
        one_of("disclosure_basis_known", "basis", BASES),
        Check(
            name="disclosure_withheld_for_whom",
            condition=f"withheld_until is null or basis in ({', '.join(map(repr, WITHHOLDING))})",
        ),
        Index(name="disclosure_by_client", columns=("tenant_id", "client_id", "disclosed_on")),
    )


async def accounting_of_disclosures(
    client_id: UUID, *, since: date | None = None, until: date | None = None
) -> list[Disclosure]:
    """The disclosures to tell the individual, oldest first, without those that are withheld now.

    ``since``: six years ago, unless it is given; both days count. Each disclosure is recorded as read, and the
    accounting as an ``export`` about the client, 164.528(d). Raises ``ProtectedQueryError`` for a client whom the scope
    does not see.
    """
    today = _today()
    # Six years before a leap year there is no 29 February.
    leap = (today.month, today.day) == (2, 29)
    since = since or today.replace(year=today.year - YEARS, day=28 if leap else today.day)
    if until is not None and until < since:
        raise ProtectedQueryError(f"An accounting since {since} and until {until} has no day. Give an earlier since.")
    async with engine().transaction():
        if not await Client.exists().where(Client.id == client_id):
            # An empty accounting would say that nobody was told anything.
            raise ProtectedQueryError(
                "There is no such client, or it is not yours to see. Ask with the id of one that you see."
            )
        query = Disclosure.objects().where(
            Disclosure.client_id == client_id,
            Disclosure.disclosed_on >= since,
            Disclosure.withheld_until.is_null() | (Disclosure.withheld_until < today),
        )
        if until is not None:
            query = query.where(Disclosure.disclosed_on <= until)
        found = await query.order_by(Disclosure.disclosed_on, Disclosure.id)
        said = {"disclosures": len(found), "since": since, "until": until}
        await record("export", table=Client, record_id=client_id, new=said)
    return found


def _today() -> date:
    """The date where days begin last: a day that is over there is over for the tenant, too."""
    return (datetime.now(UTC) - timedelta(hours=12)).date()
