"""What a verification found, signed, so that the doctor can believe the record of it.

Threat: whoever may write such a record claims that the log was verified, and was good. So only what the seal's key
signed counts, with the moment that was signed: a genuine one can be repeated, but not made younger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from core.audit.head import SealKey
from core.crypto.derive import length_prefixed

__all__ = ["Attestation"]

LABEL = b"charthold.v1.attestation"


class Attestation(NamedTuple):
    """Whether a tenant's log, of so many records, was as it was sealed, at that moment."""

    tenant: UUID
    good: bool
    records: int
    at: datetime

    def signed(self, key: SealKey) -> dict[str, Any]:
        """As JSON data, for the record."""
        return {
            "good": self.good,
            "records": self.records,
            "at": self.at.astimezone(UTC).isoformat(),
            "key_id": key.id,
            "signature": key.sign_bytes(self._signed_bytes()).hex(),
        }

    @classmethod
    def read(cls, tenant: UUID, text: str, keys: Mapping[str, bytes]) -> Attestation | None:
        """The attestation of that tenant's log in that JSON, if one of these public keys, by id, made its signature."""
        try:
            said = json.loads(text)
            found = cls(tenant, said["good"] is True, int(said["records"]), datetime.fromisoformat(said["at"]))
            key = Ed25519PublicKey.from_public_bytes(keys[said["key_id"]])
            key.verify(bytes.fromhex(said["signature"]), found._signed_bytes())
        except (InvalidSignature, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return found

    def _signed_bytes(self) -> bytes:
        at = self.at.astimezone(UTC).isoformat().encode()
        return length_prefixed(LABEL, self.tenant.bytes, bytes([self.good]), self.records.to_bytes(8, "big"), at)
