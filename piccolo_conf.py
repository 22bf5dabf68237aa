"""Where Piccolo finds the database and the apps. Settings come from the environment: see core/settings.py."""

from piccolo.conf.apps import AppRegistry

from core.engine import ChartholdEngine

DB = ChartholdEngine()

APP_REGISTRY = AppRegistry(apps=["core.piccolo_app", "core.playground_app"])
