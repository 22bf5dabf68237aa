"""A number and its noun."""

from __future__ import annotations

__all__ = ["plural"]


def plural(count: int, noun: str, nouns: str = "") -> str:
    """``1 table``, ``2 tables``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
