"""One worker process: it registers, loads its model, says that it lives, watches itself, and drains."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import monotonic
from uuid import UUID

import celery.worker.state
import sqlalchemy
from celery import Celery
from celery.apps.worker import Worker

from jobs import database, leases, migrate, models, workers
from jobs.hints import IO_QUEUE, Hints, create_app, model_queue
from jobs.settings import Settings
from jobs.streams import Publisher
from jobs.sweeper import Sweeper
from worker import engine, fingerprint, model, moderation, tasks
from worker.chat import Chat
from worker.model import ModelFolder
from worker.moderation import ContentFilter
from worker.pump import Pump

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # a worker that hears no hint looks for itself: the broker may be gone
IO_THREADS = 2
PUMP_THREADS = 2  # one leases, the other makes it look
EXIT_STUCK = 70


def serve(settings: Settings, *, model: str | None, is_io: bool) -> int:
    """Serve one model, or reading and writing, until SIGTERM or SIGINT; the exit status.

    SettingsError and ModelError say in one sentence what keeps the process from starting.
    """
    assert settings.database_url, "the caller settles which servers are used"
    assert settings.broker_url, "the caller settles which servers are used"
    os.nice(settings.niceness)  # the API and the database answer while lines are computed
    ledger = database.connect(settings.database_url, connections=settings.database_connections)
    migrate.check(ledger)
    hints, app = Hints(settings.broker_url), create_app(settings.broker_url)
    if is_io or model is None:
        process = Process(ledger, hints, settings, "io", model)
        process.serve_io(app)
    else:
        process = Process(ledger, hints, settings, "model", model, Publisher(settings.broker_url))
        process.serve_model(app, model)
    return process.exit_status


@dataclass(slots=True)
class Process:
    """What a worker process owns, in the order in which it is taken down."""

    ledger: sqlalchemy.Engine
    hints: Hints
    settings: Settings
    kind: str
    model: str | None
    publisher: Publisher | None = None  # of a process that serves a model
    exit_status: int = 0
    _id: UUID | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def owner(self) -> UUID:
        """The id under which this process holds leases now."""
        assert self._id is not None, "register comes first"
        return self._id

    def serve_io(self, app: Celery) -> None:
        """Ingest and export until told to stop."""
        work = tasks.InputOutput(self.ledger, self.hints, self.owner, self.settings, is_stopping=self._stopping.is_set)
        tasks.register_io(app, work)
        self._hear_signals(lambda: None)
        self._register()
        self._every(self.settings.heartbeat_seconds, self._beat, "heartbeat")
        self._every(LOOK_SECONDS, work.look, "look")
        self._run_celery(app, IO_QUEUE, IO_THREADS, lambda: None)

    def serve_model(self, app: Celery, name: str) -> None:
        """Answer lines for one model until told to stop."""
        folder = model.open_named(name, self.settings.data_dir / "models")
        inference = _load(folder, self.settings)
        with inference, moderation.opened(self.settings) as content_filter:
            self._pump(app, name, folder, inference, content_filter)

    def _pump(
        self,
        app: Celery,
        name: str,
        folder: ModelFolder,
        inference: engine.Engine,
        content_filter: ContentFilter | None,
    ) -> None:
        chat = Chat(folder, context_tokens=inference.context_tokens, fingerprint=fingerprint.of(folder))
        pump = Pump(
            self.ledger,
            inference,
            chat,
            self.hints,
            model=name,
            settings=self.settings,
            publisher=self.publisher,
            content_filter=content_filter,
        )
        engines = [inference, *(content_filter.engines if content_filter else ())]
        tasks.register_pump(app, pump, self.owner)
        self._hear_signals(pump.drain)
        self._register()
        database.run(self.ledger, lambda c: models.register(c, [name]))
        logger.info("model loaded", extra={"model": name, "slots": inference.slots})
        self._every(self.settings.heartbeat_seconds, lambda: self._beat_and_watch(pump, engines), "heartbeat")
        self._every(LOOK_SECONDS, lambda: pump.run(self.owner), "look")
        self._run_celery(app, model_queue(name), PUMP_THREADS, pump.drain, pump.close)

    def _run_celery(
        self,
        app: Celery,
        queue: str,
        threads: int,
        drain: Callable[[], None],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the Celery worker in this thread until it is stopped; wait for what was begun, take everything down."""
        sweeper = Sweeper(self.ledger, self.hints, self.settings)
        sweeper.start()
        try:
            worker = DeafWorker(
                app=app,
                hostname=f"{self.kind}-{os.getpid()}@{socket.gethostname()}",
                pool_cls="threads",
                concurrency=threads,
                queues=[queue],
                loglevel=self.settings.log_level,
                quiet=True,
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
            )
            worker.start()
            self.exit_status = worker.exitcode or 0
        finally:
            self._stopping.set()
            drain()
            self._take_down(sweeper, finish)

    def _take_down(self, sweeper: Sweeper, finish: Callable[[], None]) -> None:
        for thread in self._threads:
            thread.join(self.settings.drain_seconds + 10)
        finish()  # nothing is begun any more, and what was begun needs the ledger
        sweeper.stop()
        try:
            database.run(self.ledger, lambda c: workers.forget(c, self.owner()))
        except sqlalchemy.exc.SQLAlchemyError as error:  # what we held runs out by itself
            logger.warning("database out of reach", extra={"doing": "farewell", "reason": str(error)})
        if self.publisher is not None:
            self.publisher.close()
        self.hints.close()
        self.ledger.dispose()

    def _hear_signals(self, drain: Callable[[], None]) -> None:
        """From now on SIGTERM and SIGINT make this process drain; what holds nothing yet is simply ended by them.

        A thread does it: a handler interrupts the main thread anywhere, and may want a lock that is held there.
        """
        told: SimpleQueue[int] = SimpleQueue()  # its `put` may be interrupted by itself
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _frame: told.put(received))

        def wait() -> None:
            told.get()
            logger.info("worker drains")
            self._stopping.set()
            drain()
            celery.worker.state.should_stop = os.EX_OK

        threading.Thread(target=wait, name="signals", daemon=True).start()

    def _register(self) -> None:
        self._id = database.run(self.ledger, lambda c: workers.register(c, kind=self.kind, model=self.model))

    def _every(self, seconds: float, perform: Callable[[], object], name: str) -> None:
        def run() -> None:
            while not self._stopping.is_set():
                try:
                    perform()
                except sqlalchemy.exc.SQLAlchemyError as error:
                    logger.warning("database out of reach", extra={"doing": name, "reason": str(error)})
                except Exception:  # the edge of a thread that this process cannot do without
                    logger.exception("thread goes on", extra={"doing": name})
                self._stopping.wait(seconds)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _beat(self) -> bool:
        """Say that we live; False if we had been declared dead and came back under a new id."""
        owner = self.owner()
        if database.run_autocommit(self.ledger, lambda c: workers.heartbeat(c, owner)):
            return True
        logger.warning("this process was declared dead")
        self._register()
        return False

    def _beat_and_watch(self, pump: Pump, engines: Sequence[engine.Engine]) -> None:
        is_stuck = any(self._is_stuck(one) for one in engines)
        if is_stuck or not all(one.is_alive for one in engines):
            # The device will not come back to this process; another takes over what it holds.
            logger.critical("engine stuck or failed; this process ends", extra={"is_stuck": is_stuck})
            os._exit(EXIT_STUCK)
        held = pump.held()  # before the renewal: what is leased after it is not lost
        if not self._beat():
            pump.lose(held)
            return
        owner = self.owner()
        still = database.run_autocommit(  # a process that is stopped inside a transaction would keep its locks
            self.ledger,
            lambda c: leases.renew(c, owner=owner, held=held, deadline_seconds=self.settings.lease_seconds),
        )
        pump.lose(held - still)

    def _is_stuck(self, inference: engine.Engine) -> bool:
        progress = inference.progress
        is_late = monotonic() - progress.beat_at > self.settings.watchdog_seconds
        return is_late and progress.waiting + progress.running > 0


class DeafWorker(Worker):  # type: ignore[misc]
    """Celery's worker without its signal handlers: they come late, when work may be under way."""

    def install_platform_tweaks(self, worker: object) -> None:
        """Install none."""


def _load(folder: ModelFolder, settings: Settings) -> engine.Engine:
    """The engine over a model. ModelError where there is no device for it, or not enough memory."""
    chosen = engine.EngineSettings(
        device=engine.Device(settings.device),
        threads=settings.threads,
        context_tokens_max=settings.sequence_tokens,
        slots_max=settings.slots,
    )
    try:
        return engine.load(folder, chosen)
    except engine.EngineError as error:
        raise model.ModelError(f"the model {folder.name} cannot be served: {error}") from error
