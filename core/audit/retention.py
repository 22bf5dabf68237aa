"""How long records of the log are kept: six years at least, 164.316(b)(2)(i), and longer where a tenant says so."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["kept_since"]

LEAST_YEARS = 6  # whatever the tenant's row says


def kept_since(years: int) -> datetime:
    """Since when every record must still be there, for a tenant that keeps its records for so many years."""
    now = datetime.now(UTC)
    return now.replace(year=now.year - max(LEAST_YEARS, years), day=min(now.day, 28))
