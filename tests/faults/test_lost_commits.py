"""A connection that is cut inside COMMIT leaves the outcome unknown: what is done again then is done once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from jobs import audit, batches, database, export, intake, results
from jobs.contract.batch import ENDPOINT
from jobs.states import BatchState
from tests.faults.proxy import Network
from tests.faults.system import System
from tests.faults.test_crashes import LINES, client, finalizing, in_progress, validating
from tests.jobs import making
from worker.tasks import InputOutput


@contextmanager
def losing_commits() -> Iterator[None]:
    """The answer to every other COMMIT is lost, beginning with the first."""
    commit, committed = psycopg.Connection.commit, []

    def commit_and_lose(connection: psycopg.Connection) -> None:
        commit(connection)
        committed.append(connection)
        if len(committed) % 2:
            raise psycopg.OperationalError("the connection was cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "commit", commit_and_lose)
        yield
    assert committed, "nothing was tried"


def faults(ledger: Engine) -> list[str]:
    return list(audit.faults(ledger, making.SETTINGS, patience_seconds=0.001))


def test_a_batch_is_made_once(ledger: Engine) -> None:
    file = making.upload(ledger, b"\n".join(LINES))
    with losing_commits():
        making.create(ledger, file.id, key="once")
    assert making.scalar(ledger, "SELECT count(*) FROM batch") == 1


def test_a_file_is_read_once(ledger: Engine) -> None:
    batch, owner = validating(ledger), making.worker(ledger)
    with losing_commits(), pytest.raises(OperationalError, match="was cut"):
        intake.ingest(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    assert making.fetch(ledger, batch).state is BatchState.IN_PROGRESS
    assert faults(ledger) == []


def test_answers_are_stored_and_counted_once(ledger: Engine) -> None:
    batch, owner = in_progress(ledger), making.worker(ledger)
    for lease in making.claim(ledger, batch, owner, chunks=9):
        for part in (lease.line_numbers[:1], lease.line_numbers[1:]):
            with losing_commits():
                database.run(ledger, lambda c, e=lease, p=part: results.flush(c, e, making.results(p)))  # type: ignore[misc]
    assert making.fetch(ledger, batch).completed == 10
    assert list(audit.faults(ledger, making.SETTINGS)) == []


def test_a_cancelled_batch_is_sealed_once(ledger: Engine) -> None:
    batch = in_progress(ledger)
    with losing_commits():
        sealed = database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    assert sealed.state is BatchState.CANCELLING
    assert list(audit.faults(ledger, making.SETTINGS)) == []


def test_a_batch_that_has_ended_keeps_its_files(ledger: Engine) -> None:
    batch, owner = finalizing(ledger), making.worker(ledger)
    with losing_commits():
        assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is BatchState.COMPLETED
    ended = making.fetch(ledger, batch)
    assert len(making.content(ledger, ended.output_file_id)) == 10
    assert faults(ledger) == []


class Silence:
    """Hints that nobody hears."""

    def pump(self, model: str) -> None:
        pass


def input_output(ledger: Engine, owner: UUID) -> InputOutput:
    return InputOutput(ledger, Silence(), lambda: owner, making.SETTINGS, is_stopping=lambda: False)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stage", "after"), [(validating, BatchState.IN_PROGRESS), (finalizing, BatchState.COMPLETED)])
def test_a_lease_of_a_batch_that_its_holder_never_heard_of_does_not_keep_it(
    ledger: Engine, stage: Callable[[Engine], batches.Batch], after: BatchState
) -> None:
    batch, owner = stage(ledger), making.worker(ledger)
    states = [batch.state.value, BatchState.FINALIZING.value]
    database.run(ledger, lambda c: batches.take(c, batch.id, owner=owner, states=states, silent_seconds=60))
    input_output(ledger, owner).look()
    assert making.fetch(ledger, batch).state is after
    assert faults(ledger) == []


def test_two_threads_of_a_process_do_not_read_one_file(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def ingest(_ledger: Engine, batch_id: int, **_: object) -> None:
        calls.append(batch_id)
        begun.set()
        assert go_on.wait(20)

    monkeypatch.setattr(intake, "ingest", ingest)
    work = input_output(ledger, making.worker(ledger))
    first = threading.Thread(target=work.ingest, args=(7,))
    first.start()
    assert begun.wait(20)
    work.ingest(7)
    go_on.set()
    first.join()
    work.ingest(7)
    assert calls == [7, 7]


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        ("io", validating, b"COMMIT"),
        ("io", finalizing, b"COMMIT"),
        ("model", in_progress, b"COMMIT"),
        ("model", in_progress, b"SET state = 'leased'"),
    ],
)
def test_a_worker_whose_connections_break_inside_commit_does_its_work_once(
    system: System,
    network: tuple[Network, str],
    kind: str,
    stage: Callable[[Engine], batches.Batch],
    words: bytes,
) -> None:
    line, url = network
    line.cut_after(words)
    batch = stage(system.ledger)
    worker = system.start(kind, database_url=url)
    system.start("io" if kind == "model" else "model")
    system.until(lambda: making.fetch(system.ledger, batch).state is BatchState.COMPLETED)
    assert worker.is_alive()
    system.kill_all()
    assert line.cuts > 0
    assert (making.fetch(system.ledger, batch).completed, system.faults()) == (10, [])


def test_an_order_whose_connection_breaks_inside_commit_is_made_once(
    system: System, network: tuple[Network, str]
) -> None:
    line, url = network
    file = making.upload(system.ledger, b"\n".join(LINES))
    system.start("api", database_url=url)
    system.until(system.is_served)
    line.cut_after(b"COMMIT")
    order = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    with client(system) as caller:
        made = [caller.post("/v1/batches", json=order, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert [answer.status_code for answer in made] == [200, 200]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert line.cuts > 0
    assert making.scalar(system.ledger, "SELECT count(*) FROM batch") == 1
