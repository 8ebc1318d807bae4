"""A network between a process and Postgres that can fail: it holds back what is sent, both ways or one, or is cut."""

import contextlib
import socket
import threading
from pathlib import Path

from gristmill.embedded.postgres import SOCKET

BLOCK = 1 << 16


class Network:
    """Listens in `folder` as Postgres would, and carries what is said to the Postgres whose socket is in `server`."""

    def __init__(self, folder: Path, server: Path) -> None:
        folder.mkdir(mode=0o700)
        self._server = server / SOCKET
        self._there, self._back = threading.Event(), threading.Event()
        self._lines: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        self.heal()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, *, there: bool = True, back: bool = True) -> None:
        """From now on nothing arrives, and nobody is told: half open, if only one way."""
        if there:
            self._there.clear()
        if back:
            self._back.clear()

    def heal(self) -> None:
        """Whatever was held back arrives now, late."""
        self._there.set()
        self._back.set()

    def cut(self) -> None:
        """Every connection breaks; what was held back is lost."""
        with self._lock:
            lines, self._lines = self._lines, set()
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self.heal()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._server))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._lines |= {client, server}
            for source, target, gate in ((client, server, self._there), (server, client, self._back)):
                threading.Thread(target=self._carry, args=(source, target, gate), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while said := source.recv(BLOCK):
                gate.wait()
                target.sendall(said)
        for line in (source, target):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._lines -= {source, target}
