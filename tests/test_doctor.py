"""The doctor: whatever is broken on the live database is named, once, and its own mend mends it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import asyncpg
import pytest
from piccolo.columns import Text, Timestamptz

from core import embedded, registered
from core.audit.attestation import Attestation
from core.audit.head import SealKey
from core.audit.seal import seal
from core.commands.doctor import as_json, doctor
from core.commands.import_synthea import import_export
from core.compliance.disclosures import Disclosure
from core.crypto.kms import master_key
from core.doctor import RULES, Examination, Finding, check_names, examine
from core.doctor.audit import detached, month_after
from core.doctor.authentication import admins
from core.doctor.check import CHECKS, Notes
from core.doctor.coverage import classify
from core.doctor.identifiers import looks_like, shapes_in
from core.doctor.report import render
from core.doctor.server import LATEST, judge_version
from core.doctor.transmission import judge
from core.schema import application_login
from core.settings import settings
from core.tables import Client, Facility, TenantTable
from core.wire.database import Database
from tests.conftest import IN_ITS_FILES, connection_of_the_login

OWNER_IS_SUPERUSER = True

LOG = "public.user_action_audit_log"
TODAY = datetime.now(UTC)
THIS = (TODAY.year, TODAY.month)
NEXT = month_after(THIS)
LAST = month_after(month_after(NEXT))  # partitions are made for three months ahead


def part(month: tuple[int, int]) -> str:
    return f"{LOG}_{month[0]}_{month[1]:02}"


@pytest.fixture(scope="module", autouse=True)
async def clinic(lakeside, hillside, database):
    """Two tenants, sealed: nothing is left to warn of but what the embedded server is."""
    connection = await connection_of_the_login()
    # A copy of a database does not take over who may do what with the database itself.
    name = await connection.fetchval("select quote_ident(current_database())")
    await connection.execute(f"revoke temporary on database {name} from public")
    await connection.close()
    for tenant in (lakeside, hillside):
        async with tenant.as_admin("seal"):
            await seal()
    return lakeside


@pytest.fixture
async def superuser(owner) -> asyncpg.Connection:
    if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("what is broken here only a superuser can break")
    return owner


# One that is on the server and not looked at.
DATABASE = embedded.DATABASE if settings().embedded else "postgres"


def failures(found: Examination) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in found.findings if finding.verdict == "fail"}


def warnings(found: Examination) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in found.findings if finding.verdict == "warn"}


@dataclass(frozen=True)
class Broken:
    """One thing done by hand, the finding that must come of it, and what takes it back if the finding's SQL does not."""

    by: str
    check: str
    subject: str
    mended_by: str = ""
    also: tuple[str, ...] = ()  # other checks, which it escapes too
    locks_out: bool = False  # the application too, whose connections refuse to be more than they should
    takes_more: bool = False  # than its subject: others could not be broken, or not be told, beside it

    @property
    def alone(self) -> bool:
        return self.locks_out or self.takes_more

    @property
    def about(self) -> str:
        """Of what may be done to a table one finding is told, so no two things of one table are broken at once."""
        return self.subject.rpartition(" on ")[2]


PREFIX = settings().role_prefix
RUNTIME = f"{PREFIX}app_runtime"
AS_REPLICA = "set session_replication_role = replica;"
HERE = "tenant_id = any (array[(select charthold.tenant_id())])"

BROKEN = (
    # isolation
    Broken("alter table client no force row level security", "row_security", "row_security public.client"),
    Broken("alter table facility disable row level security", "row_security", "row_security public.facility"),
    Broken(f"alter table {part(NEXT)} no force row level security", "row_security", f"row_security {part(NEXT)}"),
    Broken(
        "alter table charthold.principal disable row level security", "row_security", "row_security charthold.principal"
    ),
    Broken("drop policy tenant_isolation on facility", "tenant_policies", "policy tenant_isolation on public.facility"),
    Broken(
        "alter policy tenant_isolation on app_user using (true)",
        "tenant_policies", "policy tenant_isolation on public.app_user",
    ),
    *(
        Broken(by, "tenant_policies", "policy tenant_isolation on public.facility")
        for by in (
            "alter policy tenant_isolation on facility with check (true)",
            f"alter policy tenant_isolation on facility to {RUNTIME}",
            "drop policy tenant_isolation on facility;"
            f" create policy tenant_isolation on facility as restrictive for select using ({HERE})",
            # Only some are let out.
            f"alter policy tenant_isolation on facility using ({HERE} or (select charthold.tenant_everywhere()) is not null)",
            f"alter policy tenant_isolation on facility using ({HERE} or (select charthold.actor_places()) is not null)",
            f"alter policy tenant_isolation on facility using ({HERE} or (select charthold.emergency_client()) is not null)",
            f"alter policy tenant_isolation on facility using ({HERE} or (select charthold.actor_role()) = 'system')",
            # Today nobody is.
            f"alter policy tenant_isolation on facility using ({HERE} or now() > '2099-01-01')",
            f"alter policy tenant_isolation on facility using ({HERE} or current_date > '2099-01-01')",
            # The owner, who looks, is not.
            f"alter policy tenant_isolation on facility using ({HERE} or current_user = '{RUNTIME}')",
            f"alter policy tenant_isolation on facility using ({HERE} or session_user = '{RUNTIME}')",
        )
    ),
    Broken(
        "create unique index client_status_twice on client (id)",
        "composite_keys", "index public.client_status_twice",
    ),
    *(
        Broken(
            f"alter table client add constraint apart exclude ({what})", check, "constraint apart on public.client"
        )
        for what, check in (
            ("id with =", "composite_keys"),
            ("id with =, tenant_id with =", "drift"),
        )
    ),
    # access
    Broken("drop policy facility_isolation on client", "permissions", "policy facility_isolation on public.client"),
    Broken(
        "drop policy select_everywhere on user_action_audit_log",
        "permissions", "policy select_everywhere on public.user_action_audit_log",
    ),
    Broken("drop policy update_everywhere on app_user", "permissions", "policy update_everywhere on public.app_user"),
    Broken("drop policy select_by_role on facility", "permissions", "policy select_by_role on public.facility"),
    Broken(
        "create policy everybody on client for delete using (true)", "permissions", "policy everybody on public.client"
    ),
    Broken(
        "create policy on_monday on client for delete using (status = 'active')",
        "permissions", "policy on_monday on public.client",
    ),
    Broken(
        "alter policy facility_isolation on client using (case when tenant_id = (select charthold.tenant_everywhere())"
        " then true else tenant_id::text || facility_id::text = any ((select charthold.actor_places())::text[])"
        " or (select charthold.emergency_client()) is not null end)",
        "permissions", "policy facility_isolation on public.client",
    ),
    Broken(
        "create policy in_time on client for delete using (now() > '2099-01-01')",
        "permissions", "policy in_time on public.client",
    ),
    Broken(
        "create policy at_will on client for delete using ((select false from pg_class limit 1))",
        "permissions", "policy at_will on public.client",
    ),
    Broken(
        "alter policy insert_by_role on client with check (true)", "permissions", "policy insert_by_role on public.client"
    ),
    Broken(
        "alter policy delete_by_role on facility using ((select charthold.actor_role()) in ('admin', 'billing'))",
        "permissions", "policy delete_by_role on public.facility",
    ),
    Broken(f"grant truncate on client to {RUNTIME}", "grants", f"grant public.client truncate to {RUNTIME}"),
    Broken("grant select on facility to public", "grants", "grant public.facility select to public"),
    Broken(
        f"grant select on charthold.token_key to {RUNTIME}", "grants", f"grant charthold.token_key select to {RUNTIME}"
    ),
    Broken(
        f"grant set on parameter session_replication_role to {RUNTIME}",
        "grants", f"parameter session_replication_role to {RUNTIME}",
    ),
    Broken(f"alter role {RUNTIME} bypassrls", "roles", f"role {RUNTIME}", locks_out=True),
    Broken(
        f"grant set, alter system on parameter log_statement to {RUNTIME}",
        "grants", f"parameter log_statement to {RUNTIME}",
    ),
    Broken(
        "grant set on parameter allow_system_table_mods to public",
        "grants", f"parameter allow_system_table_mods to {RUNTIME}",
    ),
    *(
        Broken(f"grant {RUNTIME} to {login} with admin option", "roles", f"admin option of {login} in {RUNTIME}")
        for login in [application_login()] if login
    ),
    Broken(f"grant pg_read_all_data to {RUNTIME}", "roles", f"membership {RUNTIME} in pg_read_all_data"),
    Broken("alter function charthold.scope() reset search_path", "functions", "function charthold.scope()"),
    # Whoever writes what a session remembers is granted whatever they like.
    Broken(
        f"grant update on sequence charthold.granted_1 to {RUNTIME}",
        "grants", f"grant sequence charthold.granted_1 update to {RUNTIME}",
    ),
    Broken(
        "grant execute on function charthold.sign(uuid, uuid, text) to public",
        "functions", "function_grant charthold.sign(uuid,uuid,text) to public",
    ),
    *(
        Broken(f"alter role {PREFIX}app_auditor {power}", "roles", f"role {PREFIX}app_auditor")
        for power in ("superuser", "bypassrls", "createdb", "replication")
    ),
    # audit
    Broken("alter table client enable replica trigger audit_update", "triggers", "trigger audit_update on public.client"),
    Broken("alter table client disable trigger audit_update", "triggers", "trigger audit_update on public.client"),
    Broken("drop trigger audit_delete on facility", "triggers", "trigger audit_delete on public.facility"),
    Broken(
        f"alter table {part(NEXT)} disable trigger append_only", "triggers", f"trigger append_only on {part(NEXT)}"
    ),
    Broken(
        f"drop trigger append_only_truncate on {part(NEXT)}",
        "append_only", f"trigger append_only_truncate on {part(NEXT)}",
    ),
    Broken(
        f"drop trigger append_only_truncate on {LOG}_default",
        "append_only", f"trigger append_only_truncate on {LOG}_default",
    ),
    Broken(
        f"alter table {part(NEXT)} disable trigger append_only_truncate",
        "triggers", f"trigger append_only_truncate on {part(NEXT)}",
    ),
    Broken(
        f"create or replace trigger append_only_truncate after truncate on {part(NEXT)} for each statement"
        " execute function charthold.touch()",
        "drift", f"trigger append_only_truncate on {part(NEXT)}",
    ),
    Broken(f"grant delete on {LOG} to {RUNTIME}", "append_only", f"grant {LOG} delete to {RUNTIME}"),
    Broken(f"grant select on {part(NEXT)} to {RUNTIME}", "append_only", f"grant {part(NEXT)} select to {RUNTIME}"),
    Broken(
        f"grant update (reason) on {LOG} to {RUNTIME}", "append_only", f"column_grant {LOG}.reason update to {RUNTIME}"
    ),
    Broken(
        f"drop table {part(NEXT)}, {part(month_after(NEXT))}, {part(LAST)}",
        "partitions", f"partition {NEXT[0]}-{NEXT[1]:02}", takes_more=True,
    ),
    Broken(f"alter table {LOG} alter column reason drop not null", "actors", f"column {LOG}.reason"),
    Broken(
        "alter table app_user drop constraint app_user_email_key",
        "actors", "constraint app_user_email_key on public.app_user",
    ),
    Broken(
        "alter table tenant drop constraint tenant_retention_years_possible",
        "retention", "constraint tenant_retention_years_possible on public.tenant",
    ),
    Broken(
        f"grant delete on disclosure to {RUNTIME}",
        "accounting_of_disclosures", f"grant public.disclosure delete to {RUNTIME}",
    ),
    Broken(
        "alter table disclosure drop constraint disclosure_client_id_fkey",
        "accounting_of_disclosures", "constraint disclosure_client_id_fkey on public.disclosure",
    ),
    Broken(
        f"create trigger zz before insert on {part(NEXT)} for each row execute function charthold.refuse_change()",
        "drift", f"trigger zz on {part(NEXT)}",
    ),
    Broken(f"alter table {part(NEXT)} set unlogged", "drift", f"table {part(NEXT)}"),
    Broken(f"alter table {part(NEXT)} add constraint z check (reason <> 'x')", "drift", f"constraint z on {part(NEXT)}"),
    Broken(f"create policy z on {part(NEXT)} using (true)", "drift", f"policy z on {part(NEXT)}"),
    Broken(f"create rule z as on insert to {part(NEXT)} do instead nothing", "drift", f"rule z on {part(NEXT)}"),
    Broken(f"create unique index z on {part(NEXT)} (id, occurred_at)", "drift", "index public.z"),
    Broken(f"alter table {part(NEXT)} alter column reason set default 'x'", "drift", f"column {part(NEXT)}.reason"),
    Broken(
        f"alter table {LOG} detach partition {part(LAST)}; alter table {LOG} attach partition {part(LAST)}"
        " for values from ('2099-01-01') to ('2099-02-01')",
        "partitions", f"table {part(LAST)}",
        f"alter table {LOG} detach partition {part(LAST)}; drop table {part(LAST)}; select charthold.ensure_partitions(3)",
    ),
    Broken(f"drop table {LOG}_default", "partitions", f"table {LOG}_default"),
    # PHI
    *(
        Broken(
            f"alter table client add column {column} text", "phi_columns", f"column public.client.{column}",
            f"alter table client drop column {column}", also=("capture",),
        )
        for column in ("phone2", "dob", "member_no")
    ),
    Broken(
        "alter table client alter column notes type bytea", "envelope", "column public.client.notes",
        "alter table client alter column notes type charthold.envelope",
    ),
    Broken(
        "alter domain charthold.envelope drop constraint envelope_check", "envelope", "domain charthold.envelope",
    ),
    Broken(
        "alter domain charthold.envelope drop constraint envelope_check;"
        " alter domain charthold.envelope add constraint envelope_check check (true)",
        "drift", "domain charthold.envelope",
    ),
    # machinery
    Broken("drop function charthold.sign(uuid, uuid, text)", "drift", "function charthold.sign(uuid,uuid,text)"),
    # owners and powers
    Broken(f"alter function charthold.touch() owner to {RUNTIME}", "owners", "function charthold.touch()"),
    Broken(f"alter domain charthold.envelope owner to {RUNTIME}", "owners", "type charthold.envelope"),
    Broken(f"alter role {RUNTIME} createrole", "roles", f"role {RUNTIME}"),
    Broken(f"grant pg_execute_server_program to {RUNTIME}", "roles", f"membership {RUNTIME} in pg_execute_server_program"),
    # the server
    Broken(
        f"alter role {RUNTIME} set session_replication_role = replica",
        "server_settings", f"setting session_replication_role of {RUNTIME}",
    ),
    Broken(
        "do $$ begin execute format('alter database %I set session_replication_role = replica', current_database());"
        " end $$", "server_settings", "setting session_replication_role of the database", locks_out=True,
    ),
    Broken("do $$ begin execute format('alter database %I set log_statement = ''all''', current_database()); end $$",
           "statement_logging", "setting log_statement"),
    Broken(
        f"alter role {RUNTIME} set log_min_duration_statement = 100",
        "statement_logging", f"setting log_min_duration_statement of {RUNTIME}",
    ),
)  # fmt: skip


async def test_nothing_fails_on_a_database_as_it_is_made(owner):
    found = await examine()
    assert failures(found) == set()
    assert found.drift == []
    assert {finding.check for finding in found.findings} == {*check_names()}
    assert {rule for rule in RULES if found.verdict_of(rule) == "unbuilt"} == {
        "164.312(a)(2)(iii)",
    }  # fmt: skip


def at_once(things: Iterable[Broken]) -> list[list[Broken]]:
    """Groups of what can be broken at once, each about another object: to look at the whole database takes a second."""
    groups: list[list[Broken]] = []
    for thing in things:
        fitting = (
            group for group in groups
            if len(group) < 10 and not any(thing.alone or one.alone or thing.about == one.about for one in group)
        )  # fmt: skip
        if (group := next(fitting, None)) is None:
            groups.append(group := [])
        group.append(thing)
    return groups


@pytest.mark.parametrize("group", at_once(BROKEN), ids=lambda group: group[0].by[:50])
async def test_what_is_broken_is_found_and_mended(superuser, group):
    for thing in group:
        await superuser.execute(thing.by)
    told = []
    try:
        found = await examine()
        told = [finding for finding in found.findings if finding.verdict == "fail"]
        refused = {("application", "application")} if any(thing.locks_out for thing in group) else set()
        expected = {(check, thing.subject) for thing in group for check in (thing.check, *thing.also)}
        assert failures(found) == expected | refused
        for thing in group:
            findings = [f for f in found.findings if (f.check, f.subject) == (thing.check, thing.subject)]
            assert all(finding.mend or finding.sql for finding in findings)
            assert thing.mended_by or any(finding.sql for finding in findings), f"nothing mends {thing.by}"
    finally:
        by_hand = {thing.subject: thing.mended_by for thing in group if thing.mended_by}
        for sql in [*by_hand.values(), *(f.sql for f in told if f.sql and f.subject not in by_hand)]:
            await superuser.execute(sql)
    assert failures(await examine()) == set()


async def test_a_policy_that_others_may_widen_pins_no_tenant(superuser):
    async with superuser.transaction():
        [was] = await superuser.fetch(
            "select * from pg_policies where policyname = 'tenant_isolation' and tablename = 'facility'"
        )
        await superuser.execute("drop policy tenant_isolation on facility")
        await superuser.execute(
            f"create policy tenant_isolation on facility using ({was['qual']}) with check ({was['with_check']})"
        )
    try:
        found = await examine(["tenant_policies"])
        assert failures(found) == {("tenant_policies", "policy tenant_isolation on public.facility")}
    finally:
        await superuser.execute("drop policy tenant_isolation on facility")
        [sql] = {f.sql for f in (await examine(["tenant_policies"])).findings if f.verdict == "fail"}
        await superuser.execute(sql)
    assert failures(await examine(["tenant_policies", "drift"])) == set()


async def test_a_month_that_was_detached_is_attached_again(superuser):
    await superuser.execute(f"alter table {LOG} detach partition {part(NEXT)}")
    told = [f for f in (await examine()).findings if f.verdict == "fail"]
    assert {(f.check, f.subject) for f in told} == {("partitions", f"table {part(NEXT)}")}
    assert [detached(month) for month in (NEXT, (TODAY.year - 6, TODAY.month))] == [told[0].mend] * 2
    assert "If it was archived, dump it" in detached((TODAY.year - 7, 12))
    await superuser.execute(told[0].sql)
    assert failures(await examine()) == set()


@pytest.mark.parametrize("what", ["table public.facility", "schema charthold"])
async def test_what_the_application_owns_is_told(superuser, what):
    await superuser.execute(f"alter {what} owner to {RUNTIME}")
    found = await examine()
    assert ("owners", what) in failures(found)
    await superuser.execute(next(f.sql for f in found.findings if f.check == "owners" and f.verdict == "fail"))
    # What it had been granted was lost in what it owned.
    left = [f for f in (await examine()).findings if f.verdict == "fail"]
    assert {f.check for f in left} == {"drift"}
    await superuser.execute("\n".join(f.sql for f in left))
    assert failures(await examine()) == set()


async def test_a_register_that_is_gone_is_told(superuser):
    await superuser.execute("alter table disclosure rename to elsewhere")
    try:
        found = await examine(["accounting_of_disclosures"])
        assert failures(found) == {("accounting_of_disclosures", "table public.disclosure")}
        assert found.verdict_of("164.528") == "fail"
    finally:
        await superuser.execute("alter table elsewhere rename to disclosure")


async def test_an_event_trigger_is_a_warning(superuser):
    await superuser.execute(
        "create function public.at_ddl() returns event_trigger language plpgsql as 'begin end';"
        "create event trigger rogue on ddl_command_end execute function public.at_ddl()"
    )
    try:
        found = await examine(["event_triggers"])
        assert [f.sql for f in found.findings if f.verdict == "warn"] == ["drop event trigger rogue;"]
    finally:
        await superuser.execute("drop event trigger rogue; drop function public.at_ddl()")


async def test_a_trigger_by_which_references_are_checked_is_told_when_it_is_off(superuser):
    await superuser.execute("alter table facility disable trigger all")
    off = await superuser.fetch("select quote_ident(tgname) from pg_trigger where tgrelid = 'facility'::regclass")
    try:
        found = await examine(["triggers"])
        assert failures(found) == {("triggers", f"trigger {row[0]} on public.facility") for row in off}
        assert any("RI_ConstraintTrigger" in row[0] for row in off)
        await superuser.execute("\n".join(f.sql for f in found.findings))
        assert failures(await examine(["triggers", "drift"])) == set()
    finally:
        await superuser.execute("alter table facility enable trigger all")


@IN_ITS_FILES
@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("host all all 0.0.0.0/0 trust", "fail"),
        ("hostssl all all all trust", "fail"),
        ("local all all trust", "warn"),
        ("host all all ::1/128 trust", "warn"),
        ("host all all 127.0.0.1/32 scram-sha-256", "pass"),
        ("hostssl all all 0.0.0.0/0 scram-sha-256", "pass"),
        ("host all all 0.0.0.0/0 reject", "pass"),
    ],
)
async def test_a_line_by_which_the_server_lets_anybody_in_is_told(superuser, line, verdict):
    file = Path(await superuser.fetchval("show hba_file"))
    was = file.read_bytes()
    try:
        file.write_text(f"{line}\n")  # the view reads the file, which the server has not loaded
        found = [f.verdict for f in (await examine(["host_rules"])).findings]
    finally:
        file.write_bytes(was)
    assert found == [verdict]


async def test_what_no_check_is_about_is_told_by_drift(superuser):
    await superuser.execute("create index more on client (status)")
    [finding] = [f for f in (await examine()).findings if f.verdict == "fail"]
    assert (finding.check, finding.subject, finding.sql) == ("drift", "index public.more", "drop index public.more;")
    await superuser.execute(finding.sql)


async def test_a_table_of_tenants_that_nobody_declared_is_told_by_every_check_it_escapes(superuser):
    await superuser.execute("create table visit (id uuid primary key, tenant_id uuid)")
    told = failures(await examine())
    await superuser.execute("drop table visit")
    assert {("row_security", "row_security public.visit"), ("composite_keys", "index public.visit_pkey"),
            ("composite_keys", "column public.visit.tenant_id"), ("capture", "table public.visit"),
            ("tenant_policies", "policy tenant_isolation on public.visit")} <= told  # fmt: skip


async def test_a_table_that_nobody_declared_and_whose_policy_lets_everybody_in_is_told(superuser):
    await superuser.execute(
        "create table visit (id uuid, tenant_id uuid, primary key (tenant_id, id));"
        "alter table visit enable row level security, force row level security;"
        f"create policy everybody on visit using (true); grant select on visit to {RUNTIME}"
    )
    try:
        told = failures(await examine(["tenant_policies", "capture"]))
    finally:
        await superuser.execute("drop table visit")
    assert told == {("tenant_policies", "policy tenant_isolation on public.visit"), ("capture", "table public.visit")}


@pytest.mark.parametrize(
    "key",
    [
        "(client_id) references client (id)",
        "(tenant_id) references client (id)",
        "(there, client_id) references client",
    ],
)
async def test_a_reference_that_does_not_begin_with_the_tenant_on_either_side_is_told(superuser, key):
    await superuser.execute(
        "create unique index alone on client (id);"
        "create table visit (tenant_id uuid not null, there uuid, client_id uuid);"
        f"alter table visit add constraint across foreign key {key}"
    )
    try:
        told = failures(await examine(["composite_keys"])) - {("composite_keys", "index public.alone")}
    finally:
        await superuser.execute("drop table visit; drop index alone")
    assert told == {("composite_keys", "constraint across on public.visit")}


async def test_a_reference_to_a_table_of_no_tenant_reaches_into_none(superuser):
    await superuser.execute(
        "create table code (id int primary key); alter table client add column code_id int references code"
    )
    try:
        assert failures(await examine(["composite_keys"])) == set()
    finally:
        await superuser.execute("alter table client drop column code_id; drop table code")


@pytest.mark.parametrize("right", ["select", "select (id)"])
async def test_a_right_of_who_is_no_role_of_ours_is_told_and_taken(superuser, right):
    await superuser.execute(f"create role doctor_test_stranger; grant {right} on client to doctor_test_stranger")
    try:
        found = await examine(["grants"])
        assert {f.check for f in found.findings if f.verdict == "fail"} == {"grants"}
        assert "doctor_test_stranger may select on public.client, and is no role of ours." in {
            f.evidence for f in found.findings
        }
        await superuser.execute("\n".join(f.sql for f in found.findings))
        assert failures(await examine(["grants", "drift"])) == set()
    finally:
        await superuser.execute("drop owned by doctor_test_stranger; drop role doctor_test_stranger")


async def test_a_view_that_keeps_rows_of_all_tenants_is_told(superuser):
    await superuser.execute("create materialized view everybody as select id from client")
    found = await examine(["views"])
    await superuser.execute("drop materialized view everybody")
    assert failures(found) == {("views", "view public.everybody")}


async def test_a_view_that_reads_as_its_owner_is_told(superuser):
    await superuser.execute("create view everybody as select id from client")
    found = await examine(["views"])
    assert failures(found) == {("views", "view public.everybody")}
    await superuser.execute(found.findings[0].sql)
    assert failures(await examine(["views"])) == set()
    await superuser.execute("drop view everybody")


async def test_a_record_in_the_default_partition_is_told_and_moved_by_the_mend(superuser, clinic):
    await superuser.execute(f"drop table {part(LAST)}")
    await superuser.execute(
        f"insert into {LOG} (tenant_id, occurred_at, user_id, action_type, reason)"
        f" values ('{clinic.tenant}', '{LAST[0]}-{LAST[1]:02}-03', '{clinic.admin}', 'login', 'test')"
    )
    found = await examine()
    assert failures(found) == {("partitions", f"table {LOG}_default")}
    await superuser.execute(next(f.sql for f in found.findings if f.check == "partitions"))
    assert failures(await examine(["partitions"])) == set()
    assert await superuser.fetchval(f"select count(*) from {part(LAST)}") == 1
    await superuser.execute(f"{AS_REPLICA} delete from {part(LAST)}; reset session_replication_role")


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ("999-17-5017", "ssn"),
        ("ana.nguyen@mail.example", "email"),
        ("617 555 0100", "telephone"),
        ("1980-02-29", "date"),
    ],
)
async def test_a_raw_value_in_the_shape_of_an_identifier_is_told_and_never_shown(superuser, clinic, value, shape):
    document = json.dumps({"remark": f"for {value}."})
    await superuser.execute(f"{AS_REPLICA} update facility set settings = '{document}' where id = '{clinic.facility}'")
    found = await examine()
    assert failures(found) == {("raw_values", "column public.facility.settings")}
    said = json.dumps(as_json(found), default=str) + render(found, registered.tables())
    assert value not in said
    await superuser.execute(f"update facility set settings = '{{}}' where id = '{clinic.facility}'")
    assert failures(await examine(["raw_values"])) == set()


async def test_plaintext_in_a_record_of_the_log_is_told(superuser, clinic):
    await superuser.execute(
        f"insert into {LOG} (id, tenant_id, user_id, action_type, table_name, record_id, new_values, reason) values"
        f" ('{clinic.client}', '{clinic.tenant}', '{clinic.admin}', 'insert', 'client', '{clinic.client}',"
        " '{\"ssn\": \"999-17-5017\"}', 'test')"
    )
    found = await examine(["raw_values"])
    assert failures(found) == {("raw_values", f"column {LOG} client.ssn")}
    assert "5017" not in json.dumps(as_json(found), default=str)
    await superuser.execute(f"{AS_REPLICA} delete from {LOG} where id = '{clinic.client}'")


@pytest.fixture
async def replica(superuser) -> AsyncIterator[asyncpg.Connection]:
    """With every trigger out of the way."""
    await superuser.execute(AS_REPLICA)
    yield superuser
    await superuser.execute("reset session_replication_role")


@pytest.mark.parametrize("column", ["root_hash", "frontier"])
async def test_an_altered_head_is_told(replica, clinic, column):
    where = f"where tenant_id = '{clinic.tenant}'"
    was = await replica.fetchval(f"select {column} from audit_seal {where}")
    await replica.execute(f"update audit_seal set {column} = sha256('x') {where}")
    assert failures(await examine(["seals", "drift"])) == {("seals", "seal lakeside")}
    await replica.execute(f"update audit_seal set {column} = $1 {where}", was)
    assert failures(await examine(["seals"])) == set()


async def test_records_that_were_not_sealed_in_time_are_a_warning(replica, clinic):
    await replica.execute(
        f"insert into {LOG} (id, tenant_id, user_id, action_type, occurred_at, reason) values"
        f" ('{clinic.client}', '{clinic.tenant}', '{clinic.admin}', 'login', now() - interval '30 hours', 'test')"
    )
    found = await examine(["seals"])
    assert ("seals", "seal lakeside") in warnings(found)
    assert not found.failed
    await replica.execute(f"delete from {LOG} where id = '{clinic.client}'")


async def test_a_verification_on_record_is_shown_and_one_that_failed_fails(replica, clinic):
    into = (
        f"insert into {LOG} (id, tenant_id, user_id, action_type, reason, new_values) values ('{clinic.client}',"
        f" '{clinic.tenant}', '{clinic.admin}', 'audit_read', 'test', $1::jsonb)"
    )
    key, now = SealKey(master_key(settings())), datetime.now(UTC)

    async def told(said):
        await replica.execute(into, json.dumps({"verified": said}))
        found = await examine(["seals"])
        await replica.execute(f"delete from {LOG} where id = '{clinic.client}'")
        return found

    found = await told(Attestation(clinic.tenant, good=True, records=1, at=now).signed(key))
    assert not found.failed
    assert found.shown["seals"][1]["verified_at"] == now
    found = await told(Attestation(clinic.tenant, good=False, records=1, at=now).signed(key))
    assert failures(found) == {("seals", "seal lakeside")}
    # What anybody could have written, or is of another tenant, is no verdict.
    genuine = Attestation(clinic.tenant, good=False, records=1, at=now).signed(key)
    of_another = Attestation(clinic.admin, good=True, records=1, at=now).signed(key)
    forged = ({"good": True}, {"good": False}, genuine | {"good": True}, genuine | {"records": 2}, of_another, "x", [1])
    for said in forged:
        assert (await told(said)).shown["seals"][1]["verified_at"] is None


async def test_a_key_of_an_unknown_master_key_and_an_old_one_are_told(replica, clinic):
    where = f"where tenant_id = '{clinic.tenant}'"
    was = await replica.fetchrow(f"select kek, created_at from tenant_key {where}")
    await replica.execute(f"update tenant_key set kek = 'ffffffffffffffff' {where}")
    assert failures(await examine()) == {("keys", "key lakeside version 1")}
    await replica.execute(
        f"update tenant_key set kek = $1, created_at = now() - interval '2 years' {where}", was["kek"]
    )
    found = await examine(["keys"])
    assert (failures(found), warnings(found)) == (set(), {("keys", "key lakeside version 1")})
    await replica.execute(f"update tenant_key set created_at = $1 {where}", was["created_at"])
    await replica.execute(f"update tenant_key set status = 'retired' {where}")
    assert failures(await examine(["keys"])) == {("keys", "key lakeside")}
    await replica.execute(f"update tenant_key set status = 'current' {where}")
    assert warnings(await examine(["keys"])) == set()


@pytest.mark.parametrize("wrapped", ["'\\x00'", "set_byte(wrapped, 40, get_byte(wrapped, 40) # 1)"])
async def test_a_wrapped_key_that_does_not_unwrap_is_one_finding(replica, clinic, wrapped):
    where = f"where tenant_id = '{clinic.tenant}'"
    was = await replica.fetchval(f"select wrapped from tenant_key {where}")
    await replica.execute(f"update tenant_key set wrapped = {wrapped} {where}")
    assert failures(await examine()) == {("keys", "key lakeside version 1")}
    await replica.execute(f"update tenant_key set wrapped = $1 {where}", was)
    assert failures(await examine(["keys"])) == set()


async def test_a_key_near_its_limit_is_told(owner, monkeypatch):
    monkeypatch.setattr("core.doctor.encryption.LIMIT", 30)
    assert ("keys", "key lakeside version 1") in warnings(await examine(["keys"]))
    monkeypatch.setattr("core.doctor.encryption.LIMIT", 2)
    assert ("keys", "key lakeside version 1") in failures(await examine(["keys"]))


async def test_an_open_tenant_without_an_admin_is_told(superuser, clinic):
    where = f"where tenant_id = '{clinic.tenant}' and id = '{clinic.admin}'"
    await superuser.execute(f"{AS_REPLICA} update app_user set status = 'locked' {where}")
    # The copy that scope() reads is still there: that is told first.
    assert failures(await examine()) == {("admins", "table charthold.principal")}
    user = f"'{clinic.admin}'"
    await superuser.execute(f"delete from charthold.principal where user_id = {user}")
    found = await examine()
    assert failures(found) == {("admins", "tenant lakeside")}
    assert any(f.verdict == "warn" and "is locked" in f.evidence for f in found.findings if f.check == "users")
    await superuser.execute(f"update app_user set status = 'active' {where}; set session_replication_role = origin")
    await superuser.execute(
        f"insert into charthold.principal (user_id, tenant_id, role, tenant_open) values ({user}, '{clinic.tenant}',"
        " 'admin', true)"
    )
    assert failures(await examine(["admins"])) == set()


async def test_an_answer_about_a_user_that_is_not_what_the_row_says_is_told(superuser, clinic):
    where = f"where user_id = '{clinic.billing}'"
    await superuser.execute(
        f"{AS_REPLICA} update charthold.principal set standing = replace(standing, 'billing', 'admin  ') {where}"
    )
    assert failures(await examine(["admins"])) == {("admins", "table charthold.principal")}
    await superuser.execute(
        f"set session_replication_role = origin; update charthold.principal set role = role {where}"
    )
    assert failures(await examine(["admins"])) == set()


async def test_a_user_who_may_act_in_a_tenant_that_is_closed_is_told(superuser, clinic):
    where = f"where user_id = '{clinic.billing}'"
    await superuser.execute(f"update charthold.principal set tenant_open = false {where}")
    assert failures(await examine(["admins"])) == {("admins", "table charthold.principal")}
    await superuser.execute(f"update charthold.principal set tenant_open = true {where}")
    assert failures(await examine(["admins"])) == set()


@pytest.mark.parametrize(
    "by_hand",
    [
        # A user who is in no table, with all that a real one has.
        "insert into charthold.principal (user_id, tenant_id, role, tenant_open)"
        " select gen_random_uuid(), tenant_id, 'admin', true from charthold.principal where user_id = $1",
        "update charthold.principal set tenant_id = (select tenant_id from charthold.tenant_directory"
        " where slug = 'hillside') where user_id = $1",
        "delete from charthold.principal where user_id = $1",
        "update charthold.principal set role = 'admin' where user_id = $1",
        "update charthold.principal set facility_scope = null where user_id = $1",
        "update charthold.principal set locked_until = null where user_id = $1",
    ],
)
async def test_who_may_act_otherwise_than_the_users_say_is_told(superuser, clinic, by_hand):
    who = f"where id = '{clinic.clinician}'"
    await superuser.execute(
        f"{AS_REPLICA} update app_user set facility_scope = array[gen_random_uuid()],"
        f" locked_until = '2001-01-01' {who}; reset session_replication_role"
    )
    await superuser.execute(
        "update charthold.principal as p set facility_scope = u.facility_scope, locked_until = u.locked_until"
        " from app_user as u where u.id = p.user_id; create temporary table kept as table charthold.principal"
    )
    try:
        assert failures(await examine(["admins"])) == set()
        await superuser.execute(by_hand, clinic.clinician)
        assert failures(await examine(["admins"])) == {("admins", "table charthold.principal")}
    finally:
        await superuser.execute(
            f"{AS_REPLICA} update app_user set facility_scope = null, locked_until = null {who};"
            " reset session_replication_role; delete from charthold.principal;"
            " insert into charthold.principal select * from kept; drop table kept;"
            " update charthold.principal set facility_scope = null, locked_until = null"
        )
    assert failures(await examine(["admins"])) == set()


@pytest.mark.parametrize(
    "by_hand",
    [
        "update charthold.tenant_directory set slug = 'elsewhere' where tenant_id = $1",
        "update charthold.tenant_directory set status = 'closed' where tenant_id = $1",
        "update charthold.tenant_directory set retention_years = 7 where tenant_id = $1",
        "delete from charthold.tenant_directory where tenant_id = $1",
        # One that there is not.
        "insert into charthold.tenant_directory select gen_random_uuid(), 'elsewhere', 'closed', retention_years"
        " from charthold.tenant_directory where tenant_id = $1",
    ],
)
async def test_a_directory_that_says_of_tenants_what_they_do_not_is_told(superuser, clinic, by_hand):
    await superuser.execute("create temporary table kept as table charthold.tenant_directory")
    try:
        await superuser.execute(by_hand, clinic.tenant)
        assert failures(await examine(["admins"])) >= {("admins", "table charthold.tenant_directory")}
    finally:
        await superuser.execute(
            "delete from charthold.tenant_directory; insert into charthold.tenant_directory select * from kept;"
            " drop table kept"
        )
    assert failures(await examine(["admins"])) == set()


@pytest.mark.parametrize("pad", ["inner_pad", "outer_pad"])
async def test_a_token_key_of_somebody_else_under_our_id_is_told(superuser, database, pad):
    mine = database.token_key
    await superuser.execute(
        f"update charthold.token_key set {pad} = sha512('x') where id = $1 and {pad} = $2",
        mine.id,
        getattr(mine, pad),
    )
    assert failures(await examine(["token_keys"])) == {("token_keys", f"token key {mine.id}")}
    await superuser.execute(f"update charthold.token_key set {pad} = $2 where id = $1", mine.id, getattr(mine, pad))
    assert failures(await examine(["token_keys"])) == set()


async def test_token_keys_are_told(superuser):
    await superuser.execute(
        "insert into charthold.token_key (id, inner_pad, outer_pad) values ('strange1', sha512('x'), sha512('y'))"
    )
    assert ("token_keys", "token key strange1") in warnings(await examine(["token_keys"]))
    await superuser.execute("update charthold.token_key set retired_at = now() where id = 'strange1'")
    assert warnings(await examine(["token_keys"])) == set()
    await superuser.execute("delete from charthold.token_key where id = 'strange1'")
    await superuser.execute("update charthold.token_key set retired_at = now()")
    [failure] = failures(await examine(["token_keys"]))
    assert failure[1].startswith("token key ")
    await superuser.execute("update charthold.token_key set retired_at = null")


async def test_a_long_scope_and_unbound_tokens_are_warnings(owner, monkeypatch):
    changed = replace(settings(), scope_seconds=7200, bind_backend=False)
    monkeypatch.setattr("core.doctor.live.settings", lambda: changed)
    found = await examine(["scope_expiry"])
    assert Counter(f.verdict for f in found.findings) == {"warn": 2, "unbuilt": 1}
    assert all("as this configuration says" in f.evidence for f in found.findings)


@pytest.mark.parametrize(("off", "told"), [(-1200, "1,200 seconds behind"), (1200, "1,200 seconds ahead of"), (5, "")])
async def test_a_clock_that_is_not_the_servers_is_a_warning(owner, monkeypatch, off, told):
    monkeypatch.setattr("core.doctor.access.now", lambda: time.time() + off)
    warned = [f for f in (await examine(["scope_expiry"])).findings if f.verdict == "warn"]
    assert [told in f.evidence for f in warned] == [True] * bool(told)


async def test_who_made_the_applications_role_is_a_warning_and_no_member(superuser):
    if await superuser.fetchval("select current_setting('server_version_num')::int < 160000"):
        pytest.skip("before PostgreSQL 16 whoever may add members is one")
    await superuser.execute("create role doctor_test_maker")
    await superuser.execute(f"grant {RUNTIME} to doctor_test_maker with admin true, inherit false, set false")
    try:
        found = await examine(["roles", "drift"])
        assert failures(found) == set()
        assert ("roles", f"admin option of doctor_test_maker in {RUNTIME}") in warnings(found)
        await superuser.execute(f"grant {RUNTIME} to doctor_test_maker with set true")
        assert failures(await examine(["drift"])) == {("drift", f"membership doctor_test_maker in {RUNTIME}")}
    finally:
        await superuser.execute("drop role doctor_test_maker")


@pytest.fixture
def elsewhere(owner, monkeypatch):
    """The application connects with other arguments."""

    def connects(**arguments: str) -> None:
        before = Database.arguments
        monkeypatch.setattr(
            Database, "arguments", lambda self, *, owner: before(self, owner=owner) | ({} if owner else arguments)
        )

    return connects


async def test_an_application_that_connects_to_this_database_is_told(owner):
    [finding] = (await examine(["application"])).findings
    assert finding.verdict == "pass"
    assert finding.evidence.startswith("Connected once as the application: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"database": DATABASE}, f"leads to the database {DATABASE} of this server, and what was looked at is"),
        ({"host": "127.0.0.1", "port": 1}, "The application cannot connect: No connection to"),
        ({"user": "nobody"}, "The application cannot connect: PostgreSQL refused"),
        ({"database": "nosuch"}, "The application cannot connect: PostgreSQL refused"),
    ],
    ids=str,
)
async def test_an_application_that_goes_elsewhere_fails(elsewhere, arguments, says):
    elsewhere(**arguments)
    [finding] = (await examine(["application"])).findings
    assert (finding.verdict, finding.subject) == ("fail", "application")
    assert says in finding.evidence


async def test_a_url_that_cannot_be_read_is_one_finding(owner, monkeypatch, elsewhere):
    changed = replace(settings(), database_url="mysql://app@db/clinic", owner_url="postgres://owner@db/clinic")
    monkeypatch.setattr("core.schema.role.settings", lambda: changed)
    elsewhere(dsn="mysql://app@db/clinic")
    found = await examine()
    assert failures(found) == {("application", "application")}
    assert found.drift == []
    assert "share one login" not in " ".join(finding.evidence for finding in found.findings)


# --- no sentence says more than its check saw -----------------------------------------------------------------------


def holds(found: Examination, check: str) -> str:
    """What a check says to hold."""
    return " ".join(f.evidence for f in found.findings if (f.check, f.verdict) == (check, "pass"))


async def test_what_is_warned_of_is_not_said_to_hold(superuser, monkeypatch):
    at = ("log_min_error_statement = error", "log_error_verbosity = default", "log_min_messages = debug1")
    name = await superuser.fetchval("select quote_ident(current_database())")
    for setting in at:
        await superuser.execute(f"alter database {name} set {setting}")
    try:
        found = await examine(["statement_logging"])
    finally:
        for setting in at:
            await superuser.execute(f"alter database {name} reset {setting.split()[0]}")
    assert {f.verdict for f in found.findings} == {"warn"}

    off = "select current_setting('data_checksums') = 'never'"
    fetchval = asyncpg.Connection.fetchval
    monkeypatch.setattr(
        asyncpg.Connection, "fetchval",
        lambda self, sql, *a, **k: fetchval(self, sql if "data_checksums" not in sql else off, *a, **k),
    )  # fmt: skip
    assert [f.verdict for f in (await examine(["checksums"])).findings] == ["warn"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_statement", "mod"),
        ("log_min_duration_statement", "0"),
        ("log_min_duration_sample", "100"),
        ("log_transaction_sample_rate", "0.5"),
        ("log_parameter_max_length_on_error", "64"),
        ("log_parameter_max_length_on_error", "-1"),
        ("log_min_messages", "debug2"),
    ],
)
@pytest.mark.parametrize("whose", ["database", "role", "role in database"])
async def test_each_setting_by_which_the_server_writes_what_statements_hold_is_told_and_taken_back(
    superuser, name, value, whose
):
    here = await superuser.fetchval("select quote_ident(current_database())")
    place = {
        "database": f"database {here}",
        "role": f"role {RUNTIME}",
        "role in database": f"role {RUNTIME} in database {here}",
    }[whose]
    await superuser.execute(f"alter {place} set {name} = '{value}'")
    try:
        found = await examine(["statement_logging"])
        subject = f"setting {name}" + (f" of {RUNTIME}" if "role" in whose else "")
        assert failures(found) == {("statement_logging", subject)}
        await superuser.execute("\n".join(f.sql for f in found.findings if f.verdict == "fail"))
        assert failures(await examine(["statement_logging"])) == set()
    finally:
        await superuser.execute(f"alter {place} reset {name}")


async def test_what_the_server_writes_of_others_is_told_though_it_writes_nothing_of_the_owner(superuser):
    here, owner = await superuser.fetchrow("select quote_ident(current_database()), quote_ident(current_user)")
    await superuser.execute(f"alter role {owner} in database {here} set log_statement = 'none'")
    await superuser.execute(f"alter database {here} set log_statement = 'all'")
    try:
        found = await examine(["statement_logging"])
        assert failures(found) == {("statement_logging", "setting log_statement of the database")}
        await superuser.execute("\n".join(f.sql for f in found.findings if f.verdict == "fail"))
        assert failures(await examine(["statement_logging"])) == set()
    finally:
        await superuser.execute(f"alter role {owner} in database {here} reset log_statement")
        await superuser.execute(f"alter database {here} reset log_statement")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session_replication_role", "local"),
        ("row_security", "off"),
        ("ignore_checksum_failure", "on"),
        ("password_encryption", "md5"),
    ],
)
async def test_each_setting_that_takes_the_ground_from_under_us_is_told_and_taken_back(superuser, name, value):
    await superuser.execute(f"alter role {RUNTIME} set {name} = '{value}'")
    try:
        found = await examine(["server_settings"])
        assert failures(found) == {("server_settings", f"setting {name} of {RUNTIME}")}
        await superuser.execute("\n".join(f.sql for f in found.findings if f.verdict == "fail"))
        assert failures(await examine(["server_settings"])) == set()
    finally:
        await superuser.execute(f"alter role {RUNTIME} reset {name}")


async def test_a_database_of_another_encoding_fails(owner, monkeypatch):
    fetchval = asyncpg.Connection.fetchval
    monkeypatch.setattr(
        asyncpg.Connection, "fetchval",
        lambda self, sql, *a, **k: fetchval(self, sql.replace("current_setting('server_encoding')", "'LATIN1'"), *a, **k),
    )  # fmt: skip
    told = [f for f in (await examine(["server_settings"])).findings if f.verdict == "fail"]
    assert [f.subject for f in told] == ["setting server_encoding"]
    assert "LATIN1" in told[0].evidence


async def test_a_log_whose_guard_is_off_is_not_said_to_refuse_changes(superuser):
    checks = ["triggers", "append_only", "retention"]
    found = await examine(checks)
    assert "triggers refuse its change" in holds(found, "append_only")
    assert "the log refuses DELETE" in holds(found, "retention")
    await superuser.execute(f"alter table {LOG} disable trigger append_only")
    try:
        found = await examine(checks)
    finally:
        await superuser.execute(f"alter table {LOG} enable trigger append_only")
    assert {check for check, _ in failures(found)} == {"triggers"}
    assert "refuse" not in holds(found, "append_only") + holds(found, "retention")
    assert "six years" in holds(found, "retention")


async def test_disclosures_are_counted_and_those_that_are_withheld_for_good_are_a_warning(lakeside, replica):
    async def told(**values):
        usual = {"disclosed_on": TODAY.date() - timedelta(days=30), "basis": "law_enforcement", "recipient": "A"}
        row = Disclosure(client_id=lakeside.client, description="B", purpose="C", **{**usual, **values})
        async with lakeside.as_admin():
            await row.save()
        return row.id

    rows = [
        await told(),
        await told(disclosed_on=date(2001, 1, 1)),
        await told(withheld_until=TODAY.date() + timedelta(days=30)),
    ]
    try:
        assert "2 disclosures of the last 6 years, 1 of them withheld now, and 1 older" in holds(
            await examine(["accounting_of_disclosures"]), "accounting_of_disclosures"
        )
        rows.append(await told(withheld_until=date(9999, 12, 31)))
        found = await examine(["accounting_of_disclosures"])
        assert warnings(found) == {("accounting_of_disclosures", "column public.disclosure.withheld_until")}
        assert "3 disclosures of the last 6 years" in holds(found, "accounting_of_disclosures")
    finally:
        await replica.execute("delete from disclosure where id = any ($1)", rows)


async def test_reads_that_are_recorded_relaxedly_are_a_warning(owner, monkeypatch):
    changed = replace(settings(), durable_reads=False)
    monkeypatch.setattr("core.doctor.live.settings", lambda: changed)
    assert [f.verdict for f in (await examine(["capture"])).findings] == ["warn", "pass"]


async def test_a_log_that_was_never_sealed_or_never_verified_is_a_warning(replica, owner):
    found = await examine(["seals"])
    assert "signature of each newest head holds" in holds(found, "seals")
    assert [f.evidence for f in found.findings if f.verdict == "warn"] == [
        "Not verified in the last 31 days: 2 of 2 sealed logs, 2 of them never."
    ]
    await replica.execute("create temporary table kept as table audit_seal; delete from audit_seal")
    try:
        found = await examine(["seals"])
    finally:
        await replica.execute("insert into audit_seal select * from kept; drop table kept")
    assert {f.verdict for f in found.findings} == {"warn"}


async def test_a_database_that_nobody_logs_in_to_is_not_said_to_authenticate(replica, clinic):
    found = await examine(["users"])
    assert [f.verdict for f in found.findings] == ["warn", "unbuilt"]
    assert "Charthold authenticates nobody" in found.findings[1].evidence
    await replica.execute(
        f"insert into {LOG} (id, tenant_id, user_id, action_type, reason) values"
        f" ('{clinic.client}', '{clinic.tenant}', '{clinic.admin}', 'login', 'test')"
    )
    found = await examine(["users"])
    await replica.execute(f"delete from {LOG} where id = '{clinic.client}'")
    assert "whom the application authenticates" in holds(found, "users")
    assert "unbuilt" not in {f.verdict for f in found.findings}


# --- what stands beside ours ----------------------------------------------------------------------------------------


async def test_a_default_of_the_applications_login_is_a_warning_and_its_sql_takes_it_back(superuser):
    login = application_login() or RUNTIME
    await superuser.execute(f"alter role {login} set statement_timeout = '1ms'")
    await superuser.execute(f"alter role {RUNTIME} set work_mem = '64kB'")
    told = [f for f in (await examine(["server_settings"])).findings if f.verdict == "warn"]
    await superuser.execute("\n".join(f.sql for f in told))
    assert {f.subject for f in told} == {f"setting statement_timeout of {login}", f"setting work_mem of {RUNTIME}"}
    assert warnings(await examine(["server_settings"])) == set()


@pytest.mark.parametrize(
    ("made", "subject", "gone"),
    [
        (
            "create schema beside; grant usage on schema beside to public; create function beside.all_of() returns bigint"
            " language sql security definer set search_path = '' as 'select count(*) from public.client';"
            f"revoke all on function beside.all_of() from public; grant execute on function beside.all_of() to {RUNTIME}",
            "function beside.all_of()",
            "drop schema beside cascade",
        ),
        ("create publication leak for table client", "publication leak", "drop publication if exists leak"),
        ("create publication leak for all tables", "publication leak", "drop publication if exists leak"),
    ],
)
async def test_what_reaches_into_our_schemas_is_a_warning(superuser, made, subject, gone):
    await superuser.execute(made)
    try:
        told = [f for f in (await examine(["outside", "functions"])).findings if f.verdict == "warn"]
        assert [f.subject for f in told] == [subject]
        await superuser.execute(told[0].sql)
        assert warnings(await examine(["outside"])) == set()
    finally:
        await superuser.execute(gone)


async def test_a_table_of_another_schema_that_looks_like_phi_is_a_warning(superuser):
    await superuser.execute("create schema beside; create table beside.export (id int, ssn text, dob date, code text)")
    try:
        [warned] = [f for f in (await examine(["outside"])).findings if f.verdict == "warn"]
    finally:
        await superuser.execute("drop schema beside cascade")
    assert "1 table in other schemas" in warned.evidence
    assert "beside.export (social security numbers, dates of a person, and ages over 89)" in warned.evidence


@pytest.mark.parametrize("role", ["app_runtime", "app_auditor"])
async def test_each_group_that_is_strong_is_told_of_its_members(superuser, role):
    there = await superuser.fetch(
        "select quote_ident(rolname) from pg_roles where oid = current_user::regrole or rolname in ('pg_read_all_data',"
        " 'pg_write_all_data', 'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program',"
        " 'pg_maintain', 'pg_create_subscription')"
    )
    groups = {row[0] for row in there}
    await superuser.execute(f"grant {', '.join(groups)} to {PREFIX}{role}")
    try:
        found = await examine(["roles"])
    finally:
        await superuser.execute(f"revoke {', '.join(groups)} from {PREFIX}{role}")
    assert failures(found) == {("roles", f"membership {PREFIX}{role} in {group}") for group in groups}


@pytest.mark.parametrize("role", ["app_runtime", "app_auditor"])
async def test_a_role_of_ours_that_is_gone_is_told(superuser, role):
    await superuser.execute(f"alter role {PREFIX}{role} rename to elsewhere")
    try:
        assert ("roles", f"role {PREFIX}{role}") in failures(await examine(["roles"]))
    finally:
        await superuser.execute(f"alter role elsewhere rename to {PREFIX}{role}")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ("login bypassrls", "BYPASSRLS"),
        ("login superuser", "superuser"),
        ("login in role current_user", "member of {owner}"),
    ],
)
async def test_another_login_past_the_policies_is_a_warning(superuser, made, why):
    owner = await superuser.fetchval("select quote_ident(current_user)")
    await superuser.execute(f"create role doctor_test_login {made.replace('current_user', owner)}")
    try:
        found = await examine(["roles"])
        assert any("doctor_test_login" in finding.evidence for finding in found.findings if finding.verdict == "warn")
        assert {"role": "doctor_test_login", "why": why.format(owner=owner)} in found.shown["bypass"]
    finally:
        await superuser.execute("drop role doctor_test_login")


async def test_an_index_whose_values_may_all_be_too_short_for_it_is_a_warning(superuser):
    """The first patient of a clinic is called Ng, and the names are indexed by their first three letters."""
    full = await superuser.fetch("select last_name_prefix, id from client where last_name_prefix is not null")
    assert full
    await superuser.execute(f"{AS_REPLICA} update client set last_name_prefix = null")
    found = await examine(["blind_indexes"])
    await superuser.executemany("update client set last_name_prefix = $1 where id = $2", [tuple(row) for row in full])
    await superuser.execute("reset session_replication_role")
    assert failures(found) == set()
    [told] = [finding for finding in found.findings if finding.verdict == "warn"]
    assert told.subject == "column public.client.last_name_prefix"
    assert "too short" in told.evidence
    assert not [finding for finding in found.findings if finding.verdict == "pass"]


async def test_a_bound_owner_sees_the_tenants_in_the_name_of_their_admins(superuser, clinic):
    """With an owner whom FORCE binds, the doctor looks tenant by tenant and says the same."""
    from core.doctor.live import Live
    from core.schema.lock import migrating

    async with migrating(locked=False) as connection:
        live = await Live.read(connection, registered.tables())
        live.bypasses = False
        rows = await live.ask("select $1::uuid as tenant, (select charthold.tenant_id()) as here")
        assert rows is not None
        assert [row["tenant"] for row in rows] == [row["here"] for row in rows] == [t.id for t in live.tenants]
        notes = Notes("admins", "164.312(d)")
        await admins(live, notes)
        assert [finding.verdict for finding in notes.findings] == ["pass"]


# --- what needs no database ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "identifier"),
    {
        "phone2": "telephone", "dob": "date", "member_no": "health_plan", "lastName": "name", "patient_no": "mrn",
        "social_security": "ssn", "zip_code": "geography", "home_address": "geography", "fax_number": "fax",
        "drivers_license": "certificate", "vin": "vehicle", "device_serial": "device", "homepage_url": "url",
        "ip_address": "ip", "fingerprint": "biometric", "portrait": "photo", "account_no": "account",
        "remarks": "other", "case_number": "other", "email_address": "email", "age": "date",
    }.items(),
)  # fmt: skip
def test_a_look_alike_is_recognised(column, identifier):
    assert looks_like(column) == identifier


@pytest.mark.parametrize("column", ["status", "kind", "capacity", "created_at", "version", "time_zone", "slug", "role"])
def test_a_plain_name_is_none(column):
    assert looks_like(column) is None


@pytest.mark.parametrize(
    "text",
    [
        "2026-07-01T10:00:00Z", "2026-07-01 10:00:00", "0198c0de-0000-7000-8000-000000000001", "1234567893",
        "000-12-3456", "v1.2.3", "12:30", "a@b", "core_0001", "$1,234.50", "127.0.0.1", "2026-7", "100 200 3000",
    ],
)  # fmt: skip
def test_a_plain_value_has_no_shape(text):
    assert shapes_in(text) == set()


class Visit(TenantTable, tablename="doctor_test_visit"):
    starts_at = Timestamptz(default=None)
    room = Text(default=None)
    member_no = Text(default=None)
    phone = Text(default=None)
    waived = {"phone": "of the ward"}


def test_a_column_is_classified_by_declaration_type_and_name():
    types = {c._meta.db_column_name: "text" for c in Visit._meta.columns} | {
        "id": "uuid", "tenant_id": "uuid", "starts_at": "timestamp with time zone", "extra": "jsonb",
    }  # fmt: skip
    said = {item.column: (item.kind, item.identifier) for item in classify("public.visit", Visit, types)}
    assert said["room"] == ("not PHI", None)
    assert said["member_no"] == ("unclassified", "health_plan")
    assert said["phone"] == ("waived", "telephone")
    assert said["extra"] == ("unclassified", "other")
    assert said["id"] == ("not PHI", None)
    of_client = {i.column: i.kind for i in classify("public.client", Client, {"starts_at": "timestamp with time zone"})}
    assert (of_client["starts_at"], of_client["ssn"], of_client["ssn_exact"]) == (
        "unclassified", "encrypted", "blind index",
    )  # fmt: skip


async def test_a_column_that_no_class_declares_is_not_recorded_and_may_be_waived(superuser, monkeypatch):
    await superuser.execute(
        "alter table facility add column initials text generated always as (left(name, 1)) stored, add column dob text"
    )
    monkeypatch.setattr(Facility, "waived", {**Facility.waived, "dob": "of the house"})
    try:
        assert failures(await examine(["phi_columns", "capture"])) == {("capture", "column public.facility.dob")}
    finally:
        await superuser.execute("alter table facility drop column initials, drop column dob")


async def test_a_waiver_without_a_column_or_a_reason_fails(owner, monkeypatch):
    monkeypatch.setattr(Facility, "waived", {**Facility.waived, "phone": " ", "gone": "renamed"})
    assert failures(await examine(["phi_columns"])) == {
        ("phi_columns", "waiver public.facility.phone"),
        ("phi_columns", "column public.facility.phone"),
        ("phi_columns", "waiver public.facility.gone"),
    }


def judged(function, *arguments) -> list[Finding]:
    notes = Notes("test", "164.312(e)")
    function(*arguments, notes)
    return [finding for finding in notes.findings if finding.verdict != "pass"]


def test_a_remote_connection_in_clear_fails_and_others_do_not():
    row = {"ours": True, "application": False, "remote": True, "tls": False}
    assert [f.verdict for f in judged(judge, [row])] == ["fail"]
    assert judged(judge, [row | {"tls": True}, row | {"remote": False}, row | {"ours": False}]) == []


def test_a_server_that_is_behind_is_a_warning():
    major, minor = max(LATEST.items())
    day = date(2026, 9, 1)
    assert judged(judge_version, major * 10_000 + minor, day) == []
    assert judged(judge_version, major * 10_000 + minor + 5, day) == []
    assert [f.verdict for f in judged(judge_version, major * 10_000 + minor - 1, day)] == ["warn"]
    assert [f.verdict for f in judged(judge_version, 140_024, day)] == ["fail"]
    assert [f.verdict for f in judged(judge_version, 150_019, date(2028, 1, 1))] == ["warn"]


def test_every_check_is_evidence_of_a_safeguard_and_every_safeguard_has_one():
    assert {check.safeguard for check in CHECKS.values()} == set(RULES)


# --- the command ----------------------------------------------------------------------------------------------------


async def test_the_command_prints_json_of_the_documented_shape(owner, capsys):
    assert await doctor.__wrapped__(json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    documented = (Path(__file__).parent.parent / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert printed["format"] == "charthold.doctor.v1"
    assert printed["verdict"] == "pass"
    for name in (*printed, *printed["findings"][0], *printed["safeguards"][0]):
        assert f"`{name}`" in documented, name
    assert {f"`{name}`" for name in check_names()} <= set(re.findall("`[a-z_]+`", documented))


async def test_the_command_exits_with_1_on_a_failure_and_quietly_tells_that_alone(superuser, capsys):
    await superuser.execute("alter table client no force row level security")
    try:
        assert await doctor.__wrapped__(quiet=True) == 1
        said = capsys.readouterr().out
        assert said.count("FAIL") == 1
        assert "alter table public.client force row level security;" in said
        assert "pass" not in said
        assert await doctor.__wrapped__(only="functions, views", quiet=True) == 0
        assert capsys.readouterr().out == ""
    finally:
        await superuser.execute("alter table client force row level security")


SLEEP = "select pg_sleep(9), $1::uuid"


@pytest.mark.parametrize(
    ("name", "constant", "sql", "says", "says_not"),
    [
        ("seals", "integrity.HEADS", SLEEP, "It was", "have a head"),
        ("seals", "integrity.UNSEALED", SLEEP, "The count of what is not sealed yet was", "wait for the next"),
        ("seals", "integrity.VERIFIED", SLEEP, "The search for the last verification was", "verified"),
        ("users", "authentication.USERS", SLEEP, "It was", "active user"),
        ("users", "authentication.LOGINS", SLEEP, "It was", "logins in"),
        ("admins", "authentication.UNLIKE", SLEEP, "It was", "agrees with app_user"),
        ("raw_values", "coverage.LATEST", SLEEP, "The sample of the log was", "of the log"),
        ("raw_values", "coverage.SAMPLE", "(select 9 from pg_sleep(9))", "The sample of charthold.", "plain column"),
        ("keys", "encryption.KEYS", SLEEP, "It was", "key version"),
        ("keys", "encryption.USES", f"{SLEEP}, $2::text[]", "The count of each key's uses was", "the most used"),
        (
            "accounting_of_disclosures",
            "individuals.DISCLOSURES",
            f"{SLEEP}, $2::int",
            "The count of disclosures was",
            "of the last",
        ),
        (
            "activity_review",
            "review.ACTIVITY",
            f"{SLEEP}, $2::int",
            "The count of the last month's records was",
            "in the last 30 days",
        ),
    ],
)
async def test_what_takes_too_long_is_skipped_and_not_taken_for_nothing(
    owner, monkeypatch, name, constant, sql, says, says_not
):
    monkeypatch.setattr(f"core.doctor.{constant}", sql)
    found = await examine([name], patience=0.05)
    assert failures(found) == set()
    (skipped,) = (f for f in found.findings if f.verdict == "skipped")
    assert skipped.evidence.startswith(says)
    assert skipped.evidence.endswith("was not completed: a question about the data took too long.")
    assert f"piccolo core doctor --only={name} --patience=60" in skipped.mend
    assert says_not not in " ".join(f.evidence for f in found.findings if f.verdict in {"pass", "unbuilt"})


async def test_the_command_exits_with_3_when_part_was_skipped_and_with_1_when_something_fails_too(
    superuser, capsys, monkeypatch
):
    monkeypatch.setattr("core.doctor.integrity.HEADS", SLEEP)
    assert await doctor.__wrapped__(only="seals", patience=0.05, quiet=True) == 3
    assert "skipped seals: It was not completed" in capsys.readouterr().out
    assert await doctor.__wrapped__(only="seals", patience=0.05, json=True) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "skipped"
    await superuser.execute("alter table client no force row level security")
    try:
        assert await doctor.__wrapped__(only="seals,row_security", patience=0.05, quiet=True) == 1
    finally:
        await superuser.execute("alter table client force row level security")


async def test_a_verification_that_was_not_looked_for_is_not_reported_as_none(owner, monkeypatch):
    monkeypatch.setattr("core.doctor.integrity.VERIFIED", SLEEP)
    page = Page(render(await examine(["seals"], patience=0.05), registered.tables()))
    words = " ".join(" ".join(page.words).split())
    assert "When was the log last verified? Not looked at" in words
    assert "No verification is on record" not in words


async def test_an_unknown_check_is_a_sentence(owner, capsys):
    with pytest.raises(SystemExit) as stopped:
        await asyncio.to_thread(doctor, only="everything")
    assert stopped.value.code == 2
    assert "There is no check everything. --only takes drift," in capsys.readouterr().err


async def test_a_report_that_cannot_be_written_is_a_sentence(owner, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        await asyncio.to_thread(doctor, only="views", report=str(tmp_path / "no" / "r.html"))
    assert stopped.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


async def test_a_report_that_finds_no_room_leaves_the_one_that_was_there(owner, capsys, tmp_path, monkeypatch):
    report, write = tmp_path / "r.html", Path.write_text
    report.write_text("the last one")

    def full(path, text, **options):
        write(path, text[:100], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as stopped:
        await asyncio.to_thread(doctor, only="views", report=str(report))
    assert stopped.value.code == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("r.html", "the last one")]


async def test_a_report_takes_the_place_of_what_a_link_names_and_is_shown_to_nobody_who_did_not_see_that(
    owner, tmp_path, monkeypatch
):
    elsewhere, written, write = tmp_path / "elsewhere", [], Path.write_text  # perhaps another disk
    elsewhere.mkdir()
    there, link = elsewhere / "r.html", tmp_path / "link.html"
    there.write_text("the last one")
    there.chmod(0o600)
    link.symlink_to(there)

    def noted(path, text, **options):
        write(path, text, **options)
        written.append((path.parent, path.stat().st_mode & 0o777))

    monkeypatch.setattr(Path, "write_text", noted)
    await asyncio.to_thread(doctor, only="views", report=str(link))
    assert written == [(elsewhere, 0o600)]
    assert (link.is_symlink(), there.stat().st_mode & 0o777) == (True, 0o600)
    assert there.read_text().startswith("<!doctype html>")


async def test_the_sample_is_looked_at_in_less_than_five_seconds(owner, capsys):
    assert await import_export(tenant="synthea") == 0
    began = time.monotonic()
    found = await examine()
    assert time.monotonic() - began < 5
    assert failures(found) == set()


# --- the report -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page would fetch, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.asked: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        given = dict(attrs)
        self.ids |= {given["id"]} if given.get("id") else set()
        self.asked += [given[name] for name in ("src", "href", "srcset", "data", "action") if given.get(name)]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
async def page(owner) -> str:
    return render(await examine(), registered.tables())


async def test_the_report_needs_nothing_else(page):
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(parsed.tags)
    assert all(asked.startswith("#") and asked[1:] in parsed.ids for asked in parsed.asked)
    assert not re.search(r"https?:|(?<![:\w])//|url\(|@import", page)
    assert "default-src 'none'" in page


async def test_the_report_says_in_words_and_symbols_what_it_says_in_colours(page):
    chips = re.findall(r'<span class="chip (\w+)">(.*?)</span>', page)
    words = {
        "pass": "✓ holds", "warn": "! review", "fail": "✗ fails", "skipped": "? skipped", "unbuilt": "○ not built",
    }  # fmt: skip
    assert {verdict for verdict, _ in chips} <= set(words)
    assert all(text == words[verdict] for verdict, text in chips)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


async def test_the_report_answers_the_three_questions_first(page):
    text = " ".join(" ".join(Page(page).words).split())
    top = text[: text.index("Verdicts")]
    for question in ("Which safeguards hold?", "Who can read PHI?", "When was the log last verified?"):
        assert question in top
    for title in RULES.values():
        assert title in top


async def test_the_first_screen_has_room_for_every_table_of_ones_own(owner):
    found = await examine()
    more = [f"public.table_number_{n}" for n in range(30)]
    sealed = next(item for item in found.shown["phi"] if (item.table, item.kind) == ("public.client", "encrypted"))
    rights = next(r for r in found.shown["matrix"] if (r["table"], r["command"]) == ("public.client", "select"))
    found.shown["phi"] += [replace(sealed, table=table) for table in more]
    found.shown["matrix"] += [rights | {"table": table, "billing": "no"} for table in more]
    page = render(found, registered.tables())
    reading = page[page.index("Who can read PHI?") : page.index("Past the policies")]
    assert Page(reading).tags["th"] == 4  # the role, its users, those that are bound, and what they read
    words = " ".join("".join(Page(reading).words).split())
    assert (
        f"PHI is in {', '.join(sorted(['client', 'disclosure', *(t.removeprefix('public.') for t in more)]))}." in words
    )
    assert words.count("table_number_29") == 2  # and where billing may not read it


async def test_the_report_escapes_and_holds_no_phi(clinic, owner, monkeypatch):
    found = await examine()
    hostile = "<script>alert(1)</script>"
    found.findings.append(Finding(check="drift", verdict="fail", safeguard="164.312(b)", evidence=hostile, sql=hostile))
    found.shown["seals"][0]["tenant"] = hostile
    found.database = hostile
    said = render(found, registered.tables())
    assert "<script" not in said
    assert "&lt;script&gt;alert(1)" in said
    for phi in ("Nguyen", "5017", "ana.nguyen", "Stamm Lock", "afraid of needles", "lakeside.example"):
        assert phi not in said


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_real_browser_shows_the_answers_on_the_first_screen_and_asks_nobody(page, tmp_path, scheme):
    found = browser()
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine; the parser's tests stand in")
    # The policy of the page allows no script, so the copy that measures itself has none.
    measured = (
        page.replace("default-src 'none'; ", "")
        .replace(
            "</body>",
            "<script>const r = document.getElementById('summary').getBoundingClientRect();"
            "document.title = JSON.stringify({bottom: r.bottom, wide: document.documentElement.scrollWidth,"
            "fetched: performance.getEntriesByType('resource').length,"
            "ground: getComputedStyle(document.body).backgroundColor});</script></body>",
        )
        .replace("style-src 'unsafe-inline'", "")
    )
    file = tmp_path / "report.html"
    file.write_text(measured, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        shown = await asyncio.to_thread(
            subprocess.run,
            [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             f"--user-data-dir={profile}", "--window-size=1280,800", "--virtual-time-budget=2000",
             f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"HOME": profile},
        )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert title, shown.stderr[-500:]
    seen = json.loads(title[1].replace("&quot;", '"'))
    assert seen["fetched"] == 0
    assert seen["bottom"] <= 800
    assert seen["wide"] <= 1280
    lightness = sum(map(int, re.findall(r"\d+", seen["ground"])[:3]))
    assert (lightness < 200) == (scheme == "dark")
