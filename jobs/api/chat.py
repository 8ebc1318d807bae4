"""/v1/chat/completions: one completion, through the same queue as the batches and ahead of them."""

import asyncio
import logging
from time import monotonic

import anyio
import sqlalchemy.exc
from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from jobs import database, direct, models
from jobs.api.auth import ByCaller
from jobs.api.body import read_object
from jobs.api.services import Services, WithServices
from jobs.contract.chat import ChatCompletion, without_unsupported
from jobs.contract.errors import refusal_of
from jobs.errors import BadRequest, NotFound, Unavailable

logger = logging.getLogger(__name__)

WAIT_SECONDS_MAX = 600
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX, PAUSE_GROWTH = 0.01, 0.1, 1.2


async def create(request: Request, services: WithServices, caller: ByCaller) -> Response:
    """Answer a chat completion, when a worker has."""
    body = await read_object(request)
    order = _order(body)

    def submit(connection: Connection) -> int:
        models.get(connection, order.model)
        return direct.submit(connection, caller.project_id, body)

    batch_id = await run_in_threadpool(database.run, services.engine, submit)
    try:
        services.hints.pump(order.model)
        status, answer = await _answer(request, services, batch_id)
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(_drop, services, batch_id)
    return Response(answer, status_code=status, media_type="application/json")


async def _answer(request: Request, services: Services, batch_id: int) -> tuple[int, str]:
    """Status and JSON of the answer. ClientDisconnect if nobody waits for it any more."""
    pause_seconds, deadline = PAUSE_SECONDS_MIN, monotonic() + WAIT_SECONDS_MAX
    while monotonic() < deadline:
        answer = await run_in_threadpool(database.run, services.engine, lambda c: direct.answer(c, batch_id))
        if answer is not None:
            return answer
        if await request.is_disconnected():
            raise ClientDisconnect
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * PAUSE_GROWTH, PAUSE_SECONDS_MAX)
    raise Unavailable(f"No worker answered within {WAIT_SECONDS_MAX} seconds. Please try again later.")


def _order(body: dict[str, object]) -> ChatCompletion:
    try:
        order = ChatCompletion.model_validate(without_unsupported(body))
    except ValidationError as error:
        raise refusal_of(error) from None
    if order.stream:
        raise BadRequest(
            "Unsupported value: 'stream' does not support true: streaming is not served yet.",
            code="unsupported_value",
            param="stream",
        )
    if "\0" in order.model:
        raise NotFound("The model does not exist", code="model_not_found", param="model")
    return order


def _drop(services: Services, batch_id: int) -> None:
    """Forget the completion; where that fails, the sweeper will."""
    try:
        database.run(services.engine, lambda c: direct.drop(c, batch_id))
    except sqlalchemy.exc.SQLAlchemyError as error:
        logger.warning("completion not dropped", extra={"batch": batch_id, "reason": str(error)})
