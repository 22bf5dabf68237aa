"""What tests ask of keys, envelopes and trees, and nothing in Charthold does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag

from core.audit.merkle import Frontier
from core.crypto.blind import BlindSpec
from core.crypto.derive import forgetful
from core.crypto.envelope import BODY, HEADER_BYTES, SealingKey, is_envelope
from core.crypto.keyring import Keyring
from core.crypto.sealer import RowSealer
from core.crypto.values import Kind, decoder, encoder
from core.errors import SealedValueError


def forget_all(keyring: Keyring) -> None:
    """Drop every tenant's keys."""
    for tenant in list(keyring._entries):
        keyring.forget(tenant)


@forgetful
def encode(value: object, kind: Kind) -> bytes:
    """The padded plaintext of a value."""
    return encoder(kind)(value)


@forgetful
def decode(plaintext: bytes, kind: Kind) -> Any:
    """The value of a padded plaintext."""
    return decoder(kind)(plaintext)


def seal(key: SealingKey, aad: bytes, plaintext: bytes, nonce: bytes) -> bytes:
    """Seal a padded plaintext."""
    return b"".join((key.header, nonce, key.encrypt(nonce, plaintext, aad)))


def open_(key: SealingKey, aad: bytes, envelope: bytes) -> bytes:
    """The padded plaintext of an envelope of this key and place."""
    if is_envelope(envelope) and envelope[:HEADER_BYTES] == key.header:
        try:
            return key.decrypt(envelope[HEADER_BYTES:BODY], envelope[BODY:], aad)
        except InvalidTag:
            pass
    raise SealedValueError("An envelope does not open: it was altered, moved, or sealed under another key.")


def key_version(envelope: bytes) -> int:
    """The key version that an envelope names."""
    return int.from_bytes(envelope[1:5], "big")


def normalised(spec: BlindSpec, value: object) -> bytes | None:
    """The bytes that are digested."""
    return spec._normalised(value)


def seal_one(sealer: RowSealer, row_id: UUID, values: Sequence[object]) -> list[bytes | None]:
    """The envelopes of one row's values."""
    return sealer.seal_many([(row_id, values)])[0]


def tree_hash(leaves: Iterable[bytes]) -> bytes:
    """The root over these leaf hashes."""
    tree = Frontier()
    tree.extend(leaves)
    return tree.root()
