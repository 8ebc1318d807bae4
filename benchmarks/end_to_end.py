"""How much of a run of 200 lines is spent outside the engine: the whole system against the bare engine.

`make bench-system` runs it: the same 200 requests are answered once through upload, ledger, Celery worker and
download, on embedded servers of their own, and once by the engine alone, with the same threads and slots; they
take turns, three times each.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import orjson
from sqlalchemy import Engine as Ledger
from sqlalchemy import select

from gristmill.embedded import Addresses, EmbeddedServers
from jobs import batches, database, files, keys, migrate
from jobs.contract.batch import ENDPOINT, CreateBatch
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.states import TERMINAL
from jobs.tables import worker
from worker import engine, model
from worker.chat import Chat

MODEL = "smollm2-135m"
LINES = 200
REPEATS = 3
TOPICS = ("rivers", "bread", "copper", "sailing", "the moon", "wool", "bees", "glass", "salt", "maps")
SYSTEM = "You are a careful assistant. Answer in plain words, and say so when you do not know."


@dataclass(frozen=True, slots=True)
class Figures:
    seconds: float
    prompt_tokens: int
    completion_tokens: int

    def row(self, name: str) -> str:
        into, out = self.prompt_tokens / self.seconds, self.completion_tokens / self.seconds
        tokens = f"{self.prompt_tokens} | {self.completion_tokens} | {into:.0f} | {out:.0f}"
        return f"| {name} | {self.seconds:.1f} | {tokens} |"


def bodies() -> list[dict[str, object]]:
    """200 requests with one system prompt and answers of 16 to 48 tokens, the same at every run."""
    pick = random.Random(7)
    return [
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Tell me fact number {n} about {pick.choice(TOPICS)}."},
            ],
            "max_tokens": pick.choice((16, 32, 48)),
            "temperature": 0,
        }
        for n in range(LINES)
    ]


def whole_system(addresses: Addresses, data_dir: Path) -> Figures:
    """From the first byte of the upload to the last of the download."""
    ledger, hints = database.connect(addresses.database_url), Hints(addresses.broker_url)
    with workers(addresses, data_dir):
        wait_until_served(ledger)
        started = monotonic()
        writer = files.Writer(ledger, project_id=keys.DEFAULT_PROJECT, purpose="batch", filename="bench.jsonl")
        for n, body in enumerate(bodies()):
            line = {"custom_id": f"line-{n}", "method": "POST", "url": ENDPOINT, "body": body}
            writer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        writer.finish()
        file = database.run(ledger, lambda c: files.publish(c, writer, lifetime_seconds=None))
        order = CreateBatch(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        batch = database.run(ledger, lambda c: batches.create(c, keys.DEFAULT_PROJECT, order, idempotency_key=None))
        hints.ingest(batch.id)
        while batch.state not in TERMINAL:
            sleep(0.1)
            batch = database.run(
                ledger, partial(batches.get, project_id=keys.DEFAULT_PROJECT, public_id=batch.public_id)
            )
        assert batch.completed == LINES, batch
        assert batch.output_file_id is not None
        assert sum(part.count(b"\n") for part in files.read(ledger, batch.output_file_id)) == LINES
        seconds = monotonic() - started
    hints.close()
    ledger.dispose()
    return Figures(seconds, batch.prompt_tokens, batch.completion_tokens)


def bare_engine(folder: model.ModelFolder, settings: Settings) -> Figures:
    """The same requests given to the engine at once, tokenized beforehand."""
    chosen = engine.EngineSettings(
        threads=settings.threads, context_tokens_max=settings.sequence_tokens, slots_max=settings.slots
    )
    with engine.load(folder, chosen) as inference:
        chat = Chat(folder, context_tokens=inference.context_tokens, fingerprint="fp_bench")
        now = datetime.now(UTC)
        prompts = [chat.prompt(body, seed_text=str(n), created=now).prompt for n, body in enumerate(bodies())]
        started = monotonic()
        answers = [future.result()[0] for future in [inference.submit(prompt) for prompt in prompts]]
        seconds = monotonic() - started
    return Figures(seconds, sum(a.prompt_tokens for a in answers), sum(a.output_tokens for a in answers))


@contextmanager
def workers(addresses: Addresses, data_dir: Path) -> Iterator[None]:
    """One io worker and one model worker, as `gristmill up` starts them."""
    environment = os.environ | {
        "DATABASE_URL": addresses.database_url,
        "BROKER_URL": addresses.broker_url,
        "GRISTMILL_DATA_DIR": str(data_dir),
        "GRISTMILL_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "gristmill.cli", "worker"]
    running = [subprocess.Popen([*command, *kind], env=environment) for kind in (["--io"], ["--model", MODEL])]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=60)


def wait_until_served(ledger: Ledger) -> None:
    """Until this run's model worker has loaded its model and said so; the model is known from runs before."""
    deadline = monotonic() + 120
    while not database.run(ledger, lambda c: c.scalar(select(worker.c.id).where(worker.c.model == MODEL))):
        assert monotonic() < deadline, "the model worker did not start"
        sleep(0.1)


def main() -> None:
    settings = Settings.read({})
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = Path(temporary)
        folder = model.add(MODEL, Path(__file__).parent.parent / ".gristmill" / "models")
        (data_dir / "models").symlink_to(folder.path.parent)
        with EmbeddedServers(data_dir, say=print) as servers:
            migrate.upgrade(servers.addresses.database_url)
            ledger = database.connect(servers.addresses.database_url)
            database.run(ledger, lambda c: keys.ensure_project(c, keys.DEFAULT_PROJECT))
            ledger.dispose()
            pairs = [(whole_system(servers.addresses, data_dir), bare_engine(folder, settings)) for _ in range(REPEATS)]
    print("| 200 lines | seconds | tokens in | tokens out | in/s | out/s |\n|---|---|---|---|---|---|")
    for system, bare in pairs:
        print(system.row("whole system"))
        print(bare.row("bare engine"))
    shares = sorted(bare.seconds / system.seconds for system, bare in pairs)
    print(f"system / bare engine, of tokens a second: {', '.join(f'{share:.1%}' for share in shares)}")


if __name__ == "__main__":
    main()
