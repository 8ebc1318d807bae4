"""`gristmill backup` and `gristmill restore`: what comes back is the ledger of one moment, and work goes on in it."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from gristmill import backups
from gristmill.cli import main
from gristmill.embedded import Addresses, EmbeddedServers
from jobs import audit, batches, database, export, keys, migrate, results
from jobs.batches import Batch
from jobs.states import BatchState
from jobs.tables import metadata
from tests.gristmill.embedded.conftest import open_folder, remove
from tests.jobs import making


def call(servers: Addresses, *words: object) -> Result:
    found = {"DATABASE_URL": servers.database_url, "BROKER_URL": servers.broker_url}
    return CliRunner().invoke(main, [*map(str, words)], env=found)


@pytest.fixture
def elsewhere() -> Iterator[tuple[Addresses, Engine]]:
    """Another installation, in which nothing is yet."""
    place = open_folder()
    with EmbeddedServers(place / "data", say=print) as servers:
        engine = database.connect(servers.addresses.database_url)
        yield servers.addresses, engine
        engine.dispose()
    remove(place)


def rows(engine: Engine, table: str, *, order: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}"))]


def answer(ledger: Engine, batch: Batch, lines: int) -> None:
    """Answer the first lines of a batch, a chunk at a time."""
    owner = making.worker(ledger)
    for _ in range(lines // 4):
        (lease,) = making.claim(ledger, batch, owner)
        database.run(ledger, partial(results.flush, lease=lease, results=making.results(lease.line_numbers)))
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))


def test_what_was_saved_under_load_comes_back_sound_and_work_goes_on(
    ledger: Engine, servers: Addresses, elsewhere: tuple[Addresses, Engine], tmp_path: Path
) -> None:
    ended = making.ingest(ledger, [making.line(f"r{n}") for n in range(8)])
    answer(ledger, ended, 8)
    export.finalize(ledger, ended.id, owner=making.worker(ledger), settings=making.SETTINGS)
    key = database.run(ledger, lambda c: keys.create(c, name="ann"))
    leased = making.ingest(ledger, [making.line(f"r{n}") for n in range(8)])
    making.claim(ledger, leased, making.worker(ledger))
    busy = making.ingest(ledger, [making.line(f"r{n}") for n in range(2_000)])
    load = threading.Thread(target=answer, args=(ledger, busy, 2_000))
    load.start()
    saved = call(servers, "backup", tmp_path / "saved")
    load.join()
    assert (saved.exit_code, saved.stdout) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o600

    addresses, restored = elsewhere
    brought = call(addresses, "restore", tmp_path / "saved")
    assert (brought.exit_code, brought.stderr) == (0, "Everything is back.\n")
    assert list(audit.faults(restored, making.SETTINGS)) == []
    for table, order in (("file_part", "file_id, seq"), ("request", "batch_id, line_no"), ("api_key", "id")):
        assert rows(restored, table, order=order) == rows(ledger, table, order=order)
    assert making.fetch(restored, ended) == making.fetch(ledger, ended)
    assert database.run(restored, lambda c: keys.is_valid(c, key))
    assert making.scalar(restored, "SELECT max(crashes) FROM chunk") == 0
    answer(restored, leased, 8)
    export.finalize(restored, leased.id, owner=making.worker(restored), settings=making.SETTINGS)
    assert making.fetch(restored, leased).state is BatchState.COMPLETED
    assert list(audit.faults(restored, making.SETTINGS)) == []


def test_a_database_that_is_not_empty_is_left_as_it_is(ledger: Engine, servers: Addresses, tmp_path: Path) -> None:
    making.ingest(ledger, [making.line("a")])
    assert call(servers, "backup", tmp_path / "saved").exit_code == 0
    refused = call(servers, "restore", tmp_path / "saved")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: The database is not empty")
    assert making.scalar(ledger, "SELECT count(*) FROM request") == 1


def test_a_file_that_is_no_backup_is_refused_in_one_sentence_and_harms_nothing(
    elsewhere: tuple[Addresses, Engine], tmp_path: Path
) -> None:
    (tmp_path / "saved").write_text("Not a backup.")
    addresses, engine = elsewhere
    refused = call(addresses, "restore", tmp_path / "saved")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: pg_restore failed: ")
    assert refused.stderr.count("\n") == 1
    migrate.upgrade(addresses.database_url)
    assert {table.name for table in metadata.sorted_tables} <= set(
        database.sqlalchemy.inspect(engine).get_table_names()
    )


def test_a_backup_that_cannot_be_written_leaves_nothing(ledger: Engine, servers: Addresses, tmp_path: Path) -> None:
    refused = call(servers, "backup", tmp_path / "no folder" / "saved")
    assert refused.exit_code == 2
    assert refused.stderr == f"Error: There is no folder {tmp_path}/no folder.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_nobody_elses_from_its_first_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def dump(_name: str, *options: str, **_: object) -> None:
        draft = Path(next(one for one in options if one.startswith("--file=")).removeprefix("--file="))
        draft.open("wb").close()
        modes.append(draft.stat().st_mode & 0o777)

    monkeypatch.setattr(backups, "_run", dump)
    (tmp_path / ".saved.draft").touch(0o644)  # of one that was killed
    backups.save("postgresql://", tmp_path / "saved")
    assert modes == [0o600]


def test_a_backup_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRISTMILL_DATA_DIR", str(tmp_path / "data"))
    refused = CliRunner().invoke(main, ["restore", str(tmp_path / "nope")])
    assert refused.exit_code == 2
    assert refused.stderr == f"Error: There is no file {tmp_path}/nope.\n"
    assert not (tmp_path / "data").exists()
