"""What is outside of our schemas and reaches into them, or holds what they should protect."""

from __future__ import annotations

from core.doctor.check import Notes, check
from core.doctor.identifiers import IDENTIFIERS, looks_like
from core.doctor.live import Live
from core.plural import plural
from core.schema.quoting import quote_ident

__all__: list[str] = []

SHOWN = 5  # tables that a finding names

# Definer functions that the application may call, elsewhere than where the declarations make them.
DEFINERS = """
select p.oid::regprocedure::text as name, pg_get_userbyid(p.proowner)::text as owner
from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
where p.prosecdef and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and n.nspname <> all($1)
    and exists (
        select from pg_roles as r where r.rolname = $2
            and has_schema_privilege(r.oid, n.oid, 'usage') and has_function_privilege(r.oid, p.oid, 'execute'))
    and not exists (
        select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
order by 1"""

PUBLICATIONS = """
select pubname::text as name, count(*) as tables from pg_publication_tables
where schemaname = any($1) group by 1 order by 1"""


@check("164.312(a)(1)")
async def outside(live: Live, notes: Notes) -> None:
    """Threat: rows leave by a replica, a function or a copy, where no policy of ours is asked."""
    ours = live.schemas()
    for row in await live.connection.fetch(DEFINERS, ours, live.runtime):
        notes.warn(
            f"{live.runtime} may call {row['name']}, which is none of ours and acts as {row['owner']}.",
            subject=f"function {row['name']}",
            mend="Unless you know that it shows no other tenant:",
            sql=f"revoke execute on function {row['name']} from public, {quote_ident(live.runtime)};",
        )
    for row in await live.connection.fetch(PUBLICATIONS, ours):
        notes.warn(
            f"The publication {row['name']} sends rows of {plural(row['tables'], 'table')} of ours to subscribers: no "
            "policy is asked, and no read recorded.",
            subject=f"publication {row['name']}",
            mend="Unless a replica of yours needs it:",
            sql=f"drop publication {quote_ident(row['name'])};",
        )
    alike = []
    for name, info in live.relations.items():
        if name.split(".")[0] in ours or info.part:
            continue
        kinds = dict.fromkeys(kind for column in info.columns if (kind := looks_like(column)) not in (None, "other"))
        if kinds:
            alike.append(f"{name} ({', '.join(IDENTIFIERS[kind].title.lower() for kind in kinds if kind)})")
    if alike:
        more = f"; and {len(alike) - SHOWN} more" if alike[SHOWN:] else ""
        notes.warn(
            f"Nothing of ours protects {plural(len(alike), 'table')} in other schemas whose columns look like PHI: "
            f"{'; '.join(alike[:SHOWN])}{more}.",
            mend="Declare them as tables of tenants, or see that they hold nobody's data.",
        )
    notes.end(f"Nothing outside of {', '.join(ours)} reaches into them, or looks like PHI.")
