"""What the contract is held against: a live server in a process of its own, and each major release of `openai`."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from gristmill.embedded import Addresses
from jobs import database, keys
from jobs.settings import Settings
from tests.contract.scripted import ScriptedWorker

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENTS = ROOT / ".venv" / "contract"
START_SECONDS = 20


@pytest.fixture(scope="session", params=["1", "2", "3"])
def python(request: pytest.FixtureRequest) -> Path:
    """A Python with nothing but one major release of `openai`; made once, and again when its lock changes."""
    lock = ROOT / "locks" / f"openai-{request.param}.txt"
    folder = ENVIRONMENTS / f"openai-{request.param}"
    stamp, digest = folder / "lock.sha256", hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)  # without a pip of its own, which takes as long as all the rest
        pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check")
        subprocess.run(
            [*pip, "install", "--quiet", "--no-compile", "--require-hashes", "-r", lock], check=True, timeout=240
        )
        stamp.write_text(digest)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def settings(servers: Addresses) -> Settings:
    return Settings(
        database_url=servers.database_url, broker_url=servers.broker_url, chunk_lines=2, requests_per_minute=1_000_000
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The API in a process of its own."""

    url: str
    pid: int


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    """The URL of the API, served by a process of its own on a loopback port."""
    return server.url


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Server]:
    assert settings.database_url
    assert settings.broker_url
    environment = {
        **os.environ,
        "DATABASE_URL": settings.database_url,
        "BROKER_URL": settings.broker_url,
        "GRISTMILL_REQUESTS_PER_MINUTE": str(settings.requests_per_minute),
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.contract.server", str(listening.fileno())]
        with subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[listening.fileno()]) as process:
            try:
                wait_for_health(url, process)
                yield Server(url, process.pid)
            finally:
                process.terminate()


def wait_for_health(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, "the server ended at once"
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=START_SECONDS) as answer:
                assert answer.status == 200
                return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the server did not start"


@pytest.fixture
def key(ledger: Engine) -> str:
    return database.run(ledger, lambda c: keys.create(c, name="contract"))


@pytest.fixture
def worker(ledger: Engine, settings: Settings) -> Iterator[ScriptedWorker]:
    with ScriptedWorker(ledger, settings, model="tiny") as running:
        yield running
