"""Arguments that are made when a statement runs: the tenant, ciphertext, blind indexes.

Never compiled in: ``freeze()`` keeps arguments for ever, and a tenant kept so would cross tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from core.crypto.derive import Secret, forgetful

if TYPE_CHECKING:
    from core.crypto.keyring import TenantKeys

__all__ = ["LATE", "TENANT", "Deferred", "bind", "needs_keys"]


class _Tenant:
    """The open scope's tenant."""

    def __repr__(self) -> str:
        # A query that is printed is SQL that a scope can run, as PiccoloCRUD does.
        return "(select charthold.tenant_id())"


TENANT = _Tenant()


class Deferred(Secret):
    """An argument made with the tenant's keys: an envelope, a blind index, a column of these. Shows nothing of it."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[TenantKeys], Any]) -> None:
        self.make = make

    def __repr__(self) -> str:
        return "<encrypted>"


LATE = (_Tenant, Deferred)


@forgetful  # what the arguments are made of is plaintext
def bind(arguments: Sequence[Any], tenant: UUID, keys: TenantKeys | None) -> list[Any]:
    """The arguments as they go on the wire; ``keys`` where any is made with them."""
    return [
        tenant if a is TENANT else a.make(keys) if isinstance(a, Deferred) else a  # type: ignore[arg-type]  # who needs keys has them
        for a in arguments
    ]


def needs_keys(arguments: Sequence[Any]) -> bool:
    """Whether any argument is made with the tenant's keys."""
    return any(isinstance(a, Deferred) for a in arguments)
