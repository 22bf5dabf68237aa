"""Columns that Charthold and the database keep, and no caller sets."""

from __future__ import annotations

from typing import Any, ClassVar

from piccolo import columns as piccolo_columns
from piccolo.columns import BigInt, Column, Timestamptz

from core.ids import uuid7

__all__ = ["ActorId", "CreatedAt", "LogId", "RowId", "TenantId", "TransactionId", "UpdatedAt"]


class Predefined(Column):
    """A column whose type and default are decided here, and not where a table declares it."""

    sql: ClassVar[str]
    sql_default: ClassVar[str] = ""
    arguments: ClassVar[dict[str, Any]] = {"default": None, "null": False}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs | self.arguments)

    @property
    def column_type(self) -> str:
        return self.sql

    @property
    def ddl(self) -> str:
        default = f" DEFAULT {self.sql_default}" if self.sql_default else ""
        return f'"{self._meta.db_column_name}" {self.sql} NOT NULL{default}'


class RowId(Predefined, piccolo_columns.UUID):
    """The row's UUIDv7, made in Python. The physical primary key is composite, so it is not written inline."""

    sql = "UUID"
    arguments: ClassVar[dict[str, Any]] = {"default": uuid7, "primary_key": True}


class LogId(RowId):
    """The UUIDv7 of a row that the database makes itself."""

    sql_default = "charthold.uuid7()"


class TransactionId(Predefined, BigInt):
    """The 64-bit id of the transaction that wrote the row."""

    sql, sql_default = "BIGINT", "pg_current_xact_id()::text::bigint"


class ActorId(Predefined, piccolo_columns.UUID):
    """The user who wrote the row; set by the database."""

    sql, sql_default = "UUID", "charthold.actor_id()"


class TenantId(Predefined, piccolo_columns.UUID):
    """The tenant that the row belongs to. Bound from the scope when a statement runs; never set by the caller."""

    sql = "UUID"


class CreatedAt(Predefined, Timestamptz):
    """When the row was born; set by the database."""

    sql, sql_default = "TIMESTAMPTZ", "clock_timestamp()"


class UpdatedAt(CreatedAt):
    """When the row last changed; moved by a trigger."""
