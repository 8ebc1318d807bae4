"""Postgres and Valkey on this machine: who starts them, who shares them and who turns them off."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from gristmill.embedded import folders, locks
from gristmill.embedded.daemon import Daemon
from gristmill.embedded.errors import EmbeddedError
from gristmill.embedded.postgres import Postgres
from gristmill.embedded.valkey import Valkey

START_SECONDS = 300  # a Postgres that recovers from a crash reads up to max_wal_size
NEWS_SECONDS = 5  # a wait longer than this is told
WAIT_SECONDS_MAX = 4  # all else waits for the servers, and a start that fails costs little
ELSEWHERE = Path("/var/lib")


@dataclass(frozen=True, slots=True)
class Addresses:
    """What the rest of the program connects to; the first holds a password, so it is never printed."""

    database_url: str = field(repr=False)
    """postgresql://gristmill:PASSWORD@/gristmill?host=/socket/folder"""
    broker_url: str
    """redis+socket:///path/to/valkey.sock?virtual_host=0"""


class Server(Protocol):
    """One of the two servers."""

    name: ClassVar[str]

    @property
    def daemon(self) -> Daemon:
        """Its life."""
        ...

    def launch(self) -> None:
        """Start it and return at once."""

    def is_ready(self) -> bool:
        """Whether it answers."""
        ...

    def stop(self) -> None:
        """End it."""


@dataclass(slots=True)
class Backoff:
    """When a process that died may be started again: at once, and if it keeps dying 1, 2, 4 ... s after its last start.

    So one that lived for longer than the longest wait is started again at once. Times are monotonic seconds.
    """

    wait_seconds_max: float
    wait_seconds: float = 0
    not_before: float = 0

    def is_due(self, now: float) -> bool:
        """Whether the wait is over."""
        return now >= self.not_before

    def started(self, now: float) -> None:
        """It was started: the next time waits twice as long."""
        self.wait_seconds = min(max(1, self.wait_seconds * 2), self.wait_seconds_max)
        self.not_before = now + self.wait_seconds

    def lives(self, now: float) -> None:
        """It was seen alive: after the wait and the longest wait once more, the past is forgotten."""
        if now >= self.not_before + self.wait_seconds_max:
            self.wait_seconds = 0


class EmbeddedServers:
    """This process's share in the servers of a data folder.

    Any number of processes may share them. Each holds a shared lock on `users.lock`, which the kernel drops
    when it dies; all that starts or stops a server happens under `start.lock`. Servers whose users were all
    killed stay, and the next to start adopts them.
    """

    def __init__(self, data_dir: Path, *, say: Callable[[str], None], elsewhere: Path = ELSEWHERE) -> None:
        """Nothing happens before `start`. `say` gets a sentence where something takes long or went wrong.

        `elsewhere` is where root's Postgres lives if its user cannot enter `data_dir` (see `folders`).
        """
        self._data_dir = data_dir.expanduser()
        self._say = say
        self._elsewhere = elsewhere
        self._servers: tuple[Server, ...] = ()
        self._paces: dict[str, Backoff] = {}
        self._users: int | None = None
        self._addresses: Addresses | None = None

    @property
    def addresses(self) -> Addresses:
        """Where the servers listen; they must have been started."""
        if self._addresses is None:
            raise RuntimeError("not started")
        return self._addresses

    def __enter__(self) -> Self:
        """Start, see `start`."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release, see `release`."""
        self.release()

    def start(self) -> Addresses:
        """Start both servers, or adopt those that run, and wait until they answer.

        EmbeddedError says in one sentence why they do not. Whatever it was, an error or a Ctrl-C, what was
        started here for nobody else is stopped again.
        """
        if self._users is not None:
            raise RuntimeError("started twice")
        try:
            return self._start()
        except OSError as error:
            self.release()
            raise EmbeddedError.of_system(error, self._data_dir) from error
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Start again what has died; call it about once a second. It does not wait until the server answers.

        Whatever goes wrong is said, and tried again later: a disk may have room tomorrow.
        """
        try:
            with locks.exclusive(self._start_lock, wait_seconds=0) as is_ours:
                # Another process may be at it, and this one's share may be over.
                if is_ours and self._users is not None:
                    for server in self._servers:
                        self._revive(server, self._paces[server.name], time.monotonic())
        except OSError as error:
            self._say(str(EmbeddedError.of_system(error, self._data_dir)))

    def release(self) -> None:
        """Give up this process's share; the last one out stops the servers. Safe to call again.

        EmbeddedError where one cannot be stopped.
        """
        if self._users is None:
            return
        try:
            with self._starting(), contextlib.ExitStack() as leaving:
                users, self._users = self._users, None
                leaving.callback(os.close, users)
                if locks.try_exclusive(users):
                    for server in self._servers:
                        leaving.callback(server.stop)  # each, even where another cannot be stopped
        except OSError as error:
            raise EmbeddedError.of_system(error, self._data_dir) from error

    @property
    def _start_lock(self) -> Path:
        return self._data_dir / "servers" / "start.lock"

    def _start(self) -> Addresses:
        folder = folders.servers(self._data_dir)
        self._data_dir = folder.parent
        with self._starting():
            self._users = locks.shared(folder / "users.lock")
            valkey = Valkey.of(folder)
            postgres = Postgres.of(folder, self._elsewhere)
            self._servers = (valkey, postgres)
            self._paces = {server.name: Backoff(WAIT_SECONDS_MAX) for server in self._servers}
            adopted = [server for server in self._servers if server.daemon.is_running()]
            for server in self._servers:
                if server not in adopted:
                    server.launch()
            for server in self._servers:
                self._await(server, is_adopted=server in adopted)
            self._addresses = Addresses(database_url=postgres.url, broker_url=valkey.url)
            return self._addresses

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Hold the lock of all starts and stops."""
        with locks.exclusive(self._start_lock, wait_seconds=NEWS_SECONDS) as is_ours:
            if is_ours:
                yield
                return
        self._say("Waiting for another process that starts or stops the servers of this data folder.")
        with locks.exclusive(self._start_lock, wait_seconds=START_SECONDS) as is_ours:
            if not is_ours:
                raise EmbeddedError(f"Another process has held {self._start_lock} for {START_SECONDS} s; is it stuck?")
            yield

    def _await(self, server: Server, *, is_adopted: bool) -> None:
        begun = time.monotonic()
        told = False
        while not server.is_ready():
            waited = time.monotonic() - begun
            if not server.daemon.is_running():
                if not is_adopted:
                    raise EmbeddedError(_could_not_start(server))
                is_adopted = False  # we found the last of it dying
                server.launch()
            if waited > START_SECONDS:
                raise EmbeddedError(f"{server.name} runs but does not answer; see {server.daemon.log}.")
            if waited > NEWS_SECONDS and not told:
                told = True
                self._say(f"{server.name} is not ready yet: after a crash it first reads its log again.")
            time.sleep(locks.POLL_SECONDS)

    def _revive(self, server: Server, pace: Backoff, now: float) -> None:
        if server.daemon.is_running():
            pace.lives(now)
        elif pace.is_due(now):
            fault = server.daemon.fault()
            self._say(f"{server.name} has died{f' ({fault})' if fault else ''}; starting it again.")
            pace.started(now)
            try:
                server.launch()
            except EmbeddedError as error:
                self._say(str(error))


def _could_not_start(server: Server) -> str:
    words = server.daemon.fault() or server.daemon.last_line()
    return f"{server.name} could not be started: {words} (log: {server.daemon.log})."
