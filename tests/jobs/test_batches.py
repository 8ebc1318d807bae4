"""Batches created, listed and kept apart by project; keys; hints; the schema."""

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine

from gristmill.embedded import Addresses
from jobs import batches, database, keys, migrate, states
from jobs.contract.batch import window_seconds
from jobs.errors import Conflict, NotFound, Unauthenticated
from jobs.hints import Hints
from jobs.settings import Settings, SettingsError
from tests.jobs import making


def test_the_same_idempotency_key_makes_one_batch(ledger: Engine) -> None:
    first = making.create(ledger, "file-a", key="k")
    assert making.create(ledger, "file-a", key="k").public_id == first.public_id
    with pytest.raises(Conflict):
        making.create(ledger, "file-b", key="k")
    assert making.create(ledger, "file-a").public_id != making.create(ledger, "file-a").public_id


def test_a_foreign_batch_is_not_found(ledger: Engine) -> None:
    batch = making.create(ledger, "file-a")
    with ledger.begin() as connection, pytest.raises(NotFound):
        batches.get(connection, "someone else", batch.public_id)


def test_an_ended_batch_cannot_be_cancelled_and_a_cancelled_one_again(ledger: Engine) -> None:
    batch = making.create(ledger, "file-a")
    for _ in range(2):
        cancelled = database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
        assert cancelled.state == "cancelling"
    failed = making.ingest(ledger, [b"{"])
    with ledger.begin() as connection, pytest.raises(Conflict, match="status 'failed'"):
        batches.cancel(connection, failed.project_id, failed.public_id)


def test_a_key_opens_its_project_until_it_is_revoked(ledger: Engine) -> None:
    key = database.run(ledger, lambda c: keys.create(c, name="test", project_id="alpha"))
    caller = database.run(ledger, lambda c: keys.authenticate(c, key))
    assert caller.project_id == "alpha"
    assert database.run(ledger, lambda c: keys.revoke(c, caller.key_id))
    with ledger.begin() as connection, pytest.raises(Unauthenticated):
        keys.authenticate(connection, key)


@pytest.mark.parametrize("wrong", [None, "", "gm_", "sk-abc", "gm_0123_x", "gm__", "\0", "gm_é_x", "gm_a\0_b"])
def test_a_wrong_key_is_refused(ledger: Engine, wrong: str | None) -> None:
    with ledger.begin() as connection, pytest.raises(Unauthenticated):
        keys.authenticate(connection, wrong)


def test_a_right_id_with_a_wrong_secret_is_refused(ledger: Engine) -> None:
    key = database.run(ledger, lambda c: keys.create(c, name="test"))
    with ledger.begin() as connection, pytest.raises(Unauthenticated):
        keys.authenticate(connection, key[:-1] + ("a" if key[-1] != "a" else "b"))


def test_the_migrations_make_the_schema_that_the_tables_describe(servers: Addresses) -> None:
    migrate.upgrade(servers.database_url)
    engine = database.connect(servers.database_url)
    migrate.check(engine)
    with engine.connect() as connection:
        command.check(migrate._config(connection))
    engine.dispose()


def test_hints_to_an_absent_broker_neither_wait_nor_fail(tmp_path: Path) -> None:
    hints = Hints(f"redis+socket://{tmp_path}/none.sock?virtual_host=0")
    for batch_id in range(100):
        hints.ingest(batch_id)
    hints.close(timeout_seconds=0.01)


@pytest.mark.parametrize(("value", "seconds"), [("15m", 900), ("24h", 86_400), ("7d", 604_800)])
def test_a_completion_window_is_minutes_hours_or_days(value: str, seconds: int) -> None:
    assert window_seconds(value) == seconds


@pytest.mark.parametrize("value", ["", "24", "h", "0h", "31d", "1 h", "24H", "-1h", "1.5h", "٣h", "24h\n", "99999d"])
def test_any_other_window_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="completion_window"):
        window_seconds(value)


def test_every_state_can_be_reached_and_the_ends_are_ends() -> None:
    reached = {states.BatchState.VALIDATING}
    for _ in states.BatchState:
        reached |= {target for state in reached for target in states.BATCH_MOVES[state]}
    assert reached == set(states.BatchState)
    assert {"completed", "failed", "expired", "cancelled"} == states.TERMINAL


def test_an_unknown_setting_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="GRISTMILL_CHUNKLINES is not a setting"):
        Settings.read({"GRISTMILL_CHUNKLINES": "3"})


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises(SettingsError, match="GRISTMILL_CHUNK_LINES='many' cannot be used"):
        Settings.read({"GRISTMILL_CHUNK_LINES": "many"})


def test_settings_come_from_the_environment() -> None:
    settings = Settings.read({"GRISTMILL_CHUNK_LINES": "3", "DATABASE_URL": "postgresql:///x", "HOME": "/"})
    assert (settings.chunk_lines, settings.database_url, settings.broker_url) == (3, "postgresql:///x", None)


def test_a_list_tells_the_first_faults_of_each_batch_and_a_batch_all_of_its_own(ledger: Engine) -> None:
    """Ten thousand faults of each of a hundred batches would take a page some gigabytes."""
    failed = making.ingest(ledger, [b"{"] * (batches.LISTED_FAULTS + 20))
    sound = making.create(ledger, "file-a")
    page = database.run(ledger, lambda c: batches.find(c, failed.project_id, limit=9, after=None))
    assert [batch.public_id for batch in page.batches] == [sound.public_id, failed.public_id]
    assert page.batches[0] == making.fetch(ledger, sound)
    assert failed.errors is not None
    told = failed.errors["data"]
    assert isinstance(told, list)
    assert len(told) == batches.LISTED_FAULTS + 20
    assert page.batches[1].errors == {"object": "list", "data": told[: batches.LISTED_FAULTS]}


def test_a_hint_that_the_brokers_library_fails_at_keeps_no_other_from_being_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints, sent = Hints(f"redis+socket://{tmp_path}/none.sock?virtual_host=0"), []

    def send(_task: str, args: list[int], **_: object) -> None:
        sent.append(args[0])
        if len(sent) == 1:
            raise KeyError("a channel")

    monkeypatch.setattr(hints._app, "send_task", send)
    hints.ingest(1)
    hints.ingest(2)
    hints.close(timeout_seconds=20)
    assert sent == [1, 2]
