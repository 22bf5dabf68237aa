"""The one place where names and values become SQL text.

A table has one name in three forms: ``facility`` or ``charthold.token_key`` in declarations and steps, always with its
schema in the catalog (``public.facility``), and quoted in SQL (``"public"."facility"``).
"""

from __future__ import annotations

import textwrap

from piccolo.table import Table

from core.settings import settings

__all__ = [
    "catalog_name",
    "columns_list",
    "full_name",
    "name_of",
    "qualified",
    "quote_ident",
    "quote_literal",
    "role",
    "split_table",
    "table_name",
    "tidy",
]

# Role keywords of GRANT and CREATE POLICY; every other name is a role of ours.
KEYWORDS = frozenset({"public", "current_user", "session_user"})


def quote_ident(name: str) -> str:
    """Quote one identifier; always, so that no list of reserved words has to be right."""
    if "\x00" in name or not name:
        raise ValueError("An identifier is at least one character, none of them NUL.")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """Quote a string constant, whatever standard_conforming_strings says."""
    quoted = "'" + value.replace("'", "''") + "'"
    return f" E{quoted}".replace("\\", "\\\\").lstrip() if "\\" in value else quoted


def full_name(schema: str | None, tablename: str) -> str:
    """The name in declarations: ``facility``, or ``charthold.token_key`` outside of ``public``."""
    return tablename if schema in {None, "public"} else f"{schema}.{tablename}"


def table_name(table: type[Table]) -> str:
    """``full_name`` of a declared table."""
    return full_name(table._meta.schema, table._meta.tablename)


def split_table(table: str) -> tuple[str, str]:
    """``facility`` -> ``("public", "facility")``; ``charthold.token_key`` -> ``("charthold", "token_key")``."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else ("public", schema)


def qualified(name: str) -> str:
    """Quote a name with its schema: the search path never decides which object is meant."""
    return ".".join(quote_ident(part) for part in split_table(name))


def name_of(table: type[Table]) -> str:
    """A declared table's name in SQL."""
    return qualified(table_name(table))


def catalog_name(table: type[Table]) -> str:
    """A declared table's name in the catalog."""
    return ".".join(split_table(table_name(table)))


def columns_list(columns: tuple[str, ...]) -> str:
    """``("a", "b")`` -> ``"a", "b"``, each quoted."""
    return ", ".join(quote_ident(column) for column in columns)


def role(name: str) -> str:
    """A logical role name as this cluster knows it: generated steps stay the same under every prefix."""
    return name if name in KEYWORDS else quote_ident(settings().role_prefix + name)


def tidy(text: str) -> str:
    """SQL text without the indentation of the Python around it, so that equal declarations compare equal."""
    return textwrap.dedent(text).strip()
