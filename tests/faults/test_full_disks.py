"""A disk without room: nothing confirmed is lost, nobody is blamed, and all goes on when there is room again."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from jobs.batches import Batch
from jobs.states import TERMINAL, BatchState
from tests.faults.system import System, on_servers_of_its_own
from tests.faults.test_crashes import LINES, client, finalizing, in_progress, validating
from tests.faults.test_servers import answered
from tests.gristmill.embedded.conftest import open_folder, remove
from tests.jobs import making

FULL = """
    CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room()
"""


@pytest.fixture
def fill(ledger: Engine) -> Iterator[Callable[[str], None]]:
    """Makes Postgres refuse what is written to a table as on a full disk."""
    filled = []

    def fill(table: str) -> None:
        filled.append(table)
        execute(ledger, FULL.format(table=table))

    yield fill
    for table in filled:
        make_room(ledger, table)


def execute(ledger: Engine, statements: str) -> None:
    with ledger.begin() as connection:
        connection.execute(text(statements))


def make_room(ledger: Engine, table: str) -> None:
    execute(ledger, f"DROP TRIGGER IF EXISTS full_disk ON {table}; DROP FUNCTION IF EXISTS no_room")


@pytest.mark.parametrize(
    ("table", "stage", "kind", "says"),
    [
        ("request", validating, "io", "No space left"),
        ("result", in_progress, "model", "answers wait for the database"),
        ("file_part", finalizing, "io", "No space left"),
    ],
)
def test_a_batch_waits_for_a_disk_with_room(
    system: System,
    fill: Callable[[str], None],
    table: str,
    stage: Callable[[Engine], Batch],
    kind: str,
    says: str,
) -> None:
    batch = stage(system.ledger)
    fill(table)
    system.start_all()
    system.until(lambda: says in system.said(kind))
    assert making.fetch(system.ledger, batch).state not in TERMINAL
    make_room(system.ledger, table)
    ended = system.until_ended(batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 10, 0)
    assert making.scalar(system.ledger, "SELECT max(crashes) FROM chunk") == 0
    assert system.faults() == []


def test_an_upload_to_a_full_disk_is_told_to_come_again_and_leaves_nothing(
    system: System, fill: Callable[[str], None]
) -> None:
    system.start("api")
    system.until(system.is_served)
    form = {"file": ("in.jsonl", b"\n".join(LINES))}
    with client(system) as caller:
        fill("file_part")
        refused = caller.post("/v1/files", data={"purpose": "batch"}, files=form)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert "no room" in refused.json()["error"]["message"]
        assert caller.get("/v1/files").json()["data"] == []
        make_room(system.ledger, "file_part")
        assert caller.post("/v1/files", data={"purpose": "batch"}, files=form).status_code == 200


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of its own, which only root can make."""
    place = open_folder()
    disk = place / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "none", str(disk)], check=False)
    if os.geteuid() != 0 or made.returncode != 0:
        remove(place)
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    remove(place)


def test_postgres_on_a_disk_that_is_really_full_loses_nothing(small_disk: Path, model_folder: Path) -> None:
    with on_servers_of_its_own(small_disk / "data", model_folder) as (system, servers):
        lines = [making.line(f"r{n}", content=f"SLOW {n}") for n in range(400)]
        batch = making.ingest(system.ledger, lines)
        system.start_all()
        system.until(lambda: answered(system.ledger) > 0)
        with (small_disk / "ballast").open("wb") as ballast:
            fill_up(ballast.fileno())
        system.until(lambda: "answers wait for the database" in system.said("model"))
        (small_disk / "ballast").unlink()

        def has_all() -> bool:
            servers.check()  # a Postgres that has no room for its log stops
            return answered(system.ledger) == len(lines)

        system.until(has_all)
        assert system.until_ended(batch).completed == len(lines)
        assert system.faults() == []


def fill_up(file: int) -> None:
    """Write until there is no room for another byte."""
    block = b"x" * (1 << 20)
    while block:
        try:
            os.write(file, block)
        except OSError:
            block = block[: len(block) // 2]
