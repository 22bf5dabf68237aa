"""What a table of tenants is born with in the database: keys, references, indexes, policies, grants and triggers.

All of it follows from the table's columns and from what its class says, so nobody can forget any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo.columns import BigInt, Boolean, Column, Date, Integer, SmallInt, Timestamp, Timestamptz

from core.access.facilities import within
from core.access.permissions import COMMANDS, roles_for
from core.access.policies import policies
from core.audit.capture import capture_function, capture_triggers
from core.class_rules import refuse_reference
from core.columns import BlindIndex, TenantForeignKey
from core.schema import (
    Grant,
    Index,
    PrimaryKey,
    References,
    RowSecurity,
    SchemaObject,
    Statement,
    StorageParameters,
    Trigger,
)
from core.schema.quoting import name_of, quote_ident, table_name

if TYPE_CHECKING:
    from core.tenant_table import ProtectedTable, TenantTable

__all__ = ["protections", "unsampled"]

# What the planner may keep a sample of: values that are nobody's.
SAMPLED_TYPES = (BigInt, Boolean, Integer, SmallInt)
SAMPLED = ("action_type", "kind", "role", "status", "table_name")
# Those to which a collation applies.
TEXT_TYPES = ("TEXT", "VARCHAR")
# Types whose equal values are the same. Others have equal ones that differ: 1.0 and 1.00, a month and 30 days.
EXACT_TYPES = (
    "BIGINT", "BOOLEAN", "BYTEA", "CHARTHOLD.ENVELOPE", "DATE", "INTEGER", "SMALLINT", "TEXT", "TIME", "TIMESTAMP",
    "TIMESTAMPTZ", "UUID", "VARCHAR",
)  # fmt: skip


def protections(table: type[TenantTable]) -> tuple[SchemaObject, ...]:
    """Everything that the table is born with, beside its columns and what it declares."""
    name, granted = table._meta.tablename, table.privileges
    if granted is None:
        granted = tuple(command for command in COMMANDS if roles_for(name, command, table.permissions))
    return (
        PrimaryKey(name=f"{name}_pkey", columns=("tenant_id", "id")),
        # HOT updates need room on the page.
        StorageParameters(parameters=(("fillfactor", "80"),)),
        *_references(table),
        *_indexes(table),
        RowSecurity(),
        *policies(
            name,
            "tenant_id",
            permissions=table.permissions,
            within=within(table),
            whole_tenant=table.whole_tenant,
        ),
        *([Grant(privileges=granted, to="app_runtime")] if granted else ()),
        Trigger(
            name="keep_identity",
            timing="before",
            events=("update",),
            level="row",
            function="charthold.touch_tenant_row",
        ),
        *(_capture(table) if table.audited else ()),
        unsampled(table),
    )


def unsampled(table: type[ProtectedTable]) -> Statement:
    """Keeps identifying values out of the planner's statistics.

    Threat: EXPLAIN shows estimates made from a sample of all tenants' rows, whatever the policies say: how many rows a
    tenant has and, asked often enough, the very e-mail addresses. Without a sample there is no estimate to ask for.
    """
    columns = [
        c._meta.db_column_name
        for c in table._meta.columns
        if not isinstance(c, SAMPLED_TYPES) and c._meta.name not in SAMPLED
    ]
    alter = f"alter table {name_of(table)}\n    "

    def each(target: int) -> str:
        return alter + ",\n    ".join(f"alter column {quote_ident(c)} set statistics {target}" for c in columns)

    return Statement(
        name=f"planner_does_not_sample_{table._meta.tablename}",
        forwards=each(0),
        backwards=each(-1),
        after_tables=True,
    )


def _references(table: type[TenantTable]) -> list[SchemaObject]:
    found: list[SchemaObject] = []
    name, required = table._meta.tablename, False
    for column in table._meta.foreign_key_columns:
        refuse_reference(table, column)
        if not isinstance(column, TenantForeignKey):
            continue  # it refers to what all tenants share, and has Piccolo's own constraint
        required = required or not column._meta.null
        key = column._meta.db_column_name
        found.append(
            References(
                name=f"{name}_{key}_fkey",
                columns=("tenant_id", key),
                to_table=table_name(column._foreign_key_meta.resolved_references),
                to_columns=("tenant_id", "id"),
                on_delete=column._foreign_key_meta.on_delete.value.lower(),
            )
        )
    if not required:
        # RESTRICT: a tenant with rows is closed or shredded, never deleted. A table with a required reference to
        # another table of tenants needs no key of its own to the tenant: that row's reference holds it.
        found.append(
            References(
                name=f"{name}_tenant_id_fkey",
                columns=("tenant_id",),
                to_table="tenant",
                to_columns=("id",),
                on_delete="restrict",
            )
        )
    return found


def _indexes(table: type[TenantTable]) -> list[Index]:
    """One for each blind index, and one for each foreign key: a delete on the other side looks for its rows here."""
    declared = {o.columns[:2] for o in table.declares if isinstance(o, Index) and o.where is None}
    columns = {
        c._meta.db_column_name: c._meta.unique
        for c in table._meta.columns
        if isinstance(c, (TenantForeignKey, BlindIndex))
    }
    return [
        Index(name=f"{table._meta.tablename}_by_{column}", columns=("tenant_id", column), unique=unique)
        for column, unique in columns.items()
        if unique or ("tenant_id", column) not in declared
    ]


def _capture(table: type[TenantTable]) -> tuple[SchemaObject, ...]:
    """The function that records every change of the table, and the triggers that call it."""
    name, columns = table._meta.tablename, table._meta.columns
    recorded = [c._meta.db_column_name for c in table._layout.recorded if c._meta.name not in table.unrecorded]
    indexes = {
        c._meta.db_column_name: [table._meta.get_column_by_name(of)._meta.db_column_name for of in c.of]
        for c in columns
        if isinstance(c, BlindIndex)
    }
    capture = capture_function(
        name,
        recorded,
        loose=[c._meta.db_column_name for c in columns if _type(c) not in EXACT_TYPES],
        texts=[c._meta.db_column_name for c in columns if _type(c) in TEXT_TYPES],
        indexes=indexes,
        lengths={c._meta.db_column_name: c.spec.bits >> 3 for c in columns if isinstance(c, BlindIndex)},
        times={
            c._meta.db_column_name: c.column_type.lower()
            for c in columns
            if isinstance(c, (Date, Timestamp, Timestamptz))
        },
    )
    return (capture, *capture_triggers(name))


def _type(column: Column) -> str:
    """The type of the column's values, or of their elements, without a length."""
    written: str = column.column_type
    return written.upper().replace("[]", "").partition("(")[0]
