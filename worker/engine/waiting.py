"""The line of prompts that hold no slot yet: lower priority numbers first, then first come first served."""

from collections import deque
from collections.abc import Iterator

from worker.engine.ticket import Ticket


class WaitingLine:
    """Iterates in the order of admission. A prompt leaves when all its choices have slots, or are dropped."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[Ticket]] = {}

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def __iter__(self) -> Iterator[Ticket]:
        for priority in sorted(self._lanes):
            yield from self._lanes[priority]

    def add(self, ticket: Ticket) -> None:
        self._lanes.setdefault(ticket.priority, deque()).append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out, wherever it stands; one that does not wait is no error."""
        lane = self._lanes.get(ticket.priority)
        if lane is None or ticket not in lane:
            return
        lane.remove(ticket)
        if not lane:
            del self._lanes[ticket.priority]
