"""What happens even if nobody asks."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from jobs import database, workers
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.sweeper import Duty, Sweeper
from tests.jobs import making


class Heard:
    """Hints that are only written down."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    def ingest(self, batch_id: int) -> None:
        self.said.append(("ingest", batch_id))

    def finalize(self, batch_id: int) -> None:
        self.said.append(("finalize", batch_id))

    def pump(self, model: str) -> None:
        self.said.append(("pump", model))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def sweep(ledger: Engine, heard: Heard) -> None:
    """One sweep in which every duty is due."""
    database.run(ledger, lambda c: c.execute(text("UPDATE tick SET next_at = now()")))
    Sweeper(ledger, heard, Settings()).sweep()  # type: ignore[arg-type]


def test_a_batch_whose_hint_was_lost_is_hinted_again(ledger: Engine, heard: Heard) -> None:
    waiting = making.create(ledger, "file-a")
    making.ingest(ledger, [making.line("a")])
    sweep(ledger, heard)
    assert heard.said == [("ingest", waiting.id), ("pump", "tiny")]


def test_nothing_is_hinted_for_ever_to_workers_that_are_not_there(ledger: Engine, heard: Heard) -> None:
    """Each hint that nobody takes stays in the broker."""
    making.create(ledger, "file-a")
    making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET created_at = now() - interval '11 minutes'")))
    database.run(ledger, lambda c: c.execute(text("UPDATE worker SET heartbeat_at = now() - interval '61 s'")))
    sweep(ledger, heard)
    assert heard.said == []


def test_a_batch_whose_last_flush_died_before_asking_is_closed(ledger: Engine, heard: Heard) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET state = 'done'")))
    sweep(ledger, heard)
    assert making.fetch(ledger, batch).state == "finalizing"
    assert ("finalize", batch.id) in heard.said


def test_a_late_batch_is_sealed(ledger: Engine, heard: Heard) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET expires_at = now()")))
    sweep(ledger, heard)
    assert making.fetch(ledger, batch).state == "finalizing"
    assert making.scalar(ledger, "SELECT state FROM chunk") == "void"


def test_the_lease_of_a_silent_worker_is_taken_back(ledger: Engine, heard: Heard) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: c.execute(text("UPDATE worker SET heartbeat_at = now() - interval '61 s'")))
    sweep(ledger, heard)
    assert making.scalar(ledger, "SELECT state FROM chunk") == "ready"


def test_the_silence_of_a_time_in_which_nobody_was_heard_is_no_death(ledger: Engine, heard: Heard) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(5)])
    making.claim(ledger, batch, making.worker(ledger))
    making.claim(ledger, batch, making.worker(ledger))
    rows = "SELECT string_agg(state || ' ' || crashes, ', ' ORDER BY first_position) FROM chunk"

    def let_pass(minutes: int) -> None:
        """As the database's clock sees it."""
        moved = text(f"""
            WITH w AS (UPDATE worker SET heartbeat_at = heartbeat_at - interval '{minutes} min'),
                 t AS (UPDATE tick SET next_at = next_at - interval '{minutes} min')
            UPDATE chunk SET deadline = deadline - interval '{minutes} min'
        """)
        database.run(ledger, lambda c: c.execute(moved))

    def look() -> None:
        Sweeper(ledger, heard, Settings()).sweep()  # type: ignore[arg-type]

    look()
    silenced = text("""
        UPDATE worker SET heartbeat_at = now() - interval '61 s' FROM chunk
         WHERE worker.id = owner AND first_position = 0
    """)
    database.run(ledger, lambda c: c.execute(silenced))
    let_pass(minutes=5)
    look()
    assert making.scalar(ledger, rows) == "ready 1, leased 0", "one was dead before"
    let_pass(minutes=5)
    database.run(ledger, lambda c: c.execute(text("UPDATE tick SET next_at = now() - interval '10 s'")))
    look()
    assert making.scalar(ledger, rows) == "ready 1, ready 1", "others were heard meanwhile"


def test_a_duty_done_by_one_process_is_not_due_for_the_next(ledger: Engine, heard: Heard) -> None:
    sweep(ledger, heard)
    making.create(ledger, "file-a")
    Sweeper(ledger, heard, Settings()).sweep()  # type: ignore[arg-type]
    assert heard.said == []


def test_a_process_of_this_host_that_ended_is_forgotten_when_another_registers(ledger: Engine) -> None:
    dead = making.worker(ledger)
    alive = making.worker(ledger)
    database.run(ledger, lambda c: c.execute(text("UPDATE worker SET pid = 4194305 WHERE id = :id"), {"id": dead}))
    making.worker(ledger)
    assert not database.run(ledger, lambda c: workers.heartbeat(c, dead))
    assert database.run(ledger, lambda c: workers.heartbeat(c, alive))


def test_a_started_sweeper_stops(ledger: Engine, tmp_path: Path) -> None:
    hints = Hints(f"redis+socket://{tmp_path}/none.sock?virtual_host=0")
    sweeper = Sweeper(ledger, hints, Settings())
    sweeper.start()
    sweeper.stop()
    assert not sweeper._thread.is_alive()
    hints.close(timeout_seconds=0.01)


def test_a_duty_that_cannot_be_done_keeps_no_other_from_being_done(ledger: Engine, tmp_path: Path) -> None:
    hints = Hints(f"redis+socket://{tmp_path}/none.sock?virtual_host=0")
    sweeper = Sweeper(ledger, hints, Settings(sweep_seconds=0.01))
    done = threading.Event()
    sweeper.duties = [
        Duty("impossible", 0.0, lambda c: c.execute(text("SELECT * FROM no_such_table"))),
        Duty("possible", 0.0, lambda _: done.set()),
    ]
    sweeper.start()
    assert done.wait(20)
    sweeper.stop()
    hints.close(timeout_seconds=0.01)


def test_what_comes_in_slices_goes_on_as_long_as_there_is_more(ledger: Engine, heard: Heard) -> None:
    """One slice each ten seconds would be 8,640 a day, and there may be more batches than that."""
    for n in range(25):
        making.upload(ledger, b"x")
        making.create(ledger, f"file-none-{n}")
    old = "UPDATE batch SET state = 'failed', failed_at = now() - interval '99 days'"
    database.run(ledger, lambda c: c.execute(text(old)))
    database.run(ledger, lambda c: c.execute(text("UPDATE file SET expires_at = now()")))
    sweep(ledger, heard)
    assert making.scalar(ledger, "SELECT count(*) FROM file") == 0
    assert making.scalar(ledger, "SELECT count(*) FROM batch WHERE cleared_at IS NULL") == 0


def test_a_duty_that_goes_wrong_in_an_unforeseen_way_keeps_no_other_from_being_done(
    ledger: Engine, tmp_path: Path
) -> None:
    hints = Hints(f"redis+socket://{tmp_path}/none.sock?virtual_host=0")
    sweeper = Sweeper(ledger, hints, Settings(sweep_seconds=0.01))
    done = threading.Event()
    sweeper.duties = [Duty("wrong", 0.0, lambda _: 1 // 0), Duty("possible", 0.0, lambda _: done.set())]
    sweeper.start()
    assert done.wait(20)
    sweeper.stop()
    hints.close(timeout_seconds=0.01)
