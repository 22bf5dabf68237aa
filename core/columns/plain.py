"""Columns that hold plain values which Piccolo does not know: addresses, and references within the tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from piccolo.columns import Column, ForeignKey, LazyTableReference
from piccolo.columns.base import OnDelete, OnUpdate
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.columns.blind import BlindIndex
from core.columns.defaults import refuse_default
from core.errors import ProtectedQueryError

__all__ = ["Inet", "TenantForeignKey"]

ReferencedTable = TypeVar("ReferencedTable", bound=Table)


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
        refuse_default(self, kwargs)
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


class TenantForeignKey(ForeignKey[ReferencedTable]):
    """A reference to a row of the same tenant.

    The database holds it as a composite foreign key ``(tenant_id, x_id)``, so a reference to another tenant's row
    cannot be written, not even by hand; ``TenantTable`` declares that constraint. Only RESTRICT and CASCADE. With
    ``unique=True`` one row of the tenant refers to it at most, and Piccolo's ``reverse()`` finds that row.
    """

    def all_columns(self, exclude: list[Column | str] | None = None) -> list[Column]:
        """The related table's columns, without its blind indexes."""
        return [column for column in super().all_columns(exclude) if not isinstance(column, BlindIndex)]

    # An editor then knows the table: get_related() gives its rows, and Visit.client_id._ its columns. Of a name it
    # cannot know it.
    @overload
    def __init__(
        self,
        references: type[ReferencedTable],
        *,
        null: bool = False,
        on_delete: OnDelete = OnDelete.restrict,
        unique: bool = False,
        **kwargs: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: TenantForeignKey[Any],
        references: LazyTableReference | str,
        *,
        null: bool = False,
        on_delete: OnDelete = OnDelete.restrict,
        unique: bool = False,
        **kwargs: Any,
    ) -> None: ...
    def __init__(
        self,
        references: type[ReferencedTable] | LazyTableReference | str,
        *,
        null: bool = False,
        on_delete: OnDelete = OnDelete.restrict,
        unique: bool = False,
        **kwargs: Any,
    ) -> None:
        refuse_default(self, kwargs)
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
