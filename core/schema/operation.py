"""What a step does to declared objects: add, drop, replace, rename. Each knows its way back.

``subject`` is the object as it is afterwards, or the one that goes; ``creates`` what is made anew, which may need a
gentler form on a populated table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from core.errors import MigrationError
from core.schema.object import Key, SchemaObject

__all__ = ["Add", "Drop", "Operation", "Rename", "Replace"]


@dataclass(frozen=True)
class Add:
    """A new object."""

    new: SchemaObject

    @property
    def subject(self) -> SchemaObject:
        return self.new

    def forwards(self) -> tuple[str, ...]:
        return self.new.create()

    def backwards(self) -> tuple[str, ...]:
        return self.new.drop()

    def creates(self, *, backwards: bool) -> SchemaObject | None:
        return None if backwards else self.new

    def apply(self, objects: dict[Key, SchemaObject]) -> None:
        objects[self.new.key] = self.new


@dataclass(frozen=True)
class Drop:
    """An object that goes; its full definition stands in the step, so that the step can bring it back."""

    old: SchemaObject

    @property
    def subject(self) -> SchemaObject:
        return self.old

    def forwards(self) -> tuple[str, ...]:
        return self.old.drop()

    def backwards(self) -> tuple[str, ...]:
        return self.old.create()

    def creates(self, *, backwards: bool) -> SchemaObject | None:
        return self.old if backwards else None

    def apply(self, objects: dict[Key, SchemaObject]) -> None:
        objects.pop(self.old.key, None)


@dataclass(frozen=True)
class Replace:
    """An object that changes in place, because others hang on it."""

    old: SchemaObject
    new: SchemaObject

    @property
    def subject(self) -> SchemaObject:
        return self.new

    def forwards(self) -> tuple[str, ...]:
        return self._turn(self.old, self.new)

    def backwards(self) -> tuple[str, ...]:
        return self._turn(self.new, self.old)

    @staticmethod
    def _turn(old: SchemaObject, new: SchemaObject) -> tuple[str, ...]:
        statements = new.replace(old)
        if statements is None:
            raise MigrationError(f"The {old} cannot be changed in place. Drop the old one and add the new one.")
        return statements

    def creates(self, *, backwards: bool) -> SchemaObject | None:
        return None

    def apply(self, objects: dict[Key, SchemaObject]) -> None:
        objects.pop(self.old.key, None)
        objects[self.new.key] = self.new


@dataclass(frozen=True)
class Rename:
    """An object that keeps everything but its name."""

    old: SchemaObject
    name: str

    @property
    def subject(self) -> SchemaObject:
        return dataclasses.replace(self.old, name=self.name)  # type: ignore[call-arg]  # every kind with rename has it

    def forwards(self) -> tuple[str, ...]:
        return self.old.rename(self.name) or ()

    def backwards(self) -> tuple[str, ...]:
        return self.subject.rename(self.old.title) or ()

    def creates(self, *, backwards: bool) -> SchemaObject | None:
        return None

    def apply(self, objects: dict[Key, SchemaObject]) -> None:
        objects.pop(self.old.key, None)
        objects[self.subject.key] = self.subject


Operation = Add | Drop | Replace | Rename
