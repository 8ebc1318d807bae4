"""Which page of the KV cache is whose: knows nothing of tokens, of devices or of what lies in a page.

A page may belong to several texts that begin alike; it has a count of them and is free when none is left. What a text
writes must be its own, so a shared page is copied before it is written. Page 0 is nobody's: the rows that fill up a
run write there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.errors import OutOfBlocks

NOBODYS = 0


class PagePool:
    """Pages 1 to `count` - 1, each with the number of texts that have it."""

    def __init__(self, count: int) -> None:
        if count < 2:
            raise ValueError(f"expected 2 pages or more, found {count}")
        self._free = list(range(count - 1, NOBODYS, -1))
        self._owners = [0] * count

    @property
    def free(self) -> int:
        """How many pages nobody has."""
        return len(self._free)

    def owners(self, page: int) -> int:
        """How many texts have a page."""
        return self._owners[page]

    def take(self, count: int) -> list[int]:
        """Pages that nobody had; OutOfBlocks, and none is taken, if there are fewer."""
        if count > len(self._free):
            raise OutOfBlocks(count, len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One text more has these pages."""
        for page in pages:
            if not self._owners[page]:
                raise RuntimeError(f"page {page} is shared, but nobody has it")
            self._owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One text less has these pages."""
        for page in pages:
            if not self._owners[page]:
                raise RuntimeError(f"page {page} is given back, but nobody has it")
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)


@dataclass(slots=True, eq=False)
class PagedText:
    """The pages of one text in its order, `page_tokens` positions each; the last may be filled in part."""

    pool: PagePool
    page_tokens: int
    pages: list[int] = field(default_factory=list)

    def fork(self, length: int) -> "PagedText":
        """A text that begins with the same `length` positions: it has their pages too."""
        pages = self.pages[: self._pages_for(length)]
        self.pool.share(pages)
        return PagedText(self.pool, self.page_tokens, pages)

    def write(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Make room for the positions from start to stop, and forget what came after start.

        Gives the pages to be copied before, each with its copy: at most the one in which `start` lies, which is made
        the text's own even where nothing is written. OutOfBlocks leaves all as it was.
        """
        kept = self._pages_for(start)
        if kept > len(self.pages):
            raise RuntimeError(f"position {start} is written, but the text has {len(self.pages)} pages")
        is_split = start % self.page_tokens > 0 and self.pool.owners(self.pages[kept - 1]) > 1
        wanted = self._pages_for(stop) - kept + int(is_split)
        dropped = self.pages[kept:]
        if wanted > self.pool.free + sum(self.pool.owners(page) == 1 for page in dropped):
            raise OutOfBlocks(wanted, self.pool.free)
        self.pool.give_back(dropped)
        del self.pages[kept:]
        taken = self.pool.take(wanted)
        copies = []
        if is_split:
            copies.append((self.pages[-1], taken[0]))
            self.pool.give_back(self.pages[-1:])
            self.pages[-1] = taken.pop(0)
        self.pages += taken
        return copies

    def forget(self) -> None:
        """Give all pages back."""
        self.pool.give_back(self.pages)
        self.pages.clear()

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)
