"""Whatever rows hold, a stage can grow to a whole context; what is said to be free can be had."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.errors import OutOfBlocks
from worker.engine.paged.occupancy import Occupancy, Room
from worker.engine.paged.pages import NOBODYS

PAGE = 4
CONTEXT = 14
ROOM = Room(pages=1 + 3 * 4 + 7, page_tokens=PAGE, stages=3, slots=5, context_tokens=CONTEXT)


class Tenants(RuleBasedStateMachine):
    """Does what an engine does, and only while there is room for it as an engine counts."""

    def __init__(self) -> None:
        super().__init__()
        self.occupancy = Occupancy(ROOM)
        self.stages = [0] * ROOM.stages
        self.rows: list[int] = []

    @rule(data=st.data(), stage=st.integers(0, ROOM.stages - 1))
    def compute(self, data: st.DataObject, stage: int) -> None:
        start = data.draw(st.integers(0, self.stages[stage]))
        stop = data.draw(st.integers(start, CONTEXT))
        free = self.occupancy.free_pages
        self.occupancy.write_stage(stage, start, stop)
        assert self.occupancy.free_pages >= free, "rows lost room to a stage"
        self.stages[stage] = stop

    @rule(data=st.data(), source=st.integers(0, ROOM.stages - 1), into=st.integers(0, ROOM.stages - 1))
    def copy(self, data: st.DataObject, source: int, into: int) -> None:
        if source != into:
            length = data.draw(st.integers(0, self.stages[source]))
            self.occupancy.copy_stage(source, into, length)
            self.stages[into] = length

    @rule(data=st.data(), stage=st.integers(0, ROOM.stages - 1))
    def place(self, data: st.DataObject, stage: int) -> None:
        length = data.draw(st.integers(0, min(self.stages[stage], CONTEXT - 1)))
        pages = -(-length // PAGE)
        if len(self.rows) == ROOM.slots or self.occupancy.free_pages < pages:
            return
        free = self.occupancy.free_pages
        self.occupancy.place(stage, length)
        assert free - pages <= self.occupancy.free_pages
        self.rows.append(length)

    @precondition(lambda self: self.rows and max(self.rows) < CONTEXT)
    @rule()
    def write(self) -> None:
        pages = sum(length % PAGE == 0 for length in self.rows)
        if pages > self.occupancy.free_pages:
            return
        free = self.occupancy.free_pages
        self.occupancy.make_room_for_a_token()
        assert self.occupancy.free_pages == free - pages
        self.occupancy.make_room_for_a_token()  # a step that found no memory is tried again
        assert self.occupancy.free_pages == free - pages
        self.occupancy.grow()
        self.rows = [length + 1 for length in self.rows]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.occupancy.remove(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    @invariant()
    def there_is_room_and_rows_write_nowhere_else(self) -> None:
        assert self.occupancy.free_pages >= 0
        assert self.occupancy.lengths.tolist() == self.rows
        table = self.occupancy.row_table(ROOM.pages_each).tolist()
        used = [pages[: -(-length // PAGE)] for pages, length in zip(table, self.rows, strict=True)]
        assert all(NOBODYS not in pages for pages in used)
        written = [pages[-1] for pages, length in zip(used, self.rows, strict=True) if length % PAGE]
        stages = [row for number in range(ROOM.stages) for row in self.occupancy.stage_table([number]).tolist()[0]]
        assert len(set(written)) == len(written), "two rows write one page"
        assert not set(written) & set(stages), "a row writes what a stage has"


TestTenants = Tenants.TestCase
TestTenants.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_prompt_of_all_rows_lies_in_the_cache_once() -> None:
    room = Room(pages=1 + 4 * 10 + 30, page_tokens=PAGE, stages=4, slots=8, context_tokens=40)
    occupancy = Occupancy(room)
    occupancy.write_stage(0, 0, 36)
    before = occupancy.free_pages
    for stage in (1, 2, 3):
        occupancy.copy_stage(0, stage, 36)
        occupancy.write_stage(stage, 36, 38)
    for row in range(8):
        occupancy.place(row % 4, 36)
    assert occupancy.free_pages == before - 9
    occupancy.make_room_for_a_token()
    assert occupancy.free_pages == before - 9 - 8
    for _ in range(8):
        occupancy.remove(0)
    assert occupancy.free_pages == before


def test_too_few_pages_for_one_row_are_refused_at_once() -> None:
    with pytest.raises(OutOfBlocks):
        Occupancy(Room(pages=16, page_tokens=PAGE, stages=3, slots=5, context_tokens=CONTEXT))


def test_a_row_that_finds_no_room_takes_nothing() -> None:
    occupancy = Occupancy(Room(pages=1 + 4 * 2, page_tokens=PAGE, stages=3, slots=9, context_tokens=8))
    occupancy.write_stage(0, 0, 7)
    for _ in range(7):
        try:
            occupancy.place(0, 7)
        except OutOfBlocks:
            break
    rows, free = occupancy.rows, occupancy.free_pages
    with pytest.raises(OutOfBlocks):
        occupancy.place(0, 7)
    assert (occupancy.rows, occupancy.free_pages) == (rows, free)
