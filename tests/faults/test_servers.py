"""Both servers killed under load, again and again: the workers go on, and the ledger is sound."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from gristmill.embedded import EmbeddedServers
from jobs import database, keys
from jobs.contract.batch import ENDPOINT
from jobs.states import BatchState
from tests.faults.clients import Client, Seen
from tests.faults.system import LENGTH, System
from tests.faults.test_crashes import client
from tests.jobs import making

KILLS = {"postgres": 2, "valkey": 4} if LENGTH == 1 else {"postgres": 12, "valkey": 12}
LINES = 300
LEASE_SECONDS = 8


def pid_of(home: Path, server: str) -> str:
    return (home / "servers" / f"{server}.pid").read_text()


def signal_to(home: Path, server: str, number: signal.Signals) -> None:
    os.kill(int(pid_of(home, server)), number)


def answered(ledger: Engine) -> int:
    """How many lines have an answer, as soon as there is a database to ask; -1 until then."""
    try:
        with ledger.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM result")).scalar_one())
    except OperationalError:
        return -1


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_that_is_killed_again_and_again_costs_nothing(
    own: tuple[System, EmbeddedServers], home: Path, server: str
) -> None:
    """Nor does it cost a caller more than another try: whoever asks meanwhile is told to come again, never 500."""
    system, servers = own
    batch = making.ingest(system.ledger, [making.line(f"r{n}", content=f"SLOW {n}") for n in range(LINES)])
    system.start_all()
    system.start("api")
    system.until(system.is_served)
    key = database.run(system.ledger, lambda c: keys.create(c, name="faults"))
    seen, is_over = Seen(), threading.Event()
    client = Client(system.socket, key, seen)
    caller = threading.Thread(target=client.order_until, args=(is_over, 1), daemon=True)
    caller.start()
    for kill in range(1, KILLS[server] + 1):
        system.until(lambda: answered(system.ledger) > 0)
        before, killed = answered(system.ledger), pid_of(home, server)
        signal_to(home, server, signal.SIGKILL)

        def goes_on(before: int = before, killed: str = killed) -> bool:
            servers.check()
            return pid_of(home, server) != killed and answered(system.ledger) > before

        system.until(goes_on)
        assert all(process.is_alive() for process in system.processes), f"after kill {kill}"
    is_over.set()
    caller.join(system.deadline_seconds)
    client.close()
    assert (caller.is_alive(), seen.broken) == (False, [])
    ended = system.until_ended(batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, LINES, 0)
    assert system.faults() == []


def test_a_database_that_is_away_for_longer_than_a_lease_is_no_death_of_its_workers(
    own: tuple[System, EmbeddedServers], home: Path
) -> None:
    system, servers = own
    system.patience |= {"GRISTMILL_LEASE_SECONDS": str(LEASE_SECONDS), "GRISTMILL_WATCHDOG_SECONDS": "600"}
    making.ingest(system.ledger, [making.line("a", content="HANG"), making.line("b")])
    system.start_all()
    system.start("api")
    system.until(lambda: answered(system.ledger) == 1)
    system.until(system.is_served)
    with client(system) as caller:
        signal_to(home, "postgres", signal.SIGKILL)
        away = time.monotonic()
        refused = caller.get("/v1/batches", timeout=60)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    time.sleep(max(0, away + 1.2 * LEASE_SECONDS - time.monotonic()))
    servers.check()
    system.until(lambda: answered(system.ledger) == 1)
    looked = "SELECT next_at > pg_postmaster_start_time() + interval '9 s' FROM tick WHERE name = 'leases watched'"
    system.until(lambda: bool(making.scalar(system.ledger, looked)))
    assert making.scalar(system.ledger, "SELECT state || ' ' || crashes FROM chunk") == "leased 0"
    assert all(process.is_alive() for process in system.processes)


def test_a_broker_that_hangs_keeps_nobody_waiting(own: tuple[System, EmbeddedServers], home: Path) -> None:
    system, _ = own
    file = making.upload(system.ledger, making.line("a"))
    system.start_all()
    system.start("api")
    system.until(system.is_served)
    ready = "SELECT count(*) FROM worker WHERE kind IN ('io', 'model')"
    system.until(lambda: making.scalar(system.ledger, ready) == 2)
    signal_to(home, "valkey", signal.SIGSTOP)
    try:
        order = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
        with client(system) as caller:
            made = caller.post("/v1/batches", json=order, timeout=5).json()["id"]
            system.until(lambda: caller.get(f"/v1/batches/{made}", timeout=5).json()["status"] == "completed")
    finally:
        signal_to(home, "valkey", signal.SIGCONT)
