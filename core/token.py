"""The signed context: who acts, for which tenant, until when. Bytes only; knows neither Piccolo nor PostgreSQL.

Threat: whoever can run SQL as the application's role can also run ``set_config``. A plain setting would let one SQL
injection name any tenant and any actor. So the setting holds a token, signed here with HMAC-SHA-256 (RFC 2104) and
checked inside PostgreSQL by ``charthold.scope()`` with a key which the application's role cannot read. It names one
backend and an end, so a token seen on one connection is worthless on another, and soon worthless there.

Layout, fixed width so that PostgreSQL takes it apart with ``substr``::

    mac 64 hex | key id 8 hex | expiry 10 digits | backend pid 10 digits | tenant 36 | actor 36
    | request id, source ip, reason, with U+001F between them

In an emergency (``core/compliance/emergencies.py``) its id stands in the actor's place, as ``emer`` and 32 hex digits,
so that it is never taken for a user's; the actor stands behind the reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.crypto.derive import Hmac, hmac_pads

__all__ = ["ANY_BACKEND", "TokenKey"]

ANY_BACKEND = 0
SEPARATOR = "\x1f"  # not printable, so in no field of a scope


@dataclass(frozen=True)
class TokenKey:
    """A key that signs contexts. ``id`` is public; the pads are what ``charthold.token_key`` keeps."""

    id: str
    inner_pad: bytes = field(repr=False)
    outer_pad: bytes = field(repr=False)
    _hmac: Hmac = field(init=False, repr=False, compare=False)

    @classmethod
    def derive(cls, master_key: bytes, generation: int = 1) -> TokenKey:
        """A master key's token key of that generation: HKDF-SHA-256 (RFC 5869). Nobody can tell one from another."""
        info = f"charthold/v1/token/{generation}".encode()
        key = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(master_key)
        return cls(hashlib.sha256(b"charthold/v1/token-id" + key).hexdigest()[:8], *hmac_pads(key))

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hmac", Hmac(self.inner_pad, self.outer_pad))

    def sign(
        self,
        *,
        tenant: UUID,
        actor: UUID,
        expires: int,
        backend: int,
        request_id: str = "",
        source_ip: str = "",
        reason: str = "",
        emergency: UUID | None = None,
    ) -> str:
        """The token for one backend; ``expires`` in seconds since 1970, ``backend`` a pid or ``ANY_BACKEND``."""
        said = f"{request_id}{SEPARATOR}{source_ip}{SEPARATOR}{reason}"
        who = f"{actor}{said}" if emergency is None else f"emer{emergency.hex}{said}{SEPARATOR}{actor}"
        payload = f"{self.id}{expires:010d}{backend:010d}{tenant}{who}"
        return self._hmac.mac(payload.encode()).hex() + payload
