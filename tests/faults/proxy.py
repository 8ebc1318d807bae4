"""A network between a process and Postgres that can fail: it holds back what is sent, both ways or one, or is cut,
also at the worst moment.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from gristmill.embedded.postgres import SOCKET

BLOCK = 1 << 16
FATAL = {1, 3}


class Network:
    """Listens in `folder` as Postgres would, and carries what is said to the Postgres whose socket is in `server`."""

    def __init__(self, folder: Path, server: Path) -> None:
        folder.mkdir(mode=0o700)
        self._server = server / SOCKET
        self._there, self._back = threading.Event(), threading.Event()
        self._fatal: bytes | None = None
        self._met = 0
        self._lines: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.heal()
        self._threads[0].start()

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
            for line in self._lines:
                _shut(line)
        self.heal()

    def cut_after(self, words: bytes) -> None:
        """Break a connection once the server has done what these words ask, the first time and the third: who asked
        never hears that it was done.
        """
        self._fatal = words

    @property
    def cuts(self) -> int:
        """How many connections broke at those words."""
        return len(FATAL & set(range(1, self._met + 1)))

    def close(self) -> None:
        """End it, with all connections."""
        _shut(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return  # closed
                self._threads.append(threading.Thread(target=self._connect, args=(client,), daemon=True))
                self._threads[-1].start()

    def _connect(self, client: socket.socket) -> None:
        """Serve one connection to its end."""
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(str(self._server))
            with self._lock:
                self._lines |= {client, server}
            doomed = threading.Event()  # the server's next word is not heard any more

            def is_heard(said: bytes) -> bool:
                if self._is_fatal(said):
                    doomed.set()
                return True

            answers = (server, client, self._back, lambda _: not doomed.is_set())
            back = threading.Thread(target=self._carry, args=answers, daemon=True)
            back.start()
            self._carry(client, server, self._there, is_heard)
            back.join()
            with self._lock:
                self._lines -= {client, server}

    def _carry(
        self, source: socket.socket, target: socket.socket, gate: threading.Event, is_heard: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while said := source.recv(BLOCK):
                gate.wait()
                if not is_heard(said):
                    break
                target.sendall(said)
        for line in (source, target):
            _shut(line)

    def _is_fatal(self, said: bytes) -> bool:
        if self._fatal is None or self._fatal not in said:
            return False
        with self._lock:
            self._met += 1
            return self._met in FATAL


def _shut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
