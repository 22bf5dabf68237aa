"""What a policy does, by asking it.

Its condition is not read but asked: PostgreSQL evaluates it for each role, for a user who is bound to no facility, for
one who is, on a row of that facility and of another, and for one of another tenant. So its wording may change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from core.doctor.live import Live
from core.permissions import ROLES
from core.schema.quoting import quote_ident

__all__ = ["Asked", "ask_policies", "ask_policy", "crosses", "tenant_column"]

HERE, ELSEWHERE = "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"

SCOPE = re.compile(r"charthold\.(actor_role|actor_places|tenant_everywhere|tenant_id)\(\)")
TENANT_AS = re.compile(r"charthold\.tenant_as\(VARIADIC (ARRAY\[[^\]]*\])\)")
# What may stand before a parenthesis. A condition that calls anything else, or reads a table, is not evaluated.
CALL = re.compile(r"([\w\"]+)\s*\(")
WORDS = frozenset({"and", "any", "array", "case", "else", "in", "not", "or", "select", "then", "when"})
# Who asks, and for which row: a user of the whole tenant, for a row of it; one who is bound to a facility, for a row of
# that facility and for one of another; and a user of another tenant.
PLACES = ("free", "inside", "outside", "foreign")

Answers = set[tuple[str, str]]


@dataclass
class Asked:
    """Whom policies let in: which roles, which of them inside their facilities and beyond; and what is unlike ours."""

    allowed: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    odd: list[str] = field(default_factory=list)


async def ask_policies(live: Live, policies: Sequence[dict[str, Any]], table: str, facility: str | None) -> Asked:
    """Whom the policies let in: any of the permissive ones, and all of the restrictive ones."""
    found = Asked()
    permitted: Answers = set()
    kept = {(role, place) for role in ROLES for place in PLACES}
    for policy in policies:
        answers = await ask_policy(live, policy, table, facility)
        if answers is None:
            if not policy["restrictive"]:  # which narrows, whatever it asks
                found.odd.append(f"{policy['ident']} on {policy['on']}")
        elif policy["restrictive"]:
            kept &= answers
        else:
            permitted |= answers
    may = permitted & kept
    found.allowed = {role for role, place in may if place in ("free", "inside")}
    found.inside = {role for role, place in may if place == "inside"}
    found.outside = {role for role, place in may if place == "outside"}
    return found


def crosses(answers: Answers) -> bool:
    """Whether anybody of another tenant is let in."""
    return any(place == "foreign" for _, place in answers)


def tenant_column(table: str) -> str:
    """The column by which the table's rows belong to a tenant."""
    return "id" if table == "public.tenant" else "tenant_id"


async def ask_policy(live: Live, policy: dict[str, Any], table: str, facility: str | None) -> Answers | None:
    """Which role it lets in to which row, by all its conditions. None: one of them asks what we do not know."""
    allowed = {(role, place) for role in ROLES for place in PLACES}
    for clause in ("using", "check"):
        if policy[clause] is not None:
            answers = await _ask(live, policy[clause], table, facility)
            if answers is None:
                return None
            allowed &= answers
    return allowed


async def _ask(live: Live, condition: str, table: str, facility: str | None) -> Answers | None:
    text = SCOPE.sub(r"who.said_\1", condition)
    text = TENANT_AS.sub(r"case when who.said_actor_role = any (\1) then who.said_tenant_id end", text)
    if re.search(r"\bfrom\b", text, re.IGNORECASE) or not {word.lower() for word in CALL.findall(text)} <= WORDS:
        return None
    sql = f"""select asked, place, coalesce(({text}), false) as may
        from unnest($1::text[]) as asked, lateral (values
            ('free', asked, null::text[], $2::uuid, $2::uuid),
            ('inside', asked, array[$2::text || $2::text], null::uuid, $2::uuid),
            ('outside', asked, array[$2::text || $3::text], null::uuid, $2::uuid),
            ('foreign', asked, null::text[], $3::uuid, $3::uuid),
            ('foreign', asked, array[$3::text || $2::text], null::uuid, $3::uuid)
        ) as who (
            place, said_actor_role, said_actor_places, said_tenant_everywhere, said_tenant_id
        ), (values ($2::uuid, $2::uuid)) as row (
            {quote_ident(tenant_column(table))}, {quote_ident(facility or "no facility")}
        )"""
    try:
        rows = await live.connection.fetch(sql, list(ROLES), HERE, ELSEWHERE)
    except (asyncpg.UndefinedColumnError, asyncpg.DataError, asyncpg.SyntaxOrAccessError):
        return None
    return {(row["asked"], row["place"]) for row in rows if row["may"]}
