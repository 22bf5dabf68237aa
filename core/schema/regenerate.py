"""``python -m core.schema.regenerate [app]``: write an app's steps anew, one for what is shared and one for each table.

Until version 1.0 steps are regenerated rather than piled up. Names and ids are the same on every run, so that a change
of one table is a change of one file. Databases that ran the old steps are made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import sys
from itertools import chain
from pathlib import Path

import black
from piccolo import __VERSION__
from piccolo.apps.migrations.auto.schema_differ import AlterStatements
from piccolo.conf.apps import AppConfig, Finder
from piccolo.table import Table

from core.errors import ChartholdError, MigrationError
from core.schema.autogenerate import JINJA_ENV, AutoMigrationManager
from core.schema.constraint import References
from core.schema.declarations import in_dependency_order, objects_of, shared_objects
from core.schema.object import Kind, SchemaObject
from core.schema.quoting import table_name

__all__ = ["regenerate"]


async def regenerate(app_name: str) -> list[Path]:
    """Replace the generated steps of an app; returns the new files, in order."""
    app = Finder().get_app_config(app_name=app_name)
    folder = Path(app.resolved_migrations_folder_path)
    clear(folder, app_name)
    tables = in_dependency_order(app.table_classes)
    shared = shared_objects(app_name)
    early = [item for item in shared if item.place < Kind.TABLES]
    stages: list[tuple[str, list[type[Table]], list[SchemaObject]]] = [("foundation", [], early)] if early else []
    for count, table in enumerate(tables, start=1):
        stages.append((table._meta.tablename, tables[:count], early))
    if len(early) != len(shared):
        stages.append(("finish", tables, list(shared)))
    written = []
    for number, (name, some, objects) in enumerate(stages, start=1):
        path = folder / f"{app_name}_{number:04}_{name}.py"
        # Steps are imported by their bare name, and an earlier one of that name may be in memory.
        sys.modules.pop(path.stem, None)
        importlib.invalidate_caches()
        later = postponed(tables, some)
        bound = [
            item
            for table in some
            for item in objects_of(table)
            if not (isinstance(item, References) and item.to_table in later)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            statements = await AutoMigrationManager(auto_input="n").changes(app, some, [*objects, *bound])
        path.write_text(step_source(app, f"2026-01-01T00:00:00:{number:06}", name, statements), encoding="utf-8")
        written.append(path)
    return written


def postponed(tables: list[type[Table]], some: list[type[Table]]) -> set[str]:
    """The tables that are still to come: a ring of references is closed by the last of them."""
    return {table_name(table) for table in tables if table not in some}


def clear(folder: Path, app_name: str) -> None:
    """Delete the generated steps. One that a person wrote into is kept, and said."""
    folder.mkdir(exist_ok=True)
    steps = sorted(folder.glob(f"{app_name}_[0-9]*.py"))
    for path in steps:
        if "manager.add_raw" in path.read_text(encoding="utf-8"):
            raise MigrationError(f"{path.name} holds Python that a person wrote. Move it to a Statement, or delete it.")
    for path in steps:
        path.unlink()


def step_source(app: AppConfig, migration_id: str, description: str, statements: list[AlterStatements]) -> str:
    """A step's file, as ``piccolo migrations new`` would write it."""
    text = JINJA_ENV.get_template("migration.py.jinja").render(
        version=__VERSION__,
        migration_id=migration_id,
        auto=True,
        alter_statements=list(chain.from_iterable(s.statements for s in statements)),
        extra_imports=sorted(set(chain.from_iterable(s.extra_imports for s in statements)), key=repr),
        extra_definitions=sorted(set(chain.from_iterable(s.extra_definitions for s in statements))),
        app_name=app.app_name,
        description=description,
    )
    return black.format_str(text, mode=black.FileMode(line_length=82))


def main() -> None:
    try:
        written = asyncio.run(regenerate(sys.argv[1] if len(sys.argv) > 1 else "core"))
    except ChartholdError as error:
        sys.exit(str(error))
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
