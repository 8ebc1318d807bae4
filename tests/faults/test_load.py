"""Batches of any length are answered to their last line; `make chaos` takes a million."""

from collections import Counter

import orjson
import pytest

from jobs import files
from jobs.states import BatchState
from tests.faults.system import LENGTH, System
from tests.jobs import making

SIZES = [2_000] if LENGTH == 1 else [50_000, 1_000_000]


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
