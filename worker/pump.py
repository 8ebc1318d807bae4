"""What a worker leases, and when: always so many lines that the engine has some that wait, however long a chunk's last
line takes. One thread leases; each leased chunk is answered by a thread of its own.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from uuid import UUID

import sqlalchemy

from jobs import batches, database, direct, failpoints, fairness, leases, poison
from jobs.batches import Batch
from jobs.failpoints import Point
from jobs.hints import Hints
from jobs.leases import Lease
from jobs.settings import Settings
from jobs.streams import Publisher
from worker.answering import Chunk, Means
from worker.chat import Chat
from worker.engine import Engine
from worker.moderation import ContentFilter
from worker.twins import Twins

logger = logging.getLogger(__name__)

LOWEST_PRIORITY = 32_767
LOOK_SECONDS = 1.0  # while chunks are answered and no hint comes
CHUNKS_MAX = 32
BATCHES_MAX = 64
DIRECT_MAX = 16  # completions outside batches, beside the chunks


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
        self._model = model
        self._settings = settings
        self._means = Means(
            ledger=ledger,
            twins=Twins(engine.submit),
            chat=chat,
            hints=hints,
            publisher=publisher if content_filter is None else None,  # nothing is shown before it is judged
            content_filter=content_filter,
            flush_seconds=settings.flush_seconds,
            is_drained=lambda: self._drain_until is not None and monotonic() >= self._drain_until,
            took=self._look_where_there_is_room,
        )
        self._lines_max = max(3 * engine.slots, settings.chunk_lines) + settings.chunk_lines
        self._held: dict[tuple[int, int, int], Chunk] = {}
        self._batches: dict[int, Batch | None] = {}
        self._shares = fairness.Shares()
        self._lock = threading.Lock()
        self._leasing = threading.Lock()
        self._look = threading.Event()
        self._is_dry = False  # no chunk was ready when one had room
        self._is_unheard = False  # a claim was sent, and what it got is not known
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
            return set(self._held)

    def lose(self, lost: set[tuple[int, int, int]]) -> None:
        """Give up the work of leases that are no longer ours."""
        with self._lock:
            for key in lost & self._held.keys():
                self._held[key].is_lost = True

    @property
    def _takes_work(self) -> bool:
        return self._drain_until is None and self._engine.is_alive

    def _lease_until_dry(self, owner: Callable[[], UUID]) -> None:
        self._look.clear()
        while self._takes_work or self._held:
            if not (self._takes_work and self._lease(owner())):
                if not self._held:
                    return
                self._look.wait(LOOK_SECONDS)
            self._look.clear()

    def _lease(self, owner: UUID) -> bool:
        """Lease the next chunks and have them answered; False if none is ready. Direct completions need no room."""
        with self._lock:
            held = [chunk.lease for chunk in self._held.values()]
        if len(held) >= CHUNKS_MAX + DIRECT_MAX or any(map(poison.is_suspect, held)):
            return False
        room = self._room
        claimed = self._claim(owner, LOWEST_PRIORITY if room else direct.PRIORITY, chunks=max(room, 1))
        self._is_dry = bool(room and not claimed)
        for chunk in claimed:
            failpoints.reach(Point.CHUNK_CLAIMED)
            with self._lock:
                self._held[chunk.key] = chunk
            self._takers.submit(self._answer, chunk)
        return bool(claimed)

    def _claim(self, owner: UUID, priority_max: int, *, chunks: int) -> list[Chunk]:
        """The next chunks of one batch. A suspect waits until nothing else is answered."""

        def claim(connection: sqlalchemy.Connection) -> list[Chunk]:
            if self._is_unheard:
                leases.release_unheard(connection, owner=owner, held=self.held())
            self._is_unheard = True
            best = self._shares.choose(fairness.candidates(connection, self._model, priority_max=priority_max))
            if best is None or (best.crashes >= poison.SUSPECT_CRASHES and self._held):
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
            if suspects and (len(claimed) > 1 or self._held):
                for lease in suspects:  # met behind the one that we had seen, or in its place
                    leases.release(connection, lease)
                claimed = [lease for lease in claimed if lease not in suspects]
            return [Chunk(lease, batch, self._means) for lease in claimed if (batch := self._known(connection, lease))]

        claimed = database.run_autocommit(self._ledger, claim)
        self._is_unheard = False
        return claimed

    def _known(self, connection: sqlalchemy.Connection, lease: Lease) -> Batch | None:
        """The batch of a lease as it was when its first chunk came: what is read of it here never changes. None if it
        is gone.
        """
        batch_id = lease.batch_id
        if batch_id not in self._batches:
            if len(self._batches) >= BATCHES_MAX:
                self._batches.clear()
            self._batches[batch_id] = batches.by_id(connection, batch_id)
        return self._batches[batch_id]

    def _answer(self, chunk: Chunk) -> None:
        """What goes wrong here costs the lease, no more."""
        try:
            chunk.answer()
        except Exception:
            logger.exception("chunk given up", extra=chunk.facts)
        finally:
            with self._lock:
                del self._held[chunk.key]
            chunk.cancel()
            self._look.set()

    def _look_where_there_is_room(self) -> None:
        if not self._is_dry and self._room:
            self._look.set()

    @property
    def _room(self) -> int:
        """How many chunks more would leave the engine with few enough lines; none before it is worth a look at the
        ledger, which finds many as fast as one.
        """
        with self._lock:
            lines = sum(chunk.lines for chunk in self._held.values())
            chunks = (self._lines_max - lines) // self._settings.chunk_lines
            if 2 * chunks < self._lines_max // self._settings.chunk_lines:
                return 0
            return max(min(chunks, CHUNKS_MAX - len(self._held)), 0)
