"""One HTTP POST to an endpoint that may be slow, hostile or gone: bounded in time and size, never redirected."""

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping

from jobs.webhooks import addresses
from jobs.webhooks.addresses import Refused, Resolve, Target

STEP_SECONDS = 5.0  # to connect, and for each piece of the answer
TOTAL_SECONDS = 15.0
ANSWER_SIZE_MAX = 4_096
PASSING = (OSError, http.client.HTTPException, ValueError)


class NotDelivered(Exception):
    """The endpoint did not take the message; the text says why, for the operator."""


class Pinned(http.client.HTTPConnection):
    """A connection to one address that was checked, whatever the host's name says a moment later."""

    def __init__(self, target: Target, address: str, *, allows_private: bool, context: ssl.SSLContext | None) -> None:
        super().__init__(target.host, target.port, timeout=STEP_SECONDS)
        self.default_port = 443 if target.is_tls else 80  # decides whether the Host header names the port
        self._address = address
        self._allows_private = allows_private
        self._context = context
        self._is_over = False

    def connect(self) -> None:
        """Connect, and look again at who answers. Refused if that is not public."""
        plain = socket.create_connection((self._address, self.port), STEP_SECONDS)
        self.sock = plain
        if not self._allows_private:
            addresses.refuse_private(self.host, plain.getpeername()[0])
        if self._context is not None:
            wrapped = self._context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = wrapped
            wrapped.do_handshake()
        if self._is_over:
            raise TimeoutError("timed out")

    def cut(self) -> None:
        """End it from another thread: limits on each step alone would let an endpoint drip for ever."""
        self._is_over = True
        try:
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allows_private: bool,
    resolve: Resolve = addresses.resolve,
    total_seconds: float = TOTAL_SECONDS,
) -> None:
    """Send a message. NotDelivered unless the endpoint answers 2xx in time; a redirect is not followed."""
    try:
        target = addresses.parse(url, allows_private=allows_private)
        address = addresses.checked(target, resolve(target.host, target.port), allows_private=allows_private)
    except Refused as refused:
        raise NotDelivered(str(refused)) from None
    context = ssl.create_default_context() if target.is_tls else None
    connection = Pinned(target, address, allows_private=allows_private, context=context)
    timer = threading.Timer(total_seconds, connection.cut)
    timer.start()
    try:
        status = _status(connection, target.path, headers, body)
    except Refused as refused:
        raise NotDelivered(str(refused)) from None
    except PASSING as error:
        raise NotDelivered(f"{type(error).__name__}: {error}"[:300]) from None
    finally:
        timer.cancel()
        connection.close()
    if not 200 <= status < 300:
        raise NotDelivered(f"It answered with status {status}.")


def _status(connection: Pinned, path: str, headers: Mapping[str, str], body: bytes) -> int:
    connection.request("POST", path, body, dict(headers))
    answer = connection.getresponse()
    answer.read(ANSWER_SIZE_MAX)  # what it says does not matter; it may have begun to say it
    return answer.status
