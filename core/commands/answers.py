"""What commands that ask have in common: in whose name, what an id and a time look like, how rows are printed."""

from __future__ import annotations

import contextlib
import csv as csvlib
import json as jsonlib
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich.table import Table as RichTable

from core.commands.bar import bar
from core.commands.family import Failure, console, errors, printable
from core.commands.options import existing_tenant, reason_for, resolve_actor
from core.scope import scope
from core.tables import User

__all__ = ["a_limit", "a_time", "an_id", "emails_of", "reading", "show"]

WIDEST = 10_000  # characters: what a table would take if it could


@contextlib.asynccontextmanager
async def reading(tenant: str, actor: str, why: str = "audit", *, quiet: bool) -> AsyncIterator[None]:
    found = await existing_tenant(tenant)
    who = await resolve_actor(found.tenant_id, actor)
    with bar("reading the log", show=not quiet):
        async with scope(tenant=found.tenant_id, actor=who, reason=reason_for(why, actor)):
            yield


async def emails_of(ids: Iterable[UUID]) -> dict[UUID, str]:
    """Whom these ids mean; a user who is gone has none."""
    known = list(set(ids))
    rows = await User.select(User.id, User.email).where(User.id.is_in(known)) if known else []
    return {row["id"]: row["email"] for row in rows}


def an_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Failure("An id is a UUID, such as 0198c0de-0000-7000-8000-000000000001.") from None


def a_time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Failure(
            "A time is written 2026-01-31 or 2026-01-31T08:00, with +01:00 behind it if it is not UTC."
        ) from None


def a_limit(limit: int) -> int:
    """How many rows to ask for: one too many says that there are more."""
    if limit < 1:
        raise Failure("--limit takes a number of rows, 1 or more.")
    return limit + 1


def show(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    *,
    json: bool,
    csv: bool,
    quiet: bool,
    limit: int | None = None,
) -> None:
    more, rows = limit is not None and len(rows) > limit, rows[:limit]
    if json:
        print(jsonlib.dumps([dict(row) for row in rows], default=str))
    elif csv:
        writer = csvlib.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    elif rows:
        # People read one name for a user: the address, or the id of somebody who is gone.
        named = [{**row, "user": row.get("user") or row.get("user_id")} for row in rows]
        _print_text([{column: _shown(row.get(column)) for column in columns if column != "user_id"} for row in named])
    elif not quiet:
        console().print("Nothing found.")
    if more:
        # Told even with --quiet: nobody shall take this for all there is.
        errors().print(f"These are the latest {limit}; there are more. Ask for them with a higher --limit.")


def _print_text(rows: Sequence[dict[str, str]]) -> None:
    """A table where it fits; else, and in a file, a paragraph for each row, so that no id is cut in pieces."""
    out = console()
    table = RichTable(*rows[0], show_edge=False)
    for row in rows:
        table.add_row(*row.values())
    if out.is_terminal and out.measure(table, options=out.options.update(max_width=WIDEST)).maximum <= out.width:
        out.print(table)
        return
    width = max(12, *map(len, rows[0]))
    for row in rows:
        out.print("\n".join(f"{name:<{width}} {value}" for name, value in row.items() if value), end="\n\n")


def _text(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(value: Any) -> str:
    """Text for a terminal. Threat: a name with line breaks and escape sequences in it looks like another record."""
    return printable(_text(value), lines=False)


def _cell(value: Any) -> str:
    """A CSV cell that a spreadsheet does not take for a formula."""
    text = _text(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
