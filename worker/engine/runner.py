"""What the engine asks of a device: token ids in, logits out. One thread calls it; it knows no text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from worker.engine.sampling import Logits


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A piece of a prompt: `token_ids` [length] at the positions from `start` on, the rest being computed."""

    slot: int
    start: int
    token_ids: npt.NDArray[np.int64]
    ends_prompt: bool
    """The logits after its last token are wanted."""


class Runner(Protocol):
    """A model on a device, with a KV cache of equal slots.

    Logits are float32 [rows, vocabulary] in host memory. They belong to the caller, who may write into them,
    until the next call. Any exception means that the cache can no longer be trusted: the engine ends.
    """

    @property
    def slots(self) -> int:
        """How many sequences the KV cache holds."""
        ...

    @property
    def context_tokens(self) -> int:
        """How many positions one slot holds."""
        ...

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        ...

    def prefill(self, spans: Sequence[Span]) -> Logits:
        """Compute spans, in the order of slots, each slot once; a row for each that ends its prompt."""
        ...

    def decode(self, token_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Logits:
        """Read token_ids [rows] at the positions lengths [rows] of slots 0 to rows - 1; a row for each."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of the slot `target` those of `source`."""
        ...

    def close(self) -> None:
        """Give the memory back; nothing is called after it."""
        ...
