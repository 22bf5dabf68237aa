"""``piccolo core pooler``: what PgBouncer needs to be told."""

from __future__ import annotations

import json as jsonlib

from core.commands.family import command, console
from core.engine import engine
from core.schema.quoting import quote_ident
from core.wire.pooler import configuration
from core.wire.session import SESSION

__all__ = ["pooler"]


@command()
def pooler(*, json: bool = False, quiet: bool = False) -> None:
    """Print what pgbouncer.ini must say: PgBouncer 1.22 or later, in transaction mode.

    The application then runs with CHARTHOLD_BIND_BACKEND=off, and refuses a pooler that was not told. Migrations and
    key commands need DATABASE_OWNER_URL to name the server itself.

    Example: piccolo core pooler

    """
    told = configuration(quote_ident(f"{engine().settings.role_prefix}app_runtime"), SESSION)
    if json:
        print(jsonlib.dumps(told))
        return
    query = told.pop("connect_query")
    if not quiet:
        console().print("; in [databases], at the end of your database's line:")
    console().print(f"connect_query='{query}'\n")
    if not quiet:
        console().print("; in [pgbouncer]:")
    console().print("\n".join(f"{name} = {value}" for name, value in told.items()))
