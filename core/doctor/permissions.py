"""Role by table by command, as the database enforces it now, against core/access/permissions.py."""

from __future__ import annotations

from typing import Any

from core.access.facilities import client_columns
from core.access.permissions import COMMANDS, EMERGENCY, ROLES, roles_for
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.doctor.policy import Asked, ask_policies
from core.plural import plural
from core.tenant_table import TenantTable

# Who may act now, and how many of them within facilities; and in how many emergencies.
PEOPLE = """select role, count(*) as users, count(facility_scope) as bound from charthold.principal
where tenant_open group by role
union all
select 'emergency', count(distinct user_id), count(distinct user_id) from charthold.emergency
where until > clock_timestamp()"""


@check("164.312(a)(1)")
async def permissions(live: Live, notes: Notes) -> None:
    """Who may do what."""
    matrix: list[dict[str, Any]] = []
    for name in live.isolated():
        declared = live.declared().get(name)
        narrowed = declared.narrowed_by() if declared and issubclass(declared, TenantTable) else []
        facility = narrowed[0] if len(narrowed) == 1 else None
        clients = client_columns(declared) if declared and issubclass(declared, TenantTable) else []
        for command in COMMANDS:
            policies = {
                title: policy
                for title, policy in live.catalog["policy"].items()
                if policy["on"] == name and policy["command"] in (command, "all")
            }
            asked = await ask_policies(live, list(policies.values()), command, name, facility, clients)
            if "exists" in str(policies.get(f"facility_isolation on {name}", {}).get("using")).lower():
                asked.outside.clear()  # it asks the policies of another table; whether it is ours, ``drift`` says
            matrix.append(
                {
                    "table": name,
                    "command": command,
                    "granted": any(g["to"] == live.runtime and g["privilege"] == command for g in live.grants(name)),
                }
                | {role: _extent(asked, role) for role in (*ROLES, EMERGENCY)}
            )
            if declared is None:
                continue
            wanted = set(roles_for(name.removeprefix("public."), command, getattr(declared, "permissions", None)))
            whole = command in getattr(declared, "whole_tenant", ())
            loose = asked.inside | asked.outside if whole else asked.outside if narrowed else set()
            because = [
                f"{', '.join(role for role in (*ROLES, EMERGENCY) if role in roles)} {what}"
                for roles, what in (
                    (asked.allowed - wanted, "may and should not"),
                    (wanted - asked.allowed, "should and may not"),
                    (loose, "bound to facilities, or to a client in an emergency, reach beyond"),
                )
                if roles
            ] + ["a policy has a condition that is none of ours"] * bool(asked.odd)
            if because:
                usual = f"{command}_by_role on {name}"
                permissive = [t for t, policy in policies.items() if not policy["restrictive"]]
                title = next((t for t in [*asked.odd, *permissive] if t != usual), usual)
                if loose and len(because) == 1:
                    title = f"{command}_everywhere on {name}" if whole else f"facility_isolation on {name}"
                notes.fail(
                    f"To {command} on {name}: {'; '.join(because)}.",
                    subject=f"policy {title}",
                    mend="Bring core/access/permissions.py and the policies together: "
                    "piccolo migrations new core --auto.",
                )
    live.shown["matrix"] = matrix
    live.shown["people"] = {
        row["role"]: {"users": row["users"], "bound": row["bound"]} for row in await live.connection.fetch(PEOPLE)
    }
    tables = len({row["table"] for row in matrix})
    notes.end(
        f"{len(ROLES)} roles on {plural(tables, 'table')}, {len(matrix)} commands: as core/access/permissions.py says."
    )


def _extent(asked: Asked, role: str) -> str:
    if role in asked.outside:
        return "yes"
    if role == EMERGENCY:
        return "client" if role in asked.inside else "no"
    return "facility" if role in asked.inside else "whole" if role in asked.allowed else "no"
