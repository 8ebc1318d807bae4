"""This machine's memory in the place of a card's."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.engine import memory

Array = npt.NDArray[Any]


class HostMemory:
    """The methods are those of `DeviceMemory`. All happens at once."""

    device = "cpu"
    index = 0

    def __init__(self) -> None:
        self._arrays: list[Array] = []

    def allocate(self, size_bytes: int) -> int:
        self._arrays.append(memory.zeros((size_bytes,), np.uint8))
        return self._arrays[-1].ctypes.data

    def host_array(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        return np.zeros(size_bytes, np.uint8)

    def upload(self, address: int, array: Array) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_planes(self, target: int, source: int, size_bytes: int, stride_bytes: int, planes: int) -> None:
        for plane in range(planes):
            ctypes.memmove(target + plane * stride_bytes, source + plane * stride_bytes, size_bytes)

    def mark(self) -> Callable[[], None]:
        return self.wait

    def wait(self) -> None:
        pass

    def close(self) -> None:
        self._arrays.clear()
