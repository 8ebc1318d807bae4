"""Programs of an older revision that go on beside the newest tables: they end what others begin, and others theirs.

The old programs are those of this repository's history, so where that is not here there is nothing to try.
"""

import io
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import Engine

from gristmill.embedded import Addresses
from jobs import audit, batches, database, export, results
from jobs.batches import Batch
from jobs.states import BatchState
from tests.jobs import making

ROOT = Path(__file__).parents[1]
NEEDED = ["jobs", "tests/__init__.py", "tests/jobs/__init__.py", "tests/jobs/making.py"]
# Answers all but a chunk of a batch of its own, which it names, and all of the one that it is told.
OLD_WORKER = """
import sys
from functools import partial
from jobs import batches, database, export, results, workers
from tests.jobs import making

ledger = database.connect(sys.argv[1])
owner = making.worker(ledger)
assert database.run(ledger, lambda c: workers.heartbeat(c, owner))

def answer(batch, chunks):
    for lease in making.claim(ledger, batch, owner, chunks=chunks):
        database.run(ledger, partial(results.flush, lease=lease, results=making.results(lease.line_numbers)))
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))

own = making.ingest(ledger, [making.line(f"r{n}") for n in range(10)])
answer(own, 2)
given = database.run(ledger, lambda c: batches.by_id(c, int(sys.argv[2])))
answer(given, 9)
export.finalize(ledger, given.id, owner=owner, settings=making.SETTINGS)
print(own.id)
"""


def git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout


@cache
def last_before_each_revision() -> list[str]:
    """The commits behind which a revision was added, oldest first; none where the history is not here."""
    try:
        added = git("log", "--diff-filter=A", "--format=%H", "--reverse", "--", "migrations/versions").decode().split()
        return [git("rev-parse", "--short", f"{commit}^").decode().strip() for commit in added[1:]]
    except (OSError, subprocess.CalledProcessError):
        return []


def answer(ledger: Engine, batch: Batch) -> None:
    for lease in making.claim(ledger, batch, making.worker(ledger), chunks=9):
        stored = making.results(lease.line_numbers)
        database.run(ledger, lambda c, e=lease, s=stored: results.flush(c, e, s))  # type: ignore[misc]
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)


@pytest.mark.skipif(not last_before_each_revision(), reason="the history of this repository is not here")
@pytest.mark.parametrize("commit", last_before_each_revision())
def test_an_old_worker_beside_new_tables_loses_and_doubles_nothing(
    ledger: Engine, servers: Addresses, tmp_path: Path, commit: str
) -> None:
    with zipfile.ZipFile(io.BytesIO(git("archive", "--format=zip", commit, *NEEDED))) as archive:
        archive.extractall(tmp_path)
    given = making.ingest(ledger, [making.line(f"r{n}") for n in range(10)])
    done = subprocess.run(
        [sys.executable, "-c", OLD_WORKER, servers.database_url, str(given.id)],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    own = database.run(ledger, lambda c: batches.by_id(c, int(done.stdout)))
    assert own
    answer(ledger, own)
    for batch in (given, own):
        ended = making.fetch(ledger, batch)
        assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 10, 0)
    assert list(audit.faults(ledger, making.SETTINGS)) == []
