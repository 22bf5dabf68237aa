"""An outside linter for row-level security looks at the migrated schema, and its idea of who may do what is ours."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from core.access.permissions import COMMANDS, roles_for
from core.compliance.disclosures import Disclosure
from core.compliance.emergencies import EmergencyAccess
from core.compliance.reviews import ActivityReview
from core.engine import ChartholdEngine
from core.schema import Grant
from core.settings import settings
from core.tables import AuditSeal, Client, Facility, Tenant, TenantKey, User, UserActionAuditLog

OWNER_IS_SUPERUSER = True

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / ".ci" / "pgrls.toml"
TABLES = (
    ActivityReview, AuditSeal, Client, Disclosure, EmergencyAccess, Facility, Tenant, TenantKey, User, UserActionAuditLog,
)  # fmt: skip

# What a definer function reaches for the application, table by table; each is a door on purpose.
DOORS = {
    ("public.tenant", "INSERT"): "provision_tenant",
    ("public.app_user", "INSERT"): "provision_tenant",
    ("public.tenant_key", "INSERT"): "provision_tenant",
    ("public.emergency_access", "INSERT"): "break_glass",
    ("public.user_action_audit_log", "INSERT"): "break_glass",  # the first of several
    ("public.app_user", "SELECT"): "record_late",  # whether the user is one of the tenant
    ("public.user_action_audit_log", "SELECT"): "keep_history",
}


# What nobody may delete goes with a client all the same.
GONE_WITH_A_CLIENT = {("emergency_access", "delete"), ("activity_review", "delete")}


@pytest.fixture(scope="module")
async def url(database: ChartholdEngine) -> AsyncIterator[str]:
    """Where the linter connects, as the owner. The months' partitions are gone: their names change with the calendar."""
    owner = await database.connect(owner=True)
    months = await owner.fetch(
        "select inhrelid::regclass::text as name from pg_inherits"
        " where inhparent = 'user_action_audit_log'::regclass and inhrelid::regclass::text !~ 'default$'"
    )
    for month in months:
        await owner.execute(f"drop table {month['name']}")
    await owner.close()
    if settings().embedded:
        to = database.place.arguments(owner=True)
        yield (
            f"postgresql://{to['user']}:{quote(to['password'], safe='')}@/{to['database']}"
            f"?host={quote(to['host'], safe='')}&port={to['port']}"
        )
    else:
        yield urlsplit(settings().owner_url or "")._replace(path=f"/{database.database}").geturl()


async def pgrls(*arguments: str) -> Any:
    """What the linter says, as JSON."""
    command = Path(sys.executable).with_name("pgrls")
    process = await asyncio.create_subprocess_exec(
        command, *arguments, "--config", CONFIG, "--format", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    out, complaint = await process.communicate()
    assert out, complaint.decode()
    return json.loads(out)


async def test_the_linter_reports_no_error_and_no_warning(url: str) -> None:
    found = (await pgrls("lint", "--database-url", url))["violations"]
    assert [(f["rule_id"], f["location"]) for f in found if f["severity"] != "info"] == []


async def test_without_its_configuration_the_linter_finds_what_is_suppressed_and_no_more(url: str) -> None:
    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["lint"]
    command = Path(sys.executable).with_name("pgrls")
    process = await asyncio.create_subprocess_exec(
        command, "lint", "--database-url", url, "--schemas", "public,charthold", "--format", "json",
        stdout=asyncio.subprocess.PIPE, cwd="/",
    )  # fmt: skip
    found = {
        (f["rule_id"], f["location"])
        for f in json.loads((await process.communicate())[0])["violations"]
        if f["severity"] != "info" and f["rule_id"] not in config["disable"]
    }
    assert found == {(rule, name) for rule, given in config["rules"].items() for name in given["allowlist"]}


def test_each_suppression_has_a_reason() -> None:
    """A comment above the list, above the entry, or beside it."""
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    for rule in (line for line in lines if line.startswith("[lint.rules.")):
        section = lines[lines.index(rule) + 1 :]
        section = section[: next((n for n, line in enumerate(section) if line == "]" or line.endswith('"]')), None)]
        assert any("#" in line for line in [*section, rule]), rule
    for line in lines[lines.index("disable = [") :][: lines[lines.index("disable = [") :].index("]")]:
        assert not line.strip().startswith('"') or "# " in line, line


async def test_the_linters_matrix_agrees_with_ours(url: str) -> None:
    rows = (await pgrls("matrix", "--database-url", url, "--roles", "app_runtime,app_auditor,PUBLIC"))["rows"]
    theirs = {(row["table"], row["command"]): row["access"] for row in rows}
    for table in TABLES:
        name = table._meta.tablename
        granted = {
            privilege
            for item in table.schema_objects()
            if isinstance(item, Grant) and item.to == "app_runtime"
            for privilege in item.privileges
        }
        for command in (*COMMANDS, "truncate"):
            cell = theirs[f"public.{name}", command.upper()]
            assert cell["PUBLIC"]["verdict"] == "denied", (name, command)
            if (name, command) in GONE_WITH_A_CLIENT:
                assert "referencing" in cell["app_runtime"]["note"], (name, command, cell)
                continue
            door = DOORS.get((f"public.{name}", command.upper()))
            if door is not None and cell["app_runtime"]["note"]:
                assert f"charthold.{door}" in cell["app_runtime"]["note"], (name, command)
                continue
            # Who is granted nothing by the matrix has no privilege either; who is granted something, some rows only.
            allowed = command in granted and bool(roles_for(name, command, getattr(table, "permissions", None)))
            assert cell["app_runtime"]["verdict"] == ("conditional" if allowed else "denied"), (name, command, cell)
            if allowed:
                assert "tenant_id" in cell["app_runtime"]["predicate"], (name, command)


async def test_nobody_but_the_owner_reaches_the_machinery(url: str) -> None:
    rows = (await pgrls("matrix", "--database-url", url, "--roles", "app_runtime,app_auditor,PUBLIC"))["rows"]
    for row in rows:
        if row["table"].startswith("charthold.") or row["table"] == "public.migration":
            for role, cell in row["access"].items():
                assert cell["verdict"] == "denied" or "SECURITY DEFINER" in cell["note"], (row, role)
        if row["table"] == "charthold.token_key" and row["command"] != "SELECT":
            assert {cell["verdict"] for cell in row["access"].values()} == {"denied"}
