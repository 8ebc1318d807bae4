"""One chat completion through the same queue: a batch of one line, ahead of all others, without files."""

import secrets

import orjson
from sqlalchemy import Connection, func, text

from jobs import leases, results
from jobs.contract.batch import ENDPOINT
from jobs.states import BatchState
from jobs.tables import batch as table
from jobs.tables import request

PRIORITY = 0
LINE_NO = 1
CUSTOM_ID = "direct"
WINDOW_SECONDS = 900


def submit(connection: Connection, project_id: str, body: dict[str, object]) -> int:
    """Queue the body of a chat completion, already checked; the id to ask for its answer with."""
    batch_id: int = connection.execute(
        table.insert()
        .values(
            public_id=f"batch_{secrets.token_hex(16)}",
            project_id=project_id,
            is_direct=True,
            endpoint=ENDPOINT,
            completion_window="15m",
            model=body["model"],
            state=BatchState.IN_PROGRESS.value,
            priority=PRIORITY,
            total=1,
            in_progress_at=func.now(),
            expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, WINDOW_SECONDS),
        )
        .returning(table.c.id)
    ).scalar_one()
    line = {"custom_id": CUSTOM_ID, "method": "POST", "url": ENDPOINT, "body": body}
    connection.execute(
        request.insert().values(
            batch_id=batch_id, line_no=LINE_NO, custom_id=CUSTOM_ID, line=orjson.dumps(line).decode()
        )
    )
    leases.insert(connection, batch_id, [[LINE_NO]])
    return batch_id


def answer(connection: Connection, batch_id: int) -> tuple[int, str] | None:
    """Status and JSON body of the answer, None while there is none."""
    return results.of_line(connection, batch_id, LINE_NO)


def drop(connection: Connection, batch_id: int) -> None:
    """Forget a direct completion, answered or not; work under way on it is given up."""
    connection.execute(text("DELETE FROM chunk WHERE batch_id = :id"), {"id": batch_id})
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
