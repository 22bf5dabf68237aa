"""Fixtures of the toy app; a test module imports them by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from piccolo.apps.migrations.commands.base import BaseMigrationManager

from tests.schema_app.project import Project, project_of, ran
from tests.schema_app.server import connection, database, server

__all__ = ["connection", "database", "made_in", "project", "server"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return made_in(tmp_path, monkeypatch)


def made_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An app with steps in that folder, for as long as ``monkeypatch`` says."""
    made = Project(folder / "steps")
    monkeypatch.setattr(
        BaseMigrationManager, "get_app_config", project_of("toy", made, BaseMigrationManager.get_app_config)
    )
    ran.clear()
    return made
