"""The KV cache of GroupQueryAttention: for each layer a key and a value array.

They are [slots, kv_heads, length, head_size]. Graph runs read and write them in place through raw pointers;
neighbouring slots are a view that starts at the first.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from worker.engine import memory
from worker.engine.device.memory import DeviceMemory
from worker.engine.errors import OutOfSlots

HOST: Final = "cpu"
"""As ONNX Runtime calls it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a KV cache: `length` positions a slot, in elements of numpy type `element`."""

    layers: int
    kv_heads: int
    head_size: int
    length: int
    element: np.dtype[np.generic]

    @property
    def slot_bytes_per_array(self) -> int:
        """What one slot takes in one of the 2 x layers arrays."""
        return self.kv_heads * self.length * self.head_size * self.element.itemsize

    @property
    def slot_bytes(self) -> int:
        """What one slot takes in all layers, keys and values."""
        return 2 * self.layers * self.slot_bytes_per_array

    def slots_within(self, bytes_max: int, slots_max: int) -> int:
        """How many slots fit; OutOfSlots if none does."""
        if self.slot_bytes > bytes_max:
            raise OutOfSlots(self.slot_bytes, bytes_max)
        return min(slots_max, bytes_max // self.slot_bytes)

    def shape(self, slots: int) -> list[int]:
        return [slots, self.kv_heads, self.length, self.head_size]


class Slots(Protocol):
    """Where the cache lies. `addresses` has the arrays in the order key 0, value 0, key 1, ..."""

    layout: Layout
    count: int
    addresses: tuple[int, ...]
    device: str
    """As ONNX Runtime calls it: cuda or cpu."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` those of `source`."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class HostSlots:
    """The cache in this process's memory, which the system hands out page by page as slots are first used."""

    device = HOST

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self.count = count
        self._arrays = [memory.zeros(layout.shape(count), layout.element) for _ in range(2 * layout.layers)]
        self.addresses = tuple(array.ctypes.data for array in self._arrays)

    def copy(self, source: int, target: int, length: int) -> None:
        for array in self._arrays:
            array[target, :, :length] = array[source, :, :length]

    def close(self) -> None:
        self._arrays.clear()


class DeviceSlots:
    """The cache in the memory of a device. Copies and runs follow each other in its stream, so nobody waits."""

    def __init__(self, layout: Layout, count: int, memory: DeviceMemory) -> None:
        self.layout = layout
        self.count = count
        self.device = memory.device
        self._memory = memory
        self.addresses = tuple(memory.allocate(count * layout.slot_bytes_per_array) for _ in range(2 * layout.layers))

    def copy(self, source: int, target: int, length: int) -> None:
        layout = self.layout
        position_bytes = layout.head_size * layout.element.itemsize
        sizes = length * position_bytes, layout.length * position_bytes, layout.kv_heads
        ours, theirs = (slot * layout.slot_bytes_per_array for slot in (target, source))
        for address in self.addresses:
            self._memory.copy_planes(address + ours, address + theirs, *sizes)

    def close(self) -> None:
        self._memory.close()
