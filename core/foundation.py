"""What all tables share, declared once: roles, the machinery's schema, the envelope's domain, functions."""

from __future__ import annotations

from pathlib import Path

from core.crypto.envelope import ENVELOPE_CHECK_SQL
from core.schema import Domain, Function, Namespace, Role, SchemaGrant, SchemaObject, Statement

__all__ = ["FOUNDATION"]

SQL = Path(__file__).parent / "schema" / "sql"

# Which role may call what; nobody else may call anything. Trigger functions are called by triggers only.
CALLABLE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "actor_id": ("actor_id", "()", ("app_runtime", "app_auditor")),
    "actor_places": ("actor_places", "()", ("app_runtime", "app_auditor")),
    "actor_role": ("actor_role", "()", ("app_runtime", "app_auditor")),
    "archive_partition": ("archive_partition", "(text, uuid[], bigint[])", ()),
    "begin_session": ("begin_session", "()", ("app_runtime",)),
    "break_glass": ("break_glass", "(uuid, text, integer)", ("app_runtime",)),
    "break_glass_by": ("break_glass_by", "(text[], text[], text, integer)", ("app_runtime",)),
    "check_emergency": ("check_emergency", "(text, integer)", ()),
    "emergency_client": ("emergency_client", "()", ("app_runtime", "app_auditor")),
    "emergency_of": ("emergency_of", "(text)", ()),
    "ensure_partitions": ("ensure_partitions", "(integer)", ()),
    "find_principal": ("find_principal", "(uuid, text)", ()),
    "find_tenant": ("find_tenant", "(text)", ("app_runtime",)),
    "follow_tenant": ("follow_tenant", "()", ()),
    "follow_user": ("follow_user", "()", ()),
    "forget_scope": ("forget_scope", "()", ()),
    "hmac": ("hmac", "(bytea, bytea, bytea)", ()),
    "keep_history": ("keep_history", "()", ()),
    "keep_partition": ("keep_partition", "(text)", ()),
    "met_another": ("met_another", "(text)", ()),
    "npi_is_valid": ("npi_is_valid", "(text)", ("app_runtime",)),
    "other_scope": ("other_scope", "(text)", ()),
    "provision_tenant": (
        "provision_tenant",
        "(text, uuid, text, text, text, integer, boolean, uuid, text, text, uuid, bytea, text)",
        ("app_runtime",),
    ),
    "record": ("record", "(text, text, uuid, jsonb, jsonb)", ("app_runtime", "app_auditor")),
    "record_late": ("record_late", "(text, text, text, uuid[], text[], jsonb)", ("app_runtime", "app_auditor")),
    "record_read": ("record_read", "(text, uuid[], text[])", ("app_runtime", "app_auditor")),
    "refuse_change": ("refuse_change", "()", ()),
    "refuse_scope": ("refuse_scope", "(text)", ()),
    "refuse_stranger": ("refuse_stranger", "()", ()),
    "refuse_truncate": ("refuse_truncate", "()", ()),
    "refuse_unreadable": ("refuse_unreadable", "()", ()),
    "scope": ("scope", "()", ("app_runtime", "app_auditor")),
    "set_tenant_status": ("set_tenant_status", "(uuid, uuid, text, text)", ()),
    "sign_as": ("sign_as", "(uuid, text, text)", ()),
    "sign": ("sign", "(uuid, uuid, text)", ()),
    "stand": ("stand", "()", ()),
    "standing": ("standing", "(uuid, uuid, text, uuid[], boolean)", ()),
    "tenant_as": ("tenant_as", "(text[])", ("app_runtime", "app_auditor")),
    "tenant_everywhere": ("tenant_everywhere", "()", ("app_runtime", "app_auditor")),
    "tenant_id": ("tenant_id", "()", ("app_runtime", "app_auditor")),
    "token_holds": ("token_holds", "(text)", ()),
    "token_signed": ("token_signed", "(text)", ()),
    "touch": ("touch", "()", ()),
    "touch_tenant_row": ("touch_tenant_row", "()", ()),
    "was_replaced": ("was_replaced", "(xid, xid)", ()),
    "uuid7": ("uuid7", "()", ("app_runtime",)),
    "uuid7_start": ("uuid7_start", "()", ("app_runtime",)),
}


def function(file: str) -> Function:
    """The function that a file of ``core/schema/sql`` defines, with its comments, as it stands."""
    name, signature, callers = CALLABLE[file]
    source = (SQL / f"{file}.sql").read_text(encoding="utf-8")
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
    *(function(file) for file in sorted(CALLABLE)),
)
