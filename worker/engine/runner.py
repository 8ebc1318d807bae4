"""What the engine asks of a device: token ids in, logits out. One thread calls it; it knows no text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worker.engine.rows import DeviceRows
from worker.engine.softmax import Logits


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A piece of a prompt: `token_ids` [length] at the positions from `start` on, the rest being in the stage."""

    stage: int
    start: int
    token_ids: npt.NDArray[np.int64]
    ends_prompt: bool
    """The logits after its last token are wanted."""


class Runner(Protocol):
    """A model on a device, with stages in which prompts are computed and rows in which answers are written.

    Logits are float32 [rows, vocabulary] in host memory, or stay on the device. They belong to the caller, who may
    write into them, until the next step. Any exception but OutOfBlocks and OutOfMemory means that the cache can no
    longer be trusted. Where logits stay on the device, a step may return before it is computed, and what fails in it
    then fails in a later call.
    """

    @property
    def mixes(self) -> bool:
        """A step computes a prompt and rows for hardly more than their sum, so there is no need to wait."""
        ...

    @property
    def is_exact(self) -> bool:
        """An answer is the same to the last bit in any crowd: so which of its tokens are taken together must depend on
        nothing else, also where it is written again.
        """
        ...

    @property
    def slots(self) -> int:
        """How many sequences are written at once, at most."""
        ...

    @property
    def stages(self) -> int:
        """How many prompts are kept while their beginnings are of use."""
        ...

    @property
    def spans_max(self) -> int:
        """How many prompts one step takes further, at most."""
        ...

    @property
    def context_tokens(self) -> int:
        """How many positions one sequence may have."""
        ...

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        ...

    @property
    def page_tokens(self) -> int:
        """The cache is taken in pages of so many positions."""
        ...

    @property
    def free_tokens(self) -> int:
        """Positions in pages that nobody has."""
        ...

    def step(
        self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()
    ) -> Logits | DeviceRows:
        """Compute pieces of prompts, each in a stage of its own, and one token for every row, or for none.

        `token_ids` holds the rows' next tokens, in their order, or nothing. A row of logits for each span that
        ends its prompt, then one for each of token_ids but those of the rows `unread`. OutOfMemory leaves all as it
        was before. Of a token that is still being drawn on the device, -1 - place of its `Drawing`.
        """
        ...

    def feeds(self, tokens: int, length: int) -> bool:
        """Whether so many tokens of one row, which holds `length`, are better fed ahead of a step than one in each."""
        ...

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        """Take tokens into a row, after which nobody wants logits; only where `feeds` says so, and right before a step.
        OutOfMemory leaves all as it was before.
        """
        ...

    def rewind(self, row: int) -> None:
        """Forget the last position of a row, which the next step writes anew; where logits stay on the device."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of stage `target` those of stage `source`."""
        ...

    def place(self, stage: int, length: int) -> int:
        """A new row that goes on where the first `length` positions of a stage end; gives its number, the
        highest. OutOfBlocks if there is no room.
        """
        ...

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        ...

    def close(self) -> None:
        """Give the memory back; nothing is called after it."""
        ...
