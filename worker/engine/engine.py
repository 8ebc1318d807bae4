"""The engine as other threads see it: prompts in, futures out. It knows nothing of devices or of text."""

import logging
from collections import deque
from concurrent.futures import Future
from threading import Condition, Thread
from types import TracebackType
from typing import Self

from worker.engine.errors import EngineFailed, EngineStopped
from worker.engine.loop import Loop
from worker.engine.progress import Progress
from worker.engine.prompt import Completion, Prompt
from worker.engine.runner import Runner
from worker.engine.scheduler import Budget
from worker.engine.settings import EngineSettings
from worker.engine.ticket import Ticket, open_ticket

logger = logging.getLogger(__name__)


class Engine:
    """Many prompts in flight over one runner, which one thread of the engine's own drives.

    A future's callbacks run on that thread: keep them tiny. `future.cancel()` works until the answer is there
    and frees the rows before the next step.
    """

    def __init__(self, runner: Runner, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        self._runner = runner
        self._loop = Loop(runner, Budget(runner.slots, runner.spans_max, settings.chunk_tokens, runner.mixes))
        self._thread = Thread(target=self._serve, name="engine", daemon=True)
        self._changed = Condition()
        self._arrived: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._is_stopping = False
        self._is_abandoning = False
        self._has_ended = False
        self._failure: BaseException | None = None

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        return self._runner.context_tokens

    @property
    def slots(self) -> int:
        """How many choices are written at once."""
        return self._runner.slots

    @property
    def progress(self) -> Progress:
        """A snapshot of the counters."""
        return self._loop.progress

    @property
    def is_alive(self) -> bool:
        """The thread runs and the runner has not failed."""
        return self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        """Begin to answer; what was submitted before is answered too."""
        self._thread.start()

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """Take a prompt, from any thread; the future holds one completion a choice, in their order.

        Raises PromptRefused (PromptTooLong with numbers), EngineStopped, EngineFailed, and what
        `prompt.watch` raises. The future itself fails with EngineFailed, EngineStopped, NothingToSample, or
        what a watcher raised.
        """
        self._refuse_if_over()
        ticket = open_ticket(prompt, context_tokens=self._runner.context_tokens, vocabulary=self._runner.vocabulary)
        with self._changed:
            self._refuse_if_over()
            self._arrived.append(ticket)
            self._changed.notify()
        ticket.future.add_done_callback(lambda future: self._notice_cancel(ticket) if future.cancelled() else None)
        return ticket.future

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more prompts, answer those in flight for at most so long, fail the rest (EngineStopped).

        Returns when the thread has ended, so a step in progress is waited for.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is None:
            self._end(EngineStopped("the engine was stopped before it started"))
            return
        self._thread.join(timeout=drain_seconds)
        with self._changed:
            self._is_abandoning = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        """The engine's thread. Whatever happens in it, nobody is left waiting for an answer."""
        end: Exception = EngineStopped("the engine was stopped before this prompt was answered")
        try:
            while self._take_in():
                self._loop.step()
        except BaseException as error:  # the edge of a thread: the error goes to all who wait
            logger.critical("engine failed", exc_info=error)
            end = EngineFailed(f"the engine failed: {error!r}")
            end.__cause__ = error
            self._failure = error
        self._end(end)

    def _take_in(self) -> bool:
        """Wait for work, take in what arrived, drop what was cancelled; False when the thread should end."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._loop.has_work or self._is_stopping):
                self._changed.wait()
            arrived, cancelled = list(self._arrived), list(self._cancelled)
            self._arrived.clear()
            self._cancelled.clear()
            is_abandoning, is_stopping = self._is_abandoning, self._is_stopping
        for ticket in arrived:
            self._loop.add(ticket)
        for ticket in cancelled:
            self._loop.drop(ticket, EngineStopped("cancelled"))
        self._loop.beat()
        return not is_abandoning and (self._loop.has_work or not is_stopping)

    def _end(self, error: Exception) -> None:
        """Answer everyone who still waits, and give the device back; once."""
        with self._changed:
            if self._has_ended:
                return
            self._has_ended = True
            self._is_stopping = True
            for ticket in self._arrived:
                self._loop.add(ticket)
            self._arrived.clear()
        self._loop.drop_all(error)
        self._loop.beat()
        self._runner.close()

    def _notice_cancel(self, ticket: Ticket) -> None:
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify()

    def _refuse_if_over(self) -> None:
        if self._failure is not None:
            raise EngineFailed(f"the engine failed: {self._failure!r}")
        if self._is_stopping:
            raise EngineStopped("the engine takes no more prompts")
