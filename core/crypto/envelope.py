"""The envelope: bytes in, bytes out. ``docs/envelope.md`` is its specification.

    version 0x01 | key version, uint32 | nonce, 12 bytes | AES-256-GCM ciphertext | tag, 16 bytes

Threat: somebody who can write to the database moves a ciphertext to another row, column, table or tenant,
replays it under another key version, or alters it. The associated data names all of these, so the tag no
longer matches. Somebody who can only read it learns a value's length: the plaintext is padded to few lengths.
What stays: an older envelope of the *same* row and column still opens; the audit log tells when it was there.

Nonces are 96 random bits. A key may seal 2**32 values before the chance of a repeated nonce passes 2**-32
(NIST SP 800-38D, 8.3): a tenant that writes a million values a day has eleven years; rotate before that.
"""

from __future__ import annotations

from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.crypto.derive import Secret, length_prefixed
from core.errors import SealedValueError

__all__ = [
    "BODY",
    "ENVELOPE_CHECK_SQL",
    "ENVELOPE_VERSION",
    "HEADER_BYTES",
    "NONCE_BYTES",
    "OVERHEAD",
    "MissingKeyError",
    "SealingKey",
    "aad_prefix",
    "envelope_header",
    "is_envelope",
    "pad",
    "padded_length",
    "unpad",
]

ENVELOPE_VERSION = 1
HEADER_BYTES = 5
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD = HEADER_BYTES + NONCE_BYTES + TAG_BYTES
MIN_BYTES = OVERHEAD + 16
MAX_KEY_VERSION = 2**31 - 1
MAX_PLAINTEXT = 64 * 2**20
AAD_LABEL = b"charthold.v1"
ROW_ID_LENGTH = (16).to_bytes(4, "big")
BODY = HEADER_BYTES + NONCE_BYTES

# For a DOMAIN over bytea. The range says that the first byte is 1 and the second below 128, in two comparisons; the
# lengths are those of `padded_length` plus the overhead of 33 bytes. NULL passes: NULL stays NULL.
ENVELOPE_CHECK_SQL = """\
value >= '\\x0100'::bytea and value < '\\x0180'::bytea and octet_length(value) >= 49
    and (octet_length(value) - 33) % case
        when octet_length(value) <= 97 then 16
        when octet_length(value) <= 1057 then 64
        else 1024
    end = 0"""


class MissingKeyError(SealedValueError):
    """An envelope names a key version that is not loaded: reload the tenant's keys once, then give up.

    ``version`` says which; None when the tenant has no key at all.
    """

    def __init__(self, message: str, *, version: int | None = None) -> None:
        super().__init__(message)
        self.version = version


class SealingKey(Secret):
    """One AES-256-GCM key, its cipher prepared once, and the header that its envelopes begin with."""

    __slots__ = ("decrypt", "encrypt", "header", "version")

    def __init__(self, version: int, material: bytes) -> None:
        cipher = AESGCM(material)
        self.version = version
        self.header = envelope_header(version)
        self.encrypt = cipher.encrypt
        self.decrypt = cipher.decrypt

    def __repr__(self) -> str:
        return f"<SealingKey version={self.version}>"


def envelope_header(version: int) -> bytes:
    """The first five bytes of an envelope sealed under this key version."""
    if not 1 <= version <= MAX_KEY_VERSION:
        raise SealedValueError(f"A key version lies between 1 and {MAX_KEY_VERSION}.")
    return bytes((ENVELOPE_VERSION,)) + version.to_bytes(4, "big")


def aad_prefix(header: bytes, tenant_id: UUID, table: str, column: str) -> bytes:
    """The associated data up to the row id; ``prefix + row_id.bytes`` completes it."""
    named = length_prefixed(AAD_LABEL, header, tenant_id.bytes, table.encode(), column.encode())
    return named + ROW_ID_LENGTH


def is_envelope(data: object) -> bool:
    """Whether the bytes have an envelope's form, as ``ENVELOPE_CHECK_SQL`` has it; proves no content."""
    if not isinstance(data, bytes) or len(data) < MIN_BYTES:
        return False
    length = len(data) - OVERHEAD
    return data[0] == ENVELOPE_VERSION and data[1] < 128 and length == padded_length(length)


def padded_length(length: int) -> int:
    """All that an observer learns: the next multiple of 16 up to 64, of 64 up to 1,024, then of 1,024."""
    step = 16 if length <= 64 else 64 if length <= 1024 else 1024
    return -(-length // step) * step


# Padding (ISO/IEC 7816-4) by unpadded length, for the lengths that nearly every field has.
_PADDING = [b"\x80".ljust(padded_length(length + 1) - length, b"\0") for length in range(1024)]


def pad(content: bytes) -> bytes:
    """0x80, then zeros up to ``padded_length``."""
    length = len(content)
    if length < 1024:
        return content + _PADDING[length]
    if length >= MAX_PLAINTEXT:
        raise SealedValueError("A sealed value holds at most 64 MiB. Store it elsewhere and seal a reference.")
    return (content + b"\x80").ljust(padded_length(length + 1), b"\0")


def unpad(plaintext: bytes) -> bytes:
    """The content without its padding."""
    content = plaintext.rstrip(b"\0")
    if content[-1:] != b"\x80":
        raise SealedValueError("A sealed value has no padding: it was not written by an implementation of version 1.")
    return content[:-1]
