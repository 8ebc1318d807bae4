"""A card that fails takes its process with it, and nothing else."""

from jobs.states import BatchState
from tests.faults.system import System
from tests.jobs import making
from worker.process import EXIT_STUCK

LINES = 12


def test_an_error_of_the_card_ends_the_process_and_others_end_the_batch(system: System) -> None:
    lines = [making.line(f"r{n}", content=f"Question {n}", max_tokens=3 + n) for n in range(LINES)]
    batch = making.ingest(system.ledger, lines)
    assert system.until_dead(system.start("card")) == EXIT_STUCK
    assert "illegal memory access" in system.said("card")
    assert system.faults() == []
    stored = making.scalar(system.ledger, "SELECT count(*) FROM result")
    assert isinstance(stored, int)
    assert stored < LINES
    system.start_all()
    ended = system.until_ended(batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, LINES, 0)
    assert system.faults() == []
