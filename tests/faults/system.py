"""Processes that can be killed, on one ledger, and the judge that looks at what they leave."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import Engine, text

from gristmill.embedded import Addresses, EmbeddedServers
from jobs import audit, database, keys, migrate, models
from jobs.batches import Batch
from jobs.failpoints import VARIABLE, Point
from jobs.settings import Settings
from jobs.states import TERMINAL
from tests.faults import worker
from tests.jobs import making

LENGTH = int(os.environ.get("CHAOS", "1"))  # `make chaos` goes on for longer
DEADLINE_SECONDS = 90  # of a machine that has other work too
POLL_SECONDS = 0.02
# Short, so that what happens after them happens within a test.
PATIENCE = {
    "GRISTMILL_CHUNK_LINES": "4",
    "GRISTMILL_LEASE_SECONDS": "2",
    "GRISTMILL_HEARTBEAT_SECONDS": "0.2",
    "GRISTMILL_SWEEP_SECONDS": "0.1",
    "GRISTMILL_FLUSH_SECONDS": "0.05",
    "GRISTMILL_DRAIN_SECONDS": "0.2",
    "GRISTMILL_WATCHDOG_SECONDS": "1",
    "GRISTMILL_NICENESS": "0",
}
# Its children are born with everything imported, and without a thread.
NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["tests.faults.worker"])


@dataclass
class System:
    """Starts and kills processes; `folder` has the model, the logs and the API's socket."""

    ledger: Engine
    addresses: Addresses
    folder: Path
    broker_url: str = ""
    patience: dict[str, str] = field(default_factory=lambda: dict(PATIENCE))
    deadline_seconds: float = DEADLINE_SECONDS
    processes: list[BaseProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        for log in self.folder.glob("*.log"):
            log.unlink()

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    def start(
        self, kind: str, *, dies_at: Point | None = None, arrival: int = 1, database_url: str = ""
    ) -> BaseProcess:
        """A new process: `io`, `model`, `api` or the name of a real model; it dies when it gets to a point for the
        nth time, and finds Postgres at `database_url` where that is not where all find it.
        """
        environment = {
            **self.patience,
            "DATABASE_URL": database_url or self.addresses.database_url,
            "BROKER_URL": self.broker_url or self.addresses.broker_url,
            "GRISTMILL_DATA_DIR": str(self.folder),
            worker.SOCKET: str(self.socket),
            VARIABLE: f"{dies_at.value}:{arrival}" if dies_at else "",
        }
        process = NURSERY.Process(target=worker.serve, args=(kind, environment, self.folder / f"{kind}.log"))
        process.start()
        self.processes.append(process)
        return process

    def start_all(self) -> None:
        self.start("io")
        self.start("model")

    def is_served(self) -> bool:
        """Whether the API listens."""
        with socket.socket(socket.AF_UNIX) as line:
            return line.connect_ex(str(self.socket)) == 0

    def kill_all(self) -> None:
        """kill -9 what we started, also what is stopped."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(DEADLINE_SECONDS)

    def said(self, kind: str) -> str:
        """The log of all processes of a kind."""
        log = self.folder / f"{kind}.log"
        return log.read_text() if log.exists() else ""

    def until_dead(self, process: BaseProcess) -> int:
        """The exit status of a process that is to die by itself; a signal is negative."""
        process.join(DEADLINE_SECONDS)
        assert process.exitcode is not None, "it lives"
        return process.exitcode

    def until_ended(self, batch: Batch) -> Batch:
        """The batch when it has ended. Whatever brought it there is killed: only Postgres is looked at then."""
        self.until(lambda: making.fetch(self.ledger, batch).state in TERMINAL)
        self.kill_all()
        return making.fetch(self.ledger, batch)

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.deadline_seconds
        while not is_so():
            assert time.monotonic() < deadline, f"{self.said('io')[-3000:]}\n{self.said('model')[-3000:]}"
            time.sleep(POLL_SECONDS)

    @property
    def asked(self) -> int:
        """How often the engines were asked for a line."""
        path = self.folder / worker.ASKED
        return path.stat().st_size if path.exists() else 0

    def faults(self) -> list[str]:
        """What the judge finds; and an engine is asked for no line more often than its chunk was leased."""
        found = list(audit.faults(self.ledger, Settings()))
        with self.ledger.connect() as connection:
            leased = connection.execute(text("SELECT coalesce(sum(epoch * cardinality(line_numbers)), 0) FROM chunk"))
            if self.asked > (most := leased.scalar_one()):
                found.append(f"The engines were asked {self.asked} times for lines that were leased {most} times.")
        return found


@contextmanager
def on_servers_of_its_own(
    data: Path, folder: Path, *, connections: int = 4
) -> Iterator[tuple[System, EmbeddedServers]]:
    """A system on servers in `data` that may be killed, with the models and logs in `folder`."""
    with EmbeddedServers(data, say=lambda _: None) as servers:
        migrate.upgrade(servers.addresses.database_url)
        ledger = database.connect(servers.addresses.database_url, connections=connections)
        with ledger.begin() as connection:
            keys.ensure_project(connection, keys.DEFAULT_PROJECT)
            models.register(connection, [worker.MODEL])
        system = System(ledger, servers.addresses, folder)
        try:
            yield system, servers
        finally:
            system.kill_all()
            ledger.dispose()
