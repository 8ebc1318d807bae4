"""The right to answer a chunk: claimed with a growing epoch, given back, or taken from the silent.

The epoch fences: whatever a former holder still writes carries an old epoch and writes nothing.
The caller owns the transaction.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import BigInteger, Integer

HELD: Final = (
    bindparam("batch_ids", type_=ARRAY(BigInteger)),
    bindparam("positions", type_=ARRAY(Integer)),
    bindparam("epochs", type_=ARRAY(Integer)),
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write results for the lines of one chunk, until the epoch moves on."""

    batch_id: int
    first_position: int
    epoch: int
    owner: UUID
    line_numbers: tuple[int, ...]
    crashes: int


def claim(connection: Connection, *, batch_id: int, owner: UUID, chunks: int, deadline_seconds: float) -> list[Lease]:
    """Lease up to `chunks` ready chunks of a batch, in the order of work.

    Promise: a chunk is leased by one owner at a time, and never from a batch that is not in progress.
    FOR UPDATE of the chunk, not the batch: one batch feeds many workers. MATERIALIZED: the planner may
    otherwise run the limited sub-select again for each row and lease more than asked.
    """
    rows = connection.execute(
        text("""
            WITH pick AS MATERIALIZED (
                SELECT c.batch_id, c.first_position
                  FROM chunk c JOIN batch b ON b.id = c.batch_id
                 WHERE c.batch_id = :batch_id AND c.state = 'ready' AND c.not_before <= now()
                   AND b.state = 'in_progress' AND b.expires_at > now()
                 ORDER BY c.first_position
                 LIMIT :chunks
                   FOR UPDATE OF c SKIP LOCKED)
            UPDATE chunk c
               SET state = 'leased', owner = :owner, epoch = c.epoch + 1,
                   deadline = now() + make_interval(secs => :deadline_seconds)
              FROM pick
             WHERE c.batch_id = pick.batch_id AND c.first_position = pick.first_position
            RETURNING c.batch_id, c.first_position, c.epoch, c.owner, c.line_numbers, c.crashes
        """),
        {"batch_id": batch_id, "owner": owner, "chunks": chunks, "deadline_seconds": deadline_seconds},
    )
    leases = [Lease(row[0], row[1], row[2], row[3], tuple(row[4]), row[5]) for row in rows]
    return sorted(leases, key=lambda lease: lease.first_position)


def renew(
    connection: Connection, *, owner: UUID, held: Collection[tuple[int, int, int]], deadline_seconds: float
) -> set[tuple[int, int, int]]:
    """Put off the deadlines of those leases of `owner` that are at work; what is still held of them.

    Leases are (batch, position, epoch). One that is missing from the answer was lost: to cancel, to expiry or to
    another process. One that is not named runs out, so that work its process gave up cannot stay leased for ever.
    """
    rows = connection.execute(
        text("""
            UPDATE chunk c SET deadline = now() + make_interval(secs => :deadline_seconds)
              FROM unnest(:batch_ids, :positions, :epochs) AS held(batch_id, first_position, epoch)
             WHERE c.batch_id = held.batch_id AND c.first_position = held.first_position
               AND c.epoch = held.epoch AND c.owner = :owner AND c.state = 'leased'
            RETURNING c.batch_id, c.first_position, c.epoch
        """).bindparams(*HELD),
        {"owner": owner, "deadline_seconds": deadline_seconds, **_columns(held)},
    )
    return {(row[0], row[1], row[2]) for row in rows}


def release_unheard(connection: Connection, *, owner: UUID, held: Collection[tuple[int, int, int]]) -> int:
    """Give back, without blame, what `owner` leases and does not hold: claims whose answer never came. How many."""
    return connection.execute(
        text("""
            UPDATE chunk c SET state = 'ready', owner = NULL, deadline = NULL
             WHERE c.owner = :owner AND c.state = 'leased'
               AND (c.batch_id, c.first_position, c.epoch) NOT IN (
                    SELECT * FROM unnest(:batch_ids, :positions, :epochs))
        """).bindparams(*HELD),
        {"owner": owner, **_columns(held)},
    ).rowcount


def release(connection: Connection, lease: Lease) -> bool:
    """Give a lease back unfinished, without blame; False if it was no longer ours."""
    done = connection.execute(
        text("""
            UPDATE chunk SET state = 'ready', owner = NULL, deadline = NULL
             WHERE batch_id = :batch_id AND first_position = :first_position
               AND epoch = :epoch AND owner = :owner AND state = 'leased'
        """),
        {
            "batch_id": lease.batch_id,
            "first_position": lease.first_position,
            "epoch": lease.epoch,
            "owner": lease.owner,
        },
    )
    return done.rowcount == 1


def sweep(connection: Connection, *, silent_seconds: float) -> list[int]:
    """Take the leases of silent processes and of passed deadlines back; the batches they belong to.

    Promise: safe to run anywhere, at once and any number of times; each loss counts one crash. The
    chunk waits a little longer after each, so that a line that kills its worker does not kill all day.
    """
    rows = connection.execute(
        text("""
            WITH lost AS MATERIALIZED (
                SELECT c.batch_id, c.first_position
                  FROM chunk c LEFT JOIN worker w ON w.id = c.owner
                 WHERE c.state = 'leased'
                   AND (w.id IS NULL OR w.heartbeat_at < now() - make_interval(secs => :silent_seconds)
                        OR c.deadline < now())
                   FOR UPDATE OF c SKIP LOCKED)
            UPDATE chunk c
               SET state = 'ready', owner = NULL, deadline = NULL, crashes = c.crashes + 1,
                   not_before = now() + least(interval '1 second' * 2 ^ c.crashes, interval '5 minutes')
              FROM lost
             WHERE c.batch_id = lost.batch_id AND c.first_position = lost.first_position
            RETURNING c.batch_id
        """),
        {"silent_seconds": silent_seconds},
    )
    return sorted({row[0] for row in rows})


def lost(connection: Connection, *, silent_seconds: float, crashes_min: int) -> list[Lease]:
    """The leases that `sweep` would take back of chunks that were lost so often before, locked until the caller ends.

    Their batches are locked too: whoever seals one waits, and finds what the caller made of its chunks.
    """
    rows = connection.execute(
        text("""
            SELECT c.batch_id, c.first_position, c.epoch, c.owner, c.line_numbers, c.crashes
              FROM chunk c JOIN batch b ON b.id = c.batch_id LEFT JOIN worker w ON w.id = c.owner
             WHERE c.state = 'leased' AND c.crashes >= :crashes_min AND b.state = 'in_progress'
               AND (w.id IS NULL OR w.heartbeat_at < now() - make_interval(secs => :silent_seconds)
                    OR c.deadline < now())
               FOR UPDATE OF c SKIP LOCKED
               FOR SHARE OF b SKIP LOCKED
        """),
        {"silent_seconds": silent_seconds, "crashes_min": crashes_min},
    )
    return [Lease(row[0], row[1], row[2], row[3], tuple(row[4]), row[5]) for row in rows]


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch, as it was sent."""

    line_no: int
    custom_id: str
    text: str


def unanswered(connection: Connection, lease: Lease) -> list[Line]:
    """The lines of a lease that have no result yet, in the order of work.

    A former holder may have stored some before it died; those are not computed again.
    """
    rows = connection.execute(
        text("""
            SELECT r.line_no, r.custom_id, r.line
              FROM request r
             WHERE r.batch_id = :batch_id AND r.line_no = ANY(:line_numbers)
               AND NOT EXISTS (SELECT 1 FROM result s WHERE s.batch_id = r.batch_id AND s.line_no = r.line_no)
        """).bindparams(bindparam("line_numbers", type_=ARRAY(Integer))),
        {"batch_id": lease.batch_id, "line_numbers": list(lease.line_numbers)},
    )
    lines = {row[0]: Line(row[0], row[1], row[2]) for row in rows}
    return [lines[line_no] for line_no in lease.line_numbers if line_no in lines]


def void(connection: Connection, batch_id: int) -> None:
    """Seal a batch: what is not done can be neither claimed nor written any more."""
    connection.execute(
        text("""
            UPDATE chunk SET state = 'void', owner = NULL, deadline = NULL
             WHERE batch_id = :batch_id AND state IN ('ready', 'leased')
        """),
        {"batch_id": batch_id},
    )


def insert(connection: Connection, batch_id: int, chunks: Iterable[Sequence[int]]) -> None:
    """Make the chunks of a batch, each a list of line numbers in the order of work, by binary COPY."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    first = 0
    with (
        driver.cursor() as cursor,
        cursor.copy("COPY chunk (batch_id, first_position, line_numbers, state) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["int8", "int4", "int4[]", "text"])
        for line_numbers in chunks:
            copy.write_row((batch_id, first, list(line_numbers), "ready"))
            first += len(line_numbers)


def _columns(held: Collection[tuple[int, int, int]]) -> dict[str, list[int]]:
    """Leases as the parameters of HELD."""
    return {name.key: [lease[place] for lease in held] for place, name in enumerate(HELD)}
