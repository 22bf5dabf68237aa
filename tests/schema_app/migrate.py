"""``forwards`` of an app in a process of its own: python -m tests.schema_app.migrate core '{"host": ...}' [folder]."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from piccolo.apps.migrations.commands.base import BaseMigrationManager
from piccolo.apps.migrations.commands.forwards import forwards
from piccolo.engine.postgres import PostgresEngine

import core.piccolo_app  # noqa: F401
from core.schema import lock, runner


def main() -> None:
    app, connect, *folder = sys.argv[1:]
    engine = PostgresEngine(config=json.loads(connect))
    lock.engine_finder = lambda: engine  # type: ignore[attr-defined]
    runner._settled.clear()
    if folder:
        from tests.schema_app.project import Project, project_of

        project = Project(Path(folder[0]))
        BaseMigrationManager.get_app_config = project_of(  # type: ignore[method-assign]
            app, project, BaseMigrationManager.get_app_config
        )
    asyncio.run(forwards(app_name=app))


if __name__ == "__main__":
    main()
