"""Registers ``piccolo playground explore``. Piccolo has a group of that name; a command of ours joins it."""

from __future__ import annotations

from pathlib import Path

from piccolo.conf.apps import AppConfig, Command

from core.commands.explore import explore

APP_CONFIG = AppConfig(
    app_name="playground",
    # No tables, so no migrations; but Piccolo imports every .py of this folder, so it must be one without any.
    migrations_folder_path=str(Path(__file__).parent / "sample"),
    commands=[Command(callable=explore)],
)
