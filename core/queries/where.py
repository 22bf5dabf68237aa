"""Where-clauses: the tenant's pin, and conditions on encrypted columns turned into conditions on blind indexes.

They are rewritten when a statement is planned, not when the condition is written: ``Client.last_name == "nguyen"``
stays an ordinary ``Where``, so that ``get_or_create`` can read the value back out of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from uuid import UUID

from piccolo.columns import Column
from piccolo.columns.combination import UNDEFINED, And, Or, Where, WhereRaw
from piccolo.columns.operators.comparison import (
    ComparisonOperator,
    Equal,
    In,
    IsNotNull,
    IsNull,
    NotEqual,
    NotIn,
)
from piccolo.custom_types import Combinable
from piccolo.query.functions.aggregate import Count
from piccolo.querystring import QueryString
from piccolo.table import Table

from core.columns import DIGESTED, BlindIndex, Encrypted, EndsWith, InMonth, InYear, StartsWith
from core.crypto.blind import fold
from core.crypto.derive import forgetful
from core.crypto.keyring import TenantKeys
from core.errors import ProtectedQueryError
from core.queries.cells import indexes_of
from core.queries.shape import is_computed
from core.statements.arguments import TENANT, Deferred
from core.statements.plan import Plan
from core.statements.residue import TOO_DEEP

__all__ = [
    "Approximate",
    "approximate",
    "equalities",
    "exact",
    "finds_one",
    "pin",
    "pinned_id",
    "protect",
    "refuse_computed",
    "refuse_encrypted",
]


class OfTenant(ComparisonOperator):
    """The scope's tenant, beside the policy that says so too and that finds the index.

    In a CASE, because PostgreSQL would count the condition twice when it estimates rows, and then take every index for
    as good as any other.
    """

    template = "CASE WHEN {name} = {value} THEN true END"


class AnyOf(ComparisonOperator):
    """One of the hashes that a value has under the keys in use; two while an index key is changing."""

    template = "{name} = ANY({value}::bytea[])"


class NoneOf(ComparisonOperator):
    """None of those hashes."""

    template = "{name} <> ALL({value}::bytea[])"


class Approximate(Where):
    """A search by an index of few bits. It finds rows of other values too, which are left out after they are opened.

    They are recorded as read all the same: they were opened, and a record too many is better than one too few.
    """

    __slots__ = ("wanted",)

    def __init__(self, index: BlindIndex, wanted: list[Any], hashes: Deferred) -> None:
        super().__init__(column=index, value=hashes, operator=AnyOf)
        self.wanted = wanted

    @property
    def sources(self) -> list[Column]:
        """The encrypted columns of the index, reached by the same joins."""
        index: Any = self.column
        chain = index._meta.call_chain
        return [getattr(chain[-1], n) if chain else index._meta.table._meta.get_column_by_name(n) for n in index.of]

    def matches(self, values: Sequence[Any]) -> bool:
        """Whether opened values are what was searched."""
        index: Any = self.column
        opened = tuple(values) if index.spec.kind == "compound" else values[0]
        return any(index.spec.matches(opened, wanted) for wanted in self.wanted)

    def refuse(self, what: str) -> NoReturn:
        """Say that this cannot be exact."""
        index: Any = self.column
        meta, spec = index._meta, index.spec
        raise ProtectedQueryError(
            f"{meta.table.__name__}.{meta.name} keeps {spec.bits} bits, so the database finds other values too. "
            f"They are left out after they are opened, and {what} cannot wait for that. Select the rows and go on from "
            "them, or declare the index with bits=64."
        )


# The most values of a column by which one client is looked for: spellings of a name.
FEW = 10

# So many bits make a false positive less likely than a failing disk.
EXACT_BITS = 64

# Which kinds of index answer which question, the most exact first.
SERVES: dict[type[ComparisonOperator], tuple[str, ...]] = {
    Equal: ("exact", "folded"),
    NotEqual: ("exact", "folded"),
    In: ("exact", "folded"),
    NotIn: ("exact", "folded"),
    StartsWith: ("prefix",),
    EndsWith: ("last",),
    InYear: ("year",),
    InMonth: ("month",),
}


@forgetful
def pin(table: type[Table], where: Combinable | None) -> Combinable:
    """The condition with the scope's tenant before it: a second wall, should the first ever be taken down."""
    pinned = _tenant_of(table)
    try:
        return pinned if where is None else And(pinned, protect(where))
    except RecursionError:
        raise ProtectedQueryError(TOO_DEEP) from None


@functools.cache
def _tenant_of(table: type[Table]) -> Where:
    """The condition that a row is of the scope's tenant; it holds no value, so all queries share it."""
    key = table._meta.get_column_by_name("tenant_id" if _has(table, "tenant_id") else "id")
    return Where(column=key, value=TENANT, operator=OfTenant)


def approximate(where: Combinable | None) -> list[Approximate]:
    """The searches in a protected condition that find too much. Only an AND can be judged after the rows are opened."""
    if isinstance(where, And):
        return [*approximate(where.first), *approximate(where.second)]
    if isinstance(where, Or):
        for found in (*approximate(where.first), *approximate(where.second)):
            found.refuse("OR")
    return [where] if isinstance(where, Approximate) else []


def exact(where: Combinable, what: str) -> Combinable:
    """The protected condition, if the database alone can judge it; ``what`` names who asks, for the error."""
    for found in approximate(where):
        found.refuse(what)
    return where


def equalities(where: Combinable) -> list[tuple[str, Deferred]]:
    """The blind indexes that a condition looks into, each with its hashes; raises for any other condition.

    Threat: a net is cast over everybody who might be a patient. So at most ``FEW`` values of a column are looked for;
    the database sees to it too (``core/schema/sql/break_glass_by.sql``).
    """
    found = []
    if any(len(_asked_for(leaf)) > FEW for leaf in _leaves(where) if isinstance(leaf, Where)):
        raise ProtectedQueryError(f"An emergency looks for one client, by at most {FEW} values of a column.")
    for leaf in _leaves(protect(where)):
        index: Any = leaf.column if isinstance(leaf, Where) else None
        if not isinstance(leaf, Where) or not isinstance(index, BlindIndex) or leaf.operator is not AnyOf:
            raise ProtectedQueryError(
                "An emergency looks for a client by what its encrypted columns hold, all of it: "
                'break_glass((Client.last_name == "Li") & (Client.date_of_birth == date(1990, 1, 1)), reason=...)'
            )
        if isinstance(leaf, Approximate):
            leaf.refuse("an emergency")
        found.append((index._meta.db_column_name, leaf.value))
    return found


def protect(where: Combinable) -> Combinable:
    """The condition with every encrypted column replaced by a blind index; raises when none fits."""
    if isinstance(where, And):
        return _conjunction(where)
    if isinstance(where, Or):
        return Or(protect(where.first), protect(where.second))
    if isinstance(where, Where):
        return _leaf(where)
    _refuse_functions(where)
    # Piccolo does so for a condition that stands alone.
    return WhereRaw("{}", where) if isinstance(where, QueryString) else where


def refuse_computed(value: Any, asked: str = "compute with it") -> None:
    """Raise for an encrypted column, or a function of one. A column in a person's SQL is the person's business.

    To count it is to ask whether a value is there, not what it is.
    """
    if isinstance(value, (Encrypted, BlindIndex)):
        value.refuse(asked)
    if not isinstance(value, QueryString) or isinstance(value, Count):
        return
    inner = [argument for argument in value.args if isinstance(argument, QueryString)]
    of_these = {id(column) for argument in inner for column in argument.columns}
    for part in (*(column for column in value.columns if id(column) not in of_these), *inner):
        refuse_computed(part, asked)


def refuse_encrypted(where: Combinable | None) -> None:
    """Raise for a condition on an encrypted column where no blind index is looked at: after grouping."""
    if isinstance(where, (And, Or)):
        refuse_encrypted(where.first)
        refuse_encrypted(where.second)
    elif isinstance(where, Where):
        for part in (where.column, *_asked_for(where)):
            refuse_computed(part, "answer that condition after grouping")
    elif where is not None:
        _refuse_functions(where, "answer that condition after grouping")


def _refuse_functions(where: Any, asked: str = "compute with it") -> None:
    for fragment in [where] if isinstance(where, QueryString) else where.querystring.args:
        refuse_computed(fragment, asked)


def _asked_for(where: Where) -> list[Any]:
    """The values of a condition: one, or several."""
    if where.values is UNDEFINED:
        return [] if where.value is UNDEFINED else [where.value]
    values: Any = where.values
    return [values] if isinstance(values, QueryString) else list(values)


def pinned_id(table: type[Table], where: Combinable | None) -> UUID | None:
    """The id of the one row that the condition allows, when it says so itself."""
    if isinstance(where, And):
        return pinned_id(table, where.first) or pinned_id(table, where.second)
    if (
        isinstance(where, Where)
        and where.operator is Equal
        and where.column is table._meta.primary_key
        and isinstance(where.value, UUID)
    ):
        return where.value
    return None


def finds_one(table: type[Table], where: Combinable | None) -> bool:
    """Whether the condition allows one row, whatever the id is."""
    if isinstance(where, And):
        return finds_one(table, where.first) or finds_one(table, where.second)
    return isinstance(where, Where) and where.operator is Equal and where.column is table._meta.primary_key


def _has(table: type[Table], name: str) -> bool:
    return any(column._meta.name == name for column in table._meta.columns)


def _leaves(where: Combinable) -> Iterator[Combinable]:
    if isinstance(where, And):
        yield from _leaves(where.first)
        yield from _leaves(where.second)
    else:
        yield where


def _conjunction(where: And) -> Combinable:
    """An AND-chain, in which equalities on all columns of a compound index become one."""
    leaves = list(_leaves(where))
    # The equalities by row: a row that is reached by another join is another row.
    of_rows: dict[Any, dict[str, Where]] = {}
    for leaf in leaves:
        if isinstance(leaf, Where) and leaf.operator is Equal and isinstance(leaf.column, Encrypted):
            meta = leaf.column._meta
            if not is_computed(leaf.value):
                of_rows.setdefault((meta.table, tuple(k._meta.name for k in meta.call_chain)), {})[meta.name] = leaf
    for equal in of_rows.values():
        if len(equal) > 1:
            leaves = _compounded(equal, leaves)
    protected = [protect(leaf) for leaf in leaves]
    chain = protected[0]
    for leaf in protected[1:]:
        chain = And(chain, leaf)
    return chain


def _compounded(equal: dict[str, Where], leaves: list[Combinable]) -> list[Combinable]:
    """The conditions, in which those on all columns of a compound index have become one."""
    for index in _indexes(next(iter(equal.values())).column):
        parts: list[Any] = [equal.get(name) for name in index.of]
        if index.spec.kind == "compound" and all(parts):
            for part in parts:
                part.column.check_sought(part.value)
            values = tuple(part.value for part in parts)
            return [*(leaf for leaf in leaves if leaf not in parts), _ask(index, [values], AnyOf)]
    return leaves


def _leaf(where: Where) -> Where:
    column, operator = where.column, where.operator
    inner: Any = where.values
    if inner is not UNDEFINED and isinstance(inner, Plan):
        if inner.keep is not None:
            raise ProtectedQueryError(
                "A sub-select cannot search by a blind index of few bits: it finds rows of other values too. Run it by "
                "itself, or declare the index with bits=64."
            )
        if inner.opened:
            raise ProtectedQueryError("A sub-select cannot return an encrypted column. Select ids in it instead.")
    if not isinstance(column, Encrypted) or operator in (IsNull, IsNotNull):
        for value in _asked_for(where):
            if is_computed(value):
                refuse_computed(value, "compare it with another column")
        return where
    kinds = SERVES.get(operator)
    if kinds is None:
        column.refuse("answer that condition")
    values: Any = [where.value] if where.values is UNDEFINED else where.values
    if isinstance(values, QueryString) or any(isinstance(value, (QueryString, Column)) for value in values):
        column.refuse("compare it with something that the database computes")
    for value in values:
        column.check_sought(value)
    for kind in kinds:
        for index in _indexes(column):
            if index.spec.kind == kind and _fits(index, values, operator):
                return _ask(index, list(values), NoneOf if operator in (NotEqual, NotIn) else AnyOf)
    return _refuse_without_index(column, where)


def _refuse_without_index(column: Encrypted[Any], where: Where) -> NoReturn:
    """Say which index would answer; none that could not digest what the column holds."""
    name, operator = column._meta.name, where.operator
    fitting = [kind for kind in DIGESTED[column.kind] if kind in SERVES[operator]]
    said = f"{column._meta.table.__name__}.{name} is encrypted and no blind index answers that condition"
    if not fitting:
        raise ProtectedQueryError(
            f"{said} for an {type(column).__name__}. Keep what is searched in an encrypted column of its own."
        )
    length = f", length={_letters(where.value, operator)}" if operator in (StartsWith, EndsWith) else ""
    raise ProtectedQueryError(
        f'{said}. Declare one: {name}_{fitting[0]} = BlindIndex("{name}", kind="{fitting[0]}"{length})'
    )


def _fits(index: BlindIndex, values: Any, operator: type[ComparisonOperator]) -> bool:
    return operator not in (StartsWith, EndsWith) or all(
        isinstance(value, str) and _letters(value, operator) == index.spec.length for value in values
    )


def _letters(value: Any, operator: type[ComparisonOperator]) -> int:
    """How long what is searched is, as its index counts: "Weiß" has five letters when case is folded."""
    return len(fold(str(value)) if operator is StartsWith else str(value))


def _indexes(column: Column) -> Sequence[BlindIndex]:
    """The blind indexes of the column's table, reached by the same joins."""
    meta = column._meta
    found = indexes_of(meta.table, meta.name)
    if meta.call_chain:
        return [getattr(meta.call_chain[-1], index._meta.name) for index in found]
    return found


def _ask(index: BlindIndex, values: list[Any], operator: type[ComparisonOperator]) -> Where:
    label, spec = index.label, index.spec

    def hashes(keys: TenantKeys) -> list[bytes | None]:
        # NULL stays NULL: in SQL nothing is surely not in a list that holds one.
        return [d for value in values for d in ([None] if value is None else keys.blind_all(label, spec, value))]

    if spec.bits >= EXACT_BITS:
        return Where(column=index, value=Deferred(hashes), operator=operator)
    found = Approximate(index, values, Deferred(hashes))
    if operator is NoneOf:
        found.refuse("a condition that is negated")
    return found
