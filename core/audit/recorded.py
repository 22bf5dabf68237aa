"""What the log recorded, as Python values: envelopes opened, and the types back that JSON does not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from piccolo.columns import JSON, Array, Column, ForeignKey

from core.audit.canonical import parse_jsonb, write_jsonb
from core.columns import BlindIndex, Encrypted
from core.crypto.derive import forgetful_later
from core.crypto.keyring import MissingKeyError
from core.engine import engine
from core.errors import SealedValueError
from core.scope import Scope

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys
    from core.tenant_table import TenantTable

__all__ = ["ALTERED", "DESTROYED", "WITHHELD", "Opener", "sealed_anew"]


class Lost:
    """Stands for a value that does not open. No ``Enum``, which Piccolo would take for one of its choices and store."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def __repr__(self) -> str:
        return f"<{self._why}>"


# Its key was destroyed: the envelope is in the log, and nobody can open it.
DESTROYED = Lost("key destroyed")
# It was never sealed for this row: somebody wrote it by hand.
ALTERED = Lost("altered by hand")
# It is not shown to the role that asks (``shown_to`` of its table).
WITHHELD = Lost("not shown to this role")


def sealed_anew(
    table: type[TenantTable], old: str | None, new: str | None, changed: Sequence[str], withheld: Collection[str] = ()
) -> set[str]:
    """The encrypted columns that an update may have written without another value.

    Of those that are ``withheld`` the values cannot be compared: such a one has another value, or a later key.

    Threat: an old envelope is put back by hand, and with it the hashes of somebody else: nothing to be seen in the
    value, and searches find another patient. Hashes change with the value, or with the key: under a later version.
    """
    if old is None or new is None:
        return set()
    before, after = parse_jsonb(old), parse_jsonb(new)
    by_hand = {
        name
        for index in table._meta.columns
        if isinstance(index, BlindIndex) and index._meta.db_column_name in changed
        for name in index.of
    }
    return {
        column._meta.name
        for column in table._meta.columns
        if isinstance(column, Encrypted)
        and (
            (column._meta.name not in by_hand and column._meta.name not in withheld)
            or _version(before, column._meta.db_column_name) < _version(after, column._meta.db_column_name)
        )
    }


def _version(document: Mapping[str, Any], name: str) -> int:
    """The version of the key under which a recorded value was sealed; its form is in ``docs/envelope.md``."""
    return int(str(document.get(name) or "")[4:12] or "0", 16)


class Opener:
    """Makes Python values of recorded documents, each of the type that its column has."""

    def __init__(
        self, table: type[TenantTable], scope: Scope, keys: TenantKeys | None, withheld: Collection[str] = ()
    ) -> None:
        self._table = table
        self.withheld = withheld
        self._scope = scope
        self._keys = keys
        self._destroyed: set[int | None] = set()

    @forgetful_later
    async def values(self, row_id: UUID, document: str | None) -> dict[str, Any]:
        """The document's values by the names of the columns."""
        recorded: dict[str, Any] = parse_jsonb(document) if document else {}
        while True:
            try:
                return {
                    column._meta.name: self._value(column, row_id, recorded[column._meta.db_column_name])
                    for column in self._table._meta.columns
                    if column._meta.db_column_name in recorded
                }
            except MissingKeyError as missing:
                await self._look_for(missing.version)

    async def _look_for(self, version: int | None) -> None:
        # Another process rotated the tenant's key a moment ago; or the key is no more.
        try:
            self._keys = await engine().keys_of(self._scope, version)
        except MissingKeyError:
            self._destroyed.add(version)

    def _value(self, column: Column, row_id: UUID, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(column, Encrypted):
            return _plain(column, value)
        if column._meta.name in self.withheld:
            return WITHHELD
        if self._keys is None:
            return DESTROYED
        sealer = self._keys.sealer(self._table._meta.tablename, column._meta.db_column_name, column.kind)
        try:
            return sealer.open(row_id, bytes.fromhex(value[2:]))
        except MissingKeyError as missing:
            if missing.version in self._destroyed:
                return DESTROYED
            raise
        except SealedValueError:
            # Threat: whoever may write the row writes an envelope that does not open, and nobody could read the row's
            # past any more.
            return ALTERED


def _plain(column: Column, value: Any) -> Any:
    """One value out of ``to_jsonb``: uuid, timestamp, date, number and bytes were written as text or as a number."""
    if isinstance(column, Array):
        return [None if item is None else _plain(column.base_column, item) for item in value]
    # As text, as the row itself has it: of any depth, with every digit.
    if isinstance(column, JSON) or isinstance(value, dict | list):
        return write_jsonb(value)
    if isinstance(column, ForeignKey) or column.value_type is UUID:
        return UUID(value)
    if column.value_type in (datetime, date, time):
        try:
            return column.value_type.fromisoformat(value)
        except ValueError:
            return value  # "infinity", and what is no time for Python: before the year 1 and after 9999
    if column.value_type is timedelta:
        return _interval(value)
    if column.value_type is float and isinstance(value, str):
        return float(value)  # NaN and the infinities are none of JSON's numbers
    if column.value_type is Decimal:
        return Decimal(value)  # of a text too, as above
    if isinstance(value, Decimal):
        return float(value) if column.value_type is float or value != int(value) else int(value)
    if column.value_type is bytes:
        return bytes.fromhex(value[2:])
    return value


_INTERVAL = re.compile(
    r"(?:([+-]?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
    r"(?:([+-]?)(\d+):(\d+):(\d+)(?:\.(\d+))?)?"
)


def _interval(text: str) -> timedelta | str:
    """PostgreSQL's text of an interval, as the driver reads one: a year has 365 days and a month 30."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        return text
    years, months, days = (int(part or 0) for part in found.groups()[:3])
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[4:7])
    clock = timedelta(hours=hours, minutes=minutes, seconds=seconds, microseconds=int((found[8] or "").ljust(6, "0")))
    return timedelta(days=years * 365 + months * 30 + days) + (-clock if found[4] == "-" else clock)
