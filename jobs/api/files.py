"""/v1/files: bytes in and bytes out; the upload itself is in `upload`."""

import re
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from jobs import database, files
from jobs.api import upload
from jobs.api.auth import ByCaller
from jobs.api.form import FIELDS, FILE
from jobs.api.query import Integer
from jobs.api.ranges import Stretch, stretch_of
from jobs.api.services import WithServices
from jobs.contract.file import File, FileDeleted, FileList


async def create(request: Request, services: WithServices, caller: ByCaller) -> File:
    """Keep the file of a form."""
    form = upload.open_form(request, size_max=services.settings.file_size_max, file_field=FILE, fields=FIELDS)
    return on_wire(await upload.receive(request, services, caller.project_id, form, upload.check_file))


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
    return on_wire(database.run_autocommit(services.engine, lambda c: files.get(c, caller.project_id, file_id)))


def delete(file_id: str, services: WithServices, caller: ByCaller) -> FileDeleted:
    database.run(services.engine, lambda c: files.delete(c, caller.project_id, file_id))
    return FileDeleted(id=file_id)


def content(file_id: str, request: Request, services: WithServices, caller: ByCaller) -> Response:
    """The bytes of a file, or those of its `Range`, one piece in memory at a time."""
    file = database.run_autocommit(services.engine, lambda c: files.get(c, caller.project_id, file_id))
    tag = f'"{file.id}"'  # a file never changes
    headers = {
        "accept-ranges": "bytes",
        "etag": tag,
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",  # RFC 5987
    }
    if tag in re.split(r"\s*,\s*", request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    is_meant = request.headers.get("if-range", tag) == tag
    wanted = stretch_of(request.headers.get("range") if is_meant else None, file.size_bytes)
    if wanted is None:
        status, wanted = 200, Stretch(0, file.size_bytes)
    else:
        status = 206
        headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{file.size_bytes}"
    headers["content-length"] = str(wanted.stop - wanted.start)
    if request.method == "HEAD":  # nothing is read
        return Response(status_code=status, media_type="application/octet-stream", headers=headers)
    return StreamingResponse(
        files.read(services.engine, file.id, start=wanted.start, stop=wanted.stop),
        status_code=status,
        media_type="application/octet-stream",
        headers=headers,
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
