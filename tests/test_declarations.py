"""What a table says about itself is taken at its word, or refused."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piccolo.columns import Array, Column, ForeignKey, Integer, Text
from piccolo.columns.base import OnDelete
from piccolo.constraints import Unique as PiccoloUnique
from piccolo.table import Table

from core.access.permissions import COMMANDS, EMERGENCY, ROLES, roles_for
from core.columns import (
    BlindIndex,
    EncryptedDate,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedText,
    Inet,
    TenantForeignKey,
)
from core.errors import ConfigurationError, MigrationError
from core.ids import uuid7
from core.schema import Grant, Index, Partitions, Policy, References, Unique, objects_of
from core.schema.mistakes import place_of
from core.tables import Client, Tenant
from core.tenant_table import TenantTable


def table(**said: Any) -> type[TenantTable]:
    """A table that says this about itself."""
    return type("Ward", (TenantTable,), {"note": EncryptedText(), **said}, tablename="ward")


def test_a_table_that_grants_nobody_anything_lets_nobody_in() -> None:
    assert [roles_for("ward", command, {}) for command in COMMANDS] == [()] * 4
    objects = table(permissions={}).implied_objects()
    assert [o for o in objects if isinstance(o, Grant) or (isinstance(o, Policy) and not o.restrictive)] == []


def test_a_table_that_says_nothing_has_the_default() -> None:
    assert roles_for("ward", "select") == (*ROLES, EMERGENCY)
    assert [o.privileges for o in table().implied_objects() if isinstance(o, Grant)] == [COMMANDS]


def test_a_reference_to_a_table_of_another_schema_points_at_it() -> None:
    ward = type("Ward", (TenantTable,), {"note": EncryptedText()}, tablename="ward", schema="clinic")
    bed = type("Bed", (TenantTable,), {"ward_id": TenantForeignKey(ward)}, tablename="bed")
    assert [o.to_table for o in bed.implied_objects() if isinstance(o, References)] == ["clinic.ward"]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"permissions": {"read": ("admin",)}}, "read"),
        ({"permissions": {"select": ("admn",)}}, "admn"),
        ({"permissions": {"select": "admin"}}, "a"),
        ({"privileges": ("selekt",)}, "selekt"),
        ({"whole_tenant": ("remove",)}, "remove"),
        ({"unrecorded": ("notes",)}, "notes"),
        ({"facility_column": "facility"}, "facility"),
        ({"facility_column": "place", "place": Text(db_column_name="place_id")}, "place"),
        ({"facility_from": ("note",)}, "note"),
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


def test_a_key_over_all_tenants_is_refused_as_piccolo_writes_it() -> None:
    with pytest.raises(ConfigurationError, match="Ward: by_code would be unique over all tenants"):
        table(code=Text(), by_code=PiccoloUnique(["code"]))
    table(code=Text(), by_code=PiccoloUnique(["tenant_id", "code"]))


def test_a_reference_that_is_unique_has_a_unique_index() -> None:
    made = table(client_id=TenantForeignKey(Client, unique=True), other_id=TenantForeignKey(Client))
    indexes = {o.columns: o.unique for o in made.implied_objects() if isinstance(o, Index)}
    assert indexes == {("tenant_id", "client_id"): True, ("tenant_id", "other_id"): False}


def test_an_index_that_is_declared_stands_for_one_of_a_reference_unless_it_is_partial_or_the_reference_unique() -> None:
    by = [
        Index(name=f"ward_{column}", columns=("tenant_id", column, "created_at"), where=where)
        for column, where in (("a_id", None), ("b_id", "b_id is not null"), ("c_id", None))
    ]
    keys = {"a_id": TenantForeignKey(Client), "b_id": TenantForeignKey(Client)}
    made = table(**keys, c_id=TenantForeignKey(Client, unique=True), declares=by)
    assert [o.columns[1] for o in made.implied_objects() if isinstance(o, Index)] == ["b_id", "c_id"]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ({"unique": True}, r'Index(name="ward_code_key", columns=("tenant_id", "<blind index>"), unique=True)'),
        ({"index": True}, "BlindIndex"),
    ],
)
def test_an_encrypted_column_has_no_index_over_its_envelopes(said: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match="Ward.code is encrypted") as error:
        table(code=EncryptedText(**said))
    assert remedy in str(error.value)


def test_a_blind_index_is_unique_together_with_the_tenant() -> None:
    with pytest.raises(ConfigurationError, match="unique over all tenants"):
        table(code=EncryptedText(), code_exact=BlindIndex("code", kind="exact", unique=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EncryptedText(default="hello"),
        lambda: EncryptedInteger(default=0),
        lambda: EncryptedJSON(default={}),
        lambda: TenantForeignKey(Client, default=uuid7()),
        lambda: Inet(default="127.0.0.1"),
    ],
)
def test_a_default_that_would_be_forgotten_is_refused(make: Callable[[], Column]) -> None:
    with pytest.raises(ConfigurationError, match="takes no default"):
        make()


def test_a_name_that_postgresql_would_cut_is_refused() -> None:
    """ "capture_" and the table's name are the name of a function, which has 63 bytes at most."""
    for name, good in (("w" * 55, True), ("w" * 56, False), ("ä" * 27, True), ("ä" * 28, False)):
        if good:
            assert type("Ward", (TenantTable,), {}, tablename=name)._meta.tablename == name
        else:
            with pytest.raises(ConfigurationError, match="more than 55 bytes"):
                type("Ward", (TenantTable,), {}, tablename=name)


@pytest.mark.parametrize(
    "inner", [EncryptedText(), Array(base_column=EncryptedText()), BlindIndex("note", kind="exact")]
)
def test_an_array_does_not_hold_envelopes(inner: Column) -> None:
    with pytest.raises(ConfigurationError, match=r"Ward.codes is an array .* EncryptedJSON"):
        table(codes=Array(base_column=inner))


@pytest.mark.parametrize("of", ["nope", "number", "note_exact"])
def test_a_blind_index_is_of_an_encrypted_column_of_its_table(of: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Ward.wrong is a blind index of {of!r}, .* note"):
        table(number=Integer(), note_exact=BlindIndex("note", kind="exact"), wrong=BlindIndex(of, kind="exact"))


@pytest.mark.parametrize(
    ("index", "column", "kinds"),
    [
        (BlindIndex("value", kind="folded"), EncryptedDate(), "exact, year, month"),
        (BlindIndex("value", kind="prefix", length=3), EncryptedInteger(), "exact"),
        (BlindIndex("value", kind="last", length=4), EncryptedInteger(), "exact"),
        (BlindIndex("value", kind="year"), EncryptedText(), "folded, exact, prefix, last"),
        (BlindIndex("value", kind="month"), EncryptedInteger(), "exact"),
        (BlindIndex("note", "value", kind="compound", parts=("folded", "folded")), EncryptedDate(), "exact"),
        # A condition on a whole date would find the others of its year.
        (BlindIndex("note", "value", kind="compound", parts=("folded", "year")), EncryptedDate(), "exact"),
    ],
)
def test_a_blind_index_is_of_a_kind_that_fits_its_column(index: BlindIndex, column: Column, kinds: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Ward.wrong .* of Ward.value .* It may be: {kinds}[.]"):
        table(value=column, wrong=index)


def test_a_document_has_no_blind_index() -> None:
    with pytest.raises(ConfigurationError, match="Ward.value, an EncryptedJSON, which no index digests"):
        table(value=EncryptedJSON(), wrong=BlindIndex("value", kind="exact"))


class Code(Table, tablename="code"):
    """A catalogue that all tenants share."""

    name = Text()


class Note(Table, tablename="note"):
    """A table of Piccolo's own that refers to a tenant's."""

    client_id = ForeignKey(Client)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (ForeignKey(Client), "is a plain ForeignKey, which could point at another tenant's row. Use TenantForeignKey"),
        (
            ForeignKey(Code),
            "would change rows of all tenants when a Code is deleted. Give it on_delete=OnDelete.restrict",
        ),
        (
            TenantForeignKey(Code),
            "is a TenantForeignKey, and Code belongs to no tenant. Write: ForeignKey(Code, on_delete=OnDelete.restrict)",
        ),
        (TenantForeignKey(Tenant), "refers to Tenant, which nothing can. Keep the id in a UUID column."),
        (ForeignKey(Tenant), "refers to Tenant, which nothing can. Keep the id in a UUID column."),
    ],
)
def test_a_reference_is_of_the_kind_that_its_target_is(key: ForeignKey, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        objects_of(table(key_id=key))
    assert f"Ward.key_id {says}" in str(error.value)


@pytest.mark.parametrize("on_delete", [OnDelete.restrict, OnDelete.no_action])
def test_a_catalogue_that_all_tenants_share_is_referred_to_as_piccolo_does(on_delete: OnDelete) -> None:
    made = table(code_id=ForeignKey(Code, on_delete=on_delete))
    assert [o.columns for o in objects_of(made) if isinstance(o, References)] == [("tenant_id",)]


def test_a_table_of_no_tenant_does_not_refer_to_a_tenants() -> None:
    with pytest.raises(
        MigrationError, match=r"Note.client_id refers to Client.id, which is unique only as tenant_id, id"
    ):
        objects_of(Note)


@pytest.mark.parametrize(
    ("select", "update"), [(("admin", "auditor"), ()), ((), ("admin",)), (("clinician",), ("clinician",))]
)
def test_what_is_sealed_for_ever_is_refused(select: tuple[str, ...], update: tuple[str, ...]) -> None:
    """No key of a tenant could be rotated: a rotation seals each value anew, as an update."""
    with pytest.raises(ConfigurationError, match=r"Ward\.note is encrypted, and a rotation"):
        table(permissions={"select": select, "update": update, "insert": ("admin",)})


@pytest.mark.parametrize("role", ["admin", "system"])
def test_what_an_admin_or_the_system_may_seal_anew_is_not(role: str) -> None:
    table(permissions={"select": (role,), "update": (role,), "insert": ("clinician",)})


def test_what_means_something_is_no_name_of_a_column() -> None:
    with pytest.raises(ConfigurationError, match=r'Ward\.history means .* otherwise, with db_column_name="history"\.'):
        table(history=Text())
    table(past=Text(db_column_name="history"))


def test_a_table_of_tenants_has_no_partitions() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Ward\.declares has Partitions, .* without a record\. Leave them out\."
    ):
        table(declares=(Partitions(by="range (id)"),))


def test_a_table_of_another_schema_does_not_take_the_permissions_of_one_of_ours_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match="has the name of a table of Charthold"):

        class Mine(TenantTable, tablename="user_action_audit_log", schema="mine"):
            body = Text(default="")

    class Own(TenantTable, tablename="user_action_audit_log", schema="mine"):
        body = Text(default="")
        permissions = {"select": ("admin",)}  # noqa: RUF012

    assert roles_for("user_action_audit_log", "insert", Own.permissions) == ()
    type("Audit", (TenantTable,), {"body": Text()}, tablename="facility", schema="public")  # where ours are


def test_a_mistake_in_a_column_is_told_with_its_place_and_with_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "tables.py"
    file.write_text('from core.columns import BlindIndex\n\nBlindIndex("name", kind="exactly")\n')
    with pytest.raises(ConfigurationError, match=r"'exactly'\. There are exact, folded, prefix, ") as told:
        runpy.run_path(str(file))
    assert place_of(told.tb) == f"{file}:3: "
