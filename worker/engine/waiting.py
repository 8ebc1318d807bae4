"""The line of prompts that have no row yet: lower priority numbers first, then first come first served."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from worker.engine.sequence import Sequence
from worker.engine.ticket import Ticket


@dataclass(slots=True, eq=False)
class Entry:
    """Choices of one prompt that wait to be written after the same `token_ids`: the prompt, and what they must begin
    with.
    """

    ticket: Ticket
    choices: list[Sequence]
    token_ids: npt.NDArray[np.int64]
    is_back: bool = False
    """It had a row before and had to leave it; the next time it gets all the room that it may need."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def tokens_max(self) -> int:
        """The most positions that one choice can take."""
        return self.choices[0].prompt_tokens + self.choices[0].tokens_max


def entries_of(ticket: Ticket) -> list[Entry]:
    """The choices of a prompt that have not ended; neighbours that begin alike share an entry."""
    going_on = [choice for choice in ticket.sequences if not choice.finish_reason]
    return [
        Entry(ticket, list(choices), np.concatenate([ticket.token_ids, np.array(opening, np.int64)]))
        for opening, choices in groupby(going_on, key=lambda choice: choice.token_ids)
    ]


class WaitingLine:
    """Iterates in the order of admission."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[Entry]] = {}

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def __iter__(self) -> Iterator[Entry]:
        for priority in sorted(self._lanes):
            yield from self._lanes[priority]

    def add(self, entry: Entry) -> None:
        self._lane(entry).append(entry)

    def put_first(self, entry: Entry) -> None:
        """Let an entry wait that was further already."""
        self._lane(entry).appendleft(entry)

    def pop(self) -> Entry:
        """Take the first entry out of the line."""
        priority = min(self._lanes)
        lane = self._lanes[priority]
        entry = lane.popleft()
        if not lane:
            del self._lanes[priority]
        return entry

    def remove(self, ticket: Ticket) -> None:
        """Take all of a prompt out, wherever it stands; one that does not wait is no error."""
        lane = self._lanes.get(ticket.priority)
        if lane is None:
            return
        kept = deque(entry for entry in lane if entry.ticket is not ticket)
        if kept:
            self._lanes[ticket.priority] = kept
        else:
            del self._lanes[ticket.priority]

    def _lane(self, entry: Entry) -> deque[Entry]:
        return self._lanes.setdefault(entry.ticket.priority, deque())
