"""Defaults of columns as SQL: Piccolo puts quotes around a text, and leaves those in it as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from piccolo.columns import Column

from core.schema.quoting import quote_literal

__all__ = ["quote_defaults"]


def quote_defaults() -> None:
    """Have the values that Piccolo writes into DDL quoted. Calling it twice is fine."""
    column: Any = Column
    if not hasattr(column.get_sql_value, "__wrapped__"):
        column.get_sql_value = quoted(column.get_sql_value)


def quoted(original: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(original)
    def get_sql_value(self: Column, value: Any, delimiter: str = "'") -> str:
        if isinstance(value, str) and delimiter == '"':  # in an array
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if isinstance(value, str):
            return quote_literal(value)
        text = original(self, value, delimiter)
        return quote_literal(text[1:-1]) if isinstance(value, list) and delimiter == "'" else text

    return get_sql_value
