"""The masks of grammars, found while the engine runs its step: by one of a few threads, or by who needs one first."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Final

import numpy as np
from llguidance import LLMatcher

from worker.chat.grammar_faults import refuse_if_lost
from worker.engine import NothingToSample
from worker.engine.sampling import Mask

_FOR_ONE_THREAD: Final = 16
"""So many masks that wait, of some 20 us each, are worth waking another thread."""


class NextMask:
    """What may follow all that a matcher has consumed. The matcher belongs to this until the mask is found."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._lock = Lock()
        self._found: Mask | None = None

    def find(self) -> Mask:
        """One bit a token, packed as the engine wants it. NothingToSample if the grammar is too deep to go on."""
        with self._lock:
            if self._found is None:
                packed = self._matcher.compute_bitmask()
                refuse_if_lost(self._matcher)
                self._found = np.frombuffer(packed, np.uint32)
            return self._found


class Lookahead:
    """Finds masks soon, in threads of its own. To hand one over takes a fraction of what a future would."""

    def __init__(self) -> None:
        self._threads = min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="masks")
        self._lock = Lock()
        self._waiting: deque[NextMask] = deque()
        self._working = 0

    def hurry(self, mask: NextMask) -> None:
        """Let it be found before it is asked for."""
        with self._lock:
            self._waiting.append(mask)
            if self._working == self._threads or len(self._waiting) <= self._working * _FOR_ONE_THREAD:
                return
            self._working += 1
        self._pool.submit(self._work)

    def _work(self) -> None:
        while (mask := self._take()) is not None:
            with suppress(NothingToSample):  # told to who asks for it
                mask.find()

    def _take(self) -> NextMask | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._working -= 1
            return None
