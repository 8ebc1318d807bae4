"""What processes use and how long answers take, watched from outside while something else is measured."""

import http.client
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

EVERY_SECONDS = 0.05


class Watch:
    """A thread that looks at something every so often, for as long as it is entered."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def look(self) -> None:
        """Look once."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_seconds):
            self.look()


class Memory(Watch):
    """The most private memory, in MB, of each named process and of the largest child of the Postgres server.

    Private (RssAnon) for Postgres, whose other pages are the buffers that all its processes share; the whole
    resident size (VmHWM) for our own.
    """

    def __init__(self, named: dict[str, int], postmaster: int) -> None:
        super().__init__(0.2)
        self.peak_mb: dict[str, float] = {}
        self._named = named
        self._postmaster = postmaster

    def look(self) -> None:
        for name, pid in self._named.items():
            self._note(name, pid, "VmHWM")
        for child in children(self._postmaster):
            self._note("largest Postgres backend (private)", child, "RssAnon")

    def _note(self, name: str, pid: int, field_name: str) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
        except OSError:
            return  # it has ended
        for line in status.splitlines():
            if line.startswith(f"{field_name}:"):
                self.peak_mb[name] = max(self.peak_mb.get(name, 0), int(line.split()[1]) / 1024)


def children(parent: int) -> list[int]:
    """The processes whose parent this is."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if parent_of(pid) == parent]


def parent_of(pid: int) -> int:
    """The parent of a process; 0 where it has ended."""
    return int(_stat(pid)[1])


def processor_seconds(pid: int) -> float:
    """What a process has used so far, with its children that have ended; 0 where it has ended itself."""
    return sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 15


@dataclass
class Latency:
    """How long GET of one address takes, in milliseconds."""

    samples: list[float] = field(default_factory=list)

    def at(self, share: float) -> float:
        """The time within which this share of the answers came."""
        ranked = sorted(self.samples)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


class Poll(Watch):
    """Asks for one address over a kept connection, twenty times a second."""

    def __init__(self, host: str, port: int, path: str, key: str) -> None:
        super().__init__(EVERY_SECONDS)
        self.latency = Latency()
        self.body = b""
        self._path = path
        self._headers = {"Authorization": f"Bearer {key}"}
        self._connection = http.client.HTTPConnection(host, port, timeout=60)

    def look(self) -> None:
        began = time.perf_counter()
        self._connection.request("GET", self._path, headers=self._headers)
        answer = self._connection.getresponse()
        self.body = answer.read()
        assert answer.status == 200, self.body
        self.latency.samples.append((time.perf_counter() - began) * 1000)
