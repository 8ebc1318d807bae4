"""The connection to Postgres: its limits in time, and which failures are worth another try."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import psycopg
import sqlalchemy
from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CONNECT_ARGUMENTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "gristmill",
    # A transaction in which nothing is asked for 5 s is that of a process that was stopped or cut off: its locks go.
    "options": "-c statement_timeout=30s -c lock_timeout=5s -c idle_in_transaction_session_timeout=5s -c timezone=UTC",
}

ATTEMPTS_MAX = 6
# Lost connections, shutdown and start-up, too many connections, serialization, deadlock.
PASSING = ("08", "57P01", "57P02", "57P03", "53300", "40001", "40P01")
CHANGED_PLAN = "0A000"  # "cached plan must not change result type": a migration ran beside us
DISK_FULL = "53100"


def connect(url: str, *, connections: int = 10) -> Engine:
    """A pool for the Postgres at `url`; no connection is made before it is needed.

    The connection used last is used next: its plans and pages are warm, and the servers' others may rest. Nobody
    asks whether it still stands: that would be one round trip more for each transaction, and `run` tries again.
    """
    return sqlalchemy.create_engine(
        sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"),
        connect_args=CONNECT_ARGUMENTS,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=30,
        pool_use_lifo=True,
    )


def run(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    """Run `work` in one transaction, again from its start where the failure was a passing one.

    A connection lost inside COMMIT leaves the outcome unknown, so `work` must be safe to repeat. Every
    statement of ours is: inserts do nothing on conflict, and moves compare before they set.
    """
    return _persist(engine.begin, work)


def run_autocommit(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    """As `run`, but each statement is a transaction: one round trip instead of three.

    For work that only reads, or that writes with one statement.
    """
    return _persist(lambda: _autocommit(engine), work)


def is_passing(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether the same transaction may succeed a moment later."""
    cause = error.orig
    if error.connection_invalidated or (isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None):
        return True
    state = getattr(cause, "sqlstate", None) or ""
    return state.startswith(PASSING) or (state == CHANGED_PLAN and "cached plan" in str(cause))


def is_disk_full(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether Postgres had no room left to write."""
    return getattr(error.orig, "sqlstate", None) == DISK_FULL


def _persist(connect: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection], Answer]) -> Answer:
    for attempt in range(1, ATTEMPTS_MAX):
        try:
            with connect() as connection:
                return work(connection)
        except sqlalchemy.exc.DBAPIError as error:
            if not is_passing(error):
                raise
            logger.warning("transaction failed in passing", extra={"attempt": attempt, "reason": str(error.orig)})
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2**attempt)  # noqa: S311
    with connect() as connection:
        return work(connection)


@contextmanager
def _autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")
