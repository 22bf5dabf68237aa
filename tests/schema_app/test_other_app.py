"""A table of another app gets what core's tables have, from its own ``piccolo migrations new --auto``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import embedded
from core.settings import settings

ROOT = Path(__file__).parent.parent.parent
CONF = """
from core.engine import ChartholdEngine
from piccolo.conf.apps import AppRegistry

DB = ChartholdEngine()
APP_REGISTRY = AppRegistry(apps=["core.piccolo_app", "appointments.piccolo_app"])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project of a team's own, with a server of its own."""
    if not settings().embedded:
        pytest.skip("a configured server has one database, which other tests use")
    folder = Path(tempfile.mkdtemp(prefix="other-app-"))
    folder.chmod(0o755)
    app = folder / "appointments"
    shutil.copytree(Path(__file__).parent / "appointments", app, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "piccolo_conf.py").write_text(CONF)
    yield folder
    embedded.stop(folder / "home", mode="immediate")
    shutil.rmtree(folder)


def run(folder: Path, *command: str, fails: bool = False, **more: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CHARTHOLD", "PICCOLO"))}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True,
        env={**environ, "CHARTHOLD_HOME": str(folder / "home"), "PYTHONPATH": f"{folder}:{ROOT}", **more},
    )  # fmt: skip
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_a_table_of_another_app_is_born_protected(folder):
    piccolo = str(Path(sys.executable).parent / "piccolo")
    run(folder, piccolo, "migrations", "new", "appointments", "--auto")
    [step] = (folder / "appointments" / "piccolo_migrations").glob("appointments_*.py")
    source = step.read_text()
    for line in (
        "manager.add_primary_key(", "manager.add_references(", "manager.add_row_security(", "manager.add_policy(",
        "manager.add_grant(", "manager.add_trigger(", "manager.add_check(", "manager.add_index(",
    ):  # fmt: skip
        assert line in source
    assert 'columns=("tenant_id", "client_id")' in source
    early = run(folder, piccolo, "migrations", "forwards", "appointments", fails=True)
    assert early.startswith("The steps of core come first. Run: piccolo migrations forwards core. Step ")
    run(folder, piccolo, "migrations", "forwards", "all")
    assert "No changes detected" in run(folder, piccolo, "migrations", "new", "appointments", "--auto")
    told = json.loads(run(folder, sys.executable, "-m", "appointments.try_it"))
    assert told == {
        "drift": [],
        "notes": ["knee"],
        "actions": ["insert", "update"],
        "of_another_tenant": 0,
        "stolen": "appointment_client_id_fkey",
    }
    back = ("migrations", "backwards", "appointments", "all", "--auto_agree")
    run(folder, piccolo, *back, CHARTHOLD_ALLOW_UNSAFE="drop_populated")
    run(folder, piccolo, "migrations", "forwards", "appointments")


def test_a_mistake_in_a_class_is_told_in_one_sentence_and_where_it_stands(folder):
    tables = folder / "appointments" / "tables.py"
    tables.write_text(tables.read_text().replace('"delete": ("admin",)', '"delete": ("admn",)'))
    piccolo = str(Path(sys.executable).parent / "piccolo")
    said = run(folder, piccolo, "migrations", "forwards", "appointments", fails=True)
    assert "Appointment.permissions names 'admn'." in said
    assert said.startswith(f"{tables}:")
    assert "Traceback" not in said
    assert "Traceback" in run(folder, piccolo, "migrations", "forwards", "appointments", "--trace", fails=True)
