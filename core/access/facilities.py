"""What a user who is bound to facilities sees: the rows of these, and whatever refers to a row that the user sees.

Threat: a table of notes about clients shows those of all facilities to whom its author did not think of. So a table is
narrowed by what it refers to, without being asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from piccolo.columns import Column, ForeignKey
from piccolo.table import Table

from core.access.permissions import roles_for
from core.errors import ConfigurationError
from core.schema.quoting import name_of, quote_ident

if TYPE_CHECKING:
    from core.tenant_table import TenantTable

__all__ = ["client_columns", "decisive", "narrowing", "within"]

FACILITY = "facility"  # the table by whose rows users may be bound
CLIENT = "client"  # the table of which an emergency opens one row


def narrowing(table: type[TenantTable]) -> list[Column]:
    """The columns by which the table is narrowed; none: the whole tenant sees its rows.

    These are the references that ``facility_from`` names; or else those to facilities; or else the one reference that
    is nearest to a facility, because each costs the planner the policies of its table. Raises ``ConfigurationError``
    for a reference that is named and leads to no facility.
    """
    if table.facility_column is not None:
        return [column for column in table._meta.columns if column._meta.db_column_name == table.facility_column]
    named = table.facility_from
    ways = {
        column: way_from(column._foreign_key_meta.resolved_references, frozenset({table}))
        for column in table._meta.foreign_key_columns
        if named is None or column._meta.name in named
    }
    if named is not None:
        if lost := [column._meta.name for column, way in ways.items() if way is None]:
            raise ConfigurationError(
                f"{table.__name__}.facility_from names {lost[0]!r}, which leads to no facility that users may see by "
                "it, so everybody in the tenant would see the rows. Say so with (), or name another reference."
            )
        return list(ways)
    if direct := [column for column, way in ways.items() if way == 0]:
        return list(direct)
    near = [(way, column._meta.null, at) for at, (column, way) in enumerate(ways.items()) if way is not None]
    if not near:
        _refuse_unread_ways(table, ways)
    return [list(ways)[min(near)[2]]] if near else []


def _refuse_unread_ways(table: type[TenantTable], references: Iterable[ForeignKey[Any]]) -> None:
    """Threat: what leads to a facility by a table that no role may read would be shown to the whole tenant."""
    for column in references:
        to = column._foreign_key_meta.resolved_references
        if way_from(to, frozenset({table}), unread=True) is not None:
            raise ConfigurationError(
                f"{table.__name__}.{column._meta.name} leads to a facility only by a table that no role may read: it "
                "narrows nobody. Say with facility_from = () that everybody in the tenant sees the rows, or let a role "
                "select that table."
            )


def within(table: type[TenantTable]) -> str | None:
    """The condition on the rows that a bound user sees, for the table's policies; None: on all of them.

    In an emergency that is the client's row, and what refers to it by ``opened_by()``.
    """
    narrowed = {column._meta.db_column_name: seen_by(table, column) for column in narrowing(table)}
    opened = {column._meta.db_column_name: shown_by(table, column) for column in opened_by(table)}
    usual, shown = all_of(narrowed), all_of(opened)
    if usual is None or shown is None or narrowed.keys() == opened.keys():
        # What is narrowed by its client alone asks the client's own policies, which know of emergencies.
        return usual
    if client_columns(table) != list(opened):
        # Or a bound user without an emergency would see, by another reference, what their facilities do not show.
        shown = f"(select charthold.emergency_client()) is not null and ({shown})"
    return f"{usual} or {shown}"


def opened_by(table: type[Table], below: frozenset[type[Table]] = frozenset()) -> list[Column]:
    """The references by which an emergency shows the table's rows; none where the whole tenant sees them.

    ``below``: the tables from which references led here.
    """
    if is_ours(table, CLIENT):
        return [table._meta.primary_key]
    if not of_tenants(table) or table in below or not roles_for(table._meta.tablename, "select", table.permissions):
        return []
    if not narrowing(table):
        return []
    ways: dict[Column, int] = {
        column: way
        for column in table._meta.foreign_key_columns
        if (way := way_to_client(column._foreign_key_meta.resolved_references, below | {table})) is not None
    }
    return decisive(table, ways)


def decisive(table: type[TenantTable], ways: Mapping[Column, int]) -> list[Column]:
    """Of the references that lead to a client, each in so many steps, those that say whose a row is.

    They are those by which the table is narrowed; where none of these leads to a client, the one of the fewest steps.
    Where there are several such, as to a patient and to a payer, nobody knows whose row it is, and none is taken.
    """
    if leading := [column for column in narrowing(table) if column in ways]:
        return leading
    near = [column for column, way in ways.items() if way == min(ways.values())]
    required = [column for column in near if not column._meta.null]
    return near if len(near) == 1 else required if len(required) == 1 else []


def way_to_client(table: type[Table], below: frozenset[type[Table]]) -> int | None:
    """How many references lie between a table and the clients, as an emergency goes; None when none leads there."""
    if is_ours(table, CLIENT):
        return 0
    ways = [
        way_to_client(column._foreign_key_meta.resolved_references, below | {table})
        for column in opened_by(table, below)
        if isinstance(column, ForeignKey)
    ]
    there = [way for way in ways if way is not None]
    return 1 + max(there) if there else None


def client_columns(table: type[TenantTable]) -> list[str]:
    """The columns by which an emergency shows the table's rows and that hold the client itself."""
    return [column._meta.db_column_name for column in opened_by(table) if is_ours(referred(table, column), CLIENT)]


def referred(table: type[TenantTable], column: Column) -> type[Table]:
    """The table whose row the column names: another's, or its own."""
    return column._foreign_key_meta.resolved_references if isinstance(column, ForeignKey) else table


def seen_by(table: type[TenantTable], column: Column) -> str:
    """The condition that the user sees what the column refers to."""
    name, to = column._meta.db_column_name, referred(table, column)
    direct = not isinstance(column, ForeignKey) or is_facility(to)
    return in_facility(name) if direct else with_row_of(to, table, name)


def shown_by(table: type[TenantTable], column: Column) -> str:
    """The condition that an emergency shows what the column refers to."""
    name, to = column._meta.db_column_name, referred(table, column)
    return of_emergency(name) if is_ours(to, CLIENT) else with_row_of(to, table, name)


def way_from(table: type[Table], below: frozenset[type[Table]], *, unread: bool = False) -> int | None:
    """How many references lie between a table and the facilities; None when none leads there.

    ``below``: the tables from which references led here; a way back to one of them does not count. ``unread``: whether
    a way by a table that no role may read does.
    """
    if is_facility(table):
        return 0
    if not of_tenants(table) or table in below:
        return None
    if not unread and not roles_for(table._meta.tablename, "select", table.permissions):
        return None  # nobody may ask it
    if table.facility_column is not None:
        return 1
    named = table.facility_from
    ways = [
        way_from(column._foreign_key_meta.resolved_references, below | {table}, unread=unread)
        for column in table._meta.foreign_key_columns
        if named is None or column._meta.name in named
    ]
    there = [way for way in ways if way is not None]
    if named is not None:
        # All of them narrow it.
        return 1 + max(there) if there and len(there) == len(ways) else None
    return 1 + min(there) if there else None


def is_facility(table: type[Table]) -> bool:
    return is_ours(table, FACILITY)


def is_ours(table: type[Table], name: str) -> bool:
    return table._meta.tablename == name and table._meta.schema in (None, "public")


def of_tenants(table: type[Table]) -> TypeGuard[type[TenantTable]]:
    from core.tenant_table import TenantTable  # late: it is made with this

    return issubclass(table, TenantTable)


def in_facility(column: str) -> str:
    """The condition that the row is of one of the user's facilities."""
    return f"tenant_id::text || {quote_ident(column)}::text = any ((select charthold.actor_places())::text[])"


def of_emergency(column: str) -> str:
    """The condition that the row is of the client whose chart the user opened in an emergency."""
    return f"tenant_id::text || {quote_ident(column)}::text = (select charthold.emergency_client())"


def with_row_of(parent: type[Table], table: type[Table], column: str) -> str:
    """The condition that the user sees the row of ``parent`` which the column refers to: its own policies are asked.

    The tenant stands in a CASE: the id finds the row, and the planner would take any index of the tenant for as good.
    """
    on = name_of(table)
    here = f"case when parent.tenant_id = {on}.tenant_id then true end"
    return f"exists (select from {name_of(parent)} as parent where parent.id = {on}.{quote_ident(column)} and {here})"


def all_of(conditions: Mapping[str, str]) -> str | None:
    """The condition that a column is not null, and that what is asked of each such column holds: column -> asked."""
    if len(conditions) < 2:
        return next(iter(conditions.values()), None)
    each = [f"({quote_ident(column)} is null or {condition})" for column, condition in conditions.items()]
    return f"coalesce({', '.join(map(quote_ident, conditions))}) is not null and {' and '.join(each)}"
