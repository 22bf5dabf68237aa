"""``piccolo core disclosures``: the accounting of disclosures that an individual asked for, 45 CFR 164.528."""

from __future__ import annotations

from datetime import date, datetime

from core.commands.answers import an_id, reading, show
from core.commands.family import Failure, command
from core.compliance.disclosures import accounting_of_disclosures

__all__ = ["disclosures"]

COLUMNS = ("disclosed_on", "recipient", "recipient_address", "description", "purpose", "basis")


@command()
async def disclosures(
    *,
    tenant: str,
    client: str,
    actor: str = "",
    since: str = "",
    until: str = "",
    json: bool = False,
    csv: bool = False,
    quiet: bool = False,
) -> None:
    """Account for a client's disclosures, oldest first, without those withheld now, 164.528. It is itself recorded.

    Example: piccolo core disclosures --tenant=lakeside --client=0198c0de-0000-7000-8000-000000000001

    :param client:
        The client's id.
    :param since:
        The first day, as 2026-01-31; left out, six years ago.
    :param until:
        The last day; left out, today.

    """
    about, first, last = an_id(client), _day(since), _day(until)
    async with reading(tenant, actor, "accounting of disclosures", quiet=quiet):
        due = await accounting_of_disclosures(about, since=first, until=last)
    rows = [{name: getattr(row, name) for name in COLUMNS} for row in due]
    show(rows, COLUMNS, json=json, csv=csv, quiet=quiet)


def _day(text: str) -> date | None:
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007  # a day has no zone
    except ValueError:
        raise Failure("A day is written 2026-01-31.") from None
