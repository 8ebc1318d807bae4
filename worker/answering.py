"""One leased chunk: its lines are asked, and what they are answered with is stored in small lots."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

import orjson
import sqlalchemy

from jobs import batches, database, failpoints, leases, results
from jobs.batches import Batch
from jobs.contract.errors import envelope_json
from jobs.errors import Failed, Refusal
from jobs.failpoints import Point
from jobs.hints import Hints
from jobs.leases import Lease, Line
from jobs.results import Result, Usage
from jobs.states import ChunkState
from jobs.streams import Publisher
from worker.chat import Answer, Asked, Chat, Question
from worker.chat.pieces import Publish
from worker.chat.structure import Missed
from worker.engine import Completion, EngineFailed, EngineStopped, NothingToSample
from worker.moderation import ContentFilter
from worker.twins import Twins, likeness

logger = logging.getLogger(__name__)

Awaited = TypeVar("Awaited", bound=Future[Any])

FLUSH_RESULTS = 32
ASKED_AT_ONCE = 16
TRIES = 3
STORE_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Means:
    """What all chunks of a process are answered with."""

    ledger: sqlalchemy.Engine
    twins: Twins
    chat: Chat
    hints: Hints
    publisher: Publisher | None
    content_filter: ContentFilter | None
    flush_seconds: float
    is_drained: Callable[[], bool]
    """Whether what is not answered yet is to be given back."""
    took: Callable[[], None]
    """Called after each lot of answers: there may be room for more lines."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A line in the engine's hands."""

    line: Line
    body: dict[str, object]
    asked: Asked
    likeness: bytes | None
    tries: int


@dataclass(slots=True, eq=False)
class Chunk:
    """A leased chunk while one thread answers it; others may ask how many lines are left, or say that it is lost."""

    lease: Lease
    batch: Batch
    means: Means
    is_lost: bool = False
    _unasked: deque[Line] | None = None  # None until they are read
    _pending: dict[Future[list[Completion]], Pending] = field(default_factory=dict)
    # Lines in the filter's hands: a prompt may be asked once nothing came, an answer comes as it may be sent.
    _judged: dict[Future[None] | Future[Answer], Pending] = field(default_factory=dict)
    _came: SimpleQueue[Future[Any]] = field(default_factory=SimpleQueue)  # of both, as they are done
    _answered: list[Result] = field(default_factory=list)
    _has_failed: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        return self.lease.batch_id, self.lease.first_position, self.lease.epoch

    @property
    def lines(self) -> int:
        """How many are not answered."""
        unasked = self.lease.line_numbers if self._unasked is None else self._unasked
        return len(unasked) + len(self._pending) + len(self._judged)

    @property
    def facts(self) -> dict[str, object]:
        """What a log says of it."""
        return {"batch": self.batch.public_id, "position": self.lease.first_position, "epoch": self.lease.epoch}

    def answer(self) -> None:
        """Ask the lines and store what they are answered with, until all are or the lease is gone."""
        lines = database.run_autocommit(self.means.ledger, lambda c: leases.unanswered(c, self.lease))
        self._unasked = deque(lines)
        logger.info("chunk claimed", extra={**self.facts, "lines": len(lines)})
        self._ask()
        self._collect()

    def cancel(self) -> None:
        """Nobody waits any more for what is still open."""
        for future in self._open:
            future.cancel()

    @property
    def _open(self) -> list[Future[Any]]:
        """Whatever is waited for."""
        return [*self._pending, *self._judged]

    def _ask(self) -> None:
        while self._unasked:
            lines = [self._unasked.popleft() for _ in range(min(len(self._unasked), ASKED_AT_ONCE))]
            bodies = [orjson.loads(line.text)["body"] for line in lines]
            questions = [self._question(line, body) for line, body in zip(lines, bodies, strict=True)]
            for line, question, asked in zip(lines, questions, self._prompts(questions), strict=True):
                self._submit(line, question, asked)

    def _prompts(self, questions: list[Question]) -> list[Asked | Refusal]:
        """What to ask the engine. A question that nobody foresaw must not cost the others."""
        try:
            return self.means.chat.prompts(questions, created=self.batch.created_at, priority=self.batch.priority)
        except Exception:
            if len(questions) > 1:
                return [asked for question in questions for asked in self._prompts([question])]
            logger.exception("line could not be asked", extra={**self.facts, "line": questions[0].seed_text})
            return [Failed("The server had an error while reading this request.", code="server_error")]

    def _question(self, line: Line, body: dict[str, object]) -> Question:
        return Question(body, f"{self.batch.public_id}:{line.custom_id}", self._publish(body))

    def _submit(self, line: Line, question: Question, asked: Asked | Refusal) -> None:
        """Hand a line to the engine; a line that cannot be asked is answered with its refusal."""
        if isinstance(asked, Refusal):
            self._answered.append(_refused(line, asked))
            return
        # Text that comes from another line's computation would not come in pieces.
        is_alone = question.publish is not None
        alike = None if is_alone else likeness(self.batch.project_id, question.body, asked.prompt)
        self._start(Pending(line, question.body, asked, alike, tries=1))

    def _publish(self, body: dict[str, object]) -> Publish | None:
        """Where the text of a line goes that someone reads while it is written."""
        if self.means.publisher is None or not self.batch.is_direct or body.get("stream") is not True:
            return None
        return partial(self.means.publisher.publish, self.batch.public_id)

    def _start(self, pending: Pending) -> None:
        """Begin with a line, or begin again: nothing is computed of a prompt that the filter does not let pass."""
        if self.means.content_filter is None:
            self._compute(pending)
        else:
            self._await(self._judged, self.means.content_filter.prompt(pending.body), pending)

    def _compute(self, pending: Pending) -> None:
        try:
            future = self.means.twins.submit(pending.asked.prompt, pending.likeness)
        except (EngineFailed, EngineStopped):
            self._has_failed = True
        except Exception as error:  # noqa: BLE001  one line's fault must not cost the others
            self._try_again(pending, error)
        else:
            self._await(self._pending, future, pending)

    def _await(self, among: dict[Awaited, Pending], future: Awaited, pending: Pending) -> None:
        """Enter a line that is in someone's hands; what it waits for may be there already."""
        among[future] = pending
        future.add_done_callback(self._came.put)

    def _collect(self) -> None:
        """Take answers as they come and store them in small lots, until all are there or the lease is gone."""
        flushed_at = monotonic()
        while self._open and not (self.is_lost or self._has_failed or self.means.is_drained()):
            for future in self._done():
                take = self._take if future in self._pending else self._take_judged
                take(future)
            self.means.took()
            if len(self._answered) >= FLUSH_RESULTS or monotonic() - flushed_at >= self.means.flush_seconds:
                self._flush()
                flushed_at = monotonic()
        if self.is_lost:
            return
        self._flush()
        if self._open and not self.is_lost and not self._has_failed:
            database.run(self.means.ledger, lambda c: leases.release(c, self.lease))

    def _done(self) -> Iterator[Future[Any]]:
        """Wait a while for what has come, and take all of it."""
        with suppress(Empty):
            yield self._came.get(timeout=self.means.flush_seconds)
            while True:
                yield self._came.get_nowait()

    def _take(self, future: Future[list[Completion]]) -> None:
        """Take the answer of one line, or ask again where the asking went wrong."""
        pending = self._pending.pop(future)
        try:
            answer = self.means.chat.answer(
                pending.asked, future.result(), created_at=int(self.batch.created_at.timestamp())
            )
        except (EngineFailed, EngineStopped):
            self._has_failed = True
        except Missed as missed:
            self._draw_again(pending, missed)
        except NothingToSample as error:  # with the same noise it would come to the same
            failed = Failed(f"No token could follow what the model had written: {error}.", code="server_error")
            self._answered.append(_refused(pending.line, failed))
        except (Exception, CancelledError) as error:  # noqa: BLE001  one line's fault must not cost the others
            self._try_again(pending, error)
        else:
            self._finish(pending, answer)

    def _finish(self, pending: Pending, answer: Answer) -> None:
        """Note an answer, or have it judged before."""
        if self.means.content_filter is None:
            self._answered.append(_result(pending.line.line_no, answer))
        else:
            self._await(self._judged, self.means.content_filter.answer(pending.body, answer), pending)

    def _take_judged(self, future: Future[None] | Future[Answer]) -> None:
        """Go on with a line that was judged; where that went wrong, from its beginning."""
        pending = self._judged.pop(future)
        try:
            answer = future.result()
            if answer is None:
                self._compute(pending)
            else:
                self._answered.append(_result(pending.line.line_no, answer))
        except Refusal as refusal:
            facts = {"batch": self.batch.public_id, "line": pending.line.line_no, "why": refusal.message}
            logger.info("line refused", extra=facts)
            self._answered.append(_refused(pending.line, refusal))
        except (EngineFailed, EngineStopped):
            self._has_failed = True
        except (Exception, CancelledError) as error:  # noqa: BLE001  what was not judged must not be told
            self._try_again(pending, error)

    def _draw_again(self, pending: Pending, missed: Missed) -> None:
        """Once, with other noise, and alone: the answer that is remembered for lines alike is the one that missed."""
        logger.warning("answer missed its form", extra={"batch": self.batch.public_id, "line": pending.line.line_no})
        asked = pending.asked.again()
        if asked is None:
            self._answered.append(_refused(pending.line, missed))
        else:
            self._start(replace(pending, asked=asked, likeness=None))

    def _try_again(self, pending: Pending, error: BaseException) -> None:
        """Twice more; then the line is answered with an error, and the batch goes on."""
        facts = {"batch": self.batch.public_id, "line": pending.line.line_no, "why": repr(error)}
        logger.warning("line went wrong", extra=facts)
        if pending.tries < TRIES:
            self._start(replace(pending, tries=pending.tries + 1))
        else:
            failed = Failed("The model could not answer this request.", code="server_error")
            self._answered.append(_refused(pending.line, failed))

    def _flush(self) -> None:
        """Store what is answered; after the commit of the last, the batch may be over."""
        if not self._answered:
            return
        failpoints.reach(Point.LINES_ANSWERED)
        state = self._store()
        failpoints.reach(Point.RESULTS_STORED)
        self._answered.clear()
        if state is None:
            self.is_lost = True
        elif state is ChunkState.DONE:
            batch_id = self.lease.batch_id
            if database.run_autocommit(self.means.ledger, lambda c: batches.close_if_answered(c, batch_id)):
                failpoints.reach(Point.BATCH_CLOSED)
                self.means.hints.finalize(batch_id)

    def _store(self) -> ChunkState | None:
        """Flush; while the database cannot take them, as on a full disk, answers wait as long as the lease lasts."""
        while True:
            try:
                return database.run_autocommit(
                    self.means.ledger, lambda c: results.flush(c, self.lease, self._answered)
                )
            except sqlalchemy.exc.DBAPIError as error:
                if not (database.is_disk_full(error) or database.is_passing(error)) or self.means.is_drained():
                    raise
                facts = {"batch": self.batch.public_id, "lines": len(self._answered), "reason": str(error.orig)}
                logger.warning("answers wait for the database", extra=facts)
            if self.is_lost:
                return None
            time.sleep(STORE_AGAIN_SECONDS)


def _result(line_no: int, answer: Answer) -> Result:
    used = answer.usage
    usage = Usage(used.prompt_tokens, used.cached_tokens, used.completion_tokens, used.reasoning_tokens)
    return Result(line_no, 200, answer.body, usage)


def _refused(line: Line, refusal: Refusal) -> Result:
    return Result(line.line_no, refusal.status, envelope_json(refusal))
