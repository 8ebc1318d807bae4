"""Lines that end the process that computes them: found by halving what was lost, then answered with an error.

A chunk that was lost twice is a suspect. It is split each time it is lost, and whoever leases it does nothing else
meanwhile, so that what is lost then is its own fault. The one line that is left in the end is answered with
`worker_crashed`, and its batch goes on. The caller owns the transaction.
"""

from sqlalchemy import Connection, text

from jobs import leases, results
from jobs.contract.errors import envelope_json
from jobs.errors import Failed
from jobs.leases import Lease
from jobs.results import Result

SUSPECT_CRASHES = 2  # from here on alone, and split
FATAL_CRASHES = 3  # of a line that was alone for the last of them

CRASHED = Failed(
    "The worker that computed this request ended again and again, and the request was given up.", code="worker_crashed"
)


def is_suspect(lease: Lease) -> bool:
    """Whether a lease must be worked on alone."""
    return lease.crashes >= SUSPECT_CRASHES


def condemn(connection: Connection, *, silent_seconds: float) -> list[int]:
    """Answer the lines that were lost alone, for the last time; their batches. Comes before `leases.sweep`.

    Promise: written under the lost lease, by the statement that stores every result, so a holder that lives after
    all and this cannot both answer.
    """
    rows = connection.execute(
        text("""
            SELECT c.batch_id, c.first_position, c.epoch, c.owner, c.line_numbers, c.crashes
              FROM chunk c LEFT JOIN worker w ON w.id = c.owner
             WHERE c.state = 'leased' AND c.crashes + 1 >= :fatal
               AND cardinality(c.line_numbers) - c.ok - c.failed = 1
               AND (w.id IS NULL OR w.heartbeat_at < now() - make_interval(secs => :silent_seconds)
                    OR c.deadline < now())
               FOR UPDATE OF c SKIP LOCKED
        """),
        {"fatal": FATAL_CRASHES, "silent_seconds": silent_seconds},
    )
    lost = [Lease(row[0], row[1], row[2], row[3], tuple(row[4]), row[5]) for row in rows]
    for lease in lost:
        (line,) = leases.unanswered(connection, lease)
        results.flush(connection, lease, [Result(line.line_no, CRASHED.status, envelope_json(CRASHED))])
    return sorted({lease.batch_id for lease in lost})


def split(connection: Connection) -> int:
    """Halve each suspect that is ready; how many parts were cut off. What is answered of it stays in a part that is
    done, with its counters; both halves keep what was learned of them.

    Promise: each line stays in exactly one chunk, and no chunk is split that was leased meanwhile. A part's place is
    one of those of its chunk, so no other chunk can have it. The batch is locked, so that whoever seals it waits, and
    seals the new parts too.
    """
    done = connection.execute(
        text("""
            WITH suspect AS MATERIALIZED (
                SELECT c.* FROM chunk c JOIN batch b ON b.id = c.batch_id
                 WHERE c.state = 'ready' AND c.crashes >= :suspect AND b.state = 'in_progress'
                   AND cardinality(c.line_numbers) - c.ok - c.failed > 1
                   FOR UPDATE OF c SKIP LOCKED
                   FOR SHARE OF b SKIP LOCKED),
            line AS (
                SELECT s.batch_id, s.first_position, n.line_no, n.place, r.line_no IS NOT NULL AS is_answered,
                       row_number() OVER (PARTITION BY s.batch_id, s.first_position, r.line_no IS NULL
                                              ORDER BY n.place) AS rank,
                       s.ok + s.failed AS answered, cardinality(s.line_numbers) - s.ok - s.failed AS open
                  FROM suspect s CROSS JOIN LATERAL unnest(s.line_numbers) WITH ORDINALITY AS n(line_no, place)
                  LEFT JOIN result r ON r.batch_id = s.batch_id AND r.line_no = n.line_no),
            part AS (
                SELECT batch_id, first_position, is_answered,
                       first_position + CASE WHEN is_answered THEN 0 WHEN rank <= (open + 1) / 2 THEN answered
                                             ELSE answered + (open + 1) / 2 END AS new_position,
                       array_agg(line_no ORDER BY place) AS line_numbers
                  FROM line GROUP BY batch_id, first_position, is_answered, 4),
            kept AS (
                UPDATE chunk c SET line_numbers = p.line_numbers,
                                   state = CASE WHEN p.is_answered THEN 'done' ELSE c.state END
                  FROM part p
                 WHERE c.batch_id = p.batch_id AND c.first_position = p.first_position
                   AND p.new_position = p.first_position)
            INSERT INTO chunk (batch_id, first_position, line_numbers, state, epoch, not_before, crashes)
            SELECT p.batch_id, p.new_position, p.line_numbers, 'ready', s.epoch, s.not_before, s.crashes
              FROM part p JOIN suspect s ON s.batch_id = p.batch_id AND s.first_position = p.first_position
             WHERE p.new_position <> p.first_position
        """),
        {"suspect": SUSPECT_CRASHES},
    )
    return done.rowcount
