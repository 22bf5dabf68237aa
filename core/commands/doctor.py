"""``piccolo core doctor``: is the database what the declarations say?"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence

from piccolo.conf.apps import Finder

from core.errors import ChartholdError
from core.schema import shared_objects
from core.schema.drift import Difference, drift
from core.schema.lock import migrating

__all__ = ["doctor", "find_drift"]


async def doctor(json: bool = False) -> None:
    """Compare the database with the declarations. The exit status is 1 when they differ.

    :param json:
        Print one JSON document instead of text.

    """
    try:
        differences = await find_drift()
    except ChartholdError as error:
        sys.exit(str(error))
    if json:
        print(json_format.dumps({"drift": [difference.as_dict() for difference in differences]}, indent=2))
    else:
        report(differences)
    if differences:
        sys.exit(1)


async def find_drift() -> list[Difference]:
    """Every difference, over all registered apps: they share the schemas."""
    apps = Finder().get_app_configs()
    tables = [table for app in apps for table in app.table_classes]
    shared = [item for app in apps for item in shared_objects(app.app_name)]
    async with migrating(locked=False) as connection:
        return await drift(connection, tables, shared)


def report(differences: Sequence[Difference]) -> None:
    """Each difference with the SQL that mends it."""
    if not differences:
        print("Schema: as declared.")
        return
    print(f"Schema: {len(differences)} difference{'s' if len(differences) != 1 else ''} from the declarations.")
    for difference in differences:
        print(f"\n{difference.kind.replace('_', ' ')} {difference.name}: {difference.problem}")
        print(difference.mend or "-- Decide by hand: the rows or the meaning are known to you alone.")
