"""What the checks look at: the owner's connection, the catalog as it stands, and the tenants' data.

The owner may be a superuser, whom no policy binds, or an ordinary role, whom FORCE binds as anybody. Then each tenant
is looked at in the name of its admin, in a scope that the database itself signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import asyncpg
from piccolo.table import Table

from core.doctor.check import Notes
from core.errors import ConfigurationError
from core.plural import plural
from core.provision import OPEN
from core.schema import RowSecurity, application_login
from core.schema.catalog import Catalog, snapshot
from core.schema.quoting import catalog_name
from core.settings import Settings, settings

__all__ = ["LOG", "PATIENCE", "Live", "TableInfo", "TenantInfo", "here"]

LOG = "public.user_action_audit_log"
CATALOG = "10s"  # for reading the catalog, which a lock may hold up
PATIENCE = 2.0  # seconds for one question about the data; what takes longer is reported as skipped
READ = "look at the safeguards"

RELATIONS = """
select format('%I.%I', n.nspname, c.relname) as name, c.relispartition as part,
    c.relrowsecurity as enabled, c.relforcerowsecurity as forced, c.reltuples::bigint as estimate,
    pg_relation_size(c.oid) as bytes,
    array(select a.attname::text from pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
    array(select format_type(a.atttypid, a.atttypmod) from pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as types,
    array(select a.attname::text from pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attnotnull) as required,
    (select format('%I.%I', pn.nspname, p.relname) from pg_inherits as i join pg_class as p on p.oid = i.inhparent
        join pg_namespace as pn on pn.oid = p.relnamespace where i.inhrelid = c.oid limit 1) as parent
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and n.nspname = any($1) and not exists (
    select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
order by 1"""

SCHEMAS = r"""select nspname::text from pg_namespace
where nspname !~ '^pg_' and nspname <> 'information_schema' order by 1"""

TENANTS = """select d.tenant_id as id, d.slug, d.status,
    (select p.user_id from charthold.principal as p where p.tenant_id = d.tenant_id and p.role = 'admin'
        and p.facility_scope is null and (p.locked_until is null or p.locked_until <= now())
        order by p.user_id limit 1) as admin
from charthold.tenant_directory as d order by d.slug"""


@dataclass(frozen=True)
class TableInfo:
    """A table of the database, as ``pg_class`` knows it."""

    name: str
    part: bool
    enabled: bool
    forced: bool
    estimate: int
    bytes: int
    columns: list[str]
    types: list[str]
    required: list[str]
    parent: str | None

    @property
    def type_of(self) -> dict[str, str]:
        return dict(zip(self.columns, self.types, strict=True))


@dataclass(frozen=True)
class TenantInfo:
    """A tenant, and an admin of it who may look at all of it now, if there is one."""

    id: UUID
    slug: str
    status: str
    admin: UUID | None

    @property
    def is_open(self) -> bool:
        return self.status in OPEN


@dataclass
class Live:
    """One look at the database."""

    connection: asyncpg.Connection[Any]
    tables: Sequence[type[Table]]
    catalog: Catalog
    relations: dict[str, TableInfo]
    tenants: list[TenantInfo]
    owner: str
    bypasses: bool  # the owner's connection sees all tenants at once
    database: str
    settings: Settings
    # Tables for the report, filled in by the checks: name -> rows.
    shown: dict[str, Any] = field(default_factory=dict)
    _answers: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    async def read(cls, connection: asyncpg.Connection[Any], tables: Sequence[type[Table]]) -> Self:
        """Read the catalog of every schema that is not PostgreSQL's own."""
        await connection.execute(f"set statement_timeout = '{CATALOG}'")
        schemas = [row[0] for row in await connection.fetch(SCHEMAS)]
        who = await connection.fetchrow(
            "select rolname::text as name, rolsuper or rolbypassrls as bypasses from pg_roles"
            " where rolname = current_user"
        )
        assert who is not None
        database, _ = await here(connection)
        return cls(
            connection=connection,
            tables=tables,
            catalog=await snapshot(connection, schemas),
            relations={row["name"]: TableInfo(**row) for row in await connection.fetch(RELATIONS, schemas)},
            tenants=[TenantInfo(**row) for row in await connection.fetch(TENANTS)],
            owner=who["name"],
            bypasses=who["bypasses"],
            database=database,
            settings=settings(),
        )

    @property
    def runtime(self) -> str:
        """The application's role, as this cluster knows it."""
        return self.settings.role_prefix + "app_runtime"

    @property
    def auditor(self) -> str:
        return self.settings.role_prefix + "app_auditor"

    @property
    def login(self) -> str | None:
        """The application's login; the owner's, where they share one; None where ``DATABASE_URL`` cannot be read."""
        try:
            return application_login() or self.owner
        except ConfigurationError:
            return None

    def declared(self) -> dict[str, type[Table]]:
        """The registered tables by the name that the catalog gives them."""
        return {catalog_name(table): table for table in self.tables}

    def schemas(self) -> list[str]:
        """Where the declarations make what is ours; ``drift`` compares all that is in them."""
        return sorted({"public", "charthold", *(name.split(".")[0] for name in self.declared())})

    def tenant_tables(self) -> dict[str, TableInfo]:
        """Every table with a ``tenant_id``, declared or not, partitions too, and the tenants themselves."""
        return {
            name: info
            for name, info in self.relations.items()
            if "tenant_id" in info.columns or name == "public.tenant"
        }

    def machinery(self, name: str) -> bool:
        """Whether the table is for the owner's functions alone; ``grants`` checks that nobody else may use it."""
        declared = getattr(self.declared().get(name), "declares", ())
        return any(isinstance(item, RowSecurity) and not item.forced for item in declared)

    def isolated(self) -> dict[str, TableInfo]:
        """The tables whose rows policies must keep apart. One without policies and rights shows nobody anything."""
        on = {policy["on"] for policy in self.catalog["policy"].values()}
        return {
            name: info
            for name, info in self.tenant_tables().items()
            if not info.part
            and not self.machinery(name)
            and (name in on or name in self.declared() or not info.forced or self.grants(name))
        }

    def grants(self, table: str) -> list[dict[str, Any]]:
        """Who but the owner holds a right on the table, or on a column of it."""
        return [
            {"name": name, "kind": kind, **value}
            for kind in ("grant", "column_grant")
            for name, value in self.catalog[kind].items()
            if value["object"] == f"table {table}" and value["to"] != "owner"
        ]

    async def ask(self, sql: str, *arguments: Any) -> list[Any]:
        """Rows about the tenants' data; ``$1`` is a tenant, or null for all.

        Raises ``QueryCanceledError`` when it takes too long: what was not answered is not nothing. A tenant without an
        admin cannot be looked at where the owner is bound by policies; ``unseen`` says which.
        """
        if (key := sql + repr(arguments)) in self._answers:
            return self._answers[key]
        if self.bypasses:
            rows = list(await self.connection.fetch(sql, None, *arguments))
        else:
            rows = [row for tenant in self.seen() for row in await self._ask_one(tenant, sql, arguments)]
        self._answers[key] = rows
        return rows

    async def ask_or_warn(self, notes: Notes, what: str, sql: str, *arguments: Any) -> list[Any] | None:
        """The same; None, and a warning that ``what`` was not looked at, when it takes too long."""
        try:
            return await self.ask(sql, *arguments)
        except asyncpg.QueryCanceledError:
            notes.incomplete(what)
            return None

    def seen(self) -> list[TenantInfo]:
        """The tenants whose data can be looked at."""
        return [tenant for tenant in self.tenants if self.bypasses or tenant.admin]

    def unseen(self) -> str:
        """A half sentence about those that cannot."""
        count = len(self.tenants) - len(self.seen())
        return f"; {plural(count, 'tenant')} without an admin could not be looked at" if count else ""

    async def _ask_one(self, tenant: TenantInfo, sql: str, arguments: Iterable[Any]) -> list[Any]:
        async with self.connection.transaction(readonly=True):
            await self.connection.execute(
                "select pg_catalog.set_config('charthold.scope', charthold.sign($1, $2, $3), true)",
                tenant.id, tenant.admin, READ,
            )  # fmt: skip
            return list(await self.connection.fetch(sql, tenant.id, *arguments))


async def here(connection: asyncpg.Connection[Any]) -> tuple[str, str]:
    """The database's name, and the server's version."""
    row = await connection.fetchrow(
        "select current_database()::text as database, split_part(current_setting('server_version'), ' ', 1) as server"
    )
    assert row is not None
    return row["database"], row["server"]
