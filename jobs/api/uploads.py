"""/v1/uploads: a file that comes in parts."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from jobs import database, files, uploads
from jobs.api import upload
from jobs.api.auth import ByCaller
from jobs.api.body import read_object
from jobs.api.files import on_wire as file_on_wire
from jobs.api.form import Form
from jobs.api.services import Services, WithServices
from jobs.contract import limits
from jobs.contract.errors import refusal_of
from jobs.contract.upload import CompleteUpload, CreateUpload, Upload, UploadPart
from jobs.errors import BadRequest
from jobs.states import UploadState

DATA = "data"
Model = TypeVar("Model", bound=BaseModel)


async def create(request: Request, services: WithServices, caller: ByCaller) -> Upload:
    """Begin an upload; it waits an hour for its parts."""
    order = _read(CreateUpload, await read_object(request))
    if order.bytes > services.settings.file_size_max:
        raise BadRequest(
            "Invalid 'bytes': integer above maximum value. Expected a value <= "
            f"{services.settings.file_size_max}, but got {order.bytes} instead.",
            code="integer_above_max_value",
            param="bytes",
        )
    if order.purpose == "batch":
        upload.refuse_name(order.filename)
    upload_id = uploads.new_id()
    return await _answer(services, lambda c: uploads.create(c, caller.project_id, order, upload_id=upload_id))


async def add_part(request: Request, upload_id: str, services: WithServices, caller: ByCaller) -> UploadPart:
    """Keep some bytes of an upload. Parts may come at once and in any order."""

    def refuse_early(connection: Connection) -> None:
        uploads.get_pending(connection, caller.project_id, upload_id)

    await run_in_threadpool(database.run, services.engine, refuse_early)
    part_id = uploads.new_part_id()

    def check(form: Form) -> upload.Publish[uploads.Part]:
        if form.file_size == 0:
            raise BadRequest("Invalid 'data': a part must have at least one byte.", code="invalid_value", param=DATA)
        return lambda connection, writer: uploads.add_part(
            connection, caller.project_id, upload_id, writer, part_id=part_id
        )

    size_max = min(limits.UPLOAD_PART_SIZE_MAX, services.settings.file_size_max)
    form = upload.open_form(request, size_max=size_max, file_field=DATA, fields=frozenset())
    part = await upload.receive(request, services, caller.project_id, form, check)
    return UploadPart(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=part.upload_id)


async def complete(request: Request, upload_id: str, services: WithServices, caller: ByCaller) -> Upload:
    """Make the parts one file, in the order of their ids."""
    order = _read(CompleteUpload, await read_object(request))
    if order.md5 is not None:
        await run_in_threadpool(_refuse_other_md5, services, caller.project_id, upload_id, order)
    return await _answer(services, lambda c: uploads.complete(c, caller.project_id, upload_id, order.part_ids))


def cancel(upload_id: str, services: WithServices, caller: ByCaller) -> Upload:
    """Give an upload up; its parts are deleted."""
    return database.run(services.engine, lambda c: _on_wire(c, uploads.cancel(c, caller.project_id, upload_id)))


def _refuse_other_md5(services: Services, project_id: str, upload_id: str, order: CompleteUpload) -> None:
    """BadRequest if the bytes are not those that were meant. Outside of a transaction: parts do not change."""

    def parts(connection: Connection) -> list[uploads.Part]:
        found = uploads.get(connection, project_id, upload_id)
        return uploads.chosen(connection, found, order.part_ids) if found.state is UploadState.PENDING else []

    chosen = database.run(services.engine, parts)
    if chosen and uploads.md5_of(services.engine, chosen) != (order.md5 or "").lower():
        raise BadRequest(
            "The MD5 of the parts is not the one given. They, or their order, are not what was meant.",
            code="invalid_value",
            param="md5",
        )


def _read(model: type[Model], body: dict[str, object]) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise refusal_of(error, known=model.model_fields) from None


async def _answer(services: Services, work: Callable[[Connection], uploads.Upload]) -> Upload:
    return await run_in_threadpool(database.run, services.engine, lambda c: _on_wire(c, work(c)))


def _on_wire(connection: Connection, found: uploads.Upload) -> Upload:
    """The upload as a client reads it, with its file while that exists."""
    made = None if found.file_id is None else files.peek(connection, found.project_id, found.file_id)
    return Upload(
        id=found.id,
        bytes=found.size_bytes,
        created_at=int(found.created_at.timestamp()),
        expires_at=int(found.expires_at.timestamp()),
        filename=found.filename,
        purpose=found.purpose,
        status=found.state.value,
        file=None if made is None else file_on_wire(made),
    )
