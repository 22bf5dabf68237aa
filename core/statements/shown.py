"""What is shown, and the records of it: written by the statement that shows it, and again when a rollback took them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

from core.access.minimum import ShownTo
from core.crypto.derive import forgetful_later
from core.crypto.values import Kind

if TYPE_CHECKING:
    from piccolo.table import Table

    from core.wire.pool import Link

__all__ = ["Look", "Opened", "Record", "row_alias"]


class Record(NamedTuple):
    """A record of what was shown or done, kept so that it can be written again."""

    action: str
    table: str | None
    rows: Sequence[UUID | None]
    columns: Sequence[str] | None = None
    said: str | None = None  # a JSON document

    @classmethod
    def of_rows(cls, table: str, rows: Sequence[UUID], columns: Sequence[str]) -> Record:
        """That these columns of these rows were opened."""
        return cls("read", table, rows, columns)

    @classmethod
    def of_action(cls, action: str, table: str | None, row: UUID | None, said: str | None) -> Record:
        """That somebody did something; ``said`` is a JSON document."""
        return cls(action, table, [row], None, said)

    async def write(self, link: Link) -> None:
        """Write it, in the link's transaction and the scope that this is in."""
        if self.action == "read":
            call = "select charthold.record_read($1, $2::uuid[], $3::text[])"
            await link.connection.fetchval(call, self.table, self.rows, self.columns)
        else:
            call = "select charthold.record($1, $2, $3, null, $4::jsonb)"
            await link.connection.fetchval(call, self.action, self.table, self.rows[0], self.said)

    @forgetful_later
    async def write_late(self, link: Link, token: str) -> None:
        """Write it again, for whom the token names, in the link's transaction, which then has no scope."""
        await link.connection.fetchval(
            "select charthold.record_late($1, $2, $3, $4::uuid[], $5::text[], $6::jsonb)",
            token,
            self.action,
            self.table,
            self.rows,
            self.columns,
            self.said,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """The output positions that hold envelopes of one row of one table.

    Positions count from 0 in the rows that come back; ``row`` is the position of the id of the row that the envelopes
    are bound to; ``columns`` are their names and kinds, in the order of ``positions``.
    """

    table: str
    row: int
    positions: tuple[int, ...]
    columns: tuple[tuple[str, Kind], ...]
    # Those that are not for every role.
    shown_to: tuple[ShownTo, ...] = ()

    @property
    def gates(self) -> list[str]:
        """The SQL that refuses a role to whom they are not shown."""
        return [_gate(self.table, asked) for asked in self.shown_to]

    @property
    def names(self) -> list[str]:
        """The columns, as the audit log names them."""
        return sorted({name for name, _ in self.columns})

    def call(self, *, single: bool) -> str:
        """The SQL that records, in a statement over ``r``, that its rows are shown; ``single``: it has one at most."""
        row = f'r."{row_alias(self.row)}"'
        ids = f"array[{row}]" if single else f"(select array_agg({row}) from r)"
        call = f"charthold.record_read('{self.table}', {ids}, '{{{','.join(self.names)}}}')"
        return call if single else f"(select {call})"

    def record(self, rows: Sequence[Any]) -> Record:
        """What was recorded when these rows came back."""
        return Record.of_rows(self.table, [row[self.row] for row in rows], self.names)


# How many a statement over r found.
FOUND = {"": "count(*)", "count": 'coalesce(sum(r."count"), 0)', "exists": 'count(*) filter (where r."exists")'}


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the log, or a search for values that stay closed: recorded once, and not for each row.

    Threat: whoever asks often enough whether a row has a value finds the value out without being shown it; also by
    asking for rows that are not there, or by changing the rows that have it and counting them.
    """

    action: Literal["audit_read", "search"]
    table: str
    columns: tuple[str, ...] = ()
    # Nothing to record when rows were shown: there is a record of each.
    unless_shown: bool = False
    # Those of the columns that are not for every role.
    shown_to: tuple[ShownTo, ...] = ()
    # What the answer of a statement is called whose one row says how many there are, or whether there are any.
    told: Literal["", "count", "exists"] = ""

    @classmethod
    def search(
        cls,
        table: type[Table],
        names: Iterable[str],
        *,
        unless_shown: bool = False,
        shown_to: tuple[ShownTo, ...] = (),
    ) -> Look:
        """A search by the values of these columns. The log has the database's names."""
        columns = sorted(table._meta.get_column_by_name(name)._meta.db_column_name for name in names)
        return cls("search", table._meta.tablename, tuple(columns), unless_shown, shown_to)

    @property
    def gates(self) -> list[str]:
        """The SQL that refuses a role to whom the columns are not shown."""
        return [_gate(self.table, asked) for asked in self.shown_to]

    @property
    def call(self) -> str:
        """The SQL that records it, in a statement over ``r``."""
        columns = "".join(f", 'columns', '{json.dumps(self.columns)}'::jsonb" for _ in self.columns[:1])
        record = (
            f"charthold.record('{self.action}', '{self.table}', null, null,"
            f" jsonb_build_object('rows', (select {FOUND[self.told]} from r){columns}))"
        )
        if self.unless_shown:
            return f"(select case when exists (select from r) then '' else {record}::text end)"
        return f"(select {record})"

    def found(self, rows: Sequence[Any]) -> int:
        """How many these rows say that there are."""
        return sum(int(row[self.told]) for row in rows) if self.told else len(rows)

    def record(self, rows: int | None) -> Record:
        """What was recorded; ``rows`` is how many were found, or None when nobody knows yet."""
        said: dict[str, Any] = {} if rows is None else {"rows": rows}
        if self.columns:
            said["columns"] = self.columns
        return Record.of_action(self.action, self.table, None, json.dumps(said) if said else None)


def _gate(table: str, asked: ShownTo) -> str:
    """The SQL that is true for the roles that are shown the columns, and raises for any other."""
    what = f"{', '.join(asked.columns)} of {table}"
    return f"(select charthold.shown_to('{what}', array[{', '.join(map(repr, asked.roles))}]::text[]))"


def row_alias(position: int) -> str:
    """The name under which a statement returns the id that an envelope is bound to."""
    return f"charthold_row_{position}"
