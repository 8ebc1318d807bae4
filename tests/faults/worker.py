"""What the tests kill: the API or a worker in a process of its own, with an engine that does what a prompt says.

The engine answers at once. A prompt with the word DIE ends its process as a fault in native code would; with NAP the
whole process stops before the answer, as on a machine that swaps, until it is told to go on; one with HANG is never
answered, and while it waits the engine shows no progress; one with SLOW takes a moment, and four are computed at once.
All else is the product's own.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import monotonic

import uvicorn

from benchmarks.fake_worker import FakeEngine
from jobs import database, logs
from jobs.api.app import create_app
from jobs.api.connections import Connection
from jobs.hints import Hints
from jobs.settings import Settings
from tests.faults import card
from worker import engine, process
from worker.engine import Completion, EngineSettings, Progress, Prompt
from worker.model import ModelFolder

ANSWER = (70, 71)
MODEL = "tiny"
SOCKET = "GM_TEST_SOCKET"
CLOCK = "GM_TEST_CLOCK"  # seconds by which the process's clock leaps to and fro
OURS = {SOCKET, CLOCK}
ASKED = "asked.log"  # in the data folder: a byte for each call of an engine
SLOW_SECONDS = 0.05


class ScriptedEngine(FakeEngine):
    """One that a prompt can tell to do worse. The model's tokens are the bytes of its text."""

    answer = ANSWER

    def __init__(self, folder: ModelFolder) -> None:
        self._tokenizer = folder.tokenizer()
        self.progress = Progress(beat_at=monotonic())
        self._slow = ThreadPoolExecutor(4)
        self._asked = (Path(os.environ["GRISTMILL_DATA_DIR"]) / ASKED).open("ab", buffering=0)

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """A future that is answered already, or never will be."""
        self._asked.write(b".")
        said = self._tokenizer.decode(list(prompt.token_ids))
        if "DIE" in said:
            os.kill(os.getpid(), signal.SIGKILL)
        if "NAP" in said:
            # To this thread: of a signal to the process another may hear first, and this one would go on for a while.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        if "HANG" in said:
            self.progress = replace(self.progress, running=1)
            return Future()
        if "SLOW" in said:
            return self._slow.submit(self._answer_late, prompt)
        return super().submit(prompt)

    def _answer_late(self, prompt: Prompt) -> list[Completion]:
        time.sleep(SLOW_SECONDS)
        return super().submit(prompt).result()


def load(folder: ModelFolder, _settings: EngineSettings | None = None) -> ScriptedEngine:
    return ScriptedEngine(folder)


def serve(kind: str, environment: Mapping[str, str], log: Path) -> None:
    """Be an `io` or a `model` worker, or the `api`, until killed; a `card` is a model on a card that fails. Any other
    kind is a real model, with its engine.
    """
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    if leap := float(environment.get(CLOCK, 0)):
        time.time = leaping(leap)
    settings = Settings.read({name: value for name, value in environment.items() if name not in OURS})
    logs.configure(settings.log_level)
    if kind == "api":
        serve_api(settings, environment[SOCKET])
    else:
        if played := {"model": load, "card": card.load}.get(kind):
            engine.load = played  # type: ignore[assignment]
        process.serve(settings, model=MODEL if played else kind, is_io=kind == "io")


def leaping(seconds: float) -> Callable[[], float]:
    """A clock that is wrong at each look, by so much, to one side and then to the other."""
    true, offsets = time.time, itertools.cycle([seconds, -seconds])
    return lambda: true() + next(offsets)


def serve_api(settings: Settings, socket: str) -> None:
    assert settings.database_url
    assert settings.broker_url
    app = create_app(database.connect(settings.database_url), Hints(settings.broker_url), settings)
    uvicorn.run(app, http=Connection, log_config=None, lifespan="off", uds=socket)
