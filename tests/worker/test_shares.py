"""Projects that compete for workers get their lines by their weights."""

import itertools
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from sqlalchemy import Engine as Ledger
from sqlalchemy import text

from benchmarks.fake_worker import FakeEngine
from jobs import batches, database, intake, keys
from jobs.contract.batch import ENDPOINT, CreateBatch
from tests import tiny_model
from tests.jobs import making
from tests.worker.pumping import pump_of
from worker.engine import Completion, Prompt
from worker.pump import Pump

WEIGHTS = {"one": 1, "two": 2, "three": 3}
LINES = 1_400  # of each project
ASKED = 2_000  # of all workers together: so many that none of the three is through


class Counting(FakeEngine):
    """Stops all pumps after ASKED lines. The model's tokens are the bytes of its text."""

    answer = (70, 71)
    slots = 8  # of which follows that no more than 28 lines are leased at once: by so much one may be ahead

    def __init__(self, asked: "itertools.count[int]", pumps: list[Pump]) -> None:
        self._asked = asked
        self._pumps = pumps

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        if next(self._asked) == ASKED:
            for pump in self._pumps:
                pump.drain()
        return super().submit(prompt)


def order(ledger: Ledger, project: str, sizes: list[int]) -> None:
    """Batches of a project, of so many lines each, in progress."""
    owner = making.worker(ledger)
    for number, size in enumerate(sizes):
        content = b"\n".join(making.line(f"r{n}", content=f"{project} {number} {n}") for n in range(size))
        file = making.upload(ledger, content, project_id=project)
        wanted = CreateBatch(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        batch = database.run(
            ledger,
            lambda c, w=wanted: batches.create(c, project, w, idempotency_key=None),  # type: ignore[misc]
        )
        intake.ingest(ledger, batch.id, owner=owner, settings=making.SETTINGS)


@pytest.mark.parametrize(("batches_each", "workers"), [(1, 1), (67, 2)])
def test_three_projects_share_their_workers_within_a_tenth_of_their_weights(
    ledger: Ledger, tmp_path: Path, batches_each: int, workers: int
) -> None:
    for project, weight in WEIGHTS.items():
        database.run(ledger, lambda c, p=project: keys.ensure_project(c, p))  # type: ignore[misc]
        with ledger.begin() as connection:
            connection.execute(text("UPDATE project SET weight = :w WHERE id = :id"), {"w": weight, "id": project})
        order(ledger, project, [LINES // batches_each] * batches_each)
    asked, pumps, folder = itertools.count(1), list[Pump](), tiny_model.write(tmp_path / "tiny")
    pumps += [pump_of(ledger, Counting(asked, pumps), folder) for _ in range(workers)]  # type: ignore[arg-type]
    owners = [making.worker(ledger) for _ in pumps]
    threads = [
        threading.Thread(target=pump.run, args=(lambda owner=owner: owner,))
        for pump, owner in zip(pumps, owners, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ledger.connect() as connection:
        query = "SELECT b.project_id, sum(c.ok) FROM chunk c JOIN batch b ON b.id = c.batch_id GROUP BY 1"
        answered = {row[0]: int(row[1]) for row in connection.execute(text(query))}
    assert ASKED <= sum(answered.values()) < 2 * LINES
    for project, weight in WEIGHTS.items():
        share = answered[project] / sum(answered.values())
        assert share == pytest.approx(weight / sum(WEIGHTS.values()), rel=0.1), answered
