"""Column types: what a tenant's table is made of, and where Piccolo's values meet the envelope.

An ``Encrypted`` column holds an envelope of type ``charthold.envelope``; on the instance it is the plain Python value.
A ``BlindIndex`` column stands beside it and holds keyed hashes, so that equality can be asked of the database.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, TypeVar, overload

from piccolo import columns as piccolo_columns
from piccolo.columns import BigInt, Column, ForeignKey, Timestamptz
from piccolo.columns.base import OnDelete, OnUpdate
from piccolo.columns.combination import UNDEFINED, Where
from piccolo.columns.operators.comparison import Equal
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.crypto.blind import BlindKind, BlindSpec
from core.crypto.values import Kind
from core.errors import ChartholdError, ConfigurationError, ProtectedQueryError
from core.ids import uuid7

__all__ = [
    "DIGESTED",
    "FIXED",
    "ActorId",
    "BlindIndex",
    "CreatedAt",
    "Encrypted",
    "EncryptedDate",
    "EncryptedDecimal",
    "EncryptedInteger",
    "EncryptedJSON",
    "EncryptedText",
    "EndsWith",
    "InMonth",
    "InYear",
    "Inet",
    "LogId",
    "RowId",
    "StartsWith",
    "TenantForeignKey",
    "TenantId",
    "TransactionId",
    "UpdatedAt",
]

T = TypeVar("T")


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


class Inet(Column):
    """An IP address. Text in Python, where the driver would bring an object of its own."""

    value_type = str

    if TYPE_CHECKING:

        @overload
        def __get__(self, obj: None, objtype: object = None) -> Self: ...
        @overload
        def __get__(self, obj: Table, objtype: object = None) -> str: ...
        def __get__(self, obj: Table | None, objtype: object = None) -> Self | str: ...
        def __set__(self, obj: Table, value: str | None) -> None: ...

    def __init__(self, **kwargs: Any) -> None:
        _refuse_default(self, kwargs)
        self.default = None
        kwargs |= {"default": None}
        super().__init__(**kwargs)

    @property
    def column_type(self) -> str:
        return "INET"

    def as_text(self, name: str) -> str:
        """The SQL that shows it: the address, with its mask when it is a network."""
        return f'pg_catalog.abbrev({name}) AS "{self._alias or self._meta.get_default_alias()}"'

    def get_select_string(self, engine_type: str, with_alias: bool = True) -> QueryString:
        name = self._meta.get_full_name(with_alias=False)
        return QueryString(self.as_text(name) if with_alias else name)


def _refuse_default(column: Column, given: dict[str, Any]) -> None:
    if given.get("default") is not None:
        raise ConfigurationError(f"{type(column).__name__} takes no default. Give the value when you make a row.")


class TenantForeignKey(ForeignKey[Any]):
    """A reference to a row of the same tenant.

    The database holds it as a composite foreign key ``(tenant_id, x_id)``, so a reference to another tenant's row
    cannot be written, not even by hand; ``TenantTable`` declares that constraint. Only RESTRICT and CASCADE. With
    ``unique=True`` one row of the tenant refers to it at most, and Piccolo's ``reverse()`` finds that row.
    """

    def all_columns(self, exclude: list[Column | str] | None = None) -> list[Column]:
        """The related table's columns, without its blind indexes."""
        return [column for column in super().all_columns(exclude) if not isinstance(column, BlindIndex)]

    def __init__(
        self,
        references: type[Table] | str,
        *,
        null: bool = False,
        on_delete: OnDelete = OnDelete.restrict,
        unique: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse_default(self, kwargs)
        if on_delete not in (OnDelete.restrict, OnDelete.cascade):
            raise ProtectedQueryError(
                "A reference between tenants' tables is RESTRICT or CASCADE: SET NULL would clear tenant_id with it."
            )
        kwargs |= {"default": None, "on_update": OnUpdate.no_action}
        super().__init__(references, null=null, on_delete=on_delete, **kwargs)
        # Not in Piccolo's parameters: a migration would make a constraint of its own, without the tenant.
        self._meta.unique = unique

    @property
    def ddl(self) -> str:
        return f'"{self._meta.db_column_name}" UUID' + ("" if self._meta.null else " NOT NULL")


class Sought(Where):
    """A condition on an encrypted column. It holds the plaintext that is searched, and keeps it to itself."""

    __slots__ = ()

    # It is turned into a condition on a blind index before SQL is made of it. Wherever that is forgotten, what comes
    # out is no SQL, and holds no value.
    @property
    def querystring(self) -> QueryString:
        meta = self.column._meta
        made = QueryString(f'"{meta.table._meta.tablename}"."{meta.db_column_name}" <encrypted>')
        made.columns = [self.column]  # for those who ask what a function is made of
        return made

    querystring_for_update_and_delete = querystring_for_constraint = querystring

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ChartholdError("A condition on an encrypted column may hold PHI and is not pickled. Write it anew.")


class Encrypted(Column, Generic[T]):
    """PHI at rest as an envelope bound to tenant, table, column and row (``docs/envelope.md``).

    ``identifier`` names which of the identifiers of 45 CFR 164.514(b)(2) the column holds. Equality, ``is_in`` and
    prefixes can be asked through a ``BlindIndex`` declared beside the column; order and ranges cannot.
    """

    kind: ClassVar[Kind]
    value_type: type = bytes  # of the class, not the plain type: Piccolo would aggregate ciphertext into JSON for a str
    plain_type: ClassVar[type]
    # Which types a value that is searched may have, and which of their subclasses it may not.
    sought_types: ClassVar[tuple[type, ...]] = (object,)
    not_sought: ClassVar[tuple[type, ...]] = ()

    def __init__(self, *, identifier: str = "", null: bool = False, **kwargs: Any) -> None:
        _refuse_default(self, kwargs)
        self.default = None
        self.value_type = self.plain_type  # of the column, for those who ask what a row holds, such as pydantic
        self.identifier = identifier
        kwargs |= {"default": None, "null": null, "identifier": identifier}
        # Not ``secret``, as passwords are: whoever is shown null for a value, and writes the row back, would erase it.
        super().__init__(**kwargs)

    @property
    def column_type(self) -> str:
        return "charthold.envelope"

    @property
    def ddl(self) -> str:
        return f'"{self._meta.db_column_name}" charthold.envelope' + ("" if self._meta.null else " NOT NULL")

    @overload
    def __get__(self, obj: None, objtype: object = None) -> Self: ...
    @overload
    def __get__(self, obj: Table, objtype: object = None) -> T: ...
    def __get__(self, obj: Table | None, objtype: object = None) -> Self | T:
        # Piccolo sets instance attributes in __dict__, which come before this non-data descriptor.
        return self if obj is None else obj.__dict__[self._meta.name]

    if TYPE_CHECKING:  # with it at run time each reading of an attribute would be a call

        def __set__(self, obj: Table, value: T | None) -> None: ...

    def __eq__(self, value: object) -> Where:  # type: ignore[override]  # a condition, as Piccolo has it
        return _sought(super().__eq__(value))

    def __ne__(self, value: object) -> Where:  # type: ignore[override]  # likewise
        return _sought(super().__ne__(value))

    def __hash__(self) -> int:
        return hash(self._meta.name)

    def is_in(self, values: Any) -> Where:
        return _sought(super().is_in(values))

    def not_in(self, values: Any) -> Where:
        return _sought(super().not_in(values))

    def starts_with(self, prefix: str) -> Where:
        """True where the value begins with ``prefix``, by a ``BlindIndex(kind="prefix")`` of that length."""
        return Sought(column=self, value=prefix, operator=StartsWith)

    def ends_with(self, digits: str) -> Where:
        """True where the last digits are ``digits``, by a ``BlindIndex(kind="last")`` of that length."""
        return Sought(column=self, value=digits, operator=EndsWith)

    def in_year(self, year: int) -> Where:
        """True for a date of that year, by a ``BlindIndex(kind="year")``."""
        return Sought(column=self, value=date(year, 1, 1), operator=InYear)

    def in_month(self, year: int, month: int) -> Where:
        """True for a date of that month, by a ``BlindIndex(kind="month")``."""
        return Sought(column=self, value=date(year, month, 1), operator=InMonth)

    def check_sought(self, value: Any) -> None:
        """Raise for a value of another type than the column's, whose hash no row has: nothing would ever be found."""
        if value is not None and (not isinstance(value, self.sought_types) or isinstance(value, self.not_sought)):
            raise ProtectedQueryError(
                f"{self._meta.table.__name__}.{self._meta.name} holds {self.plain_type.__name__} values, and none is "
                f"equal to this {type(value).__name__}."
            )

    def refuse(self, asked: str) -> NoReturn:
        raise ProtectedQueryError(
            f"{self._meta.table.__name__}.{self._meta.name} is encrypted, so the database cannot {asked}. Ask for "
            "equality through a BlindIndex, or fetch the rows that another condition selects and sort them in Python."
        )

    def __lt__(self, value: Any) -> Where:
        self.refuse("compare its values")

    __le__ = __gt__ = __ge__ = __lt__

    def like(self, value: str) -> Where:
        self.refuse("match patterns in it")

    ilike = not_like = like

    def __add__(self, value: Any) -> NoReturn:
        self.refuse("compute with it")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__

    def __getitem__(self, key: Any) -> NoReturn:
        self.refuse("look into it")

    arrow = from_path = __getitem__

    def join_on(self, column: Column) -> NoReturn:
        self.refuse("join on it")


def _sought(where: Where) -> Where:
    if where.value is UNDEFINED and where.values is UNDEFINED:
        return where  # whether there is a value
    where.__class__ = Sought
    return where


class StartsWith(Equal):
    """Marks a prefix search; it is rewritten to equality on a blind index before any SQL is made."""


class EndsWith(Equal):
    """Marks a search by last digits."""


class InYear(Equal):
    """Marks a search by year."""


class InMonth(Equal):
    """Marks a search by month."""


class EncryptedText(Encrypted[str]):
    """Text."""

    kind = Kind.TEXT
    plain_type = str
    sought_types = (str, Enum)  # Piccolo's choices


class EncryptedDate(Encrypted[date]):
    """A calendar date, without a time."""

    kind = Kind.DATE
    plain_type = date
    sought_types, not_sought = (date,), (datetime,)


class EncryptedInteger(Encrypted[int]):
    """An integer of any size."""

    kind = Kind.INTEGER
    plain_type = int
    sought_types, not_sought = (int,), (bool,)


class EncryptedDecimal(Encrypted[Decimal]):
    """A decimal number; its scale is kept."""

    kind = Kind.DECIMAL
    plain_type = Decimal
    sought_types, not_sought = (Decimal, int), (bool,)


class EncryptedJSON(Encrypted[Any]):
    """A JSON document: dict, list, text, number, boolean."""

    kind = Kind.JSON
    plain_type = object  # which pydantic takes for anything


# The kinds of index that digest a kind of value, the one to take first.
DIGESTED: dict[Kind, tuple[BlindKind, ...]] = {
    Kind.TEXT: ("folded", "exact", "prefix", "last"),
    Kind.DATE: ("exact", "year", "month"),
    Kind.INTEGER: ("exact",),
    Kind.DECIMAL: ("exact",),
    Kind.JSON: (),
}


class BlindIndex(Column):
    """Keyed hashes of an encrypted column (or of several, ``compound``), for equality in the database.

    ``of`` names the columns; ``kind`` is exact, folded, prefix, last, year, month or compound (``core.crypto.blind``);
    ``length`` the letters of a prefix or the last digits; ``parts`` the kinds of a compound index's columns; ``bits``
    how much of the HMAC is kept. What an index leaks is said in the README before its use: equal values of one tenant
    have equal hashes.
    """

    value_type: type = bytes

    def __init__(
        self,
        *names: str,
        of: Sequence[str] = (),
        kind: BlindKind = "folded",
        length: int | None = None,
        parts: Sequence[BlindKind] = (),
        bits: int = 64,
        **kwargs: Any,
    ) -> None:
        self.default = None
        self.of = tuple(of or names)
        self.spec = BlindSpec(kind=kind, bits=bits, length=length, parts=tuple(BlindSpec(kind=part) for part in parts))
        if not self.of or (len(self.of) > 1) != (kind == "compound") or len(parts) not in (0, len(self.of)):
            raise ProtectedQueryError(
                "A blind index names its column; a compound one names several, and a kind for each."
            )
        kwargs |= {
            "default": None,
            "null": True,
            "of": list(self.of),
            "kind": kind,
            "length": length,
            "parts": list(parts),
            "bits": bits,
        }
        super().__init__(**kwargs)
        self._meta.secret = True

    def refuse(self, asked: str) -> NoReturn:
        """Threat: hashes that are seen, sorted or grouped tell who shares a value, and no record says who was told."""
        raise ProtectedQueryError(
            f"{self._meta.table.__name__}.{self._meta.name} holds hashes for searching, and no query may {asked}. "
            "Search by the encrypted column."
        )

    @functools.cached_property
    def label(self) -> str:
        """Names the key of this index; two indexes never share one."""
        return self.spec.label(self._meta.table._meta.tablename, self._meta.db_column_name)

    @property
    def column_type(self) -> str:
        return "BYTEA"

    @property
    def ddl(self) -> str:
        return f'"{self._meta.db_column_name}" BYTEA'


# What a row is, rather than what it holds: nobody sets it but Charthold, and no record holds it.
FIXED = (RowId, TenantId, ActorId, CreatedAt, BlindIndex)
