"""Rows under an older key, sealed and indexed anew: a batch at a time, beside writers.

Threat: a writer's value overwritten by the one that was read before it. Each batch locks its rows before it reads them
and holds them until it is committed; rows that a writer holds are passed over and come back in the next pass, so this
side never waits for a row and cannot be in a deadlock.

What it opens it shows to nobody, so there is no read record; the triggers record each row as updated, ciphertext for
ciphertext, and ``history()`` leaves out what did not change its value.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from core.access.permissions import roles_for
from core.columns import BlindIndex, Encrypted
from core.crypto.derive import forgetful
from core.crypto.envelope import envelope_header
from core.crypto.keyring import TenantKeys
from core.errors import ChartholdError
from core.registered import tenant_tables
from core.schema.quoting import name_of, quote_ident
from core.tables import TenantTable

__all__ = ["SealedTable", "check_actor", "check_declared", "sealed_tables"]


@dataclass(frozen=True)
class SealedTable:
    """A table that holds envelopes: its sealed columns, and the blind indexes over them."""

    table: type[TenantTable]
    sealed: tuple[Encrypted[Any], ...] = field(repr=False)
    indexes: tuple[BlindIndex, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """As the database calls it."""
        return self.table._meta.tablename

    def holds(self, operator: str, parameter: int) -> str:
        """The condition that a row holds an envelope whose header compares so with that parameter."""
        return " or ".join(
            f"substring({quote_ident(c._meta.db_column_name)} from 1 for 5) {operator} ${parameter}"
            for c in self.sealed
        )

    def allows(self, role: str) -> bool:
        """Whether the role may read and update the table's rows."""
        return all(role in roles_for(self.name, command, self.table.permissions) for command in ("select", "update"))

    async def count(self, connection: asyncpg.Connection[Any], tenant: UUID, version: int) -> int:
        """How many rows hold an envelope under another version."""
        found: int = await connection.fetchval(
            f"select count(*) from {self._place} where tenant_id = $1 and ({self.holds('<>', 2)})",
            tenant,
            envelope_header(version),
        )
        return found

    async def uses(self, connection: asyncpg.Connection[Any], tenant: UUID, version: int) -> bool:
        """Whether any row holds an envelope under this version."""
        found: bool = await connection.fetchval(
            f"select exists (select from {self._place} where tenant_id = $1 and ({self.holds('=', 2)}))",
            tenant,
            envelope_header(version),
        )
        return found

    async def page(
        self, connection: asyncpg.Connection[Any], tenant: UUID, after: UUID, most: int, older_than: int | None
    ) -> list[UUID]:
        """The ids of the next rows; only of those that hold an envelope under another version, if one is given."""
        condition, arguments = "", [] if older_than is None else [envelope_header(older_than)]
        if arguments:
            condition = f" and ({self.holds('<>', 4)})"
        rows = await connection.fetch(
            f"select id from {self._place} where tenant_id = $1 and id > $2{condition} order by id limit $3",
            tenant,
            after,
            most,
            *arguments,
        )
        return [row["id"] for row in rows]

    async def some(
        self, connection: asyncpg.Connection[Any], tenant: UUID, ids: Collection[UUID], *, locked: bool = False
    ) -> list[asyncpg.Record]:
        """These rows with their hashes; ``locked``: without those that somebody else holds."""
        names = ", ".join(quote_ident(c._meta.db_column_name) for c in (*self.sealed, *self.indexes))
        return await connection.fetch(
            f"select id, {names} from {self._place} where tenant_id = $1 and id = any($2) order by id"
            + (" for no key update skip locked" if locked else ""),
            tenant,
            list(ids),
        )

    async def reseal(
        self,
        connection: asyncpg.Connection[Any],
        rows: Sequence[asyncpg.Record],
        keys: TenantKeys,
        anew: Collection[str] = (),
    ) -> None:
        """Write the rows back under the current key. They are locked, so nobody changed them since.

        ``anew``: the columns that are sealed anew even if they are under that key already.
        """
        arrays = self._resealed(rows, keys, anew)
        names = [quote_ident(c._meta.db_column_name) for c in (*self.sealed, *self.indexes)]
        await connection.execute(
            f"update {self._place} as t set {', '.join(f'{name} = u.{name}' for name in names)}"
            f" from unnest($2::uuid[], {', '.join(f'${n}::bytea[]' for n in range(3, len(names) + 3))})"
            f" as u(id, {', '.join(names)}) where t.tenant_id = $1 and t.id = u.id",
            keys.tenant_id,
            [row["id"] for row in rows],
            *arrays,
        )

    @forgetful
    def stale(self, rows: Sequence[asyncpg.Record], keys: TenantKeys) -> dict[UUID, set[str]]:
        """The rows with hashes that are not those of today's declarations, and which columns those are of."""
        values = {
            c._meta.name: keys.sealer(self.name, c._meta.db_column_name, c.kind).open_many(
                [(row["id"], row[c._meta.db_column_name]) for row in rows]
            )
            for c in self.sealed
        }
        found: dict[UUID, set[str]] = {}
        for index in self.indexes:
            parts = zip(*(values[name] for name in index.of), strict=True)
            for row, part in zip(rows, parts, strict=True):
                if row[index._meta.db_column_name] != _digest(keys, index, part):
                    found.setdefault(row["id"], set()).update(index.of)
        return found

    @property
    def _place(self) -> str:
        return name_of(self.table)

    @forgetful
    def _resealed(
        self, rows: Sequence[asyncpg.Record], keys: TenantKeys, anew: Collection[str]
    ) -> list[list[bytes | None]]:
        """One list a column: envelopes, then digests. An envelope that is under the current key already stays."""
        header = envelope_header(keys.encryption().version)
        arrays: list[list[bytes | None]] = []
        values: dict[str, list[Any]] = {}
        for column in self.sealed:
            name = column._meta.db_column_name
            sealer = keys.sealer(self.name, name, column.kind)
            again = column._meta.name in anew
            stored = [(row["id"], row[name]) for row in rows]
            opened = values[column._meta.name] = sealer.open_many(stored)
            arrays.append(
                [
                    old if old is None or (old[:5] == header and not again) else sealer.seal(row_id, value)
                    for (row_id, old), value in zip(stored, opened, strict=True)
                ]
            )
        for index in self.indexes:
            parts = zip(*(values[name] for name in index.of), strict=True)
            arrays.append([_digest(keys, index, part) for part in parts])
        return arrays


def sealed_tables() -> list[SealedTable]:
    """Every table with sealed columns, of all registered apps."""
    found = []
    for table in tenant_tables():
        columns = table._meta.columns
        if sealed := tuple(c for c in columns if isinstance(c, Encrypted)):
            found.append(SealedTable(table, sealed, tuple(c for c in columns if isinstance(c, BlindIndex))))
    return found


async def check_actor(connection: asyncpg.Connection[Any], tables: Sequence[SealedTable]) -> None:
    """Refuse an actor who would pass over rows without a word, in a transaction of ``acting``."""
    role = await connection.fetchval("select charthold.actor_role() where charthold.tenant_everywhere() is not null")
    refused = [t.name for t in tables if not t.allows(role)]
    if role not in {"admin", "system"} or refused:
        what = f"update {refused[0]}" if refused and role in {"admin", "system"} else "see the whole tenant"
        raise ChartholdError(
            f"The actor may not {what}, and all rows are looked at. Name an admin who is bound to no facility."
        )


async def check_declared(connection: asyncpg.Connection[Any], tables: Sequence[SealedTable]) -> None:
    """Refuse when the database holds envelopes that no registered table declares: they would be left behind."""
    declared = {(t.table._meta.schema or "public", t.name, c._meta.db_column_name) for t in tables for c in t.sealed}
    rows = await connection.fetch(
        "select n.nspname, c.relname, a.attname from pg_catalog.pg_attribute as a"
        " join pg_catalog.pg_class as c on c.oid = a.attrelid and c.relkind in ('r', 'p')"
        " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace"
        " where a.atttypid = 'charthold.envelope'::regtype and not a.attisdropped order by 1, 2, 3"
    )
    unknown = [".".join(row) for row in rows if tuple(row) not in declared]
    if unknown:
        raise ChartholdError(
            f"The database holds envelopes in {unknown[0]}, which no registered app declares, so they would stay under "
            "the old key. Add the table's app to APP_REGISTRY, or drop the column."
        )


def _digest(keys: TenantKeys, index: BlindIndex, parts: Sequence[Any]) -> bytes | None:
    if any(part is None for part in parts):
        return None
    return keys.blind(index.label, index.spec, tuple(parts) if index.spec.kind == "compound" else parts[0])
