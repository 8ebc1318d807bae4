"""A client's connection, under the server: how large a request's head may be, how long it and the taking of an answer
may last, and what is not HTTP.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobs.contract.errors import envelope_json
from jobs.errors import BadRequest

HEAD_SECONDS: Final = 30.0
"""How long a client may take over a request's head."""
HEAD_SIZE_MAX: Final = 64 * 1024
TAKE_SECONDS: Final = 60.0
"""How long a client may take over what it was sent: pieces of a file, of 1 MiB at most, or the rest of its answer."""


class Connection(HttpToolsProtocol):
    """The server's own, but that one who begins a request and does not go on is cut off, as is one whose head has no
    end or who does not take its answer, and that even a request which is not HTTP is refused with the envelope.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _head_size = 0
    """How much has come since the last head was whole, of a request's head or after an answer."""
    _has_head = False
    _take_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_take()
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
        self._close()

    def pause_writing(self) -> None:
        """The client lags: more than 64 KiB wait for it."""
        super().pause_writing()
        self._watch_take()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._forget_take()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def _close(self) -> None:
        """Close; a client who does not even take what is left for it would keep the connection for ever."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._watch_take()

    def _watch_take(self) -> None:
        if self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def _forget_take(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
