"""Sealing and opening the fields of a table, in loops as tight as Python has them.

Threat: as in ``envelope.py``. Besides, an exception that passes through here would carry frames whose locals
are plaintext, and error reporters print locals: each public method is ``forgetful``. The message names the
table and the column, never what was in it.

Each method that touches bytes puts envelopes together or takes them apart by itself, in one line: a call for
each field would cost a fifth of the whole. A column has its cipher and prefix ready; a row adds one
``urandom`` and its id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import urandom
from typing import Any, NoReturn
from uuid import UUID

from cryptography.exceptions import InvalidTag

from core.crypto.datakey import DataKey
from core.crypto.derive import Secret, forgetful
from core.crypto.envelope import BODY, HEADER_BYTES, MissingKeyError, aad_prefix, is_envelope
from core.crypto.values import Kind, decoder, encoder
from core.errors import SealedValueError

__all__ = ["RowSealer", "Sealer"]

Decrypt = Callable[[bytes, bytes, bytes], bytes]
Encrypt = Callable[[bytes, bytes, bytes], bytes]


class _Openers(dict[bytes, tuple[Decrypt, bytes]]):
    """Envelope header -> (cipher, associated data up to the row id), filled as versions are met."""

    __slots__ = ("_place", "_versions")

    def __init__(self, versions: Mapping[int, DataKey], tenant_id: UUID, table: str, column: str) -> None:
        self._versions = versions
        self._place = tenant_id, table, column

    def __missing__(self, header: bytes) -> tuple[Decrypt, bytes]:
        tenant_id, table, column = self._place
        version = int.from_bytes(header[1:], "big")
        key = self._versions.get(version)
        if key is None or key.sealing().header != header:
            raise MissingKeyError(
                f"{table}.{column} is sealed under key version {version}, which tenant {tenant_id} "
                "does not have. It was retired or shredded, or the row came from elsewhere.",
                version=version,
            )
        opener = self[header] = key.sealing().decrypt, aad_prefix(header, tenant_id, table, column)
        return opener


class Sealer(Secret):
    """Seals and opens one column of one tenant. ``None`` passes through: NULL stays NULL."""

    __slots__ = ("_decode", "_encode", "_openers", "_sealing", "column", "kind", "table", "tenant_id")

    def __init__(
        self,
        versions: Mapping[int, DataKey],
        current: int | None,
        tenant_id: UUID,
        table: str,
        column: str,
        kind: Kind,
    ) -> None:
        self.tenant_id = tenant_id
        self.table = table
        self.column = column
        self.kind = kind
        self._encode = encoder(kind)
        self._decode = decoder(kind)
        self._openers = _Openers(versions, tenant_id, table, column)
        self._sealing: tuple[bytes, Encrypt, bytes] | None = None
        if current is not None:
            key = versions[current].sealing()
            self._sealing = key.header, key.encrypt, aad_prefix(key.header, tenant_id, table, column)

    def __repr__(self) -> str:
        return f"<Sealer {self.table}.{self.column} tenant={self.tenant_id}>"

    @forgetful
    def seal(self, row_id: UUID, value: object) -> bytes | None:
        """An envelope bound to this row, under the current key version."""
        if value is None:
            return None
        try:
            header, encrypt, prefix = self._sealing or self._no_key()
            nonce = urandom(12)
            return header + nonce + encrypt(nonce, self._encode(value), prefix + row_id.bytes)
        except SealedValueError as error:
            failure = self._explained(error)
        raise failure

    @forgetful
    def open(self, row_id: UUID, envelope: bytes | None) -> Any:
        """The value of an envelope of this row."""
        return self.open_many(((row_id, envelope),))[0]

    @forgetful
    def open_many(self, rows: Iterable[tuple[UUID, bytes | None]]) -> list[Any]:
        """The values of ``(row id, envelope)`` pairs, in order; the first that does not open raises."""
        pairs = list(rows)
        return self._open_column([row_id.bytes for row_id, _ in pairs], [envelope for _, envelope in pairs])

    def _open_column(self, row_ids: Sequence[bytes], envelopes: Sequence[bytes | None]) -> list[Any]:
        """The values of a column's envelopes, each of the row whose id (16 bytes) stands at its place.

        Not forgetful: whoever calls it is, once for all columns.
        """
        openers, decode = self._openers, self._decode
        values: list[Any] = []
        add = values.append
        row_id, envelope = b"", None
        try:
            for row_id, envelope in zip(row_ids, envelopes, strict=True):
                if envelope is None:
                    add(None)
                    continue
                decrypt, prefix = openers[envelope[:HEADER_BYTES]]
                add(decode(decrypt(envelope[HEADER_BYTES:BODY], envelope[BODY:], prefix + row_id)))
        except (SealedValueError, InvalidTag, ValueError, TypeError) as error:
            failure = self._explained(error, envelope, row_id)
        else:
            return values
        raise failure

    def _explained(self, error: Exception, envelope: object = None, row_id: bytes = b"") -> SealedValueError:
        """The error to raise in place of one whose frames or text may hold a value. It names the row, to be mended."""
        where = f" of row {UUID(bytes=row_id)}" if len(row_id) == 16 else ""
        if isinstance(error, MissingKeyError) and (envelope is None or is_envelope(envelope)):
            return error.with_traceback(None)
        if envelope is not None and not is_envelope(envelope):
            return SealedValueError(f"{self.table}.{self.column}{where} holds no envelope of version 1.")
        if isinstance(error, SealedValueError):
            return SealedValueError(f"{self.table}.{self.column}{where}: {error}")
        return SealedValueError(
            f"{self.table}.{self.column}{where} does not open: it was altered, or moved from another row, column, "
            "table or tenant. Write the value anew; history() has what it was."
        )

    def _no_key(self) -> NoReturn:
        raise MissingKeyError(
            f"Tenant {self.tenant_id} has no data key that may seal. Provision one, or finish its rotation.",
        )


class RowSealer(Secret):
    """Seals and opens several columns of a table together. Values and envelopes in the sealers' order."""

    __slots__ = ("_opening", "_sealing", "sealers")

    def __init__(self, sealers: Sequence[Sealer]) -> None:
        self.sealers = tuple(sealers)
        self._opening = [(sealer._openers, sealer._decode) for sealer in self.sealers]
        self._sealing = [(sealer._encode, *(sealer._sealing or (b"", None, b""))) for sealer in self.sealers]

    def __repr__(self) -> str:
        return f"<RowSealer {', '.join(f'{sealer.table}.{sealer.column}' for sealer in self.sealers)}>"

    @forgetful
    def seal_many(self, rows: Iterable[tuple[UUID, Sequence[object]]]) -> list[list[bytes | None]]:
        """The envelopes of ``(row id, values)`` pairs: one ``urandom`` a row, independent nonces."""
        columns = self._sealing
        sealed: list[list[bytes | None]] = []
        at = 0
        try:
            for row_id, values in rows:
                row, random, end = row_id.bytes, urandom(12 * len(columns)), 0
                envelopes: list[bytes | None] = []
                for at, ((encode, header, encrypt, prefix), value) in enumerate(zip(columns, values, strict=True)):
                    start, end = end, end + 12
                    if value is None:
                        envelopes.append(None)
                        continue
                    if encrypt is None:
                        self.sealers[at]._no_key()
                    nonce = random[start:end]
                    envelopes.append(header + nonce + encrypt(nonce, encode(value), prefix + row))
                sealed.append(envelopes)
        except SealedValueError as error:
            failure = self.sealers[at]._explained(error)
        except ValueError:
            failure = SealedValueError("A row has more or fewer values than the table has sealed columns.")
        else:
            return sealed
        raise failure

    @forgetful
    def open(self, row_id: UUID | None, envelopes: Sequence[bytes | None]) -> list[Any]:
        """The values of one row's envelopes: a call a column would cost as much as the ciphers."""
        if len(envelopes) != len(self.sealers):
            raise SealedValueError("A row has more or fewer values than the table has sealed columns.")
        row = b"" if row_id is None else row_id.bytes
        values: list[Any] = []
        try:
            for (openers, decode), envelope in zip(self._opening, envelopes, strict=True):
                if envelope is None:
                    values.append(None)
                    continue
                decrypt, prefix = openers[envelope[:HEADER_BYTES]]
                values.append(decode(decrypt(envelope[HEADER_BYTES:BODY], envelope[BODY:], prefix + row)))
        except (SealedValueError, InvalidTag, ValueError, TypeError) as error:
            failure = self.sealers[len(values)]._explained(error, envelope, row)
        else:
            return values
        raise failure

    @forgetful
    def open_columns(
        self, row_ids: Sequence[UUID | None], columns: Sequence[Sequence[bytes | None]]
    ) -> list[list[Any]]:
        """The values of each column's envelopes: column by column, since a column has one cipher and one kind.

        A row that a LEFT JOIN did not find has neither id nor envelopes.
        """
        ids = [b"" if row_id is None else row_id.bytes for row_id in row_ids]
        return [sealer._open_column(ids, column) for sealer, column in zip(self.sealers, columns, strict=True)]
