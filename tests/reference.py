"""What tests ask of keys, envelopes and trees, and nothing in Charthold does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from core.audit.merkle import Frontier
from core.crypto.blind import BlindSpec
from core.crypto.keyring import Keyring
from core.crypto.sealer import RowSealer


def forget_all(keyring: Keyring) -> None:
    """Drop every tenant's keys."""
    for tenant in list(keyring._entries):
        keyring.forget(tenant)


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
