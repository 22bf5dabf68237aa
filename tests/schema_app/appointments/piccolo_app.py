"""Registers the table. Its steps are generated into the folder beside this file."""

from pathlib import Path

from appointments.tables import Appointment
from piccolo.conf.apps import AppConfig

APP_CONFIG = AppConfig(
    app_name="appointments",
    migrations_folder_path=str(Path(__file__).parent / "piccolo_migrations"),
    table_classes=[Appointment],
    migration_dependencies=["core.piccolo_app"],
)
