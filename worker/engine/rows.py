"""Rows of logits that lie where they were computed: what the loop and `next_token` do with them without a copy."""

from collections.abc import Sequence
from typing import Protocol, Self

from worker.engine.sampling import Draw
from worker.engine.softmax import Ids, Logits


class DeviceRows(Protocol):
    """Of the last run, until the next. As far as it goes, it is used as an array [rows, vocabulary] is."""

    def __len__(self) -> int: ...

    def repeat(self, repeats: Sequence[int], axis: int) -> Self:
        """Each row so many times; `axis` is 0."""
        ...

    def __getitem__(self, chosen: Sequence[bool]) -> Self:
        """Some of the rows."""
        ...

    def draw(self, places: Sequence[int], draws: Sequence[Draw]) -> Ids:
        """The next token of some of the rows, as `sampling.sample` draws it."""
        ...

    def fetch(self, places: Sequence[int]) -> Logits:
        """Some of the rows, in host memory that is the caller's."""
        ...
