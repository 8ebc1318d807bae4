"""A process that is killed at any point where it matters loses nothing, doubles nothing and leaves nothing stuck."""

import signal
from collections.abc import Callable, Iterator

import httpx
import pytest
from sqlalchemy import Engine, text

from jobs import batches, database, files, keys, results
from jobs.batches import Batch
from jobs.failpoints import Point
from jobs.files import PART_SIZE
from jobs.states import BatchState
from tests.faults.system import System
from tests.jobs import making

HEAD = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
)
LINES = [making.line(f"r{n}", content=f"Question {n}") for n in range(10)]


def validating(ledger: Engine) -> Batch:
    return making.create(ledger, making.upload(ledger, b"\n".join(LINES)).id)


def in_progress(ledger: Engine) -> Batch:
    return making.ingest(ledger, LINES)


def finalizing(ledger: Engine) -> Batch:
    batch = in_progress(ledger)
    for lease in making.claim(ledger, batch, making.worker(ledger), chunks=9):
        stored = making.results(lease.line_numbers)
        database.run(ledger, lambda c, lease=lease, stored=stored: results.flush(c, lease, stored))  # type: ignore[misc]
    assert database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    return batch


CRASHES: dict[Point, tuple[str, Callable[[Engine], Batch]]] = {
    Point.INGEST_TAKEN: ("io", validating),
    Point.REQUESTS_COPIED: ("io", validating),
    Point.BATCH_BEGUN: ("io", validating),
    Point.CHUNK_CLAIMED: ("model", in_progress),
    Point.LINES_ANSWERED: ("model", in_progress),
    Point.RESULTS_STORED: ("model", in_progress),
    Point.BATCH_CLOSED: ("model", in_progress),
    Point.EXPORT_TAKEN: ("io", finalizing),
    Point.OUTPUT_WRITTEN: ("io", finalizing),
    Point.OUTPUT_LINKED: ("io", finalizing),
    Point.BATCH_ENDED: ("io", finalizing),
}
IN_THE_API = {Point.FILE_WRITTEN, Point.BATCH_CREATED}


def test_there_is_a_crash_at_every_point() -> None:
    assert CRASHES.keys() | IN_THE_API == set(Point)


@pytest.mark.parametrize("point", CRASHES)
def test_a_worker_that_is_killed_leaves_a_batch_that_others_end(system: System, point: Point) -> None:
    kind, stage = CRASHES[point]
    batch = stage(system.ledger)
    patience = dict(system.patience)
    system.patience["GRISTMILL_SWEEP_SECONDS"] = "60"  # else its sweeper may be faster, and it never gets there
    assert system.until_dead(system.start(kind, dies_at=point)) == -signal.SIGKILL
    assert system.faults() == []
    system.patience = patience
    system.start_all()
    ended = system.until_ended(batch)
    assert (ended.state, ended.total, ended.completed, ended.failed) == (BatchState.COMPLETED, 10, 10, 0)
    assert system.faults() == []


def test_what_a_killed_worker_had_stored_is_not_computed_again(system: System) -> None:
    lines = 60
    batch = making.ingest(system.ledger, [making.line(f"r{n}", content=f"Question {n}") for n in range(lines)])
    system.until_dead(system.start("model", dies_at=Point.RESULTS_STORED, arrival=2))
    stored = making.scalar(system.ledger, "SELECT array_agg(line_no ORDER BY line_no) FROM result")
    assert isinstance(stored, list)
    assert 8 <= len(stored) < lines
    said = len(system.said("model"))
    system.start_all()
    system.until_ended(batch)
    claimed = [line for line in system.said("model")[said:].splitlines() if "chunk claimed" in line]
    asked = sum(int(line.rpartition("lines=")[2].split()[0]) for line in claimed)
    assert asked == lines - len(stored)


def client(system: System) -> httpx.Client:
    key = database.run(system.ledger, lambda c: keys.create(c, name="faults"))
    transport = httpx.HTTPTransport(uds=str(system.socket))
    return httpx.Client(transport=transport, base_url="http://api", headers={"Authorization": f"Bearer {key}"})


def test_an_api_that_is_killed_before_a_file_is_published_shows_none(system: System) -> None:
    victim = system.start("api", dies_at=Point.FILE_WRITTEN)
    system.until(system.is_served)
    with client(system) as caller, pytest.raises(httpx.RemoteProtocolError):
        caller.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"\n".join(LINES))})
    assert system.until_dead(victim) == -signal.SIGKILL
    system.start("api")
    system.until(system.is_served)
    with client(system) as caller:
        assert caller.get("/v1/files").json()["data"] == []
        again = caller.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"\n".join(LINES))})
        assert [file["id"] for file in caller.get("/v1/files").json()["data"]] == [again.json()["id"]]
    assert system.faults() == []


def test_an_api_that_is_killed_in_the_middle_of_an_upload_leaves_nothing_to_see(system: System) -> None:
    victim = system.start("api")
    system.until(system.is_served)

    def body() -> Iterator[bytes]:
        yield HEAD
        yield b"x" * (2 * PART_SIZE + 1)
        system.until(lambda: making.scalar(system.ledger, "SELECT count(*) FROM file_part") == 2)
        victim.kill()
        victim.join()
        while True:
            yield b"x" * PART_SIZE

    with client(system) as caller, pytest.raises(httpx.TransportError):
        caller.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    system.start("api")
    system.until(system.is_served)
    with client(system) as caller:
        assert caller.get("/v1/files").json()["data"] == []
    assert system.faults() == []
    with system.ledger.begin() as connection:  # the sweeper comes after a day
        connection.execute(text("UPDATE file SET created_at = now() - interval '25 h'"))
        assert files.sweep(connection) == 1
    assert making.scalar(system.ledger, "SELECT count(*) FROM file_part") == 0


def test_a_batch_whose_api_was_killed_before_it_answered_is_the_same_when_asked_again(system: System) -> None:
    file = making.upload(system.ledger, b"\n".join(LINES))
    order = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    again = {"Idempotency-Key": "once"}
    victim = system.start("api", dies_at=Point.BATCH_CREATED)
    system.until(system.is_served)
    with client(system) as caller, pytest.raises(httpx.RemoteProtocolError):
        caller.post("/v1/batches", json=order, headers=again)
    assert system.until_dead(victim) == -signal.SIGKILL
    system.start_all()
    system.start("api")
    system.until(system.is_served)
    with client(system) as caller:
        made = caller.post("/v1/batches", json=order, headers=again).json()["id"]
        assert [batch["id"] for batch in caller.get("/v1/batches").json()["data"]] == [made]
        system.until(lambda: caller.get(f"/v1/batches/{made}").json()["status"] == "completed")
    system.kill_all()
    assert system.faults() == []
