"""The statements that carry the promise: claim, flush, sweep, seal, finish."""

import threading
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from jobs import batches, database, export, leases, results, workers
from jobs.batches import Batch
from jobs.leases import Lease
from jobs.states import BatchState, ChunkState
from tests.jobs import making


@pytest.fixture
def batch(ledger: Engine) -> Batch:
    """Ten lines in chunks of four, four and two."""
    return making.ingest(ledger, [making.line(f"r{n}", content=f"Question {n}") for n in range(1, 11)])


def flush(ledger: Engine, lease: Lease, line_numbers: list[int], **more: object) -> ChunkState | None:
    stored = making.results(line_numbers, **more)  # type: ignore[arg-type]
    return database.run(ledger, lambda c: results.flush(c, lease, stored))


def counts(ledger: Engine, batch: Batch) -> tuple[int, int, object]:
    found = making.fetch(ledger, batch)
    return found.completed, found.failed, making.scalar(ledger, "SELECT count(*) FROM result")


def test_two_claims_never_share_a_chunk(ledger: Engine, batch: Batch) -> None:
    first = making.claim(ledger, batch, making.worker(ledger), chunks=2)
    second = making.claim(ledger, batch, making.worker(ledger), chunks=5)
    assert [lease.line_numbers for lease in first + second] == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]
    assert making.claim(ledger, batch, making.worker(ledger)) == []


def test_claims_at_the_same_moment_lease_every_chunk_once(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(160)])
    found: list[Lease] = []

    def work() -> None:
        owner = making.worker(ledger)
        while claimed := making.claim(ledger, batch, owner):
            found.extend(claimed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for lease in found for n in lease.line_numbers) == list(range(1, 161))


def test_a_repeated_flush_changes_nothing(ledger: Engine, batch: Batch) -> None:
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    assert flush(ledger, lease, [1, 2]) is ChunkState.LEASED
    assert flush(ledger, lease, [1, 2], status=500) is ChunkState.LEASED
    assert counts(ledger, batch) == (2, 0, 2)
    assert flush(ledger, lease, [3, 4], status=400) is ChunkState.DONE
    assert flush(ledger, lease, [3, 4]) is ChunkState.DONE, "an own commit of unknown outcome counts as done"
    assert counts(ledger, batch) == (2, 2, 4)
    found = making.fetch(ledger, batch)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (40, 16, 20)


def test_a_running_batch_shows_at_each_moment_what_its_chunks_add_up_to(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(100)])
    assert counts(ledger, batch) == (0, 0, 0)
    for done, lease in enumerate(making.claim(ledger, batch, making.worker(ledger), chunks=25), start=1):
        flush(ledger, lease, list(lease.line_numbers[:3]))
        flush(ledger, lease, list(lease.line_numbers[3:]), status=400)
        assert counts(ledger, batch) == (3 * done, done, 4 * done)
        assert making.fetch(ledger, batch).prompt_tokens == 40 * done
    assert making.scalar(ledger, "SELECT count(*) FROM tally") == 16


def test_a_flush_stores_no_line_of_another_chunk(ledger: Engine, batch: Batch) -> None:
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    flush(ledger, lease, [4, 5, 99])
    assert counts(ledger, batch) == (1, 0, 1)


def test_a_flush_after_the_lease_was_lost_writes_nothing(ledger: Engine, batch: Batch) -> None:
    (old,) = making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: workers.forget(c, old.owner))
    assert database.run(ledger, lambda c: leases.sweep(c, silent_seconds=60)) == [batch.id]
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET not_before = now()")))
    (new,) = making.claim(ledger, batch, making.worker(ledger))
    assert (new.first_position, new.epoch, new.crashes) == (old.first_position, old.epoch + 1, 1)
    assert flush(ledger, old, [1, 2]) is None
    assert counts(ledger, batch) == (0, 0, 0)
    assert flush(ledger, new, [1, 2]) is ChunkState.LEASED


def test_a_new_holder_answers_only_what_is_missing(ledger: Engine, batch: Batch) -> None:
    (old,) = making.claim(ledger, batch, making.worker(ledger))
    flush(ledger, old, [2, 3])
    database.run(ledger, lambda c: leases.release(c, old))
    (new,) = making.claim(ledger, batch, making.worker(ledger))
    left = database.run(ledger, lambda c: leases.unanswered(c, new))
    assert [line.line_no for line in left] == [1, 4]
    assert new.crashes == 0, "giving back is no crash"


def test_a_sweep_leaves_the_leases_of_the_living(ledger: Engine, batch: Batch) -> None:
    making.claim(ledger, batch, making.worker(ledger))
    assert database.run(ledger, lambda c: leases.sweep(c, silent_seconds=60)) == []


def test_a_sweep_takes_a_lease_whose_deadline_passed_once(ledger: Engine, batch: Batch) -> None:
    making.claim(ledger, batch, making.worker(ledger))
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET deadline = now() - interval '1 s'")))
    assert database.run(ledger, lambda c: leases.sweep(c, silent_seconds=60)) == [batch.id]
    assert database.run(ledger, lambda c: leases.sweep(c, silent_seconds=60)) == []
    assert making.scalar(ledger, "SELECT sum(crashes) FROM chunk") == 1


def test_renewal_tells_what_is_still_held(ledger: Engine, batch: Batch) -> None:
    owner = making.worker(ledger)
    kept, given = making.claim(ledger, batch, owner, chunks=2)
    database.run(ledger, lambda c: leases.release(c, given))
    named = {(batch.id, lease.first_position, lease.epoch) for lease in (kept, given)}
    held = database.run(ledger, lambda c: leases.renew(c, owner=owner, held=named, deadline_seconds=60))
    assert held == {(batch.id, kept.first_position, kept.epoch)}


def test_a_lease_that_its_living_owner_gave_up_runs_out(ledger: Engine, batch: Batch) -> None:
    owner = making.worker(ledger)
    at_work, given_up = making.claim(ledger, batch, owner, chunks=2)
    database.run(ledger, lambda c: c.execute(text("UPDATE chunk SET deadline = now() - interval '1 s'")))
    held = {(batch.id, at_work.first_position, at_work.epoch)}
    assert database.run(ledger, lambda c: leases.renew(c, owner=owner, held=held, deadline_seconds=60)) == held
    assert database.run(ledger, lambda c: leases.sweep(c, silent_seconds=60)) == [batch.id]
    ready = "SELECT first_position FROM chunk WHERE state = 'ready' AND crashes = 1"
    assert making.scalar(ledger, ready) == given_up.first_position
    assert database.run(ledger, lambda c: leases.renew(c, owner=owner, held=set(), deadline_seconds=60)) == set()


def test_nothing_is_written_after_a_cancel(ledger: Engine, batch: Batch) -> None:
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    flush(ledger, lease, [1])
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    assert flush(ledger, lease, [2, 3, 4]) is None
    assert making.claim(ledger, batch, making.worker(ledger)) == []
    assert counts(ledger, batch)[2] == 1


def test_a_cancelled_batch_keeps_what_was_done_and_names_the_rest(ledger: Engine, batch: Batch) -> None:
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    flush(ledger, lease, [1, 2])
    flush(ledger, lease, [3], status=400)
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    state = export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    ended = making.fetch(ledger, batch)
    output, errors = making.content(ledger, ended.output_file_id), making.content(ledger, ended.error_file_id)
    assert state is ended.state is BatchState.CANCELLED
    assert [one["custom_id"] for one in output] == ["r1", "r2"]
    assert [one["custom_id"] for one in errors] == [f"r{n}" for n in range(3, 11)]
    assert errors[0]["response"]["status_code"] == 400  # type: ignore[index]
    assert errors[1]["error"]["code"] == "batch_cancelled"  # type: ignore[index]
    assert (ended.total, ended.completed, ended.failed) == (10, 2, 8)


def test_an_expired_batch_names_what_was_not_run(ledger: Engine, batch: Batch) -> None:
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET expires_at = now()")))
    assert database.run(ledger, batches.expire) == [batch.id]
    assert database.run(ledger, batches.expire) == []
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    ended = making.fetch(ledger, batch)
    errors = making.content(ledger, ended.error_file_id)
    assert ended.state is BatchState.EXPIRED
    assert ended.output_file_id is None
    assert {one["error"]["code"] for one in errors} == {"batch_expired"}  # type: ignore[index]


def test_a_batch_ends_once_with_its_files_counts_and_usage(ledger: Engine, batch: Batch) -> None:
    for lease in making.claim(ledger, batch, making.worker(ledger), chunks=3):
        assert not database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
        flush(ledger, lease, list(lease.line_numbers))
    assert database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    assert not database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    owner = making.worker(ledger)
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is BatchState.COMPLETED
    assert export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS) is None
    ended = making.fetch(ledger, batch)
    assert [one["custom_id"] for one in making.content(ledger, ended.output_file_id)] == [f"r{n}" for n in range(1, 11)]
    assert ended.error_file_id is None
    assert (ended.total, ended.completed, ended.failed, ended.prompt_tokens) == (10, 10, 0, 100)


def test_of_two_finalizers_one_links_its_file_and_the_other_leaves_none(ledger: Engine, batch: Batch) -> None:
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    owners = [making.worker(ledger) for _ in range(2)]
    threads = [
        threading.Thread(
            target=export.finalize, args=(ledger, batch.id), kwargs={"owner": o, "settings": making.SETTINGS}
        )
        for o in owners
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert making.scalar(ledger, "SELECT count(*) FROM file WHERE purpose = 'batch_output'") == 1


def test_a_finalizer_that_died_is_followed_by_another(ledger: Engine, batch: Batch) -> None:
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    dead = uuid4()
    epoch = database.run(
        ledger, lambda c: batches.take(c, batch.id, owner=dead, states=["cancelling"], silent_seconds=60)
    )
    assert epoch is not None
    assert export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS) is not None
    late = database.run(ledger, lambda c: batches.finish(c, batch.id, epoch, output_file_id=None, error_file_id=None))
    assert late is None


def test_the_database_refuses_to_change_a_terminal_batch(ledger: Engine, batch: Batch) -> None:
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    with pytest.raises(DBAPIError, match="which is final"), ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET state = 'in_progress'"))
