"""Derived keys, length prefixes, and objects that keep a secret to themselves.

Threat: two inputs that differ but concatenate to the same bytes would share a key or an associated datum;
every part therefore carries its length. And a key that can be printed, pickled or copied ends up in a log, a
cache or a queue.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["KEY_BYTES", "Hmac", "Secret", "forgetful", "forgetful_later", "hkdf", "hmac_pads", "length_prefixed"]

KEY_BYTES = 32
BLOCK_BYTES = 64  # of SHA-256

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Secret:
    """Base of what holds a key: it shows no content, and it is neither pickled nor copied."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"A {type(self).__name__} holds a key: it is neither pickled nor copied.")


def forgetful(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """An exception leaves the function without the frames and contexts below it, and without the arguments.

    Error reporters print the locals of each frame, and here these are plaintext. It costs 0.1 us a call.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again below, with nothing attached
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        del args, kwargs
        try:
            raise failure
        finally:
            del failure  # else the frame and the exception keep each other alive

    return call


def forgetful_later(
    function: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """``forgetful``, for what is awaited."""

    @functools.wraps(function)
    async def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return await function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again below, with nothing attached
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        del args, kwargs
        try:
            raise failure
        finally:
            del failure

    return call


def length_prefixed(*parts: bytes) -> bytes:
    """Each part after its length as uint32, big-endian, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def hmac_pads(key: bytes) -> tuple[bytes, bytes]:
    """The two padded blocks of a key for HMAC-SHA-256 (RFC 2104), of at most 64 bytes."""
    block = key.ljust(BLOCK_BYTES, b"\0")
    return bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block)


class Hmac(Secret):
    """HMAC-SHA-256 under one key, given as its padded blocks: these are hashed once and copied for each message."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, inner_pad: bytes, outer_pad: bytes) -> None:
        self._inner = hashlib.sha256(inner_pad)
        self._outer = hashlib.sha256(outer_pad)

    def mac(self, message: bytes) -> bytes:
        """All 32 bytes of the code."""
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


def hkdf(material: bytes, *info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA-256 (RFC 5869) without a salt; the parts of ``info`` are length-prefixed."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=length_prefixed(*info)).derive(material)
