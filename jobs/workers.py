"""The processes that take part, each with an id of its own start, and what they say of themselves."""

import os
import socket
from time import monotonic
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

FRESH_SECONDS: Final = 1.0
"""How long what was heard of the workers is told again."""
SERVED: Final = text("""
    SELECT DISTINCT model FROM worker
     WHERE model IS NOT NULL AND heartbeat_at > now() - make_interval(secs => :silent_seconds)
""")


def register(connection: Connection, *, kind: str, model: str | None = None) -> UUID:
    """Enter this process under a new id: host and pid come again, an id never does."""
    _bury_dead_neighbours(connection)
    worker_id = uuid4()
    connection.execute(
        text("""
            INSERT INTO worker (id, host, pid, kind, model) VALUES (:id, :host, :pid, :kind, :model)
        """),
        {"id": worker_id, "host": socket.gethostname(), "pid": os.getpid(), "kind": kind, "model": model},
    )
    return worker_id


def heartbeat(connection: Connection, worker_id: UUID) -> bool:
    """Say that this process lives; False if it was declared dead meanwhile and its leases are gone."""
    done = connection.execute(text("UPDATE worker SET heartbeat_at = now() WHERE id = :id"), {"id": worker_id})
    return done.rowcount == 1


def forget(connection: Connection, worker_id: UUID) -> None:
    """Take a process that ends out, so that whatever it still holds is free at once."""
    connection.execute(text("DELETE FROM worker WHERE id = :id"), {"id": worker_id})


def sweep(connection: Connection) -> int:
    """Forget processes that have been silent for a day; how many."""
    return connection.execute(text("DELETE FROM worker WHERE heartbeat_at < now() - interval '1 day'")).rowcount


class Served:
    """Which models have a worker, for all threads of a process: asked of the database once a second at most."""

    def __init__(self, *, silent_seconds: float) -> None:
        self._silent_seconds = silent_seconds
        self._asked_at = -FRESH_SECONDS
        self._models: frozenset[str] = frozenset()

    def models(self, connection: Connection) -> frozenset[str]:
        """The models that a living worker serves, or did a second ago."""
        now = monotonic()
        if now >= self._asked_at + FRESH_SECONDS:
            self._models = frozenset(connection.execute(SERVED, {"silent_seconds": self._silent_seconds}).scalars())
            self._asked_at = now
        return self._models


def _bury_dead_neighbours(connection: Connection) -> None:
    """Forget processes of this host that have ended without a word, so that their leases are free at once.

    Should another pid namespace share our host's name, a living process may be forgotten too: it notices
    at its next heartbeat, and the fence keeps its results out.
    """
    rows = connection.execute(text("SELECT id, pid FROM worker WHERE host = :host"), {"host": socket.gethostname()})
    for worker_id, pid in rows.all():
        if not _is_running(pid):
            forget(connection, worker_id)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
