"""Role by table by command, as the database enforces it now, against core/permissions.py.

The condition of a policy is not read but asked: PostgreSQL evaluates it for each role, for a user who is bound to no
facility, and for one who is, on a row of that facility and of another. So its wording may change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from core.doctor.check import Notes, check
from core.doctor.live import Live, plural
from core.permissions import COMMANDS, ROLES, roles_for
from core.schema.quoting import quote_ident

__all__ = ["Asked", "ask_policies"]

HERE, ELSEWHERE = "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"
BOUND = "bound to facilities"  # what actor_role_everywhere() answers for such a user: no role

SCOPE = re.compile(r"charthold\.(actor_role_everywhere|actor_role|actor_facilities)\(\)")
# What may stand before a parenthesis. A condition that calls anything else, or reads a table, is not evaluated.
CALL = re.compile(r"([\w\"]+)\s*\(")
WORDS = frozenset({"and", "any", "array", "case", "else", "in", "not", "or", "select", "then", "when"})


# Who may act now, and how many of them within facilities.
PEOPLE = """select role, count(*) as users, count(facility_scope) as bound from charthold.principal
where tenant_open group by role"""


@dataclass
class Asked:
    """Whom policies let in: which roles, which of them beyond their facilities; and the policies unlike ours."""

    allowed: set[str] = field(default_factory=set)
    everywhere: set[str] = field(default_factory=set)
    odd: list[str] = field(default_factory=list)


@check("164.312(a)(1)")
async def permissions(live: Live, notes: Notes) -> None:
    """Who may do what."""
    matrix: list[dict[str, Any]] = []
    for name in live.isolated():
        declared = live.declared().get(name)
        facility = getattr(declared, "facility_column", None)
        for command in COMMANDS:
            policies = {
                title: policy
                for title, policy in live.catalog["policy"].items()
                if policy["on"] == name and not policy["restrictive"] and policy["command"] in (command, "all")
            }
            asked = await ask_policies(live, policies.values(), facility)
            matrix.append(
                {
                    "table": name,
                    "command": command,
                    "granted": any(g["to"] == live.runtime and g["privilege"] == command for g in live.grants(name)),
                }
                | {r: "yes" if r in asked.everywhere else "facility" if r in asked.allowed else "no" for r in ROLES}
            )
            if declared is None:
                continue
            wanted = set(roles_for(name.removeprefix("public."), command, getattr(declared, "permissions", None)))
            loose = asked.everywhere if facility else set()
            because = [
                f"{', '.join(role for role in ROLES if role in roles)} {what}"
                for roles, what in (
                    (asked.allowed - wanted, "may and should not"),
                    (wanted - asked.allowed, "should and may not"),
                    (loose, "of one facility see all"),
                )
                if roles
            ] + ["a policy has a condition that is none of ours"] * bool(asked.odd)
            if because:
                usual = f"{command}_by_role on {name}"
                title = next((t for t in [*asked.odd, *policies] if t != usual), usual)
                notes.fail(
                    f"To {command} on {name}: {'; '.join(because)}.",
                    subject=f"policy {title}",
                    mend="Bring core/permissions.py and the policies together: piccolo migrations new core --auto.",
                )
    live.shown["matrix"] = matrix
    live.shown["people"] = {
        row["role"]: {"users": row["users"], "bound": row["bound"]} for row in await live.connection.fetch(PEOPLE)
    }
    tables = len({row["table"] for row in matrix})
    notes.end(f"{len(ROLES)} roles on {plural(tables, 'table')}, {len(matrix)} commands: as core/permissions.py says.")


async def ask_policies(live: Live, policies: Iterable[dict[str, Any]], facility: str | None) -> Asked:
    """Whom any of the permissive policies lets in. One with two conditions lets in whom both let in."""
    found = Asked()
    for policy in policies:
        answers = [
            await _ask(live, policy[clause], facility) for clause in ("using", "check") if policy[clause] is not None
        ]
        if any(answer is None for answer in answers):
            found.odd.append(f"{policy['ident']} on {policy['on']}")
            continue
        given = [answer for answer in answers if answer is not None]
        found.allowed |= set(ROLES).intersection(*(allowed for allowed, _ in given))
        found.everywhere |= set(ROLES).intersection(*(everywhere for _, everywhere in given))
    return found


async def _ask(live: Live, condition: str, facility: str | None) -> tuple[set[str], set[str]] | None:
    """Which roles the condition lets in, and which of them beyond their facilities. None: it asks something else."""
    text = SCOPE.sub(r"who.\1", condition)
    if re.search(r"\bfrom\b", text, re.IGNORECASE) or not {word.lower() for word in CALL.findall(text)} <= WORDS:
        return None
    column = quote_ident(facility or "no facility")
    sql = f"""select role, place, coalesce(({text}), false) as may
        from unnest($1::text[]) as role, lateral (values
            ('free', role, role, null::uuid[], $2::uuid),
            ('inside', role, $4::text, array[$2::uuid], $2::uuid),
            ('outside', role, $4::text, array[$2::uuid], $3::uuid)
        ) as who (place, actor_role, actor_role_everywhere, actor_facilities, {column})"""
    try:
        rows = await live.connection.fetch(sql, list(ROLES), HERE, ELSEWHERE, BOUND)
    except (asyncpg.UndefinedColumnError, asyncpg.DataError, asyncpg.SyntaxOrAccessError):
        return None
    may = {(row["role"], row["place"]) for row in rows if row["may"]}
    return {r for r in ROLES if (r, "free") in may or (r, "inside") in may}, {r for r in ROLES if (r, "outside") in may}
