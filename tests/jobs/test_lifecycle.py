"""From validation to the end and beyond: which moves there are, and when what is kept is deleted."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from jobs import audit, batches, database, export, files, results, retention
from jobs.batches import Batch
from jobs.errors import Conflict
from jobs.keys import DEFAULT_PROJECT
from jobs.states import BATCH_MOVES, TERMINAL, BatchState
from tests.jobs import making

EPOCH = 1
OUTCOMES = {
    BatchState.FINALIZING: (BatchState.COMPLETED, BatchState.EXPIRED),
    BatchState.CANCELLING: (BatchState.CANCELLED,),
}


def cancel(connection: Connection, batch: Batch) -> None:
    try:
        batches.cancel(connection, batch.project_id, batch.public_id)
    except Conflict:
        assert batch.state in TERMINAL


MOVES: dict[str, Callable[[Connection, Batch], object]] = {
    "begin": lambda c, b: batches.begin(c, b.id, EPOCH, model="tiny", total=1),
    "fail": lambda c, b: batches.fail(c, b.id, EPOCH, []),
    "cancel": cancel,
    "close": lambda c, b: batches.close_if_answered(c, b.id),
    "expire": lambda c, _: batches.expire(c),
    "finish": lambda c, b: batches.finish(c, b.id, EPOCH, output_file_id=None, error_file_id=None),
}
TARGETS = {
    "begin": {BatchState.IN_PROGRESS},
    "fail": {BatchState.FAILED},
    "cancel": {BatchState.CANCELLING},
    "close": {BatchState.FINALIZING},
    "expire": {BatchState.FINALIZING},
    "finish": {BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED},
}


def put(ledger: Engine, state: BatchState, outcome: BatchState | None) -> Batch:
    """A batch in any state, whose window has passed."""
    batch = making.create(ledger, f"file-{uuid4()}")
    values = {"id": batch.id, "state": state.value, "outcome": outcome and outcome.value, "epoch": EPOCH}
    with ledger.begin() as connection:
        connection.execute(
            text("""
                UPDATE batch SET state = :state, outcome = :outcome, epoch = :epoch, expires_at = now()
                 WHERE id = :id
            """),
            values,
        )
    return making.fetch(ledger, batch)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", BatchState)
def test_a_batch_moves_as_the_table_of_states_says_and_in_no_other_way(
    ledger: Engine, state: BatchState, move: str
) -> None:
    for outcome in OUTCOMES.get(state, (None,)):
        batch = put(ledger, state, outcome)
        database.run(ledger, lambda c, batch=batch: MOVES[move](c, batch))  # type: ignore[misc]
        expected = (BATCH_MOVES[state] & TARGETS[move]) or {state}
        if move == "finish" and outcome is not None:
            expected = {outcome}
        assert {making.fetch(ledger, batch).state} == expected


def test_every_move_of_the_table_is_somebodys() -> None:
    assert {target for moves in BATCH_MOVES.values() for target in moves} == {
        target for targets in TARGETS.values() for target in targets
    }


@pytest.mark.parametrize("move", ["begin", "fail", "finish"])
def test_whoever_lost_the_lease_of_a_batch_moves_nothing(ledger: Engine, move: str) -> None:
    state, outcome = {
        "begin": (BatchState.VALIDATING, None),
        "fail": (BatchState.VALIDATING, None),
        "finish": (BatchState.FINALIZING, BatchState.COMPLETED),
    }[move]
    batch = put(ledger, state, outcome)
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET epoch = epoch + 1")))
    database.run(ledger, lambda c: MOVES[move](c, batch))
    assert making.fetch(ledger, batch).state is state


def test_output_lives_as_long_as_the_batch_asked_from_its_own_creation(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET output_lifetime_seconds = 3600")))
    ended = answer(ledger, batch)
    assert ended.output_file_id is not None
    file = database.run(ledger, lambda c: files.get(c, DEFAULT_PROJECT, ended.output_file_id or ""))
    assert file.expires_at is not None
    assert (file.expires_at - file.created_at).total_seconds() == 3600


def test_an_expired_file_is_deleted_with_its_bytes(ledger: Engine) -> None:
    file = making.upload(ledger, b"x")
    database.run(ledger, lambda c: c.execute(text("UPDATE file SET expires_at = now()")))
    assert database.run(ledger, files.sweep) == 1
    assert making.scalar(ledger, "SELECT count(*) FROM file WHERE id = :id", id=file.id) == 0
    assert making.scalar(ledger, "SELECT count(*) FROM file_part") == 0


def answer(ledger: Engine, batch: Batch) -> Batch:
    """The batch with every line answered, ended."""
    owner = making.worker(ledger)
    for lease in making.claim(ledger, batch, owner, chunks=99):
        database.run(
            ledger,
            lambda c, lease=lease: results.flush(c, lease, making.results(lease.line_numbers)),  # type: ignore[misc]
        )
    assert database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is BatchState.COMPLETED
    return making.fetch(ledger, batch)


def clear(ledger: Engine, *, days: int = 0) -> int | None:
    return database.run(ledger, lambda c: retention.clear(c, retention_days=days))


def rows(ledger: Engine) -> object:
    return making.scalar(
        ledger,
        "SELECT (SELECT count(*) FROM request) + (SELECT count(*) FROM result) + (SELECT count(*) FROM chunk)",
    )


def test_the_lines_of_a_batch_are_kept_until_its_result_files_are_gone(ledger: Engine) -> None:
    ended = answer(ledger, making.ingest(ledger, [making.line(f"r{n}") for n in range(9)]))
    assert clear(ledger) is None
    assert ended.output_file_id is not None
    database.run(ledger, lambda c: files.delete(c, DEFAULT_PROJECT, ended.output_file_id or ""))
    assert clear(ledger, days=1) is None, "it ended just now"
    assert clear(ledger) == ended.id
    assert clear(ledger) == ended.id
    assert clear(ledger) is None, "each batch is cleared once"
    assert rows(ledger) == 0
    assert making.fetch(ledger, ended) == ended, "the batch stays, with its counts and usage"


def test_lines_are_deleted_in_slices(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE_LINES", 4)
    ended = answer(ledger, making.ingest(ledger, [making.line(f"r{n}") for n in range(9)]))
    database.run(ledger, lambda c: files.delete(c, DEFAULT_PROJECT, ended.output_file_id or ""))
    left = []
    while clear(ledger) is not None:
        left.append(making.scalar(ledger, "SELECT count(*) FROM result"))
    assert left == [5, 1, 0, 0]


@pytest.mark.parametrize("state", [state for state in BatchState if state not in TERMINAL])
def test_nothing_is_deleted_of_a_batch_that_has_not_ended(ledger: Engine, state: BatchState) -> None:
    making.ingest(ledger, [making.line("a")])
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET state = :state"), {"state": state.value}))
    assert clear(ledger) is None
    assert rows(ledger) == 2


def test_a_page_may_begin_at_any_line_that_a_batch_may_have(ledger: Engine) -> None:
    """The driver sends small numbers as two bytes, and in SQL two of those do not add up to more."""
    for after in (0, 32_000, 999_000):
        assert database.run(ledger, lambda c, after=after: export._page(c, 1, after)) == []  # type: ignore[misc]


def test_pages_of_the_export_join_without_gap_or_overlap(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank lines leave holes in the numbers, here wider than a page."""
    monkeypatch.setattr(export, "PAGE_LINES", 3)
    lines = [making.line("a"), b"", making.line("b"), *[b""] * 9, making.line("c"), making.line("d")]
    ended = answer(ledger, making.ingest(ledger, lines))
    output = making.content(ledger, ended.output_file_id)
    assert [one["custom_id"] for one in output] == ["a", "b", "c", "d"]
    assert (ended.total, ended.completed) == (4, 4)


def test_an_export_that_fails_leaves_no_file_behind(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(5)])
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    owner = making.worker(ledger)
    with monkeypatch.context() as broken:
        broken.setattr(export, "PAGE_LINES", 2)
        broken.setattr(export.lines, "unanswered", _fail_at("r3"))
        with pytest.raises(ArithmeticError):
            export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    assert making.scalar(ledger, "SELECT count(*) FROM file WHERE purpose = 'batch_output'") == 0
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is BatchState.CANCELLED


def _fail_at(custom_id: str) -> Callable[..., bytes]:
    def write(_batch_id: str, _line_no: int, found: str, _reason: object) -> bytes:
        if found == custom_id:
            raise ArithmeticError(found)
        return b"{}\n"

    return write


def test_a_batch_cancelled_while_its_expiry_is_written_tells_of_one_end(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(3)])
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET expires_at = now()")))
    database.run(ledger, batches.expire)
    owner, unanswered = making.worker(ledger), export.lines.unanswered

    def cancel_meanwhile(batch_id: str, line_no: int, custom_id: str, reason: tuple[str, str]) -> bytes:
        if line_no == 2 and reason == export.lines.EXPIRED:
            database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
        return unanswered(batch_id, line_no, custom_id, reason)

    monkeypatch.setattr(export.lines, "unanswered", cancel_meanwhile)
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is None
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is BatchState.CANCELLED
    ended = making.fetch(ledger, batch)
    reasons = [line["error"]["code"] for line in making.content(ledger, ended.error_file_id)]  # type: ignore[index]
    assert reasons == ["batch_cancelled"] * 3
    assert list(audit.faults(ledger, making.SETTINGS)) == []
