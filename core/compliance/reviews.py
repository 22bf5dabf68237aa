"""Sign-offs, 164.308(a)(1)(ii)(D): that a reviewer looked at what was done in a time, or in one emergency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from piccolo.columns import Text, Timestamptz
from piccolo.columns.base import OnDelete

from core.columns import ActorId, TenantForeignKey
from core.compliance.emergencies import EmergencyAccess
from core.schema import Check, Index, Policy, SchemaObject
from core.schema.constraint import one_of
from core.tables import TenantTable

__all__ = ["FINDINGS", "ActivityReview"]

FINDINGS = ("in_order", "follow_up", "violation")


class ActivityReview(TenantTable, tablename="activity_review"):
    """A sign-off: of one emergency, or of all that happened from ``since`` to ``until``. Never changed.

    ``reviewed_by`` is who writes it, and nobody reviews their own emergency: the database sees to both.
    """

    reviewed_by = ActorId()
    # CASCADE: the emergency is deleted with its client, too.
    emergency_id = TenantForeignKey(EmergencyAccess, on_delete=OnDelete.cascade, null=True)
    since = Timestamptz(default=None, null=True)
    until = Timestamptz(default=None, null=True)
    finding = Text(default="in_order")
    note = Text(default=None, null=True)

    waived: ClassVar[Mapping[str, str]] = {
        "since": "of what was reviewed",
        "until": "of what was reviewed",
        "note": "what the reviewer says of it; a text about a patient does not belong there",
    }

    # A user who does not see the whole tenant cannot have reviewed it.
    whole_tenant = ("select", "insert")
    facility_from = ()

    declares: ClassVar[Sequence[SchemaObject]] = (
        one_of("activity_review_finding_known", "finding", FINDINGS),
        Check(
            name="activity_review_of_something",
            condition="num_nulls(since, until) = case when emergency_id is null then 0 else 2 end",
        ),
        Check(name="activity_review_note_length", condition="length(note) <= 2000"),
        # Nobody has reviewed what has not happened yet.
        Check(name="activity_review_of_the_past", condition="since < until and until <= created_at"),
        # Threat: the last word counts, and somebody says theirs in the future; or signs today what was due last year.
        Policy(
            name="insert_as_oneself",
            command="insert",
            restrictive=True,
            check="reviewed_by = (select charthold.actor_id())"
            " and created_at between (select now()) - interval '1 minute'"
            " and (select statement_timestamp()) + interval '1 minute'",
        ),
        # Threat: users sign off their own emergencies; or what is not over is signed off, with a created_at that raw
        # SQL made up.
        Policy(
            name="insert_by_another",
            command="insert",
            restrictive=True,
            check="emergency_id is null and coalesce(until <= now(), true)"
            " or exists (select from public.emergency_access as e"
            " where e.id = activity_review.emergency_id and e.tenant_id = activity_review.tenant_id"
            " and e.until <= now() and e.user_id <> (select charthold.actor_id()))",
        ),
        Index(name="activity_review_newest_first", columns=("tenant_id", "created_at desc")),
    )
