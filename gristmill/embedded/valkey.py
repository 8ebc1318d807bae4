"""The embedded Valkey: it carries hints, so nothing in it is written to disk or missed after a crash."""

import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from gristmill.embedded import account as accounts
from gristmill.embedded import binaries, folders
from gristmill.embedded.daemon import Daemon

SOCKET = "valkey.sock"
ANSWER_SECONDS = 2
STOP_SECONDS = 10
OPTIONS = {
    "port": "0",  # no TCP: whoever may enter the socket's folder may talk to it, and nobody else
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",  # refuse rather than drop a hint in silence
    "daemonize": "no",
    "set-proc-title": "no",  # its command line is how we know it again
}


@dataclass(frozen=True, slots=True)
class Valkey:
    """A valkey-server on a unix socket, run as the current user."""

    name: ClassVar[str] = "Valkey"
    daemon: Daemon
    folder: Path
    socket: Path

    @classmethod
    def of(cls, servers: Path) -> Self:
        """The Valkey of this servers' folder; nothing is started."""
        folder = servers / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        address = folders.for_socket(folder, SOCKET, accounts.current()) / SOCKET
        return cls(Daemon(servers, "valkey", mark=address), folder, address)

    @property
    def url(self) -> str:
        """What Celery connects to."""
        return f"redis+socket://{quote(str(self.socket))}?virtual_host=0"

    def launch(self) -> None:
        """Start the server and return at once."""
        command = [str(binaries.valkey()), "--unixsocket", str(self.socket)]
        for option, value in OPTIONS.items():
            command += [f"--{option}", value]
        self.daemon.start(command, account=accounts.current(), folder=self.folder)

    def is_ready(self) -> bool:
        """Whether it answers a PING."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(ANSWER_SECONDS)
                line.connect(str(self.socket))
                line.sendall(b"PING\r\n")
                return line.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        """End the server."""
        self.daemon.stop(gently=signal.SIGTERM, gently_seconds=STOP_SECONDS, firmly=signal.SIGKILL)
