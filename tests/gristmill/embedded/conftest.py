"""Folders for embedded servers, in which nothing is left running when the test is over."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.embedded import EmbeddedServers, locks
from gristmill.embedded.daemon import command_line


def open_folder() -> Path:
    """An empty folder that a service user can enter too, with a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="gm-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    return folder


def remove(folder: Path) -> None:
    """kill -9 what runs in `folder`, by process id, then delete it."""
    for pid_file in folder.rglob("servers/*.pid"):
        pid = int(pid_file.read_text().strip() or 0)
        if pid and str(folder) in command_line(pid):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while locks.is_held(pid_file.with_suffix(".lock")):
            assert time.monotonic() < deadline, f"a process of {pid_file} is left"
            time.sleep(0.02)
    shutil.rmtree(folder)


def copy(data_dir: Path, place: Path) -> Path:
    """A copy of a data folder with all its owners, in `place`."""
    subprocess.run(["cp", "-a", str(data_dir), str(place / "data")], check=True)
    return place / "data"


@pytest.fixture
def place() -> Iterator[Path]:
    place = open_folder()
    yield place
    remove(place)


@pytest.fixture
def folder(place: Path, seed: Path) -> Path:
    """A data folder that was used before: making a database is the slow part of a first start."""
    return copy(seed, place)


@pytest.fixture(scope="session")
def used(seed: Path) -> Iterator[Path]:
    """The data folder of `running`."""
    place = open_folder()
    yield copy(seed, place)
    remove(place)


@pytest.fixture(scope="session")
def running(used: Path) -> Iterator[EmbeddedServers]:
    """Servers for tests that leave them as they are."""
    with EmbeddedServers(used, say=print) as servers:
        yield servers
