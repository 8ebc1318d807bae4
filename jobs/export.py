"""The end of a batch: its output and error file written, then linked with its terminal state at once.

Files are written invisibly under new ids, in short transactions; the batch is sealed, so its rows no
longer change. An export that dies leaves only files that nobody sees, and the sweeper removes them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from jobs import batches, database, failpoints, files
from jobs.batches import Batch
from jobs.contract import limits, lines
from jobs.failpoints import Point
from jobs.settings import Settings
from jobs.states import BatchState

logger = logging.getLogger(__name__)

PAGE_LINES = 2_000
OPEN = [BatchState.FINALIZING.value, BatchState.CANCELLING.value]


@dataclass(frozen=True, slots=True)
class Written:
    """A result file before it is linked; None where there was no line for it."""

    output: files.Writer | None
    error: files.Writer | None


def finalize(engine: Engine, batch_id: int, *, owner: UUID, settings: Settings) -> BatchState | None:
    """End a sealed batch; its terminal state, None if there was nothing to do or another does it."""
    epoch = database.run(
        engine,
        lambda c: batches.take(c, batch_id, owner=owner, states=OPEN, silent_seconds=settings.lease_seconds),
    )
    if epoch is None:
        return None
    failpoints.reach(Point.EXPORT_TAKEN)
    try:
        batch = database.run(engine, lambda c: batches.by_id(c, batch_id))
        if batch is None:
            return None  # a direct completion, dropped by its caller, who has the answer
        written = Written(None, None) if batch.is_direct else _write(engine, batch)
        failpoints.reach(Point.OUTPUT_WRITTEN)
        state = database.run(engine, lambda c: _link(c, batch, epoch, written))
    except BaseException:
        database.run(engine, lambda c: batches.give_back(c, batch_id, epoch))
        raise
    failpoints.reach(Point.BATCH_ENDED)
    if state is None:
        _discard(written)
    else:
        logger.info("batch ended", extra={"batch": batch.public_id, "state": state.value})
    return state


def _link(connection: Connection, batch: Batch, epoch: int, written: Written) -> BatchState | None:
    state = batches.finish(
        connection,
        batch.id,
        epoch,
        output_file_id=written.output.id if written.output else None,
        error_file_id=written.error.id if written.error else None,
    )
    if state is not None:
        lifetime = batch.output_lifetime_seconds or limits.FILE_LIFETIME_SECONDS
        for writer in (written.output, written.error):
            if writer is not None:
                files.publish(connection, writer, lifetime_seconds=lifetime)
        failpoints.reach(Point.OUTPUT_LINKED)
    return state


def _write(engine: Engine, batch: Batch) -> Written:
    """Write both files, in the order of the input."""
    writers: dict[str, files.Writer] = {}
    try:
        _write_rows(engine, batch, writers)
    except BaseException:
        _discard(Written(writers.get("output"), writers.get("error")))
        raise
    return Written(writers.get("output"), writers.get("error"))


def _write_rows(engine: Engine, batch: Batch, writers: dict[str, files.Writer]) -> None:
    """Fill `writers`, made where there is a line for them, and finish them."""
    for row in rows(engine, batch.id):
        kind = "output" if row.ok else "error"
        if kind not in writers:
            writers[kind] = files.Writer(
                engine,
                project_id=batch.project_id,
                purpose="batch_output",
                filename=f"{batch.public_id}_{kind}.jsonl",
            )
        writers[kind].write(line(batch, row))
    for writer in writers.values():
        writer.finish()


@dataclass(frozen=True, slots=True)
class Row:
    """A request with its result, if it has one."""

    line_no: int
    custom_id: str
    ok: bool | None
    status: int | None
    body: str | None


def line(batch: Batch, row: Row) -> bytes:
    """What stands of a request in the output or error file of its batch."""
    if row.status is not None and row.body is not None:
        return lines.answered(batch.public_id, row.line_no, row.custom_id, row.status, row.body)
    reason = lines.EXPIRED if batch.outcome is BatchState.EXPIRED else lines.CANCELLED
    return lines.unanswered(batch.public_id, row.line_no, row.custom_id, reason)


def rows(engine: Engine, batch_id: int) -> Iterator[Row]:
    """Every request of a batch by line number, in pages: no transaction outlives a page."""
    last = database.run(engine, lambda c: _last_line(c, batch_id))
    for after in range(0, last, PAGE_LINES):
        yield from database.run(engine, lambda c, after=after: _page(c, batch_id, after))  # type: ignore[misc]


def _last_line(connection: Connection, batch_id: int) -> int:
    query = text("SELECT coalesce(max(line_no), 0) FROM request WHERE batch_id = :batch_id")
    last: int = connection.execute(query, {"batch_id": batch_id}).scalar_one()
    return last


def _page(connection: Connection, batch_id: int, after: int) -> list[Row]:
    """The requests with the next PAGE_LINES numbers.

    Both tables are told their range: from one's the planner does not conclude the other's, and would read
    all results before this page's, at every page.
    """
    rows = connection.execute(
        text("""
            SELECT r.line_no, r.custom_id, s.ok, s.status, s.body
              FROM request r
              LEFT JOIN result s ON s.batch_id = r.batch_id AND s.line_no = r.line_no
                                AND s.batch_id = :batch_id AND s.line_no > :after AND s.line_no <= :last
             WHERE r.batch_id = :batch_id AND r.line_no > :after AND r.line_no <= :last
             ORDER BY r.line_no
        """),
        {"batch_id": batch_id, "after": after, "last": after + PAGE_LINES},
    )
    return [Row(*row) for row in rows]


def _discard(written: Written) -> None:
    for writer in (written.output, written.error):
        if writer is not None:
            writer.discard()
