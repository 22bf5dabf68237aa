"""The live catalog against the declarations, both ways.

How: in one transaction that is rolled back, the live schemas step aside (``alter schema ... rename``), the declared
ones are built under the true names, and their catalog is read. So PostgreSQL itself writes both sides of every
comparison, with the same names in each expression, and nothing has to be rewritten or guessed. It needs no more than
the migrator has anyway (to own the schemas, and CREATE on the database); a scratch database would need CREATEDB.
Other sessions never see any of it, and no table of theirs is locked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
from piccolo.table import Table

from core.errors import ConfigurationError, MigrationError
from core.schema.catalog import Catalog, snapshot
from core.schema.declarations import in_dependency_order, objects_of, sort_objects, verify
from core.schema.lock import STEP_LOCK
from core.schema.mend import mend
from core.schema.migration import create_table
from core.schema.namespace import Namespace
from core.schema.object import Kind, SchemaObject
from core.schema.partition import Partitions
from core.schema.quoting import catalog_name, quote_ident, split_table, table_name
from core.schema.role import Role, application_login
from core.schema.run import BUSY, failed, preamble
from core.settings import settings

__all__ = ["Difference", "declared_statements", "drift"]

Problem = Literal["missing", "unexpected", "changed"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One object that is not as declared. ``mend`` is the SQL that makes it so; empty where a person must decide."""

    kind: str
    name: str
    problem: Problem
    expected: dict[str, Any] | None = None
    found: dict[str, Any] | None = None
    mend: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dataclasses.asdict(self)


async def drift(
    connection: asyncpg.Connection[Any], tables: Sequence[type[Table]], shared: Sequence[SchemaObject]
) -> list[Difference]:
    """Every difference between the database and the declarations, by kind and name. Empty: they agree.

    The connection is the owner's. Everything that the tables' schemas hold is compared, declared or not.
    """
    schemas = sorted(
        {"public"}
        | {item.name for item in shared if isinstance(item, Namespace)}
        | {split_table(table_name(table))[0] for table in tables}
    )
    found = await snapshot(connection, schemas, roles=[])
    expected = await declared_catalog(connection, tables, shared, schemas)
    differences = compare(expected, found, statements_by_table(tables))
    differences += partition_differences(found)
    differences += await role_differences(connection, shared)
    return sorted(differences, key=in_order)


# What is made before what needs it; what is dropped goes the other way.
ORDER = (
    "role", "membership", "schema", "type", "domain", "sequence", "function", "table", "column", "view", "constraint",
    "index", "statistics", "row_security", "policy", "trigger", "rule", "storage_parameters",
)  # fmt: skip


def in_order(difference: Difference) -> tuple[bool, int, str, str]:
    """The order in which the mends can be run: what is too much goes first, the last made first."""
    rank = ORDER.index(difference.kind) if difference.kind in ORDER else len(ORDER)
    gone = difference.problem == "unexpected"
    return not gone, -rank if gone else rank, difference.kind, difference.name


def declared_statements(tables: Sequence[type[Table]], shared: Iterable[SchemaObject]) -> list[str]:
    """All that makes the declared schema, in order, on an empty database."""
    ordered = in_dependency_order(tables)
    objects = sort_objects([*shared, *(item for table in ordered for item in objects_of(table))])
    verify(objects)
    partitions = {item.table: item for item in objects if isinstance(item, Partitions)}
    early = [item for item in objects if item.place < Kind.TABLES]
    # Who belongs to a role is looked at by itself, and takes a DATABASE_URL that can be read.
    statements = [sql for item in early for sql in ((item.alone(),) if isinstance(item, Role) else item.create())]
    for table in ordered:
        statements += create_table(table, partitions.get(table_name(table)), declared=True)
    late = [item for item in objects if item.place > Kind.TABLES and not isinstance(item, Partitions)]
    return statements + [sql for item in late for sql in item.create()]


def statements_by_table(tables: Sequence[type[Table]]) -> dict[str, list[str]]:
    """What makes each table with all that hangs on it, for one that is missing altogether."""
    made = {}
    for table in tables:
        objects = objects_of(table)
        by = next((item for item in objects if isinstance(item, Partitions)), None)
        late = [item for item in objects if item.place > Kind.TABLES and not isinstance(item, Partitions)]
        made[catalog_name(table)] = [
            *create_table(table, by, declared=True),
            *(sql for item in late for sql in item.create()),
        ]
    return made


async def declared_catalog(
    connection: asyncpg.Connection[Any],
    tables: Sequence[type[Table]],
    shared: Sequence[SchemaObject],
    schemas: Sequence[str],
) -> Catalog:
    """The catalog that the declarations make, read in a transaction that leaves nothing behind."""
    namespaces = {item.name for item in shared if isinstance(item, Namespace)}
    transaction = connection.transaction()
    await transaction.start()
    running = ""
    try:
        statements = [
            *preamble(),
            STEP_LOCK,
            *await aside(connection, schemas, namespaces),
            *declared_statements(tables, shared),
        ]
        try:
            # One message: a round trip for each of hundreds of statements would take three times as long.
            async with connection.transaction():
                await connection.execute("\n;\n".join(statements))
        except BUSY:
            raise
        except asyncpg.PostgresError:
            for running in statements:  # which of them it was
                await connection.execute(running)
        return await snapshot(connection, schemas, roles=[])
    except BUSY:
        raise MigrationError("A migration or another doctor is at work. Ask again when it is done.") from None
    except asyncpg.ReadOnlySQLTransactionError:
        raise MigrationError(
            "The server is read-only, as a standby is, and to be compared the declarations must be built in it. Ask "
            "the primary; of a standby ask for some checks, as in --only=keys,seals."
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"The owner of the schema may not build it: {error.args[0]}. It needs CREATE on the database and "
            f"must own the schemas {', '.join(schemas)}."
        ) from None
    except asyncpg.PostgresError as error:
        raise failed("The declarations do not build", running, error) from None
    finally:
        await transaction.rollback()


async def aside(connection: asyncpg.Connection[Any], schemas: Sequence[str], namespaces: set[str]) -> list[str]:
    """The statements that make room: schemas renamed, privileges of the database back to where they start."""
    existing = {row["nspname"] for row in await connection.fetch("select nspname from pg_catalog.pg_namespace")}
    statements = []
    for schema in schemas:
        if schema in existing:
            statements.append(f"alter schema {quote_ident(schema)} rename to {quote_ident('live ' + schema)}")
        if schema not in namespaces:
            statements.append(f"create schema {quote_ident(schema)}")
    if "public" not in namespaces:
        # As initdb leaves it; what the declarations take away they take away again.
        statements.append("grant usage on schema public to public")
    for extension in await connection.fetch(
        "select extname, nspname from pg_catalog.pg_extension as e"
        " join pg_catalog.pg_namespace as n on n.oid = extnamespace where extrelocatable and nspname = any($1)"
        # One that a superuser made for us stays aside: we may not move what is in it.
        " and pg_catalog.pg_has_role(extowner, 'usage') and not exists ("
        "   select from pg_catalog.pg_depend as d join pg_catalog.pg_proc as p on p.oid = d.objid"
        "   where d.refclassid = 'pg_catalog.pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'"
        "   and d.classid = 'pg_catalog.pg_proc'::regclass and not pg_catalog.pg_has_role(p.proowner, 'usage'))",
        list(schemas),
    ):
        # Its types and functions are looked up where they were.
        name, home = quote_ident(extension["extname"]), quote_ident(extension["nspname"])
        statements.append(f"alter extension {name} set schema {home}")
    rows = await connection.fetch(
        "select distinct pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) as role, a.grantee"
        " from pg_catalog.pg_database, pg_catalog.aclexplode(datacl) as a"
        " where datname = pg_catalog.current_database() and a.grantee <> datdba order by a.grantee"
    )
    database = quote_ident(await connection.fetchval("select pg_catalog.current_database()"))
    for row in rows:
        to = row["role"] if row["grantee"] else "public"
        statements.append(f"revoke create, temporary on database {database} from {to}")
    statements.append(f"grant temporary on database {database} to public")
    return statements + await default_privileges(connection)


async def default_privileges(connection: asyncpg.Connection[Any]) -> list[str]:
    """What takes database-wide default privileges back, so that the declared objects are born without them."""
    rows = await connection.fetch(
        "select distinct defaclrole::pg_catalog.regrole::text as owner,"
        " case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'"
        "   when 'T' then 'types' else 'schemas' end as objects,"
        " case a.grantee when 0 then 'public' else"
        "   pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end as to"
        " from pg_catalog.pg_default_acl, pg_catalog.aclexplode(defaclacl) as a"
        " where defaclnamespace = 0 and a.grantee <> defaclrole"
        "   and pg_catalog.pg_has_role(defaclrole, 'member') order by 1, 2, 3"
    )
    return [
        f"alter default privileges for role {row['owner']} revoke all on {row['objects']} from {row['to']}"
        for row in rows
        # What everybody gets by default (execute, usage) is where a database starts.
        if not (row["to"] == "public" and row["objects"] in {"functions", "types"})
    ]


def compare(expected: Catalog, found: Catalog, create: dict[str, list[str]]) -> list[Difference]:
    """Every name on either side; what belongs to a table that is missing as a whole is told with the table."""
    absent = set(expected["table"]) - set(found["table"])
    surplus = set(found["table"]) - set(expected["table"])
    differences = []
    for kind in expected:
        for name in sorted(expected[kind].keys() | found[kind].keys()):
            wanted, there = expected[kind].get(name), found[kind].get(name)
            if wanted == there or any(side is not None and side.get("part") for side in (wanted, there)):
                continue
            owner = table_of(wanted or there or {})
            if kind != "table" and (owner in absent or owner in surplus):
                continue
            if is_implied(kind, wanted, there, found):
                continue
            problem: Problem = "missing" if there is None else "unexpected" if wanted is None else "changed"
            sql = mend(kind, wanted, there, create.get(name, []))
            differences.append(
                Difference(kind=kind, name=name, problem=problem, expected=wanted, found=there, mend=sql)
            )
    return differences


def table_of(value: dict[str, Any]) -> str:
    """The table that an entry belongs to, or an empty string."""
    found = value.get("on") or value.get("object", "")
    return str(found).removeprefix("table ")


def is_implied(kind: str, wanted: dict[str, Any] | None, there: dict[str, Any] | None, found: Catalog) -> bool:
    """What differs with something else, and is told there."""
    side = wanted or there or {}
    if kind == "function_grant":
        # What the owner may do with a function that is missing comes back with it.
        return side["to"] == "owner" and side["object"].removeprefix("function ") not in found["function"]
    # An index that a constraint owns.
    return kind == "index" and bool(side.get("of_constraint")) and (wanted is None or there is None)


def partition_differences(found: Catalog) -> list[Difference]:
    """Threat: a partition can be named directly, and then its parent's policies and grants do not count."""
    differences = []
    forced = {name: value["forced"] for name, value in found["row_security"].items()}
    for name, table in found["table"].items():
        if not table["part"]:
            continue
        parent = table["parents"][0] if table["parents"] else ""
        if parent in forced and name not in forced:
            sql = f"alter table {name} enable row level security;\nalter table {name} force row level security;"
            differences.append(
                Difference(
                    kind="row_security", name=name, problem="missing", expected={"forced": forced[parent]}, mend=sql
                )
            )
        if table["persistence"] != "p":
            sql = f"alter table {name} set logged;"
            differences.append(Difference(kind="table", name=name, problem="changed", found=table, mend=sql))
    for kind in ("grant", "column_grant"):
        for name, grant in found[kind].items():
            if grant["part"] and grant["to"] != "owner":
                sql = mend(kind, None, grant, [])
                differences.append(Difference(kind=kind, name=name, problem="unexpected", found=grant, mend=sql))
    # Threat: a trigger on one month alone swallows its records, and nothing is to be seen at the log.
    for kind in ("trigger", "constraint", "index", "policy", "rule"):
        for name, own in found[kind].items():
            if own["part"] and not own.get("inherited"):
                like = as_above(found, own) if kind == "trigger" else None
                if like == own:
                    continue
                problem: Problem = "changed" if like else "unexpected"
                sql = mend(kind, like, own, [])
                differences.append(
                    Difference(kind=kind, name=name, problem=problem, expected=like, found=own, mend=sql)
                )
    for name, there in found["column"].items():
        parents = found["table"].get(there["on"], {}).get("parents") or []
        like = found["column"].get(f"{parents[0]}.{there['ident']}") if there["part"] and parents else None
        if like is None:
            continue
        wanted = there | {key: like[key] for key in ("default", "not_null", "statistics", "storage")}
        if wanted != there:
            sql = mend("column", wanted, there, [])
            differences.append(
                Difference(kind="column", name=name, problem="changed", expected=wanted, found=there, mend=sql)
            )
    return differences


def as_above(found: Catalog, own: dict[str, Any]) -> dict[str, Any] | None:
    """A trigger for TRUNCATE as a partition should have it: PostgreSQL does not hand it down from the table."""
    parents = found["table"].get(own["on"], {}).get("parents") or []
    above = found["trigger"].get(f"{own['ident']} on {parents[0]}") if parents else None
    if above is None or "TRUNCATE ON" not in above["definition"]:
        return None
    definition = above["definition"].replace(f" ON {parents[0]} ", f" ON {own['on']} ", 1)
    return above | {"on": own["on"], "part": True, "definition": definition}


async def role_differences(connection: asyncpg.Connection[Any], shared: Sequence[SchemaObject]) -> list[Difference]:
    """Roles belong to the cluster, so they cannot be built aside; what they must and must not be is known."""
    differences = []
    prefix = settings().role_prefix
    try:
        login, known = application_login(), True
    except ConfigurationError:
        login, known = None, False
    for role in (item for item in shared if isinstance(item, Role)):
        name = prefix + role.name
        found = (await snapshot(connection, [], roles=[name]))["role"].get(name)
        ident = quote_ident(name)
        if found is None:
            sql = "\n".join(f"{statement};" for statement in role.create())
            differences.append(Difference(kind="role", name=name, problem="missing", mend=sql))
            continue
        # Threat: any of these lets the role go round the policies.
        powers = [
            power
            for power in ("superuser", "create_role", "create_db", "login", "replication", "bypass_rls")
            if found[power]
        ]
        if powers:
            flags = " ".join(f"no{power.replace('_', '')}" for power in powers)
            differences.append(
                Difference(
                    kind="role",
                    name=name,
                    problem="changed",
                    expected=dict.fromkeys(powers, False),
                    found=dict.fromkeys(powers, True),
                    mend=f"alter role {ident} {flags};",
                )
            )
        for group in found["member_of"]:
            sql = f"revoke {quote_ident(group)} from {ident};"
            differences.append(Difference(kind="membership", name=f"{name} in {group}", problem="unexpected", mend=sql))
        # Threat: a URL with a slip in it would have the true application's membership taken away.
        if known:
            differences += await membership_differences(connection, role, name, found["members"], login)
    return differences


async def membership_differences(
    connection: asyncpg.Connection[Any], role: Role, name: str, members: Sequence[str], login: str | None
) -> list[Difference]:
    """Whoever is a member acts as the role. The owner may be one, and so may the application's login where declared."""
    owner = await connection.fetchval("select current_user")
    exists = login is not None and await connection.fetchval(
        "select exists (select from pg_catalog.pg_roles where rolname = $1)", login
    )
    allowed = {owner} | ({login} if role.application and login else set())
    differences = [
        Difference(
            kind="membership",
            name=f"{member} in {name}",
            problem="unexpected",
            mend=f"revoke {quote_ident(name)} from {quote_ident(member)};",
        )
        for member in members
        if member not in allowed
    ]
    if exists and login is not None and role.application and login not in members:
        sql = f"grant {quote_ident(name)} to {quote_ident(login)};"
        differences.append(Difference(kind="membership", name=f"{login} in {name}", problem="missing", mend=sql))
    return differences
