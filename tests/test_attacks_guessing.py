"""Whoever runs any SQL in a scope of one tenant guesses nothing of another: not by errors, plans, or what ran.

PostgreSQL evaluates a sub-select of a policy when the first row reaches it, and puts cheap conditions whose operators
are leakproof before a policy's. So each guess is a condition on a row that exists at Hillside, then on one that exists
nowhere; and everything that could tell the two apart is compared: rows, errors, the plan as it ran, and whether a
sub-select of the attacker's ran. A bit a guess is enough to read any column by bisection.
"""

from __future__ import annotations

import time
from datetime import date
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from core.engine import ChartholdEngine
from core.ids import uuid7
from core.tables import Client, Facility, User
from tests.conftest import Clinic

# What the planner may choose is the attacker's to say.
SCANS = {
    "as the planner likes": (),
    "table scan": ("set local enable_indexscan = off", "set local enable_indexonlyscan = off", "set local enable_bitmapscan = off"),
    "bitmap scan": ("set local enable_seqscan = off", "set local enable_indexscan = off", "set local enable_indexonlyscan = off"),
    "parallel scan": ("set local enable_indexscan = off", "set local enable_indexonlyscan = off", "set local enable_bitmapscan = off", "set local debug_parallel_query = on", "set local min_parallel_table_scan_size = 0", "set local parallel_setup_cost = 0", "set local parallel_tuple_cost = 0"),
}  # fmt: skip

# The table, and its column with an id of a row that the attacker may know: ids stand in addresses and exports.
TABLES = {
    "client": "id",
    "facility": "id",
    "app_user": "id",
    "tenant": "id",
    "tenant_key": "tenant_id",
    "user_action_audit_log": "record_id",
}

PROBE = "(select set_config('attack.ran', 'yes', true))"

# OWN, CLAIM and NONE say which context is set.
QUESTIONS = {
    "by an error of a claim": ("CLAIM", "select 1 from TABLE where COLUMN = 'GUESS'"),
    "by an error of a claim, of one of several": ("CLAIM", "select 1 from TABLE where COLUMN = any ('{GUESS}')"),
    "by an error of a claim, of a row to lock": ("CLAIM", "select 1 from TABLE where COLUMN = 'GUESS' for key share"),
    "by an error of a claim, of an update": ("CLAIM", "update TABLE set COLUMN = COLUMN where COLUMN = 'GUESS'"),
    "by an error of a claim, of a merge": ("CLAIM", "merge into TABLE as t using (select 1) as s on t.COLUMN = 'GUESS' when matched then do nothing"),
    "by an error without a scope": ("NONE", "select 1 from TABLE where COLUMN = 'GUESS'"),
    "by an error without a scope, of one of several": ("NONE", "select 1 from TABLE where COLUMN = any ('{GUESS}')"),
    "by an error without a scope, by two conditions": ("NONE", "select 1 from TABLE where created = any ('{2000-01-01}') is not null and COLUMN = any ('{GUESS}')"),
    "by the plan as it ran": ("OWN", "explain (analyze, costs off, timing off, summary off, buffers off) select 1 from TABLE where COLUMN = 'GUESS'"),
    "by the plan as it ran, of one of several": ("OWN", "explain (analyze, costs off, timing off, summary off, buffers off) select 1 from TABLE where COLUMN = any ('{GUESS}')"),
    "by a sub-select that runs": ("OWN", f"select 1 from TABLE where case when COLUMN = 'GUESS' then {PROBE} end is null"),
    "by a sub-select that runs, of one of several": ("OWN", f"select 1 from TABLE where case when COLUMN = any ('{{GUESS}}') then {PROBE} end is null"),
    "by a sub-select that runs, in a join": ("OWN", f"select 1 from (values (1)) as v left join TABLE on case when COLUMN = any ('{{GUESS}}') then {PROBE} end is null"),
    "by a sub-select that runs, behind a claim": ("CLAIM", f"select 1 from TABLE where case when COLUMN = 'GUESS' then {PROBE} end is null"),
    "by a context that ends half-way": ("OWN", "select (select t.COLUMN from TABLE as t where t.COLUMN = any (array[v.g]) and v.s is not null) from (select g::uuid, set_config('charthold.scope', '', true) as s from unnest('{GUESS}'::text[]) as g offset 0) as v"),
    "by a context that ends between fetches": ("OWN", "do $$ declare c cursor for select 1 from TABLE where COLUMN = any ('{GUESS}'); begin open c; perform set_config('charthold.scope', '', true); fetch c; close c; end $$"),
    "by an aggregate's plan": ("OWN", "explain (analyze, costs off, timing off, summary off, buffers off) select min(COLUMN::text) from TABLE where COLUMN = any ('{GUESS}')"),
}  # fmt: skip

# A value of a row whose id is known, found by halves: right, and beyond it.
BISECTIONS = {
    "sealed notes": ("client", "notes >= '\\x00'", "notes >= '\\xff'"),
    "a status": ("client", "status = any ('{active}')", "status = any ('{deceased}')"),
    "a birth of a row": ("client", "created_at > any ('{2000-01-01}'::timestamptz[])", "created_at > any ('{2900-01-01}'::timestamptz[])"),
    "a facility's name": ("facility", "name < any ('{Mainz}')", "name < any ('{Maim}')"),
    "an e-mail address": ("app_user", "email > any ('{ada}')", "email > any ('{zoe}')"),
    "a wrapped key": ("tenant_key", "wrapped >= any ('{\"\\\\x00\"}')", "wrapped > any ('{\"\\\\xffffffff\"}')"),
    "a tenant's name": ("tenant", "name = any ('{Hillside}')", "name = any ('{Hillsides}')"),
}  # fmt: skip


async def answer(
    database: ChartholdEngine,
    mine: Clinic,
    theirs: Clinic,
    context: str,
    settings: tuple[str, ...],
    statement: str,
    guess: str,
    actor: UUID | None = None,
) -> Any:
    """All that can be observed of one guess."""
    connection = await database.connect(owner=False)
    own = database.token_key.sign(
        tenant=mine.tenant,
        actor=actor or mine.admin,
        expires=int(time.time()) + 60,
        backend=connection.get_server_pid(),
        reason="guess",
    )
    tokens = {"OWN": own, "CLAIM": own[:92] + str(theirs.tenant) + own[128:], "NONE": ""}
    try:
        await connection.execute("begin")
        for setting in settings:
            if "debug_parallel_query" in setting and connection.get_server_version() < (16,):
                setting = setting.replace("debug_parallel_query", "force_parallel_mode")
            await connection.execute(setting)
        await connection.execute("select set_config('attack.ran', 'no', true)")
        await connection.fetchval("select set_config('charthold.scope', $1, true)", tokens[context])
        try:
            rows: Any = [tuple(row) for row in await connection.fetch(statement.replace("GUESS", guess))]
            ran = await connection.fetchval("select current_setting('attack.ran')")
        except asyncpg.PostgresError as error:
            rows, ran = (error.sqlstate, str(error)), None
        return repr(rows).replace(guess, "?"), ran
    finally:
        connection.terminate()


def known_id(theirs: Clinic, table: str) -> UUID:
    """The id of a row of theirs, or what stands for it in the table's column."""
    return {
        "client": theirs.client,
        "facility": theirs.facility,
        "app_user": theirs.clinician,
        "tenant": theirs.tenant,
        "tenant_key": theirs.tenant,
        "user_action_audit_log": theirs.client,
    }[table]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("table", TABLES)
async def test_no_id_is_guessed(
    table: str, scan: str, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    right, told = str(known_id(hillside, table)), []
    for name, (context, question) in QUESTIONS.items():
        statement = (
            question.replace("TABLE", table)
            .replace("COLUMN", TABLES[table])
            .replace("created", "occurred_at" if table == "user_action_audit_log" else "created_at")
        )
        answers = [
            await answer(database, lakeside, hillside, context, SCANS[scan], statement, guess)
            for guess in (right, str(uuid7()))
        ]
        if answers[0] != answers[1]:
            told.append(name)
    assert told == []


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", BISECTIONS)
async def test_no_value_is_found_by_halves(
    name: str, scan: str, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    table, right, wrong = BISECTIONS[name]
    column, known = TABLES[table], known_id(hillside, table)
    told = []
    for context in ("CLAIM", "NONE"):
        answers = [
            await answer(
                database, lakeside, hillside, context, SCANS[scan],
                f"select 1 from {table} where {column} = any ('{{{known}}}') and GUESS", condition,
            )
            for condition in (right, wrong)
        ]  # fmt: skip
        if answers[0] != answers[1]:
            told.append(context)
    answers = [
        await answer(
            database, lakeside, hillside, "OWN", SCANS[scan],
            f"select 1 from {table} where {column} = any ('{{{known}}}') and case when GUESS then {PROBE} end is null",
            condition,
        )
        for condition in (right, wrong)
    ]  # fmt: skip
    if answers[0] != answers[1]:
        told.append("a sub-select that runs")
    assert told == []


async def test_what_can_be_told_of_a_row_of_ones_own_is_told(
    database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    """The questions work: of a row of Lakeside's the same conditions tell what they ask."""
    question = f"select 1 from facility where case when id = any ('{{GUESS}}') then {PROBE} end is null"
    answers = [
        await answer(database, lakeside, hillside, "OWN", SCANS["table scan"], question, str(guess))
        for guess in (lakeside.facility, uuid7())
    ]
    assert [ran for _, ran in answers] == ["yes", "no"]


# PostgreSQL counts nothing for these, so no condition of a policy can come first: whether some row of some tenant, nobody
# says whose, has a null, or exactly that text. A row's tenant or id cannot be asked so, nor can what is sealed.
FREE_QUESTIONS = {
    "a null": ("client", "insurance_member_id is null", "first_name is null"),
    "a text that is guessed whole": (
        "app_user",
        "('{\"clinician@hillside.example\": 1}'::jsonb)[email] is not null",
        "('{\"nobody@hillside.example\": 1}'::jsonb)[email] is not null",
    ),
}


@pytest.mark.parametrize("name", FREE_QUESTIONS)
async def test_what_costs_nothing_cannot_be_closed(
    name: str, database: ChartholdEngine, lakeside: Clinic, hillside: Clinic
) -> None:
    table, *conditions = FREE_QUESTIONS[name]
    question = f"select 1 from {table} where case when GUESS then {PROBE} end is null"
    ran = [
        (await answer(database, lakeside, hillside, "OWN", SCANS["table scan"], question, condition))[1]
        for condition in conditions
    ]
    assert ran == ["yes", "no"]


async def test_between_facilities_of_one_tenant_a_sub_select_that_runs_cannot_be_closed(
    database: ChartholdEngine, lakeside: Clinic
) -> None:
    """Which facilities are a user's is a list, and to look in a list costs more than a guess, so the guess goes first.

    No row is shown, and none of another tenant is told; but somebody who is bound to facilities and runs any SQL can ask
    this of the rest of the tenant.
    """
    async with lakeside.as_admin():
        elsewhere = Facility(name="Elsewhere")
        await elsewhere.save()
        other = Client(facility_id=elsewhere.id, first_name="Bob", last_name="Moss", date_of_birth=date(1990, 1, 1))
        await other.save()
        bound = User(
            email="bound@mail.example", full_name="Bound", role="clinician", status="active",
            facility_scope=[lakeside.facility],
        )  # fmt: skip
        await bound.save()
    question = f"select 1 from client where case when id = any ('{{GUESS}}') then {PROBE} end is null"
    answers = [
        await answer(database, lakeside, lakeside, "OWN", SCANS["table scan"], question, str(guess), actor=bound.id)
        for guess in (other.id, uuid7())
    ]
    assert [ran for _, ran in answers] == ["yes", "no"]
    assert answers[0][0] == answers[1][0], "but no row is shown"
