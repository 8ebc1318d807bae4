"""Sends small arrays to a device without waiting until they are there."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.engine.device.memory import DeviceMemory, aligned

Array = npt.NDArray[Any]


class Staging:
    """Two buffers on the host that take turns, and one on the device. What was sent in a turn may still be on its way
    in the next one; it has arrived before the one after that.
    """

    def __init__(self, memory: DeviceMemory, size_bytes: int) -> None:
        self._memory = memory
        self._arrived: list[Callable[[], None] | None] = [None, None]
        self._turn = 0
        self._take(size_bytes)

    def turn(self) -> None:
        """What is sent from now on may take the place of what was sent in the turn before the last."""
        self._arrived[self._turn] = self._memory.mark()
        self._turn = 1 - self._turn
        arrived, self._arrived[self._turn] = self._arrived[self._turn], None
        if arrived is not None:
            arrived()
        self._used = 0

    def send(self, arrays: Sequence[Array]) -> list[int]:
        """The address of each on the device, which the sizes of those that were sent in this turn decide."""
        *starts, end = aligned([array.nbytes for array in arrays])
        if self._used + end > self._size_bytes:
            self._take(2 * end + self._size_bytes)
        host = self._host[self._turn][self._used : self._used + end]
        for start, array in zip(starts, arrays, strict=True):
            host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        first = self._address + self._used
        self._memory.upload(first, host)
        self._used += end
        return [first + start for start in starts]

    def _take(self, size_bytes: int) -> None:
        """New buffers; the old ones stay, for what is on its way in them."""
        host = [self._memory.host_array(size_bytes) for _ in range(2)]
        self._address = self._memory.allocate(size_bytes)
        self._host, self._size_bytes, self._used = host, size_bytes, 0
