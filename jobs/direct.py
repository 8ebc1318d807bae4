"""One chat completion through the same queue: a batch of one line, ahead of all others, without files."""

import secrets
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from jobs import leases, results
from jobs.contract.batch import ENDPOINT
from jobs.errors import BadRequest
from jobs.states import BatchState
from jobs.tables import batch as table
from jobs.tables import request

PRIORITY = 0
LINE_NO = 1
CUSTOM_ID = "direct"
WINDOW_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Direct:
    """A completion in the queue. `public_id` is what its pieces of text are published under."""

    id: int
    public_id: str
    created_at: datetime
    model: str


def new_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def submit(connection: Connection, project_id: str, body: dict[str, object], *, model: str, public_id: str) -> Direct:
    """Queue the body of a chat completion, already checked, under an id of the caller's making.

    `model` is the one that the body means, perhaps by another name. BadRequest for a body too deep to be written.

    Promise: one id is one completion, so a transaction whose COMMIT was lost may be run again.
    """
    line = _line(body)
    statement = insert(table).values(
        public_id=public_id,
        project_id=project_id,
        is_direct=True,
        endpoint=ENDPOINT,
        completion_window="15m",
        model=model,
        state=BatchState.IN_PROGRESS.value,
        priority=PRIORITY,
        total=1,
        in_progress_at=func.now(),
        expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, WINDOW_SECONDS),
    )
    made = connection.execute(statement.on_conflict_do_nothing().returning(table.c.id)).scalar_one_or_none()
    if made is not None:
        connection.execute(request.insert().values(batch_id=made, line_no=LINE_NO, custom_id=CUSTOM_ID, line=line))
        leases.insert(connection, made, [[LINE_NO]])
    columns = (table.c.id, table.c.public_id, table.c.created_at, table.c.model)
    return Direct(*connection.execute(select(*columns).where(table.c.public_id == public_id)).one())


def answer(connection: Connection, batch_id: int) -> tuple[int, str] | None:
    """Status and JSON body of the answer, None while there is none."""
    return results.of_line(connection, batch_id, LINE_NO)


def drop(connection: Connection, batch_id: int) -> None:
    """Forget a direct completion, answered or not; work under way on it is given up."""
    connection.execute(text("DELETE FROM chunk WHERE batch_id = :id"), {"id": batch_id})
    connection.execute(text("DELETE FROM tally WHERE batch_id = :id"), {"id": batch_id})
    connection.execute(text("DELETE FROM result WHERE batch_id = :id"), {"id": batch_id})
    connection.execute(text("DELETE FROM request WHERE batch_id = :id"), {"id": batch_id})
    connection.execute(text("DELETE FROM batch WHERE id = :id AND is_direct"), {"id": batch_id})


def sweep(connection: Connection) -> int:
    """Forget direct completions whose callers are long gone; how many."""
    rows = connection.execute(
        text("SELECT id FROM batch WHERE is_direct AND expires_at < now() - interval '10 minutes' LIMIT 1000")
    ).all()
    for row in rows:
        drop(connection, row[0])
    return len(rows)


def _line(body: dict[str, object]) -> str:
    """What is read may be nested more deeply than what is written."""
    try:
        return orjson.dumps({"custom_id": CUSTOM_ID, "method": "POST", "url": ENDPOINT, "body": body}).decode()
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"This body is not parseable as valid JSON: {error}.") from error
