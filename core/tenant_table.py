"""The base of every table that belongs to tenants. A table is born protected: nobody can forget what is implied."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

from piccolo.columns import Column, ForeignKey
from piccolo.columns.m2m import M2M
from piccolo.query import Insert, Update
from piccolo.table import Table

from core.access.facilities import narrowing
from core.access.minimum import check_shown_to
from core.access.permissions import Command
from core.audit.mixin import Audited
from core.class_rules import refuse_columns, refuse_for_ever, refuse_misspelt, refuse_namesake, refuse_partitions
from core.columns import BlindIndex, CreatedAt, RowId, TenantId, UpdatedAt
from core.crypto.derive import forgetful
from core.errors import ChartholdError, ProtectedQueryError
from core.layout import Layout
from core.protections import protections, unsampled
from core.queries import (
    TenantCount,
    TenantDelete,
    TenantExists,
    TenantInsert,
    TenantObjects,
    TenantRaw,
    TenantRefresh,
    TenantSelect,
    TenantUpdate,
    TenantUpdateSelf,
)
from core.queries.quiet import AddRelated
from core.schema import SchemaObject

__all__ = ["ProtectedTable", "TenantTable"]


class ProtectedTable(Table):
    """Piccolo's table with our queries. ``Tenant`` is one directly; everything else is a ``TenantTable``."""

    # What the table declares beside its columns: checks, uniques, indexes.
    declares: ClassVar[Sequence[SchemaObject]] = ()
    # Columns that look like one of the identifiers of 164.514(b)(2), or are one, and stay plain: column -> why.
    waived: ClassVar[Mapping[str, str]] = {}
    # Encrypted columns whose plaintext is not for every role that sees the row: column -> roles.
    shown_to: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Whether a query of it is an ``audit_read``, to be recorded whatever it shows.
    reading_is_recorded: ClassVar[bool] = False
    # The commands that are not for users who are bound to facilities.
    whole_tenant: ClassVar[Sequence[Command]] = ()
    _layout: ClassVar[Layout]

    @forgetful
    def __init__(
        self,
        _data: dict[Column | str, Any] | None = None,
        _ignore_missing: bool = False,
        _exists_in_db: bool = False,
        **kwargs: Any,
    ) -> None:
        """A new row. Values by name; in ``_data`` by column too. What Charthold keeps stays empty until it is saved."""
        given = {c if isinstance(c, str) else c._meta.name: value for c, value in (_data or {}).items()}
        if twice := sorted(given.keys() & kwargs.keys()):
            raise ValueError(f"{twice[0]} is given twice")
        given |= kwargs
        values: dict[str, Any] = {}
        for field in self._layout.fields:
            name = field.name
            if name in given:
                value = given.pop(name)
            elif field.db_name in given:
                value = given.pop(field.db_name)
            else:
                value = field.default()
                if value is None and field.required and not (_ignore_missing or _exists_in_db):
                    raise ValueError(f"{name} wasn't provided")
            values[name] = value
        if given:
            raise ValueError(f"Unrecognized columns - {sorted(given)}")
        self.__dict__.update(values)
        self._exists_in_db = _exists_in_db
        self._was_created: bool | None = None
        # Nothing was read from the database, so save() writes all of it.
        self._stored: dict[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._layout = Layout(cls._meta.columns)
        refuse_columns(cls)
        check_shown_to(cls)

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Self:
        """The instance of a whole row out of the database. Skips the checks of the constructor, which cost 50 us."""
        if cls._layout.renamed or cls.__init__ is not ProtectedTable.__init__:
            made = cls(**row, _exists_in_db=True)
            made.remember()
            return made
        instance = cls.__new__(cls)
        instance.__dict__ = cls._layout.state(row)
        return instance

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.__dict__.get('id')}>"

    def __str__(self) -> str:
        # Piccolo prints the row's values here.
        return repr(self)

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def querystring(self) -> NoReturn:
        raise ProtectedQueryError("A row's values are not put into SQL. Write it with save(), or with insert().")

    def __getstate__(self) -> dict[str, Any]:
        raise ChartholdError(
            f"A {type(self).__name__} may hold PHI and is not pickled. Pass its id and fetch it again."
        )

    @classmethod
    def all_columns(cls, exclude: Sequence[str | Column] | None = None) -> list[Column]:
        """The columns that hold the row's values, without its blind indexes."""
        if exclude is None:
            return list(cls._layout.shown)
        return [column for column in super().all_columns(exclude) if not isinstance(column, BlindIndex)]

    def to_dict(self, *columns: Column) -> dict[str, Any]:
        """The row's values and those of the rows that it brought along, without blind indexes."""
        if columns:
            return super().to_dict(*columns)
        values = ((column._meta.name, self.__dict__[column._meta.name]) for column in self.all_columns())
        return {name: value.to_dict() if isinstance(value, Table) else value for name, value in values}

    def save(self, columns: Sequence[Column | str] | None = None) -> Insert[Any] | Update[Any]:
        """Insert a new row; of an existing one, write what changed (``columns``: exactly these)."""
        cls = type(self)
        if not self._exists_in_db:
            return cls.insert(self)
        chosen = (
            [c for c in self._layout.recorded if self._changed(c)]
            if columns is None
            else [cls._meta.get_column_by_name(c) if isinstance(c, str) else c for c in columns]
        )
        values = self._layout.snapshot({c._meta.name: self.__dict__.get(c._meta.name) for c in chosen})
        written = {column: values[column._meta.name] for column in chosen}
        query = cls.update(written)
        query.saves = self
        return query.where(cls._meta.primary_key == self.__dict__["id"])

    def _held(self) -> dict[str, Any]:
        """What the row holds now: a copy that stays as it is when a document is edited in place."""
        return self._layout.snapshot({field.name: self.__dict__[field.name] for field in self._layout.fields})

    def remember(self, values: dict[str, Any] | None = None, *, read: bool = False) -> None:
        """Take these values, or all that it holds, for those in the database: ``save()`` writes what differs from them.

        Without that each save would seal every field anew, and the log would call all of them changed. A rollback takes
        this back: what was ``read`` in the transaction is then not known to be in the database.
        """
        transaction = type(self)._meta.db.current_transaction.get()
        if transaction is not None:
            transaction.remembers(self, {} if read else self._stored)
        self._stored = self._stored | (self._held() if values is None else values)

    def _brought_along(self) -> Iterator[ProtectedTable]:
        """The rows that were fetched with this one, whole."""
        for key in self._meta.foreign_key_columns:
            nested = self.__dict__.get(key._meta.name)
            if isinstance(nested, ProtectedTable):
                yield nested
                yield from nested._brought_along()

    def _changed(self, column: Column) -> bool:
        name = column._meta.name
        return name not in self._stored or not self._layout.same(name, self._stored[name], self.__dict__.get(name))

    def refresh(self, columns: Sequence[Column] | None = None, load_json: bool = False) -> TenantRefresh:
        """Fetch the row's values again."""
        key = type(self)._meta.primary_key
        chosen = columns or [column for column in self.all_columns() if column is not key]
        return TenantRefresh(instance=self, columns=chosen, load_json=load_json)

    def update_self(self, values: dict[Any, Any]) -> TenantUpdateSelf:
        """Write values that the database derives, and read them back."""
        return TenantUpdateSelf(row=self, values=values)

    def add_m2m(self, *rows: Table, m2m: M2M, extra_column_values: dict[Column | str, Any] | None = None) -> AddRelated:
        """Relate rows to this one; what is not saved yet is saved."""
        return AddRelated(target_row=self, rows=rows, m2m=m2m, extra_column_values=extra_column_values or {})

    @classmethod
    def select(cls, *columns: Any, exclude_secrets: bool = False) -> TenantSelect:
        return TenantSelect(table=cls, columns_list=cls._process_column_args(*columns), exclude_secrets=exclude_secrets)

    @classmethod
    def objects(cls, *prefetch: ForeignKey[Any] | list[ForeignKey[Any]]) -> TenantObjects[Self]:
        return TenantObjects(table=cls, prefetch=prefetch)

    @classmethod
    def count(cls, column: Column | None = None, distinct: Sequence[Column] | None = None) -> TenantCount:
        return TenantCount(table=cls, column=column, distinct=distinct)

    @classmethod
    def exists(cls) -> TenantExists:
        return TenantExists(table=cls)

    @classmethod
    def insert(cls, *rows: Self) -> TenantInsert:
        query = TenantInsert(table=cls).returning(cls._meta.primary_key)
        if rows:
            query.add(*rows)
        return query

    @classmethod
    def update(
        cls,
        values: dict[Any, Any] | None = None,
        force: bool = False,
        use_auto_update: bool = True,
        **kwargs: Any,
    ) -> TenantUpdate:
        values = {**(values or {}), **kwargs}
        if use_auto_update and cls._meta.auto_update_columns:
            values.update(cls._meta.get_auto_update_values())
        return TenantUpdate(table=cls, force=force).values(values)  # type: ignore[return-value]  # it returns itself

    @classmethod
    def delete(cls, force: bool = False) -> TenantDelete:
        return TenantDelete(table=cls, force=force)

    @classmethod
    def raw(cls, sql: str, *args: Any) -> TenantRaw:
        query = super().raw(sql, *args)
        return TenantRaw(table=cls, querystring=query.querystring)

    @classmethod
    def implied_objects(cls) -> tuple[SchemaObject, ...]:
        """What the class implies; a ``TenantTable`` implies more."""
        return (unsampled(cls),)

    @classmethod
    def schema_objects(cls) -> tuple[SchemaObject, ...]:
        """All that the table is made of beside its columns, for migrations and for the doctor."""
        return (*cls.implied_objects(), *cls.declares)


class TenantTable(Audited, ProtectedTable):
    """A table whose rows each belong to one tenant.

    It implies: ``id`` (UUIDv7), ``tenant_id``, ``created_at``, ``updated_at``; the primary key ``(tenant_id, id)``;
    composite foreign keys; an index for each ``BlindIndex``; forced row-level security with one restrictive policy for
    the tenant and permissive policies from ``permissions``; grants; ``updated_at`` moved by the database; every change
    recorded in the audit log.
    """

    id = RowId()
    tenant_id = TenantId()
    created_at = CreatedAt()
    updated_at = UpdatedAt()

    # command -> roles, for a table that core/access/permissions.py does not name.
    permissions: ClassVar[Mapping[str, tuple[str, ...]] | None] = None
    # The commands that the application is granted at all. None: those that some role may run, by its permissions.
    privileges: ClassVar[tuple[Command, ...] | None] = None
    # The column by which users bound to facilities are narrowed, by its name in the database.
    facility_column: ClassVar[str | None] = None
    # Otherwise the references by which they are narrowed, to a facility or to a row that they see. None: those that
    # narrowing() finds; (): none, so that the whole tenant sees the rows.
    facility_from: ClassVar[Sequence[str] | None] = None
    # Whether rows that are about a client belong to the copy that the client may have (core/compliance/record_sets.py).
    in_record_set: ClassVar[bool] = True
    # Columns whose values the audit log must not hold.
    unrecorded: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_misspelt(cls)
        refuse_for_ever(cls)
        refuse_namesake(cls)
        refuse_partitions(cls)

    @classmethod
    def implied_objects(cls) -> tuple[SchemaObject, ...]:
        return protections(cls)

    @classmethod
    def narrowed_by(cls) -> list[str]:
        """The columns by which users bound to facilities are narrowed; see ``core/access/facilities.py``."""
        return [column._meta.db_column_name for column in narrowing(cls)]
