"""The memory of a device, in addresses: what the sessions of one engine share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """An array on a device; `element` is ONNX's number of its type."""

    address: int
    element: int
    shape: tuple[int, ...]


class DeviceMemory(Protocol):
    """Memory of one device, and the one stream in which copies and runs follow each other. What is called here begins
    when it comes to its turn there; nobody waits but in `wait` and for a mark.
    """

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
        """Copy from the host; `array` must stay as it is until that has happened."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy to the host; it is there once that has happened."""
        ...

    def copy_planes(self, target: int, source: int, size_bytes: int, stride_bytes: int, planes: int) -> None:
        """Copy `size_bytes` in each of some planes, which lie `stride_bytes` apart."""
        ...

    def mark(self) -> Callable[[], None]:
        """To be called once: waits until all that was begun before this mark has happened."""
        ...

    def wait(self) -> None:
        """Until all that was begun has happened."""
        ...

    def close(self) -> None:
        """Give back all that was allocated, once what was begun has ended, in whatever way."""
        ...


def aligned(sizes_bytes: Sequence[int], alignment_bytes: int = 256) -> list[int]:
    """Where things of these sizes lie one after the other, and last, where they end."""
    ends = np.cumsum([-(-size // alignment_bytes) * alignment_bytes for size in sizes_bytes])
    return [0, *ends.tolist()]
