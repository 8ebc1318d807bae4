"""The memory of a device, in addresses: what the sessions of one engine share. Here that of the CPU, for tests."""

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from worker.engine import memory

Array = npt.NDArray[Any]


class DeviceMemory(Protocol):
    """Memory of one device, and the one stream in which copies and runs follow each other."""

    @property
    def device(self) -> str:
        """As ONNX Runtime calls it: cuda or cpu."""
        ...

    @property
    def index(self) -> int:
        """Which of these devices."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """The address of so many new bytes, all 0; OutOfMemory if there are fewer."""
        ...

    def host_array(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Host memory from which uploads and into which downloads are fast."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy from the host; `array` must stay as it is until `wait`."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy to the host; it is there after `wait`."""
        ...

    def copy_planes(self, target: int, source: int, size_bytes: int, stride_bytes: int, planes: int) -> None:
        """Copy `size_bytes` in each of some planes, which lie `stride_bytes` apart."""
        ...

    def wait(self) -> None:
        """Until all of the above has happened."""
        ...

    def close(self) -> None:
        """Give back all that was allocated."""
        ...


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

    def wait(self) -> None:
        pass

    def close(self) -> None:
        self._arrays.clear()


def aligned(sizes_bytes: Sequence[int], alignment_bytes: int = 256) -> list[int]:
    """Where things of these sizes lie one after the other, and last, where they end."""
    ends = np.cumsum([-(-size // alignment_bytes) * alignment_bytes for size in sizes_bytes])
    return [0, *ends.tolist()]
