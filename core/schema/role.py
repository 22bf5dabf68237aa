"""Roles. A cluster can hold several of our databases, so a role may be there before us, and outlive us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from core.errors import ConfigurationError
from core.schema.object import Kind, Named
from core.schema.quoting import quote_ident, quote_literal
from core.settings import settings

__all__ = ["Role", "application_login"]


def application_login() -> str | None:
    """The login that the application connects as, when it is not the owner's.

    Raises ``ConfigurationError`` when ``DATABASE_URL`` or ``DATABASE_OWNER_URL`` names no login that could be read.
    """
    configured = settings()
    if configured.database_url is None:
        from core.embedded import APPLICATION  # late: the embedded server is needed by few

        return APPLICATION
    login = _user("DATABASE_URL", configured.database_url)
    owner = _user("DATABASE_OWNER_URL", configured.owner_url or configured.database_url)
    return login if login != owner else None


def _user(name: str, url: str) -> str | None:
    try:
        read = urlsplit(url)
        known, user = read.scheme in ("postgres", "postgresql"), read.username
    except ValueError:
        known, user = False, None
    if not known:
        raise ConfigurationError(f"{name} cannot be read. Write it as postgres://login:password@host:5432/database.")
    return unquote(user) if user is not None else None


@dataclass(frozen=True, kw_only=True)
class Role(Named):
    """A role that nobody logs in as. With ``application`` the application's login becomes a member of it."""

    kind: ClassVar[str] = "role"
    rank: ClassVar[int] = Kind.ROLE
    of_table: ClassVar[bool] = False

    application: bool = True

    @property
    def _name(self) -> str:
        return settings().role_prefix + self.name

    def create(self) -> tuple[str, ...]:
        return (self.alone(), *self._membership()) if self.application else (self.alone(),)

    def alone(self) -> str:
        """What makes the role, without its members."""
        # Two databases of one cluster may migrate at once: the loser of that race finds the role made.
        return f"""do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = {quote_literal(self._name)}) then
        create role {quote_ident(self._name)} nologin;
    end if;
exception when duplicate_object or unique_violation then
    null;
end
$$"""

    def _membership(self) -> tuple[str, ...]:
        login = application_login()
        name, ident = quote_literal(self._name), quote_ident(self._name)
        if login is None:
            # One login for everything: its pool does SET ROLE. It takes the role's rights on only by doing so.
            return (
                f"""do $$
begin
    if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
        return;
    end if;
    if current_setting('server_version_num')::int >= 160000 then
        execute 'grant {ident.replace("'", "''")} to current_user with inherit false, set true';
    elsif not pg_has_role(current_user, {name}, 'member') then
        grant {ident} to current_user;
    end if;
end
$$""",
            )
        return (
            f"""do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = {quote_literal(login)})
        and not pg_has_role({quote_literal(login)}, {name}, 'member')
    then
        grant {ident} to {quote_ident(login)};
    end if;
end
$$""",
        )

    def drop(self) -> tuple[str, ...]:
        # DROP OWNED also takes privileges on other databases away, so it runs only when none of them knows the role.
        name, ident = quote_literal(self._name), quote_ident(self._name)
        return (
            f"""do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = {name}) or exists (
        select from pg_catalog.pg_shdepend as d, pg_catalog.pg_database as here
        where d.refclassid = 'pg_catalog.pg_authid'::regclass and d.refobjid = {name}::regrole
            and here.datname = current_database()
            and d.dbid <> here.oid
            and (d.dbid <> 0 or (d.classid = 'pg_catalog.pg_database'::regclass and d.objid <> here.oid))
    ) then
        return;
    end if;
    begin
        drop owned by {ident};
    exception when insufficient_privilege then
        null;
    end;
    drop role {ident};
exception when dependent_objects_still_exist or insufficient_privilege then
    raise notice 'the role % is still in use and stays', {name};
end
$$""",
        )
