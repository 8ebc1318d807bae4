"""Lines that end their workers: halved until they are alone, then answered with an error."""

import orjson
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from jobs import audit, batches, database, export, leases, poison, results
from jobs.batches import Batch
from jobs.leases import Lease
from jobs.states import BatchState
from tests.jobs import making


@pytest.fixture
def batch(ledger: Engine) -> Batch:
    """Six lines in chunks of four and two."""
    return making.ingest(ledger, [making.line(f"r{n}") for n in range(1, 7)])


def lose(ledger: Engine, crashes: int = 0) -> None:
    """Let the leases run out, and sweep once as the sweeper does; with so many crashes before."""
    with ledger.begin() as connection:
        connection.execute(
            text("UPDATE chunk SET deadline = now() - interval '1 s', crashes = :crashes WHERE state = 'leased'"),
            {"crashes": crashes},
        )
    with ledger.begin() as connection:
        poison.isolate(connection, silent_seconds=60)
        leases.sweep(connection, silent_seconds=60)
        connection.execute(text("UPDATE chunk SET not_before = now()"))


def chunks(ledger: Engine) -> list[tuple[int, list[int], str, int]]:
    query = text("SELECT first_position, line_numbers, state, crashes FROM chunk ORDER BY first_position")
    with ledger.connect() as connection:
        return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]


def claim(ledger: Engine, batch: Batch) -> Lease:
    return making.claim(ledger, batch, making.worker(ledger))[0]


def flush(ledger: Engine, lease: Lease, line_numbers: list[int]) -> object:
    return database.run(ledger, lambda c: results.flush(c, lease, making.results(line_numbers)))


def sound(ledger: Engine) -> bool:
    found = list(audit.faults(ledger, making.SETTINGS))
    assert found == []
    return True


def test_a_chunk_that_was_lost_once_stays_whole(ledger: Engine, batch: Batch) -> None:
    claim(ledger, batch)
    lose(ledger)
    assert chunks(ledger) == [(0, [1, 2, 3, 4], "ready", 1), (4, [5, 6], "ready", 0)]


def test_a_chunk_that_was_lost_twice_is_halved(ledger: Engine, batch: Batch) -> None:
    claim(ledger, batch)
    lose(ledger, crashes=1)
    assert chunks(ledger) == [(0, [1, 2], "ready", 2), (2, [3, 4], "ready", 2), (4, [5, 6], "ready", 0)]
    assert sound(ledger)


def test_what_is_answered_of_a_suspect_stays_done_with_its_counters(ledger: Engine, batch: Batch) -> None:
    lost = claim(ledger, batch)
    flush(ledger, lost, [2])
    lose(ledger, crashes=1)
    assert flush(ledger, lost, [1, 3]) is None
    expected = [(0, [2], "done", 1), (1, [1, 3], "ready", 2), (3, [4], "ready", 2), (4, [5, 6], "ready", 0)]
    assert chunks(ledger) == expected
    assert sound(ledger)


def test_a_late_flush_of_what_was_halved_writes_nothing(ledger: Engine, batch: Batch) -> None:
    lost = claim(ledger, batch)
    lose(ledger, crashes=1)
    assert flush(ledger, lost, [1, 2, 3, 4]) is None
    again = claim(ledger, batch)
    assert (again.line_numbers, again.epoch) == ((1, 2), 3)
    assert flush(ledger, lost, [1, 2, 3, 4]) is None
    assert making.scalar(ledger, "SELECT count(*) FROM result") == 0


def test_a_line_that_was_lost_alone_for_the_last_time_fails_and_its_batch_ends(ledger: Engine, batch: Batch) -> None:
    flush(ledger, claim(ledger, batch), [1, 2, 4])
    lose(ledger, crashes=2)
    assert chunks(ledger)[0] == (0, [1, 2, 3, 4], "done", 2)
    last = claim(ledger, batch)
    flush(ledger, last, [5, 6])
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    export.finalize(ledger, batch.id, owner=last.owner, settings=making.SETTINGS)
    ended = making.fetch(ledger, batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 5, 1)
    (error,) = making.content(ledger, ended.error_file_id)
    told = orjson.loads(orjson.dumps(error["response"]))
    assert (error["custom_id"], told["status_code"], told["body"]["error"]["code"]) == ("r3", 500, "worker_crashed")
    assert sound(ledger)


def test_a_line_that_is_alone_at_last_is_tried_once_more(ledger: Engine, batch: Batch) -> None:
    flush(ledger, claim(ledger, batch), [1, 2])
    lose(ledger, crashes=4)
    assert chunks(ledger)[1:3] == [(2, [3], "ready", 5), (3, [4], "ready", 5)]
    assert making.scalar(ledger, "SELECT count(*) FROM result") == 2
    alone = claim(ledger, batch)
    flush(ledger, alone, [3])
    assert making.scalar(ledger, "SELECT count(*) FROM result WHERE ok") == 3


def test_a_line_that_a_living_worker_holds_is_not_condemned(ledger: Engine, batch: Batch) -> None:
    flush(ledger, claim(ledger, batch), [1, 2, 3])
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET crashes = 9 WHERE state = 'leased'")))
    assert database.run(ledger, lambda c: poison.isolate(c, silent_seconds=60)) == []


def test_what_is_sealed_is_neither_halved_nor_condemned(ledger: Engine, batch: Batch) -> None:
    flush(ledger, claim(ledger, batch), [1, 2])
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    lose(ledger, crashes=5)
    assert [chunk[1:3] for chunk in chunks(ledger)] == [([1, 2, 3, 4], "void"), ([5, 6], "void")]


def test_a_suspect_that_another_worker_lost_is_not_halved_with_it(ledger: Engine, batch: Batch) -> None:
    making.claim(ledger, batch, making.worker(ledger), chunks=2)
    lose(ledger, crashes=1)
    assert [chunk[1] for chunk in chunks(ledger)] == [[1, 2], [3, 4], [5], [6]]
    claim(ledger, batch)
    lose(ledger, crashes=2)
    assert [chunk[1] for chunk in chunks(ledger)] == [[1], [2], [3, 4], [5], [6]]


def test_whoever_seals_a_batch_waits_for_the_halving_and_seals_its_parts(ledger: Engine, batch: Batch) -> None:
    claim(ledger, batch)
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET deadline = now() - interval '1 s', crashes = 1")))
    seal = text("UPDATE batch SET state = state")
    with ledger.begin() as sealing:
        sealing.execute(seal)
        with ledger.begin() as sweeping:
            poison.isolate(sweeping, silent_seconds=60)
    assert len(chunks(ledger)) == 2
    with ledger.begin() as sweeping:
        poison.isolate(sweeping, silent_seconds=60)
        with ledger.connect() as sealing:
            sealing.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(OperationalError, match="lock timeout"):
                sealing.execute(seal)
    assert len(chunks(ledger)) == 3
