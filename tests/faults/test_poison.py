"""A line that ends or hangs its worker costs itself, a few workers, and no other line."""

import pytest
from sqlalchemy import text

from jobs.states import TERMINAL, BatchState
from tests.faults.system import System
from tests.jobs import making

DEATHS_MAX = 2 + 3  # log2 of a chunk's four lines, and three


@pytest.mark.parametrize("word", ["DIE", "HANG"])
def test_a_line_that_ends_every_worker_fails_alone(system: System, word: str) -> None:
    said = ["Hello"] * 10
    said[6] = f"Please {word}"
    batch = making.ingest(system.ledger, [making.line(f"r{n}", content=f"{words} {n}") for n, words in enumerate(said)])
    system.start("io")
    lives = [system.start("model")]

    def is_ended() -> bool:
        with system.ledger.begin() as connection:  # nobody needs to wait for the next try
            connection.execute(text("UPDATE chunk SET not_before = now() WHERE not_before > now()"))
        if not lives[-1].is_alive():
            lives.append(system.start("model"))
        return making.fetch(system.ledger, batch).state in TERMINAL

    system.until(is_ended)
    system.kill_all()
    ended = making.fetch(system.ledger, batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 9, 1)
    (error,) = making.content(system.ledger, ended.error_file_id)
    assert error["custom_id"] == "r6"
    assert error["response"]["body"]["error"]["code"] == "worker_crashed"  # type: ignore[index]
    assert len(lives) - 1 <= DEATHS_MAX
    assert system.faults() == []
