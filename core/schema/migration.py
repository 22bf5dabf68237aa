"""The migration manager that generated steps use.

Forwards: what hangs on tables goes; what tables need comes; Piccolo's tables and columns change; what hangs on tables
comes; what tables needed goes. Backwards is the mirror of that, statement for statement.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
from piccolo.apps.migrations.auto.migration_manager import AlterColumnCollection
from piccolo.apps.migrations.auto.migration_manager import MigrationManager as PiccoloMigrationManager
from piccolo.columns import Column, ForeignKey
from piccolo.table import Table, create_table_class

from core import schema
from core.errors import MigrationError
from core.schema.declarations import full_name, topological
from core.schema.lock import migrating
from core.schema.object import Kind, SchemaObject
from core.schema.operation import Add, Drop, Operation, Rename, Replace
from core.schema.partition import Partitions
from core.schema.quoting import qualified
from core.schema.run import preview, run
from core.schema.step import Piece, Raw, Step

__all__ = ["KINDS", "MigrationManager"]

KINDS: dict[str, type[SchemaObject]] = {
    cls.kind: cls
    for cls in vars(schema).values()
    if isinstance(cls, type) and issubclass(cls, SchemaObject) and hasattr(cls, "kind")
}


@dataclass
class MigrationManager(PiccoloMigrationManager):
    """Piccolo's, and ``add_policy``, ``drop_index``, ``replace_function`` ... for every kind of declared object."""

    operations: list[Operation] = field(default_factory=list)
    irreversible_because: str = ""

    # -- what a step says ------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Callable[..., None]:
        verb, _, kind = name.partition("_")
        if kind not in KINDS or verb not in {"add", "drop", "replace", "rename"}:
            raise AttributeError(f"A migration manager has no {name}.")
        return cast("Callable[..., None]", getattr(self, f"_{verb}_object").__get__(kind))

    @classmethod
    def of(cls, manager: PiccoloMigrationManager) -> MigrationManager:
        """Any manager as one of ours: the steps of Piccolo's own apps get the same transaction and order."""
        if isinstance(manager, cls):
            return manager
        values = {f.name: getattr(manager, f.name) for f in dataclasses.fields(PiccoloMigrationManager)}
        return cls(**values, irreversible_because="" if manager.raw_backwards or not manager.raw else "foreign")

    def irreversible(self, reason: str) -> None:
        """Say that the raw steps have no way back, and why. ``backwards`` then stops here with that reason."""
        if not reason.strip():
            raise MigrationError(f"Step {self.migration_id} is irreversible for no reason. Write it down.")
        self.irreversible_because = reason
