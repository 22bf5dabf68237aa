"""Whoever runs any SQL as the application's role, in a scope of one tenant, gets nothing of another.

Each attempt is an entry of a table: a name, and SQL or a function. It runs on a connection of its own, as the
application connects, inside a genuine scope of Lakeside's admin. Afterwards a judge who knows Hillside looks at three
things: what was shown (rows, errors, notices), whether Hillside or the catalog changed, and under whose name.

In SQL, ``B_TENANT``, ``B_CLIENT`` ... stand for Hillside's ids, which the attacker is given; ``A_TENANT`` ... for
Lakeside's. Statements are run one after another, each in a savepoint, so a failure does not end the attempt.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

import core
from core.compliance.disclosures import Disclosure
from core.engine import ChartholdEngine
from core.ids import uuid7
from core.scope import current_scope
from core.tables import Client, Facility, Tenant, User
from core.token import TokenKey
from tests.conftest import TEMPLATE, Clinic, superuser_connection

SQL = Path(core.__file__).parent / "schema" / "sql"
TABLES = ("client", "disclosure", "facility", "app_user", "tenant_key", "audit_seal", "user_action_audit_log")


@dataclass
class Attacker:
    """Somebody with a connection of the application and any SQL, in a scope of Lakeside's admin."""

    engine: ChartholdEngine
    connection: asyncpg.Connection
    mine: Clinic
    theirs: Clinic
    names: dict[str, str]
    seen: list[Any] = field(default_factory=list)

    async def sql(self, *statements: str) -> None:
        """Run statements, keep what each says, go on when one fails."""
        for statement in statements:
            for name, value in self.names.items():
                statement = statement.replace(name, value)
            inside = self.connection.is_in_transaction()
            try:
                if inside:
                    await self.connection.execute("savepoint attempt")
                self.seen += [tuple(row) for row in await self.connection.fetch(statement)]
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                # Every field: a value can hide in the detail, the hint or the context.
                self.seen.append((statement[:40], str(error), error.__dict__))
                if inside:
                    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                        await self.connection.execute("rollback to attempt")

    async def set_scope(self, token: str) -> None:
        await self.connection.fetchval("select set_config('charthold.scope', $1, true)", token)

    async def use(self, token: str) -> None:
        """Everything that one would do with a context that holds."""
        await self.set_scope(token)
        await self.sql(*GOALS)

    def token(self, key: TokenKey | None = None, **changed: Any) -> str:
        """A token of Hillside's admin for this backend, signed with a key of the attacker's."""
        given = {
            "tenant": self.theirs.tenant,
            "actor": self.theirs.admin,
            "expires": int(time.time()) + 600,
            "backend": self.connection.get_server_pid(),
            "reason": "attack",
        }
        return (key or TokenKey.derive(os.urandom(32))).sign(**given | changed)

    @property
    def own(self) -> str:
        """The attacker's genuine token."""
        return current_scope().token(self.engine.token_key, self.connection.get_server_pid())


Attempt = str | tuple[str, ...] | Callable[[Attacker], Awaitable[None]]

# What a context of Hillside would be good for: reading, counting, writing, deleting, acting under another name.
GOALS = (
    "select * from facility",
    "select count(*) from client",
    "update facility set phone = 'attacked'",
    "delete from facility where name like 'Wing%'",
    "select charthold.record('login', 'client', 'B_CLIENT', null, null)",
    "select charthold.record_read('client', array['B_CLIENT']::uuid[], array['notes'])",
)

# -- contexts that nobody signed ---------------------------------------------------------------------------------------


async def forged(a: Attacker) -> None:
    await a.use(a.token())


async def forged_with_known_key_id(a: Attacker) -> None:
    # The id of a key is public: the attacker's own token shows it.
    key = TokenKey.derive(os.urandom(32))
    await a.use(a.token(TokenKey(a.own[64:72], key.inner_pad, key.outer_pad)))


async def forged_with_empty_key(a: Attacker) -> None:
    await a.use(a.token(TokenKey(a.own[64:72], b"\x36" * 64, b"\x5c" * 64)))


async def unsigned(a: Attacker) -> None:
    for code in ("", "0" * 64, "f" * 64, " " * 64, "'" * 64):
        await a.use(code + a.token()[64:])


async def unsigned_in_plain_settings(a: Attacker) -> None:
    for name in ("charthold.tenant", "charthold.tenant_id", "app.tenant_id", "app.current_tenant", "charthold.scope"):
        await a.sql(f"select set_config('{name}', 'B_TENANT', true)", *GOALS)
        await a.sql(f"select set_config('{name}', 'B_TENANT', false)", *GOALS)


async def own_token_with_their_tenant(a: Attacker) -> None:
    own = a.own
    await a.use(own[:92] + str(a.theirs.tenant) + own[128:])


async def own_token_with_their_tenant_and_actor(a: Attacker) -> None:
    await a.use(a.own[:92] + str(a.theirs.tenant) + str(a.theirs.admin) + a.own[164:])


async def own_token_with_another_actor(a: Attacker) -> None:
    await a.use(a.own[:128] + str(a.mine.auditor) + a.own[164:])


async def own_token_with_a_longer_life(a: Attacker) -> None:
    await a.use(a.own[:72] + "9999999999" + a.own[82:])


async def own_code_over_their_payload(a: Attacker) -> None:
    await a.use(a.own[:64] + a.own[64:72] + a.token()[72:])


async def own_token_with_more_behind_it(a: Attacker) -> None:
    for more in ("|", "x", "\n", "|" + str(a.theirs.tenant), "\x01"):
        await a.use(a.own + more)


async def truncated(a: Attacker) -> None:
    for length in (*range(0, 100, 7), 128, 163, 164, len(a.own) - 1):
        await a.use(a.own[:length])
        await a.use(a.token()[:length])


async def bit_flipped(a: Attacker) -> None:
    own = a.own
    for position in range(0, len(own), 5):
        flipped = own[:position] + chr(ord(own[position]) ^ 1) + own[position + 1 :]
        await a.set_scope(flipped)
        await a.sql("select charthold.record('login', 'flipped', null, null, null)", "select * from facility")


async def replayed_from_another_backend(a: Attacker) -> None:
    # A genuine token of Hillside's admin, made for the connection that serves Hillside now.
    await a.use(a.token(a.engine.token_key, backend=a.connection.get_server_pid() + 1))


async def replayed_after_expiry(a: Attacker) -> None:
    await a.use(a.token(a.engine.token_key, expires=int(time.time()) - 1))


async def signed_with_a_retired_key(a: Attacker) -> None:
    key = TokenKey.derive(b"retired".ljust(32))
    owner = await superuser_connection()
    try:
        await owner.execute(
            "insert into charthold.token_key (id, inner_pad, outer_pad, retired_at)"
            " values ($1, $2, $3, now() - interval '1 second') on conflict do nothing",
            key.id, key.inner_pad, key.outer_pad,
        )  # fmt: skip
    finally:
        await owner.close()
    await a.use(a.token(key))


async def signed_for_a_stranger(a: Attacker) -> None:
    # Genuine, but Hillside has no such user: an actor of one tenant is nobody in another.
    await a.use(a.token(a.engine.token_key, actor=a.mine.admin))
    await a.use(a.token(a.engine.token_key, actor=uuid4()))


async def token_in_the_session(a: Attacker) -> None:
    await a.sql(f"select set_config('charthold.scope', '{a.token()}', false)")
    await a.connection.execute("commit; begin")
    await a.sql(*GOALS)


async def token_by_set_local_and_alter_role(a: Attacker) -> None:
    await a.sql(f"set local charthold.scope = '{a.token()}'", *GOALS)
    await a.sql(f"alter role app_auditor set charthold.scope = '{a.token()}'", *GOALS)
    await a.sql(f"alter database {a.engine.database} set charthold.scope = '{a.token()}'", *GOALS)


async def two_contexts_in_one_statement(a: Attacker) -> None:
    token = a.token()
    await a.sql(
        f"with s as materialized (select set_config('charthold.scope', '{token}', true)) select c.* from s, facility c",
        f"select * from facility where set_config('charthold.scope', '{token}', true) is not null",
        "select * from facility order by set_config('charthold.scope', 'x', true)",
        f"update facility set phone = set_config('charthold.scope', '{token}', true)",
    )


async def context_after_commit(a: Attacker) -> None:
    await a.connection.execute("commit")
    await a.sql(*GOALS)
    await a.connection.execute("begin")


async def context_changed_while_a_cursor_is_open(a: Attacker) -> None:
    await a.sql("declare c cursor for select * from facility", "fetch 1 from c")
    await a.set_scope(a.token())
    await a.sql("fetch all from c", "move absolute 0 in c", "fetch all from c")


async def every_setting(a: Attacker) -> None:
    """Each setting that the role may change, at its ends; then a look."""
    settings = await a.connection.fetch(
        "select name, vartype, min_val, max_val, enumvals from pg_settings where context = 'user'"
        " and name not in ('statement_timeout', 'transaction_timeout', 'lock_timeout', 'client_encoding')"
    )
    look = "select (select count(*) from client), (select count(*) from facility), (select string_agg(name, ',') from facility)"
    for setting in settings:
        values = setting["enumvals"] or {
            "bool": ["on", "off"],
            "string": ["B_TENANT", "pg_temp", ""],
        }.get(setting["vartype"], [setting["min_val"], setting["max_val"]])
        for value in values:
            await a.connection.execute("savepoint setting")
            await a.sql(f"select set_config('{setting['name']}', '{value}', true)", look)
            await a.connection.execute("rollback to setting")


async def session_settings_outlive_the_transaction(a: Attacker) -> None:
    await a.sql("set row_security = off", "set session_replication_role = replica", "set role none")
    await a.connection.execute("commit; begin")
    await a.set_scope(a.own)
    await a.sql(*(g for g in GOALS if g.startswith("select * ")), "table client", "table app_user", "reset all")


async def a_claim_for_the_index_and_the_own_token_for_the_rest(a: Attacker) -> None:
    # One policy of client finds the index by what the token claims. Here the claim changes from row to row.
    claim = a.own[:92] + str(a.theirs.tenant) + a.own[128:]
    for first, then in ((claim, a.own), (a.own, claim)):
        for table in ("client", "facility", "app_user"):
            await a.sql(
                f"with r as materialized (select g, set_config('charthold.scope', case when g = 1 then '{first}'"
                f" else '{then}' end, true) as s from generate_series(1, 4) as g)"
                f" select c.* from r, lateral (select t.* from {table} as t where r.s is not null offset 0) as c",
                f"select c.* from generate_series(1, 4) as g, lateral (select set_config('charthold.scope',"
                f" case when g = 1 then '{first}' else '{then}' end, true) offset 0) as s (s),"
                f" lateral (select t.* from {table} as t where t.tenant_id = 'B_TENANT' and s.s is not null offset 0) as c",
            )
        await a.sql(
            f"select set_config('charthold.scope', '{first}', true)",
            f"update client set status = 'on_hold' where set_config('charthold.scope', '{then}', true) is not null",
        )


async def a_context_that_changes_within_a_statement(a: Attacker) -> None:
    """Each way in which SQL can run something between two rows, two branches or two fetches."""
    claim = a.own[:92] + str(a.theirs.tenant) + a.own[128:]
    nobody = a.own[:92] + str(a.theirs.tenant) + str(a.theirs.admin) + a.own[164:]
    for first, then in ((claim, a.own), (a.own, claim), ("", a.own), (a.own, nobody), (nobody, a.own)):
        begin, change = (f"set_config('charthold.scope', '{token}', true)" for token in (first, then))
        for table in ("client", "facility", "app_user", "tenant_key", "user_action_audit_log"):
            for body in (
                f"open c; perform {change}; loop fetch c into r; exit when not found; raise notice '%', r; end loop;",
                f"open c; fetch c into r; perform {change}; loop raise notice '%', r; fetch c into r; exit when not found; end loop;",
                f"begin open c; fetch c into r; raise notice '%', r; perform {change}; raise exception 'x'; exception when others then fetch c into r; raise notice '%', r; end;",
                f"begin perform {change}; for r in select * from {table} loop raise notice '%', r; end loop; exception when others then for r in select * from {table} loop raise notice '%', r; end loop; end;",
                f"for r in select * from {table} loop raise notice '%', r; perform {change}; end loop; for r in select * from {table} loop raise notice '%', r; end loop;",
            ):
                await a.sql(
                    f"do $$ declare c scroll cursor for select * from {table}; r record; begin perform {begin}; {body} end $$"
                )
            await a.sql(
                f"select {begin}",
                f"select * from {table} union all select * from {table} where {change} is not null",
                f"select {begin}",
                f"(select * from {table} limit 1) union all (select t.* from {table} as t where {change} is not null)",
                f"select {begin}",
                f"select (select t from {table} as t where t.tenant_id = 'B_TENANT' limit 1) from (select {change} offset 0) as s",
                f"select {begin}",
                f"with a as materialized (select * from {table}), b as materialized (select {change}) select b.*, a.* from b left join a on true",
            )
        await a.sql(
            f"select {begin}",
            f"update facility set phone = 'attacked' where tenant_id = 'B_TENANT' and {change} is not null",
            f"select {begin}",
            f"update facility as f set phone = 'attacked' from (select {change} offset 0) as s where f.tenant_id = 'B_TENANT'",
            f"select {begin}",
            f"{NEW} (charthold.uuid7(), ({change} || 'B_TENANT')::text::uuid, {ROW})",
            f"select {begin}",
            f"{NEW} (charthold.uuid7(), case when {change} is null then 'A_TENANT' else 'B_TENANT' end::uuid, {ROW}) on conflict (tenant_id, id) do update set phone = {begin} returning *",
            f"select {begin}",
            f"merge into facility as f using (select {change} as s) as s on f.tenant_id = 'B_TENANT' when matched and s.s is not null then update set phone = 'attacked'",
            f"select {begin}",
            f"merge into facility as f using (select {change} as s) as s on f.tenant_id = 'B_TENANT' when matched and {begin} is not null then delete",
            f"select {begin}",
            f"merge into facility as f using (select {change} as s) as s on f.id = 'B_FACILITY' when not matched then insert (id, tenant_id, name, kind, address, time_zone, settings, status) values (charthold.uuid7(), 'B_TENANT', {ROW})",
            f"select {begin}",
            f"delete from facility where tenant_id = 'B_TENANT' and {change} is not null returning *",
            f"with d as (delete from facility where tenant_id = 'B_TENANT' returning *), s as materialized (select {change}) select * from s, d",
        )


async def a_plan_kept_across_roles_and_contexts(a: Attacker) -> None:
    claim = a.own[:92] + str(a.theirs.tenant) + a.own[128:]
    for mode in ("force_generic_plan", "force_custom_plan", "auto"):
        await a.sql(
            f"set local plan_cache_mode = {mode}", "prepare kept(uuid) as select * from facility where tenant_id = $1"
        )
        for token in (a.own, claim, "", a.own):
            for role in ("none", "app_runtime"):
                await a.set_scope(token)
                await a.sql(f"set local role {role}", "execute kept('B_TENANT')", "execute kept('A_TENANT')")
                await a.sql("set local row_security = off", "execute kept('B_TENANT')", "set local row_security = on")
        await a.sql("deallocate kept", "set local role app_runtime")


async def a_table_of_ones_own_that_refers_to_theirs(a: Attacker) -> None:
    await a.sql(
        "create temp table mine (t uuid, id uuid)",
        "insert into mine values ('B_TENANT', 'B_CLIENT'), ('B_TENANT', 'B_FACILITY')",
        "alter table mine add foreign key (t, id) references client (tenant_id, id)",
        "create temp table keyed (t uuid, id uuid, foreign key (t, id) references public.client (tenant_id, id) on delete cascade on update cascade)",
        "grant references on client to app_runtime",
        "insert into keyed select t, id from mine",
        "select m.*, c.* from mine as m left join client as c on c.tenant_id = m.t and c.id = m.id",
    )


CONTEXTS: dict[str, Attempt] = {
    f.__name__.replace("_", " "): f
    for f in (
        forged, forged_with_known_key_id, forged_with_empty_key, unsigned, unsigned_in_plain_settings,
        own_token_with_their_tenant, own_token_with_their_tenant_and_actor, own_token_with_another_actor,
        own_token_with_a_longer_life, own_code_over_their_payload, own_token_with_more_behind_it, truncated, bit_flipped,
        replayed_from_another_backend, replayed_after_expiry, signed_with_a_retired_key, signed_for_a_stranger,
        token_in_the_session, token_by_set_local_and_alter_role, two_contexts_in_one_statement, context_after_commit,
        context_changed_while_a_cursor_is_open, every_setting, session_settings_outlive_the_transaction,
        a_claim_for_the_index_and_the_own_token_for_the_rest, a_context_that_changes_within_a_statement,
        a_plan_kept_across_roles_and_contexts, a_table_of_ones_own_that_refers_to_theirs,
    )
}  # fmt: skip

# -- other roles -------------------------------------------------------------------------------------------------------

LOOK = ("select * from client", "select * from app_user", "select * from tenant", "select * from charthold.token_key")

ROLES: dict[str, Attempt] = {
    "reset role": ("reset role", *LOOK),
    "set role none": ("set role none", *LOOK),
    "set role to the owner": ("set role charthold_owner", "set role postgres", "set role app_auditor", *LOOK),
    "set_config of the role": ("select set_config('role', 'charthold_owner', true)", "select set_config('role', 'none', true)", *LOOK),
    "set session authorization": ("set session authorization charthold_owner", "set session authorization default", *LOOK),
    "predefined roles": ("set role pg_read_all_data", "set role pg_write_all_data", "set role pg_maintain", *LOOK),
    "grant oneself the owner": ("grant charthold_owner to app_runtime", "grant charthold_owner to charthold_app", "set role charthold_owner", *LOOK),
    "create a role": ("create role attacker superuser", "create role attacker", "create user attacker bypassrls"),
    "alter one's own attributes": ("alter role app_runtime bypassrls", "alter role charthold_app superuser", "set role none", "alter role charthold_app createrole", "alter role charthold_app bypassrls"),
    "grant tables on": ("grant select on client to public", "grant all on all tables in schema public to app_auditor"),
    "grant functions on": ("grant execute on function charthold.sign(uuid, uuid, text) to app_runtime", "grant execute on all functions in schema charthold to public"),
    "default privileges": "alter default privileges for role charthold_owner grant all on tables to public",
    "become the owner of things": ("alter table client owner to app_runtime", "reassign owned by charthold_owner to app_runtime", "alter function charthold.scope() owner to app_runtime"),
    "row_security off": ("set local row_security = off", *LOOK),
    "session_replication_role": ("set local session_replication_role = replica", "update client set tenant_id = 'B_TENANT'"),
}  # fmt: skip

# -- reading -----------------------------------------------------------------------------------------------------------


async def copy_out(a: Attacker) -> None:
    for query in ("select * from client", "table facility", "select * from app_user where tenant_id = 'B_TENANT'"):
        out = io.BytesIO()
        with contextlib.suppress(asyncpg.PostgresError):
            for name, value in a.names.items():
                query = query.replace(name, value)
            await a.connection.copy_from_query(query, output=out)
        a.seen.append(out.getvalue().decode(errors="replace"))
    for table in TABLES:
        out = io.BytesIO()
        with contextlib.suppress(asyncpg.PostgresError):
            await a.connection.copy_from_table(table, output=out)
        a.seen.append(out.getvalue().decode(errors="replace"))


async def prepared_across_transactions(a: Attacker) -> None:
    await a.sql("prepare look as select * from facility", "execute look")
    await a.connection.execute("commit; begin")
    await a.sql("execute look", "select * from pg_prepared_statements")
    await a.set_scope(a.token())
    await a.sql("execute look")


async def held_cursor(a: Attacker) -> None:
    await a.sql(
        "declare held cursor with hold for select * from facility", "declare held2 cursor with hold for table client"
    )
    await a.connection.execute("commit; begin")
    await a.sql("fetch all from held", "fetch all from held2", "select * from pg_cursors")
    await a.set_scope(a.token())
    await a.sql("fetch backward all from held", "fetch all from held2")


async def pages_by_ctid(a: Attacker) -> None:
    for page in range(12):
        await a.sql(
            f"select ctid, * from facility where ctid = any (array(select format('(%s,%s)', {page}, i)::tid from generate_series(1, 60) i))"
        )
    await a.sql(
        "select * from client where ctid >= '(0,0)'", "select xmin, xmax, cmin, * from app_user where ctid < '(9,0)'"
    )


async def listen_to_others(a: Attacker) -> None:
    heard: list[Any] = []
    for channel in ("charthold", "client", "audit", "B_TENANT"):
        await a.connection.add_listener(channel, lambda *event: heard.append(event))
    await a.connection.execute("commit; begin")
    a.seen += heard
    await a.sql("select pg_listening_channels()", "notify charthold, 'x'", "unlisten *")


async def look_at_other_sessions(a: Attacker) -> None:
    other = await a.engine.connect(owner=False)
    try:
        async with other.transaction():
            token = a.token(a.engine.token_key, backend=other.get_server_pid())
            await other.fetchval("select set_config('charthold.scope', $1, true)", token)
            rows = await other.fetch("select name from facility where name = $1", a.names["B_SECRET_NAME"])
            assert rows
            for role in ("app_runtime", "none"):
                await a.sql(
                    f"set local role {role}",
                    "select * from pg_stat_activity",
                    "select * from pg_stat_get_activity(null)",
                    "select * from pg_prepared_statements",
                    "select * from pg_cursors",
                    "select * from pg_locks",
                    "select * from pg_stat_ssl",
                    "select * from pg_get_process_memory_contexts(pg_backend_pid(), false, 1)",
                    "select pg_log_backend_memory_contexts(pid) from pg_stat_activity",
                )
    finally:
        await other.close()


READING: dict[str, Attempt] = {
    "the rows themselves": ("select * from client", "select * from client where tenant_id = 'B_TENANT'", "select * from client where id = 'B_CLIENT'"),
    "or true": "select * from client where tenant_id = 'A_TENANT' or true or tenant_id = 'B_TENANT'",
    "union": "select id::text, first_name::text from client union all select slug, name from tenant union all select email, full_name from app_user",
    "joins": "select * from facility f full join app_user u on true full join tenant t on true where f.tenant_id = 'B_TENANT' or u.tenant_id = 'B_TENANT'",
    "lateral": "select x.* from tenant t, lateral (select * from facility f where f.tenant_id <> t.id) x",
    "counts": ("select count(*) from client", "select count(*) filter (where tenant_id = 'B_TENANT') from client", "select status, count(*) from client group by cube (status)"),
    "window functions": "select *, count(*) over () from facility",
    "only": "select * from only user_action_audit_log",
    "table command": ("table client", "table tenant", "table user_action_audit_log", "table tenant_key"),
    "tablesample": ("select * from client tablesample system (100)", "select count(*) from app_user tablesample bernoulli (100)"),
    "ctid": pages_by_ctid,
    "whole-row and json": ("select row_to_json(f) from facility f", "select jsonb_agg(t) from tenant t", "select f from facility f"),
    "xml": ("select query_to_xml('select * from facility', true, false, '')", "select table_to_xml('app_user', true, false, '')", "select schema_to_xml('public', true, false, '')", "select database_to_xml(true, false, '')", "select cursor_to_xml('c', 10, true, false, '')"),
    "text search statistics": "select * from ts_stat('select to_tsvector(name) from facility')",
    "sub-select in insert": "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) select id, 'A_TENANT', name || 'x', kind, address, time_zone, settings, status from facility where tenant_id = 'B_TENANT'",
    "row locks": ("select * from client where id = 'B_CLIENT' for update", "select * from facility for no key update", "select * from app_user for share skip locked", "select 1 from tenant where id = 'B_TENANT' for key share"),
    "copy to the client": copy_out,
    "copy to a file": ("copy client to '/tmp/attack'", "copy (select 1) to program 'id'", "copy facility from '/etc/passwd'", "copy facility from program 'id'"),
    "prepared statements across transactions": prepared_across_transactions,
    "cursor with hold": held_cursor,
    "cursor past commit": ("declare c cursor for select * from client", "commit", "fetch all from c"),
    "recursive cte": "with recursive r as (select id, tenant_id from client union select c.id, c.tenant_id from client c join r on true) select * from r",
    "materialized cte": "with x as materialized (select * from app_user) select * from x where tenant_id = 'B_TENANT'",
    "leaky function in where": ("select * from facility where name ~ pg_sleep(0)::text or true", "select * from app_user where length(email) / (length(email) - length(email)) > 0 and tenant_id = 'B_TENANT'"),
    "division in a case": ("select 1 / (case when tenant_id = 'B_TENANT' then 0 else 1 end) from client", "select * from facility where 1 / (case when name like 'Wing%' then 0 else 1 end) = 1"),
    "cast errors": ("select * from app_user where email::int > 0 and tenant_id = 'B_TENANT'", "select * from facility where name::int = 1 and tenant_id <> 'A_TENANT'", "select (name || email)::uuid from facility join app_user on app_user.tenant_id = 'B_TENANT'"),
    "errors in order and group": ("select 1 from facility where tenant_id = 'B_TENANT' order by name::int", "select 1 from facility where tenant_id = 'B_TENANT' group by name::date", "select sum(name::numeric) filter (where tenant_id <> 'A_TENANT') from facility"),
    "regular expressions that fail": "select * from facility where tenant_id = 'B_TENANT' and 'x' ~ (name || '(')",
    "pg_stats": ("select s::text from pg_stats s where schemaname = 'public'", "select s::text from pg_stats_ext s", "select s::text from pg_stats_ext_exprs s", "select * from pg_statistic", "select * from pg_statistic_ext_data"),
    "estimates of a tenant": ("explain select from client where tenant_id = 'B_TENANT'", "explain select from facility where tenant_id = 'B_TENANT'", "explain select from app_user where tenant_id = any ('{B_TENANT}')", "explain select from user_action_audit_log where tenant_id = 'B_TENANT'", "explain (format json) select from facility where tenant_id in ('B_TENANT', 'A_TENANT')"),
    "explain shows no value": ("explain (verbose, costs) select * from facility where name > 'A'", "explain (analyze, verbose, buffers) select * from app_user where email > 'a'", "explain (generic_plan) select * from client where id = $1"),
    "planner and parser output": ("set local debug_print_plan = on", "set local client_min_messages = debug5", "select * from facility", "select charthold.scope()"),
    "do block": "do $$ declare r record; begin for r in select * from facility loop raise notice '%', r; end loop; execute 'set local role none'; for r in execute 'select * from app_user' loop raise notice '%', r; end loop; end $$",
    "do block with every handler": "do $$ declare r record; begin begin perform charthold.sign('B_TENANT', 'B_USER', 'x'); exception when others then raise notice '% % %', sqlerrm, sqlstate, (select count(*) from client); end; end $$",
    "language other than plpgsql": ("do language plpython3u $$ import os $$", "do language plperlu $$ 1 $$", "create language plpython3u"),
    "other sessions": look_at_other_sessions,
    "listen and notify": listen_to_others,
    "large objects": ("select * from pg_largeobject", "select lo_import('/etc/passwd')", "select lo_export(1, '/tmp/x')", "select * from pg_largeobject_metadata"),
    "files of the server": ("select pg_read_file('PG_VERSION')", "select pg_read_binary_file('base/1/1259')", "select * from pg_ls_dir('.')", "select * from pg_ls_logdir()", "select pg_stat_file('PG_VERSION')", "select pg_current_logfile()", "select * from pg_hba_file_rules"),
    "dblink": ("create extension dblink", "select * from dblink('dbname=postgres', 'select 1') as t(x int)"),
    "postgres_fdw": ("create extension postgres_fdw", "create server s foreign data wrapper postgres_fdw", "create foreign table t (x int) server s"),
    "trusted extensions": ("create extension hstore", "create extension citext", "create extension pg_trgm", "create extension pageinspect", "create extension pg_buffercache"),
    "catalogs": ("select * from pg_authid", "select * from pg_shadow", "select * from pg_user_mapping", "select * from pg_largeobject", "select * from pg_subscription", "select * from pg_proc where pronamespace = 'charthold'::regnamespace"),
    "keys in function sources": ("select pg_get_functiondef(oid) from pg_proc where pronamespace = 'charthold'::regnamespace", "select prosrc from pg_proc where prosrc ~ 'pad'", "select pg_get_expr(adbin, adrelid) from pg_attrdef"),
    "the machinery's tables": ("select * from charthold.token_key", "select * from charthold.principal", "select * from charthold.tenant_directory", "select outer_pad from charthold.token_key for share", "copy charthold.token_key to stdout"),
    "log partitions directly": ("select * from user_action_audit_log_default", "do $$ declare p text; begin for p in select inhrelid::regclass from pg_inherits loop begin execute format('select * from %s', p); exception when others then raise notice '% %', p, sqlerrm; end; end loop; end $$"),
    "privilege questions": ("select has_table_privilege('charthold.token_key', 'select')", "select row_security_active('client')", "select * from information_schema.columns", "select * from information_schema.role_table_grants"),
    "snapshots": ("select pg_export_snapshot()", "set transaction isolation level serializable", "select * from facility"),
    "replication": ("select * from pg_create_logical_replication_slot('x', 'test_decoding')", "select pg_create_physical_replication_slot('x')", "select * from pg_logical_slot_peek_changes('x', null, null)", "create publication p for all tables", "create subscription s connection 'dbname=x' publication p"),
    "pg_dump's way": ("set local row_security = off", "lock table client in access share mode", "declare c cursor for select * from only public.client", "fetch all from c"),
    "old and new in returning": ("update facility set phone = phone where tenant_id = 'B_TENANT' returning *", "delete from facility where tenant_id = 'B_TENANT' returning *"),
    "old and new by name": ("update facility set phone = phone where tenant_id = 'B_TENANT' returning old.*, new.*", "update facility set phone = phone returning with (old as o, new as n) o.*, n.*", "delete from facility where tenant_id = 'B_TENANT' returning old.*", "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) values ('B_FACILITY', 'B_TENANT', 'x', 'clinic', '{}', 'UTC', '{}', 'active') on conflict (tenant_id, id) do update set phone = 'attacked' returning old.*, new.*"),
    "merge that returns": ("merge into facility as f using (select 1) as s on f.tenant_id = 'B_TENANT' when matched then update set phone = phone returning merge_action(), old.*, new.*", "merge into client as c using facility as f on c.tenant_id <> 'A_TENANT' when matched then delete returning old.*", "merge into client as c using (select 1) as s on false when not matched by source then update set status = c.status returning old.*", "merge into client as c using (select 1) as s on false when not matched by source and c.tenant_id <> 'A_TENANT' then delete"),
    "parallel": ("set local parallel_setup_cost = 0", "set local parallel_tuple_cost = 0", "set local min_parallel_table_scan_size = 0", "set local max_parallel_workers_per_gather = 4", "select * from facility", "select count(*) from client", "select * from app_user where tenant_id = 'B_TENANT'"),
    "merge as a reader": "merge into facility f using (select 1) s on f.tenant_id = 'B_TENANT' when matched then do nothing",
}  # fmt: skip

# -- writing -----------------------------------------------------------------------------------------------------------

NEW = "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) values"
ROW = "'Planted', 'clinic', '{}', 'UTC', '{}', 'active'"


async def copy_in(a: Attacker) -> None:
    row = f"{uuid4()}\t{a.theirs.tenant}\tPlanted\n".encode()
    for table in ("facility", "user_action_audit_log", "tenant"):
        await a.connection.execute("savepoint before")
        with contextlib.suppress(asyncpg.PostgresError):
            await a.connection.copy_to_table(table, source=io.BytesIO(row), columns=["id", "tenant_id", "name"])
        await a.connection.execute("rollback to before")


async def provision_over_a_tenant(a: Attacker) -> None:
    call = (
        f"select charthold.provision_tenant('{a.own}', "
        "'{tenant}', '{slug}', 'x', 'UTC', 6, false, '{admin}', 'a@b.example', 'x',"
        " charthold.uuid7(), 'x', 'x')"
    )
    for scoped in (True, False):
        if not scoped:
            await a.set_scope("")
        for tenant in ("B_TENANT", "A_TENANT"):
            await a.sql(
                call.format(tenant=tenant, slug="fresh", admin=uuid4()),
                call.format(tenant=tenant, slug="hillside", admin="B_USER"),
                *GOALS,
            )
        await a.sql(call.format(tenant=uuid4(), slug="hillside", admin="B_USER"), *GOALS)


async def a_tenant_of_ones_own(a: Attacker) -> None:
    """Nobody fills the database with tenants: each wants a token for it, which only the application signs."""
    made = "select charthold.provision_tenant('{token}', '{tenant}', '{slug}', 'x', 'UTC', 6, false, '{admin}', 'a@b.example', 'x', charthold.uuid7(), 'x', 'x')"
    tenant, admin, own = uuid4(), uuid4(), a.own
    await a.set_scope("")
    swapped = own[:92] + str(tenant) + str(admin) + own[164:]
    for token in ("", "KEY_ID", own, swapped, a.token(tenant=tenant, actor=admin)):
        a.seen.clear()
        await a.sql(made.format(token=token, tenant=tenant, admin=admin, slug="of-my-own"))
        assert "CH007" in str(a.seen) or "CH002" in str(a.seen)
    await a.sql(made.format(token=own, tenant=a.mine.tenant, admin=a.mine.admin, slug="of-my-own"))
    assert not [row for row in a.seen if row == ("",)]


async def context_left_by_a_definer(a: Attacker) -> None:
    # A function that signs a context for itself must not leave it, whether it ends well or not.
    tenant, admin = uuid4(), a.theirs.admin
    signed = a.token(a.engine.token_key, tenant=tenant, actor=admin)  # as only the application can
    call = (
        f"perform charthold.provision_tenant('{signed}', '{tenant}', '%s', 'x', 'UTC', %s, false, '{admin}', 'a@b.example', 'x',"
        " charthold.uuid7(), 'x', 'x')"
    )
    await a.set_scope("")
    for slug, years in (("left-behind", 2), ("hillside", 6), ("Not A Slug", 6)):
        await a.sql(
            f"do $$ begin begin {call % (slug, years)}; exception when others then null; end;"
            " raise notice 'left: %', current_setting('charthold.scope', true); end $$",
            "select current_setting('charthold.scope', true)",
            *GOALS,
        )
    assert not [seen for seen in a.seen if str(tenant) in str(seen)]


WRITING: dict[str, Attempt] = {
    "insert for another tenant": (f"{NEW} (charthold.uuid7(), 'B_TENANT', {ROW})", f"{NEW} ('B_FACILITY', 'B_TENANT', {ROW})"),
    "insert .. select": f"insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status) select charthold.uuid7(), 'B_TENANT', {ROW}",
    "update": ("update client set status = 'deceased' where tenant_id = 'B_TENANT'", "update client set status = 'deceased' where id = 'B_CLIENT'", "update facility set phone = 'attacked'"),
    "update from": "update facility f set phone = 'attacked' from app_user u where f.tenant_id <> 'A_TENANT' or u.tenant_id <> 'A_TENANT'",
    "delete": ("delete from client where tenant_id = 'B_TENANT'", "delete from app_user where id = 'B_USER'", "delete from facility using client where facility.tenant_id = 'B_TENANT'"),
    "move a row to another tenant": ("update client set tenant_id = 'B_TENANT'", "update facility set tenant_id = 'B_TENANT', id = 'B_FACILITY'", "update app_user set tenant_id = 'B_TENANT'"),
    "move another's row here": "update facility set tenant_id = 'A_TENANT' where id = 'B_FACILITY'",
    "take another's id": ("update facility set id = 'B_FACILITY'", "update client set id = 'B_CLIENT'"),
    "upsert": (f"{NEW} ('B_FACILITY', 'B_TENANT', {ROW}) on conflict (tenant_id, id) do update set name = 'attacked'", f"{NEW} ('B_FACILITY', 'B_TENANT', {ROW}) on conflict do nothing returning *"),
    "upsert that moves": f"{NEW} ('A_FACILITY', 'A_TENANT', {ROW}) on conflict (tenant_id, id) do update set tenant_id = 'B_TENANT'",
    "merge": ("merge into facility f using (select 'B_FACILITY'::uuid as id) s on f.id = s.id when matched then update set phone = 'attacked' when not matched then insert (id, tenant_id, name, kind, address, time_zone, settings, status) values (s.id, 'B_TENANT', 'Planted', 'clinic', '{}', 'UTC', '{}', 'active')", "merge into client c using tenant t on true when matched and c.tenant_id = 'B_TENANT' then delete"),
    "writable cte": ("with d as (delete from client where tenant_id = 'B_TENANT' returning *), u as (update facility set phone = 'attacked' where tenant_id = 'B_TENANT' returning *) select * from d, u", f"with i as ({NEW} (charthold.uuid7(), 'B_TENANT', {ROW}) returning *) select * from i"),
    "reference another's row": ("update client set facility_id = 'B_FACILITY'", "update client set user_id = 'B_USER'"),
    "tenant row": ("update tenant set status = 'closed' where id = 'B_TENANT'", "update tenant set id = 'B_TENANT'", "insert into tenant (id, slug, name, status, settings, branding, time_zone, retention_years) values ('B_TENANT', 'x', 'x', 'active', '{}', '{}', 'UTC', 6)", "delete from tenant"),
    "keys of another": ("update tenant_key set wrapped = null, status = 'shredded' where tenant_id = 'B_TENANT'", "insert into tenant_key (id, tenant_id, version, wrapped, kek, status) values (charthold.uuid7(), 'B_TENANT', 9, 'x', '', 'next')"),
    "seals of another": "insert into audit_seal (id, tenant_id, tree_size, root_hash, sealed_at, key_id, signature) values (charthold.uuid7(), 'B_TENANT', 1, sha256('x'), now(), 'x', sha512('x'))",
    "the log": ("insert into user_action_audit_log (tenant_id, user_id, action_type, reason) values ('B_TENANT', 'B_USER', 'login', 'forged')", "insert into user_action_audit_log (tenant_id, user_id, action_type, reason) values ('A_TENANT', 'A_AUDITOR', 'login', 'forged')", "update user_action_audit_log set user_id = 'A_AUDITOR'", "delete from user_action_audit_log", "truncate user_action_audit_log"),
    "log partitions": ("insert into user_action_audit_log_default (tenant_id, user_id, action_type, reason) values ('B_TENANT', 'B_USER', 'login', 'x')", "delete from user_action_audit_log_default", "drop table user_action_audit_log_default", "alter table user_action_audit_log detach partition user_action_audit_log_default"),
    "the machinery's tables, written": ("insert into charthold.token_key (id, inner_pad, outer_pad) values ('attacker', 'x', 'x')", "update charthold.token_key set retired_at = null", "delete from charthold.token_key", "insert into charthold.principal (tenant_id, user_id, role) values ('B_TENANT', 'A_ACTOR', 'admin')", "update charthold.tenant_directory set status = 'closed' where tenant_id = 'B_TENANT'"),
    "record under another name": ("select charthold.record('login', 'app_user', 'B_USER', '{\"user_id\": \"B_USER\"}', null)", "select charthold.record('update', 'client', 'B_CLIENT', null, null)", "select charthold.record('delete', 'client', 'B_CLIENT', null, null)", "select charthold.record('insert', null, null, null, null)", "select charthold.record('read', 'client', 'B_CLIENT', null, null)"),
    "record reads of another's rows": ("select charthold.record_read('client', array['B_CLIENT']::uuid[], array['ssn'])", "select charthold.record_read('client', array(select id from client where tenant_id = 'B_TENANT'), '{}')"),
    "sign": ("select charthold.sign('B_TENANT', 'B_USER', 'x')", "select charthold.sign('A_TENANT', 'A_AUDITOR', 'x')"),
    "set_tenant_status": ("select charthold.set_tenant_status('B_TENANT', 'B_USER', 'closed', 'x')", "select charthold.set_tenant_status('A_TENANT', 'A_ACTOR', 'closed', 'x')"),
    "find_principal": ("select charthold.find_principal('B_TENANT', 'admin')", "select charthold.find_principal('A_TENANT', 'admin')"),
    "ensure_partitions": "select charthold.ensure_partitions(40)",
    "trigger functions by hand": ("select charthold.follow_user()", "select charthold.follow_tenant()", "select charthold.capture_client()", "call charthold.capture_client()"),
    "provision over a tenant": provision_over_a_tenant,
    "a tenant of one's own": a_tenant_of_ones_own,
    "context left by a definer function": context_left_by_a_definer,
    "copy in": copy_in,
    "truncate": ("truncate client", "truncate tenant cascade", "truncate user_action_audit_log_default"),
    "two-phase commit": ("update facility set phone = 'attacked' where tenant_id = 'B_TENANT'", "prepare transaction 'x'", "commit prepared 'x'"),
    "set constraints": ("set constraints all deferred", "update client set facility_id = 'B_FACILITY'", "set constraints all immediate"),
}  # fmt: skip

# -- changing the schema -----------------------------------------------------------------------------------------------

EVIL = "returns text language sql as $$ select '' $$"

SCHEMA: dict[str, Attempt] = {
    "alter table": ("alter table client disable row level security", "alter table client no force row level security", "alter table client add column x int", "alter table client alter column notes type bytea"),
    "policies": ("drop policy tenant_isolation on client", "create policy everybody on client using (true)", "alter policy tenant_isolation on client using (true)"),
    "triggers": ("alter table client disable trigger all", "drop trigger audit_update on client", "create trigger t after insert on client execute function charthold.touch()"),
    "rules": "create rule r as on select to client do instead select * from tenant",
    "replace our functions": (f"create or replace function charthold.scope() {EVIL}", f"create function charthold.evil() {EVIL}", "drop function charthold.scope()", "alter function charthold.scope() security invoker"),
    "create in public": ("create table public.client2 (x int)", f"create function public.now() {EVIL}", "create view public.v as select * from client", "create type public.t as (x int)", "create domain public.d as int", "create sequence public.s", "create operator public.= (leftarg = uuid, rightarg = uuid, function = uuid_eq)", "create aggregate public.count(*) (sfunc = int8inc, stype = int8)", 'create collation public.c from "C"', "create statistics public.s on tenant_id, status from client"),
    "create a schema": ("create schema attacker", "create schema app_runtime", "create schema authorization app_runtime"),
    "create as": ("create table stolen as select * from client", "select * into stolen from client", "create materialized view v as select * from client"),
    "casts and operators with side effects": ("create cast (uuid as text) with inout as implicit", "create cast (text as uuid) with function charthold.tenant_id() as implicit", "create operator class public.o default for type uuid using btree as function 1 uuid_cmp(uuid, uuid)"),
    "temporary table shadows a name": ("create temp table client (id uuid, tenant_id uuid)", "create temp table tenant_directory (tenant_id uuid, slug text, status text)", "create temp table principal (tenant_id uuid, user_id uuid, role text, facility_scope uuid[])", "create temp table token_key as select 'x' as id", "insert into pg_temp.principal values ('B_TENANT', 'A_ACTOR', 'admin', null)", "set local search_path = pg_temp, charthold, public, pg_catalog", *GOALS),
    "temporary function shadows a name": (f"create function pg_temp.scope() {EVIL}", "create function pg_temp.tenant_id() returns uuid language sql as $$ select 'B_TENANT'::uuid $$", "create function pg_temp.sha256(bytea) returns bytea language sql as $$ select 'x'::bytea $$", "create function pg_temp.current_setting(text, boolean) returns text language sql as $$ select 'x' $$", "set local search_path = pg_temp, charthold, public, pg_catalog", *GOALS, "select charthold.tenant_id()"),
    "temporary operator": ("create function pg_temp.eq(uuid, uuid) returns boolean language plpgsql as $$ begin raise notice '% %', $1, $2; return true; end $$", "create operator pg_temp.= (leftarg = uuid, rightarg = uuid, function = pg_temp.eq)", "set local search_path = pg_temp, public, pg_catalog", "select * from facility where id = tenant_id", "select * from facility where tenant_id operator(pg_temp.=) 'B_TENANT'::uuid"),
    "temporary leaky function": ("create function pg_temp.spy(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise notice 'spied %', $1; return true; end $$", "select * from facility where pg_temp.spy(name)", "select * from app_user where pg_temp.spy(email) and tenant_id = 'B_TENANT'", "create function pg_temp.spy2(text) returns boolean language sql leakproof as $$ select true $$", "update facility set phone = phone where pg_temp.spy(name)", "delete from facility where pg_temp.spy(name) and false"),
    "temporary view": ("create temp view v as select * from facility", "create temp view v2 with (security_invoker = false, security_barrier = false) as select * from app_user", "select * from v", "select * from v2"),
    "temporary definer function": ("create function pg_temp.f() returns setof facility language sql security definer as $$ select * from public.facility $$", "select * from pg_temp.f()", "create function pg_temp.g() returns setof facility language sql security definer set row_security = off as $$ select * from public.facility $$", "select * from pg_temp.g()"),
    "temporary trigger and rule": ("create temp table t (x text)", "create function pg_temp.tr() returns trigger language plpgsql security definer as $$ begin perform charthold.sign('B_TENANT', 'B_USER', 'x'); return new; end $$", "create trigger tr before insert on t for each row execute function pg_temp.tr()", "insert into t values ('x')"),
    "temporary child of a table": ("create temp table kid () inherits (client)", "create temp table part partition of user_action_audit_log for values from ('1999-01-01') to ('1999-02-01')", "alter table user_action_audit_log attach partition t default"),
    "temporary foreign key": ("create temp table fk (t uuid, id uuid, foreign key (t, id) references client (tenant_id, id))", "insert into fk values ('B_TENANT', 'B_CLIENT')"),
    "search_path": ("set search_path = pg_temp, charthold, public", "select charthold.scope()", "set local search_path = ''", "select * from public.facility", "select set_config('search_path', 'attacker, public', false)", "select * from public.client"),
    "comments and labels": ("comment on table client is 'attacked'", "comment on role app_runtime is 'x'", "comment on database postgres is 'x'", "security label on table client is 'x'", "comment on function charthold.scope() is 'x'"),
    "event trigger": "create event trigger e on ddl_command_start execute function charthold.touch()",
    "drop": ("drop table client", "drop schema charthold cascade", "drop schema public cascade", "drop database postgres", "drop role app_auditor", "drop owned by charthold_owner"),
    "indexes": ("create index on client (tenant_id)", "drop index client_pkey", "reindex table client", "cluster client using client_pkey", "vacuum client", "analyze client"),
    "server": ("alter system set row_security = off", "select pg_reload_conf()", "select pg_terminate_backend(pid) from pg_stat_activity", "checkpoint", "load 'auto_explain'", "select pg_switch_wal()", "select pg_promote()"),
    "database": ("alter database current set row_security = off", "create database attacker", "create tablespace t location '/tmp'", "alter database template1 is_template false"),
    "sequences": ("select nextval('client_id_seq')", "create temp sequence s", "select * from pg_sequences", "select lastval()"),
    "c functions": ("create function pg_temp.system(cstring) returns int as '/lib/x86_64-linux-gnu/libc.so.6', 'system' language c", "create function pg_temp.x() returns int language internal as 'be_lo_import'"),
}  # fmt: skip

ATTEMPTS: dict[str, Attempt] = CONTEXTS | ROLES | READING | WRITING | SCHEMA


# -- the judge ---------------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """Knows all of Hillside."""

    owner: asyncpg.Connection
    mine: Clinic
    theirs: Clinic
    secrets: tuple[str, ...]
    numbers: dict[str, int]

    async def fingerprint(self) -> dict[str, Any]:
        """Hillside's rows, and everything in the catalog that protects them."""
        rows = {
            table: await self.owner.fetchval(
                f"select sum(hashtextextended(t::text, 0)) from {table} as t where {column} = $1", self.theirs.tenant
            )
            for table, column in (
                *((table, "tenant_id") for table in TABLES),
                ("tenant", "id"),
                ("charthold.tenant_directory", "tenant_id"),
                ("charthold.principal", "tenant_id"),
            )
        }
        catalog = {
            source: await self.owner.fetchval(f"select md5(string_agg(x, ';' order by x)) from ({query}) as t(x)")
            for source, query in CATALOG.items()
        }
        return rows | catalog

    async def actors(self) -> set[UUID]:
        """Who stands in the log of Lakeside's attacks."""
        found = await self.owner.fetch(
            "select distinct user_id from user_action_audit_log where tenant_id = $1 and reason in ('attack', 'forged')",
            self.mine.tenant,
        )
        return {row["user_id"] for row in found}

    def shown(self, seen: list[Any]) -> list[str]:
        """What of Hillside is in what was shown."""
        text = repr(seen)
        found = [secret for secret in self.secrets if secret in text]
        for name, n in self.numbers.items():
            estimated = re.search(rf"rows(=| |\": ){n}(?![\w.])", text, re.IGNORECASE)
            if estimated or any(n in row for row in seen if isinstance(row, tuple)):
                found.append(f"{n} rows of {name}")
        return found


# relfrozenxid, reltuples and their like move by themselves.
CATALOG = {
    "relations": "select concat_ws(' ', oid, relname, relnamespace, relowner, relacl, relrowsecurity, relforcerowsecurity, relhastriggers, relhasrules, reloptions) from pg_class where relnamespace in ('public'::regnamespace, 'charthold'::regnamespace)",
    "columns": "select concat_ws(' ', attrelid, attname, atttypid, attnotnull, attacl) from pg_attribute where attrelid in (select oid from pg_class where relnamespace in ('public'::regnamespace, 'charthold'::regnamespace))",
    "functions": "select concat_ws(' ', oid, proname, pronamespace, proowner, prosecdef, proconfig, proacl, md5(prosrc)) from pg_proc where pronamespace not in (select oid from pg_namespace where nspname ~ '^pg_temp')",
    "policies": "select concat_ws(' ', polrelid, polname, polcmd, polpermissive, polroles, polqual, polwithcheck) from pg_policy",
    "triggers": "select concat_ws(' ', tgrelid, tgname, tgenabled, tgfoid) from pg_trigger",
    "schemas": "select concat_ws(' ', nspname, nspowner, nspacl) from pg_namespace where nspname !~ '^pg_(toast_)?temp'",
    "roles": "select concat_ws(' ', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolbypassrls, rolpassword) from pg_authid",
    "members": "select concat_ws(' ', roleid, member, admin_option) from pg_auth_members",
    "settings": "select concat_ws(' ', setdatabase, setrole, setconfig) from pg_db_role_setting",
    "databases": "select concat_ws(' ', datname, datacl, datistemplate) from pg_database where datname !~ '^charthold_t'",
    "machinery": "select concat_ws(' ', id, retired_at is null) from charthold.token_key where id <> '" + TokenKey.derive(b"retired".ljust(32)).id + "'",
    "others": "select (select count(*) from pg_extension) || ' ' || (select count(*) from pg_event_trigger) || ' ' || (select count(*) from pg_largeobject_metadata) || ' ' || (select count(*) from pg_publication) || ' ' || (select count(*) from pg_cast) || ' ' || (select count(*) from pg_default_acl) || ' ' || (select count(*) from pg_replication_slots) || ' ' || (select count(*) from pg_description where objoid >= 16384) || ' ' || (select count(*) from pg_prepared_xacts)",
}  # fmt: skip


@pytest.fixture(scope="module")
async def populated(lakeside: Clinic, hillside: Clinic) -> tuple[Clinic, Clinic, str]:
    """Both tenants with rows; Hillside's hold a secret that nothing else holds, in numbers that nothing else has."""
    secret = "s" + secrets.token_hex(8)
    for clinic, word, many in ((lakeside, "Ours", 1), (hillside, secret, 53)):
        async with clinic.as_admin(word):
            await Facility.insert(*[Facility(name=f"Wing {word} {n}") for n in range(many * 2 + 1)])
            people = [
                User(email=f"{n}.{word}@mail.example".lower(), full_name=f"{word} {n}", role="billing", status="active")
                for n in range(many * 3 + 2)
            ]
            await User.insert(*people)
            await Client.insert(
                *[
                    Client(
                        facility_id=clinic.facility, first_name=word, last_name=word, date_of_birth=made,
                        notes=word, mrn=f"{word}-{n}",
                    )
                    for n in range(many * 4 + 1)
                    for made in [__import__("datetime").date(1990, 1, 1)]
                ]
            )  # fmt: skip
            await Disclosure.insert(
                *[
                    Disclosure(
                        client_id=clinic.client, disclosed_on=date(2020, 2, 2), recipient=word, description=word,
                        purpose=word, basis="other",
                    )
                    for _ in range(many * 5 + 3)
                ]
            )  # fmt: skip
            await Tenant.update({Tenant.name: f"The {word} clinic"}).where(Tenant.id == clinic.tenant)
    return lakeside, hillside, secret


@pytest.fixture(scope="module")
async def judge(database: ChartholdEngine, populated: tuple[Clinic, Clinic, str]) -> AsyncIterator[Judge]:
    mine, theirs, secret = populated
    owner = await superuser_connection()
    await owner.execute("analyze")
    numbers: dict[str, int] = {}
    for table in TABLES:
        counted = await owner.fetchval(f"select count(*) from {table} where tenant_id = $1", theirs.tenant)
        if counted > 50:
            numbers[table] = counted
    hidden = await owner.fetchrow(
        "select encode(wrapped, 'hex') as key from tenant_key where tenant_id = $1", theirs.tenant
    )
    pads = await owner.fetchrow(
        "select encode(inner_pad, 'hex') as i, encode(outer_pad, 'hex') as o from charthold.token_key"
    )
    phi = await owner.fetchval("select encode(notes, 'hex') from client where id = $1", theirs.client)
    keys = [database.token_key.inner_pad, database.token_key.outer_pad]
    known = (secret, hidden["key"], pads["i"], pads["o"], phi, *(repr(k)[2:-1] for k in keys), "root:x:0")
    yield Judge(owner, mine, theirs, known, numbers)
    await owner.close()


async def run_attempt(engine: ChartholdEngine, judge: Judge, attempt: Attempt, secret_name: str) -> list[str]:
    """Run it and say what it achieved; nothing, hopefully."""
    before, known = await judge.fingerprint(), await judge.actors()
    connection = await engine.connect(owner=False)
    attacker = Attacker(
        engine,
        connection,
        judge.mine,
        judge.theirs,
        {
            "B_TENANT": str(judge.theirs.tenant),
            "B_CLIENT": str(judge.theirs.client),
            "KEY_ID": engine.token_key.id,
            "B_USER": str(judge.theirs.admin),
            "B_FACILITY": str(judge.theirs.facility),
            "B_SECRET_NAME": secret_name,
            "A_TENANT": str(judge.mine.tenant),
            "A_FACILITY": str(judge.mine.facility),
            "A_ACTOR": str(judge.mine.admin),
            "A_AUDITOR": str(judge.mine.auditor),
        },
    )
    connection.add_log_listener(lambda _, message: attacker.seen.append(message.as_dict()))
    try:
        await connection.execute("set statement_timeout = '5s'; set lock_timeout = '1s'; begin")
        async with judge.mine.as_admin("attack"):
            await attacker.set_scope(attacker.own)
            await (
                attacker.sql(*((attempt,) if isinstance(attempt, str) else attempt))
                if isinstance(attempt, (str, tuple))
                else attempt(attacker)
            )
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute("commit")
    finally:
        connection.terminate()
    achieved = judge.shown(attacker.seen)
    after = await judge.fingerprint()
    achieved += [f"changed {what}" for what in before if before[what] != after[what]]
    achieved += [f"acted as {actor}" for actor in await judge.actors() - known - {judge.mine.admin}]
    return achieved


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_nothing_of_another_tenant_is_gained_by(
    name: str, database: ChartholdEngine, populated: tuple[Clinic, Clinic, str], judge: Judge
) -> None:
    assert await run_attempt(database, judge, ATTEMPTS[name], f"Wing {populated[2]} 0") == []


def test_the_attempts_are_many() -> None:
    assert len(ATTEMPTS) >= 60


async def test_an_attempt_runs_and_is_seen(
    database: ChartholdEngine, populated: tuple[Clinic, Clinic, str], judge: Judge
) -> None:
    """An attempt that failed for a reason of its own would prove nothing."""
    said: list[Any] = []

    async def look(a: Attacker) -> None:
        await a.sql("select name from facility", "select 1 / 0", "do $$ begin raise notice 'heard'; end $$", "select 7")
        said.extend(a.seen)

    assert await run_attempt(database, judge, look, "") == []
    assert ("Main street",) in said
    assert (7,) in said
    assert "division by zero" in repr(said)
    assert "heard" in repr(said)


# -- guessing ----------------------------------------------------------------------------------------------------------

# GUESS stands for a value that exists at Hillside, then for one that exists nowhere: the answers must be the same.
GUESSES: dict[str, tuple[str, Callable[[Clinic], Any], Callable[[], Any]]] = {
    "a client's id, by selecting it": ("select * from client where id = GUESS", lambda c: c.client, uuid7),
    "a client's id, by locking it": ("select 1 from client where id = GUESS for update nowait", lambda c: c.client, uuid7),
    "a client's id, by taking it": ("update facility set id = GUESS", lambda c: c.client, uuid7),
    "a facility's id, by inserting it here": (f"{NEW} (GUESS, 'A_TENANT', {ROW})", lambda c: c.facility, uuid7),
    "a facility's id, by inserting it there": (f"{NEW} (GUESS, 'B_TENANT', {ROW})", lambda c: c.facility, uuid7),
    "a facility's id, by upsert": (f"{NEW} (GUESS, 'B_TENANT', {ROW}) on conflict do nothing", lambda c: c.facility, uuid7),
    "a facility's id, by referring to it": ("update client set facility_id = GUESS", lambda c: c.facility, uuid7),
    "a user's id, by referring to it": ("update client set user_id = GUESS", lambda c: c.clinician, uuid7),
    "a tenant's id, by inserting for it": (f"{NEW} (charthold.uuid7(), GUESS, {ROW})", lambda c: c.tenant, uuid7),
    "a tenant's id, by moving to it": ("update facility set tenant_id = GUESS", lambda c: c.tenant, uuid7),
    "a user's address, by inserting it": (
        "insert into app_user (id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins)"
        " values (charthold.uuid7(), 'A_TENANT', GUESS, 'x', 'billing', 'invited', false, 0) returning 1",
        lambda c: "clinician@hillside.example", lambda: "nobody-here@hillside.example",
    ),
    "a facility's name, by inserting it": (
        "insert into facility (id, tenant_id, name, kind, address, time_zone, settings, status)"
        " values (charthold.uuid7(), 'A_TENANT', GUESS, 'clinic', '{}', 'UTC', '{}', 'active') returning 1",
        lambda c: "POPULATED", lambda: "Wing nobody 0",
    ),
    "a row, by a record of it": ("select charthold.record_read('client', array[GUESS]::uuid[], '{}')", lambda c: c.client, uuid7),
    "an address, by the planner's estimate": ("explain select from app_user where email < GUESS", lambda c: "9", lambda: "z"),
    "a name, by the planner's estimate": ("explain select from facility where name < GUESS", lambda c: "Wing a", lambda: "Wing z"),
    "a reason, by the planner's estimate": ("explain select from user_action_audit_log where reason = GUESS", lambda c: "POPULATED", lambda: "nobody"),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSES)
async def test_a_guess_is_answered_alike_whether_it_is_right_or_wrong(
    name: str, database: ChartholdEngine, populated: tuple[Clinic, Clinic, str], judge: Judge
) -> None:
    mine, theirs, secret = populated
    statement, right, wrong = GUESSES[name]
    answers = []
    for value in (right(theirs), wrong()):
        guess = {"POPULATED": f"Wing {secret} 0" if "facility" in name else secret}.get(value, str(value))
        connection = await database.connect(owner=False)
        sql = (
            statement.replace("GUESS", f"'{guess}'")
            .replace("A_TENANT", str(mine.tenant))
            .replace("B_TENANT", str(theirs.tenant))
            .replace("KEY_ID", database.token_key.id)
        )
        async with mine.as_admin("guess") as scope:
            try:
                async with connection.transaction():
                    await connection.fetchval(
                        "select set_config('charthold.scope', $1, true)",
                        scope.token(database.token_key, connection.get_server_pid()),
                    )
                    answer: Any = [tuple(row) for row in await connection.fetch(sql)]
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            except asyncpg.PostgresError as error:
                answer = (error.sqlstate, str(error))
        connection.terminate()
        answers.append(repr(answer).replace(guess, "?"))
    assert answers[0] == answers[1]


# -- what cannot be closed ---------------------------------------------------------------------------------------------

# Each succeeds, and PostgreSQL has no way to refuse it. None tells a row; most are about availability. Kept here so
# that what is written about them stays true: an entry that begins to fail is good news, and to be moved up.
CANNOT_BE_CLOSED: dict[str, tuple[str, ...]] = {
    "totals over all tenants": ("select reltuples from pg_class where relname = 'client'", "select n_live_tup from pg_stat_user_tables where relname = 'client'", "select pg_relation_size('client')"),
    "totals by rows removed": ("explain (analyze) select from client",),
    "whether a slug is taken": ("select tenant_id from charthold.find_tenant('hillside')",),
    "table locks": ("lock table client in access exclusive mode",),
    "advisory locks": ("select pg_advisory_lock(1)",),
    "notifications": ("notify anything",),
    "large objects of one's own": ("select lo_from_bytea(0, 'x')",),
    "query texts of the login's other sessions": ("set local role none", "select query from pg_stat_activity where pid <> pg_backend_pid()"),
    "the login's own password": ("set local role none", "alter role charthold_app password 'x'"),
    "the login's own settings": ("set local role none", "alter role charthold_app set statement_timeout = '1ms'"),
    "giving up the role's privileges": ("drop owned by app_runtime",),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT_BE_CLOSED)
async def test_what_cannot_be_closed_is_known(
    name: str, database: ChartholdEngine, populated: tuple[Clinic, Clinic, str], judge: Judge
) -> None:
    connection = await database.connect(owner=False)
    before = await judge.fingerprint()
    seen: list[Any] = []
    login = await connection.fetchval("select session_user")
    try:
        async with judge.mine.as_admin("attack") as scope:
            await connection.execute("begin")
            await connection.fetchval(
                "select set_config('charthold.scope', $1, true)",
                scope.token(database.token_key, connection.get_server_pid()),
            )
            for statement in CANNOT_BE_CLOSED[name]:
                known = statement.replace("charthold_app", login).replace("KEY_ID", database.token_key.id)
                seen += [tuple(r) for r in await connection.fetch(known)]
            await connection.execute("rollback")
    finally:
        connection.terminate()
    assert await judge.fingerprint() == before
    assert not [found for found in judge.shown(seen) if "rows of" not in found]


async def test_a_migrated_database_makes_no_temporary_objects(
    server: None, template: str, runtime: asyncpg.Connection
) -> None:
    # A copy of a database does not take its privileges over, so the attempts above had temporary objects to use.
    assert not await runtime.fetchval("select has_database_privilege('app_runtime', $1, 'temporary')", TEMPLATE)
    assert await runtime.fetchval("select has_database_privilege('app_runtime', current_database(), 'temporary')")


# -- the suite can fail ------------------------------------------------------------------------------------------------


async def test_the_same_attempts_find_the_hole_of_a_setting_that_is_believed_unsigned(
    database: ChartholdEngine, populated: tuple[Clinic, Clinic, str], judge: Judge
) -> None:
    """Every published kit for row-level security trusts a setting. With such a ``scope()`` the judge must cry."""
    signed = (SQL / "scope.sql").read_text(encoding="utf-8").replace("create function", "create or replace function")

    # Any key will do, and no code is compared.
    believed, changes = re.subn(r"k\.id = encode.*?'UTF8'\)\)\n *and (?=encode)", "", signed, flags=re.DOTALL)
    assert changes == 1, "scope.sql has changed: teach this test where the signature is checked"

    name = f"Wing {populated[2]} 0"
    await judge.owner.execute(believed)
    try:
        achieved = {
            attempt: await run_attempt(database, judge, run, name)
            for attempt, run in CONTEXTS.items()
            if attempt != "every setting"
        }
    finally:
        await judge.owner.execute(signed)
    broken = {attempt for attempt, found in achieved.items() if found}
    assert broken >= {
        "forged",
        "forged with known key id",
        "unsigned",
        "own token with their tenant and actor",
        "own token with another actor",
        "signed with a retired key",
        "token in the session",
    }
    # It saw all that there is to see: a secret, a number, a change, another's name.
    everything = [found.split(" ")[0] for founds in achieved.values() for found in founds]
    assert {populated[2], "changed", "acted"} <= set(everything)
    assert any("rows of" in found for founds in achieved.values() for found in founds)
    # And with the signature back it is silent again.
    assert await run_attempt(database, judge, forged, name) == []
