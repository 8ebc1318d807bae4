from collections.abc import Callable

import numpy as np
import pytest

from tests.worker.engine.device.fake_cuda import FakeCuda
from worker.engine import OutOfSlots
from worker.engine.device.cuda_memory import CudaMemory
from worker.engine.errors import OutOfMemory
from worker.engine.slots import DeviceSlots, HostSlots, Layout, Slots

LAYOUT = Layout(layers=3, kv_heads=2, head_size=4, length=10, element=np.dtype(np.float32))


def test_the_memory_granted_decides_how_many_slots_there_are() -> None:
    assert LAYOUT.slot_bytes == 2 * 3 * 2 * 10 * 4 * 4
    assert LAYOUT.slots_within(LAYOUT.slot_bytes * 7 + 5, slots_max=64) == 7
    assert LAYOUT.slots_within(LAYOUT.slot_bytes * 7, slots_max=3) == 3


def test_memory_for_less_than_one_slot_is_refused_with_numbers() -> None:
    with pytest.raises(OutOfSlots) as refusal:
        LAYOUT.slots_within(LAYOUT.slot_bytes - 1, slots_max=64)
    assert (refusal.value.slot_bytes, refusal.value.kv_bytes_max) == (1920, 1919)


def on_the_host() -> tuple[Slots, Callable[[], None]]:
    return HostSlots(LAYOUT, count=4), lambda: None


def on_a_device() -> tuple[Slots, Callable[[], None]]:
    """A card that is played, in this machine's memory; and what waits for it."""
    memory = CudaMemory(0, FakeCuda())
    return DeviceSlots(LAYOUT, 4, memory), memory.wait


@pytest.mark.parametrize("open_slots", [on_the_host, on_a_device])
def test_a_copy_takes_the_first_positions_of_every_head_and_layer_and_nothing_else(
    open_slots: Callable[[], tuple[Slots, Callable[[], None]]],
) -> None:
    slots, wait = open_slots()
    wait()
    arrays = [np.ctypeslib.as_array(_pointer(address), (4, 2, 10, 4)) for address in slots.addresses]
    for index, array in enumerate(arrays):
        array[:] = np.arange(array.size, dtype=np.float32).reshape(array.shape) + 1000 * index
    before = [array.copy() for array in arrays]
    slots.copy(source=2, target=0, length=7)
    wait()
    for array, was in zip(arrays, before, strict=True):
        assert np.array_equal(array[0, :, :7], was[2, :, :7])
        assert np.array_equal(array[0, :, 7:], was[0, :, 7:])
        assert np.array_equal(array[1:], was[1:])
    slots.close()


def test_a_device_gives_as_much_as_is_asked_for_and_gets_it_back() -> None:
    cuda = FakeCuda(free_bytes=LAYOUT.slot_bytes * 4)
    slots = DeviceSlots(LAYOUT, 4, CudaMemory(0, cuda))
    assert cuda.free_bytes == 0
    with pytest.raises(OutOfMemory):
        DeviceSlots(LAYOUT, 1, CudaMemory(0, cuda))
    slots.close()
    assert not cuda.blocks


def _pointer(address: int):  # type: ignore[no-untyped-def]
    import ctypes

    return ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
