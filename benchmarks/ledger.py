"""What the ledger costs without a model: real Postgres, Valkey, API and workers, and an engine that answers at once.

    python -m benchmarks.ledger                    50,000 lines, 1,000,000 lines, and an upload of 200 MB
    python -m benchmarks.ledger --lines 50000 --workers 2

Prints the table of docs/performance.md. The servers are of its own, in a folder that is removed.
"""

import argparse
import os
import random
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import orjson
from sqlalchemy import Engine, text

from benchmarks.processes import Memory, Poll, children, parent_of, processor_seconds
from gristmill.embedded import Addresses, EmbeddedServers
from jobs import database, keys, migrate, models
from jobs.contract.batch import ENDPOINT
from worker import model

MODEL = "smollm2-135m"
MODELS_DIR = Path(__file__).parent.parent / ".gristmill" / "models"
BOUNDARY = "ledger-benchmark"
BLOCK_SIZE = 1 << 20
TERMINAL = {"completed", "failed", "expired", "cancelled"}


@dataclass(frozen=True, slots=True)
class System:
    """A running Gristmill: where it is, whose key opens it, and its processes."""

    host: str
    port: int
    key: str
    processes: dict[str, int]
    postmaster: int
    ledger: Engine

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def processor_seconds(self) -> dict[str, float]:
        """What each process has used so far, and all of Postgres together."""
        postgres = sum(map(processor_seconds, [self.postmaster, *children(self.postmaster)]))
        return {name: processor_seconds(pid) for name, pid in self.processes.items()} | {"Postgres": postgres}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=600)


def line(number: int, words: Sequence[str] = ()) -> bytes:
    """A short request of about 180 bytes, and some more `words`."""
    message = {"role": "user", "content": " ".join([f"What is {number} plus {number % 7}?", *words])}
    body = {"model": MODEL, "messages": [message], "max_tokens": 8}
    request = {"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}
    return orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)


def write(path: Path, lines: int, words: int = 0) -> Path:
    """A file of requests, each with so many more words: of 4,000 different ones, they pack about as well as prose."""
    chance = random.Random(1)
    known = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(4000)]
    with path.open("wb") as file:
        for number in range(lines):
            file.write(line(number, chance.choices(known, k=words)))
    return path


def upload(system: System, path: Path) -> tuple[str, float]:
    """Send a file as a form, by blocks; its id and the seconds until the answer."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()

    def content() -> Iterator[bytes]:
        yield head
        with path.open("rb") as file:
            while block := file.read(BLOCK_SIZE):
                yield block
        yield tail

    size = len(head) + path.stat().st_size + len(tail)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Content-Length": str(size)}
    with system.client() as client:
        began = time.perf_counter()
        answer = client.post("/v1/files", content=content(), headers=headers)
        seconds = time.perf_counter() - began
    answer.raise_for_status()
    return answer.json()["id"], seconds


def download(system: System, file_id: str, lines: int) -> None:
    """Fetch a result file and see that every line is in it once."""
    found, rest = bytearray(lines), b""
    with system.client() as client, client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes(BLOCK_SIZE):
            *whole, rest = (rest + part).split(b"\n")
            for one in whole:
                result = orjson.loads(one)
                assert result["response"]["status_code"] == 200, result
                found[int(result["custom_id"].removeprefix("request-"))] += 1
    assert not rest
    assert found == b"\1" * lines, "a line is missing or doubled"


def batch_of(system: System, path: Path, lines: int) -> None:
    """One batch from upload to the last byte of its result, with a line of the table for what was seen."""
    began, used = time.perf_counter(), system.processor_seconds()
    file_id, _ = upload(system, path)
    with system.client() as client:
        order = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        batch_id = client.post("/v1/batches", json=order).raise_for_status().json()["id"]
    memory = Memory(system.processes, system.postmaster)
    with memory, Poll(system.host, system.port, f"/v1/batches/{batch_id}", system.key) as poll:
        assert isinstance(poll, Poll)
        batch = wait_for_end(poll)
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": lines, "completed": lines, "failed": 0}, batch
    download(system, batch["output_file_id"], lines)
    seconds = time.perf_counter() - began
    print(f"\n{lines:,} lines, upload to downloaded result: {seconds:.1f} s ({lines / seconds:,.0f} lines/s)")
    answering = answering_seconds(system, batch_id)
    print(f"  from the first chunk that could be claimed to the last result committed: {answering:.1f} s", end="")
    print(f" ({lines / answering:,.0f} results/s)")
    print(
        f"  validated {batch['in_progress_at'] - batch['created_at']} s, answered "
        f"{batch['finalizing_at'] - batch['in_progress_at']} s, written "
        f"{batch['completed_at'] - batch['finalizing_at']} s (whole seconds of the batch)"
    )
    for name, ended in system.processor_seconds().items():
        print(f"  processor time of {name}: {(ended - used[name]) / lines * 1e6:.0f} us a line")
    for name, peak in memory.peak_mb.items():
        print(f"  peak memory of {name}: {peak:.0f} MB")
    latency = poll.latency
    shares = ", ".join(f"p{share:g} {latency.at(share / 100):.1f} ms" for share in (50, 95, 99))
    print(f"  GET of the batch, {len(latency.samples)} times: {shares}, max {max(latency.samples):.1f} ms")


def answering_seconds(system: System, batch_id: str) -> float:
    """From the commit that made a batch's chunks to the one behind that of its last result; the database's clock."""
    query = text("SELECT extract(epoch FROM finalizing_at - in_progress_at) FROM batch WHERE public_id = :id")
    return float(database.run(system.ledger, lambda c: c.execute(query, {"id": batch_id}).scalar_one()))


def wait_for_end(poll: Poll) -> dict[str, object]:
    """The batch as it ended."""
    deadline = time.monotonic() + 3600
    while True:
        batch = orjson.loads(poll.body or b"{}")
        if batch.get("status") in TERMINAL:
            ended: dict[str, object] = batch
            return ended
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)


@contextmanager
def running(folder: Path, workers: int) -> Iterator[System]:
    """A whole Gristmill in an empty folder."""
    (folder / "models").symlink_to(MODELS_DIR)
    with EmbeddedServers(folder, say=print) as servers:
        addresses = servers.addresses
        migrate.upgrade(addresses.database_url)
        ledger = database.connect(addresses.database_url, connections=2)
        key = database.run(ledger, partial(keys.create, name="benchmark"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with programs(addresses, folder, port, workers) as started:
            system = System("127.0.0.1", port, key, started, postmaster(ledger), ledger)
            wait_until_ready(system, ledger)
            yield system
        ledger.dispose()


@contextmanager
def programs(addresses: Addresses, folder: Path, port: int, workers: int) -> Iterator[dict[str, int]]:
    """The API, the io worker and the workers with the fake engine; their process ids by name."""
    environment = os.environ | {
        "DATABASE_URL": addresses.database_url,
        "BROKER_URL": addresses.broker_url,
        "GRISTMILL_DATA_DIR": str(folder),
        "GRISTMILL_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "gristmill.cli"]
    commands = {
        "API": [*command, "api", "--port", str(port)],
        "io worker": [*command, "worker", "--io"],
    }
    for number in range(1, workers + 1):
        commands[f"model worker {number}"] = [sys.executable, "-m", "benchmarks.fake_worker", MODEL]
    started = {name: subprocess.Popen(arguments, env=environment) for name, arguments in commands.items()}
    try:
        yield {name: process.pid for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(timeout=60)


def postmaster(ledger: Engine) -> int:
    """The process that all of Postgres' others are children of."""
    backend = database.run(ledger, lambda c: c.execute(text("SELECT pg_backend_pid()")).scalar_one())
    return parent_of(backend)


def wait_until_ready(system: System, ledger: Engine) -> None:
    deadline = time.monotonic() + 120
    while not is_ready(system, ledger):
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.1)


def is_ready(system: System, ledger: Engine) -> bool:
    try:
        httpx.get(f"{system.url}/healthz").raise_for_status()
    except httpx.HTTPError:
        return False
    return MODEL in {found.name for found in database.run(ledger, models.find)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="*", default=[50_000, 1_000_000], help="sizes of the batches")
    parser.add_argument("--upload-mb", type=int, default=200, help="size of the upload; 0 for none")
    parser.add_argument("--workers", type=int, default=1, help="model workers, a process each")
    chosen = parser.parse_args(arguments)
    model.add(MODEL, MODELS_DIR)
    with tempfile.TemporaryDirectory(prefix="ledger-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # as root, Postgres runs as another user, who must get through
        (folder / "data").mkdir()
        with running(folder / "data", chosen.workers) as system:
            for lines in chosen.lines:
                batch_of(system, write(folder / f"{lines}.jsonl", lines), lines)
            if chosen.upload_mb:
                path = write(folder / "large.jsonl", chosen.upload_mb * 1000, words=127)
                for _ in range(3):
                    _, seconds = upload(system, path)
                    rate = path.stat().st_size / 1e6 / seconds
                    print(f"\nupload of {path.stat().st_size / 1e6:.0f} MB: {seconds:.2f} s, {rate:.0f} MB/s")


if __name__ == "__main__":
    main()
