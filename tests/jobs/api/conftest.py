"""The app over a real ledger: called in this process, and over a socket by the real `openai` client."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from jobs import database, keys
from jobs.api.app import create_app
from jobs.api.connections import Connection
from jobs.settings import Settings

FILE_SIZE_MAX = 3 * 1024 * 1024


@dataclass
class RecordedHints:
    """Hints that nobody follows."""

    sent: list[tuple[str, object]] = field(default_factory=list)

    def ingest(self, batch_id: int) -> None:
        self.sent.append(("ingest", batch_id))

    def pump(self, model: str) -> None:
        self.sent.append(("pump", model))

    def finalize(self, batch_id: int) -> None:
        self.sent.append(("finalize", batch_id))


@pytest.fixture
def hints() -> RecordedHints:
    return RecordedHints()


@pytest.fixture
def key(ledger: Engine) -> str:
    return database.run(ledger, lambda c: keys.create(c, name="test"))


@pytest.fixture
def app(ledger: Engine, hints: RecordedHints) -> FastAPI:
    return create_app(ledger, hints, Settings(file_size_max=FILE_SIZE_MAX))


@pytest.fixture
def client(app: FastAPI, key: str) -> Iterator[TestClient]:
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI, ledger: Engine) -> Iterator[TestClient]:
    """A caller of another project."""
    other = database.run(ledger, lambda c: keys.create(c, name="test", project_id="other"))
    with TestClient(app, headers={"authorization": f"Bearer {other}"}) as client:
        yield client


@contextmanager
def served(app: FastAPI, listening: socket.socket, **options: int) -> Iterator[uvicorn.Server]:
    """The app behind a real server on a socket, with options of uvicorn."""
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, lifespan="off", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        thread.join(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    """The app behind a real server on a loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listening, served(app, listening):
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def sdk(address: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as sdk:
        yield sdk
