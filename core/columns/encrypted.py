"""Encrypted columns, and the conditions that can be asked of them."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Self, TypeVar, overload

from piccolo.columns import Column
from piccolo.columns.combination import UNDEFINED, Where
from piccolo.columns.operators.comparison import Equal
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.columns.defaults import refuse_default
from core.crypto.values import Kind
from core.errors import ChartholdError, ProtectedQueryError

__all__ = [
    "Encrypted",
    "EncryptedDate",
    "EncryptedDecimal",
    "EncryptedInteger",
    "EncryptedJSON",
    "EncryptedText",
    "EndsWith",
    "InMonth",
    "InYear",
    "StartsWith",
]

T = TypeVar("T")


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
        refuse_default(self, kwargs)
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
