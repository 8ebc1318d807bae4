"""A system of processes for each test, on the servers that all tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from gristmill.embedded import Addresses, EmbeddedServers
from tests import tiny_model
from tests.faults.proxy import Network
from tests.faults.system import System, on_servers_of_its_own
from tests.faults.worker import MODEL
from tests.gristmill.embedded.conftest import copy, open_folder, remove


@pytest.fixture(scope="session")
def model_folder() -> Iterator[Path]:
    """A data folder with the model in it."""
    place = open_folder()
    tiny_model.write(place / "models" / MODEL)
    yield place
    remove(place)


@pytest.fixture
def system(ledger: Engine, servers: Addresses, model_folder: Path) -> Iterator[System]:
    running = System(ledger, servers, model_folder)
    yield running
    running.kill_all()


@pytest.fixture
def home(seed: Path) -> Iterator[Path]:
    """A data folder for servers that may be killed."""
    place = open_folder()
    yield copy(seed, place)
    remove(place)


@pytest.fixture
def own(home: Path, model_folder: Path) -> Iterator[tuple[System, EmbeddedServers]]:
    with on_servers_of_its_own(home, model_folder) as running:
        yield running


@pytest.fixture
def network(system: System) -> Iterator[tuple[Network, str]]:
    """A network, and where Postgres is for who goes through it."""
    place = open_folder()
    start, _, server = system.addresses.database_url.partition("?host=")
    network = Network(place / "n", Path(server.replace("%2F", "/")))
    yield network, f"{start}?host={place}/n"
    network.close()
    remove(place)
