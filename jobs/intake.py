"""From an uploaded file to a batch in progress: every line checked, every fault told, rows copied, chunks cut.

One transaction does it all; a process that dies in the middle leaves the batch as it was.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, text

from jobs import batches, database, failpoints, files, leases, models, order, quotas
from jobs.batches import Batch
from jobs.contract import limits
from jobs.contract.batch import Fault
from jobs.contract.lines import (
    InputLine,
    damaged_file,
    duplicate,
    empty_file,
    more_faults,
    no_file,
    no_room,
    other_model,
    parse,
    too_many_blank_lines,
    too_many_lines,
    unknown_model,
)
from jobs.errors import NotFound
from jobs.failpoints import Point
from jobs.files import File
from jobs.seen import Seen
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
    failpoints.reach(Point.INGEST_TAKEN)
    batch = database.run(engine, lambda c: batches.by_id(c, batch_id))
    assert batch is not None, "a leased batch exists"
    try:
        return _ingest(engine, batch, epoch, settings)
    except Invalid as invalid:
        faults = invalid.faults
        database.run(engine, lambda c: batches.fail(c, batch_id, epoch, faults))
        logger.info("batch failed validation", extra={"batch": batch.public_id, "faults": len(faults)})
        return None
    except BaseException:
        database.run(engine, lambda c: batches.give_back(c, batch_id, epoch))
        raise


def _ingest(engine: Engine, batch: Batch, epoch: int, settings: Settings) -> str | None:
    file = _input_file(engine, batch)
    found = models.meant(database.run(engine, models.find), settings.model_aliases)
    meant = {name: model.name for name, model in found.items()}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '30min'"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
        check = Check(batch.endpoint, meant)
        copy_requests(connection, batch.id, check.lines(_whole(engine, file)))
        check.conclude()
        leases.insert(connection, batch.id, check.order.chunks(settings.chunk_lines))
        _refuse_without_room(connection, batch, check, settings)
        failpoints.reach(Point.REQUESTS_COPIED)
        if not batches.begin(connection, batch.id, epoch, model=check.model, total=len(check.order)):
            connection.rollback()  # cancelled meanwhile, or taken over
            return None
    failpoints.reach(Point.BATCH_BEGUN)
    logger.info("batch began", extra={"batch": batch.public_id, "lines": len(check.order)})
    return check.model


def _input_file(engine: Engine, batch: Batch) -> File:
    file_id = batch.input_file_id or ""
    try:
        file = database.run(engine, lambda c: files.get(c, batch.project_id, file_id))
    except NotFound:
        raise Invalid([no_file(file_id, batch.project_id)]) from None
    if file.purpose != "batch":
        message = f"File {file_id} has the purpose '{file.purpose}', and a batch reads files of purpose 'batch'."
        raise Invalid([Fault(code="invalid_request", message=message, param="file_id")])
    return file


def _refuse_without_room(connection: Connection, batch: Batch, check: "Check", settings: Settings) -> None:
    """Invalid if the key that ordered the batch has too many lines in progress."""
    if batch.key_id is None:
        return
    most = quotas.lines_of(connection, batch.key_id) or settings.queued_lines
    if not quotas.has_room(connection, batch.key_id, more=len(check.order), queued_lines=most):
        raise Invalid([no_room(check.model, batch.project_id, most)])


def _whole(engine: Engine, file: File) -> Iterator[bytes]:
    """The parts of a file. Invalid if it is damaged, or deleted while we read: half a file is not a batch."""
    missing = file.size_bytes
    try:
        for part in files.read(engine, file.id):
            missing -= len(part)
            yield part
    except files.Damaged:
        raise Invalid([damaged_file(file.id)]) from None
    if missing:
        raise Invalid([no_file(file.id, file.project_id)])


class Check:
    """Reads the lines of one file and keeps what the batch needs of them: faults, order, the one model.

    For each line it keeps some 50 bytes and never the line itself; faults stop growing at FAULTS_KEPT_MAX.
    """

    def __init__(self, endpoint: str, models_meant: Mapping[str, str]) -> None:
        """`models_meant` has the model that each name means, its own or another."""
        self.model = ""
        self.order = order.Order()
        self._endpoint = endpoint
        self._models_meant = models_meant
        self._seen = Seen(limits.LINES_MAX)
        self._faults: list[Fault] = []
        self._untold = 0

    def lines(self, parts: Iterable[bytes]) -> Iterator[tuple[int, str, str]]:
        """The good lines as (line_no, custom_id, text), until the first fault; faults are kept to the end."""
        filled = 0
        for line_no, raw in enumerate(files.lines(parts, size_max=limits.LINE_SIZE_MAX), start=1):
            if raw is not None and (not raw or raw.isspace()):
                if line_no - filled > limits.LINES_MAX:
                    raise Invalid([too_many_blank_lines()])
                continue
            filled += 1
            if filled > limits.LINES_MAX:
                raise Invalid([too_many_lines()])
            line = parse(raw, line_no, endpoint=self._endpoint)
            faults = [*line.faults, *self._faults_among_others(line, line_no)]
            if faults:
                self._note(faults)
            elif not self._faults:
                assert raw is not None
                assert line.custom_id is not None
                self.order.add(line_no, line.messages)
                yield line_no, line.custom_id, raw.decode()

    def conclude(self) -> None:
        """Raise Invalid unless there was at least one line and no fault. No line can follow."""
        del self._seen  # the sort that comes next needs the room
        if not self._faults and not self.order:
            raise Invalid([empty_file()])
        if self._untold:
            self._faults.append(more_faults(self._untold))
        if self._faults:
            raise Invalid(self._faults)

    def _faults_among_others(self, line: InputLine, line_no: int) -> Iterator[Fault]:
        """What is wrong with a line because of other lines, or of the models that there are."""
        if line.custom_id is not None and not self._seen.add(line.custom_id):
            yield duplicate(line.custom_id, line_no)
        if line.model is None:
            return
        meant = self._models_meant.get(line.model)
        if meant is None:
            yield unknown_model(line.model, line_no)
        elif not self.model:
            self.model = meant
        elif meant != self.model:
            yield other_model(line.model, line_no)

    def _note(self, faults: list[Fault]) -> None:
        room = limits.FAULTS_KEPT_MAX - len(self._faults)
        self._faults += faults[:room]
        self._untold += max(len(faults) - room, 0)


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
