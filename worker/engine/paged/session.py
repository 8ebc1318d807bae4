"""What the paged runner asks of a device: one for CUDA, and one for the CPU, on which nothing is fast."""

from collections.abc import Sequence
from typing import Protocol

from worker.engine.paged.packing import PackedRun
from worker.engine.softmax import Ids, Logits


class PagedSession(Protocol):
    """A paged graph with its cache on a device, driven by one thread."""

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        ...

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Make the second page of each pair as the first, in all layers, one pair after the other."""
        ...

    def run(self, run: PackedRun) -> Ids:
        """Compute, and tell which rows of the logits are those wanted. They stay on the device until the next run;
        OutOfMemory leaves pages as they were, but for the places that this run writes.
        """
        ...

    def logits_at(self, rows: Ids) -> Logits:
        """Some rows of the logits of the last run, in host memory that is the caller's until the next run."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
