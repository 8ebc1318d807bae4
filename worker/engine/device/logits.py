"""The logits of the last run, which stay on a device, and those that were set aside before others took their place."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from onnx import helper

from worker.engine.device.memory import DeviceMemory, Placed
from worker.engine.softmax import Ids, Logits


class DeviceLogits:
    """Room for `rows_max` rows; `element` is ONNX's number of their type. The methods are those of `LogitSource`."""

    def __init__(self, memory: DeviceMemory, rows_max: int, vocabulary: int, element: int) -> None:
        self._memory = memory
        self._dtype = np.dtype(helper.tensor_dtype_to_np_dtype(element))
        self._row_bytes = vocabulary * self._dtype.itemsize
        self._size_bytes = rows_max * self._row_bytes
        self.place = Placed(memory.allocate(self._size_bytes), element, (rows_max, vocabulary))
        self._kept_address = memory.allocate(self._size_bytes)
        self._host = memory.host_array(self._size_bytes)

    def rows_from(self, first: int, count: int) -> Placed:
        """The place of some rows."""
        vocabulary = self.place.shape[1]
        return Placed(self.place.address + first * self._row_bytes, self.place.element, (count, vocabulary))

    def logits_at(self, rows: Ids) -> Logits:
        return self._fetched(self.place.address, rows)

    def keep(self) -> None:
        size_bytes = self._size_bytes
        self._memory.copy_planes(self._kept_address, self.place.address, size_bytes, size_bytes, 1)

    def kept_at(self, rows: Ids) -> Logits:
        return self._fetched(self._kept_address, rows)

    def _fetched(self, address: int, rows: Ids) -> Logits:
        vocabulary = self.place.shape[1]
        found = self._host.view(self._dtype)[: len(rows) * vocabulary].reshape(len(rows), vocabulary)
        for start, stop in _stretches(rows):
            self._memory.download(found[start:stop], address + int(rows[start]) * self._row_bytes)
        self._memory.wait()
        return found.astype(np.float32, copy=False)


def _stretches(rows: Ids) -> Sequence[tuple[int, int]]:
    """Where neighbouring rows stand side by side: the places [start, stop) of each stretch."""
    if not len(rows):
        return []
    breaks = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [*pairwise(breaks)]
