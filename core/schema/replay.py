"""What a sequence of steps made: Piccolo's tables, and the declared objects beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from piccolo.apps.migrations.auto import DiffableTable
from piccolo.apps.migrations.auto import SchemaSnapshot as PiccoloSchemaSnapshot
from piccolo.columns import Column

from core.schema.declarations import constraint_of
from core.schema.migration import MigrationManager
from core.schema.object import Key, SchemaObject
from core.schema.operation import Drop
from core.schema.quoting import full_name

__all__ = ["SchemaSnapshot", "named_once"]


@dataclass
class SchemaSnapshot(PiccoloSchemaSnapshot):
    """Piccolo's tables, and the declared objects, after a sequence of steps."""

    def get_snapshot(self) -> list[DiffableTable]:
        """The tables; their CHECK and UNIQUE constraints are among ``objects``."""
        tables = super().get_snapshot()
        for table in tables:
            table.constraints = [c for c in table.constraints if constraint_of(c) is None]
            table.columns = [named_once(column) for column in table.columns]
        return tables

    def objects(self) -> list[SchemaObject]:
        """The declared objects, wherever their tables have been moved to."""
        objects: dict[Key, SchemaObject] = {}
        for manager in sorted(self.managers, key=lambda manager: manager.migration_id):
            operations = manager.operations if isinstance(manager, MigrationManager) else []
            for drop in operations:
                if isinstance(drop, Drop):
                    drop.apply(objects)
            self._replay_piccolo(manager, objects)
            for operation in operations:
                if not isinstance(operation, Drop):
                    operation.apply(objects)
        return list(objects.values())

    @staticmethod
    def _replay_piccolo(manager: Any, objects: dict[Key, SchemaObject]) -> None:
        """Constraints that a step of Piccolo's own added, and tables that moved."""
        moves = {
            full_name(r.schema, r.old_tablename): full_name(r.schema, r.new_tablename) for r in manager.rename_tables
        } | {
            full_name(c.old_schema, c.tablename): full_name(c.new_schema, c.tablename)
            for c in manager.change_table_schemas
        }
        if moves:
            moved = [item.moved(moves) for item in objects.values()]
            objects.clear()
            objects.update((item.key, item) for item in moved)
        for dropped in manager.drop_constraints.drop_constraints:
            table = full_name(dropped.schema, dropped.tablename)
            for kind in ("check", "unique"):
                objects.pop(Key(kind, table, dropped.constraint_name), None)
        for added in manager.add_constraints.add_constraints:
            if (item := constraint_of(added.constraint)) is not None:
                bound = item.bind(added.schema, added.tablename)
                objects[bound.key] = bound


def named_once(column: Column) -> Column:
    """A copy whose name in the database stands in one place. Piccolo has it among the parameters too, as written."""
    copied = column.copy()
    copied._meta.params["db_column_name"] = None
    return copied
