"""Arguments that are made when a statement runs: the tenant, ciphertext, blind indexes.

Never compiled in: ``freeze()`` keeps arguments for ever, and a tenant kept so would cross tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from core.crypto.derive import Secret, forgetful
from core.crypto.values import Kind

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys

__all__ = ["LATE", "TENANT", "Deferred", "Sealed", "bind", "needs_keys"]


class _Tenant:
    """The open scope's tenant."""

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> UUID:
        return tenant

    def __repr__(self) -> str:
        return "<tenant>"


TENANT = _Tenant()


class Sealed(Secret):
    """A value to be sealed for one row. Its repr shows nothing."""

    __slots__ = ("column", "kind", "row_id", "table", "value")

    def __init__(self, table: str, column: str, row_id: UUID, value: Any, kind: Kind) -> None:
        self.table = table
        self.column = column
        self.row_id = row_id
        self.value = value
        self.kind = kind

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> bytes | None:
        assert keys is not None
        return keys.sealer(self.table, self.column, self.kind).seal(self.row_id, self.value)

    def __repr__(self) -> str:
        return "<encrypted>"


class Deferred(Secret):
    """An argument made by a function of the tenant's keys: a blind index, a column of sealed values."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[TenantKeys], Any]) -> None:
        self.make = make

    def bind(self, tenant: UUID, keys: TenantKeys | None) -> Any:
        assert keys is not None
        return self.make(keys)

    def __repr__(self) -> str:
        return "<encrypted>"


LATE = (_Tenant, Sealed, Deferred)


@forgetful  # what the arguments are made of is plaintext
def bind(arguments: Sequence[Any], tenant: UUID, keys: TenantKeys | None) -> list[Any]:
    """The arguments as they go on the wire."""
    return [a.bind(tenant, keys) if isinstance(a, LATE) else a for a in arguments]


def needs_keys(arguments: Sequence[Any]) -> bool:
    """Whether any argument is made with the tenant's keys."""
    return any(isinstance(a, (Sealed, Deferred)) for a in arguments)
