"""An app whose tables a test chooses, with a migrations folder of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from piccolo.apps.migrations.commands import new as piccolo_new
from piccolo.apps.migrations.commands.backwards import BackwardsMigrationManager
from piccolo.apps.migrations.commands.base import BaseMigrationManager, MigrationResult
from piccolo.apps.migrations.commands.forwards import ForwardsMigrationManager
from piccolo.columns import Integer, Text, Varchar
from piccolo.conf.apps import AppConfig
from piccolo.table import Table, create_table_class

from core.schema import SchemaObject, register_shared, shared_objects
from core.schema.catalog import Catalog, snapshot
from core.schema.drift import Difference, drift
from core.schema.runner import install

APP = "toy"
SCHEMAS = ("public", "charthold", "toy")

install()


class Project:
    """``piccolo migrations new|forwards|backwards toy``, in this process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.config = AppConfig(app_name=APP, migrations_folder_path=str(folder))
        self.declare()

    def declare(self, *tables: type[Table], shared: Iterable[SchemaObject] = ()) -> Project:
        self.config.table_classes = list(tables)
        register_shared(APP, shared)
        return self

    async def new(self, auto_input: str = "n") -> str:
        """Write a step; its source, or an empty string when nothing changed."""
        try:
            create = piccolo_new._create_new_migration.__wrapped__  # the command line's exits instead of raising
            made = await create(self.config, auto=True, auto_input=auto_input)
        except piccolo_new.NoChanges:
            return ""
        return Path(made.migration_path).read_text()

    def write(self, name: str, body: str) -> None:
        """A step by hand; ``body`` uses ``manager``."""
        lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
        # Steps are imported by their bare name, once a process.
        (self.folder / f"toy_{name}_{uuid4().hex}.py").write_text(
            "from core.schema.migration import MigrationManager\n"
            "from core.schema import *\n"
            "from tests.schema_app.project import ran\n"
            f"ID = {name!r}\nVERSION = ''\nDESCRIPTION = ''\n\n"
            f"async def forwards():\n    manager = MigrationManager(migration_id=ID, app_name={APP!r})\n"
            f"{lines}\n    return manager\n"
        )

    async def forwards(self, migration_id: str = "all", **options: Any) -> MigrationResult:
        manager = ForwardsMigrationManager(app_name=APP, migration_id=migration_id, **options)
        return await manager.run()

    async def backwards(self, migration_id: str = "all", **options: Any) -> MigrationResult:
        manager = BackwardsMigrationManager(app_name=APP, migration_id=migration_id, auto_agree=True, **options)
        return await manager.run()

    async def up(self) -> None:
        result = await self.forwards()
        assert result.success, result.message

    async def down(self, migration_id: str = "1") -> None:
        result = await self.backwards(migration_id)
        assert result.success, result.message

    async def drift(self, connection: asyncpg.Connection[Any]) -> list[Difference]:
        return await drift(connection, self.config.table_classes, shared_objects(APP))


# What raw steps did, in order.
ran: list[str] = []


def project_of(app_name: str, project: Project, original: Any) -> Any:
    def get_app_config(self: BaseMigrationManager, app_name: str = app_name) -> AppConfig:
        return project.config if app_name == APP else original(self, app_name)

    return get_app_config


def table(name: str, objects: Sequence[SchemaObject] = (), /, schema: str | None = None, **columns: Any) -> type[Table]:
    """A table class; ``name`` is the class's, and in lower case the table's."""
    members = columns or {
        "code": Varchar(length=20, default=None, null=False),
        "size": Integer(default=None, null=True),
    }
    cls = create_table_class(name, class_kwargs={"tablename": name.lower(), "schema": schema}, class_members=members)
    cls.schema_objects = tuple(objects)
    return cls


async def catalog(connection: asyncpg.Connection[Any]) -> Catalog:
    return await snapshot(connection, SCHEMAS)


def changes(before: Catalog, after: Catalog) -> dict[str, Any]:
    """Where two catalogs differ; empty when they do not."""
    return {
        f"{kind} {name}": (before[kind].get(name), after[kind].get(name))
        for kind in before
        for name in sorted(before[kind].keys() | after[kind].keys())
        if before[kind].get(name) != after[kind].get(name)
    }


__all__ = ["APP", "Integer", "Project", "Text", "Varchar", "catalog", "changes", "ran", "table"]
