"""A session on the database: as whom it begins, and what is set in it before anybody can set anything."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import asyncpg

from core.errors import ConfigurationError, UnreachableError
from core.wire import pooler

__all__ = ["SESSION", "begin_session"]

SESSION = {
    # Every name in our SQL is qualified or lives in public; nothing is looked up where a tenant could have put it.
    # pg_temp comes last: unnamed, it would come first, and a temporary table would stand before ours.
    "search_path": "public, pg_catalog, pg_temp",
    # Custom plans under row-level security cost 1.6 times a generic plan, and our shapes are stable.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # What is asked often is in memory. At the usual price of a page the planner, who does not know how few a tenant's
    # rows are, reads and sorts all of them rather than walk an index to the fifty that are wanted.
    "random_page_cost": "0.1",
    "seq_page_cost": "0.1",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    # Threat: a login may change its own defaults (ALTER ROLE .. SET), for every later session. What rows are shown, how
    # SQL is read and what stands in the log does not depend on them: these are given when a session begins.
    "row_security": "on",
    "bytea_output": "hex",
    "transform_null_equals": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "standard_conforming_strings": "on",
    # Nor whether values end up in the server's log.
    "log_parameter_max_length_on_error": "0",
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
    "charthold.scope": "",
    "charthold.granted": "",
    "charthold.remembers": "",
    "application_name": "charthold",
}


# An owner's session looks nothing up where others could have put it, and writes SQL in one way, whatever defaults the
# login or the database have.
OWNER_SESSION = {
    "search_path": "public, pg_catalog",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "row_security": "on",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "bytea_output": "hex",
}


class Connection(asyncpg.Connection):
    """A driver's connection that says when a COMMIT committed nothing.

    Threat: after a statement failed, and the error was caught, COMMIT rolls back, and PostgreSQL tells only by its tag.
    """

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109  # asyncpg's
        said = await super().execute(query, *args, timeout=timeout)
        if said == "ROLLBACK" and query.strip(" ;").upper() == "COMMIT":
            raise asyncpg.InFailedSQLTransactionError(
                "a statement of the transaction failed, so nothing of it was kept; let its error leave the block"
            )
        return said


async def begin_session(
    arguments: Mapping[str, Any],
    *,
    role: str | None,
    named_by: str | None,
    bound: bool,
    lock_timeout: str | None = None,
) -> asyncpg.Connection[Any]:
    """Connect, and act as ``role``; as the schema's owner when it is None.

    ``named_by``: the variable that names the server and the login, for errors; None for the embedded server.
    ``bound``: whether tokens are bound to a backend, see ``core.wire.pooler``.
    ``lock_timeout``: how long a statement waits for a lock; as the server has it when it is None.

    Raises ``ConfigurationError`` when there is no connection, or it may not act as ``role``, or is bound by no policy;
    ``asyncpg.ConnectionDoesNotExistError`` when the server ends the session at once.

    Threat: no policy binds a superuser, an owner or a BYPASSRLS role, and no trigger fires in a session that plays the
    replica. Such a connection is refused.
    """
    mark = secrets.token_hex(8)
    patience = {"lock_timeout": lock_timeout} if lock_timeout else {}
    begins = OWNER_SESSION if role is None else {**SESSION, **patience, "role": role}
    connection: asyncpg.Connection[Any]
    try:
        connection = await asyncpg.connect(
            **arguments,
            server_settings={**begins, pooler.MARK: mark},
            connection_class=asyncpg.Connection if role is None else Connection,
        )
    except (ValueError, OSError, asyncpg.PostgresError) as error:
        raise _explained(error, role, named_by) from None
    try:
        await _examine(connection, role, mark, begins, named_by=named_by, bound=bound)
    except asyncpg.InternalClientError:
        # The server ended the session as soon as it began, and the driver does not know what to make of that.
        connection.terminate()
        raise asyncpg.ConnectionDoesNotExistError("the server closed the connection; nothing was sent") from None
    except asyncpg.InvalidSQLStatementNameError:
        connection.terminate()
        raise ConfigurationError(f"The pooler passes no prepared statements on. {pooler.SEE}") from None
    except BaseException:
        connection.terminate()  # refused, or cancelled half-way: nobody else would close it
        raise
    return connection


def _explained(error: Exception, role: str | None, named_by: str | None) -> Exception:
    """What kept a session from beginning, with what to do about it; the error itself when we know nothing better."""
    login = f"The login of {named_by or 'the embedded server'}"
    if isinstance(error, ValueError):
        # It quotes parts of the URL, such as a piece of the password.
        return ConfigurationError(
            f"{named_by} cannot be read. Write it as postgres://login:password@host:5432/database, and in the password "
            "%23 for #, %2F for /, %3F for ?, %40 for @, %5B for [."
        )
    if isinstance(error, asyncpg.InvalidParameterValueError):
        return ConfigurationError(
            f"The role {role} does not exist yet. Run: piccolo migrations forwards core; after a "
            "restore, piccolo core doctor shows how to make it."
        )
    if isinstance(error, (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)):
        check = f"Check {named_by}." if named_by else "Is CHARTHOLD_HOME of another installation?"
        return ConfigurationError(f"PostgreSQL refused the connection: {error}. {check}")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        if role is None:
            return ConfigurationError(f"{login}: {error}.")
        return ConfigurationError(f"{login} may not act as {role}. As the owner run: grant {role} to <login>")
    if isinstance(error, asyncpg.ProtocolViolationError):
        return ConfigurationError(pooler.refused(named_by, str(error), owner=role is None))
    if isinstance(error, OSError):
        server = f"the server that {named_by} names" if named_by else "the embedded server"
        return UnreachableError(f"No connection to {server}: {error.strerror or error}. Is it running?")
    return error


async def _examine(
    connection: asyncpg.Connection[Any],
    role: str | None,
    mark: str,
    begins: Mapping[str, str],
    *,
    named_by: str | None,
    bound: bool,
) -> None:
    """Who are we, really: the role in force must be one that the policies bind, in a session that began as we said."""
    if role is None:
        if await connection.fetchval("select pg_catalog.current_setting($1, true)", pooler.MARK) != mark:
            raise ConfigurationError(
                f"{named_by} leads through a connection pooler, and migrations hold locks for a session. Name the "
                "server itself in DATABASE_OWNER_URL."
            )
        return
    found = await connection.fetchrow(
        "select rolsuper or rolbypassrls or exists ("
        " select from pg_catalog.pg_class where oid = to_regclass('public.client')"
        " and pg_has_role(r.oid, relowner, 'usage')) as powerful,"
        " current_setting('session_replication_role') <> 'origin' as unwatched,"
        " current_setting($1, true) is distinct from $2 as pooled"
        " from pg_catalog.pg_roles as r where rolname = current_user",
        pooler.MARK,
        mark,
    )
    assert found is not None
    if found["unwatched"]:
        raise ConfigurationError(
            "Sessions of the application's login have session_replication_role set, so no trigger records anything. "
            "Run piccolo core doctor, which shows where to reset it."
        )
    if found["powerful"]:
        raise ConfigurationError(
            f"{role} is a superuser, an owner of our tables, or past row-level security, and must be none of these. "
            "Run piccolo core doctor, which shows what to revoke."
        )
    if found["pooled"]:
        # A lock_timeout of its own, which lanes need, a pooler does not give: then there are no lanes.
        await pooler.examine(connection, begins, bound=bound)
