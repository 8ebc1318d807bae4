"""The Celery tasks: each names the work and calls it. Arguments are ids; a doubled or stale hint does nothing."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy
from celery import Celery

from jobs import batches, database, export, fairness, intake
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.states import BatchState
from worker.pump import Pump

logger = logging.getLogger(__name__)


class InputOutput:
    """Reading uploads and writing results: work without a model."""

    def __init__(
        self,
        ledger: sqlalchemy.Engine,
        hints: Hints,
        owner: Callable[[], UUID],
        settings: Settings,
        *,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._hints = hints
        self._owner = owner
        self._settings = settings
        self._is_stopping = is_stopping
        self._turns = fairness.Shares()
        self._at_work: set[int] = set()
        self._lock = threading.Lock()

    def ingest(self, batch_id: int) -> None:
        """Read a batch's file; then its model has work."""
        with self._alone(batch_id) as is_ours:
            if is_ours:
                model = intake.ingest(self._ledger, batch_id, owner=self._owner(), settings=self._settings)
                if model is not None:
                    self._hints.pump(model)

    def finalize(self, batch_id: int) -> None:
        """Write a sealed batch's files and end it."""
        with self._alone(batch_id) as is_ours:
            if is_ours:
                export.finalize(self._ledger, batch_id, owner=self._owner(), settings=self._settings)

    def look(self) -> None:
        """Do whatever waits, without a hint: what ends a batch first, then files to be read, their projects in turn.

        Hints come in the order in which batches were made: a project that makes many would keep the others waiting.
        """
        tried: set[int] = set()
        while not self._is_stopping():
            if (sealed := self._sealed(tried)) is not None:
                self._try(self.finalize, sealed, tried)
            elif (unread := self._unread(tried)) is not None:
                self._try(self.ingest, unread, tried)
            else:
                return

    def _sealed(self, tried: set[int]) -> int | None:
        states = BatchState.FINALIZING, BatchState.CANCELLING
        found = database.run_autocommit(self._ledger, lambda c: batches.in_states(c, *states))
        return next((batch_id for batch_id in found if batch_id not in tried), None)

    def _unread(self, tried: set[int]) -> int | None:
        owner, silent = self._owner(), self._settings.lease_seconds
        found = database.run_autocommit(
            self._ledger, lambda c: fairness.unread(c, owner=owner, silent_seconds=silent, passed_over=tried)
        )
        chosen = self._turns.choose(found)
        if chosen is None:
            return None
        self._turns.charge(chosen, 1)
        return chosen.batch_id

    def _try(self, work: Callable[[int], None], batch_id: int, tried: set[int]) -> None:
        """A batch that goes wrong waits for the next look, and keeps no other from its turn."""
        tried.add(batch_id)
        try:
            work(batch_id)
        except Exception:
            logger.exception("batch left for later", extra={"batch_id": batch_id})

    @contextmanager
    def _alone(self, batch_id: int) -> Iterator[bool]:
        """Whether no other thread of this process is at work on a batch; none will be meanwhile."""
        with self._lock:
            is_ours = batch_id not in self._at_work
            self._at_work.add(batch_id)
        try:
            yield is_ours
        finally:
            if is_ours:
                with self._lock:
                    self._at_work.discard(batch_id)


def register_io(app: Celery, work: InputOutput) -> None:
    """Make `ingest` and `finalize` known to the worker of `app`."""
    app.task(name="ingest")(work.ingest)
    app.task(name="finalize")(work.finalize)


def register_pump(app: Celery, pump: Pump, owner: Callable[[], UUID]) -> None:
    """Make `pump` known to the worker of `app`."""

    @app.task(name="pump")  # type: ignore[untyped-decorator]
    def pump_until_dry(_model: str) -> None:
        pump.run(owner)
