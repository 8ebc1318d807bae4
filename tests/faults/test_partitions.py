"""A worker whose way to Postgres is broken for longer than its lease: others do its work, and it does no harm."""

from collections.abc import Callable

import pytest

from jobs.states import BatchState
from tests.faults.proxy import Network
from tests.faults.system import LENGTH, System
from tests.jobs import making

LINES = [making.line(f"r{n}", content=f"SLOW {n}") for n in range(60)]


HELD = "SELECT count(*) FROM chunk c JOIN worker w ON w.id = c.owner WHERE c.state = 'leased' AND w.pid = :pid"


WAYS = {
    "both ways": (True, True, Network.cut),
    "on the way back": (False, True, Network.heal),
    "on the way there": (True, False, Network.heal),
}


@pytest.mark.parametrize(("there", "back", "mend"), list(WAYS.values())[: 1 + LENGTH], ids=list(WAYS)[: 1 + LENGTH])
def test_a_worker_that_was_cut_off_does_no_harm_and_works_again(
    system: System, network: tuple[Network, str], there: bool, back: bool, mend: Callable[[Network], None]
) -> None:
    line, url = network
    batch = making.ingest(system.ledger, LINES)
    system.start("io")
    lonely = system.start("model", database_url=url)
    system.until(lambda: making.scalar(system.ledger, HELD, pid=lonely.pid) != 0)
    line.hold(there=there, back=back)
    other = system.start("model")
    system.until(lambda: making.fetch(system.ledger, batch).state is BatchState.COMPLETED)
    other.kill()
    mend(line)
    second = making.ingest(system.ledger, LINES)
    ended = system.until_ended(second)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 60, 0)
    assert making.fetch(system.ledger, batch).completed == 60
    assert lonely.exitcode is not None
    assert lonely.exitcode < 0, "it was alive until we killed it"
    assert system.faults() == []
