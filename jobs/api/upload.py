"""A form with a file, stored while it arrives, so that memory holds one piece of the file and no more."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

import anyio
import orjson
import sqlalchemy.exc
from fastapi import Request
from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from jobs import database, failpoints, files
from jobs.api.body import refuse_encoding
from jobs.api.form import EXPIRY, Form
from jobs.api.query import digits
from jobs.api.services import Services
from jobs.contract import limits
from jobs.contract.errors import refusal_of
from jobs.contract.upload import CreateFile
from jobs.errors import BadRequest, TooLarge
from jobs.failpoints import Point

logger = logging.getLogger(__name__)

FILENAME = "upload.jsonl"
FRAME_SIZE = 64 * 1024  # the most that a form adds around its file

Answer = TypeVar("Answer")
Publish = Callable[[Connection, files.Writer], Answer]


class Incoming(Generic[Answer]):
    """The stored side of one form: nothing is written before the first piece is full."""

    def __init__(
        self, services: Services, project_id: str, form: Form, check: Callable[[Form], Publish[Answer]]
    ) -> None:
        self._services = services
        self._project_id = project_id
        self._form = form
        self._check = check
        self._writer: files.Writer | None = None

    def store(self, content: bytearray) -> files.Writer:
        """Write what has arrived."""
        if self._writer is None:
            self._writer = files.Writer(
                self._services.engine,
                project_id=self._project_id,
                purpose="",  # not known before the form has ended: fields may stand behind the file
                filename=self._form.filename or FILENAME,
            )
        self._writer.write(content)
        return self._writer

    def end(self) -> Answer:
        """Check the whole form, and publish what it brought."""
        if not self._form.has_file:
            name = self._form.file_field
            raise BadRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
        publish = self._check(self._form)
        writer = self.store(self._form.take(len(self._form.pending)))
        writer.finish()
        failpoints.reach(Point.FILE_WRITTEN)
        return database.run(self._services.engine, lambda c: publish(c, writer))

    def discard(self) -> None:
        """Take back what was written; where that fails, the sweeper will."""
        if self._writer is None:
            return
        try:
            self._writer.discard()
        except sqlalchemy.exc.SQLAlchemyError as error:
            logger.warning("upload not discarded", extra={"file": self._writer.id, "reason": str(error)})


class Beside:
    """Work in a thread while its task goes on; one at a time."""

    def __init__(self) -> None:
        self._work: asyncio.Task[object] | None = None

    async def begin(self, work: Callable[[], object]) -> None:
        """Begin when what was begun before has ended."""
        await self.end()
        self._work = asyncio.create_task(run_in_threadpool(work))

    async def end(self) -> None:
        """Wait for what was begun, and raise what it raised. Whoever is cancelled here leaves the thread at work."""
        if self._work is not None:
            await asyncio.wait([self._work])
            work, self._work = self._work, None
            work.result()


async def receive(
    request: Request, services: Services, project_id: str, form: Form, check: Callable[[Form], Publish[Answer]]
) -> Answer:
    """Store the file of the form that is being sent. Nothing stays of one that is refused or broken off.

    `check` looks at the whole form, raises what is wrong with it, and gives the last step: what makes the stored
    bytes visible, in one transaction. One part is stored while the next arrives, and none is waiting.
    """
    incoming, storing = Incoming(services, project_id, form, check), Beside()
    try:
        async for content in request.stream():
            form.feed(content)
            while len(form.pending) >= files.PART_SIZE:
                await storing.begin(partial(incoming.store, form.take(files.PART_SIZE)))
        form.finish()
        await storing.end()
        return await run_in_threadpool(incoming.end)
    except BaseException:
        with anyio.CancelScope(shield=True):
            with suppress(sqlalchemy.exc.SQLAlchemyError):
                await storing.end()
            await run_in_threadpool(incoming.discard)
        raise


def open_form(request: Request, *, size_max: int, file_field: str, fields: frozenset[str]) -> Form:
    """The form of a request, before its first byte. TooLarge where its told length is too much already."""
    refuse_encoding(request)
    length = digits(request.headers.get("content-length", ""))
    if isinstance(length, int) and length > size_max + FRAME_SIZE:
        raise TooLarge(f"The file is larger than {size_max} bytes, the most a file may have.")
    return Form(request.headers.get("content-type", ""), size_max=size_max, file_field=file_field, fields=fields)


def check_file(form: Form) -> Publish[files.File]:
    """BadRequest for the first fault of a form of POST /v1/files."""
    values: dict[str, object] = {}
    if "purpose" in form.fields:
        values["purpose"] = form.fields["purpose"]
    expiry = {name: digits(form.fields[key]) for name, key in EXPIRY.items() if key in form.fields}
    if expiry:
        values["expires_after"] = expiry
    try:
        order = CreateFile.model_validate(values)
    except ValidationError as error:
        raise refusal_of(error) from None
    if order.purpose == "batch":
        refuse_name(form.filename or FILENAME)
        _refuse_content(form)
    return lambda connection, writer: files.publish(
        connection, writer, lifetime_seconds=order.lifetime_seconds, purpose=order.purpose
    )


def refuse_name(filename: str) -> None:
    """BadRequest unless a batch's input goes by the right name."""
    if not filename.endswith(".jsonl"):
        raise BadRequest("Invalid file format for Batch API. Must be .jsonl")


def _refuse_content(form: Form) -> None:
    """What can be told of a batch's input at a glance: that it is empty, or one line that is not JSON.

    As at OpenAI, a file with more lines is taken, and its faults are told by the batch.
    """
    if form.file_size == 0:
        raise BadRequest("Invalid file format for Batch API. The file is empty; expected .jsonl with a request a line.")
    if form.file_size > len(form.pending):  # the beginning is stored: it is long
        return
    lines = [
        line for line in files.lines([bytes(form.pending)], size_max=limits.LINE_SIZE_MAX) if line and line.strip()
    ]
    if len(lines) < 2 and not (lines and _is_json(lines[0])):
        raise BadRequest("Invalid file format for Batch API. Must be .jsonl, with a JSON object a line, in UTF-8.")


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
