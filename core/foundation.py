"""What all tables share, declared once: roles, the machinery's schema, the envelope's domain, functions."""

from __future__ import annotations

from pathlib import Path

from core.crypto.envelope import ENVELOPE_CHECK_SQL
from core.schema import Domain, Function, Namespace, Role, SchemaGrant, SchemaObject, Statement

__all__ = ["FOUNDATION"]

SQL = Path(__file__).parent / "schema" / "sql"

RUNTIME, BOTH = ("app_runtime",), ("app_runtime", "app_auditor")

# Which role may call what; nobody else may call anything. Trigger functions are called by triggers only.
CALLABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "actor_id": ("()", BOTH),
    "actor_places": ("()", BOTH),
    "actor_role": ("()", BOTH),
    "archive_partition": ("(text, uuid[], bigint[])", ()),
    "begin_session": ("()", RUNTIME),
    "break_glass": ("(uuid, text, integer)", RUNTIME),
    "break_glass_by": ("(text[], text[], text, integer)", RUNTIME),
    "check_emergency": ("(text, integer)", ()),
    "emergency_client": ("()", BOTH),
    "emergency_of": ("(text)", ()),
    "ensure_partitions": ("(integer)", ()),
    "find_principal": ("(uuid, text)", ()),
    "find_tenant": ("(text)", RUNTIME),
    "follow_tenant": ("()", ()),
    "follow_user": ("()", ()),
    "forget_scope": ("()", ()),
    "hmac": ("(bytea, bytea, bytea)", ()),
    "is_large": ("(jsonb)", ()),
    "keep_history": ("()", ()),
    "keep_partition": ("(text)", ()),
    "met_another": ("(text)", ()),
    "npi_is_valid": ("(text)", RUNTIME),
    "other_scope": ("(text)", ()),
    "provision_tenant": (
        "(text, uuid, text, text, text, integer, boolean, uuid, text, text, uuid, bytea, text)",
        RUNTIME,
    ),
    "record": ("(text, text, uuid, jsonb, jsonb)", BOTH),
    "record_late": ("(text, text, text, uuid[], text[], jsonb)", BOTH),
    "record_read": ("(text, uuid[], text[])", BOTH),
    "refuse_change": ("()", ()),
    "refuse_large": ("()", ()),
    "refuse_scope": ("(text)", ()),
    "refuse_stranger": ("()", ()),
    "refuse_truncate": ("()", ()),
    "refuse_unreadable": ("()", ()),
    "scope": ("()", BOTH),
    "set_tenant_status": ("(uuid, uuid, text, text)", ()),
    "shown_to": ("(text, text[])", BOTH),
    "sign_as": ("(uuid, text, text)", ()),
    "sign": ("(uuid, uuid, text)", ()),
    "stand": ("()", ()),
    "standing": ("(uuid, uuid, text, uuid[], boolean)", ()),
    "tenant_as": ("(text[])", BOTH),
    "tenant_everywhere": ("()", BOTH),
    "tenant_id": ("()", BOTH),
    "token_holds": ("(text)", ()),
    "token_signed": ("(text)", ()),
    "touch": ("()", ()),
    "touch_tenant_row": ("()", ()),
    "was_replaced": ("(xid, xid)", ()),
    "uuid7": ("()", RUNTIME),
    "uuid7_start": ("()", RUNTIME),
}


def function(name: str) -> Function:
    """The function that its file of ``core/schema/sql`` defines, with its comments, as it stands."""
    signature, callers = CALLABLE[name]
    source = (SQL / f"{name}.sql").read_text(encoding="utf-8")
    return Function(name=f"charthold.{name}", signature=signature, source=source, execute_to=callers)


FOUNDATION: tuple[SchemaObject, ...] = (
    Role(name="app_runtime"),
    Role(name="app_auditor", application=False),
    # Threat: whoever may make temporary objects can leave one under a name that the next tenant's statement uses.
    Statement(
        name="public keeps no temporary tables",
        forwards="""do $$
begin
    execute format('revoke temporary on database %I from public', current_database());
end
$$""",
        backwards="""do $$
begin
    execute format('grant temporary on database %I to public', current_database());
end
$$""",
    ),
    # Whoever is not one of our roles has no business in our schemas.
    Statement(
        name="public keeps no schema",
        forwards="revoke all on schema public from public",
        backwards="grant usage on schema public to public",
    ),
    SchemaGrant(schema="public", privileges=("usage",), to="app_runtime"),
    SchemaGrant(schema="public", privileges=("usage",), to="app_auditor"),
    Namespace(name="charthold"),
    SchemaGrant(schema="charthold", privileges=("usage",), to="app_runtime"),
    SchemaGrant(schema="charthold", privileges=("usage",), to="app_auditor"),
    # Threat: somebody writes PHI by hand, in plain text. The type of every PHI column refuses what is no envelope.
    Domain(name="charthold.envelope", type="bytea", check=ENVELOPE_CHECK_SQL),
    # What charthold.scope() worked out for a statement, in each session's memory. Only the owner reads and writes it.
    *(
        Statement(
            name=f"a session remembers what it was granted, {part}",
            forwards=f"create unlogged sequence charthold.granted_{part} minvalue {-(2**63)}",
            backwards=f"drop sequence charthold.granted_{part}",
        )
        for part in (1, 2, 3, 4)
    ),
    *(function(name) for name in sorted(CALLABLE)),
)
