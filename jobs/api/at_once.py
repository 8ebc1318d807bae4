"""How many requests of each project one process answers at the same time: no project takes all of its room."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import TooMany

LEFT_TO_OTHERS = 8  # one of so many places


class AtOnce:
    """Counts on the event loop's thread, and so without a lock."""

    def __init__(self, requests_at_once: int) -> None:
        self._most = requests_at_once - requests_at_once // LEFT_TO_OTHERS
        self._requests: Counter[str] = Counter()

    @contextmanager
    def one_of(self, project_id: str) -> Iterator[None]:
        """One more request of a project, for as long as this lasts. TooMany where it has as many as it may."""
        if self._requests[project_id] >= self._most:
            raise TooMany(
                f"Too many requests at once: this project has {self._most} under way. Please try again soon.",
                code="rate_limit_exceeded",
                retry_seconds=1,
            )
        self._requests[project_id] += 1
        try:
            yield
        finally:
            self._requests[project_id] -= 1
            if not self._requests[project_id]:
                del self._requests[project_id]
