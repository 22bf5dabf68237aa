"""UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits. Rows of a table sort by birth.

Made in Python because an envelope is bound to its row's id before the row exists, and because PostgreSQL makes
them itself only from version 18.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

__all__ = ["uuid7"]

VERSION_AND_VARIANT = (7 << 76) | (2 << 62)
RANDOM_BITS = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)


def uuid7() -> UUID:
    """A new identifier. Two made in one millisecond are in no order."""
    milliseconds = time.time_ns() // 1_000_000
    return UUID(int=milliseconds << 80 | VERSION_AND_VARIANT | int.from_bytes(os.urandom(10), "big") & RANDOM_BITS)
