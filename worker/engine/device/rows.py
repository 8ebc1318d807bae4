"""The logits of the last run, left on the device: the methods are those of `DeviceRows`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worker.engine.device.drawing import DeviceDrawing
from worker.engine.device.sampler import DeviceSampler
from worker.engine.paged.session import PagedSession
from worker.engine.rows import Wish
from worker.engine.softmax import Ids, Logits


@dataclass(frozen=True, slots=True, eq=False)
class SessionRows:
    """Rows of a session's logits, any of them any number of times."""

    session: PagedSession
    sampler: DeviceSampler
    rows: Ids

    def __len__(self) -> int:
        return len(self.rows)

    def repeat(self, repeats: Sequence[int], axis: int) -> "SessionRows":
        return replace(self, rows=self.rows.repeat(repeats, axis=axis))

    def __getitem__(self, chosen: Sequence[bool]) -> "SessionRows":
        return replace(self, rows=self.rows[np.array(chosen, bool)])

    def draw(self, wishes: Sequence[Wish]) -> DeviceDrawing:
        drawing = self.sampler.draw(self.rows, wishes, self.session.kept_at)
        if drawing.may_ask:
            self.session.keep()
        return drawing

    def fetch(self, places: Sequence[int]) -> Logits:
        return self.session.logits_at(self.rows[list(places)])
