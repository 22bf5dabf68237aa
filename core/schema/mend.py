"""The SQL that turns what a catalog holds into what it should hold, one object at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.schema.constraint import past_policies
from core.schema.quoting import quote_literal

__all__ = ["mend"]

Value = dict[str, Any]


def mend(kind: str, expected: Value | None, found: Value | None, create: Sequence[str] = ()) -> str:
    """Statements, each with its semicolon. Empty where data would be lost, or nobody can know what was meant."""
    if kind == "table":
        return "\n".join(f"{statement};" for statement in create) if found is None else ""
    if kind == "column":
        return column(expected, found)
    if kind == "domain" and expected is not None and found is not None and expected["type"] == found["type"]:
        return domain_changes(expected, found)
    if kind == "constraint" and expected is not None and expected == (found or {}) | {"validated": True}:
        return looked_at(expected, f"alter table {expected['on']} validate constraint {expected['ident']};")
    if kind in WHOLE:
        drop, make = WHOLE[kind]
        same_place = kind in {"function", "comment", "storage_parameters"} and expected is not None
        statements = [] if found is None or same_place else [drop(found)]
        return "\n".join(statements + ([] if expected is None else [make(expected)]))
    return ""


def column(expected: Value | None, found: Value | None) -> str:
    """A column that nobody declared may hold data, so it is not dropped here."""
    if expected is None:
        return ""
    alter = f"alter table {expected['on']}"
    if found is None:
        collated = f" default {expected['default']}" if expected["default"] is not None else ""
        null = " not null" if expected["not_null"] else ""
        return f"{alter} add column {expected['ident']} {expected['type']}{collated}{null};"
    alter = f"{alter} alter column {expected['ident']}"
    statements = []
    if expected["type"] != found["type"]:
        statements.append(f"{alter} type {expected['type']} using {expected['ident']}::{expected['type']};")
    if expected["default"] != found["default"]:
        default = expected["default"]
        statements.append(f"{alter} drop default;" if default is None else f"{alter} set default {default};")
    if expected["not_null"] != found["not_null"]:
        statements.append(f"{alter} {'set' if expected['not_null'] else 'drop'} not null;")
    storage = {"p": "plain", "e": "external", "m": "main", "x": "extended"}
    if expected["storage"] != found["storage"] and expected["type"] == found["type"]:
        statements.append(f"{alter} set storage {storage[expected['storage']]};")
    if expected["statistics"] != found["statistics"]:
        statements.append(f"{alter} set statistics {-1 if expected['statistics'] is None else expected['statistics']};")
    return "\n".join(statements)


def domain_changes(expected: Value, found: Value) -> str:
    """Columns depend on a domain, so it is changed where it stands."""
    alter, statements = f"alter domain {expected['ident']}", []
    wanted, there = expected["checks"] or {}, found["checks"] or {}
    statements += [f"{alter} drop constraint {name};" for name in there if there[name] != wanted.get(name)]
    statements += [
        f"{alter} add constraint {name} {wanted[name]};" for name in wanted if there.get(name) != wanted[name]
    ]
    if expected["default"] != found["default"]:
        default = expected["default"]
        statements.append(f"{alter} drop default;" if default is None else f"{alter} set default {default};")
    if expected["not_null"] != found["not_null"]:
        statements.append(f"{alter} {'set' if expected['not_null'] else 'drop'} not null;")
    return "\n".join(statements)


def looked_at(constraint: Value, statement: str) -> str:
    """The statement that makes PostgreSQL look at a foreign key's rows, which needs company."""
    if constraint["type"] != "f":
        return statement
    to = constraint["definition"].partition(" REFERENCES ")[2].partition("(")[0]
    return "\n".join(f"{each};" for each in ("begin", *past_policies(constraint["on"], to, statement[:-1]), "commit"))


def constraint(value: Value) -> str:
    return looked_at(value, f"alter table {value['on']} add constraint {value['ident']} {value['definition']};")


def row_security(value: Value) -> str:
    enable = f"alter table {value['on']} enable row level security;"
    force = "force" if value["forced"] else "no force"
    return f"{enable}\nalter table {value['on']} {force} row level security;"


def policy(value: Value) -> str:
    conditions = "".join(
        f" {clause} ({value[field]})"
        for clause, field in (("using", "using"), ("with check", "check"))
        if value[field] is not None
    )
    kind = "restrictive" if value["restrictive"] else "permissive"
    roles = ", ".join(value["to"])
    return f"create policy {value['ident']} on {value['on']} as {kind} for {value['command']} to {roles}{conditions};"


def trigger(value: Value) -> str:
    states = {"O": "", "D": "disable", "R": "enable replica", "A": "enable always"}
    state = states[value["enabled"]]
    changed = f"\nalter table {value['on']} {state} trigger {value['ident']};" if state else ""
    return f"{value['definition']};{changed}"


def grant(value: Value) -> str:
    option = " with grant option" if value["grantable"] else ""
    return privilege(value, f"grant {what(value)} on {{}} to {grantee(value)}{option}")


def revoke(value: Value) -> str:
    return privilege(value, f"revoke {what(value)} on {{}} from {grantee(value)}")


def what(value: Value) -> str:
    return f"{value['privilege']} ({value['columns']})" if value["columns"] else str(value["privilege"])


def privilege(value: Value, statement: str) -> str:
    if value["object"] != "database":
        return f"{statement.format(value['object'])};"
    # The catalog leaves the database's name out, so that two databases compare.
    command = quote_literal(statement.format("database %I"))
    return f"do $$ begin execute format({command}, current_database()); end $$;"


def grantee(value: Value) -> str:
    return "current_user" if value["to"] == "owner" else str(value["to"])


def sequence(value: Value) -> str:
    unlogged = "unlogged " if value["persistence"] == "u" else ""
    return (
        f"create {unlogged}sequence {value['ident']} as {value['type']} increment {value['increment']}"
        f" minvalue {value['min']} maxvalue {value['max']} start {value['start']} cache {value['cache']}"
        f"{' cycle' if value['cycle'] else ''};"
    )


def domain(value: Value) -> str:
    default = f" default {value['default']}" if value["default"] is not None else ""
    null = " not null" if value["not_null"] else ""
    checks = "".join(f" constraint {name} {check}" for name, check in (value["checks"] or {}).items())
    return f"create domain {value['ident']} as {value['type']}{default}{null}{checks};"


def default_privilege(verb: str, preposition: str) -> Callable[[Value], str]:
    def statement(value: Value) -> str:
        schema = f" in schema {value['schema']}" if value["schema"] else ""
        return (
            f"alter default privileges for role {value['role']}{schema} {verb} {value['privilege']}"
            f" on {value['objects']} {preposition} {value['to']};"
        )

    return statement


def comment(text: Callable[[Value], str]) -> Callable[[Value], str]:
    kinds = {"table column": "column", "table constraint": "constraint", "policy": "policy"}

    def statement(value: Value) -> str:
        return f"comment on {kinds.get(value['type'], value['type'])} {value['ident']} is {text(value)};"

    return statement


# kind -> (what drops it, what makes it)
WHOLE: dict[str, tuple[Callable[[Value], str], Callable[[Value], str]]] = {
    "row_security": (
        lambda v: (
            f"alter table {v['on']} no force row level security;\nalter table {v['on']} disable row level security;"
        ),
        row_security,
    ),
    "storage_parameters": (
        lambda v: f"alter {'index' if v['kind'] in 'iI' else 'table'} {v['on']} reset ({v['option']});",
        lambda v: (
            f"alter {'index' if v['kind'] in 'iI' else 'table'} {v['on']} "
            f"set ({v['option']} = {quote_literal(v['value'])});"
        ),
    ),
    "constraint": (
        lambda v: f"alter table {v['on']} drop constraint {v['ident']};",
        constraint,
    ),
    "index": (lambda v: f"drop index {v['ident']};", lambda v: f"{v['definition']};"),
    "policy": (lambda v: f"drop policy {v['ident']} on {v['on']};", policy),
    "trigger": (lambda v: f"drop trigger {v['ident']} on {v['on']};", trigger),
    "rule": (lambda v: f"drop rule {v['ident']} on {v['on']};", lambda v: f"{v['definition']}"),
    "view": (
        lambda v: f"drop {'materialized ' if v['materialized'] else ''}view {v['ident']};",
        lambda v: f"create {'materialized ' if v['materialized'] else ''}view {v['ident']} as {v['definition']}",
    ),
    "statistics": (lambda v: f"drop statistics {v['ident']};", lambda v: f"{v['definition']};"),
    "function": (
        lambda v: f"drop {'procedure' if v['kind'] == 'p' else 'function'} {v['ident']};",
        # One that is made anew is everybody's, until that is taken back; who may call it is granted by itself.
        lambda v: f"{v['definition'].strip()};\nrevoke all on function {v['ident']} from public;",
    ),
    "domain": (lambda v: f"drop domain {v['ident']};", domain),
    "type": (
        lambda v: f"drop type {v['ident']};",
        lambda v: f"create type {v['ident']} as enum ({', '.join(map(quote_literal, v['labels'] or []))});",
    ),
    "sequence": (lambda v: f"drop sequence {v['ident']};", sequence),
    "comment": (comment(lambda _: "null"), comment(lambda v: quote_literal(v["text"]))),
    "grant": (revoke, grant),
    "column_grant": (revoke, grant),
    "function_grant": (revoke, grant),
    "schema_grant": (revoke, grant),
    "type_grant": (revoke, grant),
    "database_grant": (revoke, grant),
    "default_privileges": (default_privilege("revoke", "from"), default_privilege("grant", "to")),
    "event_trigger": (lambda v: f"drop event trigger {v['ident']};", lambda _: ""),
}
