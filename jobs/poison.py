"""Lines that end the process that computes them: found by halving what was lost, then answered with an error.

A chunk that was lost twice is a suspect. It is split each time it is lost, and whoever leases it does nothing else
meanwhile, so that what is lost then is its own fault. The one line that is left in the end is answered with
`worker_crashed`, and its batch goes on. The caller owns the transaction.
"""

from collections.abc import Sequence
from itertools import pairwise

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Integer

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


def isolate(connection: Connection, *, silent_seconds: float) -> list[int]:
    """Halve the suspects that are lost now, or answer what is left of them; the batches with such an answer.

    Comes before `leases.sweep`, in its transaction: what is halved is still leased to whoever lost it, in parts.
    """
    ended = set()
    for lease in leases.lost(connection, silent_seconds=silent_seconds, crashes_min=SUSPECT_CRASHES - 1):
        left = [line.line_no for line in leases.unanswered(connection, lease)]
        if len(left) > 1:
            _split(connection, lease, left)
        elif lease.crashes + 1 >= FATAL_CRASHES:
            _give_up(connection, lease, left)
            ended.add(lease.batch_id)
    return sorted(ended)


def _give_up(connection: Connection, lease: Lease, line_numbers: Sequence[int]) -> None:
    """Written under the lost lease, by the statement that stores every result: nobody else can answer too."""
    body = envelope_json(CRASHED)
    results.flush(connection, lease, [Result(line_no, CRASHED.status, body) for line_no in line_numbers])


def _split(connection: Connection, lease: Lease, left: Sequence[int]) -> None:
    """Make parts of a chunk: what is answered, which is done and has the counters, and both halves of the rest.

    Promise: each line stays in exactly one chunk. The first part keeps the chunk's row, with a new epoch, so that
    whoever lost it cannot take that part's end for its own; the place of another part is one that the chunk had, so no
    other chunk can have it.
    """
    open_lines = frozenset(left)
    answered = [line_no for line_no in lease.line_numbers if line_no not in open_lines]
    half = (len(left) + 1) // 2
    parts = [part for part in (answered, left[:half], left[half:]) if part]
    position = lease.first_position
    for before, part in pairwise(parts):
        position += len(before)
        _cut_off(connection, lease, position, part)
    connection.execute(
        text("""
            UPDATE chunk SET line_numbers = :line_numbers, epoch = epoch + 1,
                             state = CASE WHEN ok + failed = cardinality(:line_numbers) THEN 'done' ELSE state END
             WHERE batch_id = :batch_id AND first_position = :first_position
        """).bindparams(bindparam("line_numbers", type_=ARRAY(Integer))),
        {"batch_id": lease.batch_id, "first_position": lease.first_position, "line_numbers": list(parts[0])},
    )


def _cut_off(connection: Connection, lease: Lease, position: int, line_numbers: Sequence[int]) -> None:
    """A new chunk of some lines of another, under the same lease."""
    connection.execute(
        text("""
            INSERT INTO chunk (batch_id, first_position, line_numbers, state, owner, epoch, deadline, crashes)
            SELECT batch_id, :position, :line_numbers, state, owner, epoch, deadline, crashes
              FROM chunk WHERE batch_id = :batch_id AND first_position = :first_position
        """).bindparams(bindparam("line_numbers", type_=ARRAY(Integer))),
        {
            "batch_id": lease.batch_id,
            "first_position": lease.first_position,
            "position": position,
            "line_numbers": list(line_numbers),
        },
    )
