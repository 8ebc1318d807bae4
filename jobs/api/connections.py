"""A client's connection, under the server: how long it may take over a request's head, and what is not HTTP."""

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.contract.errors import envelope_json
from jobs.errors import BadRequest

HEAD_SECONDS: Final = 30.0


class Connection(H11Protocol):
    """The server's own, but that one who begins a request and does not go on is cut off, and that even a request
    which is not HTTP is refused with the envelope.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is h11.IDLE or is_answered:  # a body whose request was refused may go on arriving
            self._watch_head()
        else:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        content = envelope_json(BadRequest(msg)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
