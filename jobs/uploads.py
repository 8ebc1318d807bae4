"""Uploads in parts: each part an invisible file of its own, until they become one file by changing their owner.

The bytes of a part are written once; completing an upload moves rows and copies none. The caller owns the
transaction, but in `md5_of`, which reads too much for one.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, Engine, bindparam, case, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.types import Text

from jobs import files
from jobs.contract import limits
from jobs.contract.upload import CreateUpload
from jobs.errors import BadRequest, Conflict, NotFound
from jobs.states import FileState, UploadState
from jobs.tables import file as file_table
from jobs.tables import upload as table
from jobs.tables import upload_part as part_table


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is to come in parts of `size_bytes` in all."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    file_lifetime_seconds: int | None
    state: UploadState
    file_id: str | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an upload; which place they take is known when it is completed."""

    id: str
    upload_id: str
    file_id: str
    size_bytes: int
    place: int | None
    created_at: datetime


STATE = case(
    (
        (table.c.state == UploadState.PENDING.value) & (table.c.expires_at <= func.now()),
        UploadState.EXPIRED.value,
    ),
    else_=table.c.state,
).label("state")
COLUMNS = [STATE if field.name == "state" else table.c[field.name] for field in fields(Upload)]
PART_COLUMNS = [part_table.c[field.name] for field in fields(Part)]


def new_id() -> str:
    return f"upload_{secrets.token_hex(16)}"


def new_part_id() -> str:
    return f"part_{secrets.token_hex(16)}"


def create(connection: Connection, project_id: str, order: CreateUpload, *, upload_id: str) -> Upload:
    """Begin an upload under an id of the caller's making, so that a COMMIT of unknown outcome may be repeated."""
    connection.execute(
        insert(table)
        .values(
            id=upload_id,
            project_id=project_id,
            filename=order.filename,
            purpose=order.purpose,
            size_bytes=order.bytes,
            file_lifetime_seconds=order.lifetime_seconds,
            state=UploadState.PENDING.value,
            expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, limits.UPLOAD_LIFETIME_SECONDS),
        )
        .on_conflict_do_nothing()
    )
    return get(connection, project_id, upload_id)


def get(connection: Connection, project_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    """An upload of this project. NotFound for any other. Locked, it stays in its state until the commit."""
    query = select(*COLUMNS).where(table.c.id == upload_id, table.c.project_id == project_id)
    row = connection.execute(query.with_for_update() if is_locked else query).one_or_none()
    if row is None:
        raise NotFound(f"No such Upload object: {upload_id}", param="id")
    values = {field.name: getattr(row, field.name) for field in fields(Upload)}
    return Upload(**{**values, "state": UploadState(values["state"])})


def get_pending(connection: Connection, project_id: str, upload_id: str, *, is_locked: bool = False) -> Upload:
    """An upload that takes parts. NotFound as for `get`, Conflict once it has ended."""
    found = get(connection, project_id, upload_id, is_locked=is_locked)
    if found.state is not UploadState.PENDING:
        raise Conflict(f"This Upload has the status '{found.state.value}'; only one that is pending can be changed.")
    return found


def add_part(connection: Connection, project_id: str, upload_id: str, writer: files.Writer, *, part_id: str) -> Part:
    """Take a finished file as a part. Conflict if the upload has ended meanwhile."""
    get_pending(connection, project_id, upload_id, is_locked=True)
    count = select(func.count()).select_from(part_table).where(part_table.c.upload_id == upload_id)
    if connection.execute(count).scalar_one() >= limits.UPLOAD_PARTS_MAX:
        raise BadRequest(f"An Upload may have {limits.UPLOAD_PARTS_MAX} parts.", code="array_above_max_length")
    statement = insert(part_table).values(
        id=part_id, upload_id=upload_id, file_id=writer.id, size_bytes=writer.size_bytes
    )
    connection.execute(statement.on_conflict_do_nothing())
    # Its bytes count against what the project may keep.
    connection.execute(file_table.update().where(file_table.c.id == writer.id).values(size_bytes=writer.size_bytes))
    row = connection.execute(select(*PART_COLUMNS).where(part_table.c.id == part_id)).one()
    return Part(*row)


def chosen(connection: Connection, upload: Upload, part_ids: Sequence[str]) -> list[Part]:
    """The parts of these ids, in this order. BadRequest if they are not this upload's, or not all of its bytes."""
    rows = connection.execute(select(*PART_COLUMNS).where(part_table.c.upload_id == upload.id))
    known = {row.id: Part(*row) for row in rows}
    seen: set[str] = set()
    for place, part_id in enumerate(part_ids):
        if part_id not in known or part_id in seen:
            fault = "is given twice" if part_id in seen else "is not a part of this Upload"
            raise BadRequest(
                f"Invalid 'part_ids[{place}]': '{part_id}' {fault}.", code="invalid_value", param=f"part_ids[{place}]"
            )
        seen.add(part_id)
    parts = [known[part_id] for part_id in part_ids]
    found = sum(part.size_bytes for part in parts)
    if found != upload.size_bytes:
        raise BadRequest(
            f"The parts have {found} bytes, and this Upload was made for {upload.size_bytes}.",
            code="invalid_value",
            param="part_ids",
        )
    return parts


def md5_of(engine: Engine, parts: Sequence[Part]) -> str:
    """The MD5 of parts one after the other, in hexadecimal digits; one piece in memory at a time."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for content in files.read(engine, part.file_id):
            digest.update(content)
    return digest.hexdigest()


def complete(connection: Connection, project_id: str, upload_id: str, part_ids: Sequence[str]) -> Upload:
    """Make the parts one file, in this order, and forget the others. Repeating it with the same parts is no error.

    BadRequest as for `chosen`, Conflict if the upload ended otherwise.
    """
    found = get(connection, project_id, upload_id, is_locked=True)
    if found.state is UploadState.COMPLETED and _placed(connection, upload_id) == list(part_ids):
        return found
    upload = get_pending(connection, project_id, upload_id)
    chosen(connection, upload, part_ids)
    _place(connection, part_ids)
    file_id = files.new_id()
    _make_file(connection, upload, file_id)
    _move_pieces(connection, upload.id, file_id)
    _forget_holders(connection, upload.id)
    connection.execute(
        table.update().where(table.c.id == upload.id).values(state=UploadState.COMPLETED.value, file_id=file_id)
    )
    return get(connection, project_id, upload_id)


def cancel(connection: Connection, project_id: str, upload_id: str) -> Upload:
    """End an upload without a file. Repeating it is no error; Conflict if it ended otherwise."""
    found = get(connection, project_id, upload_id, is_locked=True)
    if found.state is UploadState.CANCELLED:
        return found
    get_pending(connection, project_id, upload_id)
    _forget_holders(connection, upload_id)
    connection.execute(table.update().where(table.c.id == upload_id).values(state=UploadState.CANCELLED.value))
    return get(connection, project_id, upload_id)


def sweep(connection: Connection) -> int:
    """Delete some of the parts of uploads that have expired, and uploads that ended long ago; how many of both.

    A few parts at once: they may be large. Not before ten minutes: a transaction that found the upload alive may still
    be making its parts a file.
    """
    parts = connection.execute(
        text("""
            DELETE FROM file
             WHERE id = ANY(ARRAY(
                   SELECT f.id FROM upload u
                     JOIN upload_part p ON p.upload_id = u.id JOIN file f ON f.id = p.file_id
                    WHERE u.state = 'pending' AND u.expires_at < now() - interval '10 minutes'
                    LIMIT 10 FOR UPDATE OF f SKIP LOCKED))
        """)
    )
    ended = connection.execute(text("DELETE FROM upload WHERE expires_at < now() - interval '1 day'"))
    return parts.rowcount + ended.rowcount


def _placed(connection: Connection, upload_id: str) -> list[str]:
    """The ids of the parts that the file was made of, in order."""
    query = select(part_table.c.id).where(part_table.c.upload_id == upload_id, part_table.c.place.is_not(None))
    return list(connection.execute(query.order_by(part_table.c.place)).scalars())


def _place(connection: Connection, part_ids: Sequence[str]) -> None:
    """Number parts in this order, from 0: in one statement, for there may be thousands."""
    connection.execute(
        text("""
            UPDATE upload_part p SET place = n.number - 1
              FROM unnest(:ids) WITH ORDINALITY AS n(id, number) WHERE p.id = n.id
        """).bindparams(bindparam("ids", type_=ARRAY(Text))),
        {"ids": list(part_ids)},
    )


def _make_file(connection: Connection, upload: Upload, file_id: str) -> None:
    values: dict[str, object] = {
        "id": file_id,
        "project_id": upload.project_id,
        "purpose": upload.purpose,
        "filename": upload.filename,
        "state": FileState.READY.value,
        "size_bytes": upload.size_bytes,
    }
    if upload.file_lifetime_seconds is not None:
        values["expires_at"] = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, upload.file_lifetime_seconds)
    connection.execute(file_table.insert().values(**values))


def _move_pieces(connection: Connection, upload_id: str, file_id: str) -> None:
    """Give the pieces of all placed parts to one file, numbered through. Bytes stored apart stay where they are."""
    connection.execute(
        text("""
            WITH piece AS MATERIALIZED (
                SELECT f.file_id, f.seq, row_number() OVER (ORDER BY p.place, f.seq) - 1 AS new_seq
                  FROM upload_part p JOIN file_part f ON f.file_id = p.file_id
                 WHERE p.upload_id = :upload_id AND p.place IS NOT NULL)
            UPDATE file_part f SET file_id = :file_id, seq = piece.new_seq
              FROM piece WHERE f.file_id = piece.file_id AND f.seq = piece.seq
        """),
        {"upload_id": upload_id, "file_id": file_id},
    )


def _forget_holders(connection: Connection, upload_id: str) -> None:
    """Delete the invisible files of the parts, and with them whatever bytes they still have."""
    connection.execute(
        text("DELETE FROM file WHERE id IN (SELECT file_id FROM upload_part WHERE upload_id = :id)"),
        {"id": upload_id},
    )
