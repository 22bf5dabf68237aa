"""``piccolo core record_set``: the copy of all that is kept about a client, for the client, 45 CFR 164.524."""

from __future__ import annotations

import base64
import json as jsonlib
from typing import Any

from core.commands.answers import an_id, reading, show
from core.commands.family import command, console
from core.compliance.record_sets import record_set as copy_of
from core.plural import plural

__all__ = ["record_set"]


@command()
async def record_set(*, tenant: str, client: str, actor: str = "", json: bool = False, quiet: bool = False) -> None:
    """Copy all that is kept about a client, of every table, for the client to have, 164.524. It is itself recorded.

    Example: piccolo core record_set --tenant=lakeside --client=0198c0de-0000-7000-8000-000000000001 --json > copy.json

    :param client:
        The client's id.

    """
    about = an_id(client)
    async with reading(tenant, actor, "copy for the client", quiet=quiet):
        copy = await copy_of(about)
    if json:
        said = {"client_id": copy.client_id, "made_at": copy.made_at, "record_set": copy.rows}
        print(jsonlib.dumps(said, default=_in_json))
        return
    for name, rows in copy.rows.items():
        if rows:
            console().print(f"{name}: {plural(len(rows), 'row')}\n")
            show(rows, list(rows[0]), json=False, csv=False, quiet=quiet)


def _in_json(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
