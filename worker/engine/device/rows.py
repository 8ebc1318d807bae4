"""The logits of the last run, left on the device: the methods are those of `DeviceRows`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from worker.engine.device.drawing import DeviceDrawing
from worker.engine.device.sampler import DeviceSampler
from worker.engine.rows import Wish
from worker.engine.softmax import Ids, Logits


class LogitSource(Protocol):
    """Who has the logits of the last run."""

    def logits_at(self, rows: Ids) -> Logits:
        """Some rows of the logits of the last run, in host memory that is the caller's until the next run."""
        ...

    def keep(self) -> None:
        """Set the logits of the last run aside, until the next time."""
        ...

    def kept_at(self, rows: Ids) -> Logits:
        """Some rows of the logits set aside, in host memory that is the caller's until the next run."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """Rows of a source, any of them any number of times."""

    source: LogitSource
    sampler: DeviceSampler
    rows: Ids

    def __len__(self) -> int:
        return len(self.rows)

    def repeat(self, repeats: Sequence[int], axis: int) -> "SourceRows":
        return replace(self, rows=self.rows.repeat(repeats, axis=axis))

    def __getitem__(self, chosen: Sequence[bool]) -> "SourceRows":
        return replace(self, rows=self.rows[np.array(chosen, bool)])

    def draw(self, wishes: Sequence[Wish]) -> DeviceDrawing:
        drawing = self.sampler.draw(self.rows, wishes, self.source.kept_at)
        if drawing.may_ask:
            self.source.keep()
        return drawing

    def fetch(self, places: Sequence[int]) -> Logits:
        return self.source.logits_at(self.rows[list(places)])
