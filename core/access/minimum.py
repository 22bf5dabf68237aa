"""The minimum necessary, 45 CFR 164.502(b) and 164.514(d)(2): to which roles the plaintext of a column is shown.

A policy shows a role a row or hides it; the envelopes in it are opened in one place, by the statement that records
that they are. So that statement asks for the role first, and so does a search by a column, which tells as much.

Threat: SQL that a person wrote asks for nothing of this. It is shown envelopes, which open only in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from piccolo.columns import Column
from piccolo.table import Table

from core.access.permissions import EMERGENCY, ROLES
from core.columns import Encrypted
from core.errors import ConfigurationError

__all__ = ["ShownTo", "check_shown_to", "shown_to"]


class ShownTo(NamedTuple):
    """Columns that are for some roles alone, and these roles."""

    columns: tuple[str, ...]
    roles: tuple[str, ...]


def shown_to(columns: Iterable[Column]) -> tuple[ShownTo, ...]:
    """Those of the columns that are not for every role, by what their tables say.

    Who broke the glass reads as a clinician.
    """
    found: dict[tuple[str, ...], set[str]] = {}
    for column in columns:
        roles = check_shown_to(column._meta.table).get(column._meta.name)
        if roles is not None:
            able = {*roles, EMERGENCY} if "clinician" in roles else {*roles}
            found.setdefault(tuple(role for role in (*ROLES, EMERGENCY) if role in able), set()).add(column._meta.name)
    return tuple(ShownTo(tuple(sorted(names)), roles) for roles, names in found.items())


def check_shown_to(table: type[Table]) -> Mapping[str, tuple[str, ...]]:
    """What the table's class says; raises ``ConfigurationError`` for an unknown name, which would protect nothing."""
    said: Mapping[str, tuple[str, ...]] = getattr(table, "shown_to", {})
    sealed = [column._meta.name for column in table._meta.columns if isinstance(column, Encrypted)]
    named = [role for roles in said.values() for role in roles]
    for names, known, what in ((said, sealed, "encrypted columns"), (named, ROLES, "roles")):
        if unknown := [name for name in names if name not in known]:
            raise ConfigurationError(
                f"{table.__name__}.shown_to names {unknown[0]!r}. It may name {what}: {', '.join(known)}."
            )
    return said
