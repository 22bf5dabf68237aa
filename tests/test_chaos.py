"""The server is killed -9 under load: every committed change has exactly one record, and no record lacks its change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core import embedded

HERE = Path(__file__).parent.parent


@pytest.mark.parametrize(("seconds", "kills", "workers"), [(6, 2, 8), pytest.param(60, 3, 16, marks=pytest.mark.slow)])
def test_records_and_changes_agree_after_the_server_was_killed(seconds: int, kills: int, workers: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="charthold-chaos-"))
    home.chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "DATABASE_OWNER_URL")}
    environ |= {"CHARTHOLD_HOME": str(home)}

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=HERE, env=environ, capture_output=True, text=True, timeout=200
        )

    try:
        migrated = run("piccolo.main", "migrations", "forwards", "core")
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
        ran = run("tests.chaos", str(seconds), str(kills), str(workers))
        assert ran.returncode == 0, ran.stdout + ran.stderr
        verified = run("piccolo.main", "core", "verify_audit", "--tenant=chaos")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        embedded.stop(home, mode="immediate")
        shutil.rmtree(home, ignore_errors=True)
