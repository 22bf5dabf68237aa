"""What a type checker is told about queries and rows, as somebody's editor shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
from datetime import date, datetime
from typing import Any, assert_type
from core.columns import TenantForeignKey
from core.schema.migration import MigrationManager
from core.tables import Client, Facility, TenantTable, UserActionAuditLog
from piccolo.columns import LazyTableReference
from piccolo.query import Insert, Update

class Visit(TenantTable):
    client_id = TenantForeignKey(LazyTableReference("Client", app_name="core"))
    facility_id = TenantForeignKey("Facility", null=True)
    earlier_id = TenantForeignKey("self", null=True)

async def step() -> MigrationManager:
    manager = MigrationManager(migration_id="1", app_name="clinic")
    manager.add_policy(table="visit", name="mine", using="true")
    manager.drop_index(table="visit", name="visit_by_day")
    return manager

async def program() -> None:
    mine = Client.last_name == "nguyen"
    assert_type(await Client.objects().where(mine), list[Client])
    assert_type(await Client.objects().where(mine).first(), Client | None)
    assert_type(await Client.objects().get(mine), Client | None)
    assert_type(await Client.objects().get_or_create(mine), Client)
    assert_type(await Client.objects().create(last_name="Nguyen"), Client)
    assert_type(await Client.select(Client.last_name), list[dict[str, Any]])
    assert_type(await Client.select(Client.id).output(as_list=True), list[Any])
    assert_type(await Client.select(Client.id).output(as_json=True), str)
    assert_type(Client.objects().run_sync(), list[Client])
    client = Client()
    assert_type(await client.get_related(Client.facility_id), Facility | None)
    assert_type(client.save(), Insert[Any] | Update[Any])
    client.ssn = None
    client.first_name = "Bo"
    client.date_of_birth = date(2000, 1, 1)
    assert_type(client.first_name, str)
    assert_type(await client.as_of(datetime.now()), Client | None)
    assert_type(await Client.as_of(datetime.now()), list[Client])
    assert_type(client.date_of_birth, date)
    assert_type(UserActionAuditLog().source_ip, str)
"""


def checked(program: str, folder: Path) -> str:
    (folder / "program.py").write_text(program, encoding="utf-8")
    # In a process of its own: it raises the recursion limit of the one it runs in.
    run = [sys.executable, "-m", "mypy", str(folder / "program.py")]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_queries_give_rows_and_rows_take_values(tmp_path: Path) -> None:
    assert checked(PROGRAM, tmp_path) == "Success: no issues found in 1 source file\n"
    assert 'expression has type "int"' in checked(PROGRAM + "    client.first_name = 3\n", tmp_path)
