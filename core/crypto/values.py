"""Python values to plaintext and back: a type tag, the value's bytes, padding.

Threat: a value that comes back as another type is a quiet corruption (a date read as text passes no filter),
so the tag is authenticated with the value and checked. And Python's own errors quote what they choke on
(``UnicodeEncodeError.object`` is the whole text), so none of them leaves this module, not even as a
``__context__``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum, IntEnum
from typing import Any, NoReturn

from core.crypto.envelope import pad, unpad
from core.errors import SealedValueError

__all__ = ["Kind", "decoder", "encoder"]


class Kind(IntEnum):
    """The type tag, the first byte of the plaintext."""

    TEXT = 1
    DATE = 2
    INTEGER = 3
    DECIMAL = 4
    JSON = 5  # comes back as JSON has it: a tuple as a list, the keys of a dict as text


_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(rb"-?(?:[0-9]+(?:\.[0-9]+)?)(?:E[+-][0-9]+)?")
# What Python raises over a value that it cannot write or read; RecursionError for JSON nested too deep.
_REFUSALS = (ValueError, TypeError, OverflowError, RecursionError, InvalidOperation)


# A document goes through parsers and copies that call themselves, ours and everybody's: one that is nested deeper than
# a record of a patient ever is would be written, and then stop each query that shows its row.
MOST_LEVELS = 64


def _no_constant(_: str) -> NoReturn:
    raise ValueError


_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode
_load = json.JSONDecoder(parse_constant=_no_constant).raw_decode


def encoder(kind: Kind) -> Callable[[Any], bytes]:
    """What makes the padded plaintext of a value of that kind, for callers that are ``forgetful``; not of None."""
    return _ENCODERS[kind]


def decoder(kind: Kind) -> Callable[[bytes], Any]:
    """What makes the value of a padded plaintext again, or raises ``SealedValueError``; for ``forgetful`` callers."""
    tag, read = int(kind), _DECODERS[kind]

    def typed(plaintext: bytes) -> Any:
        # ``unpad`` and the tag in one go: a list of fifty patients is four hundred values.
        content = plaintext.rstrip(b"\0")
        if content and content[0] == tag and content[-1] == 0x80:
            try:
                return read(content[1:-1])
            except _REFUSALS:
                pass
        return _decode(kind, plaintext)  # says what is wrong with it

    return typed


def _decode(kind: Kind, plaintext: bytes) -> Any:
    content = unpad(plaintext)
    if content[:1] != bytes((kind,)):
        raise SealedValueError(f"A sealed value is not of the kind {kind.name.lower()} that its column declares.")
    try:
        return _DECODERS[kind](content[1:])
    except _REFUSALS:
        pass
    raise SealedValueError(f"A sealed value has content that does not fit its kind {kind.name.lower()}.")


def _refuse(kind: Kind, value: object) -> NoReturn:
    of = type(value).__name__
    raise SealedValueError(
        f"A sealed {kind.name.lower()} cannot be made of this {of}: see the kinds in docs/envelope.md."
    )


def _encode_text(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return pad(b"\x01" + value.encode())
        except UnicodeEncodeError:
            pass
    if isinstance(value, Enum):  # Piccolo's choices
        return _encode_text(value.value)
    _refuse(Kind.TEXT, value)


def _encode_date(value: object) -> bytes:
    if isinstance(value, date) and not isinstance(value, datetime):
        return pad(b"\x02" + value.isoformat().encode())
    _refuse(Kind.DATE, value)


def _encode_integer(value: object) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return pad(b"\x03%d" % value)
        except _REFUSALS:  # more digits than Python converts
            pass
    _refuse(Kind.INTEGER, value)


def _encode_decimal(value: object) -> bytes:
    if isinstance(value, Decimal) and value.is_finite():
        return pad(b"\x04" + str(value).upper().encode())  # the context may ask for a small e
    _refuse(Kind.DECIMAL, value)


def _levels(value: object, most: int) -> bool:
    """Whether documents stand in each other at most that deep."""
    if not isinstance(value, (dict, list, tuple)):
        return True
    return most > 0 and all(_levels(v, most - 1) for v in (value.values() if isinstance(value, dict) else value))


def _encode_json(value: object) -> bytes:
    if value is not None and _levels(value, MOST_LEVELS):
        try:
            return pad(b"\x05" + _dump(value).encode())
        except _REFUSALS:
            pass
    _refuse(Kind.JSON, value)


def _decode_date(content: bytes) -> date:
    # Of ISO 8601's forms the one with two hyphens; a week's has them elsewhere.
    if len(content) != 10 or content[4] != 45 or content[7] != 45:
        raise ValueError
    return date.fromisoformat(content.decode())


def _decode_integer(content: bytes) -> int:
    if not _INTEGER.fullmatch(content):
        raise ValueError
    return int(content)


def _decode_decimal(content: bytes) -> Decimal:
    if not _DECIMAL.fullmatch(content):
        raise ValueError
    value = Decimal(content.decode())
    if not value.is_finite():  # an exponent beyond the machine's, when the context does not trap it
        raise ValueError
    return value


def _decode_json(content: bytes) -> Any:
    text = content.decode()
    value, end = _load(text)
    if end != len(text):
        raise ValueError
    return value


_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    Kind.TEXT: _encode_text,
    Kind.DATE: _encode_date,
    Kind.INTEGER: _encode_integer,
    Kind.DECIMAL: _encode_decimal,
    Kind.JSON: _encode_json,
}
_DECODERS: dict[Kind, Callable[[bytes], Any]] = {
    Kind.TEXT: bytes.decode,
    Kind.DATE: _decode_date,
    Kind.INTEGER: _decode_integer,
    Kind.DECIMAL: _decode_decimal,
    Kind.JSON: _decode_json,
}
