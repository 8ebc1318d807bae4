"""The Celery tasks: each names the work and calls it. Arguments are ids; a doubled or stale hint does nothing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy
from celery import Celery

from jobs import batches, database, export, intake
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.states import BatchState
from worker.pump import Pump


class InputOutput:
    """Reading uploads and writing results: work without a model."""

    def __init__(self, ledger: sqlalchemy.Engine, hints: Hints, owner: Callable[[], UUID], settings: Settings) -> None:
        self._ledger = ledger
        self._hints = hints
        self._owner = owner
        self._settings = settings
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
        """Do whatever waits, without a hint."""
        for batch_id in self._waiting(BatchState.VALIDATING):
            self.ingest(batch_id)
        for batch_id in self._waiting(BatchState.FINALIZING, BatchState.CANCELLING):
            self.finalize(batch_id)

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

    def _waiting(self, *states: BatchState) -> list[int]:
        found = database.run(self._ledger, lambda c: batches.in_states(c, *states))
        return [batch_id for batch_id, _ in found]


def register_io(app: Celery, work: InputOutput) -> None:
    """Make `ingest` and `finalize` known to the worker of `app`."""
    app.task(name="ingest")(work.ingest)
    app.task(name="finalize")(work.finalize)


def register_pump(app: Celery, pump: Pump, owner: Callable[[], UUID]) -> None:
    """Make `pump` known to the worker of `app`."""

    @app.task(name="pump")  # type: ignore[untyped-decorator]
    def pump_until_dry(_model: str) -> None:
        pump.run(owner)
