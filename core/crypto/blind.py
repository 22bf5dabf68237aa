"""Blind indexes: keyed digests of values, stored beside their envelopes so that equality can be searched.

Threat: somebody reads the database and wants names or SSNs out of the digests. Without the tenant's index key
they cannot try values (an unkeyed hash of an SSN falls in minutes); the key differs by tenant and by index,
so digests say nothing across tenants or columns. What an index leaks to that reader: which rows share a
value, and so how often a value occurs. Fewer ``bits`` blur it: values collide, and the false positives are
filtered after opening. A prefix, last-n, year or month index sorts people into coarser groups; declare those
that are searched, no more. Whoever holds a scope can try values through the application: that is what search
is, and the audit log records it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Literal, NoReturn, get_args

from core.crypto.derive import Hmac, forgetful, hmac_pads, length_prefixed
from core.errors import ConfigurationError, ProtectedQueryError

__all__ = ["NORMALISATION", "BlindKind", "BlindSpec", "IndexKey", "fold"]

NORMALISATION = 1
"""The version of ``fold`` and ``normalise``, part of every index key: a new version needs new digests."""

BlindKind = Literal["exact", "folded", "prefix", "last", "year", "month", "compound"]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_DIGITS = re.compile(r"[^0-9]")
_MONTH = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")

# Marks that other scripts need to tell words apart (Devanagari vowels, Japanese voicing) stay.
_MARKS = (
    range(0x0300, 0x0370),
    range(0x1AB0, 0x1B00),
    range(0x1DC0, 0x1E00),
    range(0x20D0, 0x2100),
    range(0xFE20, 0xFE30),
)
_INVISIBLE = (0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)
_FOLDS: dict[int, str | None] = {
    **dict.fromkeys((point for marks in _MARKS for point in marks), None),
    **dict.fromkeys(_INVISIBLE, None),
    # Letters that Unicode does not decompose but people type without their stroke, and ligatures.
    **dict(zip(map(ord, "đðħ\u0131łøŧ"), "ddhilot", strict=True)),
    **dict(zip(map(ord, "æœþ"), ("ae", "oe", "th"), strict=True)),
    # What keyboards and word processors make of an apostrophe or a hyphen.
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u2032\u0060"), "'"),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-"),
}


def fold(text: str) -> str:
    """Case, accents, typographic apostrophes and hyphens, and the amount of white space cease to matter."""
    if text.isascii():
        return " ".join(text.lower().replace("`", "'").split())
    text = unicodedata.normalize("NFC", text).replace("\u00b4", "'")  # NFKC would make a space of it
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKD", text).casefold().translate(_FOLDS)
    return " ".join(unicodedata.normalize("NFKC", text).split())


class IndexKey(Hmac):
    """The key of one blind index, of 32 bytes."""

    __slots__ = ()

    def __init__(self, material: bytes) -> None:
        super().__init__(*hmac_pads(material))


@dataclass(frozen=True, slots=True)
class BlindSpec:
    """The declaration of one blind index.

    | kind | of | matches |
    |---|---|---|
    | ``exact`` | text, date, integer, decimal | the same value (text: canonically equivalent, NFC) |
    | ``folded`` | text | the same text but for case, accents and spaces |
    | ``prefix`` | text | the first ``length`` characters of the folded text |
    | ``last`` | text | the last ``length`` digits, other characters ignored |
    | ``year``, ``month`` | date | the year (or an int), the month (or a ``YYYY-MM`` text) |
    | ``compound`` | a tuple | each of ``parts`` |

    ``bits`` is the length of the digest, a multiple of 8 up to 128.
    """

    kind: BlindKind
    bits: int = 64
    length: int | None = None
    parts: tuple[BlindSpec, ...] = ()

    def __post_init__(self) -> None:
        if self.bits % 8 or not 8 <= self.bits <= 128:
            raise ConfigurationError("A blind index has 8 to 128 bits, a multiple of 8.")
        if self.kind not in get_args(BlindKind):
            kinds = ", ".join(get_args(BlindKind))
            raise ConfigurationError(f"There is no blind index of the kind {self.kind!r}. There are {kinds}.")
        if (self.kind in {"prefix", "last"}) != (self.length is not None and self.length > 0):
            raise ConfigurationError("A prefix or last index needs length=n, n > 0; no other kind takes one.")
        if (self.kind == "compound") != bool(self.parts):
            raise ConfigurationError("A compound index needs parts=(...); no other kind takes them.")

    def label(self, table: str, column: str) -> str:
        """Names the index key: two indexes, two kinds or two normalisations never share one."""
        if not (_IDENTIFIER.fullmatch(table) and _IDENTIFIER.fullmatch(column)):
            raise ConfigurationError("The table and column of a blind index are plain identifiers.")
        return f"{table}.{column}/{self._form()}/n{NORMALISATION}"

    @forgetful
    def digest(self, key: IndexKey, value: object) -> bytes | None:
        """The first ``bits`` of the HMAC of the normalised value; None when there is nothing to search."""
        message = self._normalised(value)
        return None if message is None else key.mac(message)[: self.bits >> 3]

    def digest_column(self, key: IndexKey, values: Iterable[object]) -> list[bytes | None]:
        """``digest`` of each value, for callers that are ``forgetful`` themselves."""
        normalised, mac, length = self._normalised, key.mac, self.bits >> 3
        return [None if (message := normalised(value)) is None else mac(message)[:length] for value in values]

    @forgetful
    def matches(self, opened: object, wanted: object) -> bool:
        """Whether an opened value is what was searched, not a false positive of a truncated digest."""
        found = self._normalised(opened)
        return found is not None and found == self._normalised(wanted)

    def _form(self) -> str:
        if self.kind == "compound":
            return f"compound({','.join(part._form() for part in self.parts)})"
        return f"{self.kind}{self.length or ''}"

    def _normalised(self, value: object) -> bytes | None:
        """The bytes that are digested; None for NULL, and for what is too short for the index."""
        if value is None:
            return None
        kind = self.kind
        if isinstance(value, str):
            if kind == "folded":
                return self._utf8(fold(value))
            if kind == "exact":
                return self._utf8(value if value.isascii() else unicodedata.normalize("NFC", value))
            if kind == "prefix":
                folded = fold(value)
                return self._utf8(folded[: self.length]) if len(folded) >= (self.length or 0) else None
            if kind == "last":
                digits = _NOT_DIGITS.sub("", unicodedata.normalize("NFKC", value))
                return digits[-(self.length or 0) :].encode() if len(digits) >= (self.length or 0) else None
            if kind == "month" and _MONTH.fullmatch(value):
                return value.encode()
        elif kind == "compound":
            return self._compound(value)
        elif isinstance(value, date) and not isinstance(value, datetime):
            if kind in {"exact", "year", "month"}:
                return value.isoformat()[: {"exact": 10, "year": 4, "month": 7}[kind]].encode()
        elif isinstance(value, int) and not isinstance(value, bool):
            if kind == "exact" and value.bit_length() < 4096:
                return _number(Decimal(value))
            if kind == "year" and 1 <= value <= 9999:
                return b"%04d" % value
        elif isinstance(value, Decimal) and kind == "exact" and value.is_finite():
            return _number(value)
        elif isinstance(value, Enum):  # Piccolo's choices
            return self._normalised(value.value)
        return self._refuse(type(value))

    def _compound(self, values: object) -> bytes | None:
        if not isinstance(values, (tuple, list)) or len(values) != len(self.parts):
            self._refuse(type(values))
        normalised = [part._normalised(value) for part, value in zip(self.parts, values, strict=True)]
        known = [part for part in normalised if part is not None]
        return length_prefixed(*known) if len(known) == len(normalised) else None

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:  # it quotes the text
            pass
        return self._refuse(str)

    def _refuse(self, found: type) -> NoReturn:
        raise ProtectedQueryError(f"A blind index of the kind {self.kind} cannot digest this {found.__name__}.")


def _number(value: Decimal) -> bytes:
    """Sign, digits, E, exponent: 150, 150.0 and 1.5E+2 are one number, ``15E1``; zero is ``0``."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits))
    significant = text.rstrip("0")
    if not significant or not isinstance(exponent, int):
        return b"0"
    shift = exponent + len(text) - len(significant)
    return f"{'-' if sign else ''}{significant.lstrip('0')}E{shift}".encode()
