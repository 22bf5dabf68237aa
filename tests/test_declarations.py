"""What a table says about itself is taken at its word, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from core.columns import EncryptedText
from core.errors import ConfigurationError
from core.permissions import COMMANDS, ROLES, roles_for
from core.schema import Grant, Policy
from core.tenant_table import TenantTable


def table(**said: Any) -> type[TenantTable]:
    """A table that says this about itself."""
    return type("Ward", (TenantTable,), {"note": EncryptedText(), **said}, tablename="ward")


def test_a_table_that_grants_nobody_anything_lets_nobody_in() -> None:
    assert [roles_for("ward", command, {}) for command in COMMANDS] == [()] * 4
    objects = table(permissions={}).implied_objects()
    assert [o for o in objects if isinstance(o, Grant) or (isinstance(o, Policy) and not o.restrictive)] == []


def test_a_table_that_says_nothing_has_the_default() -> None:
    assert roles_for("ward", "select") == ROLES
    assert [o.privileges for o in table().implied_objects() if isinstance(o, Grant)] == [COMMANDS]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"permissions": {"read": ("admin",)}}, "read"),
        ({"permissions": {"select": ("admn",)}}, "admn"),
        ({"permissions": {"select": "admin"}}, "a"),
        ({"whole_tenant": ("remove",)}, "remove"),
        ({"unrecorded": ("notes",)}, "notes"),
        ({"facility_column": "facility"}, "facility"),
    ],
)
def test_a_misspelt_name_is_refused_when_the_class_is_made(said: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Ward[.]{next(iter(said))} names {wrong!r}[.] It may name: "):
        table(**said)
