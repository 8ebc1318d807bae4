"""How much one key may ask for, however many ask at the same moment; and what its scopes let it do."""

import threading

import pytest
from sqlalchemy import Engine, text

from jobs import database, files, intake, keys, quotas
from jobs.errors import BadRequest, Forbidden, TooMany, Unauthenticated
from jobs.keys import DEFAULT_PROJECT, Limits, Scope
from jobs.settings import Settings
from jobs.states import BatchState
from tests.jobs import making


@pytest.fixture
def key(ledger: Engine) -> str:
    return whole_key(ledger)


@pytest.fixture
def key_id(ledger: Engine) -> str:
    return new_key(ledger)


def whole_key(ledger: Engine, **more: object) -> str:
    return database.run(ledger, lambda c: keys.create(c, name="test", **more))  # type: ignore[arg-type]


def new_key(ledger: Engine, **more: object) -> str:
    """The id of one."""
    return whole_key(ledger, **more).split("_")[1]


def pay(ledger: Engine, key: str, per_minute: int) -> float | None:
    """The time to wait, None where the request was let in."""
    try:
        database.run(ledger, lambda c: quotas.admit(c, key, requests_per_minute=per_minute))
    except TooMany as refusal:
        return refusal.retry_seconds
    return None


def test_a_minutes_worth_of_requests_is_let_in_and_the_next_told_when_to_come(ledger: Engine, key: str) -> None:
    assert [pay(ledger, key, 5) for _ in range(5)] == [None] * 5
    waits = pay(ledger, key, 5)
    assert waits is not None
    assert 10 <= waits <= 12, "a fifth of a minute, less what has passed"


def test_the_bucket_fills_with_time(ledger: Engine, key: str) -> None:
    assert [pay(ledger, key, 2) for _ in range(3)] == [None, None, pytest.approx(30, abs=1)]
    database.run(ledger, lambda c: c.execute(text("UPDATE api_key SET paid_until = paid_until - interval '30 s'")))
    assert pay(ledger, key, 2) is None
    assert pay(ledger, key, 2) is not None


def test_another_keys_requests_do_not_count(ledger: Engine, key: str) -> None:
    assert pay(ledger, key, 1) is None
    assert pay(ledger, key, 1) is not None
    assert pay(ledger, whole_key(ledger), 1) is None


def test_a_key_may_have_a_limit_of_its_own(ledger: Engine) -> None:
    key = whole_key(ledger, limits=Limits(requests_per_minute=2))
    assert [pay(ledger, key, 100) for _ in range(3)] == [None, None, pytest.approx(30, abs=1)]


def test_who_knows_only_the_id_of_a_key_cannot_spend_its_requests(ledger: Engine, key: str) -> None:
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    for _ in range(3):
        with ledger.begin() as connection, pytest.raises(Unauthenticated, match="Incorrect API key"):
            quotas.admit(connection, wrong, requests_per_minute=1)
    assert pay(ledger, key, 1) is None


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
def test_a_key_that_has_ended_is_not_let_in(ledger: Engine, key: str, column: str) -> None:
    database.run(ledger, lambda c: c.execute(text(f"UPDATE api_key SET {column} = now()")))
    with ledger.begin() as connection, pytest.raises(Unauthenticated, match="Incorrect API key"):
        quotas.admit(connection, key, requests_per_minute=100)


def test_processes_that_ask_at_once_agree_on_the_count(ledger: Engine, key: str) -> None:
    let_in: list[bool] = []

    def ask() -> None:
        let_in.extend([pay(ledger, key, 20) is None for _ in range(10)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 20 <= sum(let_in) <= 21, "at most one more came in by the time that passed"


def test_uploads_at_once_are_counted_until_they_end_or_their_process_is_long_dead(ledger: Engine, key_id: str) -> None:
    def begin() -> object:
        return database.run(ledger, lambda c: quotas.begin_upload(c, key_id, uploads_at_once=2))

    first, _second = begin(), begin()
    with pytest.raises(TooMany):
        begin()
    database.run(ledger, lambda c: quotas.end_upload(c, first))  # type: ignore[arg-type]
    begin()
    with pytest.raises(TooMany):
        begin()
    database.run(ledger, lambda c: c.execute(text("UPDATE upload_permit SET expires_at = now() - interval '1 s'")))
    begin()


def test_of_uploads_begun_at_once_no_more_get_in_than_may(ledger: Engine, key_id: str) -> None:
    refused: list[int] = []

    def begin() -> None:
        try:
            database.run(ledger, lambda c: quotas.begin_upload(c, key_id, uploads_at_once=3))
        except TooMany as refusal:
            refused.append(refusal.status)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [429] * 5


def test_a_project_keeps_no_more_bytes_than_it_may(ledger: Engine) -> None:
    making.upload(ledger, b"x" * 100)

    def ask(more: int) -> None:
        database.run(ledger, lambda c: quotas.refuse_bytes(c, DEFAULT_PROJECT, more=more, stored_bytes=150))

    ask(50)
    with pytest.raises(TooMany) as refused:
        ask(51)
    assert (refused.value.code, refused.value.retry_seconds) == ("insufficient_quota", 3600)
    database.run(ledger, lambda c: files.delete(c, DEFAULT_PROJECT, making.scalar(ledger, "SELECT id FROM file")))  # type: ignore[arg-type]
    ask(150)


def queue(ledger: Engine, key_id: str, lines: int, settings: Settings) -> BatchState:
    """A batch of this key, read under these settings."""
    file = making.upload(ledger, b"\n".join(making.line(f"r{n}") for n in range(lines)))
    batch = making.create(ledger, file.id)
    database.run(
        ledger,
        lambda c: c.execute(text("UPDATE batch SET key_id = :key WHERE id = :id"), {"key": key_id, "id": batch.id}),
    )
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=settings)
    ended = making.fetch(ledger, batch)
    if ended.state is BatchState.FAILED:
        assert ended.errors is not None
        assert "token_limit_exceeded" in str(ended.errors)
    return ended.state


def test_a_key_with_too_many_lines_in_progress_fails_its_next_batch(ledger: Engine, key_id: str) -> None:
    settings = Settings(queued_lines=10)
    assert queue(ledger, key_id, 6, settings) is BatchState.IN_PROGRESS
    assert queue(ledger, key_id, 5, settings) is BatchState.FAILED
    assert queue(ledger, key_id, 4, settings) is BatchState.IN_PROGRESS
    assert queue(ledger, new_key(ledger), 10, settings) is BatchState.IN_PROGRESS
    assert queue(ledger, new_key(ledger, limits=Limits(queued_lines=3)), 4, settings) is BatchState.FAILED


def test_an_expired_key_is_refused(ledger: Engine) -> None:
    made = database.run(ledger, lambda c: keys.create(c, name="test", lifetime_seconds=60))
    assert database.run(ledger, lambda c: keys.is_valid(c, made))
    assert database.run(ledger, keys.exists)
    database.run(ledger, lambda c: c.execute(text("UPDATE api_key SET expires_at = now()")))
    assert not database.run(ledger, lambda c: keys.is_valid(c, made))
    assert not database.run(ledger, keys.exists)


def test_a_key_may_do_what_its_scopes_say_and_one_without_may_do_all(ledger: Engine) -> None:
    made = database.run(ledger, lambda c: keys.create(c, name="test", scopes=[Scope.BATCHES_READ]))
    caller = database.run(ledger, lambda c: keys.authenticate(c, made))
    caller.require(Scope.BATCHES_READ)
    for scope in set(Scope) - {Scope.BATCHES_READ}:
        with pytest.raises(Forbidden, match=scope.value):
            caller.require(scope)
    free = database.run(ledger, lambda c: keys.create(c, name="test"))
    assert database.run(ledger, lambda c: keys.authenticate(c, free)).scopes == set(Scope)


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadRequest, match="no scope 'all'"):
        keys.scopes_of(["batches:read", "all"])


def test_the_list_of_keys_tells_their_use_and_never_their_secret(ledger: Engine) -> None:
    made = database.run(ledger, lambda c: keys.create(c, name="mine", scopes=[Scope.CHAT_WRITE]))
    key_id = made.split("_")[1]
    assert pay(ledger, made, 10) is None
    assert database.run(ledger, lambda c: keys.revoke(c, key_id))
    (found,) = database.run(ledger, keys.find)
    assert (found.id, found.name, found.scopes) == (key_id, "mine", ("chat:write",))
    assert found.last_used_at is not None
    assert found.revoked_at is not None
    assert made.split("_", 2)[2] not in repr(found)
    with ledger.begin() as connection, pytest.raises(Unauthenticated):
        keys.authenticate(connection, made)


def test_only_a_digest_of_the_secret_is_stored(ledger: Engine) -> None:
    secret = database.run(ledger, lambda c: keys.create(c, name="test")).split("_", 2)[2]
    stored = making.scalar(ledger, "SELECT api_key::text FROM api_key")
    assert secret not in str(stored)
    assert secret.encode().hex() not in str(stored)
