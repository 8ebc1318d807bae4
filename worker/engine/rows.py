"""Rows of logits that lie where they were computed: what the loop and `next_token` do with them without a copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from worker.engine.adjustment import Adjustment
from worker.engine.logprobs import TokenLogprob
from worker.engine.sampling import Draw, Mask
from worker.engine.softmax import Ids, Logits

UNSURE: Final = -2
"""Stands where a token has to be drawn on the host."""


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """What one row is wanted for: a token, drawn after what is changed in the row, and what the model thought of it."""

    draw: Draw
    adjustment: Adjustment | None = None
    mask: Mask | None = None
    top_logprobs: int | None = None


class Drawing(Protocol):
    """The next tokens of some rows, on their way."""

    @property
    def places(self) -> Ids:
        """Where each row's token will lie on the device; `Runner.step` takes it from there."""
        ...

    def wait(self) -> None:
        """Until the tokens are here; before anything below."""
        ...

    @property
    def tokens(self) -> Ids:
        """Each row's; NO_TOKEN where none can follow, UNSURE where it has to be drawn from what `fetch` gives."""
        ...

    @property
    def fed(self) -> Ids:
        """What a run was given for each row, if it was given it from its place."""
        ...

    def logprob(self, row: int, top: int) -> TokenLogprob:
        """Of a row that asked for it and is not unsure, with so many of the likeliest. NothingToSample if the model's
        logits are not numbers.
        """
        ...

    def fetch(self, rows: Sequence[int]) -> Logits:
        """Some of the rows as the model gave them, in host memory that is the caller's."""
        ...


class DeviceRows(Protocol):
    """Of the last run, until the next. As far as it goes, it is used as an array [rows, vocabulary] is."""

    def __len__(self) -> int: ...

    def repeat(self, repeats: Sequence[int], axis: int) -> Self:
        """Each row so many times; `axis` is 0."""
        ...

    def __getitem__(self, chosen: Sequence[bool]) -> Self:
        """Some of the rows."""
        ...

    def draw(self, wishes: Sequence[Wish]) -> Drawing:
        """Begin to draw the next token of each row, as `next_token` does on the host. The drawing outlives the run, but
        not the next drawing.
        """
        ...

    def fetch(self, places: Sequence[int]) -> Logits:
        """Some of the rows, in host memory that is the caller's."""
        ...
