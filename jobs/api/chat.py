"""/v1/chat/completions: one completion, through the same queue as the batches and ahead of them.

The answer is read from the ledger, where it is complete. A client who reads along hears pieces of it sooner,
over the broker; should none arrive, the stream is the same, only all at once.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import monotonic

import anyio
import orjson
import sqlalchemy.exc
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from jobs import database, direct, models, streams
from jobs.api.auth import ByCaller
from jobs.api.body import read_object
from jobs.api.chunks import KEEP_ALIVE, Chunks
from jobs.api.services import Services, WithServices
from jobs.contract.chat import ChatCompletion, read
from jobs.contract.completion import Completion
from jobs.direct import Direct
from jobs.errors import Failed, NotFound, Unavailable
from jobs.streams import Piece, Subscription

logger = logging.getLogger(__name__)

WAIT_SECONDS_MAX = 600
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.01, 0.5
PAUSE_SHARE = 0.05  # of the time waited so far: hundreds who wait at once must not ask the ledger all the time
KEEP_ALIVE_SECONDS = 15
EVENTS = "text/event-stream"


async def create(request: Request, services: WithServices, caller: ByCaller) -> Response:
    """Answer a chat completion, when a worker has, or piece by piece while it does."""
    body = await read_object(request)
    order = await run_in_threadpool(_order, body)  # a large one takes a second, in which others are answered
    public_id = direct.new_id()

    def submit(connection: Connection) -> Direct:
        model = models.get(connection, order.model, services.settings.model_aliases)
        return direct.submit(connection, caller.project_id, body, model=model.name, public_id=public_id)

    async with AsyncExitStack() as stack:
        broker_url = services.settings.broker_url if order.stream else None
        subscription = await stack.enter_async_context(streams.subscribe(broker_url, public_id))
        queued = await run_in_threadpool(database.run, services.engine, submit)
        stack.push_async_callback(_forget, services, queued.id)
        services.hints.pump(queued.model)
        asked = Asked(services, queued, subscription)
        if order.stream:
            return await _begin(request, asked, order, stack)
        status, answer = await asked.answer(request)
        return Response(answer, status_code=status, media_type="application/json")


class Asked:
    """A completion in the queue, watched: in the ledger, and where pieces of it may arrive."""

    def __init__(self, services: Services, queued: Direct, subscription: Subscription) -> None:
        self.queued = queued
        self._engine = services.engine
        self._subscription = subscription
        self._began = monotonic()

    async def answer(self, request: Request) -> tuple[int, str]:
        """Status and JSON of the answer. ClientDisconnect if nobody waits for it any more."""
        while True:
            if (stored := await self._stored()) is not None:
                return stored
            if await request.is_disconnected():
                raise ClientDisconnect
            await self._pause()

    async def next(self) -> Piece | tuple[int, str] | None:
        """A piece of the answer, or status and JSON of the whole; None if neither came for a moment.

        Unavailable once it took too long.
        """
        if (piece := await self._subscription.next(0)) is not None:
            return piece
        if (stored := await self._stored()) is not None:
            return stored
        if not self._subscription.is_open:
            await self._pause()
            return None
        self._refuse_late()
        return await self._subscription.next(self._pause_seconds)

    async def _stored(self) -> tuple[int, str] | None:
        return await run_in_threadpool(database.run, self._engine, lambda c: direct.answer(c, self.queued.id))

    async def _pause(self) -> None:
        self._refuse_late()
        await asyncio.sleep(self._pause_seconds)

    def _refuse_late(self) -> None:
        if monotonic() - self._began > WAIT_SECONDS_MAX:
            raise Unavailable(f"No worker answered within {WAIT_SECONDS_MAX} seconds. Please try again later.")

    @property
    def _pause_seconds(self) -> float:
        return min(max(PAUSE_SHARE * (monotonic() - self._began), PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)


class EventStream(StreamingResponse):
    """Server-sent events; what they are made of is let go when the last is sent, or nobody reads them any more."""

    def __init__(self, events: AsyncIterator[bytes], resources: AsyncExitStack) -> None:
        super().__init__(events, media_type=EVENTS, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            await super().__call__(scope, receive, send)


async def _begin(request: Request, asked: Asked, order: ChatCompletion, stack: AsyncExitStack) -> Response:
    """The stream, once there is something to send or a client must be kept awake; else a refusal as any other.

    As long as nothing was sent, a refusal of the worker can still be the answer's own status.
    """
    first, deadline = None, monotonic() + KEEP_ALIVE_SECONDS
    while first is None and monotonic() < deadline:
        if await request.is_disconnected():
            raise ClientDisconnect
        first = await asked.next()
    if isinstance(first, tuple) and first[0] >= 400:
        return Response(first[1], status_code=first[0], media_type="application/json")
    chunks = Chunks(
        order,
        completion_id=f"chatcmpl-{asked.queued.public_id.removeprefix('batch_')}",
        created=int(asked.queued.created_at.timestamp()),
    )
    return EventStream(_events(asked, chunks, first), stack.pop_all())


async def _events(asked: Asked, chunks: Chunks, found: Piece | tuple[int, str] | None) -> AsyncIterator[bytes]:
    for event in chunks.opening():
        yield event
    try:
        while not isinstance(found, tuple):
            if found is None:
                yield KEEP_ALIVE
            else:
                for event in chunks.piece(found):
                    yield event
            found = await _next_within(asked, KEEP_ALIVE_SECONDS)
        status, body = found
        ending = chunks.ending(Completion.model_validate_json(body)) if status < 400 else chunks.broken(_failure(body))
    except Unavailable as refusal:
        ending = chunks.broken(refusal)
    for event in ending:
        yield event


async def _next_within(asked: Asked, seconds: float) -> Piece | tuple[int, str] | None:
    """What comes next, None if nothing came in time."""
    deadline = monotonic() + seconds
    while (found := await asked.next()) is None and monotonic() < deadline:
        pass
    return found


def _failure(body: str) -> Failed:
    """A worker's refusal, of which the status can no longer be told."""
    error = orjson.loads(body)["error"]
    return Failed(error["message"], code=error["code"], param=error["param"])


def _order(body: dict[str, object]) -> ChatCompletion:
    order = read(body)
    if "\0" in order.model:
        raise NotFound("The model does not exist", code="model_not_found", param="model")
    return order


async def _forget(services: Services, batch_id: int) -> None:
    """Take a completion out of the queue, also where nobody waits any more."""
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(_drop, services, batch_id)


def _drop(services: Services, batch_id: int) -> None:
    """Where that fails, the sweeper will."""
    try:
        database.run(services.engine, lambda c: direct.drop(c, batch_id))
    except sqlalchemy.exc.SQLAlchemyError as error:
        logger.warning("completion not dropped", extra={"batch": batch_id, "reason": str(error)})
