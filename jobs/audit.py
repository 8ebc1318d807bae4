"""Says in sentences what is wrong in a ledger: what was lost, doubled, miscounted or left behind. Nothing is changed.

It may be asked at any moment: what is still under way is no fault, unless nobody has moved it for a while.
"""

from collections.abc import Iterator
from functools import partial

from sqlalchemy import Connection, Engine, text

from jobs import batches, database, export, files
from jobs.batches import Batch
from jobs.settings import Settings
from jobs.states import TERMINAL, BatchState

NAMED_MAX = 5  # lines or chunks that a sentence names
LINE_SIZE_MAX = 1 << 40  # of our own files; what is too long would be a fault of its own


def faults(engine: Engine, settings: Settings, *, patience_seconds: float = 60) -> Iterator[str]:
    """Each broken promise in a sentence, as it is found. Without faults the ledger is sound.

    What nobody has moved for `patience_seconds` beyond the time it should take counts as stuck. Batches whose lines
    retention deletes are left out.
    """
    yield from database.run(engine, _strays)
    read: set[str] = set()
    for batch_id in database.run(engine, lambda c: _kept(c, settings.retention_days)):
        batch, found = database.run(engine, partial(_look, batch_id=batch_id, patience_seconds=patience_seconds))
        if batch is None:
            continue
        yield from (f"{batch.public_id}: {fault}" for fault in found)
        if batch.state in TERMINAL and not batch.is_direct:
            results = [file for file in _result_files(engine, batch) if file.id not in read]
            read.update(file.id for file in results)
            yield from _result_faults(engine, batch, results)
    for file_id in database.run(engine, _ready_files):
        if file_id not in read:
            yield from _size_faults(engine, file_id, _size(engine, file_id))


def _kept(connection: Connection, retention_days: int) -> list[int]:
    """The batches whose lines must be there."""
    rows = connection.execute(
        text("""
            SELECT b.id FROM batch b
             WHERE b.cleared_at IS NULL
               AND (coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at) IS NULL
                    OR coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)
                       > now() - make_interval(days => :retention_days)
                    OR EXISTS (SELECT 1 FROM file f WHERE f.id IN (b.output_file_id, b.error_file_id)))
             ORDER BY b.id
        """),
        {"retention_days": retention_days},
    )
    return [row[0] for row in rows]


def _look(connection: Connection, *, batch_id: int, patience_seconds: float) -> tuple[Batch | None, list[str]]:
    """A batch and what is wrong with its rows, all at one moment."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    batch = batches.by_id(connection, batch_id)
    if batch is None:
        return None, []  # a direct completion, dropped meanwhile
    found = [
        *_line_faults(connection, batch),
        *_chunk_faults(connection, batch),
        *_count_faults(connection, batch),
        *_stuck(connection, batch, patience_seconds),
    ]
    return batch, found


def _line_faults(connection: Connection, batch: Batch) -> Iterator[str]:
    """Lines stand in one chunk each, have one name each, and only they have results."""
    if wrong := _numbers(connection, LINES_MISPLACED, batch):
        yield f"these lines do not stand in exactly one chunk: {wrong}"
    if wrong := _numbers(connection, RESULTS_WITHOUT_LINE, batch):
        yield f"there are results of lines that it does not have: {wrong}"
    if wrong := _numbers(connection, CUSTOM_IDS_DOUBLED, batch):
        yield f"these lines have a custom_id that another has too: {wrong}"


LINES_MISPLACED = """
    SELECT coalesce(r.line_no, p.line_no) AS number
      FROM (SELECT line_no FROM request WHERE batch_id = :id) r
      FULL JOIN (SELECT n.line_no, count(*) AS times
                   FROM chunk c CROSS JOIN LATERAL unnest(c.line_numbers) AS n(line_no)
                  WHERE c.batch_id = :id GROUP BY n.line_no) p ON p.line_no = r.line_no
     WHERE r.line_no IS NULL OR p.times IS DISTINCT FROM 1
"""
RESULTS_WITHOUT_LINE = """
    SELECT s.line_no AS number FROM result s
     WHERE s.batch_id = :id
       AND NOT EXISTS (SELECT 1 FROM request r WHERE r.batch_id = :id AND r.line_no = s.line_no)
"""
CUSTOM_IDS_DOUBLED = """
    SELECT line_no AS number
      FROM (SELECT line_no, count(*) OVER (PARTITION BY custom_id) AS times FROM request WHERE batch_id = :id) named
     WHERE times > 1
"""


def _chunk_faults(connection: Connection, batch: Batch) -> Iterator[str]:
    """A chunk's counters are its rows, its state is what they say, and only a leased one has an owner."""
    if wrong := _numbers(connection, CHUNKS_MISCOUNTED, batch):
        yield f"chunks whose counters are not those of their results: {wrong}"
    if wrong := _numbers(connection, CHUNKS_MISSTATED, batch):
        yield f"chunks whose state is not what their counters or their owner say: {wrong}"


CHUNKS_MISCOUNTED = """
    SELECT c.first_position AS number
      FROM chunk c
      CROSS JOIN LATERAL unnest(c.line_numbers) AS n(line_no)
      LEFT JOIN result s ON s.batch_id = c.batch_id AND s.line_no = n.line_no
     WHERE c.batch_id = :id
     GROUP BY c.batch_id, c.first_position
    HAVING (c.ok, c.failed, c.prompt_tokens, c.cached_tokens, c.completion_tokens, c.reasoning_tokens)
           IS DISTINCT FROM
           (count(*) FILTER (WHERE s.ok), count(*) FILTER (WHERE NOT s.ok), coalesce(sum(s.prompt_tokens), 0),
            coalesce(sum(s.cached_tokens), 0), coalesce(sum(s.completion_tokens), 0),
            coalesce(sum(s.reasoning_tokens), 0))
        OR max(s.epoch) > c.epoch
"""
CHUNKS_MISSTATED = """
    SELECT c.first_position AS number FROM chunk c
     WHERE c.batch_id = :id
       AND ((c.state = 'done') <> (c.ok + c.failed = cardinality(c.line_numbers))
            OR (c.state = 'leased') <> (c.owner IS NOT NULL AND c.deadline IS NOT NULL AND c.state <> 'done')
            OR c.state NOT IN ('ready', 'leased', 'done', 'void'))
"""


def _count_faults(connection: Connection, batch: Batch) -> Iterator[str]:
    """What the batch says of itself is what its lines and chunks come to."""
    sums = connection.execute(
        text("""
            SELECT (SELECT count(*) FROM request WHERE batch_id = :id) AS lines,
                   (SELECT count(*) FROM chunk WHERE batch_id = :id AND state IN ('ready', 'leased')) AS open,
                   (SELECT count(*) FROM chunk WHERE batch_id = :id AND state = 'void') AS void,
                   coalesce(sum(ok), 0) AS ok, coalesce(sum(failed), 0) AS failed,
                   ARRAY[coalesce(sum(ok), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),
                         coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0)] AS used,
                   (SELECT ARRAY[coalesce(sum(ok), 0), coalesce(sum(prompt_tokens), 0),
                                 coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0),
                                 coalesce(sum(reasoning_tokens), 0)]
                      FROM tally WHERE batch_id = :id) AS tallied
              FROM chunk WHERE batch_id = :id
        """),
        {"id": batch.id},
    ).one()
    if sums.lines != batch.total:
        yield f"it counts {batch.total} lines and has {sums.lines}"
    if batch.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS) and sums.open:
        yield f"it is {batch.state.value}, and {sums.open} of its chunks are open"
    if BatchState.COMPLETED in (batch.state, batch.outcome) and batch.state is not BatchState.CANCELLING and sums.void:
        yield f"it completes, and {sums.void} of its chunks were given up"
    if batch.state not in TERMINAL:
        if sums.tallied != sums.used:
            yield "its tally is not the sum of its chunks"
    elif batch.state is not BatchState.FAILED:
        yield from _end_faults(batch, int(sums.ok), [int(used) for used in sums.used])


def _end_faults(batch: Batch, ok: int, used: list[int]) -> Iterator[str]:
    """A batch that has ended says how, with its counts, usage and files."""
    if batch.state is not batch.outcome:
        yield f"it is {batch.state.value}, and was to be {batch.outcome.value if batch.outcome else 'nothing'}"
    if (batch.completed, batch.failed) != (ok, batch.total - ok):
        yield f"it says {batch.completed} completed and {batch.failed} failed; it has {ok} and {batch.total - ok}"
    said = [batch.completed, batch.prompt_tokens, batch.cached_tokens, batch.completion_tokens, batch.reasoning_tokens]
    if said[1:] != used[1:]:
        yield f"it says it used {said[1:]} tokens, and used {used[1:]}"
    if batch.is_direct:
        return
    if (batch.output_file_id is not None) != (ok > 0):
        yield f"{ok} lines were answered, and its output file is {batch.output_file_id}"
    if (batch.error_file_id is not None) != (ok < batch.total):
        yield f"{batch.total - ok} lines failed, and its error file is {batch.error_file_id}"


def _stuck(connection: Connection, batch: Batch, patience_seconds: float) -> Iterator[str]:
    """Whatever should have moved by now."""
    values = {"id": batch.id, "patience": patience_seconds}
    lost = connection.execute(
        text("""
            SELECT count(*) FROM chunk
             WHERE batch_id = :id AND state = 'leased' AND deadline < now() - make_interval(secs => :patience)
        """),
        values,
    ).scalar_one()
    if lost:
        yield f"{lost} of its chunks have been leased beyond their time, and nobody took them back"
    is_left = connection.execute(
        text("""
            SELECT CASE b.state
                   WHEN 'in_progress' THEN
                        b.expires_at < now() - make_interval(secs => :patience)
                        OR (SELECT bool_and(c.state = 'done')
                               AND coalesce(max(c.deadline), b.in_progress_at)
                                   < now() - make_interval(secs => :patience)
                              FROM chunk c WHERE c.batch_id = b.id)
                   ELSE coalesce(b.cancelling_at, b.finalizing_at, b.created_at)
                        < now() - make_interval(secs => :patience)
                        AND NOT EXISTS (SELECT 1 FROM worker w
                                         WHERE w.id = b.owner
                                           AND w.heartbeat_at > now() - make_interval(secs => :patience))
                   END
              FROM batch b
             WHERE b.id = :id AND b.state IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        """),
        values,
    ).scalar_one_or_none()
    if is_left:
        yield f"it is {batch.state.value}, and nobody moves it on"


def _strays(connection: Connection) -> list[str]:
    """Rows of no batch, and files that nothing leads to."""
    found = connection.execute(
        text("""
            SELECT 'There are ' || count(*) || ' chunks of no batch.' FROM chunk c
             WHERE NOT EXISTS (SELECT 1 FROM batch b WHERE b.id = c.batch_id) HAVING count(*) > 0
            UNION ALL
            SELECT 'The file ' || f.id || ' is a result of no batch.' FROM file f
             WHERE f.state = 'ready' AND f.purpose = 'batch_output'
               AND NOT EXISTS (SELECT 1 FROM batch b WHERE b.output_file_id = f.id)
               AND NOT EXISTS (SELECT 1 FROM batch b WHERE b.error_file_id = f.id)
            UNION ALL
            SELECT 'The file ' || f.id || ' was never finished, and has not been removed.' FROM file f
             WHERE f.state = 'uploading' AND f.created_at < now() - interval '2 days'
        """)
    )
    return [row[0] for row in found]


def _ready_files(connection: Connection) -> list[str]:
    """Each file that someone may read."""
    return list(connection.execute(text("SELECT id FROM file WHERE state = 'ready' ORDER BY created_at")).scalars())


def _size(engine: Engine, file_id: str) -> int | None:
    """How many bytes can be read; None where a part is damaged."""
    try:
        return sum(map(len, files.read(engine, file_id)))
    except files.Damaged:
        return None


def _size_faults(engine: Engine, file_id: str, found: int | None) -> Iterator[str]:
    """`found` is how many bytes were read; a file that was deleted meanwhile has no fault."""
    query = text("SELECT size_bytes FROM file WHERE id = :id")
    expected = database.run(engine, lambda c: c.execute(query, {"id": file_id}).scalar_one_or_none())
    if expected is not None and found != expected:
        yield f"The file {file_id} has not the bytes that it should have."


class _ResultFile:
    """A file of an ended batch, read once, beside the lines that its tables say it has."""

    def __init__(self, engine: Engine, kind: str, file_id: str) -> None:
        self.id = file_id
        self.kind = kind
        self.difference: int | None = None
        """The number of the first line that is another, from 1."""
        self.size_bytes: int | None = 0
        """What could be read so far; None once a part was damaged."""
        self._lines = files.lines(self._parts(engine), size_max=LINE_SIZE_MAX)
        self._number = 0

    def expect(self, line: bytes) -> None:
        """The next line is this one."""
        self._number += 1
        found = next(self._lines, None)
        if self.difference is None and (found is None or found + b"\n" != line):
            self.difference = self._number

    def end(self) -> None:
        """Nothing more is expected."""
        if next(self._lines, None) is not None and self.difference is None:
            self.difference = self._number + 1
        for _ in self._lines:
            pass

    def _parts(self, engine: Engine) -> Iterator[bytes]:
        try:
            for part in files.read(engine, self.id):
                assert self.size_bytes is not None
                self.size_bytes += len(part)
                yield part
        except files.Damaged:
            self.size_bytes = None


def _result_files(engine: Engine, batch: Batch) -> list[_ResultFile]:
    """The files of an ended batch that were not deleted."""
    named = (("output", batch.output_file_id), ("error", batch.error_file_id))
    return [
        _ResultFile(engine, kind, file_id)
        for kind, file_id in named
        if file_id is not None and database.run(engine, partial(_is_there, batch=batch, file_id=file_id))
    ]


def _result_faults(engine: Engine, batch: Batch, results: list[_ResultFile]) -> Iterator[str]:
    """Result files are, byte for byte and in order, what the batch's tables say."""
    by_kind = {file.kind: file for file in results}
    for row in export.rows(engine, batch.id) if results else ():
        if (file := by_kind.get("output" if row.ok else "error")) is not None:
            file.expect(export.line(batch, row))
    for file in results:
        file.end()
        yield from _size_faults(engine, file.id, file.size_bytes)
        is_damaged = file.size_bytes is None  # which was told
        if (
            file.difference
            and not is_damaged
            and database.run(engine, partial(_is_there, batch=batch, file_id=file.id))
        ):
            yield f"{batch.public_id}: its {file.kind} file differs from its results, first in line {file.difference}"


def _is_there(connection: Connection, *, batch: Batch, file_id: str) -> bool:
    return files.peek(connection, batch.project_id, file_id) is not None


def _numbers(connection: Connection, query: str, batch: Batch) -> str:
    """The first numbers that a query finds, and how many more there are; empty if there are none."""
    numbers = [row[0] for row in connection.execute(text(query), {"id": batch.id})]
    named = ", ".join(str(number) for number in sorted(numbers)[:NAMED_MAX])
    return named + (f" and {len(numbers) - NAMED_MAX} more" if len(numbers) > NAMED_MAX else "")
