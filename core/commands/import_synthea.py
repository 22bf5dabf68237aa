"""``piccolo core import_synthea``: a Synthea CSV export becomes a tenant's facilities, users and clients."""

from __future__ import annotations

import time
from dataclasses import asdict
from json import dumps
from pathlib import Path
from uuid import UUID

from rich.table import Table

from core.commands.bar import bar
from core.commands.family import SKIPPED, Failure, command, console, errors
from core.commands.options import resolve_actor, slug_of
from core.plural import plural
from core.provision import find_tenant, provision_tenant
from core.scope import scope
from core.synthea.load import Count, Loaded, load
from core.synthea.reader import CsvFile, Export, Problem
from core.tables import Client, Facility, User

__all__ = ["SAMPLE", "import_export", "import_synthea"]

SAMPLE = Path(__file__).parent.parent / "sample" / "synthea"


@command(stopped="Stopped. What was loaded stays; run the command again to load the rest.")
async def import_synthea(
    directory: str = "sample",
    *,
    tenant: str = "synthea",
    actor: str = "",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Load a Synthea CSV export into a tenant: organizations become facilities, providers users, patients clients.

    Example: piccolo core import_synthea ./output/csv --tenant=lakeside

    Run it again and nothing is doubled. Rows that are skipped are reported as file:line.

    :param directory:
        The folder with organizations.csv, providers.csv and patients.csv; left out, the sample that Charthold brings.
    :param tenant:
        The tenant's slug. A tenant that does not exist is made, with the admin admin@SLUG.example.

    """
    return await import_export(directory, tenant, actor=actor, json=json, quiet=quiet)


async def import_export(
    directory: str = "sample", tenant: str = "synthea", *, actor: str = "", json: bool = False, quiet: bool = False
) -> int:
    """The command's work, for other commands: load, print, and return the exit status."""
    slug = slug_of(tenant)
    began = time.monotonic()
    with Export(_folder(directory)) as export:
        found = await find_tenant(slug)
        if found is None:
            if actor:
                raise Failure(f"There is no tenant {slug}, so it has no --actor. Leave that out, and it is made.")
            made = await provision_tenant(slug=slug, name=_title(slug), admin_email=f"admin@{slug}.example")
            tenant_id, actor_id = made.tenant_id, made.admin_id
        else:
            if not found.is_open:
                raise Failure(f"The tenant {slug} is {found.status}. Open it first.")
            tenant_id, actor_id = found.tenant_id, await resolve_actor(found.tenant_id, actor)
        loaded = await _load(export, tenant_id, actor_id, show=not quiet, say=not json)
    async with scope(tenant=tenant_id, actor=actor_id, reason="count what an import loaded"):
        facilities = await Facility.count()
        users = await User.count().where(User.role != "admin")
        clients = await Client.count()
    counts = {"facilities": facilities, "users_beside_the_admin": users, "clients": clients}
    seconds = round(time.monotonic() - began, 2)
    if json:
        _print_json(slug, found is None, counts, loaded, seconds)
    elif not quiet:
        _print(slug, found is None, counts, loaded, seconds)
    return SKIPPED if loaded.problems else 0


def _folder(directory: str) -> Path:
    """The shipped sample, or the user's own folder; one that is called "sample" is ./sample."""
    return SAMPLE if directory == "sample" else Path(directory).expanduser()


async def _load(export: Export, tenant: UUID, actor: UUID, *, show: bool, say: bool) -> Loaded:
    out = errors()

    def report(problem: Problem) -> None:
        if say:
            out.print(str(problem))

    with bar("loading", show=show) as tell:

        def progress(file: CsvFile) -> None:
            tell(file.name, file.position, file.size)

        return await load(export, tenant=tenant, actor=actor, report=report, progress=progress)


def _print(slug: str, made: bool, counts: dict[str, int], loaded: Loaded, seconds: float) -> None:
    out = console()
    out.print(
        f"{plural(counts['facilities'], 'facility', 'facilities')}, "
        f"{plural(counts['users_beside_the_admin'], 'user')} beside the admin, {plural(counts['clients'], 'client')}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "new", "there already", "skipped"):
        table.add_column(heading, justify="right" if heading else "left")
    rows: dict[str, Count] = {"facilities": loaded.facilities, "users": loaded.users, "clients": loaded.clients}
    for name, count in rows.items():
        table.add_row(name, f"{count.created:,}", f"{count.existing:,}", f"{count.skipped:,}")
    out.print(table)
    made_now = f"made now, with the admin admin@{slug}.example; " if made else ""
    out.print(f"Tenant {slug}: {made_now}{seconds:g} s.")
    if any(count.existing for count in rows.values()):
        out.print("What was there already is left as it is.")
    out.print(
        "Patients name no organization, so each was given a facility by a checksum of its Id. A provider is bound to "
        "the facility of its organization, and sees the clients there. A DEATHDATE became the status deceased."
    )
    for name, columns in loaded.columns.items():
        if columns:
            out.print(f"No home in {name}: {', '.join(columns)}.")
    out.print(f"Look at it: piccolo playground explore --tenant={slug}")


def _print_json(slug: str, made: bool, counts: dict[str, int], loaded: Loaded, seconds: float) -> None:
    print(
        dumps(
            {
                "tenant": slug,
                "made": made,
                "holds": counts,
                **{name: asdict(getattr(loaded, name)) for name in ("facilities", "users", "clients")},
                "skipped": [asdict(problem) for problem in loaded.problems],
                "columns_without_a_home": loaded.columns,
                "seconds": seconds,
            }
        )
    )


def _title(slug: str) -> str:
    return slug.replace("-", " ").strip().title()
