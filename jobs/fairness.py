"""Which batch a free worker serves next. Pure: candidates in, one of them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch in progress with a chunk that could be leased now."""

    batch_id: int
    project_id: str
    priority: int
    expires_at: datetime
    project_weight: int
    project_leases: int  # chunks leased now, over all batches of the project
    crashes: int = 0  # of the chunk that would be leased


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The most urgent priority first; then the project with the least work under way for its weight; then
    the nearest deadline; then the oldest batch."""
    return min(
        candidates,
        key=lambda c: (c.priority, c.project_leases / c.project_weight, c.expires_at, c.batch_id),
        default=None,
    )


def candidates(connection: Connection, model: str, *, priority_max: int) -> list[Candidate]:
    """The batches for `model` that have a ready chunk, of at most this priority number.

    LATERAL with a LIMIT: for EXISTS the planner may read the ready chunks of all batches, at every claim.
    """
    rows = connection.execute(
        text("""
            SELECT b.id, b.project_id, b.priority, b.expires_at, p.weight,
                   (SELECT count(*) FROM chunk l JOIN batch o ON o.id = l.batch_id
                     WHERE l.state = 'leased' AND o.state = 'in_progress' AND o.project_id = b.project_id),
                   ready.crashes
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
