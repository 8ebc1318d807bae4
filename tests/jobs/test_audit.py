"""The audit finds nothing in a sound ledger, and each kind of damage that is done to one by hand."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from jobs import audit, batches, database, export, files, leases, results
from jobs.batches import Batch
from tests.jobs import making

DAMAGE = {
    "an answer is lost": ("DELETE FROM result WHERE line_no = 2", "chunks whose counters"),
    "an answer is changed": ("UPDATE result SET body = '[]' WHERE line_no = 2", "its output file differs"),
    "an answer is of no line": (
        ("INSERT INTO result SELECT batch_id, 99, ok, status, epoch, body, 0, 0, 0, 0 FROM result WHERE line_no = 2"),
        "results of lines that it does not have: 99",
    ),
    "an answer is from the future": ("UPDATE result SET epoch = 9 WHERE line_no = 2", "chunks whose counters"),
    "a line is lost": ("DELETE FROM request WHERE line_no = 2", "it counts 6 lines and has 5"),
    "a line is in no chunk": (
        "INSERT INTO request SELECT batch_id, 7, 'r7', line FROM request WHERE line_no = 1",
        "exactly one chunk: 7",
    ),
    "a line is in two chunks": (
        "UPDATE chunk SET line_numbers = '{5,6,1}' WHERE first_position = 4",
        "exactly one chunk: 1",
    ),
    "two lines have one name": ("UPDATE request SET custom_id = 'r1' WHERE line_no = 2", "has too: 1, 2"),
    "a chunk miscounts": ("UPDATE chunk SET ok = 3 WHERE first_position = 0", "not those of their results: 0"),
    "a chunk counts other tokens": (
        "UPDATE chunk SET prompt_tokens = 1 WHERE first_position = 4",
        "not those of their results: 4",
    ),
    "a chunk is open": ("UPDATE chunk SET state = 'ready' WHERE first_position = 4", "1 of its chunks are open"),
    "a chunk is leased by nobody": ("UPDATE chunk SET state = 'leased', owner = NULL", "or their owner say: 0, 4"),
    "a batch miscounts": (
        "UPDATE batch SET completed = 6, failed = 0",
        "it says 6 completed and 0 failed; it has 5 and 1",
    ),
    "a batch counts other tokens": ("UPDATE batch SET prompt_tokens = 1", "it says it used [1, "),
    "a batch counts other lines": ("UPDATE batch SET total = 7", "it counts 7 lines and has 6"),
    "a batch ends otherwise": ("UPDATE batch SET outcome = 'expired'", "is completed, and was to be expired"),
    "a chunk was given up": ("UPDATE chunk SET state = 'void' WHERE first_position = 4", "were given up"),
    "an output file is not linked": ("UPDATE batch SET output_file_id = NULL", "its output file is None"),
    "an error file is not linked": ("UPDATE batch SET error_file_id = NULL", "is a result of no batch"),
    "a file lost a part": ("DELETE FROM file_part", "has not the bytes that it should have"),
    "a part lost bytes": (
        "UPDATE file_part SET packed = substr(packed, 1, 9)",
        "has not the bytes that it should have",
    ),
    "the files are mixed up": (
        "UPDATE batch SET output_file_id = error_file_id, error_file_id = output_file_id",
        "its output file differs from its results, first in line 1",
    ),
    "a chunk is left behind": (
        "INSERT INTO chunk (batch_id, first_position, line_numbers, state) VALUES (0, 0, '{1}', 'done')",
        "1 chunks of no batch",
    ),
    "a file was never finished": (
        (
            "INSERT INTO file (id, project_id, purpose, filename, state, created_at) VALUES "
            "('f', 'default', 'batch', 'x', 'uploading', now() - interval '3 days')"
        ),
        "The file f was never finished",
    ),
}


def ended(ledger: Engine) -> Batch:
    """A batch of six lines in chunks of four and two; the last line failed."""
    batch = making.ingest(ledger, [making.line(f"r{n}", content=f"Question {n}") for n in range(1, 7)])
    owner = making.worker(ledger)
    for lease in making.claim(ledger, batch, owner, chunks=2):
        stored = [*making.results([n for n in lease.line_numbers if n < 6]), *making.results([6], status=500)]
        database.run(ledger, lambda c, lease=lease, stored=stored: results.flush(c, lease, stored))  # type: ignore[misc]
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    return making.fetch(ledger, batch)


def faults(ledger: Engine, *, patience_seconds: float = 60) -> list[str]:
    return list(audit.faults(ledger, making.SETTINGS, patience_seconds=patience_seconds))


def damage(ledger: Engine, statement: str) -> None:
    database.run(ledger, lambda c: c.execute(text(statement)))


def test_a_ledger_is_sound_at_every_moment_of_a_batch(ledger: Engine) -> None:
    assert faults(ledger) == []
    making.create(ledger, "file-none")
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(6)])
    assert faults(ledger) == []
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: results.flush(c, lease, making.results([1, 2])))
    assert faults(ledger) == []
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    assert faults(ledger) == []
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    assert faults(ledger) == []
    ended(ledger)
    assert faults(ledger) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_a_sentence(ledger: Engine, name: str) -> None:
    statement, expected = DAMAGE[name]
    ended(ledger)
    damage(ledger, statement)
    assert any(expected in fault for fault in faults(ledger)), faults(ledger)


def test_a_tally_that_is_not_the_sum_is_told(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(6)])
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: results.flush(c, lease, making.results([1, 2])))
    damage(ledger, "UPDATE tally SET ok = 1")
    assert faults(ledger) == [f"{batch.public_id}: its tally is not the sum of its chunks"]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE chunk SET deadline = now() - interval '61 s'", "leased beyond their time"),
        ("UPDATE batch SET expires_at = now() - interval '61 s'", "it is in_progress, and nobody moves it on"),
        (
            "UPDATE batch SET state = 'cancelling', outcome = 'cancelled', cancelling_at = now() - interval '61 s'",
            "it is cancelling, and nobody moves it on",
        ),
    ],
)
def test_what_nobody_moves_is_told_when_its_time_is_over(ledger: Engine, statement: str, expected: str) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    making.claim(ledger, batch, making.worker(ledger))
    damage(ledger, statement)
    assert any(expected in fault for fault in faults(ledger))
    assert not any(expected in fault for fault in faults(ledger, patience_seconds=120))


def test_an_answered_batch_that_nobody_closes_is_stuck(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: results.flush(c, lease, making.results([1])))
    assert faults(ledger) == []
    damage(ledger, "UPDATE chunk SET deadline = now() - interval '61 s'")
    assert faults(ledger) == [f"{batch.public_id}: it is in_progress, and nobody moves it on"]


def test_what_a_living_process_exports_is_not_stuck(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: leases.void(c, batch.id))
    owner = making.worker(ledger)
    damage(ledger, "UPDATE batch SET state = 'finalizing', outcome = 'expired', finalizing_at = now() - interval '1 h'")
    assert faults(ledger) == [f"{batch.public_id}: it is finalizing, and nobody moves it on"]
    states = ["finalizing"]
    database.run(ledger, lambda c: batches.take(c, batch.id, owner=owner, states=states, silent_seconds=60))
    assert faults(ledger) == []


def test_lines_that_retention_deletes_are_not_missed(ledger: Engine) -> None:
    ended(ledger)
    damage(ledger, "DELETE FROM file WHERE purpose = 'batch_output'")
    assert faults(ledger) == []
    damage(ledger, "DELETE FROM request WHERE line_no = 1")
    assert faults(ledger) != []
    damage(ledger, "UPDATE batch SET completed_at = now() - interval '40 days'")
    assert faults(ledger) == []


def test_each_file_is_read_once(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(ledger)
    read, files_read = [], audit.files.read

    def counted(engine: Engine, file_id: str) -> Iterator[bytes]:
        read.append(file_id)
        return files_read(engine, file_id)

    monkeypatch.setattr(audit.files, "read", counted)
    assert faults(ledger) == []
    assert len(read) == len(set(read)) == making.scalar(ledger, "SELECT count(*) FROM file")


def test_a_result_file_that_is_deleted_while_it_is_read_has_no_fault(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ended(ledger)
    rows = audit.export.rows

    def meanwhile(engine: Engine, batch_id: int) -> Iterator[object]:
        for file_id in (batch.output_file_id, batch.error_file_id):
            database.run(ledger, lambda c, file_id=file_id: files.delete(c, batch.project_id, file_id))  # type: ignore[misc]
        return rows(engine, batch_id)

    monkeypatch.setattr(audit.export, "rows", meanwhile)
    assert faults(ledger) == []
