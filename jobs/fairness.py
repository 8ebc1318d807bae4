"""Which batch a free worker serves next."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import BigInteger


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch that could be served now: one in progress with a chunk to lease, or one whose file is to be read."""

    batch_id: int
    project_id: str
    priority: int
    expires_at: datetime
    project_weight: int
    crashes: int = 0  # of the chunk that would be leased


class Shares:
    """What each project has had of one worker for its weight, so that whoever had least is next.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): lines for weight make a project's time, which cannot be saved up
    by not coming. In memory: where each worker is fair, all together are.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[str, float] = {}

    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The most urgent priority first; then the project whose time is least; then the nearest deadline; then the
        oldest batch."""
        return min(
            candidates,
            key=lambda c: (c.priority, self._time(c), c.expires_at, c.batch_id),
            default=None,
        )

    def charge(self, candidate: Candidate, lines: int) -> None:
        """Note that a project was given so many lines."""
        self._now = self._time(candidate)
        self._next = {project_id: time for project_id, time in self._next.items() if time > self._now}
        self._next[candidate.project_id] = self._now + lines / candidate.project_weight

    def _time(self, candidate: Candidate) -> float:
        return max(self._next.get(candidate.project_id, 0.0), self._now)


def candidates(connection: Connection, model: str, *, priority_max: int) -> list[Candidate]:
    """The batches for `model` that have a ready chunk, of at most this priority number.

    LATERAL with a LIMIT: for EXISTS the planner may read the ready chunks of all batches, at every claim.
    """
    rows = connection.execute(
        text("""
            SELECT b.id, b.project_id, b.priority, b.expires_at, p.weight, ready.crashes
              FROM batch b JOIN project p ON p.id = b.project_id
              CROSS JOIN LATERAL (SELECT c.crashes FROM chunk c
                                   WHERE c.batch_id = b.id AND c.state = 'ready' AND c.not_before <= now()
                                   ORDER BY c.first_position LIMIT 1) AS ready
             WHERE b.state = 'in_progress' AND b.model = :model AND b.priority <= :priority_max
               AND b.expires_at > now()
        """),
        {"model": model, "priority_max": priority_max},
    )
    return [Candidate(*row) for row in rows]


def unread(
    connection: Connection, *, owner: UUID, silent_seconds: float, passed_over: Collection[int]
) -> list[Candidate]:
    """Of each project the oldest batch whose file nobody reads, but for those `passed_over`."""
    rows = connection.execute(
        text("""
            SELECT DISTINCT ON (b.project_id) b.id, b.project_id, b.priority, b.expires_at, p.weight
              FROM batch b JOIN project p ON p.id = b.project_id
             WHERE b.state = 'validating' AND b.id <> ALL(:passed_over)
               AND (b.owner IS NULL OR b.owner = :owner OR NOT EXISTS (
                    SELECT 1 FROM worker w
                     WHERE w.id = b.owner AND w.heartbeat_at > now() - make_interval(secs => :silent_seconds)))
             ORDER BY b.project_id, b.id
        """).bindparams(bindparam("passed_over", type_=ARRAY(BigInteger))),
        {"owner": owner, "silent_seconds": silent_seconds, "passed_over": list(passed_over)},
    )
    return [Candidate(*row) for row in rows]
