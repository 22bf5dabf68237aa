"""A tenant's data key, and what is derived from it.

Threat: one key used for two purposes lets a weakness of one reach the other, and a leaked index key must not
open anything. So the data key itself encrypts nothing: HKDF gives one key for sealing and one for each blind
index. Python cannot wipe memory; what it can do is hold a key in one object that prints nothing and ends with
its cache entry.
"""

from __future__ import annotations

import os
from uuid import UUID

from core.crypto.blind import IndexKey
from core.crypto.derive import KEY_BYTES, Secret, forgetful, hkdf
from core.crypto.envelope import SealingKey, envelope_header
from core.errors import KeyProviderError

__all__ = ["DataKey", "new_data_key"]

ENCRYPT_LABEL = b"charthold/v1/encrypt"
INDEX_LABEL = b"charthold/v1/index/"


def new_data_key() -> bytes:
    """32 bytes from the operating system, to be wrapped by a ``KeyProvider`` and then dropped."""
    return os.urandom(KEY_BYTES)


class DataKey(Secret):
    """One version of one tenant's data key; derived keys are made on first use and kept."""

    __slots__ = ("_indexes", "_material", "_sealing", "tenant_id", "version")

    @forgetful
    def __init__(self, tenant_id: UUID, version: int, material: bytes) -> None:
        if not isinstance(material, bytes) or len(material) != KEY_BYTES:
            raise KeyProviderError("A data key is 32 bytes, and the provider unwrapped something else.")
        self.tenant_id = tenant_id
        self.version = version
        self._material = material
        envelope_header(version)  # refuses a version out of range
        self._sealing: SealingKey | None = None
        self._indexes: dict[str, IndexKey] = {}

    def __repr__(self) -> str:
        return f"<DataKey tenant={self.tenant_id} version={self.version}>"

    def sealing(self) -> SealingKey:
        """The AES-256-GCM key of this version."""
        if self._sealing is None:
            self._sealing = SealingKey(self.version, self._derive(ENCRYPT_LABEL))
        return self._sealing

    def index(self, label: str) -> IndexKey:
        """The HMAC key of one blind index; ``BlindSpec.label`` makes the label."""
        key = self._indexes.get(label)
        if key is None:
            key = self._indexes[label] = IndexKey(self._derive(INDEX_LABEL + label.encode()))
        return key

    def _derive(self, label: bytes) -> bytes:
        return hkdf(self._material, label, self.tenant_id.bytes, self.version.to_bytes(4, "big"))
