"""Files in Postgres: written in packed parts as they arrive, read part by part, never held whole.

A file that is not `ready` is invisible to everyone but its writer, and is swept after a day.
"""

import secrets
import string
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import sqlalchemy
from isal import isal_zlib
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.dialects.postgresql import insert

from jobs import database
from jobs.contract import limits
from jobs.errors import NotFound
from jobs.states import FileState
from jobs.tables import file as table
from jobs.tables import file_part

PART_SIZE = limits.MEBIBYTE
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ID_ALPHABET = string.ascii_letters + string.digits
COLUMNS = (
    table.c.id,
    table.c.project_id,
    table.c.purpose,
    table.c.filename,
    table.c.size_bytes,
    table.c.created_at,
    table.c.expires_at,
)


@dataclass(frozen=True, slots=True)
class File:
    """Bytes a user sent or will fetch, without the bytes."""

    id: str
    project_id: str
    purpose: str
    filename: str
    size_bytes: int
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list, and whether more follows."""

    files: list[File]
    has_more: bool


STORE = text("""
    INSERT INTO file_part (file_id, seq, packed, size_bytes) VALUES (:file_id, :seq, :packed, :size_bytes)
        ON CONFLICT DO NOTHING
""")
Damaged = cast("type[Exception]", isal_zlib.error)
"""What reading a part raises that is not what was stored."""
PACKING_LEVEL = 1
"""Of 0 to 3. JSON comes to a half or less, faster than a disk takes the whole."""


def new_id() -> str:
    return "file-" + "".join(secrets.choice(ID_ALPHABET) for _ in range(22))


class Writer:
    """Takes bytes of any length and stores parts of PART_SIZE, each in a transaction of its own.

    Memory stays at two parts: one is stored, in a thread of the writer's own, while the next is filled and packed. What
    `publish` never reached stays invisible. Each part is on the disk before the next is stored: a Postgres that comes
    back from a crash in the middle of a file may have lost none of it. What storing a part raises comes with the next.
    """

    def __init__(self, engine: Engine, *, project_id: str, purpose: str, filename: str) -> None:
        self.id = new_id()
        self.size_bytes = 0
        self._engine = engine
        self._pending = bytearray()
        self._parts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._storing: Future[None] | None = None
        values = {"id": self.id, "project_id": project_id, "purpose": purpose, "filename": filename}
        row = insert(table).values(**values, state=FileState.UPLOADING.value).on_conflict_do_nothing()
        database.run(engine, lambda c: c.execute(row))

    def write(self, content: bytes | bytearray) -> None:
        """Add bytes; stores every part that is full, without a copy where it comes whole."""
        self.size_bytes += len(content)
        if self._pending or len(content) < PART_SIZE:
            self._pending += content
            if len(self._pending) < PART_SIZE:
                return
            content, self._pending = self._pending, bytearray()
        rest = memoryview(content)
        while len(rest) >= PART_SIZE:
            self._store(rest[:PART_SIZE])
            rest = rest[PART_SIZE:]
        self._pending += rest

    def finish(self) -> None:
        """Store what is left. The file is complete, and still invisible."""
        if self._pending:
            self._store(memoryview(self._pending))
            self._pending = bytearray()
        self._settle()
        self._thread.shutdown()

    def discard(self) -> None:
        """Take back everything that was stored."""
        self._thread.shutdown()
        database.run(self._engine, lambda c: c.execute(table.delete().where(table.c.id == self.id)))

    def _store(self, content: memoryview) -> None:
        packed = isal_zlib.compress(content, PACKING_LEVEL)
        values = {"file_id": self.id, "seq": self._parts, "packed": packed, "size_bytes": len(content)}
        self._settle()
        self._storing = self._thread.submit(self._insert, values)
        self._parts += 1

    def _insert(self, values: dict[str, object]) -> None:
        database.run_autocommit(self._engine, lambda c: c.execute(STORE, values))

    def _settle(self) -> None:
        """Wait until the last part is stored, and raise what kept it from being."""
        storing, self._storing = self._storing, None
        if storing is not None:
            storing.result()


def publish(
    connection: Connection, writer: Writer, *, lifetime_seconds: int | None, purpose: str | None = None
) -> File:
    """Make a finished file visible; counted from its creation, it lives `lifetime_seconds`."""
    values: dict[str, object] = {"state": FileState.READY.value, "size_bytes": writer.size_bytes}
    if lifetime_seconds is not None:
        values["expires_at"] = table.c.created_at + func.make_interval(0, 0, 0, 0, 0, 0, lifetime_seconds)
    if purpose is not None:
        values["purpose"] = purpose
    row = connection.execute(table.update().where(table.c.id == writer.id).values(**values).returning(*COLUMNS)).one()
    return File(*row)


def get(connection: Connection, project_id: str, file_id: str) -> File:
    """A visible file of this project. NotFound for any other."""
    found = peek(connection, project_id, file_id)
    if found is None:
        raise NotFound(f"No such File object: {file_id}", param="id")
    return found


def peek(connection: Connection, project_id: str, file_id: str) -> File | None:
    """A visible file of this project, None for any other."""
    row = connection.execute(
        select(*COLUMNS).where(
            table.c.id == file_id,
            table.c.project_id == project_id,
            table.c.state == FileState.READY.value,
            _is_alive(),
        )
    ).one_or_none()
    return None if row is None else File(*row)


def find(
    connection: Connection,
    project_id: str,
    *,
    purpose: str | None,
    limit: int,
    after: str | None,
    is_ascending: bool,
) -> Page:
    """A page of this project's files by creation, starting behind the file `after`."""
    query = select(*COLUMNS).where(
        table.c.project_id == project_id, table.c.state == FileState.READY.value, _is_alive()
    )
    if purpose is not None:
        query = query.where(table.c.purpose == purpose)
    place = sqlalchemy.tuple_(table.c.created_at, table.c.id)
    if after is not None:
        last = get(connection, project_id, after)
        bound = sqlalchemy.tuple_(sqlalchemy.literal(last.created_at), sqlalchemy.literal(last.id))
        query = query.where(place > bound if is_ascending else place < bound)
    if is_ascending:
        query = query.order_by(table.c.created_at, table.c.id)
    else:
        query = query.order_by(table.c.created_at.desc(), table.c.id.desc())
    found = [File(*row) for row in connection.execute(query.limit(limit + 1))]
    return Page(found[:limit], has_more=len(found) > limit)


def delete(connection: Connection, project_id: str, file_id: str) -> None:
    """Delete a file and its bytes. NotFound as for `get`."""
    get(connection, project_id, file_id)
    connection.execute(table.delete().where(table.c.id == file_id))


def read(engine: Engine, file_id: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes of a file from `start` up to `stop`, piece by piece, each fetched when it is asked for.

    No transaction is open while a piece is in the reader's hands: a slow client must not pin the
    database's vacuum horizon.
    """
    seq, place = (0, 0) if start == 0 else database.run(engine, lambda c: _seek(c, file_id, start))
    while stop is None or place < stop:
        content = database.run(engine, lambda c, seq=seq: _part(c, file_id, seq))  # type: ignore[misc]
        if content is None:
            return
        cut = content[max(start - place, 0) : None if stop is None else stop - place]
        if cut:
            yield cut
        seq, place = seq + 1, place + len(content)


def sweep(connection: Connection) -> int:
    """Delete some expired files, and some that a day has not finished; how many. A few at once: they may be large.

    They are gathered in an array, once: of IN (SELECT ... LIMIT ...) the planner may read more than one helping.
    """
    done = connection.execute(
        text("""
            DELETE FROM file
             WHERE id = ANY(ARRAY(
                   SELECT id FROM file
                    WHERE expires_at < now()
                       OR (state = 'uploading' AND created_at < now() - interval '1 day')
                    LIMIT 10 FOR UPDATE SKIP LOCKED))
        """)
    )
    return done.rowcount


def lines(parts: Iterable[bytes], *, size_max: int) -> Iterator[bytes | None]:
    """Split a stream of bytes at newlines, and only there; None for a line of more than `size_max` bytes.

    Carriage returns before the newline and one byte order mark are taken off. U+2028 and its kin may
    stand inside a JSON string and split nothing. Memory stays at one part and one line.
    """
    found = _split(parts, size_max=size_max)
    for first in found:
        yield first and first.removeprefix(BYTE_ORDER_MARK)
        break
    yield from found


def _split(parts: Iterable[bytes], *, size_max: int) -> Iterator[bytes | None]:
    pending, is_too_long = bytearray(), False
    for part in parts:
        *whole, rest = part.split(b"\n")
        for end in whole:
            if is_too_long or len(pending) + len(end) > size_max:
                yield None
            else:
                yield (bytes(pending) + end if pending else end).removesuffix(b"\r")
            pending.clear()
            is_too_long = False
        if is_too_long or len(pending) + len(rest) > size_max:
            is_too_long = True
            pending.clear()
        else:
            pending += rest
    if is_too_long:
        yield None
    elif pending:
        yield bytes(pending).removesuffix(b"\r")


def _seek(connection: Connection, file_id: str, start: int) -> tuple[int, int]:
    """The piece that holds the byte at `start`, and where that piece begins; the end where there is no such byte.

    Pieces differ in length where a file was uploaded in parts. Their lengths are read without their bytes,
    which are stored apart.
    """
    rows = connection.execute(
        text("""
            SELECT seq, ends - length FROM (
                SELECT seq, length, sum(length) OVER (ORDER BY seq) AS ends
                  FROM file_part, coalesce(size_bytes, octet_length(content)) AS length
                 WHERE file_id = :file_id) AS piece
             WHERE ends > :start ORDER BY seq LIMIT 1
        """),
        {"file_id": file_id, "start": start},
    ).one_or_none()
    return (2**31 - 1, start) if rows is None else (int(rows[0]), int(rows[1]))


def _part(connection: Connection, file_id: str, seq: int) -> bytes | None:
    row = connection.execute(
        select(file_part.c.content, file_part.c.packed).where(file_part.c.file_id == file_id, file_part.c.seq == seq)
    ).one_or_none()
    if row is None:
        return None
    content: bytes = row.content if row.packed is None else isal_zlib.decompress(row.packed)
    return content


def _is_alive() -> sqlalchemy.ColumnElement[bool]:
    return sqlalchemy.or_(table.c.expires_at.is_(None), table.c.expires_at > func.now())
