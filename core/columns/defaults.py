"""Columns that take no default: each row is given its value."""

from __future__ import annotations

from typing import Any

from piccolo.columns import Column

from core.errors import ConfigurationError

__all__ = ["refuse_default"]


def refuse_default(column: Column, given: dict[str, Any]) -> None:
    """Raise ``ConfigurationError`` for a default that somebody gave to a column which takes none."""
    if given.get("default") is not None:
        raise ConfigurationError(f"{type(column).__name__} takes no default. Give the value when you make a row.")
