"""Text on its way to a client who reads along: pieces over the broker, before the answer is in the ledger.

The ledger stays the truth. A piece says where in its choice it begins, so a reader can tell what it has seen,
what is new and what got lost; and whatever never arrives is read from the stored answer. Nothing waits for a
piece: one that cannot be sent at once is dropped.
"""

import logging
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import orjson
import redis
import redis.asyncio
import redis.exceptions

logger = logging.getLogger(__name__)

WAITING_MAX = 10_000
PIECES_AT_ONCE = 256
TIMEOUT_SECONDS = 5
UNREACHABLE = (redis.exceptions.RedisError, OSError)


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters of one choice's text, the first of which stands at `start`, counted in characters. What a model
    thinks is a text of its own.
    """

    choice: int
    start: int
    text: str
    is_thinking: bool = False


class Publisher:
    """Sends pieces from a thread of its own: the engine never waits for the broker and never fails by it."""

    def __init__(self, broker_url: str) -> None:
        self._broker = redis.Redis.from_url(
            _address(broker_url), socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._send_all, name="pieces", daemon=True)
        self._thread.start()

    def publish(self, request_id: str, choice: int, text: str, *, start: int, is_thinking: bool = False) -> None:
        """Send `text`, before which there are `start` characters of this choice. Never more than will be in the answer.

        A request is known by the public id of its batch.
        """
        content = orjson.dumps([choice, start, text, is_thinking])
        try:
            self._waiting.put_nowait((_channel(request_id), content))
        except queue.Full:
            logger.warning("piece dropped", extra={"request": request_id})

    def close(self, timeout_seconds: float = 2) -> None:
        """Send what waits, for a moment, and stop."""
        try:
            self._waiting.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._thread.join(timeout_seconds)
        self._broker.close()

    def _send_all(self) -> None:
        is_open = True
        while is_open:
            pieces = [self._waiting.get()]
            while len(pieces) < PIECES_AT_ONCE and not self._waiting.empty():
                pieces.append(self._waiting.get())
            is_open = None not in pieces
            self._send([piece for piece in pieces if piece is not None])

    def _send(self, pieces: list[tuple[str, bytes]]) -> None:
        try:
            with self._broker.pipeline(transaction=False) as pipeline:
                for channel, content in pieces:
                    pipeline.publish(channel, content)
                pipeline.execute()
        except UNREACHABLE as error:
            logger.warning("pieces lost", extra={"pieces": len(pieces), "reason": str(error)})


class Subscription:
    """What is published for one request from now on; for ever empty where the broker cannot be reached."""

    def __init__(self, channel: "redis.asyncio.client.PubSub | None") -> None:
        self._channel = channel

    async def next(self, timeout_seconds: float) -> Piece | None:
        """The next piece, or None if none arrives in time, or none ever will."""
        if self._channel is None:
            return None
        try:
            message = await self._channel.get_message(ignore_subscribe_messages=True, timeout=timeout_seconds)
        except UNREACHABLE as error:
            logger.warning("subscription lost", extra={"reason": str(error)})
            self._channel = None
            return None
        return None if message is None else Piece(*orjson.loads(message["data"]))

    @property
    def is_open(self) -> bool:
        """Whether there is anything to wait for."""
        return self._channel is not None


@asynccontextmanager
async def subscribe(broker_url: str | None, request_id: str) -> AsyncIterator[Subscription]:
    """Hear what is published for a request. Open it before the request can be seen, to miss nothing.

    A broker that cannot be reached is no error: the answer then comes whole, from the ledger.
    """
    if broker_url is None:
        yield Subscription(None)
        return
    broker = redis.asyncio.Redis.from_url(
        _address(broker_url), socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    )
    channel = broker.pubsub()
    try:
        try:
            await channel.subscribe(_channel(request_id))
            await channel.get_message(timeout=TIMEOUT_SECONDS)  # the broker's word that it has heard us
            subscription = Subscription(channel)
        except UNREACHABLE as error:
            logger.warning("not subscribed", extra={"request": request_id, "reason": str(error)})
            subscription = Subscription(None)
        yield subscription
    finally:
        await channel.aclose()  # type: ignore[no-untyped-call]
        await broker.aclose()


def _channel(request_id: str) -> str:
    return f"gristmill:pieces:{request_id}"


def _address(broker_url: str) -> str:
    """A URL as the client library takes it, of one as Celery does, which spells unix sockets in its own way."""
    parts = urlsplit(broker_url)
    if parts.scheme != "redis+socket":
        return broker_url
    number = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{parts.netloc}{parts.path}?db={number}"
