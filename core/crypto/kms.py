"""Providers of the key-encrypting key (KEK): they wrap data keys, and unwrap them.

Threat: a dump of the database holds every wrapped data key. Without the KEK, which never enters the database,
none unwraps. A wrapped key is bound to its tenant and version, so a tenant cannot be given another's key by
moving a row. A development key in a file is for a laptop: it is made only when no server is configured,
readable by its owner only.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from pathlib import Path
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.crypto.derive import KEY_BYTES, Secret, forgetful, hkdf, length_prefixed
from core.errors import ConfigurationError, KeyProviderError
from core.settings import Settings

__all__ = ["KeyProvider", "LocalProvider", "development_key", "master_key", "provider_from_settings"]

WRAP_VERSION = 1
WRAP_LABEL = b"charthold.v1.data-key"
KEK_LABEL = b"charthold/v1/kek"
KEK_ID_LABEL = b"charthold/v1/kek-id"
KEK_ID_BYTES = 8
NONCE_AT = 1 + KEK_ID_BYTES
BODY_AT = NONCE_AT + 12
WRAPPED_BYTES = BODY_AT + KEY_BYTES + 16


class KeyProvider(Protocol):
    """Holds key-encrypting keys. Whatever it raises ends as ``KeyProviderError``; nothing is opened."""

    async def wrap(self, tenant_id: UUID, plaintext: bytes, *, version: int) -> bytes:
        """Encrypt a data key, bound to the tenant and to the data key's version, under the current KEK."""
        ...

    async def unwrap(self, tenant_id: UUID, wrapped: bytes, *, version: int) -> bytes:
        """The data key again, or an error; never another tenant's or version's."""
        ...

    def describe(self) -> dict[str, str]:
        """What an operator may see: ``provider``, ``kek`` (the current KEK's id), ``retired`` (ids)."""
        ...


class _Kek(Secret):
    """One master key: its id and the cipher derived from it."""

    __slots__ = ("cipher", "id")

    def __init__(self, master: bytes) -> None:
        if not isinstance(master, bytes) or len(master) != KEY_BYTES:
            raise ConfigurationError("A master key is 32 bytes.")
        self.id = hkdf(master, KEK_ID_LABEL, length=KEK_ID_BYTES)
        self.cipher = AESGCM(hkdf(master, KEK_LABEL))


class LocalProvider(Secret):
    """Wraps with AES-256-GCM under the current master key; unwraps under it and the retired ones."""

    __slots__ = ("_current", "_keks")

    @forgetful
    def __init__(self, master: bytes, retired: tuple[bytes, ...] = ()) -> None:
        keks = [_Kek(key) for key in (master, *retired)]
        self._current = keks[0]
        self._keks = {kek.id: kek for kek in keks}

    def __repr__(self) -> str:
        return f"<LocalProvider kek={self._current.id.hex()}>"

    async def wrap(self, tenant_id: UUID, plaintext: bytes, *, version: int) -> bytes:
        """``docs/envelope.md``, wrapped keys."""
        if len(plaintext) != KEY_BYTES:
            del plaintext
            raise KeyProviderError("A data key is 32 bytes.")
        header = bytes((WRAP_VERSION,)) + self._current.id
        nonce = os.urandom(12)
        return header + nonce + self._current.cipher.encrypt(nonce, plaintext, _aad(header, tenant_id, version))

    async def unwrap(self, tenant_id: UUID, wrapped: bytes, *, version: int) -> bytes:
        """``docs/envelope.md``, wrapped keys."""
        if len(wrapped) != WRAPPED_BYTES or wrapped[0] != WRAP_VERSION:
            raise KeyProviderError(f"Key {version} of tenant {tenant_id} is not a wrapped key of the local provider.")
        header, nonce, body = wrapped[:NONCE_AT], wrapped[NONCE_AT:BODY_AT], wrapped[BODY_AT:]
        kek = self._keks.get(header[1:])
        if kek is None:
            raise KeyProviderError(
                f"Key {version} of tenant {tenant_id} is wrapped by KEK {header[1:].hex()}, which is not "
                "configured. Add that master key to CHARTHOLD_RETIRED_MASTER_KEYS."
            )
        with contextlib.suppress(InvalidTag):
            return kek.cipher.decrypt(nonce, body, _aad(header, tenant_id, version))
        raise KeyProviderError(
            f"Key {version} of tenant {tenant_id} does not unwrap: it was altered, or belongs to "
            "another tenant or version."
        )

    def describe(self) -> dict[str, str]:
        """Ids only; they are derived from the master keys one way."""
        retired = [kek.id.hex() for kek in self._keks.values() if kek is not self._current]
        return {"provider": "local", "kek": self._current.id.hex(), "retired": " ".join(retired)}


def provider_from_settings(settings: Settings) -> LocalProvider:
    """The local provider with the configured keys, else with the development key in ``home``."""
    return LocalProvider(master_key(settings), settings.retired_master_keys)


def master_key(settings: Settings) -> bytes:
    """The configured master key, else the development key; other keys are derived from it, none equals it."""
    if settings.master_key is None:
        if settings.database_url is not None:
            raise ConfigurationError("CHARTHOLD_MASTER_KEY is not set, and a configured server needs a configured key.")
        return development_key(settings.home)
    return settings.master_key


def development_key(home: Path) -> bytes:
    """The key in ``home/master.key``, made on first use; processes that race get the same one."""
    path = home / "master.key"
    try:
        if not path.exists():
            _make(path)
    except OSError as error:
        raise ConfigurationError(
            f"The development key {path} cannot be made: {error.strerror}. Choose another CHARTHOLD_HOME, "
            "or set CHARTHOLD_MASTER_KEY."
        ) from None
    return _read(path)


def _make(path: Path) -> None:
    """Write the key beside its place, then link it there: whole files only, and the first link wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    """Refuses a link, and a file that others own or may read: then the key is no longer a secret."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if os.name == "posix" and (
                not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid()
            ):
                raise ConfigurationError(
                    f"{path} must be a file that only you may read. Others could have read it: make a new "
                    "key if PHI is sealed under this one, else run chmod 600."
                )
            content = file.read(1024).strip()
    except OSError as error:
        reason = error.strerror
    else:
        with contextlib.suppress(binascii.Error):
            key = base64.b64decode(content, validate=True)
            if len(key) == KEY_BYTES:
                return key
            del key
        del content
        reason = "it does not hold 32 bytes in base64"
    raise ConfigurationError(f"{path} cannot be used as the development key: {reason}.")


def _aad(header: bytes, tenant_id: UUID, version: int) -> bytes:
    return length_prefixed(WRAP_LABEL, header, tenant_id.bytes, version.to_bytes(4, "big"))
