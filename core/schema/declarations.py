"""Where declarations are found: on the tables, and shared by an app."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from piccolo import constraints as piccolo_constraints
from piccolo.columns import ForeignKey
from piccolo.table import Table

from core.errors import MigrationError
from core.schema.constraint import Check, Constraint, PrimaryKey, References, Unique
from core.schema.grant import Grant
from core.schema.index import Index
from core.schema.object import SchemaObject
from core.schema.quoting import split_table, table_name
from core.schema.role import Role
from core.settings import settings

__all__ = [
    "constraint_of",
    "declared_roles",
    "in_dependency_order",
    "objects_of",
    "register_shared",
    "shared_objects",
    "sort_objects",
    "topological",
    "verify",
]

_shared: dict[str, tuple[SchemaObject, ...]] = {}


def register_shared(app_name: str, objects: Iterable[SchemaObject]) -> None:
    """Declare what the tables of an app share: roles, namespaces, domains, functions. Replaces an earlier call's."""
    found = tuple(objects)
    for item in found:
        if type(item).of_table:
            raise MigrationError(f"The {item} belongs to a table. Declare it in the table's schema_objects.")
    verify(found)
    _shared[app_name] = found


def shared_objects(app_name: str) -> tuple[SchemaObject, ...]:
    """What ``register_shared`` was given for the app."""
    return _shared.get(app_name, ())


def declared_roles() -> list[str]:
    """The roles that the apps declare, as this cluster knows them."""
    names = {item.name for objects in _shared.values() for item in objects if isinstance(item, Role)}
    return sorted(settings().role_prefix + name for name in names)


def constraint_of(constraint: piccolo_constraints.Constraint) -> Constraint | None:
    """Piccolo's ``Check`` and ``Unique`` as ours, so that a changed condition is seen. None for any other."""
    name = constraint._meta.name
    if type(constraint) is piccolo_constraints.Check:
        return Check(name, condition=constraint.get_condition_str())
    if type(constraint) is piccolo_constraints.Unique:
        columns = tuple(cast("list[str]", constraint.get_column_names()))
        return Unique(name, columns=columns, nulls_distinct=constraint.nulls_distinct)
    return None


def objects_of(table_class: type[Table]) -> tuple[SchemaObject, ...]:
    """Everything declared on a table, bound to it, in creation order. A function that only it uses may be among it."""
    declared = getattr(table_class, "schema_objects", ())
    declared = declared() if callable(declared) else declared
    ours = [ours for theirs in table_class._meta.constraints if (ours := constraint_of(theirs)) is not None]
    meta = table_class._meta
    bound = [item.bind(meta.schema, meta.tablename) for item in (*declared, *ours)]
    verify(bound)
    for column in meta.foreign_key_columns:
        _refuse_half_a_key(table_class, column)
    return tuple(sort_objects(bound))


def _refuse_half_a_key(table_class: type[Table], column: ForeignKey[Any]) -> None:
    """PostgreSQL would, when the step runs: what is unique only with another column is no target."""
    to, target = column._foreign_key_meta.resolved_references, column._foreign_key_meta.resolved_target_column
    declared = getattr(to, "schema_objects", ())
    keys = [k for k in (declared() if callable(declared) else declared) if isinstance(k, PrimaryKey)]
    if " REFERENCES " in column.ddl and keys and keys[0].columns != (target._meta.db_column_name,):
        raise MigrationError(
            f"{table_class.__name__}.{column._meta.name} refers to {to.__name__}.{target._meta.name}, which is unique "
            f"only as {', '.join(keys[0].columns)}. Make {table_class.__name__} a TenantTable and the column a "
            "TenantForeignKey, or keep the id in a UUID column."
        )


def sort_objects(objects: Iterable[SchemaObject]) -> list[SchemaObject]:
    """By rank, then table, then name. Shared objects of one rank keep the order in which they were declared."""
    return sorted(objects, key=lambda item: (item.place, item.table, item.title if item.table else ""))


def verify(objects: Iterable[SchemaObject]) -> None:
    """Refuse what PostgreSQL would refuse later, or worse, would accept: two objects under one name."""
    seen: set[Any] = set()
    relations: dict[tuple[str, str], SchemaObject] = {}
    granted: dict[tuple[str, str, str], Grant] = {}
    for item in objects:
        if item.key in seen:
            raise MigrationError(f"The {item} is declared twice.")
        seen.add(item.key)
        if isinstance(item, Index | Constraint) and not isinstance(item, Check | References):
            # Unique constraints and primary keys are indexes, and indexes of a schema share their names with tables.
            relation = (split_table(item.table)[0], item.title)
            if relation in relations:
                raise MigrationError(
                    f"The {item} and the {relations[relation]} share a name. Put the table's before it."
                )
            relations[relation] = item
        if isinstance(item, Grant):
            for privilege in item.privileges:
                # A table-wide REVOKE takes the columns' grants with it, so the two must not overlap.
                entry = (item.table, item.to, privilege)
                other = granted.setdefault(entry, item)
                if other is not item and not (item.columns and other.columns):
                    raise MigrationError(f"The {item} and the {other} both give {privilege}. Keep one.")


def in_dependency_order(tables: Sequence[type[Table]]) -> list[type[Table]]:
    """Referenced tables first, by ForeignKey columns and ``References``, then by name: the same on every run."""
    by_name = {table_name(table): table for table in tables}
    needs: dict[str, set[str]] = {}
    for name, table in sorted(by_name.items()):
        targets = {item.to_table for item in objects_of(table) if isinstance(item, References)}
        for column in table._meta.columns:
            if isinstance(column, ForeignKey):
                targets.add(table_name(column._foreign_key_meta.resolved_references))
        needs[name] = {target for target in targets if target in by_name and target != name}
    return [by_name[name] for name in topological(needs)]


def topological(needs: dict[str, set[str]]) -> list[str]:
    """Level by level, each level by name. A cycle is no error: foreign keys are added after all tables."""
    sorter = TopologicalSorter(needs)
    try:
        sorter.prepare()
    except CycleError:
        cut = sorted(needs)
        return topological({name: {n for n in needs[name] if n < name} for name in cut})
    ordered: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        ordered += ready
        sorter.done(*ready)
    return ordered
