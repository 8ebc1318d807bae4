"""The outermost layer: how many requests there are at once, how slowly a body may come, what nobody else caught."""

import asyncio
import logging
import secrets
from time import monotonic
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.api.errors import refuse
from jobs.errors import Failed, TimedOut, Unavailable

logger = logging.getLogger(__name__)

READ_SECONDS: Final = 30.0
"""How long we wait for a request's body beyond what its bytes were worth."""
READ_RATE: Final = 16 * 1024
"""How many bytes of a body are worth a second of waiting."""


def patience_left(seconds: float, *, waited_seconds: float, size: int) -> float:
    """How long we wait for more, after `size` bytes came that we had waited for.

    Nothing can be saved up: a client who sends nothing, or a byte now and then, is cut off after READ_SECONDS,
    whatever it sent before. That we take long to store what came is not counted.
    """
    return min(READ_SECONDS, seconds - waited_seconds + size / READ_RATE)


class Edge:
    """Names each request in `x-request-id` and sees it to its end."""

    def __init__(self, app: ASGIApp, requests_at_once: int) -> None:
        self._app = app
        self._requests_at_once = requests_at_once
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope["path"], receive, send)
        if self._requests >= self._requests_at_once:
            busy = Unavailable(f"The server answers {self._requests} requests already. Please try again soon.")
            await refuse(busy)(scope, receive, exchange.send)
            return
        self._requests += 1
        try:
            await exchange.run(self._app, scope)
        finally:
            self._requests -= 1


class _Exchange:
    """One request and its answer."""

    def __init__(self, path: str, receive: Receive, send: Send) -> None:
        self._facts = {"request_id": f"req_{secrets.token_hex(16)}", "path": path}
        self._receive = receive
        self._send = send
        self._is_begun = False
        self._is_read = False
        self._patience = READ_SECONDS

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except ClientDisconnect:
            logger.info("client left", extra=self._facts)
        except Exception:
            logger.exception("request failed", extra=self._facts)
            if self._is_begun:
                raise  # the server cuts the connection, so that the client sees a broken answer, not a short one
            failed = Failed("The server had an error while answering your request.")
            await refuse(failed)(scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The next of the body; once that is whole, all that can come is the news that the client left."""
        begun_at = monotonic()
        try:
            async with asyncio.timeout(None if self._is_read else self._patience):
                message = await self._receive()
        except TimeoutError:
            raise TimedOut(
                f"The request's body arrives too slowly: expected {READ_RATE} bytes a second or more, "
                f"but for the last {READ_SECONDS:.0f} seconds it brought fewer."
            ) from None
        self._patience = patience_left(
            self._patience, waited_seconds=monotonic() - begun_at, size=len(message.get("body", b""))
        )
        self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_begun = True
            message["headers"] = [*message["headers"], (b"x-request-id", self._facts["request_id"].encode())]
        await self._send(message)
