import pytest
from sqlalchemy import Connection, Engine, text

from jobs import batches, database, direct, export
from tests.jobs import making


def test_a_direct_completion_that_its_caller_dropped_meanwhile_needs_no_ending(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = database.run(
        ledger, lambda c: direct.submit(c, "default", {"model": "tiny"}, model="tiny", public_id=direct.new_id())
    )
    with ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET state = 'finalizing' WHERE id = :id"), {"id": asked.id})
    take = batches.take

    def take_too_late(connection: Connection, batch_id: int, **rest: object) -> int | None:
        epoch = take(connection, batch_id, **rest)  # type: ignore[arg-type]
        direct.drop(connection, batch_id)
        return epoch

    monkeypatch.setattr(batches, "take", take_too_late)
    assert export.finalize(ledger, asked.id, owner=making.worker(ledger), settings=making.SETTINGS) is None
    assert making.scalar(ledger, "SELECT count(*) FROM batch") == 0
