"""What a session remembers of a verified scope is of use to nobody else, for nothing else, and not for long.

``charthold.scope()`` verifies once a statement; the answer stands in a setting, which anybody may set, and its seal where
only the owner writes. Each attempt is a block of PL/pgSQL, one statement, so that all of it happens at one
``statement_timestamp()``. The attacker is an auditor of Lakeside, who may write nothing at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from piccolo.apps.migrations.tables import Migration
from piccolo.columns import Text

from core import break_glass, scope, transaction
from core.columns import TenantForeignKey
from core.engine import ChartholdEngine
from core.statements.plan import Plan
from core.tables import Client, Facility, TenantTable, User
from core.token import TokenKey
from tests.conftest import Clinic, superuser_connection
from tests.ledger import create
from tests.test_attacks_roles import somebody
from tests.test_isolation import SQL

# An address that stands in Hillside's rows and in no statement here.
SECRET = "clinician@hillside.example"


class Session:
    """A connection of the application, a genuine token for it, and all that it was told."""

    def __init__(self, database: ChartholdEngine, connection: asyncpg.Connection, clinic: Clinic, actor: UUID) -> None:
        self.database = database
        self.connection = connection
        self.clinic = clinic
        self.actor = actor
        self.seen: list[Any] = []
        self.names: dict[str, str] = {"OWN_TOKEN": self.token()}
        connection.add_log_listener(lambda _, message: self.seen.append(message.as_dict()))

    def token(self, **changed: Any) -> str:
        given: dict[str, Any] = {
            "tenant": self.clinic.tenant, "actor": self.actor, "expires": int(time.time()) + 60,
            "backend": self.connection.get_server_pid(), "reason": "attack",
        }  # fmt: skip
        key: TokenKey = changed.pop("key", self.database.token_key)
        return key.sign(**given | changed)

    async def run(self, *statements: str) -> None:
        """Run statements as they are, each a message of its own; go on when one fails."""
        for statement in statements:
            for name, value in self.names.items():
                statement = statement.replace(name, value)
            try:
                self.seen.append(await self.connection.execute(statement))
            except asyncpg.PostgresError as error:
                self.seen.append((str(error), error.__dict__))

    @property
    def told(self) -> list[str]:
        return [entry["message"] for entry in self.seen if isinstance(entry, dict)]

    @property
    def acted_as(self) -> set[str]:
        """In whose name something was done, as the policies understood it."""
        return {line.partition(": ")[2] for line in self.told if line.startswith("acting: ")}


@pytest.fixture
async def attacker(database: ChartholdEngine, lakeside: Clinic, hillside: Clinic) -> Any:
    actor = await somebody(lakeside, "auditor", bound=False)
    connection = await database.connect(owner=False)
    await connection.execute("set statement_timeout = '10s'")
    session = Session(database, connection, lakeside, actor)
    session.names |= {
        "A_TENANT": str(lakeside.tenant), "A_ADMIN": str(lakeside.admin), "A_SELF": str(actor),
        "B_TENANT": str(hillside.tenant), "B_ADMIN": str(hillside.admin),
    }  # fmt: skip
    yield session
    connection.terminate()


async def fingerprint(owner: asyncpg.Connection, actor: UUID) -> dict[str, Any]:
    """All rows of both tenants; of the log, what does not stand there in the attacker's own name."""
    found = {}
    for table in (
        "client", "facility", "app_user", "tenant", "tenant_key", "audit_seal", "charthold.principal",
        "charthold.tenant_directory", "user_action_audit_log",
    ):  # fmt: skip
        mine = f" where user_id <> '{actor}'" if table == "user_action_audit_log" else ""
        found[table] = await owner.fetchval(f"select sum(hashtextextended(t::text, 0)) from {table} as t{mine}")
    return found


# -- answers that nobody gave ------------------------------------------------------------------------------------------

# What an answer is good for: to be somebody, to read, to write, to be recorded.
USES = (
    "raise notice 'acting: %', charthold.actor_id() || ' of ' || charthold.tenant_id() || ' as ' || charthold.actor_role();",
    "for r in select * from app_user loop raise notice '%', r; end loop;",
    "update facility set phone = 'attacked';",
    "update app_user set role = 'admin' where id = 'A_SELF';",
    "perform charthold.record('login', 'attack', null, null, null);",
    "perform charthold.record_read('client', array['A_SELF']::uuid[], '{notes}');",
)
USE = "\n".join(f"begin {use} exception when others then raise notice '%', sqlerrm; end;" for use in USES)

OWN = "perform set_config('charthold.scope', 'OWN_TOKEN', true);"
START = f"{OWN} answer := charthold.scope();"
FORGED = "overlay(answer placing 'WHOM' from 18 for 117)"
FORGE = f"perform set_config('charthold.granted', {FORGED}, true);"
WHOM = {
    "the admin of another tenant": "B_TENANTB_ADMINadmin    B_TENANT",
    "the admin of the own tenant": "A_TENANTA_ADMINadmin    A_TENANT",
    "oneself, as an admin": "A_TENANTA_SELFadmin    A_TENANT",
    "oneself, in another tenant": "B_TENANTA_SELFauditor  B_TENANT",
}
# What scope() would have written, had it given that answer.
SEAL = "seal := encode(sha256(convert_to(current_setting('charthold.granted'), 'UTF8')), 'hex');"


def block(*body: str) -> str:
    return "do $$ declare answer text; seal text; r record; c refcursor; begin\n" + "\n".join(body) + "\nend $$"


def quietly(*statements: str) -> str:
    """Statements inside a block that may fail."""
    return "\n".join(
        f"begin {s}; exception when others then raise notice '%', sqlerrm; end;"
        if s.startswith("perform ")
        else f"begin execute $q$ {s} $q$; exception when others then raise notice '%', sqlerrm; end;"
        for s in statements
    )


FORGERIES: dict[str, tuple[str, ...]] = {
    "an answer of one's own making": (block(START, FORGE, USE),),
    "an answer in the session": (
        block(START, f"perform set_config('charthold.granted', {FORGED}, false);", USE),
        block(OWN, USE),
        block(START, USE, USE),
    ),
    "an answer before there was one": (
        block(
            "answer := extract(epoch from statement_timestamp()) || repeat(' ', 117) || chr(31) || chr(31) || chr(31);",
            OWN, FORGE, USE,
        ),
        block(
            "answer := extract(epoch from statement_timestamp()) || substr('OWN_TOKEN', 93, 72) || repeat(' ', 45)"
            " || chr(31) || chr(31) || chr(31);",
            OWN, FORGE, USE,
        ),
    ),
    "an answer with a token that says the same": (
        block(START, FORGE, "perform set_config('charthold.scope', left('OWN_TOKEN', 92) || left('WHOM', 72), true);", USE),
    ),
    "an answer with nothing but the code of a token": (
        block(START, "perform set_config('charthold.scope', left('OWN_TOKEN', 64), true);", FORGE, USE),
        block(START, FORGE, "perform set_config('charthold.scope', left(answer, 64), true);", USE),
    ),
    "an answer with no token": (
        block(START, FORGE, "perform set_config('charthold.scope', '', true);", USE),
        block(START, "perform set_config('charthold.scope', '', true);", "perform set_config('charthold.granted', repeat('', 17) || substr(answer, 18), true);", USE),
    ),
    "answers that are cut, moved and doubled": tuple(
        block(START, "for n in 0..150 by 3 loop", f"perform set_config('charthold.granted', {moved}, true);", USE, "end loop;")
        for moved in ("substr(answer, n)", "repeat('x', n) || answer", f"left(answer, n) || {FORGED}", f"answer || left({FORGED}, n)", f"left({FORGED}, n) || substr(answer, n + 1)")
    ),
    "an answer of a moment ago": (
        f"begin; {block(START, USE)}; savepoint s; {block(START, FORGE, USE)}; commit",
        block("answer := current_setting('charthold.granted', true);", OWN, USE),
    ),
    "several statements in one message": (
        f"begin; select set_config('charthold.scope', 'OWN_TOKEN', true); select charthold.scope();"
        f" select set_config('charthold.granted', {FORGED.replace('answer', 'charthold.scope()')}, true); {block(USE)}; commit",
        f"begin; select set_config('charthold.scope', 'OWN_TOKEN', true); select charthold.scope(), set_config('charthold.granted',"
        f" {FORGED.replace('answer', 'charthold.scope()')}, false); commit; begin; select set_config('charthold.scope', 'OWN_TOKEN', true); {block(USE)}; commit",
    ),
    "the memory written by hand": (
        block(START, FORGE, SEAL, quietly(
            "perform setval('charthold.granted_1', hashtextextended(seal, 1)), setval('charthold.granted_2', hashtextextended(seal, 2))",
            "perform setval('charthold.granted_1', hashtextextended(seal, 1), false)",
            "perform nextval('charthold.granted_1')",
            "alter sequence charthold.granted_1 restart 1", "alter sequence charthold.granted_1 owner to app_runtime",
            "drop sequence charthold.granted_1, charthold.granted_2",
            "update charthold.granted_1 set last_value = 1", "truncate charthold.granted_1",
        ), USE),
    ),
    "a memory of one's own by that name": (
        block(
            START,
            quietly(
                "create temp sequence granted_1 minvalue -9223372036854775808", "create temp sequence granted_2 minvalue -9223372036854775808",
                "create sequence charthold.granted_3", "create schema charthold",
            ),
            "perform set_config('search_path', 'pg_temp, charthold, public, pg_catalog', true);",
            FORGE, SEAL,
            quietly("perform setval('granted_1', hashtextextended(seal, 1)), setval('granted_2', hashtextextended(seal, 2))"),
            USE,
        ),
        "drop sequence if exists pg_temp.granted_1, pg_temp.granted_2",
    ),
    "functions of one's own that hash": (
        block(
            START,
            quietly(
                "create function pg_temp.hashtextextended(text, bigint) returns bigint language sql as 'select 1::bigint'",
                "create function pg_temp.currval(regclass) returns bigint language sql as 'select 1::bigint'",
                "create function pg_temp.starts_with(text, text) returns boolean language sql as 'select true'",
                "create function pg_temp.eq(bigint, bigint) returns boolean language sql as 'select true'",
                "create operator pg_temp.= (leftarg = bigint, rightarg = bigint, function = pg_temp.eq)",
            ),
            "perform set_config('search_path', 'pg_temp, charthold, public, pg_catalog', true);", FORGE, USE,
        ),
        "discard temp",
    ),
    "a memory that is forgotten": tuple(
        block(START, quietly(*forgotten), FORGE, USE)
        for forgotten in (("discard sequences",), ("discard plans", "discard temp"), ("discard all",), ("reset all",), ("reset charthold.granted",))
    ),
    "a commit in the middle": (
        block(START, FORGE, "commit;", OWN, FORGE, USE),
        block(START, f"perform set_config('charthold.granted', {FORGED}, false);", "commit;", OWN, USE),
        block(START, "commit and chain;", OWN, FORGE, USE),
    ),
    "a rollback in the middle": (block(START, FORGE, "rollback;", OWN, FORGE, USE),),
    "a savepoint undone": (
        block(START, "begin", FORGE, "raise division_by_zero; exception when division_by_zero then null; end;", FORGE, USE),
        block(OWN, "begin answer := charthold.scope(); raise division_by_zero; exception when division_by_zero then null; end;", FORGE, USE),
    ),
    "a function with a setting of its own": (
        block(
            START,
            f"begin execute format('create function pg_temp.who() returns uuid language plpgsql set charthold.granted = %L as $f$ begin return charthold.actor_id(); end $f$', {FORGED}); exception when others then raise notice '%', sqlerrm; end;",
            quietly(
                "create function pg_temp.whose(forged text) returns uuid language plpgsql set search_path = pg_catalog as $f$ begin perform set_config('charthold.granted', forged, true); return charthold.actor_id(); end $f$",
            ),
            quietly("perform pg_temp.who()"), f"raise notice 'acting: %', pg_temp.whose({FORGED});", USE,
        ),
        "discard temp",
    ),
    "an answer between two fetches": (
        block(START, "open c for select * from app_user; fetch c into r;", FORGE, "loop raise notice '%', r; fetch c into r; exit when not found; end loop;"),
        block(START, "open c for select * from app_user;", FORGE, "loop fetch c into r; exit when not found; raise notice '%', r; end loop;"),
    ),
    "an answer between two policies": tuple(
        block(START, "set local enable_seqscan = off;", quietly(
            statement.replace("FLIP", f"(select case when set_config('charthold.granted', {FORGED.replace('answer', 'charthold.scope()')}, true) is not null then u.email end from app_user as u where u.id = 'A_SELF')")
        ), USE)
        for statement in ("update app_user set role = 'admin' where email = FLIP", "delete from app_user where email = FLIP")
    ),
    "an answer in a worker": (
        block(
            START, "set local debug_parallel_query = on;",
            quietly("create function pg_temp.who() returns uuid language plpgsql parallel safe as $f$ begin return charthold.actor_id(); end $f$"),
            FORGE, quietly("perform pg_temp.who()", "do $w$ begin raise notice 'acting: %', (select min(pg_temp.who()::text) from generate_series(1, 3)); end $w$"), USE,
        ),
        "discard temp",
    ),
    "an answer in a transaction that may only read": (
        block(START, FORGE, "set local transaction_read_only = on;", USE),
        f"begin read only; {block(START, FORGE, USE)}; rollback",
    ),
    "a trigger that records, on a table of one's own": (
        block(
            START, FORGE,
            quietly(
                "create temp table site as select * from facility limit 1",
                "create trigger t after insert on site referencing new table as new_rows for each statement execute function charthold.capture_facility()",
                "insert into site select * from facility limit 1",
            ), USE,
        ),
        "discard temp",
    ),
    "an answer kept by a plan": (
        "set plan_cache_mode = force_generic_plan", "prepare kept as select charthold.actor_id()",
        block(START, FORGE, "for r in execute 'execute kept' loop raise notice 'acting: %', r; end loop;"),
        "deallocate all",
    ),
}  # fmt: skip


@pytest.mark.parametrize("whom", WHOM)
@pytest.mark.parametrize("name", FORGERIES)
async def test_nobody_else_is_made_by(name: str, whom: str, attacker: Session, owner: asyncpg.Connection) -> None:
    attacker.names = {"WHOM": WHOM[whom]} | attacker.names
    before = await fingerprint(owner, attacker.actor)
    await attacker.run(*FORGERIES[name])
    assert await fingerprint(owner, attacker.actor) == before
    assert attacker.acted_as <= {
        f"{attacker.actor} of {attacker.clinic.tenant} as auditor", str(attacker.actor), f"({attacker.actor})",
    }  # fmt: skip
    assert SECRET not in repr(attacker.seen)


async def test_an_attempt_runs_and_is_seen(attacker: Session, owner: asyncpg.Connection) -> None:
    """An attempt that failed for a reason of its own would prove nothing: without a forgery the block acts and reads."""
    await attacker.run(block(START, USE))
    assert attacker.acted_as == {f"{attacker.actor} of {attacker.clinic.tenant} as auditor"}
    assert "clinician@lakeside.example" in repr(attacker.told)
    assert await owner.fetchval(
        "select count(*) from user_action_audit_log where user_id = $1 and table_name = 'attack'", attacker.actor
    )


async def test_the_same_attempts_find_an_answer_that_is_believed_unsealed(
    database: ChartholdEngine, lakeside: Clinic, attacker: Session, owner: asyncpg.Connection
) -> None:
    """Without the seal in the owner's hands the setting would be worth as much as any other."""
    sealed = (SQL / "scope.sql").read_text(encoding="utf-8").replace("create function", "create or replace function")
    believed, changes = re.subn(r"currval\('charthold\.granted_\d'\) = hashtextextended\(seal, \d\)", "true", sealed)
    assert changes == 2, "scope.sql has changed: teach this test where an answer is believed"
    attacker.names = {"WHOM": WHOM["oneself, as an admin"]} | attacker.names
    broken = set()
    await owner.execute(believed)
    try:
        for name, statements in FORGERIES.items():
            attacker.seen.clear()
            async with lakeside.as_admin():
                await User.update({User.role: "auditor"}).where(User.id == attacker.actor)
            await attacker.run(*statements)
            if any("as admin" in who for who in attacker.acted_as):
                broken.add(name)
    finally:
        await owner.execute(sealed)
    assert broken >= {
        "an answer of one's own making", "an answer in the session", "several statements in one message",
        "the memory written by hand", "a memory of one's own by that name",
    }  # fmt: skip


MEMORY = (
    "select setval('charthold.granted_1', 1)", "select setval('charthold.granted_1', 1, false)",
    "select nextval('charthold.granted_1')", "select currval('charthold.granted_1')", "select lastval()",
    "select last_value from charthold.granted_1", "table charthold.granted_1", "copy charthold.granted_1 to stdout",
    "select last_value from charthold.granted_1 for update", "update charthold.granted_1 set last_value = 1",
    "delete from charthold.granted_1", "truncate charthold.granted_1",
    "do $$ begin lock table charthold.granted_1; end $$",
    "alter sequence charthold.granted_1 restart", "alter sequence charthold.granted_1 owned by none",
    "alter sequence charthold.granted_1 set logged", "drop sequence charthold.granted_1",
    "grant all on sequence charthold.granted_1 to public", "comment on sequence charthold.granted_1 is 'x'",
    "create temp table t (x bigint default nextval('charthold.granted_1')); insert into t default values",
)  # fmt: skip


@pytest.mark.parametrize("half", ["granted_1", "granted_2"])
@pytest.mark.parametrize("role", ["app_runtime", "none"])
@pytest.mark.parametrize("statement", MEMORY)
async def test_only_the_owner_uses_the_memory(statement: str, role: str, half: str, attacker: Session) -> None:
    await attacker.run(f"set role {role}", block(START))
    with pytest.raises(asyncpg.PostgresError) as refused:
        await attacker.connection.execute(statement.replace("granted_1", half))
    assert refused.value.sqlstate in {"42501", "55000", "42809"}


@pytest.mark.parametrize(
    "statement",
    [
        "select pg_sequence_last_value('charthold.granted_1')",
        "select last_value from pg_sequences where sequencename = 'granted_1'",
        "select has_sequence_privilege('charthold.granted_1', 'select, usage, update') or null",
    ],
)
async def test_the_memory_shows_nothing(statement: str, attacker: Session) -> None:
    await attacker.run(block(START))
    for role in ("app_runtime", "none"):
        await attacker.run(f"set role {role}")
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            assert await attacker.connection.fetchval(statement) is None


async def test_a_commit_ends_the_context_in_the_middle_of_a_statement(attacker: Session) -> None:
    """The context is the transaction's, whatever the session remembers."""
    for end in ("commit;", "rollback;", "commit and chain;"):
        await attacker.run(
            block(START, end, USE), block(START, "perform set_config('charthold.granted', answer, false);", end, USE)
        )
    assert attacker.acted_as == set()


# -- what is signed for a moment ---------------------------------------------------------------------------------------

PROVISION = """
perform set_config('charthold.scope', '', true);
perform charthold.provision_tenant('NEW_TOKEN', 'NEW_TENANT', 'NEW_SLUG', 'x', 'UTC', 6, false, 'NEW_ADMIN', 'a@b.example', 'x',
    charthold.uuid7(), 'x', 'x');
answer := current_setting('charthold.granted', true);
"""
# An answer that holds the code of a token tells all of the token but its end, which is soon guessed.
REBUILT = """
for n in LIFETIME loop
    perform set_config('charthold.granted', '', true);
    perform set_config('charthold.scope', left(answer, 64) || 'KEY_ID'
        || lpad((floor(extract(epoch from clock_timestamp()))::bigint + n)::text, 10, '0')
        || lpad(pg_backend_pid()::text, 10, '0') || substr(answer, 18, 72)
        || substr(substr(answer, 135), strpos(substr(answer, 135), chr(31)) + 1), true);
    begin
        perform charthold.scope();
        perform set_config('attack.token', current_setting('charthold.scope'), false);
        exit;
    exception when others then
        null;
    end;
end loop;
"""

LEFT_BEHIND: dict[str, str] = {
    "the answer, to be read": block(PROVISION, "raise notice '%', answer;"),
    "the answer, a statement later": f"begin; {block(PROVISION)}; {block('''raise notice '%', current_setting('charthold.granted', true);''')}; commit",
    "the answer, with its own code for a token": block(
        PROVISION, "perform set_config('charthold.scope', left(answer, 64), true);", USE
    ),
    "the answer, with one's own token": block(PROVISION, OWN, USE),
    "the answer, made anew of what is known": block(
        PROVISION,
        "answer := extract(epoch from statement_timestamp())::text || 'NEW_TENANT' || 'NEW_ADMIN' || rpad('system', 9)"
        " || 'NEW_TENANT' || chr(31) || chr(31) || chr(31) || 'provision';",
        "perform set_config('charthold.granted', answer, true);",
        "perform set_config('charthold.scope', repeat('0', 92) || 'NEW_TENANT' || 'NEW_ADMIN', true);",
        USE,
    ),
    "the answer, made anew of what is known, after a failure": block(
        "begin",
        PROVISION.replace("charthold.uuid7(), 'x', 'x')", "charthold.uuid7(), null, 'x')"),
        "exception when others then raise notice '%', sqlerrm; end;",
        "answer := extract(epoch from statement_timestamp())::text || 'NEW_TENANT' || 'NEW_ADMIN' || rpad('system', 9)"
        " || 'NEW_TENANT' || chr(31) || chr(31) || chr(31) || 'provision';",
        "perform set_config('charthold.granted', answer, true);",
        "perform set_config('charthold.scope', repeat('0', 92) || 'NEW_TENANT' || 'NEW_ADMIN', true);",
        USE,
    ),
    "the token": block(PROVISION, REBUILT, USE),
    "the answer, after a savepoint": block("begin", PROVISION, "raise notice '%', answer; end;", USE),
    "the answer, after a failure": block(
        "begin", PROVISION, "raise division_by_zero; exception when others then raise notice '%', current_setting('charthold.granted', true); end;", USE
    ),
    "the answer, in a setting that outlives it": block(
        "perform set_config('charthold.granted', 'x', false);", PROVISION,
        "raise notice '%', answer; perform set_config('charthold.granted', '', false);",
    ),
}  # fmt: skip


def to_provision(attacker: Session) -> UUID:
    """As if the application had signed for it; by itself nobody provisions anything."""
    tenant, admin = uuid4(), uuid4()
    signed = attacker.database.token_key.sign(
        tenant=tenant, actor=admin, expires=int(time.time()) + 60, backend=attacker.connection.get_server_pid(),
        reason="provision",
    )  # fmt: skip
    attacker.names |= {
        "NEW_TOKEN": signed, "NEW_TENANT": str(tenant), "NEW_ADMIN": str(admin), "NEW_SLUG": f"own-{tenant.hex[:8]}",
        "KEY_ID": attacker.database.token_key.id, "LIFETIME": "55..65",
    }  # fmt: skip
    return tenant


@pytest.mark.parametrize("name", LEFT_BEHIND)
async def test_a_function_that_signs_for_itself_does_not_leave(name: str, attacker: Session) -> None:
    """Whoever provisions a tenant is not its admin by that, not even within the same statement."""
    tenant = to_provision(attacker)
    await attacker.run(LEFT_BEHIND[name])
    assert attacker.acted_as <= {f"{attacker.actor} of {attacker.clinic.tenant} as auditor"}
    assert str(tenant) not in repr(attacker.told)


async def test_a_tenant_of_ones_own_widens_no_role(attacker: Session, owner: asyncpg.Connection) -> None:
    """Policies ask one after another; with a second token one could answer for the tenant, the other for the role."""
    to_provision(attacker)
    await attacker.run(block(PROVISION, REBUILT))
    other = await attacker.connection.fetchval("select current_setting('attack.token', true)")
    attacker.names |= {
        "OTHER_TOKEN": other or "",
        "A_ADDRESS": await owner.fetchval("select email from app_user where id = $1", attacker.actor),
    }
    before = await fingerprint(owner, attacker.actor)
    await attacker.run(
        "begin; set local enable_seqscan = off; select set_config('charthold.scope', 'OWN_TOKEN', true)",
        # The index is asked for the tenant, then for the address; the role is asked of the row that is found.
        "update app_user set role = case when set_config('charthold.scope', 'OWN_TOKEN', true) is not null then 'admin' end"
        " where email = (select case when set_config('charthold.scope', 'OTHER_TOKEN', true) is not null then 'A_ADDRESS' end)",
        "commit",
    )
    assert await fingerprint(owner, attacker.actor) == before
    assert await owner.fetchval("select role from app_user where id = $1", attacker.actor) == "auditor"


# Two users' policies in one statement: the tenant is asked under one token, and what else there is under the other.
COMBINED = {
    "an admin elsewhere": (
        "update app_user set role = case when set_config('charthold.scope', 'OWN_TOKEN', true) is not null then 'admin' end"
        " where email = (select case when set_config('charthold.scope', 'OTHER_TOKEN', true) is not null then 'A_ADDRESS' end)"
    ),
    "a tenant's user elsewhere": (
        "update facility set phone = case when set_config('charthold.scope', 'OTHER_TOKEN', true) is not null then 'x' end"
        " where name = (select case when set_config('charthold.scope', 'OTHER_TOKEN', true) is not null then 'Main street' end)"
    ),
    "an admin elsewhere, at the end": (
        "delete from app_user where email = (select case when set_config('charthold.scope', 'OTHER_TOKEN', true)"
        " is not null then 'A_ADDRESS' end)"
    ),
}


@pytest.mark.parametrize("name", COMBINED)
async def test_two_genuine_tokens_are_not_combined_by(
    name: str, attacker: Session, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    """Somebody who is an auditor here and an admin there is an admin there only."""
    attacker.names |= {
        "OTHER_TOKEN": attacker.token(tenant=hillside.tenant, actor=hillside.admin),
        "A_ADDRESS": await owner.fetchval("select email from app_user where id = $1", attacker.actor),
    }
    before = await fingerprint(owner, attacker.actor)
    await attacker.run(
        "begin; set local enable_seqscan = off; select set_config('charthold.scope', 'OWN_TOKEN', true)",
        COMBINED[name],
        "commit",
    )
    assert await fingerprint(owner, attacker.actor) == before


@pytest.mark.parametrize(
    "statement",
    [
        "update facility set phone = case when set_config('charthold.scope', 'OTHER_TOKEN', true) is not null then 'x' end",
        "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) select charthold.uuid7(),"
        " 'A_TENANT', set_config('charthold.scope', 'OTHER_TOKEN', true), 'clinic', '{}', 'UTC', '{}', 'active'",
        "delete from facility where id <> all (select id from facility) or set_config('charthold.scope', 'OTHER_TOKEN', true) is null",
    ],
)
async def test_a_change_is_recorded_in_no_other_tenants_name(
    statement: str, attacker: Session, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    """An admin of two tenants cannot have the one's log name the other's user."""
    attacker.names |= {
        "OWN_TOKEN": attacker.token(actor=attacker.clinic.admin),
        "OTHER_TOKEN": attacker.token(tenant=hillside.tenant, actor=hillside.admin),
    }
    before = await fingerprint(owner, attacker.actor)
    await attacker.run("begin", "select set_config('charthold.scope', 'OWN_TOKEN', true)", statement, "commit")
    assert await fingerprint(owner, attacker.actor) == before


@pytest.mark.parametrize(
    "change",
    [
        "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status)"
        " values (charthold.uuid7(), 'A_TENANT', 'strange', 'clinic', '{}', 'UTC', '{}', 'active')",
        "update facility set phone = 'strange'",
        "delete from facility where name = 'Doomed'",
    ],
)
async def test_a_scope_that_is_set_between_a_policy_and_the_trigger_records_nothing(
    change: str, attacker: Session, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    """The rows have passed the policies of their own tenant; the triggers come at the statement's end."""
    async with lakeside.as_admin():
        if not await Facility.exists().where(Facility.name == "Doomed"):
            await Facility(name="Doomed").save()
    attacker.names |= {
        "OWN_TOKEN": attacker.token(actor=attacker.clinic.admin),
        "OTHER_TOKEN": attacker.token(tenant=hillside.tenant, actor=hillside.admin),
    }
    before = await fingerprint(owner, attacker.actor)
    await attacker.run(
        "begin",
        "select set_config('charthold.scope', 'OWN_TOKEN', true)",
        f"with changed as ({change} returning id)"
        " select count(set_config('charthold.scope', 'OTHER_TOKEN', true)) from changed",
        "commit",
    )
    assert "another user acts in this statement" in repr(attacker.seen)
    assert await fingerprint(owner, attacker.actor) == before


@pytest.mark.parametrize("end", ["a scope that ended", "a scope that ended, after a rollback"])
async def test_nobody_acts_any_more_in_the_transaction_of(
    end: str, lakeside: Clinic, database: ChartholdEngine
) -> None:
    """SQL that runs after the scope, in its transaction, has neither a context nor what to make one of."""
    longest = int(database.settings.scope_seconds) + 5
    attempt = block("answer := current_setting('charthold.granted', true);", REBUILT)
    attempt = attempt.replace("KEY_ID", database.token_key.id).replace("LIFETIME", f"0..{longest}")
    async with transaction():
        async with lakeside.as_admin():
            if "rollback" in end:
                with contextlib.suppress(ZeroDivisionError):
                    async with transaction():
                        await Client.select(Client.notes)
                        raise ZeroDivisionError
            else:
                await Client.select(Client.notes)
        told = await Migration.raw("select current_setting('charthold.granted', true) as told")
        await Migration.raw(attempt)
        made = await Migration.raw("select current_setting('attack.token', true) as made")
    assert (told[0]["told"] or "", made[0]["made"] or "") == ("", "")


# -- time --------------------------------------------------------------------------------------------------------------


async def locked(session: Session, clinic: Clinic) -> None:
    async with clinic.as_admin():
        await User.update({User.status: "locked"}).where(User.id == session.actor)


async def demoted(session: Session, clinic: Clinic) -> None:
    async with clinic.as_admin():
        await User.update({User.role: "billing"}).where(User.id == session.actor)


async def with_a_retired_key(session: Session, clinic: Clinic) -> None:
    connection = await superuser_connection()
    try:
        await connection.execute(
            "update charthold.token_key set retired_at = clock_timestamp() where id = $1", OLD_KEY.id
        )
    finally:
        await connection.close()


async def past_the_end(session: Session, clinic: Clinic) -> None:
    """The token ends by itself."""


OLD_KEY = TokenKey.derive(b"soon retired".ljust(32))
CHANGES: dict[str, Callable[[Session, Clinic], Awaitable[None]]] = {
    f.__name__.replace("_", " "): f for f in (locked, demoted, with_a_retired_key, past_the_end)
}


@pytest.mark.parametrize("name", CHANGES)
async def test_an_answer_does_not_outlive_a_second_of_its_statement_once_the_actor_is(
    name: str, attacker: Session, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """One long statement, in which somebody else changes what the first answer said."""
    key = attacker.database.token_key
    if name == "with a retired key":
        key = OLD_KEY
        await owner.execute(
            "insert into charthold.token_key (id, inner_pad, outer_pad) values ($1, $2, $3)",
            key.id, key.inner_pad, key.outer_pad,
        )  # fmt: skip
    seconds = 2 if name == "past the end" else 60
    attacker.names["OWN_TOKEN"] = attacker.token(key=key, expires=int(time.time()) + seconds)
    # To the last the attacker puts the answer back that it was given.
    back = "perform set_config('charthold.granted', answer, true);"
    running = asyncio.create_task(
        attacker.run(
            block(
                START, USE, "raise notice 'then';", f"perform pg_sleep({seconds if seconds == 2 else 1.1});", back, USE
            )
        )
    )
    await asyncio.sleep(0.2)
    await CHANGES[name](attacker, lakeside)
    await running
    now = attacker.told[attacker.told.index("then") :]
    assert f"acting: {attacker.actor} of {attacker.clinic.tenant} as auditor" in attacker.told
    assert not [line for line in now if line.endswith("as auditor")]


# -- honest sessions ---------------------------------------------------------------------------------------------------

SET = "select set_config('charthold.scope', 'OWN_TOKEN', true)"
LOOK = "select charthold.actor_id()"

HONEST: dict[str, tuple[str, ...]] = {
    "the first statement of a session": ("begin", SET, LOOK, "commit"),
    "one transaction after another": ("begin", SET, LOOK, "commit", "begin", SET, LOOK, LOOK, "commit"),
    "a rolled back savepoint": ("begin", SET, "savepoint s", LOOK, "rollback to s", LOOK, "release s", LOOK, "commit"),
    "a rolled back transaction": ("begin", SET, LOOK, "rollback", "begin", SET, LOOK, "commit"),
    "a failed statement": ("begin", SET, "savepoint s", "select 1 / 0 from (select charthold.scope() offset 0) as x", "rollback to s", LOOK, "commit"),
    "a pooler that discards all": ("begin", SET, LOOK, "commit", "discard all", "set role app_runtime", "begin", SET, LOOK, "commit"),
    "settings reset in a transaction": ("begin", SET, LOOK, "reset all", SET, LOOK, "commit"),
    "a transaction that may only read": ("begin read only", SET, LOOK, LOOK, "commit"),
    "a transaction that may only read from now on": ("begin", SET, LOOK, "set transaction read only", LOOK, "commit"),
    "a session that may only read": ("set default_transaction_read_only = on", "begin", SET, LOOK, "commit"),
    "a serializable snapshot": ("begin isolation level serializable read only deferrable", SET, LOOK, "commit"),
    "repeatable read": ("begin isolation level repeatable read", SET, LOOK, LOOK, "commit"),
    "a setting left in the session by somebody before": ("set charthold.granted = 'left behind'", "begin", SET, LOOK, LOOK, "commit"),
    "an answer left in the session by somebody before": (f"do $$ begin perform set_config('charthold.granted', '{'0' * 17}{uuid4()}{uuid4()}admin     ', false); end $$", "begin", SET, LOOK, LOOK, "commit"),
    "a setting left behind, and only reading": ("set charthold.granted = 'left behind'", "begin read only", SET, LOOK, LOOK, "commit"),
    "settings and sequences discarded": ("begin", SET, LOOK, "commit", "reset all", "discard sequences", "begin", SET, LOOK, "commit"),
    "the setting that there is a memory taken away": ("begin", SET, LOOK, "set local charthold.remembers = ''", LOOK, "commit", "begin", SET, LOOK, "commit"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
async def test_an_honest_user_is_answered_after(name: str, attacker: Session) -> None:
    """Whatever a session remembers or forgot: a genuine token is verified, and nobody hears of a sequence."""
    answers = []
    for n, statement in enumerate(HONEST[name]):
        for stands, value in attacker.names.items():
            statement = statement.replace(stands, value)
        if statement == LOOK:
            # Each a text of its own, because the driver does not know that a statement that it prepared is discarded.
            answers.append(await attacker.connection.fetchval(f"{statement} -- {n}"))
        else:
            with contextlib.suppress(asyncpg.DivisionByZeroError):
                await attacker.connection.execute(statement)
    assert answers == [attacker.actor] * HONEST[name].count(LOOK)


async def test_a_session_that_was_told_nothing_remembers_too(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Somebody's own, which does not begin as ours do."""
    async with lakeside.as_admin() as here:
        token = here.token(database.token_key, owner.get_server_pid())
    for _ in range(2):
        async with owner.transaction():
            await owner.execute("select set_config('charthold.scope', $1, true)", token)
            assert await owner.fetchval("select charthold.actor_id()") == lakeside.admin


@pytest.mark.parametrize("left", ["", "set charthold.granted = 'left behind'"])
async def test_a_session_whose_memory_was_thrown_away_is_believed_nothing(left: str, attacker: Session) -> None:
    """Whoever does that keeps nobody from acting but themselves: the pool closes such a session."""
    await attacker.run(
        "begin", SET, LOOK, "commit", left or "select 1", "discard sequences", "begin", SET, LOOK, "commit"
    )
    assert 'currval of sequence "granted_3" is not yet defined' in repr(attacker.seen)


# -- two users in one statement ----------------------------------------------------------------------------------------

# The caller's own sub-selects and RETURNING stand between what a statement is asked for.
SWAP = "(select case when set_config('charthold.scope', '{}', true) is not null then '{}'::uuid end)"
SWAPPED = {
    "an update beyond one's facilities": (
        "BOUND",
        f"update client set status = 'on_hold' where id = {SWAP.format('EVERYWHERE', 'FAR')}"
        " returning set_config('charthold.scope', 'BOUND', true) is not null",
    ),
    "a delete beyond one's facilities": (
        "ADMIN_HERE",
        f"delete from client where id = {SWAP.format('EVERYWHERE', 'FAR')}"
        " returning set_config('charthold.scope', 'ADMIN_HERE', true) is not null",
    ),
    "a delete of who has a history": (
        "ADMIN",
        "delete from app_user where id = 'A_SELF' and set_config('charthold.scope', 'BILLING', true) is not null"
        " returning set_config('charthold.scope', 'ADMIN', true) is not null",
    ),
    "a change in another's name": (
        "ADMIN",
        "with changed as (update facility set phone = '1' returning id)"
        " select count(set_config('charthold.scope', 'EVERYWHERE', true)) from changed",
    ),
    "a change in another's name, with the memory taken away": (
        "ADMIN",
        "with changed as (update facility set phone = '1' returning id)"
        " select count(set_config('charthold.scope', 'EVERYWHERE', true)),"
        " count(set_config('charthold.remembers', '', false)), count(set_config('charthold.granted', '', true)) from changed",
    ),
    "an update of what is not recorded, in a statement that calls itself read-only": (
        "BOUND",
        "update memory_note as n set body = 'attacked' from ("
        "select case when set_config('transaction_read_only', 'on', true) is not null then 'NOTE'::uuid end as id offset 0"
        ") as flip where n.id = flip.id and (n.id = 'NOTE') = (n.created_at > (select case when"
        " set_config('charthold.scope', 'EVERYWHERE', true) is not null then '-infinity'::timestamptz end))"
        " returning set_config('charthold.scope', 'BOUND', true) is not null",
    ),
    "one's own right to write, after an emergency": (
        "EMERGENCY",
        "select charthold.emergency_client(), set_config('charthold.scope', 'BOUND', true), charthold.actor_role()",
    ),
    "an emergency, and one's own right to write": (
        "BOUND",
        f"update client set status = 'on_hold' where id = {SWAP.format('EMERGENCY', 'FAR')}"
        " returning set_config('charthold.scope', 'BOUND', true) is not null",
    ),
}  # fmt: skip


class MemoryNote(TenantTable, tablename="memory_note"):
    """Nothing of it is recorded."""

    client_id = TenantForeignKey(Client)
    body = Text(default="")
    audited = False


@pytest.fixture(scope="module")
async def notes(database: ChartholdEngine) -> None:
    await create(database, MemoryNote)


@pytest.mark.parametrize("name", SWAPPED)
async def test_two_users_of_one_tenant_do_not_share_a_statement(
    name: str, attacker: Session, lakeside: Clinic, owner: asyncpg.Connection, notes: None
) -> None:
    """Threat: who is asked for the role under one token, and for the facilities under another, may what neither may."""
    elsewhere = Facility(name=f"Elsewhere {uuid4()}")
    async with lakeside.as_admin():
        await elsewhere.save()
        far = Client(facility_id=elsewhere.id, first_name="A", last_name="B", date_of_birth=date(1990, 1, 1))
        await far.save()
        note = MemoryNote(client_id=far.id)
        await note.save()
    bound, admin = [await somebody(lakeside, role, bound=True) for role in ("clinician", "admin")]
    everywhere = await somebody(lakeside, "auditor", bound=False)
    async with scope(tenant=lakeside.tenant, actor=bound, reason="attack"):
        emergency = await break_glass(far.id, reason="attack")
    attacker.names = {
        "BOUND": attacker.token(actor=bound), "EVERYWHERE": attacker.token(actor=everywhere),
        "BILLING": attacker.token(actor=lakeside.billing), "ADMIN_HERE": attacker.token(actor=admin),
        "ADMIN": attacker.token(actor=lakeside.admin), "EMERGENCY": attacker.token(actor=bound, emergency=emergency.id),
        "FAR": str(far.id), "A_SELF": str(attacker.actor), "NOTE": str(note.id),
    }  # fmt: skip
    for join in ("seqscan", "hashjoin", "mergejoin"):
        await attacker.connection.execute(f"set enable_{join} = off")
    begins, swapped = SWAPPED[name]
    before = await fingerprint(owner, attacker.actor)
    await attacker.run("begin", f"select set_config('charthold.scope', '{begins}', true)", swapped, "commit")
    told = repr(attacker.seen)
    assert "another user acts in this statement" in told or "a transaction that may write nothing writes" in told
    assert await fingerprint(owner, attacker.actor) == before
    assert await owner.fetchval("select body from memory_note where id = $1", note.id) == ""


async def test_a_statement_of_many_rows_outlives_its_answer(lakeside: Clinic) -> None:
    """A statement that takes longer than an answer is believed asks again, and goes on."""
    async with lakeside.as_admin(), transaction():
        sites = [Facility(name=f"Slow {n} {uuid4()}") for n in range(3)]
        await Facility.insert(*sites)
        await Facility.raw(
            "update public.facility set phone = (select '0' from (select pg_sleep(0.6)) as s where name is not null) where id = any ({})",
            [site.id for site in sites],
        )
        assert {
            row["phone"]
            for row in await Facility.select(Facility.phone).where(Facility.id.is_in([s.id for s in sites]))
        } == {"0"}


# -- the gate ----------------------------------------------------------------------------------------------------------

FACILITY = "(id, tenant_id, name, kind, address, time_zone, settings, status)"
ROW = "'clinic', '{{}}', 'UTC', '{{}}', 'active'"
PROBE = "(select current_setting('charthold.scope', true))"

WRITES: dict[str, str] = {
    "an update": "update facility set phone = 'THIS'",
    "an update of what a sub-select says": "update facility set phone = (select 'THIS' from app_user limit 1)",
    "an update by a sub-select": "update facility set phone = 'THIS' where id in (select facility_id from client)",
    "an update from a join": "update facility as f set phone = 'THIS' from client as c where c.facility_id = f.id",
    "an update that calls": "update facility set phone = left('THIS' || coalesce(set_config('attack.ran', current_setting('charthold.scope', true), true), ''), 36)",
    "an update that asks who": "update facility set phone = 'THIS' where charthold.actor_role() = 'admin'",
    "an update by a materialized query": "update facility set phone = 'THIS' where id in (with m as materialized (select facility_id from client) select facility_id from m)",
    "an update of no more than none": "update facility set phone = 'THIS' where id in (select id from facility limit 0)",
    "an insert": f"insert into facility {FACILITY} values (charthold.uuid7(), 'A_TENANT', 'THIS', {ROW})",
    "an insert of what a sub-select says": f"insert into facility {FACILITY} select charthold.uuid7(), tenant_id, 'THIS', {ROW} from facility limit 1",
    "an insert that conflicts": f"insert into facility {FACILITY} values ('A_FACILITY', 'A_TENANT', 'THIS', {ROW}) on conflict (tenant_id, id) do update set phone = 'THIS'",
    "a delete": "delete from facility where name like 'Gone%'",
    "a merge": "merge into facility as f using client as c on c.facility_id = f.id and f.id is not null when matched then update set phone = 'THIS'",
}  # fmt: skip


def gated(statement: str) -> str:
    """As the engine sends it; the token is its only argument."""
    return Plan(statement, returns=False).compiled()[0].gated


@pytest.mark.parametrize("before", ["nobody", "a clinician", "a forgery", "Hillside"])
@pytest.mark.parametrize("name", WRITES)
async def test_a_write_waits_for_its_context(
    name: str, before: str, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic, owner: asyncpg.Connection
) -> None:
    """Nothing of it is done in the context that the transaction had before, whoever that was."""
    if name == "a merge" and owner.get_server_version() < (17,):
        pytest.skip("no MERGE in a WITH clause before PostgreSQL 17")
    async with lakeside.as_admin():
        await Facility(name=f"Gone {uuid4()}").save()
    connection = await database.connect(owner=False)
    await connection.execute("set plan_cache_mode = force_generic_plan")
    this = str(uuid4())
    statement = (
        WRITES[name]
        .replace("THIS", this)
        .replace("A_TENANT", str(lakeside.tenant))
        .replace("A_FACILITY", str(lakeside.facility))
    )
    reason = f"gate {this}"

    def token(clinic: Clinic, actor: UUID) -> str:
        return database.token_key.sign(
            tenant=clinic.tenant, actor=actor, expires=int(time.time()) + 60, backend=connection.get_server_pid(), reason=reason
        )  # fmt: skip

    right = token(lakeside, lakeside.admin)
    context = {
        "nobody": "", "a clinician": token(lakeside, lakeside.clinician), "a forgery": "0" * 64 + right[64:],
        "Hillside": token(hillside, hillside.admin),
    }[before]  # fmt: skip
    hills = "select sum(hashtextextended(t::text, 0)) from user_action_audit_log as t where tenant_id = $1"
    was = await owner.fetchval(hills, hillside.tenant)
    try:
        async with connection.transaction():
            await connection.fetchval("select set_config('charthold.scope', $1, true)", context)
            if before in ("a clinician", "Hillside"):
                await connection.fetchval("select charthold.scope()")
            await connection.fetch(gated(statement), right)
        # And with a context that does not hold it is not done at all.
        with pytest.raises(asyncpg.PostgresError) if "none" not in name else contextlib.suppress(asyncpg.PostgresError):
            async with connection.transaction():
                await connection.fetchval("select set_config('charthold.scope', $1, true)", right)
                await connection.fetchval("select charthold.scope()")
                await connection.fetch(gated(statement.replace(this, str(uuid4()))), "0" * 64 + right[64:])
    finally:
        connection.terminate()
    written = await owner.fetch(
        "select tenant_id, user_id from user_action_audit_log where reason = $1 and action_type <> 'read'", reason
    )
    assert {(row["tenant_id"], row["user_id"]) for row in written} <= {(lakeside.tenant, lakeside.admin)}
    assert bool(written) is ("none" not in name)
    assert await owner.fetchval(hills, hillside.tenant) == was


async def test_a_gated_write_is_done_once_and_answers_once(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """However it is sent: by a cursor's few rows, explained as it runs, or with a limit of the driver's."""
    async with lakeside.as_admin():
        made = Facility(name=f"Once {uuid4()}", capacity=1)
        await made.save()
    statement = gated(f"update facility set capacity = capacity + 1 where id = '{made.id}'")
    connection = await database.connect(owner=False)
    try:
        for way in ("fetch", "limit", "explain"):
            token = database.token_key.sign(
                tenant=lakeside.tenant, actor=lakeside.admin, expires=int(time.time()) + 60,
                backend=connection.get_server_pid(), reason="once",
            )  # fmt: skip
            if way == "fetch":
                assert len(await connection.fetch(statement, token)) == 1
            elif way == "limit":
                await connection.fetchrow(statement, token)
            else:
                await connection.fetch(f"explain (analyze) {statement}", token)
    finally:
        connection.terminate()
    assert await owner.fetchval("select capacity from facility where id = $1", made.id) == 4


# -- facilities --------------------------------------------------------------------------------------------------------


async def test_a_tenant_of_ones_own_shows_no_other_facility(
    database: ChartholdEngine, lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    """Whoever is bound to facilities does not answer for them with a token that is bound to none."""
    async with lakeside.as_admin():
        elsewhere = Facility(name=f"Elsewhere {uuid4()}")
        await elsewhere.save()
        other = Client(facility_id=elsewhere.id, first_name="Bob", last_name="Moss", date_of_birth=date(1990, 1, 1))
        await other.save()
    actor = await somebody(lakeside, "clinician", bound=True)
    connection = await database.connect(owner=False)
    attacker = Session(database, connection, lakeside, actor)
    to_provision(attacker)
    await attacker.run(block(PROVISION, REBUILT))
    stranger = await connection.fetchval("select current_setting('attack.token', true)") or ""
    shown: list[Any] = []
    with contextlib.suppress(asyncpg.PostgresError):
        async with connection.transaction():
            await connection.execute("set local enable_seqscan = off")
            await connection.fetchval("select set_config('charthold.scope', $1, true)", attacker.token())
            shown = await connection.fetch(
                "select id, facility_id from client where id = (select case when set_config('charthold.scope', $1, true)"
                " is not null then $2::uuid end)",
                stranger, other.id,
            )  # fmt: skip
    connection.terminate()
    assert shown == []
    async with scope(tenant=lakeside.tenant, actor=actor, reason="test"):
        assert not await Client.exists().where(Client.id == other.id)
