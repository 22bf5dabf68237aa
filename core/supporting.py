"""The two tables that support the entities: tenants' wrapped data keys, and the seals of the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from piccolo.columns import UUID, Array, BigInt, Bytea, Integer, Text, Timestamptz

from core.columns import ActorId
from core.schema import Check, Index, Policy, SchemaObject, Unique
from core.schema.constraint import one_of
from core.tenant_table import TenantTable

__all__ = ["AuditSeal", "TenantKey"]

KEY_STATUSES = ("next", "current", "previous", "retired", "shredded")


class TenantKey(TenantTable, tablename="tenant_key"):
    """A version of a tenant's data key, wrapped by the key-encrypting key, which the database never sees.

    Every version opens what it sealed; the status says what else it is used for (``core/crypto/tenantkeys.py``).
    A shredded key has no bytes left.
    """

    version = Integer(default=None)
    wrapped = Bytea(default=None, null=True)
    kek = Text(default="")
    status = Text(default="current")

    # A copy of the wrapped key in the log would outlive its shredding.
    unrecorded = ("wrapped",)

    # Threat: whoever writes here can lock a whole tenant out, or shred it without a waiting period. The policies let
    # admins write, but only key work does, and it runs as the owner.
    privileges = ("select",)

    declares: ClassVar[Sequence[SchemaObject]] = (
        Unique(name="tenant_key_version_key", columns=("tenant_id", "version")),
        one_of("tenant_key_status_known", "status", KEY_STATUSES),
        Check(name="tenant_key_version_positive", condition="version > 0"),
        Check(name="tenant_key_shredded_is_empty", condition="(status = 'shredded') = (wrapped is null)"),
        # Two current keys would make it a matter of luck which one seals.
        Index(name="tenant_key_one_current", columns=("tenant_id",), unique=True, where="status = 'current'"),
    )


class AuditSeal(TenantTable, tablename="audit_seal"):
    """A signed head of a tenant's Merkle tree over the audit log (``core/audit/head.py``), with the leaves added by it.

    The signature covers every column but the last four; three of these are checked against what it covers.
    """

    version = Integer(default=None)
    tree_size = BigInt(default=None)
    root_hash = Bytea(default=None)
    era = Integer(default=None)
    cluster = BigInt(default=None)
    horizon = BigInt(default=None)
    sealed_at = Timestamptz(default=None)
    leaf_list = Bytea(default=None)
    previous = Bytea(default=None)
    key_id = Text(default=None)
    signature = Bytea(default=None)
    frontier = Bytea(default=None)
    record_ids = Array(base_column=UUID(default=None), default=None)
    leaf_hashes = Bytea(default=None)
    # Threat: a row that nobody signed stops sealing until it is deleted, and nothing else would say whose it is.
    sealed_by = ActorId()

    # A seal is about the log; a record of it there would call for the next seal.
    audited = False

    declares: ClassVar[Sequence[SchemaObject]] = (
        Policy(
            name="insert_as_oneself",
            command="insert",
            restrictive=True,
            check="sealed_by = (select charthold.actor_id())",
        ),
        # Two sealers cannot both grow the same tree, each from the head that was there.
        Unique(name="audit_seal_tree_size_key", columns=("tenant_id", "tree_size")),
        Unique(name="audit_seal_previous_key", columns=("tenant_id", "previous")),
        Check(name="audit_seal_tree_size_positive", condition="tree_size > 0 and era > 0 and horizon >= 0"),
        Check(
            name="audit_seal_hash_lengths",
            condition="octet_length(root_hash) = 32 and octet_length(leaf_list) = 32 and octet_length(previous) = 32",
        ),
        Check(name="audit_seal_signature_length", condition="octet_length(signature) = 64"),
        # Threat: a row that nobody signed takes the memory of the process that seals or verifies every tenant's log.
        Check(name="audit_seal_size", condition="octet_length(frontier) <= 2048 and cardinality(record_ids) <= 65536"),
        # Threat: one row that our side cannot read, or that writes on the terminal of who reads it.
        Check(name="audit_seal_key_id_form", condition="key_id ~ '^[0-9a-f]{16}$'"),
        Check(
            name="audit_seal_sealed_at_possible",
            condition="sealed_at >= '2000-01-01 00:00:00+00' and sealed_at < '9999-12-31 00:00:00+00'",
        ),
        Check(
            name="audit_seal_leaves_counted",
            condition="octet_length(leaf_hashes) = 32 * cardinality(record_ids)",
        ),
    )
