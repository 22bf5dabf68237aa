"""Mistakes in the class of a table, refused when the class is made rather than when a migration runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piccolo.columns import Array, Column, ForeignKey, Serial
from piccolo.columns.base import OnDelete

from core.access.permissions import COMMANDS, PERMISSIONS, ROLES, roles_for
from core.columns import DIGESTED, BlindIndex, Encrypted, TenantForeignKey, TenantId
from core.errors import ConfigurationError
from core.schema import Index, Partitions, Unique
from core.schema.declarations import constraint_of

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable, TenantTable

__all__ = [
    "refuse_columns",
    "refuse_for_ever",
    "refuse_misspelt",
    "refuse_namesake",
    "refuse_partitions",
    "refuse_reference",
]

# Bytes of a table's name: a function is called "capture_" and the name, and PostgreSQL cuts names at 63 bytes.
LONGEST = 55
# The modules of classes whose attributes no column may replace.
OURS = ("core.tenant_table", "core.audit.mixin")


def refuse_columns(cls: type[ProtectedTable]) -> None:
    """Raise ``ConfigurationError`` for a name or a column that the table cannot have."""
    columns = cls._meta.columns
    taken = [
        c._meta.name
        for c in columns
        if any(not isinstance(vars(k).get(c._meta.name, c), Column) for k in cls.__mro__ if k.__module__ in OURS)
    ]
    if taken:
        raise ConfigurationError(
            f"{cls.__name__}.{taken[0]} means something to Charthold. Call the column otherwise, with "
            f'db_column_name="{taken[0]}".'
        )
    if len(cls._meta.tablename.encode()) > LONGEST:
        raise ConfigurationError(
            f"The name of the table {cls._meta.tablename} has more than {LONGEST} bytes, and PostgreSQL would cut "
            "what is named after it. Give it a shorter one."
        )
    if serial := [c._meta.name for c in columns if isinstance(c, Serial)]:
        raise ConfigurationError(
            f"{cls.__name__}.{serial[0]} would count the rows of all tenants. Count a tenant's own, or use its id."
        )
    for column in columns:
        if isinstance(column, Encrypted):
            _refuse_index_of_envelopes(cls, column)
        elif isinstance(column, Array):
            _refuse_sealed_elements(cls, column)
        elif isinstance(column, BlindIndex):
            _refuse_what_is_not_digested(cls, column)
    if any(isinstance(c, TenantId) for c in columns):
        _refuse_unique_over_tenants(cls)


def _refuse_unique_over_tenants(cls: type[ProtectedTable]) -> None:
    """Threat: whoever is told that a value is taken learns what another tenant has, and keeps it from them too."""
    said = "would be unique over all tenants, so that one could tell what another has. Write: "
    for column in cls._meta.columns:
        if column._meta.unique and not isinstance(column, TenantForeignKey):
            name = column._meta.db_column_name
            raise ConfigurationError(
                f"{cls.__name__}.{column._meta.name} {said}"
                f'declares = (Unique(name="{cls._meta.tablename}_{name}_key", columns=("tenant_id", "{name}")),)'
            )
    for key in (*cls.declares, *map(constraint_of, cls._meta.constraints)):
        if (isinstance(key, Unique) or (isinstance(key, Index) and key.unique)) and key.columns[0] != "tenant_id":
            columns = ("tenant_id", *(c for c in key.columns if c != "tenant_id"))
            raise ConfigurationError(f"{cls.__name__}: {key.name} {said}columns={columns}".replace("'", '"'))


def _refuse_index_of_envelopes(cls: type[ProtectedTable], column: Encrypted[Any]) -> None:
    """No two envelopes are equal, and long ones do not fit into an index."""
    name, table = column._meta.name, cls._meta.tablename
    if column._meta.unique:
        raise ConfigurationError(
            f"{cls.__name__}.{name} is encrypted: no two values are equal in the database. Give it a BlindIndex, and "
            f'declare Index(name="{table}_{name}_key", columns=("tenant_id", "<blind index>"), unique=True).'
        )
    if column._meta.index:
        raise ConfigurationError(
            f"{cls.__name__}.{name} is encrypted, so index=True would find nothing. Declare a BlindIndex beside it."
        )


def _refuse_sealed_elements(cls: type[ProtectedTable], column: Array) -> None:
    inner: Column = column
    while isinstance(inner, Array):
        inner = inner.base_column
    if isinstance(inner, (Encrypted, BlindIndex)):
        raise ConfigurationError(
            f"{cls.__name__}.{column._meta.name} is an array of {type(inner).__name__}, which is sealed for a column, "
            "not for an element. Keep the list in an EncryptedJSON, or its elements in a table of their own."
        )


def _refuse_what_is_not_digested(cls: type[ProtectedTable], index: BlindIndex) -> None:
    """A kind that does not fit its column would fail at each write; an unknown name, in the first migration."""
    sealed = {c._meta.name: c for c in cls._meta.columns if isinstance(c, Encrypted)}
    said, compound = f"{cls.__name__}.{index._meta.name}", index.spec.kind == "compound"
    kinds = [part.kind for part in index.spec.parts] if compound else [index.spec.kind]
    for name, kind in zip(index.of, kinds, strict=True):
        if name not in sealed:
            raise ConfigurationError(
                f"{said} is a blind index of {name!r}, which is no encrypted column of the table. It may be of: "
                f"{', '.join(sealed)}."
            )
        column = sealed[name]
        # A compound index is searched for equality of all its parts.
        known = [k for k in DIGESTED[column.kind] if not compound or k in ("exact", "folded")]
        if not known:
            raise ConfigurationError(
                f"{said} is a blind index of {cls.__name__}.{name}, an {type(column).__name__}, which no index "
                "digests. Keep what is searched in an encrypted column of its own."
            )
        if kind not in known:
            raise ConfigurationError(
                f"{said} is of the kind {kind}, which is none of {cls.__name__}.{name} ({type(column).__name__}). "
                f"It may be: {', '.join(known)}."
            )


def refuse_reference(cls: type[TenantTable], column: ForeignKey[Any]) -> None:
    """Raise ``ConfigurationError`` for a reference of the wrong kind. Called when all tables are known."""
    from core.tenant_table import ProtectedTable, TenantTable  # late: it imports this

    said, meta = f"{cls.__name__}.{column._meta.name}", column._foreign_key_meta
    to = meta.resolved_references
    if issubclass(to, TenantTable):
        if not isinstance(column, TenantForeignKey):
            raise ConfigurationError(
                f"{said} is a plain ForeignKey, which could point at another tenant's row. Use TenantForeignKey."
            )
    elif issubclass(to, ProtectedTable):
        raise ConfigurationError(f"{said} refers to {to.__name__}, which nothing can. Keep the id in a UUID column.")
    elif isinstance(column, TenantForeignKey):
        raise ConfigurationError(
            f"{said} is a TenantForeignKey, and {to.__name__} belongs to no tenant. Write: "
            f"ForeignKey({to.__name__}, on_delete=OnDelete.restrict)"
        )
    elif meta.on_delete not in (OnDelete.restrict, OnDelete.no_action):
        raise ConfigurationError(
            f"{said} would change rows of all tenants when a {to.__name__} is deleted. Give it "
            "on_delete=OnDelete.restrict."
        )


def refuse_namesake(cls: type[TenantTable]) -> None:
    """Raise ``ConfigurationError`` for a table of another schema that would have the permissions of one of ours."""
    meta = cls._meta
    if meta.schema not in (None, "public") and meta.tablename in PERMISSIONS and cls.permissions is None:
        raise ConfigurationError(
            f"{cls.__name__} has the name of a table of Charthold, and would have its permissions. Give it others, or "
            "another name."
        )


def refuse_partitions(cls: type[TenantTable]) -> None:
    """Raise ``ConfigurationError`` for partitions of the table.

    Threat: PostgreSQL makes a delete and an insert of an update that moves a row between partitions, and fires neither
    the trigger that records an update nor those that record the others.
    """
    if any(isinstance(item, Partitions) for item in cls.declares):
        raise ConfigurationError(
            f"{cls.__name__}.declares has Partitions, which no table of tenants can have: rows would move between them "
            "without a record. Leave them out."
        )


def refuse_for_ever(cls: type[TenantTable]) -> None:
    """Raise ``ConfigurationError`` for sealed columns that no admin may seal anew: their keys could not be rotated."""
    table, permissions = cls._meta.tablename, cls.permissions
    sealed = [c._meta.name for c in cls._meta.columns if isinstance(c, Encrypted)]
    able = [
        role
        for role in ("admin", "system")
        if all(role in roles_for(table, command, permissions) for command in ("select", "update"))
    ]
    if sealed and not able and roles_for(table, "insert", permissions):
        raise ConfigurationError(
            f"{cls.__name__}.{sealed[0]} is encrypted, and a rotation of keys seals it anew, which is an update by an "
            "admin or the system. Let one of them select and update the table."
        )


def refuse_misspelt(cls: type[TenantTable]) -> None:
    """Raise ``ConfigurationError`` for an unknown name in what the class says about itself.

    Threat: a misspelt name protects nothing, silently: the value that it should keep out of the log is in it.
    """
    permissions, facility = cls.permissions or {}, [cls.facility_column] if cls.facility_column else []
    for said, names, known in (
        ("permissions", permissions, COMMANDS),
        ("permissions", [role for roles in permissions.values() for role in roles], ROLES),
        ("privileges", cls.privileges or (), COMMANDS),
        ("whole_tenant", cls.whole_tenant, COMMANDS),
        ("unrecorded", cls.unrecorded, [c._meta.name for c in cls._meta.columns]),
        ("facility_column", facility, [c._meta.db_column_name for c in cls._meta.columns]),
        ("facility_from", cls.facility_from or (), [c._meta.name for c in cls._meta.foreign_key_columns]),
    ):
        if unknown := [name for name in names if name not in known]:
            raise ConfigurationError(f"{cls.__name__}.{said} names {unknown[0]!r}. It may name: {', '.join(known)}.")
