"""What a policy does, found out by asking it.

Its condition is not read but asked: PostgreSQL evaluates it for each role, for a user who is bound to no facility, for
one who is, on a row of that facility and of another, in an emergency, on a row of that client and of another, and for
one of another tenant. So its wording may change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from core.access.permissions import EMERGENCY, ROLES, Command
from core.doctor.live import Live
from core.schema.quoting import quote_ident

__all__ = ["Asked", "ask_policies", "ask_policy", "crosses", "tenant_column"]

HERE, ELSEWHERE = "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"

SCOPE = re.compile(r"charthold\.(actor_role|actor_places|emergency_client|tenant_everywhere|tenant_id)\(\)")
TENANT_AS = re.compile(r"charthold\.tenant_as\(VARIADIC (ARRAY\[[^\]]*\])\)")
# What may stand before a parenthesis. A condition that calls anything else, or reads a table, is not evaluated.
CALL = re.compile(r"([\w\"]+)\s*\(")
# What asks without any: a table, or who is connected, and when.
ASKS = re.compile(
    r'(?<!")\b(from|current_(user|role|schema|catalog|date|time|timestamp)|(session|system)_user|user|localtime(stamp)?)\b',
    re.IGNORECASE,
)
WORDS = frozenset({"and", "any", "array", "case", "else", "in", "not", "or", "select", "then", "when"})
# Who asks, and for which row: a user of the whole tenant, for a row of it; one who is bound to a facility, for a row of
# that facility and for one of another; and a user of another tenant. In an emergency: for a row of the client, and of
# another client.
EVERY = {(role, place) for role in ROLES for place in ("free", "inside", "outside", "foreign")} | {
    (EMERGENCY, place) for place in ("client", "beyond", "foreign")
}

Answers = set[tuple[str, str]]


@dataclass
class Asked:
    """Whom policies let in: which roles, which of them inside of their facilities and which beyond; and odd policies.

    An emergency is inside with the rows of its client.
    """

    allowed: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    odd: list[str] = field(default_factory=list)


async def ask_policies(
    live: Live,
    policies: Sequence[dict[str, Any]],
    command: Command,
    table: str,
    facility: str | None,
    clients: Sequence[str] = (),
) -> Asked:
    """Whom the policies let in with the command: any of the permissive ones, and all of the restrictive ones.

    ``facility`` and ``clients``: the columns that say of which facility a row is, and of which client.
    """
    found = Asked()
    permitted: Answers = set()
    kept = set(EVERY)
    for policy in policies:
        answers = await ask_policy(live, policy | _unasked(policy, command), table, facility, clients)
        if answers is None:
            if not policy["restrictive"]:  # which narrows, whatever it asks
                found.odd.append(f"{policy['ident']} on {policy['on']}")
        elif policy["restrictive"]:
            kept &= answers
        else:
            permitted |= answers
    may = permitted & kept
    found.allowed = {role for role, place in may if place in ("free", "inside", "client")}
    found.inside = {role for role, place in may if place in ("inside", "client")}
    found.outside = {role for role, place in may if place in ("outside", "beyond")}
    return found


def _unasked(policy: dict[str, Any], command: Command) -> dict[str, None]:
    """The condition that PostgreSQL does not ask then: only of rows that are left a CHECK, only of rows found USING."""
    if command in ("select", "delete"):
        return {"check": None}
    return {"using": None} if command == "insert" and policy["check"] is not None else {}


def crosses(answers: Answers) -> bool:
    """Whether anybody of another tenant is let in."""
    return any(place == "foreign" for _, place in answers)


def tenant_column(table: str) -> str:
    """The column by which the table's rows belong to a tenant."""
    return "id" if table == "public.tenant" else "tenant_id"


async def ask_policy(
    live: Live, policy: dict[str, Any], table: str, facility: str | None, clients: Sequence[str] = ()
) -> Answers | None:
    """Which role it lets in to which row, by all its conditions. None: one of them asks what we do not know."""
    allowed = set(EVERY)
    for clause in ("using", "check"):
        if policy[clause] is not None:
            answers = await _ask(live, policy[clause], [tenant_column(table), facility or "no facility", *clients])
            if answers is None:
                return None
            allowed &= answers
    return allowed


async def _ask(live: Live, condition: str, columns: Sequence[str]) -> Answers | None:
    text = SCOPE.sub(r"who.said_\1", condition)
    text = TENANT_AS.sub(r"case when who.said_actor_role = any (\1) then who.said_tenant_id end", text)
    if ASKS.search(text) or not {word.lower() for word in CALL.findall(text)} <= WORDS:
        return None
    names = list(dict.fromkeys(columns))
    sql = f"""select asked, place, coalesce(({text}), false) as may
        from unnest($1::text[]) as asked, lateral (values
            ('free', asked, null::text[], $2::uuid, $2::uuid, null::text),
            ('inside', asked, array[$2::text || $2::text], null::uuid, $2::uuid, null),
            ('outside', asked, array[$2::text || $3::text], null::uuid, $2::uuid, null),
            ('foreign', asked, null::text[], $3::uuid, $3::uuid, null),
            ('foreign', asked, array[$3::text || $2::text], null::uuid, $3::uuid, null),
            ('client', asked, null::text[], null::uuid, $2::uuid, $2::text || $2::text),
            ('beyond', asked, null::text[], null::uuid, $2::uuid, $2::text || $3::text),
            ('foreign', asked, null::text[], null::uuid, $3::uuid, $3::text || $2::text)
        ) as who (
            place, said_actor_role, said_actor_places, said_tenant_everywhere, said_tenant_id, said_emergency_client
        ), (values ({", ".join(["$2::uuid"] * len(names))})) as row ({", ".join(map(quote_ident, names))})
        where (asked = $4) = (said_emergency_client is not null)"""
    try:
        rows = await live.connection.fetch(sql, [*ROLES, EMERGENCY], HERE, ELSEWHERE, EMERGENCY)
    except (asyncpg.UndefinedColumnError, asyncpg.DataError, asyncpg.SyntaxOrAccessError):
        return None
    return {(row["asked"], row["place"]) for row in rows if row["may"]}
