"""/v1/batches: the batch as a client orders, reads and cancels it."""

import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

from fastapi import Header, Query, Request
from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from jobs import batches, database, failpoints, quotas
from jobs.api.auth import ByCaller
from jobs.api.body import read_object
from jobs.api.query import Integer
from jobs.api.services import Services, WithServices
from jobs.contract.batch import (
    Batch,
    BatchList,
    BatchUsage,
    CreateBatch,
    FaultList,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
)
from jobs.contract.errors import refusal_of
from jobs.errors import BadRequest
from jobs.failpoints import Point
from jobs.states import BatchState

KEY = re.compile(r"[\x20-\x7e]{1,256}")


async def create(
    request: Request,
    services: WithServices,
    caller: ByCaller,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Batch:
    """Order a batch; the same order under the same Idempotency-Key is the same batch."""
    if idempotency_key is not None and not KEY.fullmatch(idempotency_key):
        raise BadRequest(
            "Invalid 'Idempotency-Key': expected 1 to 256 printable ASCII characters.",
            code="invalid_value",
            param="Idempotency-Key",
        )
    order = _order(await read_object(request))
    # Without a key of its own an order gets one: a transaction whose COMMIT was lost is run again.
    key = idempotency_key or f"once {secrets.token_hex(16)}"
    open_batches = caller.limits.open_batches or services.settings.open_batches

    def make(connection: Connection) -> batches.Batch:
        made = batches.create(connection, caller.project_id, order, idempotency_key=key, key_id=caller.key_id)
        quotas.refuse_batches(connection, caller.key_id, open_batches=open_batches)
        return made

    made = await run_in_threadpool(database.run, services.engine, make)
    failpoints.reach(Point.BATCH_CREATED)
    services.hints.ingest(made.id)
    return on_wire(made)


def find(
    services: WithServices,
    caller: ByCaller,
    limit: Annotated[Integer, Query(ge=0, le=100)] = 20,
    after: str | None = None,
) -> BatchList:
    """A page of the caller's batches, newest first."""

    def read(connection: Connection) -> tuple[batches.Page, frozenset[str]]:
        page = batches.find(connection, caller.project_id, limit=limit, after=after)
        return page, _served(connection, services, page.batches)

    page, served = database.run_autocommit(services.engine, read)
    data = [on_wire(batch, served) for batch in page.batches]
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


async def get(batch_id: str, services: WithServices, caller: ByCaller) -> Batch:
    """A batch as it stands. Asked again and again while one runs, so it takes one thread, and not one more to write."""

    def read(connection: Connection) -> tuple[batches.Batch, frozenset[str]]:
        batch = batches.get(connection, caller.project_id, batch_id)
        return batch, _served(connection, services, [batch])

    return on_wire(*await run_in_threadpool(database.run_autocommit, services.engine, read))


def cancel(batch_id: str, services: WithServices, caller: ByCaller) -> Batch:
    """Seal a batch; what it has answered by then stays."""
    sealed = database.run(services.engine, lambda c: batches.cancel(c, caller.project_id, batch_id))
    services.hints.finalize(sealed.id)
    return on_wire(sealed)


def _served(connection: Connection, services: Services, found: Iterable[batches.Batch]) -> frozenset[str]:
    """The models that have a worker; not asked for where no batch could wait for one."""
    if all(batch.state is not BatchState.IN_PROGRESS for batch in found):
        return frozenset()
    return services.served.models(connection)


def on_wire(batch: batches.Batch, served: frozenset[str] | None = None) -> Batch:
    """The batch as a client reads it; where it is known which models are `served`, also what it waits for."""
    return Batch(
        id=batch.public_id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=None if batch.errors is None else FaultList.model_validate(batch.errors),
        input_file_id=batch.input_file_id or "",
        completion_window=batch.completion_window,
        status=batch.state.value,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_seconds(batch.completed_at),
        failed_at=_seconds(batch.failed_at),
        expired_at=_seconds(batch.expired_at),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_seconds(batch.cancelled_at),
        request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        usage=_usage(batch),
        metadata=batch.metadata,
        waiting_for=_waiting_for(batch, served),
    )


def _waiting_for(batch: batches.Batch, served: frozenset[str] | None) -> str | None:
    if served is None or batch.state is not BatchState.IN_PROGRESS or batch.model in served:
        return None
    return f"a worker that serves the model '{batch.model}'; there is none now"


def _order(body: dict[str, object]) -> CreateBatch:
    try:
        order = CreateBatch.model_validate(body)
    except ValidationError as error:
        raise refusal_of(error, known=CreateBatch.model_fields) from None
    if "\0" in order.input_file_id:
        raise BadRequest(
            "Invalid 'input_file_id': it must not contain the character U+0000.",
            code="invalid_value",
            param="input_file_id",
        )
    return order


def _usage(batch: batches.Batch) -> BatchUsage:
    return BatchUsage(
        input_tokens=batch.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=batch.cached_tokens),
        output_tokens=batch.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=batch.reasoning_tokens),
        total_tokens=batch.prompt_tokens + batch.completion_tokens,
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
