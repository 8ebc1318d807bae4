"""From an uploaded file to a batch in progress: every line checked, every fault told, rows copied, chunks cut.

One transaction does it all; a process that dies in the middle leaves the batch as it was.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, text

from jobs import batches, database, files, leases, models, order
from jobs.batches import Batch
from jobs.contract import limits
from jobs.contract.batch import Fault
from jobs.contract.lines import InputLine, duplicate, other_model, parse, unknown_model
from jobs.errors import NotFound
from jobs.settings import Settings
from jobs.states import BatchState

logger = logging.getLogger(__name__)


class Invalid(Exception):
    """The file cannot become a batch; rolls the copied rows back."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(f"{len(faults)} faults")
        self.faults = faults


def ingest(engine: Engine, batch_id: int, *, owner: UUID, settings: Settings) -> str | None:
    """Bring a batch from `validating` to `in_progress` or `failed`; its model if it runs now.

    Does nothing for a batch in another state, or one that a live process is ingesting.
    """
    epoch = database.run(
        engine,
        lambda c: batches.take(
            c,
            batch_id,
            owner=owner,
            states=[BatchState.VALIDATING.value],
            silent_seconds=settings.lease_seconds,
        ),
    )
    if epoch is None:
        return None
    try:
        return _ingest(engine, batch_id, epoch, settings)
    except Invalid as invalid:
        faults = invalid.faults
        database.run(engine, lambda c: batches.fail(c, batch_id, epoch, faults))
        logger.info("batch failed validation", extra={"batch": batch_id, "faults": len(faults)})
        return None
    except BaseException:
        database.run(engine, lambda c: batches.give_back(c, batch_id, epoch))
        raise


def _ingest(engine: Engine, batch_id: int, epoch: int, settings: Settings) -> str | None:
    batch = database.run(engine, lambda c: batches.by_id(c, batch_id))
    assert batch is not None, "a leased batch exists"
    file_id = _input_file(engine, batch)
    known = {model.name for model in database.run(engine, models.find)}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '30min'"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
        check = Check(batch.endpoint, known)
        copy_requests(connection, batch_id, check.lines(files.read(engine, file_id)))
        check.conclude()
        chunks = order.chunks(check.keys, check.line_numbers, settings.chunk_lines)
        leases.insert(connection, batch_id, chunks)
        total = len(check.line_numbers)
        if not batches.begin(connection, batch_id, epoch, model=check.model, total=total):
            connection.rollback()  # cancelled meanwhile, or taken over
            return None
    logger.info("batch began", extra={"batch": batch_id, "lines": total, "chunks": len(chunks)})
    return check.model


def _input_file(engine: Engine, batch: Batch) -> str:
    file_id = batch.input_file_id or ""
    try:
        file = database.run(engine, lambda c: files.get(c, batch.project_id, file_id))
    except NotFound:
        file = None
    if file is None or file.purpose != "batch":
        message = (
            f"Cannot find file {file_id}, or organization {batch.project_id} does not have access to it."
            if file is None
            else f"File {file_id} has the purpose '{file.purpose}', and a batch reads files of purpose 'batch'."
        )
        raise Invalid([Fault(code="invalid_request", message=message, param="file_id")])
    return file.id


class Check:
    """Reads the lines of one file and keeps what the batch needs of them: faults, order, the one model.

    For each line it keeps 16 bytes of its custom_id and the 32 of its key; never the line itself.
    """

    def __init__(self, endpoint: str, known_models: set[str]) -> None:
        self.model = ""
        self.keys: list[bytes] = []
        self.line_numbers: list[int] = []
        self._endpoint = endpoint
        self._known_models = known_models
        self._seen: set[bytes] = set()
        self._faults: list[Fault] = []
        self._fault_count = 0

    def lines(self, parts: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
        """The good lines as (line_no, custom_id, text), until the first fault; faults are kept to the end."""
        for line_no, raw in enumerate(files.lines(parts, size_max=limits.LINE_SIZE_MAX), start=1):
            if raw is not None and not raw.strip():
                continue
            line = parse(raw, line_no, endpoint=self._endpoint)
            fault = line if isinstance(line, Fault) else self._fault_among_others(line, line_no)
            if fault is not None:
                self._note(fault)
                continue
            assert isinstance(line, InputLine)
            assert raw is not None
            self.keys.append(order.prefix_key(line.messages))
            self.line_numbers.append(line_no)
            if len(self.line_numbers) > limits.LINES_MAX:
                raise Invalid([_too_many_lines()])
            if not self._faults:
                yield line_no, line.custom_id, raw.decode()

    def conclude(self) -> None:
        """Raise Invalid unless there was at least one line and no fault."""
        if not self._faults and not self.line_numbers:
            self._note(
                Fault(
                    code="empty_file",
                    message="The input file is empty. Please ensure that the batch contains at least one request.",
                )
            )
        if untold := self._fault_count - len(self._faults):
            self._faults.append(
                Fault(code="more_errors", message=f"{untold} more lines have faults, which are not listed.")
            )
        if self._faults:
            raise Invalid(self._faults)

    def _fault_among_others(self, line: InputLine, line_no: int) -> Fault | None:
        digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            return duplicate(line.custom_id, line_no)
        self._seen.add(digest)
        if line.model not in self._known_models:
            return unknown_model(line.model, line_no)
        if not self.model:
            self.model = line.model
        return None if line.model == self.model else other_model(line.model, line_no)

    def _note(self, fault: Fault) -> None:
        self._fault_count += 1
        if len(self._faults) < limits.FAULTS_KEPT_MAX:
            self._faults.append(fault)


def copy_requests(connection: Connection, batch_id: int, rows: Iterable[tuple[int, str, str]]) -> None:
    """Write request rows, (line_no, custom_id, line) each, by binary COPY: some 200,000 a second."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with (
        driver.cursor() as cursor,
        cursor.copy("COPY request (batch_id, line_no, custom_id, line) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["int8", "int4", "text", "text"])
        for line_no, custom_id, line in rows:
            copy.write_row((batch_id, line_no, custom_id, line))


def _too_many_lines() -> Fault:
    return Fault(
        code="too_many_tasks",
        message=f"The input file has more than {limits.LINES_MAX} requests, the most a batch may have.",
    )
