"""What all tests share: the demo's model, a real Postgres and a real Valkey, each started once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, text

from gristmill.embedded import Addresses, EmbeddedServers
from jobs import database, keys, migrate, models
from jobs.tables import metadata
from tests.gristmill.embedded.conftest import copy, open_folder, remove
from worker import model
from worker.model import ModelFolder

# Machines that run tests are shared and slow at times: how long an example takes says nothing. A change is judged by
# the same examples each time; `make chaos` draws others.
settings.register_profile(
    "shared",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CHAOS" not in os.environ,
)
settings.load_profile("shared")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for processes comes first: at the end, one of the workers would be alone with it."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/gristmill/", "tests/faults/")))


def models_dir() -> Path:
    """Where real models are kept from run to run."""
    kept = Path(__file__).parent.parent / ".gristmill" / "models"
    return Path(os.environ.get("TEST_MODELS_DIR", kept))


@pytest.fixture(scope="session")
def smollm2() -> ModelFolder:
    """SmolLM2-135M-Instruct as users run it; TEST_MODELS_DIR names another folder to keep it in."""
    return model.add("smollm2-135m", models_dir=models_dir())


@pytest.fixture(scope="session")
def smollm2_fp32() -> ModelFolder:
    """The same model without rounding."""
    return model.add("smollm2-135m", models_dir=models_dir(), name="smollm2-135m-fp32", precision="fp32")


@pytest.fixture(scope="session")
def seed() -> Iterator[Path]:
    """A data folder whose servers were started once and stopped, with the newest schema: to make one takes long.

    In a place that Postgres's own user may enter: for root, one in pytest's would leave its data in /var/lib.
    """
    place = open_folder()
    try:
        with EmbeddedServers(place / "data", say=print) as servers:
            migrate.upgrade(servers.addresses.database_url)
        yield place / "data"
    finally:
        remove(place)


@pytest.fixture(scope="session")
def servers(seed: Path) -> Iterator[Addresses]:
    """Embedded servers for the whole run. Nobody needs their data after a loss of power: nothing waits for a disk."""
    place = open_folder()
    try:
        data = copy(seed, place)
        with (data / "servers" / "postgres" / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write("fsync = off\n")
        with EmbeddedServers(data, say=lambda _: None) as running:
            yield running.addresses
    finally:
        remove(place)


@pytest.fixture(scope="session")
def connections(servers: Addresses) -> Iterator[Engine]:
    """One pool for all tests: connections that are open, and statements that are known already."""
    engine = database.connect(servers.database_url, connections=8)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(connections: Engine) -> Iterator[Engine]:
    """An empty ledger with the project `default` and the model `tiny`."""
    with connections.begin() as connection:
        connection.execute(text(EMPTY))
        keys.ensure_project(connection, keys.DEFAULT_PROJECT)
        models.register(connection, ["tiny"])
    yield connections
    if connections.pool.checkedout():  # type: ignore[attr-defined]
        connections.dispose()  # whoever still has one shall not keep it from the next test


# The locks make sure that no transaction of a killed process comes after it. TRUNCATE takes ten times as long.
EMPTY = "DO $$ BEGIN {} END $$".format(
    "".join(
        [f'LOCK "{table.name}"; ' for table in metadata.sorted_tables]
        + [f'DELETE FROM "{table.name}"; ' for table in reversed(metadata.sorted_tables)]
    )
)
