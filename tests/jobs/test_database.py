"""Transactions, and connections that were cut while nobody used them."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from gristmill.embedded import Addresses
from jobs import database
from jobs.api.app import create_app
from jobs.settings import Settings
from tests.jobs.api.conftest import RecordedHints


def cut_connections(servers: Addresses, application: str = "gristmill") -> int:
    """End all others' connections, as a restart of Postgres does; how many there were."""
    there = database.connect(servers.database_url, connections=1)
    cut = text("""
        SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
         WHERE pid <> pg_backend_pid() AND application_name = :name
    """)
    ended: int = database.run(there, lambda c: c.execute(cut, {"name": application}).scalar_one())
    there.dispose()
    return ended


def add_project_and_fail(connection: Connection) -> None:
    connection.execute(text("INSERT INTO project (id) VALUES ('new')"))
    connection.execute(text("SELECT nothing"))


def projects(engine: Engine) -> list[str]:
    query = text("SELECT id FROM project ORDER BY id")
    return database.run(engine, lambda c: list(c.execute(query).scalars()))


def test_autocommit_keeps_what_a_transaction_takes_back(ledger: Engine) -> None:
    with pytest.raises(ProgrammingError):
        database.run_autocommit(ledger, add_project_and_fail)
    assert projects(ledger) == ["default", "new"]


def test_a_connection_used_for_autocommit_is_transactional_again(ledger: Engine) -> None:
    ledger.dispose()  # of those that other tests opened none shall be used
    database.run_autocommit(ledger, lambda c: c.execute(text("SELECT 1")))
    with pytest.raises(ProgrammingError):
        database.run(ledger, add_project_and_fail)
    assert projects(ledger) == ["default"]
    assert ledger.pool.checkedin() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("run", [database.run, database.run_autocommit])
def test_work_goes_on_when_connections_were_cut(
    ledger: Engine, servers: Addresses, run: Callable[[Engine, Callable[[Connection], object]], object]
) -> None:
    projects(ledger)
    assert cut_connections(servers) >= 1
    assert run(ledger, lambda c: c.execute(text("SELECT 7")).scalar_one()) == 7


@pytest.fixture
def app(ledger: Engine) -> FastAPI:
    return create_app(ledger, RecordedHints(), Settings())  # type: ignore[arg-type]


def test_a_server_whose_idle_connections_were_cut_is_healthy(app: FastAPI, servers: Addresses) -> None:
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        assert cut_connections(servers) >= 1
        assert client.get("/healthz").status_code == 200
