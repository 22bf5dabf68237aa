"""What an instance of a table is made of, worked out once: rows become objects by the thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

from piccolo.columns import JSON, Array, Bytea, Column
from piccolo.columns.defaults.base import Default

from core.columns import FIXED, ActorId, BlindIndex, CreatedAt, EncryptedJSON, TenantId

__all__ = ["Field", "Layout"]

# What the database or the engine fills in.
KEPT = (TenantId, ActorId, CreatedAt, BlindIndex)
# What the database or the keys make of a new row, whatever was given.
MADE = (ActorId, CreatedAt, BlindIndex)
# What can be changed in place, or holds what can.
MUTABLE = (dict, list, tuple, bytearray)


@dataclass(frozen=True, slots=True)
class Field:
    """A column as an instance sees it."""

    name: str
    db_name: str
    default: Callable[[], Any]
    required: bool


class Layout:
    """The fields of a table's instances."""

    __slots__ = ("_documents", "_hidden", "_mutable", "fields", "made", "recorded", "renamed", "shown")

    def __init__(self, columns: list[Column]) -> None:
        self.fields = [
            Field(
                name=c._meta.name,
                db_name=c._meta.db_column_name,
                default=_default(c),
                required=not (c._meta.null or isinstance(c, KEPT)),
            )
            for c in columns
        ]
        self.shown = tuple(c for c in columns if not isinstance(c, BlindIndex))
        self.recorded = [c for c in columns if not isinstance(c, FIXED)]
        self.made = {c._meta.name: None for c in columns if isinstance(c, MADE)}
        self.renamed = any(field.name != field.db_name for field in self.fields)
        self._hidden = {c._meta.name: None for c in columns if isinstance(c, BlindIndex)}
        self._documents = [c._meta.name for c in columns if isinstance(c, (EncryptedJSON, JSON, Array))]
        self._mutable = [*self._documents, *(c._meta.name for c in columns if isinstance(c, Bytea))]

    def snapshot(self, values: dict[str, Any]) -> dict[str, Any]:
        """A copy of the values that stays what it is when a document among them is edited in place."""
        kept = dict(values)
        for name in self._mutable:
            value = kept.get(name)
            if isinstance(value, MUTABLE):
                kept[name] = _copied(value)
        return kept

    def same(self, name: str, stored: Any, value: Any) -> bool:
        """Whether a value is the one that is stored. Python calls 1 and True equal, a document does not."""
        if isinstance(stored, Decimal) and isinstance(value, Decimal):
            return stored.as_tuple() == value.as_tuple()  # 1.0 and 1.00 are equal, and not the same
        return bool(stored == value) and (name not in self._documents or _typed(stored) == _typed(value))

    def state(self, row: dict[str, Any]) -> dict[str, Any]:
        """The ``__dict__`` of an instance for a whole row out of the database; the row itself is what was stored."""
        state = {**self._hidden, **row, "_exists_in_db": True, "_was_created": None, "_stored": row}
        for name in self._mutable:
            value = row[name]
            if isinstance(value, MUTABLE):
                row[name] = _copied(value)
        return state


def _typed(value: Any) -> Any:
    """A document's values, each with its type."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_typed(inner) for inner in value]
    return type(value), value


def _copied(value: Any) -> Any:
    """A JSON document of its own; ``copy.deepcopy`` takes ten times as long."""
    if isinstance(value, dict):
        return {key: _copied(item) if isinstance(item, MUTABLE) else item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) if isinstance(item, MUTABLE) else item for item in value)
    return bytes(value)


def _default(column: Column) -> Callable[[], Any]:
    """What makes the column's default value, decided once."""
    default: Any = getattr(column, "default", None)
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, Default):
        default = default.python
    if callable(default):
        made: Callable[[], Any] = default
        return made
    return lambda: default
