"""The query of docs/operations.md that says what is stuck: it finds that, and nothing that only takes its time."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from jobs import database, results
from tests.jobs import making

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
QUERY = PAGE.partition("```sql\n")[2].partition("```")[0]
LONG_AGO = "now() - interval '3 minutes'"


def stuck(ledger: Engine) -> int:
    with ledger.connect() as connection:
        return len(connection.execute(text(QUERY)).all())


def damage(ledger: Engine, statement: str) -> None:
    with ledger.begin() as connection:
        assert connection.execute(text(statement)).rowcount


def age(ledger: Engine) -> None:
    """All that has happened was three minutes ago."""
    moments = ", ".join(f"{name} = {name} - interval '3 minutes'" for name in ("created_at", "in_progress_at"))
    damage(ledger, f"UPDATE batch SET {moments}")


def test_work_under_way_is_not_stuck_however_old(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(8)])
    assert stuck(ledger) == 0
    age(ledger)
    (lease,) = making.claim(ledger, batch, making.worker(ledger))
    assert stuck(ledger) == 0
    database.run(ledger, lambda c: results.flush(c, lease, making.results(lease.line_numbers)))
    assert stuck(ledger) == 0


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE batch SET expires_at = {LONG_AGO}",
        f"UPDATE chunk SET deadline = {LONG_AGO} WHERE state = 'leased'",
        f"UPDATE chunk SET state = 'done', deadline = {LONG_AGO}",
        f"UPDATE worker SET heartbeat_at = {LONG_AGO}",
        f"UPDATE batch SET state = 'cancelling', cancelling_at = {LONG_AGO}",
        f"UPDATE batch SET state = 'finalizing', finalizing_at = {LONG_AGO}",
        "UPDATE batch SET state = 'validating'",
    ],
)
def test_what_should_have_moved_is_stuck(ledger: Engine, statement: str) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(8)])
    making.claim(ledger, batch, making.worker(ledger))
    age(ledger)
    assert stuck(ledger) == 0
    damage(ledger, statement)
    assert stuck(ledger) == 1
    damage(ledger, "UPDATE batch SET state = 'failed'")
    assert stuck(ledger) == 0
