"""Tables to which only the schema's owner has access.

``charthold.scope()`` reads token keys, principals and emergencies; the directory of tenants serves what happens before
a scope, or above it. Principals and the directory are copies, kept in step by triggers: the policies of ``tenant`` and
``app_user`` call ``scope()``, so neither it nor what comes before it can read those tables itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from piccolo.columns import UUID, Array, Boolean, Bytea, SmallInt, Text, Timestamptz
from piccolo.table import Table

from core.columns import CreatedAt, RowId
from core.schema import Check, Index, PrimaryKey, RowSecurity, SchemaObject, Trigger, Unique

__all__ = ["EmergencyRow", "Principal", "TenantDirectory", "TokenKeyRow"]


class Machinery:
    """What stands beside a table here is what it ``declares``, and no more."""

    declares: ClassVar[Sequence[SchemaObject]]

    @classmethod
    def schema_objects(cls) -> Sequence[SchemaObject]:
        return cls.declares


class TokenKeyRow(Machinery, Table, tablename="token_key", schema="charthold"):
    """A key that signs scopes, as the two padded blocks of HMAC (RFC 2104). Several are valid at once: it rotates."""

    id = Text(primary_key=True, default=None)
    inner_pad = Bytea(default=None)
    outer_pad = Bytea(default=None)
    created_at = CreatedAt()
    retired_at = Timestamptz(default=None, null=True)

    declares = (
        Check(
            name="token_key_pads_are_blocks",
            condition="octet_length(inner_pad) = 64 and octet_length(outer_pad) = 64",
        ),
        RowSecurity(forced=False),
    )


class TenantDirectory(Machinery, Table, tablename="tenant_directory", schema="charthold"):
    """Which tenants there are, by slug, whether they are open, and which wait to be shredded."""

    tenant_id = RowId()
    slug = Text(default=None)
    status = Text(default=None)
    # How long the tenant's audit records must be kept; asked when a month is archived.
    retention_years = SmallInt(default=None)
    # Since when the tenant waits for its keys to be destroyed. Here, where no tenant can write.
    shred_requested_at = Timestamptz(default=None, null=True)

    declares = (
        PrimaryKey(name="tenant_directory_pkey", columns=("tenant_id",)),
        Unique(name="tenant_directory_slug_key", columns=("slug",)),
        RowSecurity(forced=False),
    )


class Principal(Machinery, Table, tablename="principal", schema="charthold"):
    """The active users, and what each may do."""

    user_id = RowId()
    tenant_id = UUID(default=None)
    role = Text(default=None)
    facility_scope = Array(base_column=UUID(default=None), default=None, null=True)
    # Until when the user is locked, as after too many failed logins.
    locked_until = Timestamptz(default=None, null=True)
    # A copy of the tenant's state, so that scope() looks in one place.
    tenant_open = Boolean(default=None)
    # What scope() answers about the user; null for one who may do nothing now.
    standing = Text(default=None, null=True)

    declares = (
        PrimaryKey(name="principal_pkey", columns=("tenant_id", "user_id")),
        # As scope() looks: what a token names is not cast before its signature is known to hold.
        Index(name="principal_by_name", columns=('((tenant_id::text || user_id::text) collate "C")',), unique=True),
        Trigger(name="stand", timing="before", events=("insert", "update"), level="row", function="charthold.stand"),
        RowSecurity(forced=False),
    )


class EmergencyRow(Machinery, Table, tablename="emergency", schema="charthold"):
    """Who may read which client's chart until when. ``charthold.break_glass()`` writes it."""

    id = RowId()
    tenant_id = UUID(default=None)
    user_id = UUID(default=None)
    client_id = UUID(default=None)
    until = Timestamptz(default=None)

    declares = (
        PrimaryKey(name="emergency_pkey", columns=("tenant_id", "id")),
        # As charthold.emergency_of() looks: what a token names is not cast.
        Index(
            name="emergency_by_name",
            columns=("((tenant_id::text || 'emer' || replace(id::text, '-', '')) collate \"C\")",),
            unique=True,
        ),
        RowSecurity(forced=False),
    )
