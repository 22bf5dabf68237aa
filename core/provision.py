"""Making a tenant, finding one by its slug, and opening or closing it: what happens before, or above, a scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from uuid import UUID

import asyncpg

from core.crypto.keyring import WrappedKey
from core.engine import engine
from core.errors import ChartholdError, ConfigurationError
from core.ids import uuid7
from core.scope import scope
from core.statements.explain import explain

__all__ = [
    "OPEN",
    "FoundTenant",
    "ListedTenant",
    "ProvisionedTenant",
    "find_admin",
    "find_tenant",
    "list_tenants",
    "provision_tenant",
    "set_tenant_status",
]

# In a command: every tenant.
RESERVED = "all"
# The statuses of a tenant in which its users can work, as charthold.principal has them, too.
OPEN = ("trial", "active")
TRIES = 5


@dataclass(frozen=True)
class ProvisionedTenant:
    """A new tenant and its first admin."""

    tenant_id: UUID
    admin_id: UUID


@dataclass(frozen=True)
class FoundTenant:
    """A tenant as a login page may know it."""

    tenant_id: UUID
    status: str

    @property
    def is_open(self) -> bool:
        """Whether its users can work in it."""
        return self.status in OPEN


@dataclass(frozen=True)
class ListedTenant(FoundTenant):
    """A tenant as its operator knows it; ``admin_id`` is one of its active admins, or None."""

    slug: str
    admin_id: UUID | None


async def provision_tenant(
    *,
    slug: str,
    name: str,
    admin_email: str,
    admin_name: str | None = None,
    time_zone: str = "UTC",
    retention_years: int = 6,
    trial: bool = False,
) -> ProvisionedTenant:
    """Make a tenant, its first data key and its first admin, in one transaction.

    Raises ``ChartholdError`` for a slug that is taken or reserved, and asyncpg's ``CheckViolationError``, naming the
    constraint, for a value that a table refuses. It uses no scope, and is refused inside a ``transaction()``.
    """
    if slug == RESERVED:
        raise ChartholdError(f"{slug!r} means every tenant to the commands. Choose another slug.")
    db, tenant, admin = engine(), uuid7(), uuid7()
    key: WrappedKey = await db.keyring.make_key(tenant)
    try:
        async with db.outside() as link:
            first = scope(tenant=tenant, actor=admin, reason="provision")
            await link.connection.execute(
                "select charthold.provision_tenant($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
                first.last_token(db.token_key, link.backend), tenant, slug, name, time_zone, retention_years, trial,
                admin, admin_email.strip().lower(), admin_name or admin_email.partition("@")[0],
                uuid7(), key.wrapped, key.kek,
            )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise ChartholdError(f"There is a tenant with the slug {slug!r} already. Choose another.") from None
    except asyncpg.PostgresError as error:
        raise explain(error) from None
    return ProvisionedTenant(tenant_id=tenant, admin_id=admin)


async def find_tenant(slug: str) -> FoundTenant | None:
    """The tenant with that slug: its id and status, which is all that is known before a scope exists."""
    async with engine().outside() as link:
        row = await link.connection.fetchrow("select tenant_id, status from charthold.find_tenant($1)", slug)
    return FoundTenant(row["tenant_id"], row["status"]) if row else None


async def list_tenants() -> list[ListedTenant]:
    """Every tenant, also the suspended and the closed, in the order of their slugs: for work that is done to each.

    Asks as the schema's owner; raises ``ConfigurationError`` when the login is not that.
    """
    async with engine().as_owner() as connection:
        try:
            rows = await connection.fetch(
                "select tenant_id, status, slug, charthold.find_principal(tenant_id, 'admin') as admin_id"
                " from charthold.tenant_directory order by slug"
            )
        except asyncpg.InsufficientPrivilegeError:
            raise ConfigurationError(
                "The tenants are listed by the owner of the schema. Set DATABASE_OWNER_URL to the owner's login."
            ) from None
    return [ListedTenant(**row) for row in rows]


async def find_admin(tenant: UUID) -> UUID:
    """An active admin of the tenant, for commands that name no actor. Asks as the schema's owner."""
    async with engine().as_owner() as connection:
        admin = await connection.fetchval("select charthold.find_principal($1, 'admin')", tenant)
    if admin is None:
        raise ChartholdError("The tenant has no active admin. Name an actor.")
    return cast("UUID", admin)


async def set_tenant_status(*, tenant: UUID, actor: UUID, status: str, reason: str) -> None:
    """Suspend, close or reopen a tenant, as the schema's owner: nobody inside a suspended tenant can.

    An update of the tenant in the same moment may be in the way; then it is tried again.
    """
    sql = "select charthold.set_tenant_status($1, $2, $3, $4)"
    async with engine().as_owner() as connection:
        for left in reversed(range(TRIES)):
            try:
                await connection.execute(sql, tenant, actor, status, reason)
            except asyncpg.DeadlockDetectedError:
                if not left:
                    raise
            except asyncpg.PostgresError as error:
                raise explain(error) from None
            else:
                return
