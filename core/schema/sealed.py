"""Changes of encrypted columns that no statement can make, refused when a step is generated.

Threat: an envelope is bound to the names that its table and its column have in the database. Renamed, or given another
type, every value of every row is lost, and PostgreSQL does it without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

from piccolo.apps.migrations.auto import DiffableTable
from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.columns import Column

from core.columns import BlindIndex, Encrypted
from core.errors import MigrationError
from core.schema.quoting import full_name

__all__ = ["alike", "bound", "refuse_change", "refuse_column_rename", "refuse_table_rename", "reindexed"]


def bound(column: Column) -> bool:
    """Whether what the column holds is bound to its name."""
    return isinstance(column, Encrypted | BlindIndex)


def alike(old: Column, new: Column) -> bool:
    """Whether one may be the other under a new name. A blind index may not: its hashes depend on its name, too."""
    return isinstance(old, Encrypted) == isinstance(new, Encrypted) and not isinstance(new, BlindIndex)


def refuse_column_rename(old: Column, new: Column, table: str) -> None:
    """Raise for an encrypted column that would have another name in the database."""
    if isinstance(old, Encrypted):
        name, was = new._meta.name, old._meta.db_column_name
        raise MigrationError(
            f"{table}.{name} is encrypted, and what rows hold is bound to the name {was} in the database: under "
            f"another none of it opens. Keep that name: {name} = {type(new).__name__}(db_column_name={was!r}, ...)."
        )


def refuse_table_rename(old: DiffableTable, new: DiffableTable) -> None:
    """Raise for a table with encrypted columns that would have another name in the database."""
    if sealed := [column._meta.name for column in old.columns if bound(column)]:
        raise MigrationError(
            f"{new.class_name}.{sealed[0]} is encrypted, and what rows hold is bound to the table's name in the "
            f"database, {old.tablename}: under another none of it opens. Keep that name there: "
            f"class {new.class_name}(..., tablename={old.tablename!r})."
        )


def refuse_change(old: Column, new: Column, table: str) -> None:
    """Raise for a column that becomes encrypted, ceases to be, or would hold envelopes of another kind."""
    if type(old) is type(new) or not (bound(old) or bound(new)):
        return
    name = new._meta.name
    raise MigrationError(
        f"{table}.{name} was {type(old).__name__} and is to be {type(new).__name__}. No statement can seal or open "
        "what rows hold, so that takes three steps: declare the new column beside the old, under another name; fill "
        "it in a scope of each tenant, with save(), as the application writes; then drop the old one."
    )


def reindexed(manager: MigrationManager) -> Iterator[str]:
    """The tables whose older rows lack hashes, or have others, in a blind index that a step adds or changes."""
    new = {table.class_name for table in manager.add_tables}
    for added in manager.add_columns.add_columns:
        if isinstance(added.column, BlindIndex) and added.table_class_name not in new:
            yield full_name(added.schema, added.tablename)
    for changed in manager.alter_columns.alter_columns:
        if changed.column_class is not None and issubclass(changed.column_class, BlindIndex):
            yield full_name(changed.schema, changed.tablename)
