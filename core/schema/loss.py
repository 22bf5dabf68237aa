"""What going backwards loses, and who still needs it, asked before the first step goes.

Threat: each step is a transaction of its own, so a way back that stops half-way has lost the rows of earlier steps; and
Piccolo's question whether to go on does not say that an audit log goes with them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import asyncpg

from core.errors import MigrationError
from core.schema.domain import Domain
from core.schema.function import Function
from core.schema.live import LiveTable, live_tables
from core.schema.migration import MigrationManager
from core.schema.operation import Add
from core.schema.quoting import full_name, qualified
from core.settings import settings

__all__ = ["agree_to_loss", "refuse_dependents", "tables_that_go"]

DROP = "drop_populated"

# Whatever stays and depends on what goes: foreign keys, triggers, policies, views, defaults, columns.
DEPENDENTS = """
with going as (
    select 'pg_class'::regclass::oid as class, to_regclass(name)::oid as id from unnest($1::text[]) as name
    union all select 'pg_proc'::regclass, to_regprocedure(name) from unnest($2::text[]) as name
    union all select 'pg_type'::regclass, to_regtype(name) from unnest($3::text[]) as name
), depending as (
    select coalesce(con.conrelid, tg.tgrelid, pol.polrelid, rw.ev_class, def.adrelid, c.oid) as id,
        coalesce(con.conname, tg.tgname, pol.polname, a.attname)::text as part
    from going
    join pg_catalog.pg_depend as d on d.refclassid = going.class and d.refobjid = going.id and d.deptype = 'n'
    left join pg_catalog.pg_constraint as con on d.classid = 'pg_constraint'::regclass and con.oid = d.objid
    left join pg_catalog.pg_trigger as tg on d.classid = 'pg_trigger'::regclass and tg.oid = d.objid
    left join pg_catalog.pg_policy as pol on d.classid = 'pg_policy'::regclass and pol.oid = d.objid
    left join pg_catalog.pg_rewrite as rw on d.classid = 'pg_rewrite'::regclass and rw.oid = d.objid
    left join pg_catalog.pg_attrdef as def on d.classid = 'pg_attrdef'::regclass and def.oid = d.objid
    left join pg_catalog.pg_class as c on d.classid = 'pg_class'::regclass and c.oid = d.objid
    left join pg_catalog.pg_attribute as a on a.attrelid = coalesce(def.adrelid, c.oid)
        and a.attnum = coalesce(def.adnum, d.objsubid)
)
select distinct n.nspname, c.relname, depending.part from depending
join pg_catalog.pg_class as c on c.oid = depending.id
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm')
    and c.oid <> all (
        select id from going where class = 'pg_class'::regclass and id is not null
        union all
        select tree.relid from going, pg_catalog.pg_partition_tree(going.id) as tree
        where going.class = 'pg_class'::regclass
    )
order by 1, 2, 3"""


def tables_that_go(managers: Sequence[MigrationManager]) -> list[str]:
    """The tables that these steps, last first, made: under the names that they have now."""
    made: dict[str, str] = {}
    for manager in reversed(managers):
        made |= {name: name for t in manager.add_tables if (name := full_name(t.schema, t.tablename))}
        for moved in manager.rename_tables:
            old, new = (full_name(moved.schema, name) for name in (moved.old_tablename, moved.new_tablename))
            made = {first: new if now == old else now for first, now in made.items()}
        for dropped in manager.drop_tables:
            gone = full_name(dropped.schema, dropped.tablename)
            made = {first: now for first, now in made.items() if now != gone}
    return sorted(made.values())


async def refuse_dependents(
    connection: asyncpg.Connection[Any], managers: Sequence[MigrationManager], tables: Sequence[str]
) -> None:
    """Raise when something that stays needs a table, a function or a domain that goes."""
    made = [operation.new for manager in managers for operation in manager.operations if isinstance(operation, Add)]
    rows = await connection.fetch(
        DEPENDENTS,
        [qualified(name) for name in tables],
        [f"{qualified(item.name)}{item.signature}" for item in made if isinstance(item, Function)],
        [qualified(item.name) for item in made if isinstance(item, Domain)],
    )
    # What these steps put on a table that stays goes as well.
    parts = {(item.table, item.title) for item in made} | {
        (full_name(added.schema, added.tablename), added.column._meta.db_column_name)
        for manager in managers
        for added in manager.add_columns.add_columns
    }
    left = {name: None for row in rows if ((name := full_name(row[0], row[1])), row[2]) not in parts}
    if left:
        raise MigrationError(
            f"{', '.join(left)} would be left behind without what it needs of these steps. Nothing was changed. "
            "Go back with the app that has it first."
        )


async def agree_to_loss(connection: asyncpg.Connection[Any], tables: Sequence[str], *, ask: bool) -> frozenset[str]:
    """The unsafe kinds that somebody agreed to, by typing the database's name; raise when nobody did."""
    live = await live_tables(connection, tables)
    full = {name: table for name, table in sorted(live.items()) if table.populated}
    if not full or DROP in settings().allow_unsafe:
        return frozenset()
    database = await connection.fetchval("select current_database()")
    print(told(full), file=sys.stderr)
    if ask and sys.stdin.isatty():
        if typed(f"Type the name of the database, {database}, to lose them: ") == database:
            return frozenset({DROP})
        raise MigrationError("That is not the name of the database. Nothing was changed.")
    raise MigrationError(
        f"Tables of {database} that hold rows would be dropped: {', '.join(full)}. Nothing was changed. To drop them "
        f"all the same set CHARTHOLD_ALLOW_UNSAFE={DROP}, or leave --auto_agree out and type the database's name."
    )


def typed(question: str) -> str:
    return input(question).strip()


def told(tables: dict[str, LiveTable]) -> str:
    """Which tables go, and how much goes with them."""
    listed = "\n".join(f"  {name}: {table.counted}" for name, table in tables.items())
    return f"These tables would be dropped, and what they hold is gone for good:\n{listed}"
