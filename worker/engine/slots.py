"""The KV cache of GroupQueryAttention: for each layer a key and a value array.

They are [slots, kv_heads, length, head_size]. Graph runs read and write them in place through raw pointers;
neighbouring slots are a view that starts at the first.
"""

import ctypes
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort

from worker.engine import memory
from worker.engine.errors import OutOfSlots


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

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` those of `source`."""
        ...


class HostSlots:
    """The cache in this process's memory, which the system hands out page by page as slots are first used."""

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self.count = count
        self._arrays = [memory.zeros(layout.shape(count), layout.element) for _ in range(2 * layout.layers)]
        self.addresses = tuple(array.ctypes.data for array in self._arrays)

    def copy(self, source: int, target: int, length: int) -> None:
        for array in self._arrays:
            array[target, :, :length] = array[source, :, :length]


class CudaSlots:
    """The cache in the memory of one CUDA device. Not covered by tests that run without one.

    Each array is one OrtValue. Their arena rounds sizes up to a power of two, so up to twice the memory may
    be taken from the device: grant `kv_bytes_max` accordingly.
    """

    def __init__(self, layout: Layout, count: int, device_id: int) -> None:
        self.layout = layout
        self.count = count
        self._arrays = [
            ort.OrtValue.ortvalue_from_shape_and_type(layout.shape(count), layout.element.type, "cuda", device_id)
            for _ in range(2 * layout.layers)
        ]
        self.addresses = tuple(array.data_ptr() for array in self._arrays)
        self._runtime = ctypes.CDLL("libcudart.so.13")

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy whole heads' rows [length, head_size]; the device is waited for: ORT's stream is another."""
        row_bytes = self.layout.length * self.layout.head_size * self.layout.element.itemsize
        width_bytes = length * self.layout.head_size * self.layout.element.itemsize
        stride = self.layout.slot_bytes_per_array
        for address in self.addresses:
            self._check(
                self._runtime.cudaMemcpy2D(
                    ctypes.c_void_p(address + target * stride),
                    ctypes.c_size_t(row_bytes),
                    ctypes.c_void_p(address + source * stride),
                    ctypes.c_size_t(row_bytes),
                    ctypes.c_size_t(width_bytes),
                    ctypes.c_size_t(self.layout.kv_heads),
                    ctypes.c_int(3),  # cudaMemcpyDeviceToDevice
                )
            )
        self._check(self._runtime.cudaDeviceSynchronize())

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"the CUDA runtime answered {status} to a copy of slots")
