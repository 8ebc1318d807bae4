"""Who has which pages: the stages, in which prompts are computed, and the rows, in which answers are written.

Each stage may always grow to a whole context, whatever the rows hold. What a prompt shares with others, and what
its answers share with it, lies in the cache once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.engine.errors import OutOfBlocks
from worker.engine.paged.pages import NOBODYS, PagedText, PagePool

Lengths = npt.NDArray[np.int32]
Copies = list[tuple[int, int]]
"""Pages, and where a copy of each is to lie. One after the other: the copy of one may be the source of the next."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much there is: pages, nobody's among them, and for whom."""

    pages: int
    page_tokens: int
    stages: int
    slots: int
    context_tokens: int

    @property
    def pages_each(self) -> int:
        """Pages of the longest text."""
        return -(-self.context_tokens // self.page_tokens)

    @property
    def pages_min(self) -> int:
        """With fewer, not even one row could be written to its end."""
        return 1 + (self.stages + 1) * self.pages_each


class Occupancy:
    """Stages are known by their number; rows are 0 to `rows` - 1, without holes. Copies are the caller's to make."""

    def __init__(self, room: Room) -> None:
        if room.pages < room.pages_min:
            raise OutOfBlocks(room.pages_min, room.pages)
        self.room = room
        self._pool = PagePool(room.pages)
        self._stages = [PagedText(self._pool, room.page_tokens) for _ in range(room.stages)]
        self._rows: list[PagedText] = []
        self._lengths = np.zeros(room.slots, np.int32)
        self._table = np.full((room.slots, room.pages_each), NOBODYS, np.int32)

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> Lengths:
        """Positions that each row has in its pages, [rows]; may be written by nobody else."""
        return self._lengths[: self.rows]

    @property
    def free_pages(self) -> int:
        """Pages that rows may take, those left out that the stages may yet need."""
        of_stages = Counter(page for stage in self._stages for page in stage.pages)
        only_of_stages = sum(self._pool.owners(page) == count for page, count in of_stages.items())
        return self._pool.free - (self.room.stages * self.room.pages_each - only_of_stages)

    def write_stage(self, stage: int, start: int, stop: int) -> Copies:
        """Make room in a stage for the positions from start to stop, and forget what came after start."""
        return self._stages[stage].write(start, stop)

    def copy_stage(self, source: int, target: int, length: int) -> None:
        """Let a stage begin as another one."""
        begun = self._stages[source].fork(length)
        self._stages[target].forget()
        self._stages[target] = begun

    def stage_table(self, stages: Sequence[int]) -> Lengths:
        """The pages of some stages in the order of their texts, [stages, most], nobody's where one has fewer."""
        pages = [self._stages[stage].pages for stage in stages]
        table = np.full((len(pages), max(map(len, pages))), NOBODYS, np.int32)
        for line, own in zip(table, pages, strict=True):
            line[: len(own)] = own
        return table

    def place(self, stage: int, length: int) -> Copies:
        """A new row that begins as a stage; OutOfBlocks if there is no row, or no page for what it writes next."""
        if self.rows == self.room.slots:
            raise OutOfBlocks(1, 0)
        text = self._stages[stage].fork(length)
        try:
            copies = text.write(length, length)
        except OutOfBlocks:
            text.forget()
            raise
        row = self.rows
        self._rows.append(text)
        self._lengths[row] = length
        self._table[row] = NOBODYS
        self._table[row, : len(text.pages)] = text.pages
        return copies

    def make_room_for_a_token(self) -> None:
        """Give every row a page for its next position. OutOfBlocks: those before have theirs, and keep it."""
        page_tokens = self.room.page_tokens
        for row in np.flatnonzero(self.lengths % page_tokens == 0).tolist():
            length, text = int(self._lengths[row]), self._rows[row]
            if len(text.pages) * page_tokens == length:
                text.write(length, length + 1)
                self._table[row, len(text.pages) - 1] = text.pages[-1]

    def grow(self) -> None:
        """Every row has one position more."""
        self._lengths[: self.rows] += 1

    def write_row(self, row: int, tokens: int) -> None:
        """Give one row the pages for so many positions more, which it has once `grow_row` says so."""
        length, text = int(self._lengths[row]), self._rows[row]
        text.write(length, length + tokens)
        self._table[row, : len(text.pages)] = text.pages

    def grow_row(self, row: int, tokens: int) -> None:
        """One row has so many positions more."""
        self._lengths[row] += tokens

    def rewind_row(self, row: int) -> None:
        """One row has one position less; its pages stay, for it will be written again."""
        self._lengths[row] -= 1

    def row_table(self, pages: int) -> Lengths:
        """The first pages of every row, [rows, pages], nobody's where one has fewer."""
        return self._table[: self.rows, :pages]

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = self.rows - 1
        self._rows[row].forget()
        self._rows[row] = self._rows[last]
        self._lengths[row] = self._lengths[last]
        self._table[row] = self._table[last]
        self._rows.pop()
