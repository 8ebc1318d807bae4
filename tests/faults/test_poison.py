"""A line that ends or hangs its worker costs itself, a few workers, and no other line."""

import pytest
from sqlalchemy import text

from jobs.states import TERMINAL, BatchState
from tests.faults.system import LENGTH, System
from tests.jobs import making

LINES, CHUNK_LINES = (10, 4) if LENGTH == 1 else (640, 64)
DEATHS_MAX = CHUNK_LINES.bit_length() - 1 + 3  # log2 of a chunk's lines, and three


@pytest.mark.parametrize("word", ["DIE", "HANG"])
def test_a_line_that_ends_every_worker_fails_alone(system: System, word: str) -> None:
    system.patience["GRISTMILL_CHUNK_LINES"] = str(CHUNK_LINES)
    said = ["Hello"] * LINES
    said[6] = f"Please {word}"
    lines = [making.line(f"r{n}", content=f"{words} {n}") for n, words in enumerate(said)]
    batch = making.create(system.ledger, making.upload(system.ledger, b"\n".join(lines)).id)
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
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, LINES - 1, 1)
    (error,) = making.content(system.ledger, ended.error_file_id)
    assert error["custom_id"] == "r6"
    assert error["response"]["body"]["error"]["code"] == "worker_crashed"  # type: ignore[index]
    assert len(lives) - 1 <= DEATHS_MAX
    assert system.faults() == []
