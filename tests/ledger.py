"""What the audit log says, as the schema's owner reads it, and tables of a test's own to say it about."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from piccolo.table import Table

from core.columns import ActorId, BlindIndex
from core.engine import ChartholdEngine
from core.schema import PrimaryKey, objects_of
from core.scope import Scope

# What a row is rather than what it holds, and what follows from what it holds.
NOT_RECORDED = {"id", "tenant_id", "created_at", "updated_at"}


@dataclass(frozen=True)
class Recorded:
    """A change as the log has it."""

    action: str
    tenant: UUID
    user: UUID
    reason: str
    table: str
    row: UUID
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    changed: tuple[str, ...] | None
    transaction: int

    @property
    def what(self) -> tuple[str, dict[str, Any] | None, dict[str, Any] | None]:
        return self.action, self.old, self.new


async def changes(owner: asyncpg.Connection, *rows: UUID) -> list[Recorded]:
    """Every record of the rows but those of reads, in the order in which they were written."""
    found = await owner.fetch(
        "select * from user_action_audit_log where record_id = any ($1) and action_type <> 'read'"
        " order by occurred_at, id",
        list(rows),
    )
    return [
        Recorded(
            action=r["action_type"],
            tenant=r["tenant_id"],
            user=r["user_id"],
            reason=r["reason"],
            table=r["table_name"],
            row=r["record_id"],
            old=json.loads(r["old_values"] or "null"),
            new=json.loads(r["new_values"] or "null"),
            changed=None if r["changed_columns"] is None else tuple(r["changed_columns"]),
            transaction=r["transaction_id"],
        )
        for r in found
    ]


async def stored(owner: asyncpg.Connection, table: type[Table], row: UUID) -> dict[str, Any]:
    """The whole row as it stands in the database."""
    found = await owner.fetchval(f"select to_jsonb(t) from {table._meta.tablename} as t where id = $1", row)
    return json.loads(found)


def recorded(table: type[Table], document: dict[str, Any]) -> dict[str, Any]:
    """What of a row's document the log must hold."""
    left_out = NOT_RECORDED | {
        c._meta.db_column_name for c in table._meta.columns if isinstance(c, ActorId | BlindIndex)
    }
    left_out |= set(getattr(table, "unrecorded", ()))
    return {name: value for name, value in document.items() if name not in left_out}


@contextlib.asynccontextmanager
async def signed(owner: asyncpg.Connection, database: ChartholdEngine, here: Scope) -> AsyncIterator[None]:
    """A transaction of the owner's that carries the open scope."""
    async with owner.transaction():
        token = here.token(database.token_key, owner.get_server_pid())
        await owner.execute("select set_config('charthold.scope', $1, true)", token)
        yield


async def create(database: ChartholdEngine, *tables: type[Table]) -> None:
    """Make a test's own tables, with all that they declare."""
    connection = await database.connect(owner=True)
    try:
        for table in tables:
            columns = ", ".join(column.ddl for column in table._meta.columns)
            await connection.execute(f"create table {table._meta.get_formatted_tablename()} ({columns})")
        items = [item for table in tables for item in objects_of(table)]
        # Tables may refer to each other.
        for item in sorted(items, key=lambda item: not isinstance(item, PrimaryKey)):
            for statement in item.create():
                await connection.execute(statement)
    finally:
        await connection.close()
