"""What must happen even if nobody asks: lost leases, late batches, stuck states, old files, hints again.

A thread in every process, since it must run while the broker is dead. Each duty has a row in `tick`, so
that it runs once per interval over all processes, with no leader to elect. Two at once do no harm.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from jobs import batches, database, direct, files, leases, outages, poison, retention, uploads, workers
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.states import BatchState
from jobs.webhooks import Sender, outbox

logger = logging.getLogger(__name__)


SLICES_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Duty:
    name: str
    every_seconds: float
    perform: Callable[[Connection], object]
    is_sliced: bool = False
    """It does a little at a time; as long as it found something, it goes on for SLICES_SECONDS."""


class Sweeper:
    """Runs the duties that are due, every few seconds, until it is stopped."""

    def __init__(self, engine: Engine, hints: Hints, settings: Settings) -> None:
        self._engine = engine
        self._hints = hints
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._sender = Sender(engine, settings)
        self.duties = [
            Duty("lost leases", settings.sweep_seconds, self._sweep_leases),
            Duty("late batches", settings.sweep_seconds, batches.expire),
            Duty("answered batches", settings.sweep_seconds, _close_answered),
            Duty("hints", settings.sweep_seconds, self._hint_again),
            Duty("old files", 60, files.sweep, is_sliced=True),
            Duty("old uploads", 60, uploads.sweep, is_sliced=True),
            Duty("ended batches", 10, self._clear, is_sliced=True),
            Duty("direct completions", 60, direct.sweep, is_sliced=True),
            Duty("old webhook messages", 600, outbox.sweep),
            Duty("silent workers", 600, workers.sweep),
        ]

    def start(self) -> None:
        self._thread.start()
        self._sender.start()

    def stop(self) -> None:
        """Stop and wait for the duty under way."""
        self._stop.set()
        self._thread.join(timeout=30)
        self._sender.stop()

    def sweep(self) -> None:
        """Perform every duty that is due now, each slice in a transaction of its own; the first failure ends it."""
        for duty in self.duties:
            self._do(duty)

    def _do(self, duty: Duty) -> None:
        """Do a duty if it is due. Its tick is not in its transaction: who is cut off in there keeps it from nobody."""
        goes_on = database.run_autocommit(self._engine, lambda c: _is_due(c, duty))
        until = monotonic() + SLICES_SECONDS
        while goes_on:
            found = database.run(self._engine, duty.perform)
            goes_on = duty.is_sliced and bool(found) and monotonic() < until and not self._stop.is_set()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.sweep_seconds * random.uniform(0.7, 1.3)):  # noqa: S311
            for duty in self.duties:
                try:
                    self._do(duty)
                except SQLAlchemyError as error:  # one duty that cannot be done must not keep the others from it
                    logger.warning("sweep failed", extra={"duty": duty.name, "reason": str(error)})
                except Exception:  # the edge of a thread that this process cannot do without
                    logger.exception("sweep failed", extra={"duty": duty.name})

    def _sweep_leases(self, connection: Connection) -> None:
        lease_seconds, sweep_seconds = self._settings.lease_seconds, self._settings.sweep_seconds
        if forgiven := outages.forgive(
            connection, unwatched_seconds=lease_seconds / 2 + 2 * sweep_seconds, silent_seconds=lease_seconds
        ):
            logger.warning("nobody had been heard for a while", extra={"workers": forgiven})
        if ended := poison.isolate(connection, silent_seconds=lease_seconds):
            logger.error("lines given up that end their workers", extra={"batches": ended})
        if lost := leases.sweep(connection, silent_seconds=lease_seconds):
            logger.warning("leases taken back", extra={"batches": lost})

    def _clear(self, connection: Connection) -> int | None:
        return retention.clear(connection, retention_days=self._settings.retention_days)

    def _hint_again(self, connection: Connection) -> None:
        """Not for ever: what nobody takes would pile up in the broker, and workers look for themselves too."""
        for batch_id, state in _unattended(connection):
            (self._hints.ingest if state is BatchState.VALIDATING else self._hints.finalize)(batch_id)
        for model in _models_with_work(connection, silent_seconds=self._settings.lease_seconds):
            self._hints.pump(model)


def _is_due(connection: Connection, duty: Duty) -> bool:
    """Whether this process is the one that moves the duty's tick on."""
    moved = connection.execute(
        text("""
            INSERT INTO tick (name, next_at) VALUES (:name, now() + make_interval(secs => :every_seconds))
            ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at WHERE tick.next_at <= now()
        """),
        {"name": duty.name, "every_seconds": duty.every_seconds * 0.9},
    )
    return moved.rowcount == 1


def _close_answered(connection: Connection) -> None:
    """Move on the batches whose last flush died before it could ask whether it was the last."""
    for batch_id in batches.in_states(connection, BatchState.IN_PROGRESS):
        batches.close_if_answered(connection, batch_id)


def _unattended(connection: Connection) -> list[tuple[int, BatchState]]:
    """Batches that have waited for an io worker, though not for long."""
    rows = connection.execute(
        text("""
            SELECT id, state FROM batch
             WHERE state IN ('validating', 'finalizing', 'cancelling') AND owner IS NULL
               AND coalesce(cancelling_at, finalizing_at, created_at) > now() - interval '10 minutes'
             ORDER BY id LIMIT 100
        """)
    )
    return [(row.id, BatchState(row.state)) for row in rows]


def _models_with_work(connection: Connection, *, silent_seconds: float) -> list[str]:
    """Those with a living worker: one that is only being started will look for itself."""
    rows = connection.execute(
        text("""
            SELECT DISTINCT b.model FROM batch b
             CROSS JOIN LATERAL (SELECT 1 FROM chunk c
                                  WHERE c.batch_id = b.id AND c.state = 'ready' AND c.not_before <= now()
                                  LIMIT 1) AS ready
             WHERE b.state = 'in_progress'
               AND EXISTS (SELECT 1 FROM worker w
                            WHERE w.model = b.model AND w.heartbeat_at > now() - make_interval(secs => :silent_seconds))
        """),
        {"silent_seconds": silent_seconds},
    )
    return [row[0] for row in rows]
