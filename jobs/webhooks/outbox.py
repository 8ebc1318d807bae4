"""Messages that wait to be sent, in the database: written with what they tell of, claimed, and settled.

The caller owns the transaction.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from jobs.states import BatchState

LEASE_SECONDS = 60  # a claimed message is another's to try after that; longer than one try may take
GIVE_UP_DAYS = 3


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one endpoint, and which try this is, from 1."""

    event_id: str
    webhook_id: str
    event: str
    batch_public_id: str
    created_at: datetime
    tries: int
    url: str
    secret: str

    def body(self) -> bytes:
        """The JSON to send: the same at each try."""
        return orjson.dumps(
            {
                "id": self.event_id,
                "object": "event",
                "created_at": int(self.created_at.timestamp()),
                "type": self.event,
                "data": {"id": self.batch_public_id},
            }
        )


def announce(connection: Connection, *, project_id: str, batch_public_id: str, state: BatchState) -> None:
    """Queue the end of a batch for every endpoint of its project that wants to know.

    To be called in the transaction that sets the terminal state, so that neither is without the other. The
    event's id follows from the batch and its end: it is one for all tries.
    """
    event = f"batch.{state.value}"
    digest = hashlib.blake2b(f"{batch_public_id}:{event}".encode(), digest_size=16)
    connection.execute(
        text("""
            INSERT INTO webhook_delivery (event_id, webhook_id, event, batch_public_id, next_at)
            SELECT :event_id, w.id, :event, :batch_public_id, now()
              FROM webhook w
             WHERE w.project_id = :project_id AND :event = ANY(w.events)
            ON CONFLICT DO NOTHING
        """),
        {
            "event_id": f"evt_{digest.hexdigest()}",
            "event": event,
            "batch_public_id": batch_public_id,
            "project_id": project_id,
        },
    )


def claim(connection: Connection, *, busy: Collection[str]) -> Delivery | None:
    """The message that has waited longest, of an endpoint that is not `busy`; None if none is due.

    Promise: the message is left alone by others for LEASE_SECONDS; a process that dies with it only delays it.
    """
    row = connection.execute(
        text("""
            WITH due AS MATERIALIZED (
                SELECT event_id, webhook_id FROM webhook_delivery
                 WHERE next_at <= now() AND webhook_id <> ALL(:busy)
                 ORDER BY next_at LIMIT 1
                   FOR UPDATE SKIP LOCKED)
            UPDATE webhook_delivery d
               SET tries = d.tries + 1, next_at = now() + make_interval(secs => :lease_seconds)
              FROM due, webhook w
             WHERE d.event_id = due.event_id AND d.webhook_id = due.webhook_id AND w.id = d.webhook_id
            RETURNING d.event_id, d.webhook_id, d.event, d.batch_public_id, d.created_at, d.tries, w.url, w.secret
        """).bindparams(bindparam("busy", type_=ARRAY(Text))),
        {"busy": list(busy), "lease_seconds": LEASE_SECONDS},
    ).one_or_none()
    return None if row is None else Delivery(*row)


def settle(connection: Connection, delivery: Delivery, *, failure: str | None, wait_seconds: float) -> None:
    """Note how a try ended; where it failed, the next comes after `wait_seconds`, for GIVE_UP_DAYS.

    `tries` fences: whoever was too slow to settle leaves the next try to the one that has it now.
    """
    connection.execute(
        text("""
            UPDATE webhook_delivery
               SET failure = :failure,
                   delivered_at = CASE WHEN CAST(:failure AS text) IS NULL THEN now() END,
                   next_at = CASE WHEN CAST(:failure AS text) IS NOT NULL
                                   AND created_at > now() - make_interval(days => :give_up_days)
                                  THEN now() + make_interval(secs => :wait_seconds) END
             WHERE event_id = :event_id AND webhook_id = :webhook_id AND tries = :tries AND delivered_at IS NULL
        """),
        {
            "event_id": delivery.event_id,
            "webhook_id": delivery.webhook_id,
            "tries": delivery.tries,
            "failure": failure,
            "wait_seconds": wait_seconds,
            "give_up_days": GIVE_UP_DAYS,
        },
    )


def sweep(connection: Connection) -> int:
    """Forget messages that were settled a month ago; how many."""
    done = connection.execute(
        text("DELETE FROM webhook_delivery WHERE next_at IS NULL AND created_at < now() - interval '30 days'")
    )
    return done.rowcount
