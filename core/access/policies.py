"""The policies that a table of tenants is born with; ``core/access/permissions.py`` says what a role may do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from core.access.permissions import COMMANDS, EMERGENCY, ROLES, Command, roles_for
from core.schema import Policy

__all__ = ["policies"]


def policies(
    table: str,
    tenant_column: str,
    *,
    permissions: Mapping[str, tuple[str, ...]] | None = None,
    within: str | None = None,
    whole_tenant: Sequence[Command] = (),
) -> tuple[Policy, ...]:
    """One restrictive policy for the tenant, which no later policy can widen, and one permissive policy a command.

    ``within``: the condition on rows for a user who is bound to facilities, if there is one.

    Each function call stands in a sub-select, so that it runs once a statement and not once a row. Each place where one
    stands still asks for the scope, which costs 5 us even when it was verified before. PostgreSQL keeps one of two
    equal conditions, so a restrictive policy for all commands is asked once for the rows that are found, and once for
    the rows as they are written. The role is asked only for the rows that are found.
    """
    found = list(_isolation(tenant_column, within))
    for command in whole_tenant:
        asked = _asked(command, tenant_column, "charthold.tenant_everywhere()")
        using = asked if command != "insert" else None
        check = asked if command in ("insert", "update") else None
        found.append(Policy(name=f"{command}_everywhere", command=command, restrictive=True, using=using, check=check))
    for command in COMMANDS:
        roles = roles_for(table, command, permissions)
        if not roles:
            continue
        named = f"charthold.tenant_as({', '.join(map(repr, roles))})"
        # A verified scope has one of our roles, so a policy for all of them has nothing to ask.
        may = "true" if roles == (*ROLES, EMERGENCY) else _asked(command, tenant_column, named)
        found.append(
            Policy(
                name=f"{command}_by_role",
                command=command,
                using=may if command != "insert" else None,
                check={"insert": may, "update": "true"}.get(command),
            )
        )
    return tuple(found)


def _asked(command: Command, tenant_column: str, answer: str) -> str:
    """The condition that a function answers with the row's tenant.

    It stands in a CASE, because the planner would count a second equality on the tenant, and then take every index for
    as good as any other. For reading, the function is also asked before any row is: whoever may not read is not told
    how many rows there are.
    """
    pinned = f"case when {tenant_column} = (select {answer}) then true end"
    return f"(select {answer}) is not null and {pinned}" if command == "select" else pinned


def _isolation(tenant_column: str, within: str | None) -> Iterator[Policy]:
    """The tenant, and within it the facilities of a user who is bound to some.

    Threat: PostgreSQL asks the cheapest conditions first, leakproof ones of the caller's too, before a policy that
    costs more. Whether the policy was asked at all would then tell that a row exists (an error, EXPLAIN ANALYZE, a
    side effect). ``= any (array[...])`` counts as half an operator, so nothing that looks at a value comes before it.
    """
    here = f"{tenant_column} = any (array[(select charthold.tenant_id())])"
    yield Policy(name="tenant_isolation", command="all", using=here, check=here, restrictive=True)
    if within is not None:
        within = f"case when {tenant_column} = (select charthold.tenant_everywhere()) then true else {within} end"
        yield Policy(name="facility_isolation", command="all", using=within, check=within, restrictive=True)
