"""The pages of many texts: none lost, none doubled, and what a text reads is what it wrote."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.errors import OutOfBlocks
from worker.engine.paged.pages import NOBODYS, PagedText, PagePool

PAGE = 4
PAGES = 13


class Cache(RuleBasedStateMachine):
    """Texts that are written, forked, cut and forgotten. `cells` is the cache: what was last written where."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.cells: dict[tuple[int, int], int] = {}
        self.texts: list[tuple[PagedText, list[int]]] = []
        self.clock = 0

    @rule()
    def begin(self) -> None:
        if len(self.texts) < 6:
            self.texts.append((PagedText(self.pool, PAGE), []))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        text, written = data.draw(st.sampled_from(self.texts))
        start = data.draw(st.integers(0, len(written)))
        stop = data.draw(st.integers(start, start + 2 * PAGE))
        before = (list(text.pages), self.pool.free)
        try:
            copies = text.write(start, stop)
        except OutOfBlocks:
            assert (text.pages, self.pool.free) == before
            return
        assert len(copies) <= 1
        for source, target in copies:
            for offset in range(PAGE):
                self.cells[target, offset] = self.cells.get((source, offset), -1)
        del written[start:]
        for position in range(start, stop):
            self.clock += 1
            written.append(self.clock)
            self.cells[text.pages[position // PAGE], position % PAGE] = self.clock

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        text, written = data.draw(st.sampled_from(self.texts))
        length = data.draw(st.integers(0, len(written)))
        if len(self.texts) < 6:
            self.texts.append((text.fork(length), written[:length]))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.texts) - 1))
        self.texts.pop(place)[0].forget()

    @invariant()
    def every_text_reads_what_it_wrote(self) -> None:
        for text, written in self.texts:
            assert len(text.pages) == -(-len(written) // PAGE)
            found = [self.cells[text.pages[at // PAGE], at % PAGE] for at in range(len(written))]
            assert found == written

    @invariant()
    def every_page_is_counted_once_for_each_text_that_has_it(self) -> None:
        held = [page for text, _ in self.texts for page in text.pages]
        assert NOBODYS not in held
        for page in range(1, PAGES):
            assert self.pool.owners(page) == held.count(page)
        assert self.pool.free == PAGES - 1 - len(set(held))


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30)


def test_choices_share_a_prompt_until_they_write_and_the_full_pages_for_ever() -> None:
    pool = PagePool(20)
    prompt = PagedText(pool, PAGE)
    prompt.write(0, 10)
    choices = [prompt.fork(10) for _ in range(3)]
    assert pool.free == 19 - 3
    copies = [choice.write(10, 11) for choice in choices]
    assert [[source for source, _ in own] for own in copies] == [[prompt.pages[2]]] * 3
    assert pool.free == 19 - 6
    assert all(choice.pages[:2] == prompt.pages[:2] for choice in choices)
    assert len({choice.pages[2] for choice in choices} | {prompt.pages[2]}) == 4


def test_who_is_alone_with_a_page_need_not_copy_it() -> None:
    pool = PagePool(8)
    text = PagedText(pool, PAGE)
    text.write(0, 6)
    other = text.fork(6)
    other.forget()
    assert text.write(6, 7) == []


def test_a_page_that_goes_back_twice_is_noticed() -> None:
    pool = PagePool(4)
    [page] = pool.take(1)
    pool.give_back([page])
    with pytest.raises(RuntimeError, match="nobody has it"):
        pool.give_back([page])
    with pytest.raises(RuntimeError, match="nobody has it"):
        pool.share([page])


def test_a_hole_in_a_text_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="has 0 pages"):
        PagedText(PagePool(4), PAGE).write(5, 6)
