"""Constraints of a table: CHECK, UNIQUE, PRIMARY KEY and composite foreign keys."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from core.errors import MigrationError
from core.schema.object import Kind, Named, sql_text
from core.schema.quoting import columns_list, qualified, quote_ident

__all__ = ["Check", "Constraint", "PrimaryKey", "References", "Unique", "json_object", "one_of", "past_policies"]


def past_policies(on: str, to: str, statement: str) -> tuple[str, ...]:
    """The statements that let PostgreSQL look at the rows of a foreign key from ``on`` to ``to``, in one transaction.

    PostgreSQL looks at all of them with one query, as the owner, whom FORCE binds as anybody: without a scope the
    policies refuse it. If the owner may not read the table, it looks at each row by itself, past the policies, and
    nobody else notices. A table that refers to itself has to be read, so FORCE is lifted while the table is locked.
    """
    if on != to:
        return f"revoke select on {on} from current_user", statement, f"grant select on {on} to current_user"
    lifted = f"""do $lifted$
begin
    if (select relforcerowsecurity from pg_class where oid = '{on}'::regclass) then
        alter table {on} no force row level security;
        {statement};
        alter table {on} force row level security;
    else
        {statement};
    end if;
end
$lifted$"""
    return (lifted,)


@dataclass(frozen=True, kw_only=True)
class Constraint(Named):
    """What the four have in common: they are added to and dropped from their table by name."""

    @property
    @abstractmethod
    def definition(self) -> str:
        """The clause after ``add constraint <name>``."""

    def create(self) -> tuple[str, ...]:
        return (f"alter table {self.on}\n    add constraint {quote_ident(self.name)}\n    {self.definition}",)

    def drop(self) -> tuple[str, ...]:
        return (f"alter table {self.on} drop constraint {quote_ident(self.name)}",)

    def rename(self, new: str) -> tuple[str, ...]:
        return (f"alter table {self.on} rename constraint {quote_ident(self.name)} to {quote_ident(new)}",)

    # An existing, populated table is scanned under a lock that lets reads and writes pass:
    # the constraint is added unchecked, and validated after the step has committed.

    def create_unchecked(self) -> tuple[str, ...] | None:
        """The statements that make it bind new rows only, or None when its kind has no such form."""
        return None

    def validate(self) -> tuple[str, ...]:
        """The statements that check the rows that were there before."""
        return (f"alter table {self.on} validate constraint {quote_ident(self.name)}",)


@dataclass(frozen=True, kw_only=True)
class Check(Constraint):
    """``Check("capacity_positive", condition="capacity > 0")``."""

    kind: ClassVar[str] = "check"
    rank: ClassVar[int] = Kind.CHECK

    condition: str

    def __post_init__(self) -> None:
        sql_text(self, "condition")

    @property
    def definition(self) -> str:
        return f"check ({self.condition})"

    def create_unchecked(self) -> tuple[str, ...]:
        return (f"{self.create()[0]} not valid",)


@dataclass(frozen=True, kw_only=True)
class Unique(Constraint):
    """A unique constraint; for partial or expression uniqueness use ``Index(unique=True)``."""

    kind: ClassVar[str] = "unique"
    rank: ClassVar[int] = Kind.UNIQUE

    columns: tuple[str, ...]
    nulls_distinct: bool = True

    @property
    def definition(self) -> str:
        return f"unique {'' if self.nulls_distinct else 'nulls not distinct '}({columns_list(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class PrimaryKey(Constraint):
    """The physical primary key; Piccolo's own stands inline in its column."""

    kind: ClassVar[str] = "primary_key"
    rank: ClassVar[int] = Kind.PRIMARY_KEY

    columns: tuple[str, ...]

    @property
    def definition(self) -> str:
        return f"primary key ({columns_list(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class References(Constraint):
    """A foreign key of one or more columns. RESTRICT or CASCADE only: SET NULL would write rows nobody acted on."""

    kind: ClassVar[str] = "references"
    rank: ClassVar[int] = Kind.REFERENCES

    columns: tuple[str, ...]
    to_table: str
    to_columns: tuple[str, ...]
    on_delete: Literal["restrict", "cascade"] = "restrict"
    deferred: bool = False

    def __post_init__(self) -> None:
        if self.on_delete not in {"restrict", "cascade"}:
            raise MigrationError(f"{self.name}: on_delete is restrict or cascade, not {self.on_delete!r}.")
        if len(self.columns) != len(self.to_columns) or not self.columns:
            raise MigrationError(f"{self.name}: as many columns refer as are referred to, and at least one.")

    @property
    def definition(self) -> str:
        return (
            f"foreign key ({columns_list(self.columns)})\n"
            f"    references {qualified(self.to_table)} ({columns_list(self.to_columns)})\n"
            f"    on delete {self.on_delete}" + ("\n    deferrable initially deferred" if self.deferred else "")
        )

    def create_unchecked(self) -> tuple[str, ...]:
        return (f"{self.create()[0]} not valid",)

    def create_checked(self) -> tuple[str, ...]:
        """The statements that add it to a table that is there already, with policies perhaps."""
        return past_policies(self.on, qualified(self.to_table), self.create()[0])

    def validate(self) -> tuple[str, ...]:
        # As one, for one transaction: outside of a step there is none.
        return (";\n".join(past_policies(self.on, qualified(self.to_table), super().validate()[0])),)

    def moved(self, tables: Mapping[str, str]) -> Self:
        moved = super().moved(tables)
        return dataclasses.replace(moved, to_table=tables.get(self.to_table, self.to_table))


def one_of(name: str, column: str, values: Sequence[str]) -> Check:
    """A CHECK for an enumerated column. Text and a CHECK rather than an enum type: values come and go by migration."""
    return Check(name=name, condition=f"{column} in ({', '.join(repr(v) for v in values)})")


def json_object(name: str, column: str) -> Check:
    """A CHECK that a document is an object, so that a key can always be asked of it."""
    return Check(name=name, condition=f"jsonb_typeof({column}) = 'object'")
