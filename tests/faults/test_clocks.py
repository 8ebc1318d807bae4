"""Only the database's clock decides, and not even that one where it leaps."""

import contextlib
import re
from pathlib import Path

from sqlalchemy import text

from jobs import batches, database, keys
from jobs.states import BatchState
from tests.faults import worker
from tests.faults.clients import Client, Seen
from tests.faults.system import System
from tests.jobs import making

ROOT = Path(__file__).parents[2]
LEAP_SECONDS = 600
WALL_CLOCK = re.compile(r"time\.time\(|datetime\.now\(|date\.today\(|utcnow\(")
# What a receiver compares with its own clock, and the date of a model's making.
TELLS_THE_TIME = {"jobs/webhooks/sender.py", "worker/model/folder.py"}


def test_processes_whose_clocks_leap_lose_and_expire_nothing(system: System) -> None:
    system.patience |= {worker.CLOCK: str(LEAP_SECONDS), "GRISTMILL_LEASE_SECONDS": str(LEAP_SECONDS // 10)}
    system.start("api")
    system.until(system.is_served)
    key = database.run(system.ledger, lambda c: keys.create(c, name="faults", lifetime_seconds=LEAP_SECONDS // 2))
    seen = Seen()
    with contextlib.closing(Client(system.socket, key, seen)) as client:
        made = client.begin("r", 160)
    batch = database.run(system.ledger, lambda c: batches.get(c, keys.DEFAULT_PROJECT, made["id"]))
    with system.ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET expires_at = now() + interval '300 s'"))
    system.start_all()
    ended = system.until_ended(batch)
    assert (ended.state, ended.completed) == (BatchState.COMPLETED, 160)
    assert making.scalar(system.ledger, "SELECT max(crashes) FROM chunk") == 0
    assert ended.completed_at is not None
    assert (ended.completed_at - ended.created_at).total_seconds() < LEAP_SECONDS / 2
    assert seen.broken == system.faults() == []


def test_no_code_asks_the_processs_clock_for_the_time() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in ("jobs", "worker", "gristmill")
        for path in (ROOT / package).rglob("*.py")
        if WALL_CLOCK.search(path.read_text())
    }
    assert found == TELLS_THE_TIME
