"""A complete picture of what a database holds, as plain values: kind -> name -> what it is.

Definitions are PostgreSQL's own deparsed text, read with an empty search path so that every name in them is qualified.
Nothing in it depends on object ids, on the order of creation, or on who owns the objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg

from core.schema.catalog_queries import QUERIES, ROLES
from core.schema.declarations import declared_roles
from core.settings import settings

__all__ = ["BOOKKEEPING", "Catalog", "snapshot"]

Catalog = dict[str, dict[str, dict[str, Any]]]

# Piccolo's table of steps that ran; it stays when everything else is gone.
BOOKKEEPING = ("public.migration",)


async def snapshot(
    connection: asyncpg.Connection[Any],
    schemas: Sequence[str] = ("public", "charthold"),
    *,
    roles: Sequence[str] | None = None,
) -> Catalog:
    """The catalog of these schemas, and of the roles that the registered apps declare. Changes nothing."""
    names = declared_roles() if roles is None else list(roles)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("set local search_path = ''")
        # Deparsing takes the lock of a reader: it waits for whoever holds a table exclusively, but not for ever.
        await connection.execute(f"set local lock_timeout = '{settings().lock_timeout * 1000:.0f}ms'")
        found: Catalog = {}
        for kind, query in QUERIES.items():
            given = [list(schemas), list(BOOKKEEPING)][: 2 if "$2" in query else 1 if "$1" in query else 0]
            rows = await connection.fetch(query, *given)
            found[kind] = {row["name"]: json.loads(row["value"]) for row in sorted(rows, key=lambda row: row["name"])}
        rows = await connection.fetch(ROLES, names)
        found["role"] = {row["name"]: json.loads(row["value"]) for row in sorted(rows, key=lambda row: row["name"])}
    finally:
        # Rolled back, so that the search path is as it was in an outer transaction too.
        await transaction.rollback()
    return found
