"""Reading uploads and writing results: what is done first, and that one batch does not keep the others from it."""

from uuid import UUID

import pytest
from sqlalchemy import Engine

from jobs import batches, database, intake, keys
from jobs.batches import Batch
from jobs.contract.batch import ENDPOINT, CreateBatch
from jobs.states import BatchState
from tests.jobs import making
from worker.tasks import InputOutput


class Heard:
    """Hints that are only written down."""

    def __init__(self) -> None:
        self.pumped: list[str] = []

    def pump(self, model: str) -> None:
        self.pumped.append(model)


def input_output(ledger: Engine, owner: UUID) -> InputOutput:
    return InputOutput(ledger, Heard(), lambda: owner, making.SETTINGS, is_stopping=lambda: False)  # type: ignore[arg-type]


def waiting(ledger: Engine, project_id: str) -> Batch:
    file = making.upload(ledger, making.line("a"), project_id=project_id)
    order = CreateBatch(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    return database.run(ledger, lambda c: batches.create(c, project_id, order, idempotency_key=None))


@pytest.fixture
def owner(ledger: Engine) -> UUID:
    database.run(ledger, lambda c: keys.ensure_project(c, "other"))
    return making.worker(ledger)


def taken(ledger: Engine, owner: UUID, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that a look reads, in order."""
    order, ingest = [], intake.ingest

    def noted(engine: Engine, batch_id: int, **more: object) -> str | None:
        order.append(batch_id)
        return ingest(engine, batch_id, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(intake, "ingest", noted)
    input_output(ledger, owner).look()
    return order


def test_projects_take_turns_however_many_batches_one_has_made(
    ledger: Engine, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [waiting(ledger, "default").id for _ in range(4)]
    few = [waiting(ledger, "other").id for _ in range(2)]
    assert taken(ledger, owner, monkeypatch) == [many[0], few[0], many[1], few[1], many[2], many[3]]
    assert making.scalar(ledger, "SELECT count(*) FROM batch WHERE state = 'in_progress'") == 6


def test_what_another_process_reads_is_left_to_it(ledger: Engine, owner: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = waiting(ledger, "default").id, waiting(ledger, "default").id
    another, states = making.worker(ledger), [BatchState.VALIDATING.value]
    database.run(ledger, lambda c: batches.take(c, first, owner=another, states=states, silent_seconds=60))
    assert taken(ledger, owner, monkeypatch) == [second]


def test_what_ends_a_batch_comes_first(ledger: Engine, owner: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    read = waiting(ledger, "default").id
    sealed = waiting(ledger, "other")
    database.run(ledger, lambda c: batches.cancel(c, "other", sealed.public_id))
    order = []
    monkeypatch.setattr(InputOutput, "ingest", lambda _, batch_id: order.append(batch_id))
    monkeypatch.setattr(InputOutput, "finalize", lambda _, batch_id: order.append(batch_id))
    input_output(ledger, owner).look()
    assert order == [sealed.id, read]


def test_a_batch_that_goes_wrong_keeps_no_other_from_its_turn(
    ledger: Engine, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, right = waiting(ledger, "default"), waiting(ledger, "default")
    ingest = intake._ingest

    def fail(engine: Engine, batch: Batch, *more: object) -> str | None:
        if batch.id == wrong.id:
            raise ZeroDivisionError
        return ingest(engine, batch, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(intake, "_ingest", fail)
    input_output(ledger, owner).look()
    assert making.fetch(ledger, right).state is BatchState.IN_PROGRESS
    assert making.fetch(ledger, wrong).state is BatchState.VALIDATING
    assert making.scalar(ledger, "SELECT count(*) FROM batch WHERE owner IS NOT NULL") == 0


def test_a_process_that_is_to_stop_begins_nothing(ledger: Engine, owner: UUID) -> None:
    batch = waiting(ledger, "default")
    stopping = InputOutput(ledger, Heard(), lambda: owner, making.SETTINGS, is_stopping=lambda: True)  # type: ignore[arg-type]
    stopping.look()
    assert making.fetch(ledger, batch).state is BatchState.VALIDATING
