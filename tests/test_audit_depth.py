"""A document may be nested deeper than Python's JSON goes. It hinders nobody who seals, verifies or reads the log."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from piccolo.columns import JSON, JSONB, Array, BigInt, Column, DoublePrecision, Numeric, Real

import core.audit.stream as stream
from core.audit.canonical import (
    COLUMNS,
    LEVELS,
    PARSER,
    PROBE,
    PROBE_SQL,
    RECORD_SQL,
    _parse_deep,
    decode,
    encode,
    jsonb_text,
)
from core.audit.head import public_keys
from core.audit.history import history
from core.audit.recorded import _plain
from core.audit.seal import seal
from core.audit.verify import verify
from core.commands.audit import audit_history, audit_search, audit_who_saw
from core.commands.seal_audit import seal_audit
from core.commands.verify_audit import verify_audit
from core.doctor import examine
from core.errors import ProtectedQueryError, SealedValueError
from core.settings import settings
from core.tables import Client, Facility, Tenant
from tests.conftest import Clinic

VERIFY_PROOF = Path(__file__).parent.parent / "docs" / "verify_proof.py"
LOG = "public.user_action_audit_log"
DEEP = 4_000  # levels: four times what Python's own parser takes. The deepest that the server takes only last longer.


def nested(levels: int, inner: str = '"é"') -> str:
    """A document of so many levels, as PostgreSQL writes it: objects and arrays by turns."""
    ends = [('{"a": ', "}") if level % 2 == 0 else ("[1.50, ", "]") for level in range(levels)]
    return "".join(start for start, _ in ends) + inner + "".join(end for _, end in reversed(ends))


async def deepest(owner: asyncpg.Connection) -> int:
    """How many levels of a document the server's parser takes."""
    taken, refused = 1_000, 100_000
    while refused - taken > 100:
        middle = (taken + refused) // 2
        try:
            await owner.fetchval("select $1::text::jsonb is null", nested(middle))
        except asyncpg.StatementTooComplexError:
            refused = middle
        else:
            taken = middle
    return taken


@pytest.fixture(scope="module")
async def victim(lakeside: Clinic, database: Any) -> tuple[Clinic, UUID, str, str]:
    """A clinic of which a user wrote deep documents: to a facility first one, then another."""
    first, then = nested(DEEP - 2), nested(DEEP)
    async with lakeside.as_admin():
        site = Facility(name="Deep", settings=first)
        await site.save()
        await Facility.update({Facility.settings: then}).where(Facility.id == site.id)
        gone = Facility(name="Gone", settings=first)
        await gone.save()
        await Facility.delete().where(Facility.id == gone.id)
        await Tenant.update({Tenant.settings: first}).where(Tenant.id == lakeside.tenant)
    return lakeside, site.id, first, then


# --- the canonical form ---------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
written = st.builds(json.dumps, documents, indent=st.sampled_from([None, 0, 2]), ensure_ascii=st.booleans())


def outcome(parse: Any, document: str) -> Any:
    try:
        return repr(parse(document))
    except ValueError:
        return ValueError


@given(document=written)
def test_the_parser_of_deep_documents_reads_what_the_other_reads(document: str) -> None:
    assert repr(_parse_deep(document)) == repr(PARSER.decode(document))


@given(document=written, at=st.integers(0), put=st.sampled_from(["", *'{}[],:"\\ 1atx', '"a":', '{"a":1,"a":2}']))
def test_it_refuses_what_the_other_refuses(document: str, at: int, put: str) -> None:
    at %= len(document) + 1
    broken = document[:at] + put + document[at + (not put) :]
    assert outcome(_parse_deep, broken) == outcome(PARSER.decode, broken)


@pytest.mark.parametrize("document", ["", " ", "[", '{"a"', '{"a":', "[1,]", '{"a":1,}', "[1}", "[] []", "{1:2}"])
def test_what_is_no_json_is_refused_at_any_depth(document: str) -> None:
    for broken in (document, nested(2_000, document)):
        with pytest.raises(ValueError):
            jsonb_text(broken)


def test_a_document_has_its_form_at_any_depth() -> None:
    for levels in (1, 400, 900, 1_000, 1_100, 50_000):
        assert jsonb_text(nested(levels)) == nested(levels)
    ugly = nested(3_000, '{"bb":1e2 ,\n"a" : [-0.0, true,null, {} ,[] ], "bb":"\\u00e9\\/"}').replace(" ", "")
    assert jsonb_text(ugly) == nested(3_000, '{"a": [0.0, true, null, {}, []], "bb": "é/"}')


async def test_the_server_writes_a_deep_document_as_we_do(owner: asyncpg.Connection) -> None:
    most = await deepest(owner) - 200
    for levels in (100, 990, 1_100, most):
        record = PROBE | {"old_values": nested(levels), "new_values": f'{{"zz": 1, "b": [{nested(levels, "{}")}]}}'}
        assert await owner.fetchval(PROBE_SQL, *record.values()) == encode(record)


def test_words_are_what_every_parser_reads() -> None:
    for document in (nested(LEVELS), '{"a": 1.50, "b": 1e307}', f"[0.{'9' * 5_000}]"):
        assert decode(encode(PROBE | {"old_values": document}))["old_values"] == json.loads(jsonb_text(document))
    for document in (nested(LEVELS + 1), nested(5_000), f"[{'9' * 5_000}]", f"[{'9' * 400}.5]", "[1e308]"):
        assert decode(encode(PROBE | {"old_values": document}))["old_values"] == jsonb_text(document)


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [True, False])
async def test_a_log_with_deep_documents_is_sealed_and_verifies(
    victim: Any, monkeypatch: pytest.MonkeyPatch, owner: asyncpg.Connection, theirs: bool
) -> None:
    clinic, site, *_ = victim
    if not theirs:  # a server that writes records in other bytes is asked for the columns
        monkeypatch.setattr(stream, "PROBE_SQL", PROBE_SQL + " limit 0")
    async with clinic.as_admin():
        await Facility(name=f"{uuid4()}", settings=nested(4_000)).save()
    async with clinic.as_admin("seal"):
        assert (await seal()).added > 0
    async with clinic.as_admin("verify"):
        report = await verify()
    assert (report.good, report.unsealed) == (True, 0)
    assert await seal_audit.__wrapped__(tenant="lakeside", quiet=True) == 0
    assert await verify_audit.__wrapped__(tenant="lakeside", quiet=True) == 0
    for row in await owner.fetch(f"select *, {RECORD_SQL} as canonical from {LOG} where record_id = $1", site):
        assert encode({name: row[name] for name in COLUMNS}) == row["canonical"]


async def test_to_load_what_is_too_deep_is_refused_and_its_text_is_read(
    lakeside: Clinic, owner: asyncpg.Connection
) -> None:
    document = nested(await deepest(owner) - 200)  # the trigger that records it stands deeper in the server's stack
    async with lakeside.as_admin():
        site = Facility(name="Too deep to load", settings=document)
        await site.save()
        for query in (Facility.select(Facility.settings), Facility.objects()):
            with pytest.raises(ProtectedQueryError, match="nested too deeply"):
                await query.where(Facility.id == site.id).output(load_json=True)
        row = await Facility.select(Facility.settings).where(Facility.id == site.id).first()
        assert row["settings"] == document
        await Facility.delete().where(Facility.id == site.id)


async def test_what_is_changed_deep_inside_is_named(victim: Any, owner: asyncpg.Connection) -> None:
    if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("tampering takes a superuser")
    clinic, *_ = victim
    async with clinic.as_admin("seal"):
        await seal()
    await owner.execute("set session_replication_role = replica")
    edit = f"update {LOG} set new_values = replace(new_values::text, $2, $3)::jsonb where tenant_id = $1 and"
    letter = f"{edit} new_values::text like '%' || $2 || '%' returning id"
    changed = {row["id"] for row in await owner.fetch(letter, clinic.tenant, '"é"', '"e"')}
    async with clinic.as_admin("verify"):
        report = await verify()
    assert {finding.record for finding in report.findings} == changed != set()
    await owner.execute(f"{edit} id = any ($4)", clinic.tenant, '"e"', '"é"', list(changed))
    async with clinic.as_admin("verify"):
        assert (await verify()).good


# --- its answers ----------------------------------------------------------------------------------------------------


async def test_history_tells_a_deep_document_as_the_row_has_it(victim: Any) -> None:
    clinic, site, first, then = victim
    async with clinic.as_admin():
        row = await Facility.objects().get(Facility.id == site)
        born, changed, *_ = await row.history()
        assert row.settings == changed.new["settings"] == then
        assert born.new["settings"] == changed.old["settings"] == first
        assert [change.changed for change in await history(Tenant, clinic.tenant)][-1] == ("settings",)
        assert (await row.as_of(changed.occurred_at)).settings == then
        assert site in {past.id for past in await Facility.as_of(datetime.now(UTC))}
        await row.revert(to=born.occurred_at)
        assert (await Facility.objects().get(Facility.id == site)).settings == first
        await row.revert(to=changed.occurred_at)


async def test_history_tells_numbers_with_their_digits(lakeside: Clinic) -> None:
    odd = f'{{"é": 1.50, "zz": {"9" * 5_000}, "far": 1e400}}'
    async with lakeside.as_admin():
        site = Facility(name="Odd", settings=odd, capacity=7)
        await site.save()
        row = await Facility.objects().get(Facility.id == site.id)
        (born,) = await row.history()
        assert born.new["settings"] == row.settings == jsonb_text(odd)
        assert (born.new["capacity"], type(born.new["capacity"])) == (7, int)
        await row.revert(to=born.occurred_at)
        assert len(await row.history()) == 1, "it is what it was"


@pytest.mark.parametrize(
    ("column", "recorded", "value"),
    [
        (Numeric(), "12345678901234567890.120", Decimal("12345678901234567890.120")),
        (Numeric(), '"NaN"', Decimal("NaN")),
        (Real(), "5", 5.0),
        (DoublePrecision(), "0.1", 0.1),
        (BigInt(), "9007199254740993", 9007199254740993),
        (Array(BigInt()), "[1, 2]", [1, 2]),
        (Array(Array(DoublePrecision())), "[[0.5]]", [[0.5]]),
        (JSONB(), '{"a": 1.50, "é": [1]}', '{"a": 1.50, "é": [1]}'),
        (JSON(), '"x"', '"x"'),
        (Array(JSONB()), '[{"a": 1.0}]', ['{"a": 1.0}']),
        (Column(), "2", 2),
        (Column(), "2.5", 2.5),
        (Column(), '[{"a": 2.50}]', '[{"a": 2.50}]'),
    ],
)
def test_recorded_values_come_back_as_what_they_were(column: Column, recorded: str, value: Any) -> None:
    told = _plain(column, PARSER.decode(recorded))
    assert repr(told) == repr(value)


@pytest.mark.parametrize("form", ["json", "csv", "terminal", "file"])
async def test_the_commands_print_a_deep_document(
    victim: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    _, site, first, then = victim
    if form == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for one
    options = {form: True} if form in ("json", "csv") else {}
    await audit_history.__wrapped__(str(site), tenant="lakeside", table="facility", **options)
    out = capsys.readouterr().out
    if form == "json":
        assert {first, then} <= {row["new"] for row in json.loads(out)}
    elif form == "csv":
        csv.field_size_limit(len(out))
        assert {first, then} <= {row["new"] for row in csv.DictReader(io.StringIO(out))}
    else:
        assert first in out
        assert then in out
    await audit_search.__wrapped__(tenant="lakeside", record=str(site), **options)
    await audit_search.__wrapped__(tenant="lakeside", limit=10_000, **options)
    await audit_who_saw.__wrapped__(str(site), tenant="lakeside", table="facility", **options)
    assert str(site) in capsys.readouterr().out


async def test_a_deep_record_has_a_proof_that_verifies_anywhere(
    victim: Any, owner: asyncpg.Connection, tmp_path: Path, capsys: Any
) -> None:
    clinic, site, _, then = victim
    async with clinic.as_admin("seal"):
        head = (await seal()).newest
    assert head
    proved = []
    for record in await owner.fetch(f"select id from {LOG} where record_id = $1 and new_values is not null", site):
        await verify_audit.__wrapped__(tenant="lakeside", proof=str(record["id"]))
        path = tmp_path / "proof.json"
        path.write_text(capsys.readouterr().out, encoding="utf-8")
        key = public_keys(settings())[head.key_id].hex()
        done = subprocess.run(
            [sys.executable, "-I", str(VERIFY_PROOF), str(path), key], capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        assert f"id: {record['id']}" in done.stdout
        says = json.loads(path.read_text(encoding="utf-8"))["says"]
        assert f"new_values: {says['new_values']}\n" in done.stdout
        proved.append(says["new_values"])
    assert f'{{"settings": {then}}}' in proved


async def test_a_sealed_document_is_refused_before_it_stops_whoever_reads_its_row(lakeside: Clinic) -> None:
    def pairs(levels: int) -> Any:
        document: Any = 1
        for _ in range(levels):
            document = {"a": [document]}
        return document

    async with lakeside.as_admin():
        for levels in (33, 500, 10_000):
            with pytest.raises(SealedValueError):
                await Client.update({Client.address: pairs(levels)}).where(Client.id == lakeside.client)
        await Client.update({Client.address: pairs(32)}).where(Client.id == lakeside.client)
        [row] = await Client.objects().where(Client.id == lakeside.client)
        assert row.address == pairs(32)
        assert (await row.history())[-1].new["address"] == pairs(32)


async def test_a_deep_document_in_the_log_does_not_stop_the_doctor(lakeside: Clinic, owner: asyncpg.Connection) -> None:
    deep = '{"a":' * 5_000 + "1" + "}" * 5_000
    async with lakeside.as_admin():
        await Facility.update({Facility.settings: deep}).where(Facility.id == lakeside.facility)
    found = await examine(["raw_values"])
    assert "RecursionError" not in str(found.findings)
    assert {finding.verdict for finding in found.findings} <= {"pass", "warn"}
