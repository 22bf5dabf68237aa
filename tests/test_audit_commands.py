"""The log's answers on the command line, for an auditor."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from core.commands.audit import audit_history, audit_search, audit_who_saw
from core.commands.partitions import partitions
from core.tables import Client
from tests.conftest import Clinic


async def told(capsys: pytest.CaptureFixture[str], command: Any, *args: Any, **options: Any) -> Any:
    """What the command prints as JSON. The function under the decorator runs in this event loop."""
    await command.__wrapped__(*args, json=True, **options)
    return json.loads(capsys.readouterr().out)


async def test_history_who_saw_and_search_answer_as_json(lakeside: Clinic, capsys: Any) -> None:
    async with lakeside.as_clinician("rounds"):
        await Client.select(Client.ssn).where(Client.id == lakeside.client)
    record = str(lakeside.client)
    changes = await told(capsys, audit_history, record, "lakeside")
    assert ("insert", "last_name", "Nguyen") in [(c["action"], c["field"], c["new"]) for c in changes]
    seen = await told(capsys, audit_who_saw, record, "lakeside", actor="auditor@lakeside.example")
    assert (str(lakeside.clinician), "ssn", "rounds") in {(s["user_id"], s["columns"], s["reason"]) for s in seen}
    found = await told(capsys, audit_search, "lakeside", action="read", record=record, reason="rounds")
    assert [row["record_id"] for row in found] == [record]
    searches = await told(capsys, audit_search, "lakeside", action="audit_read")
    assert searches, "searching is itself recorded"


async def test_csv_has_a_header_and_whole_ids(lakeside: Clinic, capsys: Any) -> None:
    await audit_search.__wrapped__("lakeside", action="insert", table="client", csv=True)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[0] == "id"
    assert str(lakeside.client) in {row[5] for row in rows}


async def test_a_table_on_a_terminal_cuts_no_id_short(lakeside: Clinic, capsys: Any) -> None:
    await audit_search.__wrapped__("lakeside", limit=1)
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "args", "says"),
    [
        (audit_history, ("not-an-id", "lakeside"), "An id is a UUID"),
        (audit_search, ("nobody",), "no tenant with the slug"),
        (audit_who_saw, ("0198c0de-0000-7000-8000-000000000001", "lakeside", "castle"), "--table takes one of"),
        (partitions, (999,), "0 to 120"),
        (partitions, (3, "yesterday"), "as 2019-03"),
        (partitions, (3, "1999-01"), "is not a month of the audit log"),
    ],
)
async def test_a_mistake_is_one_sentence(lakeside: Clinic, command: Any, args: tuple[Any, ...], says: str) -> None:
    with pytest.raises(Exception, match=says):
        await command.__wrapped__(*args)
