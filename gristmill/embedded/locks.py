"""Advisory file locks (flock): the kernel drops one when its last holder ends, however that ends.

A lock belongs to the opened file, and a child that inherits the file holds it too. So a server that was
started with a locked file open shows that it lives, to every process of the machine, without a process id:
no stale file, no reused id and no container's own numbering of processes can confuse us.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.02


def opened(path: Path) -> int:
    """A descriptor of the lock file at `path`, which is made if need be; nothing is locked yet."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def shared(path: Path) -> int:
    """A descriptor that holds `path` together with others; close it to let go.

    Waits for an exclusive holder, so take it only where those are brief or excluded by another lock.
    """
    descriptor = opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def try_exclusive(descriptor: int) -> bool:
    """Whether `descriptor` holds its file alone from now on. A shared hold is given up either way."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether any process holds `path` exclusively."""
    descriptor = opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path, *, wait_seconds: float) -> Iterator[bool]:
    """Hold `path` alone for the block; gives False where it was still taken after `wait_seconds`."""
    descriptor = opened(path)
    try:
        deadline = time.monotonic() + wait_seconds
        while not (is_ours := try_exclusive(descriptor)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        yield is_ours
    finally:
        os.close(descriptor)
