"""Places where a crash could lose or double something, each with a name, so that a test can make it happen there.

The environment variable CRASH_GRISTMILL_AT names one, and its process kills itself when it gets there: "results
stored", or "results stored:3" for the third time. Unset, a place costs a call and a comparison.
"""

import itertools
import os
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

VARIABLE = "CRASH_GRISTMILL_AT"


class Point(StrEnum):
    """The places, in the order in which a batch meets them."""

    FILE_WRITTEN = "file written"  # an upload is stored whole, and still invisible
    BATCH_CREATED = "batch created"  # committed, and nobody was told
    INGEST_TAKEN = "ingest taken"
    REQUESTS_COPIED = "requests copied"  # in the transaction that begins the batch
    BATCH_BEGUN = "batch begun"  # committed, and its model's workers were not told
    CHUNK_CLAIMED = "chunk claimed"
    LINES_ANSWERED = "lines answered"  # computed, and not stored
    RESULTS_STORED = "results stored"  # and nobody asked yet whether they were the last
    BATCH_CLOSED = "batch closed"  # committed, and the exporters were not told
    EXPORT_TAKEN = "export taken"
    OUTPUT_WRITTEN = "output written"  # the files are whole, and still invisible
    OUTPUT_LINKED = "output linked"  # in the transaction that ends the batch
    BATCH_ENDED = "batch ended"


@dataclass(slots=True)
class Armed:
    """The place where this process is to die, and at which arrival, from 1."""

    point: Point
    arrival: int
    arrivals: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))


def reach(point: Point) -> None:
    """Die here as by kill -9, if the environment says so."""
    armed = _armed()
    if armed is not None and armed.point is point and next(armed.arrivals) == armed.arrival:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> Armed | None:
    """What the environment says. ValueError for a place that there is not."""
    name, _, arrival = os.environ.get(VARIABLE, "").partition(":")
    return Armed(Point(name), int(arrival or 1)) if name else None
