"""The signed head of a tenant's tree: what it says, how it is signed, how it is checked.

Threat: the owner of the database can rewrite the log and every hash beside it. What cannot be rewritten is a signature,
because its key comes from the master key, which the database never sees. Whoever holds both, the database and the
master key, can sign a new past: only a head that was exported before shows it (``docs/audit-log.md``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from core.audit.merkle import HASH_BYTES, Frontier
from core.crypto.derive import Secret, hkdf, length_prefixed
from core.crypto.kms import master_key
from core.errors import ChartholdError
from core.settings import Settings

__all__ = ["HEAD_COLUMNS", "NO_HEAD", "SealKey", "TreeHead", "leaf_list_hash", "public_keys"]

HEAD_LABEL = b"charthold.v1.tree-head"
KEY_LABEL = b"charthold/v1/seal"
FORMAT = "charthold.tree-head.v1"
NO_HEAD = bytes(HASH_BYTES)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class TreeHead:
    """A head. The names are those of the columns of ``audit_seal``."""

    tenant_id: UUID
    version: int  # of the records' canonical form
    tree_size: int  # how many records
    root_hash: bytes
    era: int  # counts the servers on which the tree grew, from 1: transaction ids begin again on a new one
    cluster: int  # PostgreSQL's identifier of that server's data
    horizon: int  # every record of this era with a lower transaction id is in the tree
    sealed_at: datetime
    leaf_list: bytes  # hash of the ids and the leaf hashes of the records since the head before
    previous: bytes  # hash of the head before, ``NO_HEAD`` for the first
    key_id: str
    signature: bytes

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The head in a row of ``audit_seal``."""
        return cls(**{name: row[name] for name in HEAD_COLUMNS.split(", ")})

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return length_prefixed(
            HEAD_LABEL,
            self.tenant_id.bytes,
            self.version.to_bytes(8, "big"),
            self.tree_size.to_bytes(8, "big"),
            self.root_hash,
            self.era.to_bytes(8, "big"),
            self.cluster.to_bytes(8, "big", signed=True),
            self.horizon.to_bytes(8, "big"),
            ((self.sealed_at - EPOCH) // MICROSECOND).to_bytes(8, "big", signed=True),
            self.leaf_list,
            self.previous,
            self.key_id.encode(),
        )

    def digest(self) -> bytes:
        """What the next head names as its ``previous``."""
        return hashlib.sha256(length_prefixed(self.signed_bytes(), self.signature)).digest()

    def is_signed_by(self, keys: Mapping[str, bytes]) -> bool:
        """Whether one of these public keys, by id, made the signature."""
        key = keys.get(self.key_id)
        if key is None:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(self.signature, self.signed_bytes())
        except (InvalidSignature, ValueError, OverflowError):
            return False
        return True

    def fits(self, frontier: bytes) -> bool:
        """Whether this right edge is that of the signed tree."""
        try:
            return Frontier.from_bytes(self.tree_size, frontier).root() == self.root_hash
        except ValueError:
            return False

    def to_json(self) -> dict[str, Any]:
        """For an exported file or a proof."""
        return {"format": FORMAT} | {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """A head out of a file. Raises ``ChartholdError`` when it is none."""
        try:
            if given["format"] != FORMAT:
                raise ChartholdError(f"This file holds no heads of the format {FORMAT}.")
            return cls(
                tenant_id=UUID(given["tenant_id"]),
                version=int(given["version"]),
                tree_size=int(given["tree_size"]),
                root_hash=bytes.fromhex(given["root_hash"]),
                era=int(given["era"]),
                cluster=int(given["cluster"]),
                horizon=int(given["horizon"]),
                sealed_at=datetime.fromisoformat(given["sealed_at"]),
                leaf_list=bytes.fromhex(given["leaf_list"]),
                previous=bytes.fromhex(given["previous"]),
                key_id=str(given["key_id"]),
                signature=bytes.fromhex(given["signature"]),
            )
        except (KeyError, ValueError, TypeError):
            raise ChartholdError(f"A head in this file is not of the format {FORMAT}.") from None


HEAD_COLUMNS = ", ".join(field.name for field in fields(TreeHead))


class SealKey(Secret):
    """The key that signs heads; derived from a master key, so that there is nothing new to configure."""

    __slots__ = ("_private", "id", "public")

    def __init__(self, master: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(hkdf(master, KEY_LABEL))
        self.public = self._private.public_key().public_bytes_raw()
        self.id = key_id_of(self.public)

    def sign(self, **said: Any) -> TreeHead:
        """A head that says so."""
        head = TreeHead(**said, key_id=self.id, signature=b"")
        return TreeHead(**said, key_id=self.id, signature=self.sign_bytes(head.signed_bytes()))

    def sign_bytes(self, data: bytes) -> bytes:
        """The signature, 64 bytes. What is signed begins with a label of its kind."""
        return self._private.sign(data)


def key_id_of(public: bytes) -> str:
    """A public key's short name."""
    return hashlib.sha256(public).hexdigest()[:16]


def public_keys(settings: Settings) -> dict[str, bytes]:
    """The public keys, by id, whose heads are believed: of the master key, of retired ones, of those that are gone."""
    masters = (master_key(settings), *settings.retired_master_keys)
    publics = [*settings.retired_seal_keys, *(SealKey(master).public for master in masters)]
    return {key_id_of(public): public for public in publics}


def leaf_list_hash(record_ids: Iterable[UUID], leaf_hashes: bytes) -> bytes:
    """The hash of a seal's list of leaves: sixteen bytes of id each, then thirty-two bytes of hash each."""
    return hashlib.sha256(b"".join([i.bytes for i in record_ids]) + leaf_hashes).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return str(value) if isinstance(value, UUID) else value
