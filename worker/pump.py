"""Lease, answer, flush: where the ledger and the engine meet, and the only place.

One thread leases; each leased chunk has a thread that asks its lines and takes the answers. So many lines are
leased that the engine always has some that wait, however long a chunk's last line takes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

import orjson
import sqlalchemy

from jobs import batches, database, direct, failpoints, fairness, leases, poison, results
from jobs.batches import Batch
from jobs.contract.errors import envelope_json
from jobs.errors import Failed, Refusal
from jobs.failpoints import Point
from jobs.hints import Hints
from jobs.leases import Lease, Line
from jobs.results import Result, Usage
from jobs.settings import Settings
from jobs.states import ChunkState
from jobs.streams import Publisher
from worker.chat import Answer, Asked, Chat
from worker.chat.pieces import Publish
from worker.chat.structure import Missed
from worker.engine import Completion, Engine, EngineFailed, EngineStopped, NothingToSample
from worker.moderation import ContentFilter
from worker.twins import Twins, likeness

logger = logging.getLogger(__name__)

LOWEST_PRIORITY = 32_767
FLUSH_RESULTS = 32
TRIES = 3
STORE_AGAIN_SECONDS = 2.0
LOOK_SECONDS = 1.0  # while chunks are answered and no hint comes
CHUNKS_MAX = 32
DIRECT_MAX = 16  # completions outside batches, beside the chunks


@dataclass(frozen=True, slots=True)
class Pending:
    """A line in the engine's hands."""

    line: Line
    body: dict[str, object]
    asked: Asked
    likeness: bytes | None
    tries: int


@dataclass(slots=True)
class Work:
    """One leased chunk while it is answered."""

    lease: Lease
    asking: tuple[Batch, deque[Line]] | None = None
    """Its batch, and the lines that are still to be asked; None until they are read."""
    pending: dict[Future[list[Completion]], Pending] = field(default_factory=dict)
    judged: dict[Future[None] | Future[Answer], Pending] = field(default_factory=dict)
    """Lines in the filter's hands: a prompt may be asked once nothing came, an answer comes as it may be sent."""
    answered: list[Result] = field(default_factory=list)
    is_lost: bool = False
    has_failed: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        return self.lease.batch_id, self.lease.first_position, self.lease.epoch

    @property
    def batch(self) -> Batch:
        assert self.asking is not None, "it is read before anything is asked"
        return self.asking[0]

    @property
    def lines(self) -> int:
        """How many are not answered."""
        unasked = self.lease.line_numbers if self.asking is None else self.asking[1]
        return len(unasked) + len(self.pending) + len(self.judged)

    @property
    def open(self) -> list[Future[Any]]:
        """Whatever is waited for."""
        return [*self.pending, *self.judged]


class Pump:
    """Answers chunks for one model until none is ready."""

    def __init__(
        self,
        ledger: sqlalchemy.Engine,
        engine: Engine,
        chat: Chat,
        hints: Hints,
        *,
        model: str,
        settings: Settings,
        publisher: Publisher | None = None,
        content_filter: ContentFilter | None = None,
    ) -> None:
        """Without a `publisher`, or with a filter, who reads along gets the whole text at the end."""
        self._ledger = ledger
        self._engine = engine
        self._twins = Twins(engine.submit)
        self._chat = chat
        self._hints = hints
        self._model = model
        self._settings = settings
        self._publisher = publisher if content_filter is None else None  # nothing is shown before it is judged
        self._filter = content_filter
        self._lines_max = max(3 * engine.slots, settings.chunk_lines) + settings.chunk_lines
        self._works: dict[tuple[int, int, int], Work] = {}
        self._shares = fairness.Shares()
        self._lock = threading.Lock()
        self._leasing = threading.Lock()
        self._look = threading.Event()
        self._is_dry = False  # no chunk was ready when one had room
        self._takers = ThreadPoolExecutor(CHUNKS_MAX + DIRECT_MAX, thread_name_prefix="chunk")
        self._drain_until: float | None = None

    def run(self, owner: Callable[[], UUID]) -> None:
        """Lease and answer until nothing is ready and all is answered, or the process drains.

        Where another thread is at it already, this only makes it look for what came new.
        """
        self._is_dry = False
        self._look.set()
        while self._look.is_set() and self._leasing.acquire(blocking=False):
            try:
                self._lease_until_dry(owner)
            finally:
                self._leasing.release()

    def close(self) -> None:
        """Wait for what is being answered; after `drain` that is not long."""
        self._takers.shutdown()

    def drain(self) -> None:
        """Lease nothing more; what is begun may finish for the drain's time and is then given back. Once is enough."""
        if self._drain_until is None:
            self._drain_until = monotonic() + self._settings.drain_seconds
        self._look.set()

    def held(self) -> set[tuple[int, int, int]]:
        """The leases being answered, as (batch, position, epoch)."""
        with self._lock:
            return set(self._works)

    def lose(self, lost: set[tuple[int, int, int]]) -> None:
        """Give up the work of leases that are no longer ours."""
        with self._lock:
            for key in lost & self._works.keys():
                self._works[key].is_lost = True

    @property
    def _takes_work(self) -> bool:
        return self._drain_until is None and self._engine.is_alive

    def _lease_until_dry(self, owner: Callable[[], UUID]) -> None:
        self._look.clear()
        while self._takes_work or self._works:
            if not (self._takes_work and self._lease(owner())):
                if not self._works:
                    return
                self._look.wait(LOOK_SECONDS)
            self._look.clear()

    def _lease(self, owner: UUID) -> bool:
        """Lease the next chunks and have them answered; False if none is ready. Direct completions need no room."""
        with self._lock:
            held = [work.lease for work in self._works.values()]
        if len(held) >= CHUNKS_MAX + DIRECT_MAX or any(map(poison.is_suspect, held)):
            return False
        room = self._room
        claimed = self._claim(owner, LOWEST_PRIORITY if room else direct.PRIORITY, chunks=max(room, 1))
        self._is_dry = bool(room and not claimed)
        for lease in claimed:
            failpoints.reach(Point.CHUNK_CLAIMED)
            self._takers.submit(self._answer, self._hold(lease))
        return bool(claimed)

    def _claim(self, owner: UUID, priority_max: int, *, chunks: int) -> list[Lease]:
        """The next chunks of one batch. A suspect waits until nothing else is answered."""

        def claim(connection: sqlalchemy.Connection) -> list[Lease]:
            best = self._shares.choose(fairness.candidates(connection, self._model, priority_max=priority_max))
            if best is None or (best.crashes >= poison.SUSPECT_CRASHES and self._works):
                return []
            claimed = leases.claim(
                connection,
                batch_id=best.batch_id,
                owner=owner,
                chunks=1 if best.crashes else chunks,
                deadline_seconds=self._settings.lease_seconds,
            )
            self._shares.charge(best, sum(len(lease.line_numbers) for lease in claimed))
            suspects = [lease for lease in claimed if poison.is_suspect(lease)]
            if not suspects or (len(claimed) == 1 and not self._works):
                return claimed
            for lease in suspects:  # met behind the one that we had seen, or in its place
                leases.release(connection, lease)
            return [lease for lease in claimed if lease not in suspects]

        return database.run_autocommit(self._ledger, claim)

    def _hold(self, lease: Lease) -> Work:
        work = Work(lease)
        with self._lock:
            self._works[work.key] = work
        return work

    def _answer(self, work: Work) -> None:
        """Ask a chunk's lines, and store what they are answered with. What goes wrong here costs the lease, no more."""
        try:
            if self._read(work):
                self._ask(work)
                self._collect(work)
        except Exception:
            logger.exception("chunk given up", extra=_facts(work.lease))
        finally:
            with self._lock:
                del self._works[work.key]
            for future in work.open:
                future.cancel()
            self._look.set()

    def _read(self, work: Work) -> bool:
        """Read what a lease is for; False if its batch is gone."""
        lease = work.lease
        batch, lines = database.run_autocommit(
            self._ledger, lambda c: (batches.by_id(c, lease.batch_id), leases.unanswered(c, lease))
        )
        if batch is None:
            return False
        work.asking = batch, deque(lines)
        logger.info("chunk claimed", extra={**_facts(lease), "batch": batch.public_id, "lines": len(lines)})
        return True

    def _ask(self, work: Work) -> None:
        assert work.asking is not None, "it was read"
        unasked = work.asking[1]
        while unasked:
            self._submit(work, unasked.popleft())

    @property
    def _room(self) -> int:
        """How many chunks more would leave the engine with few enough lines."""
        with self._lock:
            lines = sum(work.lines for work in self._works.values())
            chunks = (self._lines_max - lines) // self._settings.chunk_lines
            return max(min(chunks, CHUNKS_MAX - len(self._works)), 0)

    def _submit(self, work: Work, line: Line) -> None:
        """Hand a line to the engine; a line that cannot be asked is answered with its refusal."""
        body = orjson.loads(line.text)["body"]
        publish = self._publish(work.batch, body)
        try:
            asked = self._chat.prompt(
                body,
                seed_text=f"{work.batch.public_id}:{line.custom_id}",
                created=work.batch.created_at,
                publish=publish,
            )
            prompt = replace(asked.prompt, priority=work.batch.priority)
            # Text that comes from another line's computation would not come in pieces.
            alike = likeness(work.batch.project_id, body, prompt) if publish is None else None
            self._start(work, Pending(line, body, replace(asked, prompt=prompt), alike, tries=1))
        except Refusal as refusal:
            work.answered.append(_refused(line, refusal))

    def _publish(self, batch: Batch, body: dict[str, object]) -> Publish | None:
        """Where the text of a line goes that someone reads while it is written."""
        if self._publisher is None or not batch.is_direct or body.get("stream") is not True:
            return None
        return partial(self._publisher.publish, batch.public_id)

    def _start(self, work: Work, pending: Pending) -> None:
        """Begin with a line, or begin again: nothing is computed of a prompt that the filter does not let pass."""
        if self._filter is None:
            self._compute(work, pending)
        else:
            work.judged[self._filter.prompt(pending.body)] = pending

    def _compute(self, work: Work, pending: Pending) -> None:
        try:
            work.pending[self._twins.submit(pending.asked.prompt, pending.likeness)] = pending
        except (EngineFailed, EngineStopped):
            work.has_failed = True

    def _collect(self, work: Work) -> None:
        """Take answers as they come and store them in small lots, until all are there or the lease is gone."""
        flushed_at = monotonic()
        while work.open and not (work.is_lost or work.has_failed or self._is_drained):
            done, _ = wait(work.open, timeout=self._settings.flush_seconds, return_when=FIRST_COMPLETED)
            for future in done:
                take = self._take if future in work.pending else self._take_judged
                take(work, future)
            if not self._is_dry and self._room:
                self._look.set()
            if len(work.answered) >= FLUSH_RESULTS or monotonic() - flushed_at >= self._settings.flush_seconds:
                self._flush(work)
                flushed_at = monotonic()
        if work.is_lost:
            return
        self._flush(work)
        if work.open and not work.is_lost and not work.has_failed:
            database.run(self._ledger, lambda c: leases.release(c, work.lease))

    @property
    def _is_drained(self) -> bool:
        return self._drain_until is not None and monotonic() >= self._drain_until

    def _take(self, work: Work, future: Future[list[Completion]]) -> None:
        """Take the answer of one line, or ask again where the asking went wrong."""
        pending = work.pending.pop(future)
        try:
            answer = self._chat.answer(
                pending.asked, future.result(), created_at=int(work.batch.created_at.timestamp())
            )
        except (EngineFailed, EngineStopped):
            work.has_failed = True
        except Missed as missed:
            self._draw_again(work, pending, missed)
        except NothingToSample as error:  # with the same noise it would come to the same
            failed = Failed(f"No token could follow what the model had written: {error}.", code="server_error")
            work.answered.append(_refused(pending.line, failed))
        except (Exception, CancelledError) as error:  # noqa: BLE001  one line's fault must not cost the others
            self._try_again(work, pending, error)
        else:
            self._finish(work, pending, answer)

    def _finish(self, work: Work, pending: Pending, answer: Answer) -> None:
        """Note an answer, or have it judged before."""
        if self._filter is None:
            work.answered.append(_result(pending.line.line_no, answer))
        else:
            work.judged[self._filter.answer(pending.body, answer)] = pending

    def _take_judged(self, work: Work, future: Future[None] | Future[Answer]) -> None:
        """Go on with a line that was judged; where that went wrong, from its beginning."""
        pending = work.judged.pop(future)
        try:
            answer = future.result()
            if answer is None:
                self._compute(work, pending)
            else:
                work.answered.append(_result(pending.line.line_no, answer))
        except Refusal as refusal:
            facts = {"batch": work.batch.public_id, "line": pending.line.line_no, "why": refusal.message}
            logger.info("line refused", extra=facts)
            work.answered.append(_refused(pending.line, refusal))
        except (EngineFailed, EngineStopped):
            work.has_failed = True
        except (Exception, CancelledError) as error:  # noqa: BLE001  what was not judged must not be told
            self._try_again(work, pending, error)

    def _draw_again(self, work: Work, pending: Pending, missed: Missed) -> None:
        """Once, with other noise, and alone: the answer that is remembered for lines alike is the one that missed."""
        logger.warning("answer missed its form", extra={"batch": work.batch.public_id, "line": pending.line.line_no})
        asked = pending.asked.again()
        if asked is None:
            work.answered.append(_refused(pending.line, missed))
        else:
            self._start(work, replace(pending, asked=asked, likeness=None))

    def _try_again(self, work: Work, pending: Pending, error: BaseException) -> None:
        """Twice more; then the line is answered with an error, and the batch goes on."""
        facts = {"batch": work.batch.public_id, "line": pending.line.line_no, "why": repr(error)}
        logger.warning("line went wrong", extra=facts)
        if pending.tries < TRIES:
            self._start(work, replace(pending, tries=pending.tries + 1))
        else:
            failed = Failed("The model could not answer this request.", code="server_error")
            work.answered.append(_refused(pending.line, failed))

    def _flush(self, work: Work) -> None:
        """Store what is answered; after the commit of the last, the batch may be over."""
        if not work.answered:
            return
        failpoints.reach(Point.LINES_ANSWERED)
        state = self._store(work)
        failpoints.reach(Point.RESULTS_STORED)
        work.answered.clear()
        if state is None:
            work.is_lost = True
        elif state is ChunkState.DONE:
            batch_id = work.lease.batch_id
            if database.run_autocommit(self._ledger, lambda c: batches.close_if_answered(c, batch_id)):
                failpoints.reach(Point.BATCH_CLOSED)
                self._hints.finalize(batch_id)

    def _store(self, work: Work) -> ChunkState | None:
        """Flush; while the database cannot take them, as on a full disk, answers wait as long as the lease lasts."""
        while True:
            try:
                return database.run_autocommit(self._ledger, lambda c: results.flush(c, work.lease, work.answered))
            except sqlalchemy.exc.DBAPIError as error:
                if not (database.is_disk_full(error) or database.is_passing(error)) or self._is_drained:
                    raise
                facts = {"batch": work.batch.public_id, "lines": len(work.answered), "reason": str(error.orig)}
                logger.warning("answers wait for the database", extra=facts)
            if work.is_lost:
                return None
            time.sleep(STORE_AGAIN_SECONDS)


def _facts(lease: Lease) -> dict[str, object]:
    return {"batch": lease.batch_id, "position": lease.first_position, "epoch": lease.epoch}


def _result(line_no: int, answer: Answer) -> Result:
    used = answer.usage
    usage = Usage(used.prompt_tokens, used.cached_tokens, used.completion_tokens, used.reasoning_tokens)
    return Result(line_no, 200, answer.body, usage)


def _refused(line: Line, refusal: Refusal) -> Result:
    return Result(line.line_no, refusal.status, envelope_json(refusal))
