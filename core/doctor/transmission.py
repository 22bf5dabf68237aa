"""What travels between the application and the server."""

from __future__ import annotations

import asyncpg

from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.plural import plural

__all__ = ["judge"]

CONNECTIONS = """
select a.pid = pg_backend_pid() as ours, a.application_name = 'charthold' as application,
    a.client_addr is not null and not (a.client_addr <<= '127.0.0.0/8' or a.client_addr = '::1') as remote,
    a.client_addr is null as socket, coalesce(s.ssl, false) as tls, s.version
from pg_stat_activity as a left join pg_stat_ssl as s on s.pid = a.pid
where a.datname = current_database() and a.backend_type = 'client backend'"""

# Lines of pg_hba.conf that let somebody in from elsewhere without TLS.
PLAIN = """select count(*) from pg_hba_file_rules where type in ('host', 'hostnossl', 'hostnogssenc')
and auth_method <> 'reject' and coalesce(address, '') not in ('127.0.0.1', '::1', 'localhost', 'samehost')"""


# Lines that let anybody in without asking for anything: from this machine, and from elsewhere.
TRUST = """select count(*) filter (where here) as here, count(*) filter (where not here) as elsewhere
from (select type = 'local' or coalesce(address, '') in ('127.0.0.1', '::1', 'localhost', 'samehost') as here
    from pg_hba_file_rules where auth_method = 'trust') as lines"""


OLD_TLS = ("", "TLSv1", "TLSv1.1")


@check("164.312(e)(1)")
async def host_rules(live: Live, notes: Notes) -> None:
    """Threat: whoever reaches the server is let in without a password, or sends one in clear."""
    try:
        listens = await live.connection.fetchval("select current_setting('listen_addresses')")
        plain = await live.connection.fetchval(PLAIN)
        trust = dict(await live.connection.fetchrow(TRUST) or {})
    except asyncpg.PostgresError:
        notes.warn(
            "The rules by which the server lets somebody in could not be looked at: only a superuser sees them.",
            mend="Let an administrator see whether pg_hba.conf asks for passwords, and from elsewhere for TLS.",
        )
        return
    for place, lines in trust.items():
        if lines:
            tell = notes.fail if place == "elsewhere" else notes.warn
            whom = "Anybody from elsewhere" if place == "elsewhere" else "Whoever is on the server's machine"
            tell(
                f"{whom} is let in under any name, without a password, by {plural(lines, 'line')} of pg_hba.conf.",
                subject="setting pg_hba.conf",
                mend="Write scram-sha-256 instead of trust, and reload the server.",
            )
    if listens and plain:
        notes.warn(
            f"Connections from elsewhere without TLS are accepted by {plural(plain, 'line')} of pg_hba.conf.",
            mend="Write hostssl instead of host, and reload the server.",
        )
    elsewhere = "and the server listens to no other machine" if not listens else "and from elsewhere nobody without TLS"
    notes.end(f"pg_hba.conf lets nobody in without a password, {elsewhere}.")


@check("164.312(e)(2)(i)")
async def tls_version(live: Live, notes: Notes) -> None:
    """Threat: versions of TLS under which what travels can be changed."""
    rows = await live.connection.fetch(
        "select name, setting from pg_settings where name in ('ssl', 'ssl_min_protocol_version', 'listen_addresses')"
    )
    found = {row["name"]: row["setting"] for row in rows}
    if len(found) < 3:
        notes.warn(
            "Which versions of TLS the server speaks, and to whom it listens, could not be looked at: only a superuser "
            "sees them.",
            mend="Let an administrator see that ssl is on and ssl_min_protocol_version is TLSv1.2 at least.",
        )
        return
    least, speaks = found["ssl_min_protocol_version"], found["ssl"] == "on"
    if speaks and least in OLD_TLS:
        notes.fail(
            f"The server speaks {least or 'any version of TLS'}, which is broken.",
            subject="setting ssl_min_protocol_version",
            sql="alter system set ssl_min_protocol_version = 'TLSv1.2';\nselect pg_reload_conf();",
        )
    elif not speaks and found["listen_addresses"] not in ("", "localhost", "127.0.0.1", "::1"):
        notes.warn(
            "The server listens to other machines and speaks no TLS.",
            mend="Set ssl = on, with a certificate of its own.",
        )
    alone = "The server speaks no TLS, and listens on its own machine only."
    notes.end(f"The server speaks {least} or later." if speaks else alone)


@check("164.312(e)(2)(ii)")
async def tls(live: Live, notes: Notes) -> None:
    """Threat: PHI is sealed before it travels, but scopes, names of facilities and answers to questions are not."""
    rows = [dict(row) for row in await live.connection.fetch(CONNECTIONS)]
    judge(rows, notes)
    kinds = {
        "over TLS": sum(row["tls"] for row in rows),
        "through a Unix socket": sum(row["socket"] for row in rows),
        "from this machine": sum(not row["socket"] and not row["remote"] and not row["tls"] for row in rows),
    }
    notes.end(
        f"Connections now: {', '.join(f'{count} {how}' for how, count in kinds.items() if count)}; of the application "
        "and the doctor none in clear from elsewhere."
    )


def judge(rows: list[dict[str, object]], notes: Notes) -> None:
    """Remote connections without TLS: ours, and the application's."""
    for row in rows:
        if row["remote"] and not row["tls"] and (row["ours"] or row["application"]):
            notes.fail(
                "A connection from another machine is not encrypted.",
                subject=f"connection {'of the doctor' if row['ours'] else 'of the application'}",
                mend="Add sslmode=verify-full to both database URLs, and write hostssl in pg_hba.conf.",
            )
