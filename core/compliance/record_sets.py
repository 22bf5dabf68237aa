"""A client's own copy: the designated record set, which an individual may have, 45 CFR 164.524 and 164.501.

It is the client's row and every row that refers to it, directly or by others: the tables of an application follow
without being asked for, because what is forgotten is withheld. A table that is no part of it says
``in_record_set = False``, as one of psychotherapy notes does, 164.524(a)(1)(i).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import Any
from uuid import UUID

from piccolo.columns import Column
from piccolo.columns.combination import And, Or
from piccolo.custom_types import Combinable
from piccolo.table import Table

from core.access.facilities import decisive
from core.access.minimum import shown_to
from core.access.permissions import EMERGENCY, roles_for
from core.audit.record import record
from core.columns import Encrypted
from core.engine import engine
from core.errors import ConfigurationError, ProtectedQueryError
from core.registered import tenant_tables
from core.schema.quoting import table_name
from core.scope import current_scope
from core.tables import Client, TenantTable, User

__all__ = ["RecordSet", "record_set"]


@dataclass(frozen=True)
class RecordSet:
    """What there was of a client at that time: the rows of each table by its name, the client's first.

    A row is a dict of its values, PHI opened; the oldest comes first. Columns that are ``secret`` are left out.
    """

    client_id: UUID
    made_at: datetime
    rows: Mapping[str, list[dict[str, Any]]] = field(repr=False)


async def record_set(client_id: UUID) -> RecordSet:
    """All that is kept about a client, for the client. PHI is recorded as read, and the copy as an ``export``.

    Raises ``ProtectedQueryError`` for a client or an actor who does not see all of it: a copy with gaps would say that
    there was no more; ``ConfigurationError`` for a table of which nobody can tell whose its rows are. It is of one
    moment; inside a transaction of yours it is as that is.
    """
    parts = {table: part for table in tenant_tables() if (part := part_of(table, client_id))}
    alone = engine().open_transaction is None
    async with engine().transaction() as transaction:
        if alone:
            # Threat: what is given to another client meanwhile, and what refers to it, is in neither's copy.
            await transaction.link.connection.execute("set transaction isolation level repeatable read")
        await _refuse_gaps(parts)
        rows = {}
        for table, part in sorted(parts.items(), key=lambda item: item[1].steps):
            query = table.select(*table.all_columns(["tenant_id"]), exclude_secrets=True).where(part.condition)
            rows[table_name(table)] = found = await query.order_by(table.created_at, table.id)
            await _refuse_lost(table, part.ways, [row["id"] for row in found])
        if not rows[Client._meta.tablename]:
            raise ProtectedQueryError(
                "There is no such client, or it is not yours to see. Ask with the id of one that you see."
            )
        made = RecordSet(client_id, datetime.now(UTC), rows)
        said = {"record_set": {name: len(found) for name, found in rows.items()}}
        await record("export", table=Client, record_id=client_id, new=said)
    return made


@dataclass(frozen=True)
class Part:
    """The rows of a table that are the client's: the condition on them, and how many references lie between."""

    condition: Combinable
    steps: int
    ways: tuple[Column, ...] = ()  # the references that lead to the client


def part_of(table: type[Table], client_id: UUID, below: frozenset[type[Table]] = frozenset()) -> Part | None:
    """The table's part of the record set; None for a table that has none.

    ``below``: the tables from which references led here: a way that leads back to one of them is none.
    """
    if table is Client:
        return Part(Client.id == client_id, 0)
    if not issubclass(table, TenantTable) or not table.in_record_set or table in below:
        return None
    ways: dict[Column, int] = {}
    conditions: dict[Column, Combinable] = {}
    for column in table._meta.foreign_key_columns:
        to: Any = column._foreign_key_meta.resolved_references
        if there := part_of(to, client_id, below | {table}):
            ways[column] = there.steps + 1
            conditions[column] = (
                column == client_id if to is Client else column.is_in(to.select(to.id).where(there.condition))
            )
    return _decided(table, ways, conditions) if ways else None


def _decided(table: type[TenantTable], ways: dict[Column, int], conditions: dict[Column, Combinable]) -> Part:
    """The part by the references that say whose a row is; of rows that have none of these, by those that are left."""
    decide = decisive(table, ways)
    if not decide:
        raise ConfigurationError(
            f"Nobody can tell whose the rows of {table.__name__} are: they refer to clients by "
            f"{' and by '.join(column._meta.name for column in ways)}. Name the one that says so in facility_from, or "
            "leave the table out with in_record_set = False."
        )
    steps = max(ways[column] for column in decide)
    # A row may do without one of them, but not without all.
    given: list[Combinable] = [column.is_not_null() for column in decide]
    fits: list[Combinable] = [Or(column.is_null(), conditions[column]) for column in decide]
    theirs = conditions[decide[0]] if len(decide) == 1 else And(reduce(Or, given), reduce(And, fits))
    taken = frozenset(decide)  # a list would ask by ==, which makes a condition of columns
    left = {column: way for column, way in ways.items() if column not in taken}
    named = any(column._meta.name in (table.facility_from or ()) for column in decide)
    if not left or named or not _may_lack(decide):
        return Part(theirs, steps, tuple(ways))
    without: list[Combinable] = [column.is_null() for column in decide]
    other = _decided(table, left, conditions)
    return Part(Or(theirs, And(reduce(And, without), other.condition)), max(steps, other.steps), tuple(ways))


def _may_lack(references: Iterable[Column]) -> bool:
    """Whether a row may have none of the references."""
    return all(column._meta.null for column in references)


async def _refuse_gaps(parts: Iterable[type[TenantTable]]) -> None:
    """Threat: policies hide rows without a word, and whoever is given the rest takes it for all."""
    scope = current_scope()
    if scope.emergency is not None:
        raise ProtectedQueryError("An emergency shows a part of the record. Ask in a scope without it.")
    actor = await User.objects().get(User.id == scope.actor)
    if actor is None or actor.facility_scope is not None:
        raise ProtectedQueryError(
            "Who is bound to facilities does not see all of a client's record. Let somebody ask who is not."
        )
    for table in parts:
        granted = roles_for(table._meta.tablename, "select", table.permissions)
        able = [role for role in granted if role != EMERGENCY]
        if actor.role not in able:
            raise ProtectedQueryError(
                f"The role {actor.role} does not see {table.__name__}, which is a part of the record. "
                + (f"Let somebody ask who is: {', '.join(able)}." if able else "Leave it out: in_record_set = False.")
            )
        copied = table.all_columns([c for c in table._meta.columns if c._meta.secret])
        for columns, roles in shown_to(column for column in copied if isinstance(column, Encrypted)):
            if actor.role not in roles:
                raise ProtectedQueryError(
                    f"The role {actor.role} is not shown {', '.join(columns)} of {table.__name__}, which is a part of "
                    f"the record. Let somebody ask who is: {', '.join(r for r in roles if r in able) or 'no role is'}."
                )


async def _refuse_lost(table: type[TenantTable], ways: Sequence[Column], found: list[UUID]) -> None:
    """Threat: a reply names what it answers, and no client: nothing finds it, and nobody misses it."""
    to_itself = [c for c in table._meta.foreign_key_columns if c._foreign_key_meta.resolved_references is table]
    if not found or not ways or not to_itself or not _may_lack(ways):
        return
    follows: list[Combinable] = [column.is_in(found) for column in to_itself]
    nobodys: list[Combinable] = [column.is_null() for column in ways]
    if await table.exists().where(And(reduce(Or, follows), reduce(And, nobodys))):
        raise ProtectedQueryError(
            f"A row of {table.__name__} follows one of this client's and says not whose it is, so the copy would lack "
            f"it. Fill in {' or '.join(column._meta.name for column in ways)} there."
        )
