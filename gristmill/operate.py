"""Runs a whole Gristmill from one process: the servers, the API, the workers; starts again what dies."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import sqlalchemy

from gristmill.embedded import EmbeddedError, EmbeddedServers
from gristmill.embedded.servers import Backoff
from gristmill.faults import Fault
from jobs import database, keys, migrate, models
from jobs.settings import Settings, environment_name
from worker import model

Say = Callable[[str], None]

CHECK_SECONDS = 1.0
POLL_SECONDS = 0.05
READY_SECONDS = 90
WAIT_SECONDS_MAX = 30  # a worker that dies while it loads its model costs the others a core each time
DEATHS_MAX = 5  # in a row, after which whoever waits for the program gives up
DRAIN_EXTRA_SECONDS = 10
NEWS_SECONDS = 2.0
LOG_BYTES_MAX = 16 * 1024 * 1024
SAID_BYTES = 4096


@dataclass(slots=True)
class Program:
    """One child process of ours: its command, its log, and how often it has died."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    deaths: int = 0
    _child: subprocess.Popen[bytes] | None = None
    _pace: Backoff = field(default_factory=lambda: Backoff(WAIT_SECONDS_MAX))

    def start(self) -> None:
        """Start it in a session of its own: a Ctrl-C at the terminal is meant for us alone."""
        self._shorten_log()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                # -P: a file in the user's folder must not pass for a module of ours.
                [sys.executable, "-P", "-m", "gristmill.cli", *self.arguments, "--parent-pid", str(os.getpid())],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pace.started(time.monotonic())

    def check(self, say: Say) -> None:
        """Start it again if it has died, at once and then ever more slowly."""
        now = time.monotonic()
        status = self._child.poll() if self._child else None
        if self._child is not None and status is None:
            self._pace.lives(now)
            if not self._pace.wait_seconds:
                self.deaths = 0
            return
        if self._child is not None:
            self._child = None
            self.deaths += 1
            # Who is killed has no last words.
            why = f": {self.last_words().removesuffix('.')}" if status and status > 0 else ""
            say(f"{self.name} has ended with status {status}{why}; starting it again (log: {self.log}).")
        if self._pace.is_due(now):
            self.start()

    def send(self, request: signal.Signals) -> None:
        """Signal the process if it lives."""
        if self.is_running():
            assert self._child is not None
            self._child.send_signal(request)

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._child is not None and self._child.poll() is None

    def last_words(self) -> str:
        """The last line it printed, in this life or the one before."""
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(end - SAID_BYTES, 0))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("Error: ") if lines else "it said nothing"

    def unread(self, position: int) -> tuple[bytes, int]:
        """What it printed from a place in its log on, and the place where to go on."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(position if position <= end else 0)
            return log.read(), log.tell()
        return b"", position

    def _shorten_log(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))


class Operation:
    """A running Gristmill. Ask `check` about once a second, or wait by `rest`."""

    def __init__(
        self, settings: Settings, *, key: str, servers: EmbeddedServers | None, say: Say, is_verbose: bool
    ) -> None:
        self.settings = settings
        self.key = key
        self._servers = servers
        self._say = say
        self._is_verbose = is_verbose
        self._programs: list[Program] = []
        self._shown: dict[str, int] = {}
        self._checked_at = 0.0
        self._logs = settings.data_dir / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *arguments: str) -> None:
        """Start one of our commands and keep it running."""
        program = Program(name, arguments, environment(self.settings), self._logs / f"{name.replace('/', '--')}.log")
        self._programs.append(program)
        self._shown[name] = program.log.stat().st_size if program.log.exists() else 0
        program.start()

    def start_workers(self, names: Sequence[str]) -> None:
        """The io worker, and one worker for each model."""
        self.start("io", "worker", "--io")
        for name in names:
            self.start(f"worker-{name}", "worker", "--model", name)

    def check(self) -> None:
        """Start again what has died."""
        self._checked_at = time.monotonic()
        if self._servers is not None:
            self._servers.check()
        for program in self._programs:
            program.check(self._say)
        if self._is_verbose:
            self._show_logs()

    def rest(self, seconds: float) -> None:
        """Let time pass, and check what must be checked meanwhile."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if now - self._checked_at >= CHECK_SECONDS:
                self.check()
            time.sleep(min(POLL_SECONDS, until - now))

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Wait for the API. Fault with the last words of a program that keeps dying."""
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready():
            self.refuse_hopeless()
            if time.monotonic() > deadline:
                raise Fault(f"The API was not ready after {READY_SECONDS} s; see {self._logs}.")
            self.rest(POLL_SECONDS * 2)

    def refuse_hopeless(self) -> None:
        """Fault if a program died so often in a row that it will not come up."""
        for program in self._programs:
            if program.deaths >= DEATHS_MAX:
                raise Fault(f"{program.name} cannot be started: {program.last_words()} (log: {program.log}).")

    def stop(self) -> None:
        """End everything: ask, wait as long as a worker may drain, then kill. A second Ctrl-C kills at once."""
        begun = time.monotonic()
        hurried: list[int] = []
        is_told = False
        with _signals_to(lambda *_: hurried.append(1)):
            self._send(signal.SIGTERM)
            while any(program.is_running() for program in self._programs):
                waited = time.monotonic() - begun
                if hurried or waited > self.settings.drain_seconds + DRAIN_EXTRA_SECONDS:
                    self._send(signal.SIGKILL)
                elif waited > NEWS_SECONDS and not is_told:
                    is_told = True
                    self._say("Stopping the workers; Ctrl-C does not wait for them.")
                time.sleep(POLL_SECONDS)
            if self._is_verbose:
                self._show_logs()

    def _send(self, request: signal.Signals) -> None:
        for program in self._programs:
            program.send(request)

    def _show_logs(self) -> None:
        for program in self._programs:
            said, self._shown[program.name] = program.unread(self._shown[program.name])
            for line in filter(None, said.decode(errors="replace").splitlines()):
                self._say(f"{program.name} | {line}")


@contextlib.contextmanager
def servers(settings: Settings, say: Say) -> Iterator[tuple[Settings, EmbeddedServers | None]]:
    """Settings that name both servers: the operator's, or embedded ones for as long as this lasts."""
    if settings.database_url and settings.broker_url:
        yield settings, None
        return
    embedded = EmbeddedServers(settings.data_dir, say=say)
    addresses = embedded.start()
    try:
        yield (
            settings.model_copy(
                update={
                    "database_url": settings.database_url or addresses.database_url,
                    "broker_url": settings.broker_url or addresses.broker_url,
                }
            ),
            embedded,
        )
    finally:
        # Nothing may come between: a Ctrl-C here would leave servers behind.
        with _signals_to(lambda *_: None):
            try:
                embedded.release()
            except EmbeddedError as error:
                say(str(error))


@contextlib.contextmanager
def operation(settings: Settings, *, say: Say, is_verbose: bool = False) -> Iterator[Operation]:
    """Servers, tables, models and the key are there; programs are started by the caller, and stopped at the end."""
    with stopped_by_signals(), servers(settings, say) as (settled, embedded):
        assert settled.database_url is not None
        migrate.upgrade(settled.database_url)
        with ledger(settled) as engine:
            names = [folder.name for folder in model.list_models(models_dir(settled))]
            database.run(engine, lambda c: models.register(c, names))
            key = own_key(engine, settled.data_dir / "api-key")
        running = Operation(settled, key=key, servers=embedded, say=say, is_verbose=is_verbose)
        try:
            yield running
        finally:
            running.stop()


@contextlib.contextmanager
def ledger(settings: Settings) -> Iterator[sqlalchemy.Engine]:
    """A short use of the database."""
    assert settings.database_url is not None
    engine = database.connect(settings.database_url, connections=2)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, end this process as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _signals_to(interrupt):
        yield


def kept_key(path: Path) -> str:
    """The key in a file of ours; empty where there is none. Fault where the file is another user's."""
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except PermissionError as error:
        raise Fault(
            f"{path} is another user's: start as that user, or choose another data folder with "
            f"{environment_name('data_dir')}."
        ) from error


def own_key(engine: sqlalchemy.Engine, path: Path) -> str:
    """The key of this data folder's owner, made anew where it is missing or no longer let in."""
    kept = kept_key(path)
    if kept and database.run(engine, lambda c: keys.is_valid(c, kept)):
        return kept
    made = database.run(engine, lambda c: keys.create(c, name="gristmill on this machine"))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{made}\n")
    draft.replace(path)
    return made


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a child: ours, with what we have settled."""
    assert settings.database_url is not None
    assert settings.broker_url is not None
    return os.environ | {
        "DATABASE_URL": settings.database_url,
        "BROKER_URL": settings.broker_url,
        environment_name("data_dir"): str(settings.data_dir),
        "PYTHONUNBUFFERED": "1",
    }


def models_dir(settings: Settings) -> Path:
    """Where this installation's models are."""
    return settings.data_dir / "models"


def no_model(folder: Path) -> str:
    """What to do where nothing is installed, or where we look in the wrong place."""
    return (
        f"No model is installed in {folder} ({environment_name('data_dir')} says where else to look); "
        "add one with: gristmill models add smollm2-135m"
    )


def installed(settings: Settings, wanted: Sequence[str]) -> list[str]:
    """The models to serve: those wanted, or all. Fault where one is not there, ModelError where it is damaged."""
    folder = models_dir(settings)
    names = [found.name for found in model.list_models(folder)]
    if not names:
        damaged = model.list_damaged(folder)
        raise damaged[0] if damaged else Fault(no_model(folder))
    for name in wanted:
        if name not in names:
            raise _absence(name, names, folder)
    return list(dict.fromkeys(wanted)) or names


def _absence(name: str, names: Sequence[str], folder: Path) -> Exception:
    try:
        model.open_named(name, folder)
    except model.DamagedModel as damage:
        return damage
    except model.UnknownModel:
        pass
    return Fault(
        f"The model '{name}' is not installed (installed: {', '.join(names)}); "
        f"add it with `gristmill models add SOURCE`, or choose another with --model."
    )


def refuse_taken_port(host: str, port: int) -> None:
    """Fault where the API could not listen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        raise Fault(
            f"The API cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port."
        ) from error


@contextlib.contextmanager
def _signals_to(receive: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, receive) for number in names}
    try:
        yield
    finally:
        for number, receiver in former.items():
            signal.signal(number, receiver)
