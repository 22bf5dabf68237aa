"""The database that the settings name: where it is, and how a session with it begins."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import asyncpg

from core import embedded
from core.crypto.derive import forgetful_later
from core.settings import Settings, settings
from core.wire.session import begin_session

__all__ = ["Database"]


class Database:
    """The embedded server's database, started when first needed, or one of a server of one's own."""

    __slots__ = ("name", "server")

    def __init__(self) -> None:
        self.server: embedded.Server | None = None
        # Overrides the database that the settings name.
        self.name: str | None = None

    @property
    def settings(self) -> Settings:
        """The process's settings, read when first needed."""
        return settings()

    def arguments(self, *, owner: bool) -> dict[str, Any]:
        """The driver's, for the schema's owner or for the application."""
        configured = self.settings
        if configured.embedded:
            if self.server is None:
                self.server = embedded.start(configured.home)
            login: embedded.Login = "owner" if owner else "application"
            return self.server.dsn(login=login, database=self.name or embedded.DATABASE)
        named = {"database": self.name} if self.name else {}
        return {"dsn": configured.owner_url if owner else configured.database_url, **named}

    def for_piccolo(self) -> dict[str, Any]:
        """Where Piccolo's own commands connect, such as ``piccolo sql_shell run``.

        The password stands by itself: a URL is an argument of psql, which everybody on the machine sees.
        """
        arguments = self.arguments(owner=False)
        url = arguments.get("dsn", "")
        scheme, slashes, rest = url.partition("://")
        place, slash, after = rest.partition("/")
        login, at, server = place.rpartition("@")
        name, colon, password = login.partition(":")
        if not colon:
            return arguments
        return arguments | {"dsn": f"{scheme}{slashes}{name}{at}{server}{slash}{after}", "password": unquote(password)}

    @forgetful_later
    async def connect(self, *, owner: bool, lock_timeout: str | None = None) -> asyncpg.Connection[Any]:
        """A new connection, as the schema's owner or as the application's role. The frames below hold the password."""
        arguments, configured = self.arguments(owner=owner), self.settings
        return await begin_session(
            arguments,
            role=None if owner else f"{configured.role_prefix}app_runtime",
            named_by=configured.owner_named_by if owner else configured.named_by,
            bound=configured.bind_backend,
            lock_timeout=lock_timeout,
        )
