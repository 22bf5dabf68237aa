"""No row crosses a tenant: row-level security, its policies, and keys that begin with the tenant."""

from __future__ import annotations

from core.access.policies import policies
from core.doctor.check import Notes, check
from core.doctor.live import Live, TableInfo
from core.doctor.policy import ask_policy, crosses, tenant_column
from core.plural import plural

# Unique indexes and foreign keys, with the column that each begins with on either side. Of an exclusion constraint the
# tenant need not come first: it is enough that what excludes each other has the same.
KEYS = """
select format('%I.%I', n.nspname, t.relname) as on, format('%I.%I', n.nspname, i.relname) as name, 'index' as kind,
    (select attname::text from pg_attribute where attrelid = t.oid and attnum = x.indkey[0]) as first, '' as target
from pg_index as x join pg_class as i on i.oid = x.indexrelid join pg_class as t on t.oid = x.indrelid
join pg_namespace as n on n.oid = t.relnamespace
where x.indisunique and not x.indisexclusion and not t.relispartition
union all
select format('%I.%I', n.nspname, t.relname), format('%I on %I.%I', k.conname, n.nspname, t.relname), 'constraint',
    (select a.attname::text from unnest(k.conkey, k.conexclop) as c (number, operator)
        join pg_attribute as a on a.attrelid = t.oid and a.attnum = c.number
        join pg_operator as o on o.oid = c.operator where a.attname = 'tenant_id' and o.oprname = '='), ''
from pg_constraint as k join pg_class as t on t.oid = k.conrelid join pg_namespace as n on n.oid = t.relnamespace
where k.conexclop is not null and not t.relispartition
union all
select format('%I.%I', n.nspname, t.relname), format('%I on %I.%I', k.conname, n.nspname, t.relname), 'constraint',
    (select attname::text from pg_attribute where attrelid = t.oid and attnum = k.conkey[1]),
    (select attname::text from pg_attribute where attrelid = k.confrelid and attnum = k.confkey[1])
        || ' of ' || k.confrelid::regclass
from pg_constraint as k join pg_class as t on t.oid = k.conrelid join pg_namespace as n on n.oid = t.relnamespace
where k.contype = 'f' and not t.relispartition
order by 2"""


@check("164.312(a)(1)")
async def row_security(live: Live, notes: Notes) -> None:
    """Threat: a table without FORCE shows its owner, and every definer function of the owner, all tenants."""
    checked = live.tenant_tables()
    for name, info in checked.items():
        machinery = live.machinery(name)
        if info.enabled and (info.forced or machinery):
            continue
        lacks = "row-level security is off" if not info.enabled else "row-level security is not forced"
        notes.fail(
            f"On {name} {lacks}: {'everybody' if not info.enabled else 'its owner'} reads all tenants there.",
            subject=f"row_security {name}",
            sql=f"alter table {name} enable row level security;"
            + ("" if machinery else f"\nalter table {name} force row level security;"),
        )
    parts = sum(info.part for info in checked.values())
    closed = [info.name for info in checked.values() if not info.forced]
    notes.end(
        f"Enabled and forced on {plural(len(checked) - parts - len(closed), 'table')} with tenants' rows and "
        f"{plural(parts, 'partition')}; the owner alone has {plural(len(closed), 'table')} of the machinery."
    )


@check("164.312(a)(1)")
async def tenant_policies(live: Live, notes: Notes) -> None:
    """One restrictive policy pins the tenant; whatever permissive policy comes later can only narrow."""
    checked = live.isolated()
    for name in checked:
        column, title = tenant_column(name), f"tenant_isolation on {name}"
        if await _isolated(live, name):
            continue
        notes.fail(
            f"{name} has no restrictive policy that pins {column} to the scope's tenant for every command.",
            subject=f"policy {title}",
            # One that is there, and unlike ours, drift replaces.
            sql="" if title in live.catalog["policy"] else _isolation(name),
        )
    notes.end(f"A restrictive policy for every command pins the tenant on each of {plural(len(checked), 'table')}.")


def _isolation(table: str) -> str:
    """What creates the policy, as the table is declared."""
    ours = policies(table.removeprefix("public."), tenant_column(table))
    policy = next(policy for policy in ours if policy.name == "tenant_isolation")
    return (
        f"create policy tenant_isolation on {table} as restrictive using ({policy.using}) with check ({policy.check});"
    )


async def _isolated(live: Live, table: str) -> bool:
    """Whether one policy lets no command of no role leave the tenant, whatever other policies there are."""
    facility = getattr(live.declared().get(table), "facility_column", None)
    for policy in live.catalog["policy"].values():
        if policy["on"] != table or not policy["restrictive"] or policy["command"] != "all":
            continue
        # Each condition by itself: of the rows found, and of the rows left.
        sides = [policy | {"check": None}, policy | {"using": None}]
        answers = [await ask_policy(live, side, table, facility) for side in sides]
        if policy["to"] == ["public"] and all(answer is not None and not crosses(answer) for answer in answers):
            return True
    return False


@check("164.312(a)(1)")
async def composite_keys(live: Live, notes: Notes) -> None:
    """A key that begins with the tenant cannot name another tenant's row, nor betray that it exists."""
    ours = live.isolated()
    ours.pop("public.tenant", None)
    keys = [key for key in await live.connection.fetch(KEYS) if key["on"] in ours]
    tenants = [name.removeprefix("public.") for name in live.tenant_tables()]
    for key in keys:
        if key["first"] == "tenant_id" and key["target"] in ("", "id of tenant", *_targets(ours)):
            continue
        if key["target"] and key["target"].partition(" of ")[2].removeprefix("public.") not in tenants:
            continue  # what it refers to is all tenants'
        what = "A foreign key" if key["target"] else "A unique index" if key["kind"] == "index" else "An exclusion"
        notes.fail(
            f"{what} of {key['on']} does not begin with tenant_id: it reaches into other tenants.",
            subject=f"{key['kind']} {key['name']}",
            mend=f"Drop it, and declare it with tenant_id {'with =' if what == 'An exclusion' else 'first'}.",
        )
    for name, info in ours.items():
        if "tenant_id" not in info.required:
            notes.fail(
                f"{name}.tenant_id may be null: such a row would belong to nobody.",
                subject=f"column {name}.tenant_id",
                sql=f"alter table {name} alter column tenant_id set not null;",
            )
    notes.end(
        f"All {len(keys)} primary, unique and foreign keys of {plural(len(ours), 'table')} with tenants' rows begin "
        "with tenant_id."
    )


def _targets(tables: dict[str, TableInfo]) -> list[str]:
    return [f"tenant_id of {name.removeprefix('public.')}" for name in tables]
