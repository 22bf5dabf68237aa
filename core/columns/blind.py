"""Blind indexes: hashes beside an encrypted column, so that equality can be asked of the database."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

from piccolo.columns import Column

from core.crypto.blind import BlindKind, BlindSpec
from core.crypto.values import Kind
from core.errors import ProtectedQueryError

__all__ = ["DIGESTED", "BlindIndex"]

# The kinds of index that can digest a kind of value, the usual one first.
DIGESTED: dict[Kind, tuple[BlindKind, ...]] = {
    Kind.TEXT: ("folded", "exact", "prefix", "last"),
    Kind.DATE: ("exact", "year", "month"),
    Kind.INTEGER: ("exact",),
    Kind.DECIMAL: ("exact",),
    Kind.JSON: (),
}


class BlindIndex(Column):
    """Keyed hashes of an encrypted column (or of several, ``compound``), for equality in the database.

    ``of`` names the columns; ``kind`` is exact, folded, prefix, last, year, month or compound (``core.crypto.blind``);
    ``length`` the letters of a prefix or the last digits; ``parts`` the kinds of a compound index's columns; ``bits``
    how much of the HMAC is kept. What an index leaks is said in the README before its use: equal values of one tenant
    have equal hashes.
    """

    value_type: type = bytes

    def __init__(
        self,
        *names: str,
        of: Sequence[str] = (),
        kind: BlindKind = "folded",
        length: int | None = None,
        parts: Sequence[BlindKind] = (),
        bits: int = 64,
        **kwargs: Any,
    ) -> None:
        self.default = None
        self.of = tuple(of or names)
        self.spec = BlindSpec(kind=kind, bits=bits, length=length, parts=tuple(BlindSpec(kind=part) for part in parts))
        if not self.of or (len(self.of) > 1) != (kind == "compound") or len(parts) not in (0, len(self.of)):
            raise ProtectedQueryError(
                "A blind index names its column; a compound one names several, and a kind for each."
            )
        kwargs |= {
            "default": None,
            "null": True,
            "of": list(self.of),
            "kind": kind,
            "length": length,
            "parts": list(parts),
            "bits": bits,
        }
        super().__init__(**kwargs)
        self._meta.secret = True

    def refuse(self, asked: str) -> NoReturn:
        """Threat: hashes that are seen, sorted or grouped tell who shares a value, and no record says who was told."""
        raise ProtectedQueryError(
            f"{self._meta.table.__name__}.{self._meta.name} holds hashes for searching, and no query may {asked}. "
            "Search by the encrypted column."
        )

    @functools.cached_property
    def label(self) -> str:
        """Names the key of this index; two indexes never share one."""
        return self.spec.label(self._meta.table._meta.tablename, self._meta.db_column_name)

    @property
    def column_type(self) -> str:
        return "BYTEA"

    @property
    def ddl(self) -> str:
        return f'"{self._meta.db_column_name}" BYTEA'
