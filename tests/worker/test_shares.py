"""Projects that compete for a worker get its lines by their weights."""

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
LINES = 1_400
ASKED = 2_000  # so many that none of the three is through


class Counting(FakeEngine):
    """Stops its pump after ASKED lines. The model's tokens are the bytes of its text."""

    answer = (70, 71)
    slots = 8  # of which follows that no more than 28 lines are leased at once: by so much one may be ahead
    pump: Pump
    asked = 0

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        self.asked += 1
        if self.asked == ASKED:
            self.pump.drain()
        return super().submit(prompt)


def test_three_projects_share_a_worker_within_a_tenth_of_their_weights(ledger: Ledger, tmp_path: Path) -> None:
    owner = making.worker(ledger)
    for project, weight in WEIGHTS.items():
        database.run(ledger, lambda c, p=project: keys.ensure_project(c, p))  # type: ignore[misc]
        with ledger.begin() as connection:
            connection.execute(text("UPDATE project SET weight = :w WHERE id = :id"), {"w": weight, "id": project})
        content = b"\n".join(making.line(f"r{n}", content=f"{project} {n}") for n in range(LINES))
        file = making.upload(ledger, content, project_id=project)
        order = CreateBatch(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        batch = database.run(
            ledger,
            lambda c, p=project, o=order: batches.create(c, p, o, idempotency_key=None),  # type: ignore[misc]
        )
        intake.ingest(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    inference = Counting()
    inference.pump = pump_of(ledger, inference, tiny_model.write(tmp_path / "tiny"))  # type: ignore[arg-type]
    inference.pump.run(lambda: owner)
    with ledger.connect() as connection:
        query = "SELECT b.project_id, sum(c.ok) FROM chunk c JOIN batch b ON b.id = c.batch_id GROUP BY 1"
        answered = {row[0]: int(row[1]) for row in connection.execute(text(query))}
    assert ASKED <= sum(answered.values()) < 2 * LINES
    for project, weight in WEIGHTS.items():
        share = answered[project] / sum(answered.values())
        assert share == pytest.approx(weight / sum(WEIGHTS.values()), rel=0.1), answered
