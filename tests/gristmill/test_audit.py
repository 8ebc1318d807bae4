"""`gristmill audit` on a real ledger."""

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from gristmill.cli import main
from gristmill.embedded import Addresses
from tests.jobs import making


def audit(servers: Addresses) -> Result:
    found = {"DATABASE_URL": servers.database_url, "BROKER_URL": servers.broker_url}
    return CliRunner().invoke(main, ["audit"], env=found)


def test_a_sound_ledger_ends_the_audit_with_status_0(ledger: Engine, servers: Addresses) -> None:
    making.ingest(ledger, [making.line("a")])
    result = audit(servers)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "The ledger is sound.\n")


@pytest.mark.parametrize("lines", [1, 2])
def test_each_fault_is_printed_and_the_status_is_1(ledger: Engine, servers: Addresses, lines: int) -> None:
    batches = [making.ingest(ledger, [making.line(f"r{n}") for n in range(3)]) for _ in range(lines)]
    with ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET total = 9"))
    result = audit(servers)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{batch.public_id}: it counts 9 lines and has 3" for batch in batches]
