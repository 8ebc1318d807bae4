# ruff: noqa: N802, N815  the names are those of CUDA
"""A CUDA runtime in Python over this machine's memory, as `ctypes` would give it: it takes and fills ctypes values."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

MEANINGS = {
    2: b"out of memory",
    12: b"invalid pitch argument",
    35: b"CUDA driver version is insufficient for CUDA runtime version",
    46: b"CUDA-capable device(s) is/are busy or unavailable",
    100: b"no CUDA-capable device is detected",
    700: b"an illegal memory access was encountered",
    804: b"forward compatibility was attempted on non supported HW",
}


class _GetErrorString:
    restype: Any = None

    def __call__(self, status: ctypes.c_int) -> bytes:
        return MEANINGS[status.value]


class FakeCuda:
    """Calls named in `failing` answer with its error number. `free_bytes` bounds what is allocated."""

    pitch_max = 2**31 - 1

    def __init__(
        self, capability: tuple[int, int] = (9, 0), free_bytes: int = 2**30, failing: dict[str, int] | None = None
    ) -> None:
        self.capability = capability
        self.free_bytes = free_bytes
        self.failing = failing or {}
        self.blocks: dict[int, Any] = {}
        self.calls: list[str] = []
        self.events = 0
        self.threads: list[int] = []
        """That have said which device they mean."""
        self.cudaGetErrorString = _GetErrorString()

    def __getattr__(self, name: str) -> Callable[..., int]:
        perform = getattr(type(self), f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return self.failing.get(name) or perform(self, *arguments) or 0

        return call

    def _cudaSetDevice(self, index: ctypes.c_int) -> None:
        assert index.value == 0
        self.threads.append(threading.get_ident())

    def _cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> None:
        assert mode._obj.value == 1

    def _cudaGetLastError(self) -> None:
        pass

    def _cudaStreamCreateWithFlags(self, stream: Any, flags: ctypes.c_uint) -> None:
        stream._obj.value = 77

    def _cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.free_bytes, 2**31

    def _cudaDeviceGetAttribute(self, found: Any, number: ctypes.c_int, index: ctypes.c_int) -> None:
        found._obj.value = {75: self.capability[0], 76: self.capability[1]}[number.value]

    def _cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> int:
        if size.value > self.free_bytes:
            return 2
        block = (ctypes.c_uint8 * size.value)(*[255] * min(size.value, 99))
        self.free_bytes -= size.value
        self.blocks[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)
        return 0

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, address: ctypes.c_void_p) -> None:
        del self.blocks[address.value]

    _cudaFreeHost = _cudaFree

    def _cudaMemsetAsync(
        self, address: ctypes.c_void_p, value: ctypes.c_int, size: ctypes.c_size_t, stream: ctypes.c_void_p
    ) -> None:
        assert stream.value == 77
        ctypes.memset(address, value.value, size.value)

    def _cudaMemcpyAsync(
        self,
        target: ctypes.c_void_p,
        source: ctypes.c_void_p,
        size: ctypes.c_size_t,
        kind: ctypes.c_int,
        stream: ctypes.c_void_p,
    ) -> None:
        ours = source if kind.value == 2 else target
        assert kind.value in {1, 2, 3}
        assert stream.value == 77
        assert any(start <= ours.value < start + len(block) for start, block in self.blocks.items())
        ctypes.memmove(target, source, size.value)

    def _cudaMemcpy2DAsync(
        self,
        target: ctypes.c_void_p,
        target_pitch: ctypes.c_size_t,
        source: ctypes.c_void_p,
        source_pitch: ctypes.c_size_t,
        width: ctypes.c_size_t,
        height: ctypes.c_size_t,
        kind: ctypes.c_int,
        stream: ctypes.c_void_p,
    ) -> int:
        assert (kind.value, stream.value) == (3, 77)
        if max(target_pitch.value, source_pitch.value) > self.pitch_max:
            return 12
        for line in range(height.value):
            ctypes.memmove(
                target.value + line * target_pitch.value, source.value + line * source_pitch.value, width.value
            )
        return 0

    def _cudaEventCreateWithFlags(self, event: Any, flags: ctypes.c_uint) -> None:
        assert flags.value == 2
        self.events += 1
        event._obj.value = 900 + self.events

    def _cudaEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        assert event.value == 900 + self.events
        assert stream.value == 77

    def _cudaEventSynchronize(self, event: ctypes.c_void_p) -> None:
        assert event.value == 900 + self.events

    def _cudaEventDestroy(self, event: ctypes.c_void_p) -> None:
        assert event.value == 900 + self.events
        self.events -= 1

    def _cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> None:
        assert stream.value == 77
