"""Two branches changed the same object from the same state: whichever step runs last undoes the other.

Each step carries what it replaces, so that it can go back. A function's text is replaced as a whole: of two steps from
one state the second brings back what the first had changed, such as a trigger that does not record a new column.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import MigrationError
from core.schema.migration import MigrationManager
from core.schema.object import Key, SchemaObject
from core.schema.operation import Drop, Replace

__all__ = ["refuse_branches"]


def refuse_branches(app_name: str, ran: Sequence[MigrationManager], waiting: Sequence[MigrationManager]) -> None:
    """Raise when a waiting step replaces what is not there, and no later step replaces that again."""
    objects: dict[Key, SchemaObject] = {}
    changed: dict[Key, str] = {}  # by which step
    clashes: dict[Key, tuple[str, str]] = {}
    for manager in (*ran, *waiting):
        # As in a snapshot: what is dropped goes first.
        for operation in sorted(manager.operations, key=lambda operation: not isinstance(operation, Drop)):
            key = operation.subject.key
            clashes.pop(key, None)
            if isinstance(operation, Replace) and manager in waiting:
                there = objects.get(operation.old.key)
                if there not in (None, operation.old, operation.new):
                    clashes[key] = changed[operation.old.key], manager.migration_id
            operation.apply(objects)
            changed[key] = manager.migration_id
    for key, (first, second) in clashes.items():
        raise MigrationError(
            f"Steps {first} and {second} both change the {key.kind} {key.name} from the same state, so the "
            f"second would undo the first. Delete {second}, and write it anew: piccolo migrations new {app_name} --auto"
        )
