"""/v1/files: bytes in and bytes out; the upload itself is in `upload`."""

from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Query, Request
from fastapi.responses import StreamingResponse

from jobs import database, files
from jobs.api import upload
from jobs.api.auth import ByCaller
from jobs.api.query import Integer
from jobs.api.services import WithServices
from jobs.contract.file import File, FileDeleted, FileList


async def create(request: Request, services: WithServices, caller: ByCaller) -> File:
    """Keep the file of a form."""
    return on_wire(await upload.receive(request, services, caller.project_id))


def find(
    services: WithServices,
    caller: ByCaller,
    purpose: str | None = None,
    limit: Annotated[Integer, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> FileList:
    """A page of the caller's files, by creation."""
    page = database.run(
        services.engine,
        lambda c: files.find(
            c, caller.project_id, purpose=purpose, limit=limit, after=after, is_ascending=order == "asc"
        ),
    )
    data = [on_wire(file) for file in page.files]
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


def get(file_id: str, services: WithServices, caller: ByCaller) -> File:
    return on_wire(database.run(services.engine, lambda c: files.get(c, caller.project_id, file_id)))


def delete(file_id: str, services: WithServices, caller: ByCaller) -> FileDeleted:
    database.run(services.engine, lambda c: files.delete(c, caller.project_id, file_id))
    return FileDeleted(id=file_id)


def content(file_id: str, services: WithServices, caller: ByCaller) -> StreamingResponse:
    """The bytes of a file, one part in memory at a time."""
    file = database.run(services.engine, lambda c: files.get(c, caller.project_id, file_id))
    return StreamingResponse(
        files.read(services.engine, file.id),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.size_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",  # RFC 5987
        },
    )


def on_wire(file: files.File) -> File:
    """The file as a client reads it."""
    return File(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=None if file.expires_at is None else int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )
