"""What a table says about itself is taken at its word, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from piccolo.columns import Text

from core.columns import EncryptedText, TenantForeignKey
from core.errors import ConfigurationError
from core.permissions import COMMANDS, ROLES, roles_for
from core.schema import Grant, Index, Policy, Unique
from core.tables import Client
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


def test_what_is_unique_is_unique_within_a_tenant() -> None:
    with pytest.raises(ConfigurationError, match="unique over all tenants") as error:
        table(code=Text(unique=True))
    assert 'declares = (Unique(name="ward_code_key", columns=("tenant_id", "code")),)' in str(error.value)
    table(code=Text(), declares=(Unique(name="ward_code_key", columns=("tenant_id", "code")),))


@pytest.mark.parametrize(
    "key",
    [
        Unique(name="ward_code_key", columns=("code",)),
        Unique(name="ward_code_key", columns=("code", "tenant_id")),
        Index(name="ward_code_key", columns=("lower(code)",), unique=True),
    ],
)
def test_a_key_over_all_tenants_is_refused(key: Unique | Index) -> None:
    with pytest.raises(ConfigurationError, match='ward_code_key would be unique over all tenants. .*"tenant_id"'):
        table(code=Text(), declares=(key,))


def test_a_reference_that_is_unique_has_a_unique_index() -> None:
    made = table(client_id=TenantForeignKey(Client, unique=True), other_id=TenantForeignKey(Client))
    indexes = {o.columns: o.unique for o in made.implied_objects() if isinstance(o, Index)}
    assert indexes == {("tenant_id", "client_id"): True, ("tenant_id", "other_id"): False}
