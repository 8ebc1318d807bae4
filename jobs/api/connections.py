"""A client's connection, under the server: how large a request's head may be and how long it may take, and what is not
HTTP.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobs.contract.errors import envelope_json
from jobs.errors import BadRequest

HEAD_SECONDS: Final = 30.0
HEAD_SIZE_MAX: Final = 64 * 1024


class Connection(HttpToolsProtocol):
    """The server's own, but that one who begins a request and does not go on is cut off, as is one whose head has no
    end, and that even a request which is not HTTP is refused with the envelope.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _head_size = 0
    """How much has come since the last head was whole, of a request's head or after an answer."""
    _has_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._has_head:
            self._head_size += len(data)
        super().data_received(data)
        if not self._has_head and self._head_size > HEAD_SIZE_MAX:
            self.send_400_response("")
        is_answered = self.cycle is not None and self.cycle.response_complete
        if self._has_head and not is_answered:  # a body whose request was refused may go on arriving
            self._forget_head()
        else:
            self._watch_head()

    def on_message_begin(self) -> None:
        self._has_head = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > HEAD_SIZE_MAX:
            raise ValueError("more than what came at once may have")
        self._has_head, self._head_size = True, 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head_size > HEAD_SIZE_MAX:
            msg = f"The head of the request is larger than {HEAD_SIZE_MAX} bytes."
        content = envelope_json(BadRequest(msg)).encode()
        head = [b"HTTP/1.1 400 Bad Request", b"content-type: application/json", b"content-length: %d" % len(content)]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", content]))
        self.transport.close()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
