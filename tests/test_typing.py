"""What a type checker is told about queries and rows, as somebody's editor shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
from datetime import date
from typing import Any, assert_type
from core.tables import Client, UserActionAuditLog

async def program() -> None:
    mine = Client.last_name == "nguyen"
    assert_type(await Client.objects().where(mine), list[Client])
    assert_type(await Client.objects().where(mine).first(), Client | None)
    assert_type(await Client.objects().get(mine), Client | None)
    assert_type(await Client.objects().get_or_create(mine), Client)
    assert_type(await Client.objects().create(last_name="Nguyen"), Client)
    assert_type(await Client.select(Client.last_name), list[dict[str, Any]])
    client = Client()
    client.ssn = None
    client.first_name = "Bo"
    client.date_of_birth = date(2000, 1, 1)
    assert_type(client.first_name, str)
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
