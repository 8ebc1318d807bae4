"""A server that outlives us: started in a session of its own, found again, and asked to stop.

Its life is the lock it inherits; its process id, kept in a file, is needed only to send it a signal, and
is believed only where the command line of that process names our folder.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.embedded import locks
from gristmill.embedded.account import ENVIRONMENT, Account
from gristmill.embedded.errors import EmbeddedError

LOG_BYTES_MAX = 16 * 1024 * 1024
SAID_BYTES = 64 * 1024
PID_ROOM = b" " * 20 + b"\n"  # written before the start, so that a full disk cannot lose the id after it
KILLED_SECONDS = 10
AGAIN_SECONDS = 1
ENDING_LINES = 12

STARTED = " UTC: start\n"  # ends the line that we write into the log before each start
# The shell leaves at once, so the server is nobody's child: no zombie of ours, and it stays when we go.
# It writes the server's id before anything else can happen to us.
START = '"$@" </dev/null >&2 & echo $!'

# Postgres: "... FATAL:  words"; Valkey: "7:M 21 Nov 2026 04:30:43.705 # words"; initdb: "error: words".
FAULT = re.compile(r"(?:(?:FATAL|PANIC):\s+|:M [^#*]* # |\berror: )(?P<words>.+)")
# What is said in passing: to those who knock too early, about the machine, and at a farewell.
IDLE_TALK = re.compile("the database system is |WARNING|bye bye")


@dataclass(frozen=True, slots=True)
class Daemon:
    """One server's place in `folder`: `<name>.lock`, `<name>.pid` and `<name>.log`.

    `mark` is a path that stands in the server's command line and in no other's.
    """

    folder: Path
    name: str
    mark: Path

    @property
    def lock(self) -> Path:
        """Held by the server and its children for as long as one of them lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def pid_file(self) -> Path:
        """The process id of the latest start."""
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The running server's process id; None where it does not run or is out of our sight."""
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if f" {self.mark} " in f"{command_line(pid)} " else None

    def is_running(self) -> bool:
        """Whether the server, or any process it left behind, is alive."""
        return locks.is_held(self.lock)

    def start(self, command: Sequence[str], *, account: Account, folder: Path) -> None:
        """Start `command` as `account` in `folder`. Call only under the lock of all starts.

        Returns at once: whether the server comes up is seen by asking it. PermissionError where the account
        may not execute the shell.
        """
        self._shorten_log()
        lock = locks.opened(self.lock)
        try:
            if not locks.try_exclusive(lock):
                raise EmbeddedError(f"Another process is starting or stopping the {self.name} of {self.folder}.")
            self.pid_file.write_bytes(PID_ROOM)
            with self.log.open("ab") as log, self.pid_file.open("r+b") as pid_file:
                log.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}{STARTED}".encode())
                log.flush()
                subprocess.run(
                    ["/bin/sh", "-c", START, "sh", *command],
                    cwd=folder,
                    env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=pid_file,
                    stderr=log,
                    check=False,  # a shell that could not fork says so in the log
                    start_new_session=True,  # the Ctrl-C of our terminal is not meant for it
                    umask=0o077,
                    pass_fds=[lock],
                    user=account.user,
                    group=account.group,
                    extra_groups=account.groups,
                )
        finally:
            os.close(lock)  # ours; the server keeps its own

    def stop(self, *, gently: signal.Signals, gently_seconds: float, firmly: signal.Signals) -> None:
        """Ask the server to end, insist after `gently_seconds`, and wait until all of it is gone.

        It is asked again and again: one that has only just been started does not listen yet. EmbeddedError where it
        runs out of our sight (another container's, for one) or does not end.
        """
        if not self.is_running():
            return
        for request, seconds in ((gently, gently_seconds), (firmly, KILLED_SECONDS)):
            deadline = time.monotonic() + seconds
            while (pid := self.pid) is not None and time.monotonic() < deadline:
                self._send(pid, request)
                if self.wait_until_gone(AGAIN_SECONDS):
                    return
            if self.wait_until_gone(AGAIN_SECONDS):
                return
        raise EmbeddedError(f"The {self.name} of {self.folder} runs and cannot be stopped from here; see {self.log}.")

    def wait_until_gone(self, seconds: float) -> bool:
        """Whether the server has ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(locks.POLL_SECONDS)
        return True

    def fault(self) -> str:
        """The fault with which the server ended since its latest start; empty if it named none."""
        return fault(self._said())

    def last_line(self) -> str:
        """The last thing it said since its latest start, fault or not."""
        return (self._said().strip().splitlines() or ["it said nothing"])[-1]

    def _send(self, pid: int, request: signal.Signals) -> None:
        try:
            os.kill(pid, request)
        except ProcessLookupError:
            pass  # it ended by itself
        except PermissionError as error:
            raise EmbeddedError(
                f"The {self.name} of {self.folder} runs as another user; stop it as that one."
            ) from error

    def _said(self) -> str:
        """The end of the log, from the latest start on."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - SAID_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return text.rpartition(STARTED)[2]

    def _shorten_log(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))


def fault(text: str) -> str:
    """The fault with which a server's output ends, without its time stamp; empty if there is none.

    Of several it is the first, as the others follow from it; what lies further back was survived.
    """
    lines = [line for line in text.splitlines() if not IDLE_TALK.search(line)]
    faults = [found["words"] for line in lines[-ENDING_LINES:] if (found := FAULT.search(line))]
    return faults[0].strip().rstrip(".") if faults else ""


def command_line(pid: int) -> str:
    """The command line of a process, its words parted by blanks; empty for none and for a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()
