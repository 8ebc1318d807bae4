"""What else goes wrong: workers that come back from the dead, a broker that is gone or talks nonsense, two of one."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson
import pytest
from redis import Redis
from sqlalchemy import Engine, text

from jobs import batches, database, export, intake, leases, results
from jobs.batches import Batch
from jobs.errors import Conflict
from jobs.failpoints import Point
from jobs.hints import IO_QUEUE, Hints, model_queue
from jobs.states import TERMINAL, BatchState
from jobs.sweeper import Sweeper
from tests.faults.system import LENGTH, PATIENCE, System
from tests.faults.test_crashes import finalizing, in_progress, validating
from tests.jobs import making

KEY_PREFIX = "gristmill:"
ROUNDS = 5 * LENGTH


def assert_completed(system: System, batch: Batch) -> None:
    ended = making.fetch(system.ledger, batch)
    assert (ended.state, ended.total, ended.completed, ended.failed) == (BatchState.COMPLETED, 10, 10, 0)
    assert system.faults() == []


def test_a_worker_that_sleeps_past_its_lease_and_wakes_writes_nothing(system: System) -> None:
    system.patience["GRISTMILL_HEARTBEAT_SECONDS"] = "60"  # or it might hear of its loss before it comes to store
    batch = making.ingest(system.ledger, [making.line("a", content="NAP"), making.line("b")])
    sleeper = system.start("model", dies_at=Point.RESULTS_STORED)
    system.until(lambda: lost(system))
    (lease,) = making.claim(system.ledger, batch, making.worker(system.ledger))
    answers = making.results([1], body='{"by":"another"}')
    database.run(system.ledger, lambda c: results.flush(c, lease, answers))
    assert sleeper.pid
    os.kill(sleeper.pid, signal.SIGCONT)
    assert system.until_dead(sleeper) == -signal.SIGKILL, "it had come to store its answers"
    assert making.scalar(system.ledger, "SELECT array_agg(body) FROM result") == ['{"by":"another"}']
    assert system.faults() == []


def test_a_worker_that_is_told_to_stop_gives_its_leases_back_without_blame(system: System) -> None:
    system.patience["GRISTMILL_WATCHDOG_SECONDS"] = "60"
    making.ingest(system.ledger, [making.line("a", content="HANG"), making.line("b")])
    worker = system.start("model")
    system.until(lambda: making.scalar(system.ledger, "SELECT count(*) FROM result") == 1)
    worker.terminate()
    assert system.until_dead(worker) == 0
    assert making.scalar(system.ledger, "SELECT state || ' ' || crashes FROM chunk") == "ready 0"
    assert making.scalar(system.ledger, "SELECT count(*) FROM worker WHERE pid = :pid", pid=worker.pid) == 0
    assert system.faults() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["io", "model"])
def test_a_worker_hears_from_its_first_moment_that_it_is_to_stop(
    system: System, kind: str, number: signal.Signals
) -> None:
    system.patience["GRISTMILL_WATCHDOG_SECONDS"] = "60"
    making.ingest(system.ledger, [making.line("a", content="HANG"), making.line("b")])
    worker = system.start(kind)
    assert worker.pid
    known = "SELECT count(*) FROM worker WHERE pid = :pid"
    system.until(lambda: making.scalar(system.ledger, known, pid=worker.pid) == 1)
    os.kill(worker.pid, number)
    assert system.until_dead(worker) == 0
    assert making.scalar(system.ledger, known, pid=worker.pid) == 0
    assert making.scalar(system.ledger, "SELECT state || ' ' || crashes FROM chunk") == "ready 0"
    assert system.faults() == []


def lost(system: System) -> bool:
    """Take the leases of the silent back, as another process's sweeper would."""
    with system.ledger.begin() as connection:
        found = leases.sweep(connection, silent_seconds=float(PATIENCE["GRISTMILL_LEASE_SECONDS"]))
        connection.execute(text("UPDATE chunk SET not_before = now()"))
    return bool(found)


def test_a_batch_ends_without_a_broker(system: System, tmp_path: Path) -> None:
    system.broker_url = f"redis+socket://{tmp_path}/none.sock?virtual_host=0"
    batch = validating(system.ledger)
    system.start_all()
    system.until_ended(batch)
    assert_completed(system, batch)


def test_hints_that_come_many_times_and_for_nothing_change_nothing(system: System) -> None:
    hints = Hints(system.addresses.broker_url)
    batch = validating(system.ledger)
    for _ in range(5):
        for batch_id in (batch.id, 10**12):
            hints.finalize(batch_id)
            hints.ingest(batch_id)
        hints.pump("tiny")
    hints.close(timeout_seconds=20)
    system.start_all()
    system.until_ended(batch)
    assert_completed(system, batch)
    claimed = [line for line in system.said("model").splitlines() if "chunk claimed" in line]
    assert len(claimed) == 3


STRANGE = {
    "headers": {"lang": "py", "task": "os.system", "id": "1"},
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "properties": {"correlation_id": "1", "delivery_info": {"exchange": "", "routing_key": ""}, "delivery_tag": "1"},
}


@pytest.mark.parametrize(
    "message",
    [
        b"\x80garbage",
        b'{"body": 7}',
        orjson.dumps(STRANGE | {"body": '[["true"], {}, {}]'}),
        orjson.dumps(STRANGE | {"content-type": "application/x-python-serialize", "body": "cposix\nsystem\n"}),
        orjson.dumps(STRANGE | {"body": "x" * (32 << 20)}),
    ],
    ids=["bytes", "not a message", "an unknown task", "a pickle", "a huge one"],
)
def test_a_message_that_is_garbage_costs_at_most_the_worker_that_read_it(system: System, message: bytes) -> None:
    batch = validating(system.ledger)
    socket = system.addresses.broker_url.removeprefix("redis+socket://").partition("?")[0]
    with Redis(unix_socket_path=socket) as broker:
        for queue in (IO_QUEUE, model_queue("tiny")):
            broker.lpush(KEY_PREFIX + queue, message)
    lives = {kind: system.start(kind) for kind in ("io", "model")}

    def is_ended() -> bool:
        for kind, process in lives.items():
            if not process.is_alive():
                lives[kind] = system.start(kind)
        return making.fetch(system.ledger, batch).state is BatchState.COMPLETED

    system.until(is_ended)
    system.kill_all()
    assert len(system.processes) <= 4
    assert_completed(system, batch)


@pytest.mark.parametrize(("stage", "job"), [("validating", intake.ingest), ("finalizing", export.finalize)])
def test_two_of_one_job_at_once_do_it_once(system: System, stage: str, job: Callable[..., object]) -> None:
    for _ in range(ROUNDS):
        making.forget_batches(system.ledger)
        batch = validating(system.ledger) if stage == "validating" else finalizing(system.ledger)
        owners = [making.worker(system.ledger) for _ in range(2)]
        at_once(*(partial(job, system.ledger, batch.id, owner=owner, settings=making.SETTINGS) for owner in owners))
        assert making.fetch(system.ledger, batch).state in (BatchState.IN_PROGRESS, BatchState.COMPLETED)
        assert system.faults() == []
        assert making.scalar(system.ledger, "SELECT count(*) FROM file WHERE state = 'uploading'") == 0


def cancel(ledger: Engine, batch: Batch) -> None:
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))


def expire(ledger: Engine, batch: Batch) -> None:
    with ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET expires_at = now() WHERE id = :id"), {"id": batch.id})
    database.run(ledger, batches.expire)


def answer(ledger: Engine, batch: Batch, held: list[leases.Lease]) -> None:
    for lease in held:
        database.run(ledger, partial(results.flush, lease=lease, results=making.results(lease.line_numbers)))
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))


@pytest.mark.parametrize(("seal", "outcome"), [(cancel, BatchState.CANCELLED), (expire, BatchState.EXPIRED)])
def test_a_seal_that_races_the_last_flush_leaves_one_outcome(
    system: System, seal: Callable[[Engine, Batch], None], outcome: BatchState
) -> None:
    ledger = system.ledger
    for _ in range(ROUNDS):
        making.forget_batches(ledger)
        batch = in_progress(ledger)
        held = making.claim(ledger, batch, making.worker(ledger), chunks=9)
        at_once(partial(answer, ledger, batch, held), partial(seal, ledger, batch))
        assert system.faults() == []
        export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
        assert making.fetch(ledger, batch).state in (BatchState.COMPLETED, outcome)
        assert system.faults() == []


def ingest(ledger: Engine, batch: Batch) -> None:
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)


def end(ledger: Engine, batch: Batch) -> None:
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)


@pytest.mark.parametrize(
    ("stage", "one", "other"),
    [
        (validating, cancel, ingest),
        (in_progress, cancel, expire),
        (in_progress, cancel, cancel),
        (finalizing, cancel, end),
        (finalizing, expire, end),
    ],
)
def test_a_cancel_or_an_expiry_that_races_anything_leaves_one_outcome(
    system: System,
    stage: Callable[[Engine], Batch],
    one: Callable[[Engine, Batch], None],
    other: Callable[[Engine, Batch], None],
) -> None:
    ledger = system.ledger
    for _ in range(ROUNDS):
        making.forget_batches(ledger)
        batch = stage(ledger)
        at_once(partial(one, ledger, batch), partial(other, ledger, batch))
        assert system.faults() == []
        end(ledger, batch)
        ended = making.fetch(ledger, batch)
        assert ended.state in TERMINAL
        assert ended.state is ended.outcome
        end(ledger, batch)
        assert making.fetch(ledger, batch) == ended
        assert system.faults() == []


def test_two_sweepers_at_once_do_each_duty_once(system: System) -> None:
    ledger, hints = system.ledger, Hints(system.addresses.broker_url)
    sweepers = [Sweeper(ledger, hints, making.SETTINGS) for _ in range(2)]
    for _ in range(ROUNDS):
        making.forget_batches(ledger)
        lost, late, answered_one = in_progress(ledger), in_progress(ledger), in_progress(ledger)
        making.claim(ledger, lost, making.worker(ledger), chunks=9)
        answer(ledger, answered_one, making.claim(ledger, answered_one, making.worker(ledger), chunks=9))
        with ledger.begin() as connection:
            connection.execute(text("UPDATE chunk SET deadline = now() - interval '1 s' WHERE state = 'leased'"))
            connection.execute(text("UPDATE batch SET state = 'in_progress' WHERE id = :id"), {"id": answered_one.id})
            connection.execute(text("UPDATE batch SET expires_at = now() WHERE id = :id"), {"id": late.id})
        for duties in zip(*(sweeper.duties for sweeper in sweepers), strict=True):
            at_once(*(partial(database.run, ledger, duty.perform) for duty in duties))
        crashes = "SELECT array_agg(crashes) FROM chunk WHERE batch_id = :id"
        assert making.scalar(ledger, crashes, id=lost.id) == [1, 1, 1]
        outcomes = [making.fetch(ledger, batch).outcome for batch in (lost, late, answered_one)]
        assert outcomes == [None, BatchState.EXPIRED, BatchState.COMPLETED]
        assert system.faults() == []
    hints.close()


def at_once(*works: Callable[[], object]) -> None:
    """Run each in a thread, from the same moment; a Conflict is an answer too."""
    start, failures = threading.Barrier(len(works)), []

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except Conflict:
            pass
        except BaseException as error:  # noqa: BLE001  told below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
