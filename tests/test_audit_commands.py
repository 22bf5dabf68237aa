"""The log's answers on the command line, for an auditor."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import asyncpg
import pytest

from core.commands.audit import audit_history, audit_search, audit_who_saw
from core.commands.partitions import partitions
from core.errors import ChartholdError
from core.tables import Client
from tests.conftest import Clinic

ID = "0198c0de-0000-7000-8000-000000000001"


async def told(capsys: pytest.CaptureFixture[str], command: Any, *args: Any, **options: Any) -> Any:
    """What the command prints as JSON. The function under the decorator runs in this event loop."""
    await command.__wrapped__(*args, json=True, **options)
    return json.loads(capsys.readouterr().out)


async def test_history_who_saw_and_search_answer_as_json(lakeside: Clinic, capsys: Any) -> None:
    async with lakeside.as_clinician("rounds"):
        await Client.select(Client.ssn).where(Client.id == lakeside.client)
    record = str(lakeside.client)
    changes = await told(capsys, audit_history, record, tenant="lakeside")
    assert ("insert", "last_name", "Nguyen") in [(c["action"], c["field"], c["new"]) for c in changes]
    seen = await told(capsys, audit_who_saw, record, tenant="lakeside", actor="auditor@lakeside.example")
    assert (str(lakeside.clinician), "ssn", "rounds") in {(s["user_id"], s["columns"], s["reason"]) for s in seen}
    found = await told(capsys, audit_search, tenant="lakeside", action="read", record=record, reason="rounds")
    assert [row["record_id"] for row in found] == [record]
    searches = await told(capsys, audit_search, tenant="lakeside", action="audit_read")
    assert searches, "searching is itself recorded"


async def test_csv_has_a_header_and_whole_ids(lakeside: Clinic, capsys: Any) -> None:
    await audit_search.__wrapped__(tenant="lakeside", action="insert", table="client", csv=True)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[0] == "id"
    assert {"user", "request_id", "source_ip"} <= {*header}
    assert str(lakeside.client) in {row[header.index("record_id")] for row in rows}


async def test_a_user_is_named_by_e_mail(lakeside: Clinic, capsys: Any) -> None:
    async with lakeside.as_clinician("rounds"):
        await Client.select(Client.ssn).where(Client.id == lakeside.client)
    email, record = "clinician@lakeside.example", str(lakeside.client)
    found = await told(capsys, audit_search, tenant="lakeside", user=f" {email.upper()}")
    assert found
    assert {(row["user"], row["user_id"]) for row in found} == {(email, str(lakeside.clinician))}
    assert found == await told(capsys, audit_search, tenant="lakeside", user=str(lakeside.clinician))
    assert email in {row["user"] for row in await told(capsys, audit_who_saw, record, tenant="lakeside")}
    changes = await told(capsys, audit_history, record, tenant="lakeside")
    assert {row["user"] for row in changes} == {"ada@lakeside.example"}


async def test_who_saw_says_that_there_are_more(lakeside: Clinic, capsys: Any) -> None:
    for _ in range(3):
        async with lakeside.as_clinician("rounds"):
            await Client.select(Client.ssn).where(Client.id == lakeside.client)
    await audit_who_saw.__wrapped__(str(lakeside.client), tenant="lakeside", limit=2, json=True, quiet=True)
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert captured.err == "These are the latest 2; there are more. Ask for them with a higher --limit.\n"
    await audit_who_saw.__wrapped__(str(lakeside.client), tenant="lakeside", json=True, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", ["80", "200"])
async def test_a_value_cannot_be_taken_for_another_record(
    lakeside: Clinic, capsys: Any, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    forged = "x\n\noccurred_at  2026-01-01\naction       delete\x1b[1A\x1b[2K\u202e"
    async with lakeside.as_clinician():
        await Client.update({Client.first_name: forged}).where(Client.id == lakeside.client)
    await audit_history.__wrapped__(str(lakeside.client), tenant="lakeside")
    shown = capsys.readouterr().out
    assert r"x\n\noccurred_at  2026-01-01\naction       delete\x1b[1A\x1b[2K\u202e" in shown
    assert "\x1b[1A" not in shown
    await audit_history.__wrapped__(str(lakeside.client), tenant="lakeside", json=True)
    assert forged in [change["new"] for change in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize("width", ["80", "200"])
async def test_no_width_cuts_an_id_in_pieces(
    lakeside: Clinic, capsys: Any, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    await audit_search.__wrapped__(tenant="lakeside", action="insert", table="client")
    shown = capsys.readouterr().out
    assert str(lakeside.client) in shown
    assert ("┃" in shown) == (width == "200")


async def test_quiet_leaves_out_the_remark_that_nothing_was_found(lakeside: Clinic, capsys: Any) -> None:
    await audit_search.__wrapped__(tenant="lakeside", reason="no such reason")
    assert capsys.readouterr().out == "Nothing found.\n"
    await audit_search.__wrapped__(tenant="lakeside", reason="no such reason", quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (audit_history, {"record": "not-an-id", "tenant": "lakeside"}, "An id is a UUID"),
        (audit_history, {"record": ID, "tenant": "lakeside", "since": "yesterday"}, "A time is written 2026-01-31"),
        (audit_search, {"tenant": "nobody"}, "There is no tenant nobody. Choose one with --tenant=SLUG: "),
        (audit_search, {"tenant": "all"}, "one tenant at a time"),
        (audit_search, {"tenant": "lakeside", "action": "nosuch"}, "--action takes one of insert, update"),
        (audit_search, {"tenant": "lakeside", "table": "nosuch"}, "--table takes one of activity_review, app_user"),
        (audit_search, {"tenant": "lakeside", "user": "nobody@nowhere.example"}, "no user with the e-mail"),
        (audit_search, {"tenant": "lakeside", "user": "nobody"}, "An id is a UUID"),
        (audit_who_saw, {"record": ID, "tenant": "lakeside", "table": "castle"}, "--table takes one of"),
        (audit_who_saw, {"record": ID, "tenant": "lakeside", "limit": 0}, "1 or more"),
        (partitions, {"ahead": 999}, "0 to 120"),
        (partitions, {"archive": "yesterday"}, "as 2019-03"),
        (partitions, {"archive": "1999-01"}, "is not a month of the audit log"),
    ],
)
async def test_a_mistake_is_one_sentence(lakeside: Clinic, command: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ChartholdError, match=says):
        await command.__wrapped__(**options)


async def test_a_command_without_an_actor_says_who_ran_it(
    lakeside: Clinic, owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """164.312(a)(2)(i): it acts in an admin's name, who may be asleep."""
    monkeypatch.setattr("getpass.getuser", lambda: "zo\x1bé")
    latest = (
        "select user_id, reason from user_action_audit_log where action_type = 'audit_read' order by occurred_at desc"
    )
    await audit_search.__wrapped__(tenant="lakeside")
    row = await owner.fetchrow(latest)
    assert row["reason"] == r"audit; run by the system's user zo\x1b\xe9, who named no actor"
    await audit_search.__wrapped__(tenant="lakeside", actor=str(lakeside.auditor))
    assert tuple(await owner.fetchrow(latest)) == (lakeside.auditor, "audit")
