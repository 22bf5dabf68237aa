"""New keys for old, while the application runs: data keys (``data``), their wrapping (``kek``), their end (``retire``).

And hashes for rows that are older than their blind index (``indexes``).

Key work runs as the schema's owner, on a connection of its own, in the name of an admin of the tenant.
"""

from __future__ import annotations

from core.rotation.data import Outcome, rotate
from core.rotation.indexes import Reindexed, reindex
from core.rotation.kek import Rewrapped, rewrap
from core.rotation.owner import Target, acting, key_lock, owner_connection, sweep
from core.rotation.retire import Destroyed, retire, used_in_log

__all__ = [
    "Destroyed",
    "Outcome",
    "Reindexed",
    "Rewrapped",
    "Target",
    "acting",
    "key_lock",
    "owner_connection",
    "reindex",
    "retire",
    "rewrap",
    "rotate",
    "sweep",
    "used_in_log",
]
