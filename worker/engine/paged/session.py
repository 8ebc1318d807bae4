"""What the paged runner asks of a device: one for CUDA, and one for the CPU, on which nothing is fast."""

from collections.abc import Callable, Sequence
from typing import Protocol

from worker.engine.device.memory import Placed
from worker.engine.device.rows import LogitSource
from worker.engine.paged.packing import PackedRun
from worker.engine.softmax import Ids

Fill = Callable[[Placed], None]
"""Puts tokens that are being drawn in the places of negative ids, where a run reads them."""


class PagedSession(LogitSource, Protocol):
    """A paged graph with its cache on a device, driven by one thread."""

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        ...

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Make the second page of each pair as the first, in all layers, one pair after the other."""
        ...

    def run(self, run: PackedRun, fill: Fill | None = None) -> Ids:
        """Begin to compute, and tell which rows of the logits are those wanted. They stay on the device until the next
        run; OutOfMemory leaves pages as they were, but for the places that this run writes. `fill` is for runs with
        tokens that are being drawn.
        """
        ...

    def wait(self) -> None:
        """Until the last run has ended."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
