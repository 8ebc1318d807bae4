"""Batches: made, read, listed, and moved from state to state. The caller owns the transaction."""

import hashlib
import secrets
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, bindparam, case, func, literal_column, select, text, true
from sqlalchemy.dialects.postgresql import ARRAY, JSON, insert
from sqlalchemy.types import Text

from jobs import leases, webhooks
from jobs.contract.batch import CreateBatch, Fault, window_seconds
from jobs.errors import Conflict, NotFound
from jobs.states import TERMINAL, BatchState, sources
from jobs.tables import batch as table
from jobs.tables import tally


@dataclass(frozen=True, slots=True)
class Batch:
    """The OpenAI object. While it runs, the counts are what its tally says now."""

    id: int
    public_id: str
    project_id: str
    key_id: str | None
    is_direct: bool
    endpoint: str
    completion_window: str
    model: str | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    state: BatchState
    outcome: BatchState | None
    metadata: dict[str, str] | None
    errors: dict[str, object] | None
    priority: int
    output_lifetime_seconds: int | None
    total: int
    completed: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list, and whether more follows."""

    batches: list[Batch]
    has_more: bool


COLUMNS = [table.c[field.name] for field in fields(Batch)]
LIVE = {
    "completed": "ok",
    "failed": "failed",
    "prompt_tokens": "prompt_tokens",
    "cached_tokens": "cached_tokens",
    "completion_tokens": "completion_tokens",
    "reasoning_tokens": "reasoning_tokens",
}
SUMS = (
    select(*(func.sum(tally.c[column]).label(f"live_{name}") for name, column in LIVE.items()))
    .where(tally.c.batch_id == table.c.id, table.c.state.not_in([state.value for state in TERMINAL]))
    .lateral("sums")
)
# With what its tally says now: one statement, made once, for it is asked again and again while a batch runs.
COUNTED = select(*COLUMNS, *SUMS.c).select_from(table.join(SUMS, true())).where(table.c.is_direct.is_(False))
LISTED_FAULTS = 100
FIRST_FAULTS = literal_column(
    f"""
    json_build_object('object', 'list', 'data', (
        SELECT json_agg(fault ORDER BY number) FROM json_array_elements(batch.errors -> 'data')
               WITH ORDINALITY AS told(fault, number) WHERE number <= {LISTED_FAULTS}))
    """,  # noqa: S608  a number of ours
    JSON,
)
LISTED = COUNTED.with_only_columns(
    *(column for column in COUNTED.selected_columns if column.name != "errors"),
    case((table.c.errors.is_not(None), FIRST_FAULTS)).label("errors"),
)
ONE = COUNTED.where(table.c.public_id == bindparam("public_id"), table.c.project_id == bindparam("project_id"))


def create(
    connection: Connection,
    project_id: str,
    order: CreateBatch,
    *,
    idempotency_key: str | None,
    key_id: str | None = None,
) -> Batch:
    """Make a batch, or find the one that the same idempotency key and order made before.

    Conflict if the idempotency key was used for another order. A file that does not exist is not refused
    here: as at OpenAI the batch is made, and fails validation. `key_id` is the caller's key, whose limits it
    counts against.
    """
    digest = hashlib.sha256(order.model_dump_json().encode()).digest()
    statement = insert(table).values(
        public_id=f"batch_{secrets.token_hex(16)}",
        project_id=project_id,
        key_id=key_id,
        endpoint=order.endpoint,
        completion_window=order.completion_window,
        input_file_id=order.input_file_id,
        state=BatchState.VALIDATING.value,
        metadata=order.metadata,
        output_lifetime_seconds=order.output_expires_after.seconds if order.output_expires_after else None,
        idempotency_key=idempotency_key,
        idempotency_sha256=digest,
        expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, window_seconds(order.completion_window)),
    )
    made = connection.execute(
        statement.on_conflict_do_nothing(index_elements=["project_id", "idempotency_key"]).returning(*COLUMNS)
    ).one_or_none()
    if made is not None:
        return _batch(made)
    former = connection.execute(
        select(*COLUMNS, table.c.idempotency_sha256).where(
            table.c.project_id == project_id, table.c.idempotency_key == idempotency_key
        )
    ).one()
    if former.idempotency_sha256 != digest:
        raise Conflict("This Idempotency-Key was used before with other parameters.", param="Idempotency-Key")
    return get(connection, project_id, former.public_id)


def get(connection: Connection, project_id: str, public_id: str) -> Batch:
    """A batch of this project. NotFound for any other."""
    row = connection.execute(ONE, {"public_id": public_id, "project_id": project_id}).one_or_none()
    if row is None:
        raise NotFound(f"No batch found with id '{public_id}'.")
    return _counted(row)


def find(connection: Connection, project_id: str, *, limit: int, after: str | None) -> Page:
    """A page of this project's batches, newest first, starting behind the batch `after`.

    Of the faults of each, only the first LISTED_FAULTS: a page of batches with all of theirs would fill the memory.
    """
    query = LISTED.where(table.c.project_id == project_id)
    if after is not None:
        query = query.where(table.c.id < get(connection, project_id, after).id)
    rows = connection.execute(query.order_by(table.c.id.desc()).limit(limit + 1)).all()
    return Page([_counted(row) for row in rows[:limit]], has_more=len(rows) > limit)


def cancel(connection: Connection, project_id: str, public_id: str) -> Batch:
    """Seal a batch: what is stored stays, nothing else will be. Conflict once it has ended otherwise.

    The epoch grows: files that are being written of it, say of its expiry, tell of another end.
    """
    batch = get(connection, project_id, public_id)
    moved = connection.execute(
        text("""
            UPDATE batch SET state = 'cancelling', outcome = 'cancelled', cancelling_at = now(),
                             owner = NULL, epoch = epoch + 1
             WHERE id = :id AND state = ANY(:sources)
        """).bindparams(bindparam("sources", type_=ARRAY(Text))),
        {"id": batch.id, "sources": sources(BatchState.CANCELLING)},
    )
    if moved.rowcount:
        leases.void(connection, batch.id)
    batch = get(connection, project_id, public_id)
    if batch.state not in (BatchState.CANCELLING, BatchState.CANCELLED):
        raise Conflict(f"Cannot cancel a batch with status '{batch.state.value}'.")
    return batch


def take(connection: Connection, batch_id: int, *, owner: UUID, states: list[str], silent_seconds: float) -> int | None:
    """Lease the batch itself, to ingest or to export it; the epoch of the lease, None if it is not to be had.

    Promise: one live process at a time; that its threads do not meet is the process's own care. The lease of a
    process that fell silent may be taken over, and its own that it could not give back, or never heard that it got.
    """
    epoch: int | None = connection.execute(
        text("""
            UPDATE batch b SET epoch = b.epoch + 1, owner = :owner
             WHERE b.id = :id AND b.state = ANY(:states)
               AND (b.owner IS NULL OR b.owner = :owner OR NOT EXISTS (
                    SELECT 1 FROM worker w
                     WHERE w.id = b.owner AND w.heartbeat_at > now() - make_interval(secs => :silent_seconds)))
            RETURNING b.epoch
        """).bindparams(bindparam("states", type_=ARRAY(Text))),
        {"id": batch_id, "owner": owner, "states": states, "silent_seconds": silent_seconds},
    ).scalar_one_or_none()
    return epoch


def give_back(connection: Connection, batch_id: int, epoch: int) -> None:
    """End a lease of the batch without a result, so that another may try."""
    connection.execute(
        text("UPDATE batch SET owner = NULL WHERE id = :id AND epoch = :epoch"),
        {"id": batch_id, "epoch": epoch},
    )


def begin(connection: Connection, batch_id: int, epoch: int, *, model: str, total: int) -> bool:
    """validating → in_progress, by the holder of the lease; False if the batch moved on meanwhile."""
    done = connection.execute(
        text("""
            UPDATE batch
               SET state = 'in_progress', model = :model, total = :total, owner = NULL,
                   in_progress_at = clock_timestamp()  -- now() is when this transaction began to read the file
             WHERE id = :id AND state = 'validating' AND epoch = :epoch
        """),
        {"id": batch_id, "epoch": epoch, "model": model, "total": total},
    )
    return done.rowcount == 1


def fail(connection: Connection, batch_id: int, epoch: int, faults: list[Fault]) -> bool:
    """validating → failed, with the faults of its file; False if the batch moved on meanwhile."""
    errors = {"object": "list", "data": [fault.model_dump() for fault in faults]}
    done = connection.execute(
        text("""
            UPDATE batch SET state = 'failed', failed_at = now(), errors = :errors, owner = NULL
             WHERE id = :id AND state = 'validating' AND epoch = :epoch
            RETURNING project_id, public_id
        """).bindparams(bindparam("errors", type_=JSON)),
        {"id": batch_id, "epoch": epoch, "errors": errors},
    ).one_or_none()
    if done is not None:
        webhooks.announce(
            connection, project_id=done.project_id, batch_public_id=done.public_id, state=BatchState.FAILED
        )
    return done is not None


def close_if_answered(connection: Connection, batch_id: int) -> bool:
    """in_progress → finalizing once no chunk is open; True for the one caller that moved it.

    Ask after the commit of a flush: two last flushes that run at once each see the other unfinished. Two
    questions, since each has its own small index; one for both states would read every chunk that is done.
    """
    done = connection.execute(
        text("""
            UPDATE batch SET state = 'finalizing', outcome = 'completed', finalizing_at = now()
             WHERE id = :id AND state = 'in_progress'
               AND NOT EXISTS (SELECT 1 FROM chunk WHERE batch_id = :id AND state = 'ready')
               AND NOT EXISTS (SELECT 1 FROM chunk WHERE batch_id = :id AND state = 'leased')
        """),
        {"id": batch_id},
    )
    return done.rowcount == 1


def expire(connection: Connection) -> list[int]:
    """Seal the batches whose window has passed; their ids, each once."""
    rows = connection.execute(
        text("""
            UPDATE batch SET state = 'finalizing', outcome = 'expired', finalizing_at = now()
             WHERE state = 'in_progress' AND expires_at <= now()
            RETURNING id
        """)
    )
    expired = [row[0] for row in rows]
    for batch_id in expired:
        leases.void(connection, batch_id)
    return expired


def finish(
    connection: Connection,
    batch_id: int,
    epoch: int,
    *,
    output_file_id: str | None,
    error_file_id: str | None,
) -> BatchState | None:
    """finalizing or cancelling → its outcome, together with its files, counts and usage.

    Promise: one transaction, by the holder of the lease, which also queues the webhooks; None if the batch
    moved on meanwhile. Done again after a COMMIT of unknown outcome it changes nothing: only the holder of the last
    epoch can have ended the batch. What was never executed counts as failed, since its line stands in the error file.
    """
    row = connection.execute(
        text("""
            WITH sums AS (
                SELECT coalesce(sum(ok), 0) AS ok, coalesce(sum(prompt_tokens), 0) AS prompt,
                       coalesce(sum(cached_tokens), 0) AS cached,
                       coalesce(sum(completion_tokens), 0) AS completion,
                       coalesce(sum(reasoning_tokens), 0) AS reasoning
                  FROM chunk WHERE batch_id = :id)
            UPDATE batch b
               SET state = b.outcome, owner = NULL,
                   output_file_id = :output_file_id, error_file_id = :error_file_id,
                   completed = sums.ok, failed = b.total - sums.ok,
                   prompt_tokens = sums.prompt, cached_tokens = sums.cached,
                   completion_tokens = sums.completion, reasoning_tokens = sums.reasoning,
                   completed_at = CASE b.outcome WHEN 'completed' THEN now() END,
                   expired_at = CASE b.outcome WHEN 'expired' THEN now() END,
                   cancelled_at = CASE b.outcome WHEN 'cancelled' THEN now() END
              FROM sums
             WHERE b.id = :id AND b.epoch = :epoch AND b.state IN ('finalizing', 'cancelling')
            RETURNING b.state, b.project_id, b.public_id, b.is_direct
        """),
        {
            "id": batch_id,
            "epoch": epoch,
            "output_file_id": output_file_id,
            "error_file_id": error_file_id,
        },
    ).one_or_none()
    if row is None:
        return _ended_with(connection, batch_id, epoch)
    state = BatchState(row.state)
    if not row.is_direct:
        webhooks.announce(connection, project_id=row.project_id, batch_public_id=row.public_id, state=state)
    return state


def _ended_with(connection: Connection, batch_id: int, epoch: int) -> BatchState | None:
    """The terminal state to which the holder of this epoch brought a batch, None if it did not."""
    state = connection.execute(
        text("SELECT state FROM batch WHERE id = :id AND epoch = :epoch AND state = outcome"),
        {"id": batch_id, "epoch": epoch},
    ).scalar_one_or_none()
    return None if state is None else BatchState(state)


def by_id(connection: Connection, batch_id: int) -> Batch | None:
    """A batch by the id that hints carry, direct ones too."""
    row = connection.execute(select(*COLUMNS).where(table.c.id == batch_id)).one_or_none()
    return None if row is None else _batch(row)


def in_states(connection: Connection, *states: BatchState) -> list[int]:
    """The id of every batch in one of `states`."""
    query = select(table.c.id).where(table.c.state.in_([state.value for state in states]))
    return list(connection.execute(query).scalars())


def _batch(row: object) -> Batch:
    values = {field.name: getattr(row, field.name) for field in fields(Batch)}
    values["state"] = BatchState(values["state"])
    values["outcome"] = values["outcome"] and BatchState(values["outcome"])
    return Batch(**values)


def _counted(row: Row[*tuple[Any, ...]]) -> Batch:
    """A batch of COUNTED. One that has ended, or has no answer yet, has its counts in its own row."""
    batch = _batch(row)
    if row.live_completed is None:
        return batch
    live: dict[str, Any] = {name: int(getattr(row, f"live_{name}")) for name in LIVE}
    return replace(batch, **live)
