"""Builds what tests of the ledger begin with: files, batches, leases."""

from collections.abc import Iterable
from uuid import UUID

import orjson
from sqlalchemy import Engine, text

from jobs import batches, database, files, intake, leases, workers
from jobs.batches import Batch
from jobs.contract.batch import ENDPOINT, CreateBatch
from jobs.keys import DEFAULT_PROJECT
from jobs.leases import Lease
from jobs.results import Result, Usage
from jobs.settings import Settings

SETTINGS = Settings(chunk_lines=4)


def line(custom_id: str, *, model: str = "tiny", content: str = "Hello", **body: object) -> bytes:
    """A good line of an input file."""
    messages = [{"role": "user", "content": content}]
    return orjson.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": model, "messages": messages, **body},
        }
    )


def upload(ledger: Engine, content: bytes, *, project_id: str = DEFAULT_PROJECT) -> files.File:
    writer = files.Writer(ledger, project_id=project_id, purpose="batch", filename="input.jsonl")
    writer.write(content)
    writer.finish()
    return database.run(ledger, lambda c: files.publish(c, writer, lifetime_seconds=None))


def create(ledger: Engine, file_id: str, *, key: str | None = None, window: str = "24h") -> Batch:
    order = CreateBatch(input_file_id=file_id, endpoint=ENDPOINT, completion_window=window)
    return database.run(ledger, lambda c: batches.create(c, DEFAULT_PROJECT, order, idempotency_key=key))


def forget_batches(ledger: Engine) -> None:
    """Begin anew, so that a judge looks at what comes now and not at hundreds of batches of before."""
    with ledger.begin() as connection:
        connection.execute(text("TRUNCATE batch, request, chunk, result, tally, worker, file, file_part"))


def worker(ledger: Engine) -> UUID:
    return database.run(ledger, lambda c: workers.register(c, kind="model", model="tiny"))


def ingest(ledger: Engine, lines: Iterable[bytes], **order: str) -> Batch:
    """A batch that has read these lines, in progress or failed."""
    batch = create(ledger, upload(ledger, b"\n".join(lines)).id, **order)
    intake.ingest(ledger, batch.id, owner=worker(ledger), settings=SETTINGS)
    return fetch(ledger, batch)


def fetch(ledger: Engine, batch: Batch) -> Batch:
    return database.run(ledger, lambda c: batches.get(c, batch.project_id, batch.public_id))


def claim(ledger: Engine, batch: Batch, owner: UUID, chunks: int = 1) -> list[Lease]:
    return database.run(
        ledger, lambda c: leases.claim(c, batch_id=batch.id, owner=owner, chunks=chunks, deadline_seconds=60)
    )


def results(line_numbers: Iterable[int], *, status: int = 200, body: str = '{"object":"x"}') -> list[Result]:
    return [Result(line_no, status, body, Usage(10, 4, 5)) for line_no in line_numbers]


def scalar(ledger: Engine, query: str, **values: object) -> object:
    with ledger.connect() as connection:
        return connection.execute(text(query), values).scalar_one()


def content(ledger: Engine, file_id: str | None) -> list[dict[str, object]]:
    """The lines of a stored file."""
    assert file_id is not None
    return [orjson.loads(one) for one in b"".join(files.read(ledger, file_id)).splitlines()]
