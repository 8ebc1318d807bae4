"""The outermost layer: how many requests there are at once, how slow a client may be, what nobody else caught."""

import asyncio
import logging
import secrets
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.api.errors import refuse
from jobs.errors import Failed, TimedOut, Unavailable

logger = logging.getLogger(__name__)

READ_SECONDS: Final = 30.0
"""How long nothing of a request's body may arrive."""
WRITE_SECONDS: Final = 60.0
"""How long a client may take nothing of its answer."""


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
        try:
            async with asyncio.timeout(None if self._is_read else READ_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise TimedOut(f"Nothing of the request's body has arrived for {READ_SECONDS:.0f} seconds.") from None
        self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_begun = True
            message["headers"] = [*message["headers"], (b"x-request-id", self._facts["request_id"].encode())]
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._send(message)
        except TimeoutError:
            logger.info("client takes nothing", extra=self._facts)
            raise ClientDisconnect from None
