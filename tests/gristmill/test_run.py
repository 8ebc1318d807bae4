"""`gristmill run` as a person runs it: real servers, real workers, a real model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from gristmill.embedded.daemon import command_line
from jobs.failpoints import VARIABLE, Point
from jobs.settings import PREFIX, Settings
from tests import tiny_model
from tests.gristmill.embedded.conftest import copy, open_folder, remove
from worker.model import ModelFolder

DEADLINE_SECONDS = 240
# Short enough to see what happens after them within a test.
PATIENCE = {
    "GRISTMILL_LEASE_SECONDS": "6",
    "GRISTMILL_HEARTBEAT_SECONDS": "1",
    "GRISTMILL_DRAIN_SECONDS": "2",
    "GRISTMILL_NICENESS": "1",
}
# The model's worker dies when so many lines are stored; the next one, which has fewer left, does not.
STORED, LINES = 21, 40
DIES_IN_THE_MIDDLE = {VARIABLE: f"{Point.RESULTS_STORED}:{STORED}", "GRISTMILL_CHUNK_LINES": "1"}


@pytest.fixture
def home(seed: Path) -> Iterator[Path]:
    """A data folder with a tiny model in it."""
    place = open_folder()
    tiny_model.write(copy(seed, place) / "models" / "tiny")
    yield place
    remove(place)


@pytest.fixture
def new_home(smollm2: ModelFolder) -> Iterator[Path]:
    """A data folder in which nothing ever ran, with a real model in it."""
    place = open_folder()
    (place / "data").mkdir()
    (place / "data" / "models").symlink_to(smollm2.path.parent)
    yield place
    remove(place)


def write_lines(path: Path, count: int, *, model: str = "tiny", tokens: int = 8) -> list[str]:
    """A file of requests; their ids."""
    ids = [f"line-{number}" for number in range(count)]
    with path.open("w") as file:
        for number, custom_id in enumerate(ids):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"Tell me about {custom_id}."}],
                "max_tokens": 4 + number % tokens,  # so that lines end one after the other
                "temperature": 0,
            }
            request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")
    return ids


def start(
    home: Path,
    *arguments: object,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    **more: str,
) -> subprocess.Popen[str]:
    """Our command as a process, with `more` in its environment."""
    kept = (name for name in os.environ if name not in Settings.environment_names() and not name.startswith(PREFIX))
    environment = {name: os.environ[name] for name in kept}
    return subprocess.Popen(
        [sys.executable, "-m", "gristmill.cli", *map(str, arguments)],
        env=environment | PATIENCE | more | {"GRISTMILL_DATA_DIR": str(home / "data")},
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status, and what was said."""
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert stdout == ""
    assert "Traceback" not in stderr
    return process.returncode, stderr


def custom_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def children(parent: int, *words: str) -> list[int]:
    """The processes that `parent` started whose command lines hold all of `words`."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [pid for pid, ppid in pairs if ppid == parent and all(word in command_line(pid) for word in words)]


def until_worker_comes_back(process: subprocess.Popen[str]) -> None:
    """Wait until the model's worker has died and another is on its way."""
    assert process.stderr is not None
    assert any("has ended with status -9; starting it again" in line for line in process.stderr), "no worker died"
    until(lambda: bool(children(process.pid, "worker", "--model")), "no worker came back")


def until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def assert_nothing_runs(pids: list[int]) -> None:
    until(lambda: not any("gristmill.cli" in command_line(pid) for pid in pids), "a child outlived its parent")


def test_a_file_is_answered_and_the_second_run_only_fetches(new_home: Path) -> None:
    ids = write_lines(new_home / "in.jsonl", 6, model="smollm2-135m")
    first, second = new_home / "first.jsonl", new_home / "second.jsonl"
    status, said = finish(start(new_home, "run", new_home / "in.jsonl", "-o", first))
    assert status == 0, said
    assert sorted(custom_ids(first)) == sorted(ids)
    assert not (new_home / "first.errors.jsonl").exists()
    logs = {log.name: log.stat().st_size for log in (new_home / "data" / "logs").glob("worker*.log")}
    status, said = finish(start(new_home, "run", new_home / "in.jsonl", "-o", second))
    assert status == 0, said
    assert "in progress" not in said
    assert second.read_bytes() == first.read_bytes()
    assert {log.name: log.stat().st_size for log in (new_home / "data" / "logs").glob("worker*.log")} == logs


def log(home: Path) -> str:
    """What the model's workers told."""
    path = home / "data" / "logs" / "worker-tiny.log"
    return path.read_text() if path.exists() else ""


def lines_claimed(home: Path) -> list[int]:
    """How many lines each of the model's workers took in hand, one number for each of its lives."""
    lives = log(home).split("model loaded")[1:]
    return [sum(int(count) for count in re.findall(r"chunk claimed .* lines=(\d+)", life)) for life in lives]


def test_a_worker_killed_in_the_middle_costs_no_line_and_no_line_twice(home: Path) -> None:
    ids = write_lines(home / "in.jsonl", LINES)
    status, said = finish(start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl", **DIES_IN_THE_MIDDLE))
    assert status == 0, said
    assert said.count("has ended with status -9; starting it again") == 1
    assert sorted(custom_ids(home / "out.jsonl")) == sorted(ids)
    _, after_the_kill = lines_claimed(home)
    assert 0 < after_the_kill <= LINES - STORED


def test_stopped_and_run_again_it_goes_on_with_the_same_batch(home: Path) -> None:
    ids = write_lines(home / "in.jsonl", LINES)
    process = start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl", **DIES_IN_THE_MIDDLE)
    until_worker_comes_back(process)
    pids = children(process.pid)
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert status == 130
    assert "Stopped; run the same command again to go on." in said
    assert not (home / "out.jsonl").exists()
    assert_nothing_runs(pids)
    status, said = finish(start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl"))
    assert status == 0, said
    assert sorted(custom_ids(home / "out.jsonl")) == sorted(ids)
    assert lines_claimed(home)[-1] <= LINES - STORED


def test_children_end_with_a_supervisor_that_was_killed_and_leave_no_socket(home: Path) -> None:
    write_lines(home / "in.jsonl", 2_000, tokens=16)
    process = start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl")
    until(lambda: "chunk claimed" in log(home), "no line was taken in hand")
    pids = children(process.pid)
    sockets = home / "data" / "servers" / "runs"
    assert len(list(sockets.iterdir())) == 1
    process.kill()
    process.communicate()
    assert_nothing_runs(pids)
    assert list(sockets.iterdir()) == []


def test_each_fault_of_a_file_is_told_and_nothing_is_written(home: Path) -> None:
    write_lines(home / "in.jsonl", 2)
    with (home / "in.jsonl").open("a") as file:
        file.write("not json\n")
    status, said = finish(start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl"))
    assert status == 2
    assert "line 3: " in said
    assert not (home / "out.jsonl").exists()
    assert "line-0" not in said


def test_a_model_that_is_not_installed_can_be_replaced(home: Path) -> None:
    write_lines(home / "in.jsonl", 1, model="gpt-4o-mini")
    status, said = finish(start(home, "run", home / "in.jsonl", "-o", home / "out.jsonl"))
    assert status == 2
    assert "'gpt-4o-mini' is not installed (installed: tiny)" in said
    arguments = ("run", home / "in.jsonl", "-o", home / "out.jsonl", "--model", "tiny")
    status, said = finish(start(home, *arguments))
    assert status == 0, said
    assert custom_ids(home / "out.jsonl") == ["line-0"]
