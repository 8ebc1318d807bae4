"""The same faults with a real model in place of the script: SmolLM2 answers, and every line is answered once."""

import os
import signal
from pathlib import Path

import pytest

from gristmill.embedded import EmbeddedServers
from jobs import database, models
from jobs.states import BatchState
from tests.faults.system import LENGTH, System
from tests.faults.test_servers import answered, signal_to
from tests.jobs import making
from worker.model import ModelFolder

MODEL = "smollm2-135m"
LINES = 12
PATIENCE = {
    "GRISTMILL_WATCHDOG_SECONDS": "120",
    "GRISTMILL_LEASE_SECONDS": "4",
    "GRISTMILL_SLOTS": "8",
    "GRISTMILL_SEQUENCE_TOKENS": "256",
}
BEATS = "SELECT heartbeat_at > now() - interval '1 s' FROM worker WHERE pid = :pid"
FAULTS = ("a worker sleeps past its lease", "postgres", "valkey", "a worker is killed")


@pytest.mark.parametrize("fault", FAULTS[: 1 if LENGTH == 1 else None])
def test_a_real_model_answers_each_line_once_whatever_fails(
    own: tuple[System, EmbeddedServers], home: Path, smollm2: ModelFolder, fault: str
) -> None:
    system, servers = own
    system.folder = home.parent
    (system.folder / "models").symlink_to(smollm2.path.parent)
    system.deadline_seconds = 180
    system.patience |= PATIENCE
    database.run(system.ledger, lambda c: models.register(c, [MODEL]))
    batch = making.ingest(
        system.ledger,
        [making.line(f"r{n}", model=MODEL, content=f"Tell me about {n}.", max_tokens=4 + n) for n in range(LINES)],
    )
    system.start("io")
    victim = system.start(MODEL)
    system.until(lambda: answered(system.ledger) > 0)
    assert victim.pid
    match fault:
        case "a worker is killed":
            victim.kill()
            system.start(MODEL)
        case "a worker sleeps past its lease":
            os.kill(victim.pid, signal.SIGSTOP)
            system.start(MODEL)
            system.until(lambda: making.fetch(system.ledger, batch).state is BatchState.COMPLETED)
            os.kill(victim.pid, signal.SIGCONT)
            system.until(lambda: bool(making.scalar(system.ledger, BEATS, pid=victim.pid)))
        case server:
            signal_to(home, server, signal.SIGKILL)

    def has_all() -> bool:
        servers.check()
        return answered(system.ledger) == LINES

    system.until(has_all)
    ended = system.until_ended(batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, LINES, 0)
    assert system.faults() == []
