"""One tenant's keys as they are stored, and as they are used.

Threat: a key meant for one tenant, column or purpose reaches another. Whoever seals, opens or digests asks
here, by tenant, table, column or label, and is handed an object that can do only that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal
from uuid import UUID

from core.crypto.blind import BlindSpec, IndexKey
from core.crypto.datakey import DataKey
from core.crypto.derive import Secret, forgetful
from core.crypto.envelope import MissingKeyError, SealingKey
from core.crypto.sealer import RowSealer, Sealer
from core.crypto.values import Kind

__all__ = ["KeyStatus", "TenantKeys", "WrappedKey"]


SEARCHED = frozenset({"next", "current", "previous"})
KeyStatus = Literal["next", "current", "previous", "retired"]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """One version of a tenant's data key as it is stored. Every version opens; the status says what else.

    A version goes through these in order, and rests in each for longer than a key is cached, so that no
    process meets a row which it cannot find:

    | status | new values are sealed and digested under it | look-ups digest under it |
    |---|---|---|
    | ``next`` | no | yes |
    | ``current`` | yes, if it is the highest | yes |
    | ``previous`` | no | yes |
    | ``retired`` | no | no |

    ``kek`` is the id of the wrapping key, as ``KeyProvider.describe()["kek"]`` gave it.
    """

    version: int
    wrapped: bytes = field(repr=False)
    status: KeyStatus = "current"
    kek: str = ""


class TenantKeys(Secret):
    """One tenant's unwrapped data keys, as they were when loaded; it does not change."""

    __slots__ = (
        "_rows",
        "_sealers",
        "_versions",
        "current_version",
        "search_versions",
        "tenant_id",
    )

    def __init__(self, tenant_id: UUID, keys: Iterable[tuple[WrappedKey, DataKey]]) -> None:
        rows = sorted(keys, key=lambda pair: pair[0].version)
        if not rows:
            raise MissingKeyError(
                f"Tenant {tenant_id} has no data key: it was never provisioned, or its keys were destroyed.",
            )
        self.tenant_id = tenant_id
        self._versions = MappingProxyType({key.version: key for _, key in rows})
        self.current_version = max((row.version for row, _ in rows if row.status == "current"), default=None)
        self.search_versions = tuple(row.version for row, _ in reversed(rows) if row.status in SEARCHED)
        self._sealers: dict[tuple[str, str, Kind], Sealer] = {}
        self._rows: dict[tuple[str, tuple[tuple[str, Kind], ...]], RowSealer] = {}

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError("A tenant's keys do not change; load them again.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<TenantKeys tenant={self.tenant_id} versions={self.versions} current={self.current_version}>"

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that opens, in order."""
        return tuple(self._versions)

    def encryption(self, version: int | None = None) -> SealingKey:
        """The AES-256-GCM key of a version, the current one by default."""
        return self._key(self.current_version if version is None else version).sealing()

    def index(self, label: str, version: int | None = None) -> IndexKey:
        """The HMAC key of a blind index (``BlindSpec.label``), of the current version by default."""
        return self._key(self.current_version if version is None else version).index(label)

    @forgetful
    def blind(self, label: str, spec: BlindSpec, value: object) -> bytes | None:
        """The digest to store beside a value; None when the index has nothing to hold of it."""
        return spec.digest(self.index(label), value)

    @forgetful
    def blind_column(self, label: str, spec: BlindSpec, values: Iterable[object]) -> list[bytes | None]:
        """``blind`` for one value after the other: many rows have one key and one normalisation."""
        return spec.digest_column(self.index(label), values)

    @forgetful
    def blind_row(self, wanted: Iterable[tuple[str, BlindSpec, object]]) -> list[bytes | None]:
        """``blind`` for each label, spec and value: the hashes of one row."""
        return [digest for label, spec, value in wanted for digest in spec.digest_column(self.index(label), (value,))]

    @forgetful
    def blind_all(self, label: str, spec: BlindSpec, value: object) -> list[bytes]:
        """The digests to look for, newest key first; more than one while keys are rotated."""
        digests = [spec.digest(self._key(version).index(label), value) for version in self.search_versions]
        return [digest for digest in digests if digest is not None]

    def sealer(self, table: str, column: str, kind: Kind) -> Sealer:
        """Seals and opens one column, whose values are of that kind."""
        place = table, column, kind
        sealer = self._sealers.get(place)
        if sealer is None:
            sealer = Sealer(self._versions, self.current_version, self.tenant_id, table, column, kind)
            self._sealers[place] = sealer
        return sealer

    def row(self, table: str, columns: tuple[tuple[str, Kind], ...]) -> RowSealer:
        """Seals and opens these columns of a table together, in this order."""
        place = table, columns
        row = self._rows.get(place)
        if row is None:
            row = self._rows[place] = RowSealer([self.sealer(table, column, kind) for column, kind in columns])
        return row

    def _key(self, version: int | None) -> DataKey:
        key = None if version is None else self._versions.get(version)
        if key is None:
            what = "in use for this" if version is None else f"with version {version}"
            raise MissingKeyError(
                f"Tenant {self.tenant_id} has no data key {what}. Load its keys again, or finish its rotation.",
                version=version,
            )
        return key
