"""``piccolo migrations new --auto``: the declarations against the replayed steps.

Piccolo looks its differ, its snapshot and its template up in the module of the command, so ours are put there. Its own
statements are kept, table by table and in a fixed order; its sets order them by chance.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from piccolo.apps.migrations.auto import DiffableTable
from piccolo.apps.migrations.auto import SchemaDiffer as PiccoloSchemaDiffer
from piccolo.apps.migrations.auto.diffable_table import TableDelta
from piccolo.apps.migrations.auto.operations import RenameColumn, RenameTable
from piccolo.apps.migrations.auto.schema_differ import (
    AlterStatements,
    RenameColumnCollection,
    RenameTableCollection,
)
from piccolo.apps.migrations.auto.serialisation import Import
from piccolo.apps.migrations.commands.new import AutoMigrationManager as PiccoloAutoMigrationManager
from piccolo.columns import Column, ForeignKey
from piccolo.conf.apps import AppConfig
from piccolo.table import Table

from core.errors import MigrationError
from core.schema.declarations import (
    constraint_of,
    in_dependency_order,
    objects_of,
    shared_objects,
    sort_objects,
    verify,
)
from core.schema.index import Index
from core.schema.migration import MigrationManager
from core.schema.object import SchemaObject
from core.schema.operation import Add, Drop, Operation, Rename, Replace
from core.schema.partition import Partitions
from core.schema.quoting import full_name
from core.schema.replay import SchemaSnapshot, named_once
from core.schema.sealed import alike, refuse_change, refuse_column_rename, refuse_table_rename
from core.schema.statement import Statement

__all__ = [
    "JINJA_ENV",
    "AutoMigrationManager",
    "SchemaDiffer",
    "diffable",
    "object_changes",
]

JINJA_ENV = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # noqa: S701  # it writes Python, not HTML
)


def column_of(table: DiffableTable, name: str) -> Column:
    """The table's column of that name in Python."""
    return next(column for column in table.columns if column._meta.name == name)


# What a column of another class has anew: its type is made of the first two, and the default is of the old type.
OF_CLASS = ("length", "digits", "default")


class TableToReach(DiffableTable):
    """A table as it is declared. The way to a column of another class, and back, says all that is made anew."""

    def __sub__(self, before: DiffableTable) -> TableDelta:
        delta = super().__sub__(before)
        for change in delta.alter_columns:
            if change.column_class is not change.old_column_class:
                # Piccolo says what differs, and VARCHAR(60) would come back as VARCHAR(255).
                change.params |= of_class(column_of(self, change.column_name))
                change.old_params |= of_class(column_of(before, change.column_name))
        return delta


def of_class(column: Column) -> dict[str, Any]:
    return {name: value for name, value in column._meta.params.items() if name in OF_CLASS}


def diffable(table: type[Table]) -> DiffableTable:
    """A table as Piccolo's differ wants it, without the constraints that are declared objects."""
    meta = table._meta
    for column in meta.columns:
        if {'"', "'"} & {*column._meta.db_column_name}:
            raise MigrationError(f"{table.__name__}.{column._meta.name} has a quote in its name. Write it without.")
    return TableToReach(
        class_name=table.__name__,
        tablename=meta.tablename,
        columns=[referring(named_once(column)) for column in meta.non_default_columns],
        constraints=[c for c in meta.constraints if constraint_of(c) is None],
        schema=meta.schema,
    )


def referring(column: Column) -> Column:
    """The column, with the table in the place of its name, which a step that is read without the app cannot look up."""
    named = column._meta.params.get("references")
    if isinstance(column, ForeignKey) and isinstance(named, str) and named != "self":
        column._meta.params["references"] = column._foreign_key_meta.resolved_references
    return column


@dataclass
class SchemaDiffer(PiccoloSchemaDiffer):
    """Piccolo's differ in a fixed order, and the declared objects beside it."""

    objects: list[SchemaObject] = field(default_factory=list)
    objects_before: list[SchemaObject] = field(default_factory=list)

    # -- Piccolo's part, one table at a time -----------------------------------------------------------------------

    def _one_by_one(self, part: str, tables: Iterable[DiffableTable], *, before: bool = False) -> AlterStatements:
        """What Piccolo's property of that name says of each of the tables; ``before``: of tables of the snapshot."""
        statements_of = getattr(PiccoloSchemaDiffer, part).fget
        found = AlterStatements()
        for table in tables:
            view = copy.copy(self)
            if before:
                view.schema_snapshot = [table]
            else:
                view.schema = [table]
            # Piccolo matches renamed columns by name alone, across tables.
            view.rename_columns_collection = RenameColumnCollection(
                self.rename_columns_collection.for_table_class_name(table.class_name)
            )
            found.extend(statements_of(view))
        return found

    @property
    def _new_tables(self) -> list[DiffableTable]:
        """In dependency order, as the caller sorted them; without those that were renamed or moved."""
        known = {*self.rename_tables_collection.new_class_names, *self.table_schema_changes_collection.class_names}
        return [t for t in self.schema if t not in self.schema_snapshot and t.class_name not in known]

    @property
    def create_tables(self) -> AlterStatements:
        return self._one_by_one("create_tables", self._new_tables)

    @property
    def drop_tables(self) -> AlterStatements:
        gone = [t for t in reversed(self.schema_snapshot) if t not in self.schema]
        return self._one_by_one("drop_tables", gone, before=True)

    @property
    def new_table_columns(self) -> AlterStatements:
        return self._one_by_one("new_table_columns", self._new_tables)

    @property
    def new_table_constraints(self) -> AlterStatements:
        return self._one_by_one("new_table_constraints", self._new_tables)

    @property
    def add_columns(self) -> AlterStatements:
        return self._one_by_one("add_columns", self.schema)

    @property
    def drop_columns(self) -> AlterStatements:
        return self._one_by_one("drop_columns", self.schema)

    @property
    def alter_columns(self) -> AlterStatements:
        for table in self.schema:
            if (before := self._get_snapshot_table(table.class_name)) is not None:
                for change in (table - before).alter_columns:
                    name = change.column_name
                    refuse_change(column_of(before, name), column_of(table, name), table.class_name)
        return super().alter_columns

    def check_rename_tables(self) -> RenameTableCollection:
        """As Piccolo does, but asking in a fixed order, and only when the two tables have a column in common."""
        moved = self.table_schema_changes_collection.class_names
        gone = [t for t in self.schema_snapshot if t not in self.schema and t.class_name not in moved]
        new = [t for t in self.schema if t not in self.schema_snapshot and t.class_name not in moved]
        renamed = RenameTableCollection()
        for table in sorted(new, key=lambda t: t.class_name):
            columns = {column._meta.db_column_name for column in table.columns}
            left = sorted(
                (t for t in gone if not renamed.was_renamed_from(t.class_name)),
                # The same class under another name of the table is a rename for sure, so it is looked at first.
                key=lambda t: (t.class_name != table.class_name, t.class_name),
            )
            for old in left:
                if not columns & {column._meta.db_column_name for column in old.columns}:
                    continue
                if old.class_name == table.class_name or self._agreed(
                    f"Did you rename {old.class_name} (tablename: {old.tablename}) to "
                    f"{table.class_name} (tablename: {table.tablename})? (y/N)"
                ):
                    if old.tablename != table.tablename:
                        refuse_table_rename(old, table)
                    renamed.append(
                        RenameTable(
                            old_class_name=old.class_name,
                            old_tablename=old.tablename,
                            new_class_name=table.class_name,
                            new_tablename=table.tablename,
                            schema=table.schema,
                        )
                    )
                    break
        return renamed

    def _agreed(self, question: str) -> bool:
        return (self.auto_input or input(question)).lower() == "y"

    def check_renamed_columns(self) -> RenameColumnCollection:
        """As Piccolo does, but a column that keeps its name in the database is not asked about.

        The table has its new name when its columns are renamed.
        """
        renamed = RenameColumnCollection()
        for table in self.schema:
            if (before := self.schema_snapshot_map.get(table.class_name)) is None:
                continue
            delta = table - before
            left = {column.column_name: column_of(before, column.column_name) for column in delta.drop_columns}
            for added in delta.add_columns:
                new = column_of(table, added.column_name)
                # The same column under another name in Python is a rename for sure, so it is looked at first.
                for old in sorted(left.values(), key=lambda c: c._meta.db_column_name != new._meta.db_column_name):
                    same = old._meta.db_column_name == new._meta.db_column_name
                    if not same and not (
                        alike(old, new)
                        and self._agreed(
                            f"Did you rename the `{old._meta.db_column_name}` column to "
                            f"`{new._meta.db_column_name}` on the `{table.class_name}` table? (y/N)"
                        )
                    ):
                        continue
                    if not same:
                        refuse_column_rename(old, new, table.class_name)
                    refuse_change(old, new, table.class_name)
                    renamed.append(
                        RenameColumn(
                            table_class_name=table.class_name,
                            tablename=table.tablename,
                            old_column_name=old._meta.name,
                            new_column_name=new._meta.name,
                            old_db_column_name=old._meta.db_column_name,
                            new_db_column_name=new._meta.db_column_name,
                            schema=table.schema,
                        )
                    )
                    del left[old._meta.name]
                    break
        return renamed

    # -- declared objects ------------------------------------------------------------------------------------------

    def get_alter_statements(self) -> list[AlterStatements]:
        """Piccolo's statements, then ours; the step runs them in its own order."""
        moves = {
            full_name(r.schema, r.old_tablename): full_name(r.schema, r.new_tablename)
            for r in self.rename_tables_collection.rename_tables
        } | {
            full_name(c.old_schema, c.tablename): full_name(c.new_schema, c.tablename)
            for c in self.table_schema_changes_collection.collection
        }
        existing = {full_name(t.schema, t.tablename) for t in self.schema_snapshot} & {
            full_name(t.schema, t.tablename) for t in self.schema
        }
        operations = object_changes(self.objects_before, self.objects, moves=moves, existing=existing)
        statements = super().get_alter_statements()
        for label, cls in (
            ("Dropped objects", Drop),
            ("Renamed objects", Rename),
            ("Replaced objects", Replace),
            ("Added objects", Add),
        ):
            found = AlterStatements()
            for operation in operations:
                if isinstance(operation, cls):
                    found.extend(render(operation))
            print(f"{label.ljust(40)} {len(found.statements)}")
            statements.append(found)
        return statements


def object_changes(
    before: Iterable[SchemaObject],
    after: Iterable[SchemaObject],
    *,
    moves: dict[str, str],
    existing: set[str],
) -> list[Operation]:
    """What turns the objects of before into those of after, in a fixed order."""
    # Objects follow a table that is renamed, so they are compared under its new name and dropped under the old.
    old = {item.moved(moves).key: item for item in sort_objects(before)}
    new = {item.key: item for item in sort_objects(after)}
    gone = {key: item for key, item in old.items() if key not in new and not by_hand(item)}
    made = {key: item for key, item in new.items() if key not in old}
    operations: list[Operation] = []
    for key, item in new.items():
        if key in old and (was := old[key].moved(moves)) != item:
            if isinstance(item, Partitions) and isinstance(was, Partitions):
                raise MigrationError(
                    f"{item.table} is partitioned by {was.by}, and PostgreSQL cannot change that to {item.by}. "
                    "Make a new table and copy the rows."
                )
            if was.replace(item) is not None and item.replace(was) is not None:
                operations.append(Replace(was, item))
            else:
                gone[key] = old[key]
                made[key] = item
    for key, item in list(made.items()):
        # The same object under another name keeps its index, its rows, and what refers to it.
        for was_key, was in list(gone.items()):
            moved = was.moved(moves)
            if key.kind == was_key.kind and key.table == was_key.table and same_but_name(moved, item):
                operations.append(Rename(moved, item.title))
                del gone[was_key], made[key]
                break
    for item in (*gone.values(), *made.values()):
        if isinstance(item, Partitions) and item.table in existing:
            raise MigrationError(
                f"PostgreSQL cannot partition {item.table}, or undo it, while the table exists. "
                "Make a new table and copy the rows."
            )
    operations += [Drop(beside_writers(item, existing)) for item in reversed(sort_objects(gone.values()))]
    operations += [Add(beside_writers(item, existing)) for item in sort_objects(made.values())]
    return operations


def beside_writers(item: SchemaObject, existing: set[str]) -> SchemaObject:
    """An index of a table that may hold rows, built while they are written. A unique one can fail when the rest of its
    step is done, so its author says whether it may.
    """
    if isinstance(item, Index) and not item.unique and item.table in existing:
        return dataclasses.replace(item, concurrently=True)
    return item


def by_hand(item: SchemaObject) -> bool:
    """Whether a person wrote it into a step: no table ever declared it, so none ceased to."""
    return isinstance(item, Statement) and not item.declared


def same_but_name(old: SchemaObject, new: SchemaObject) -> bool:
    """Whether a rename is all it takes."""
    if old.rename("x") is None or not old.table:
        return False
    return {**old.fields(), "name": ""} == {**new.fields(), "name": ""}


def render(operation: Operation) -> AlterStatements:
    """An operation as a line of a step."""
    classes = []
    if isinstance(operation, Add):
        new = operation.new
        new = dataclasses.replace(new, declared=True) if isinstance(new, Statement) else new
        line = f"manager.add_{new.kind}({new.arguments()})"
    elif isinstance(operation, Drop):
        line = f"manager.drop_{operation.old.kind}({operation.old.arguments()})"
    elif isinstance(operation, Replace):
        classes = [type(operation.new)]
        line = f"manager.replace_{operation.new.kind}(old={operation.old.as_python()}, new={operation.new.as_python()})"
    else:
        classes = [type(operation.old)]
        line = f"manager.rename_object({operation.old.as_python()}, name={operation.name!r})"
    imports = [Import(module="core.schema", target=cls.__name__) for cls in classes]
    return AlterStatements(statements=[line], extra_imports=imports)


class AutoMigrationManager(PiccoloAutoMigrationManager):
    """Gathers both sides and asks the differ."""

    async def get_alter_statements(self, app_config: AppConfig) -> list[AlterStatements]:
        """Everything that a new step of the app must say."""
        tables = in_dependency_order(app_config.table_classes)
        bound = [item for table in tables for item in objects_of(table)]
        return await self.changes(app_config, tables, [*shared_objects(app_config.app_name), *bound])

    async def changes(
        self, app_config: AppConfig, tables: list[type[Table]], objects: list[SchemaObject]
    ) -> list[AlterStatements]:
        """The same for a given part of the app."""
        managers = await self.get_migration_managers(app_config=app_config)
        for manager in managers:
            if isinstance(manager, MigrationManager):
                manager.check()
        snapshot = SchemaSnapshot(managers)
        verify(objects)
        differ = SchemaDiffer(
            schema=[diffable(table) for table in tables],
            schema_snapshot=snapshot.get_snapshot(),
            auto_input=self.auto_input,
            objects=objects,
            objects_before=snapshot.objects(),
        )
        return differ.get_alter_statements()
