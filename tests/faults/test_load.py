"""Batches of any length and number are answered to their last line; `make chaos` takes a million lines."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import orjson
import pytest

from jobs import database, files, keys
from jobs.states import BatchState
from tests.faults.clients import Client, Seen
from tests.faults.system import LENGTH, System
from tests.jobs import making

SIZES = [2_000] if LENGTH == 1 else [50_000, 1_000_000]
PROJECTS = ("one", "two", "three")
BATCHES_EACH = 10 if LENGTH == 1 else 67
LINES_EACH = 6


@pytest.mark.parametrize("size", SIZES)
def test_a_long_batch_is_answered_to_its_last_line(system: System, size: int) -> None:
    system.patience |= {"GRISTMILL_CHUNK_LINES": "64", "GRISTMILL_LEASE_SECONDS": "60"}
    system.deadline_seconds = 60 + size / 200
    content = b"\n".join(making.line(f"r{n}", content=f"Question {n}") for n in range(size))
    batch = making.create(system.ledger, making.upload(system.ledger, content).id)
    system.start_all()
    ended = system.until_ended(batch)
    assert (ended.state, ended.total, ended.completed) == (BatchState.COMPLETED, size, size)
    assert ended.output_file_id
    found = Counter(
        orjson.loads(line)["custom_id"]
        for line in files.lines(files.read(system.ledger, ended.output_file_id), size_max=1 << 20)
        if line is not None
    )
    assert found == Counter(f"r{n}" for n in range(size))
    assert system.faults() == []


@dataclass
class Tenant:
    """One of the projects, with the names of its batches by their ids."""

    project: str
    client: Client
    seen: Seen
    made: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        for number in range(BATCHES_EACH):
            name = f"{self.project}-{number}"
            self.made[self.client.begin(name, LINES_EACH, content="Question")["id"]] = name

    def fetch(self) -> None:
        if self.client.listed() != self.made.keys():
            self.seen.accuse(f"{self.project} is shown batches that are not its own, or not all of them")
        for batch_id, name in self.made.items():
            self.client.see_to_its_end(name, LINES_EACH, {"id": batch_id, "status": "validating"})
        self.client.close()


def test_the_batches_of_several_projects_at_once_come_back_whole_each_to_its_own(system: System) -> None:
    """All are there before the first is read."""
    seen, expected = Seen(), len(PROJECTS) * BATCHES_EACH
    system.start("api")
    system.until(system.is_served)
    tenants = []
    for project in PROJECTS:
        key = database.run(system.ledger, lambda c, p=project: keys.create(c, name="load", project_id=p))  # type: ignore[misc]
        tenants.append(Tenant(project, Client(system.socket, key, seen), seen))
    with ThreadPoolExecutor(len(tenants)) as threads:
        list(threads.map(Tenant.begin, tenants))
        assert making.scalar(system.ledger, "SELECT count(*) FROM batch WHERE state = 'validating'") == expected
        for kind in ("io", "model", "model"):
            system.start(kind)
        list(threads.map(Tenant.fetch, tenants))
    system.kill_all()
    assert seen.broken == []
    assert (seen.outcomes, seen.answered) == ({"completed": expected}, expected * LINES_EACH)
    assert system.faults() == []
