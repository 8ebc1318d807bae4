"""An upload: a form that is stored while it arrives, so that memory holds one part of the file and no more."""

import logging
from typing import Literal

import anyio
import sqlalchemy.exc
from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool

from jobs import database, files
from jobs.api.body import refuse_encoding
from jobs.api.form import EXPIRY, FILE, Form
from jobs.api.query import digits
from jobs.api.services import Services
from jobs.contract import limits
from jobs.contract.batch import OutputExpiry
from jobs.contract.errors import refusal_of
from jobs.errors import BadRequest, TooLarge

logger = logging.getLogger(__name__)

FILENAME = "upload.jsonl"
FRAME_SIZE = 64 * 1024  # the most that a form adds around its file


class CreateFile(BaseModel):
    """The fields of the form of POST /v1/files, without the file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    purpose: Literal["batch", "assistants", "fine-tune", "vision", "user_data", "evals"]
    expires_after: OutputExpiry | None = None

    @property
    def lifetime_seconds(self) -> int | None:
        if self.expires_after is not None:
            return self.expires_after.seconds
        return limits.FILE_LIFETIME_SECONDS if self.purpose == "batch" else None


class Upload:
    """The stored side of one form: nothing is written before the first part is full."""

    def __init__(self, services: Services, project_id: str, form: Form) -> None:
        self._services = services
        self._project_id = project_id
        self._form = form
        self._writer: files.Writer | None = None

    def store(self) -> None:
        """Write what has arrived."""
        if self._writer is None:
            self._writer = files.Writer(
                self._services.engine,
                project_id=self._project_id,
                purpose="",  # not known before the form has ended: fields may stand behind the file
                filename=self._form.filename or FILENAME,
            )
        self._writer.write(self._form.take())

    def publish(self) -> files.File:
        """Check the whole form and make its file visible."""
        order = _order(self._form)
        self.store()
        writer = self._writer
        assert writer is not None
        writer.finish()
        return database.run(
            self._services.engine,
            lambda c: files.publish(c, writer, lifetime_seconds=order.lifetime_seconds, purpose=order.purpose),
        )

    def discard(self) -> None:
        """Take back what was written; where that fails, the sweeper will."""
        if self._writer is None:
            return
        try:
            self._writer.discard()
        except sqlalchemy.exc.SQLAlchemyError as error:
            logger.warning("upload not discarded", extra={"file": self._writer.id, "reason": str(error)})


async def receive(request: Request, services: Services, project_id: str) -> files.File:
    """Store the file of the form that is being sent. Nothing stays of one that is refused or broken off."""
    refuse_encoding(request)
    size_max = services.settings.file_size_max
    _refuse_length(request.headers.get("content-length", ""), size_max)
    form = Form(request.headers.get("content-type", ""), size_max=size_max)
    upload = Upload(services, project_id, form)
    try:
        async for content in request.stream():
            form.feed(content)
            if len(form.pending) >= files.PART_SIZE:
                await run_in_threadpool(upload.store)
        form.finish()
        return await run_in_threadpool(upload.publish)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(upload.discard)
        raise


def _refuse_length(content_length: str, size_max: int) -> None:
    """TooLarge before the first byte, where the length was told."""
    length = digits(content_length)
    if isinstance(length, int) and length > size_max + FRAME_SIZE:
        raise TooLarge(f"The file is larger than {size_max} bytes, the most a file may have.")


def _order(form: Form) -> CreateFile:
    """The fields, checked, and the file with them. BadRequest for the first fault."""
    if not form.has_file:
        raise BadRequest(f"Missing required parameter: '{FILE}'.", code="missing_required_parameter", param=FILE)
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
        _refuse_unfit(form)
    return order


def _refuse_unfit(form: Form) -> None:
    """What can be told of a batch's input without reading it."""
    if not (form.filename or FILENAME).endswith(".jsonl"):
        raise BadRequest("Invalid file format for Batch API. Must be .jsonl")
    if form.file_size == 0:
        raise BadRequest("Invalid file format for Batch API. The file is empty; expected .jsonl with a request a line.")
