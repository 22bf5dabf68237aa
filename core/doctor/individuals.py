"""What individuals may ask for: a copy of what is kept about them, 164.524, and whom it was told to, 164.528."""

from __future__ import annotations

from uuid import UUID

from core.compliance.disclosures import YEARS
from core.compliance.record_sets import part_of
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.errors import ConfigurationError
from core.plural import plural
from core.tables import TenantTable

__all__: list[str] = []

REGISTER = "public.disclosure"
# The restrictive policies of ours, which a copy knows of (core/access/policies.py).
OURS = ("tenant_isolation", "facility_isolation", "select_everywhere")

# Of the last years, withheld now, and withheld until they are too old to be asked for.
DISCLOSURES = """
select count(*) as entered, count(*) filter (where recent) as due,
    count(*) filter (where recent and withheld_until >= current_date) as withheld,
    count(*) filter (where recent and withheld_until >= disclosed_on + make_interval(years => $2)) as lost
from (
    select *, disclosed_on >= current_date - make_interval(years => $2) as recent from public.disclosure
    where ($1::uuid is null or tenant_id = $1)
) as register"""


@check("164.524")
async def record_sets(live: Live, notes: Notes) -> None:
    """Threat: a table that nobody thought of is missing in a client's copy, which says that there is no more."""
    parts: list[str] = []
    left_out: list[str] = []
    for name, table in live.declared().items():
        if not issubclass(table, TenantTable):
            continue
        try:
            if part_of(table, UUID(int=0)) is not None:
                parts.append(name)
            elif not table.in_record_set:
                left_out.append(name)
        except ConfigurationError as error:
            notes.fail(str(error), subject=f"table {name}")
    for title, policy in live.catalog["policy"].items():
        hides = policy["restrictive"] and policy["command"] in ("all", "select") and policy["ident"] not in OURS
        if hides and policy["on"] in parts:
            notes.warn(
                f"The policy {title} hides rows from a client's copy too, without a word.",
                subject=f"policy {title}",
                mend="Leave copies to users from whom it hides none.",
            )
    notes.end(
        f"A client's copy has rows of {plural(len(parts), 'table')}: {', '.join(parts)}. Left out, because their "
        f"classes say so: {', '.join(left_out) or 'none'}."
    )


@check("164.528")
async def accounting_of_disclosures(live: Live, notes: Notes) -> None:
    """Threat: a disclosure that is gone, or withheld for good, is in no accounting, and the individual cannot know."""
    if REGISTER not in live.relations:
        notes.fail(
            "There is no register of disclosures to others.",
            subject=f"table {REGISTER}",
            mend="piccolo migrations forwards core",
        )
        return
    for grant in live.grants(REGISTER):
        if grant["privilege"] in ("delete", "truncate"):
            notes.fail(
                f"{grant['to'] if grant['to'] != 'public' else 'Everybody'} may {grant['privilege']} on {REGISTER}.",
                subject=f"grant {grant['name']}",
                sql=f"revoke {grant['privilege']} on table {REGISTER} from {grant['to']};",
            )
    name = f"disclosure_client_id_fkey on {REGISTER}"
    rule = live.catalog["constraint"].get(name)
    if rule is None or not rule["validated"] or "ON DELETE RESTRICT" not in rule["definition"]:
        notes.fail("A client can be deleted who must be given an accounting.", subject=f"constraint {name}")
    rows = await live.ask_or_warn(notes, "The count of disclosures", DISCLOSURES, YEARS)
    seen = ""
    if rows is not None:
        entered, due, withheld, lost = (sum(row[n] for row in rows) for n in ("entered", "due", "withheld", "lost"))
        if lost:
            notes.warn(
                f"{plural(lost, 'disclosure is', 'disclosures are')} withheld until nobody need account for them.",
                subject=f"column {REGISTER}.withheld_until",
                mend="Ask the agency or the official for a statement with a time, 164.528(a)(2)(i), and enter that.",
            )
        seen = (
            f"{plural(due, 'disclosure')} of the last {YEARS} years, {withheld} of them withheld now, and "
            f"{entered - due} older{live.unseen()}; "
        )
    notes.seen(
        f"{seen}{'nobody' if seen else 'Nobody'} but the owner may delete one, and its client stays with it. Whether "
        "each disclosure was entered, no database can tell."
    )
