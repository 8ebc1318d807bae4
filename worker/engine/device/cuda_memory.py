"""The memory of a CUDA device, through the CUDA runtime that ONNX Runtime has loaded.

ONNX Runtime's own arena rounds what it is asked for up to a power of two, which a cache of many GB cannot afford; and
its copies wait for the device. So pages, inputs and logits are allocated here, and copies go into one stream, which
all sessions are given as theirs.
"""

import ctypes
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.engine.errors import OutOfMemory

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

LIBRARY: Final = "libcudart.so.13"

_OUT_OF_MEMORY: Final = 2  # cudaErrorMemoryAllocation
_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_NON_BLOCKING: Final = 1
_NO_TIMING: Final = 2  # cudaEventDisableTiming
_CAPABILITY: Final = (75, 76)  # cudaDevAttrComputeCapabilityMajor and Minor
_CAPTURES_OF_OWN_THREAD: Final = 1  # cudaStreamCaptureModeThreadLocal
_STRIDE_MAX: Final = 2**31 - 1
"""Bytes between two planes of one copy, on any card."""


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed; the device is not to be trusted any more."""

    def __init__(self, call: str, status: int, meaning: str) -> None:
        super().__init__(f"{call} failed: {meaning} (CUDA error {status})")
        self.status = status


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What is known of a device before anything runs on it."""

    capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


class CudaMemory:
    """The methods are those of `DeviceMemory`."""

    device = "cuda"

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self.index = index
        self._library = library or ctypes.CDLL(LIBRARY)
        self._threads = threading.local()
        self._addresses: list[int] = []
        self._host: list[int] = []
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream = stream.value or 0

    @property
    def facts(self) -> DeviceFacts:
        """As the driver tells them now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        major, minor = (self._attribute(number) for number in _CAPABILITY)
        return DeviceFacts((major, minor), free.value, total.value)

    def allocate(self, size_bytes: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size_bytes)))
        address = pointer.value or 0
        self._addresses.append(address)
        self._call("cudaMemsetAsync", _at(address), ctypes.c_int(0), ctypes.c_size_t(size_bytes), _at(self.stream))
        return address

    def host_array(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        pointer = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(pointer), ctypes.c_size_t(max(1, size_bytes)))
        self._host.append(pointer.value or 0)
        content = (ctypes.c_uint8 * size_bytes).from_address(pointer.value or 0)
        array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(content)
        return array

    def upload(self, address: int, array: Array) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def download(self, array: Array, address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def copy_planes(self, target: int, source: int, size_bytes: int, stride_bytes: int, planes: int) -> None:
        if stride_bytes > _STRIDE_MAX:
            for skipped in range(0, planes * stride_bytes, stride_bytes):
                self._copy(target + skipped, source + skipped, size_bytes, _ON_DEVICE)
            return
        stride = ctypes.c_size_t(stride_bytes)
        block = ctypes.c_size_t(size_bytes), ctypes.c_size_t(planes)
        kind = ctypes.c_int(_ON_DEVICE)
        self._call("cudaMemcpy2DAsync", _at(target), stride, _at(source), stride, *block, kind, _at(self.stream))

    def mark(self) -> Callable[[], None]:
        event = ctypes.c_void_p()
        self._call("cudaEventCreateWithFlags", ctypes.byref(event), ctypes.c_uint(_NO_TIMING))
        self._call("cudaEventRecord", event, _at(self.stream))

        def wait() -> None:
            self._call("cudaEventSynchronize", event)
            self._call("cudaEventDestroy", event)

        return wait

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", _at(self.stream))

    def close(self) -> None:
        try:
            self._give_back()
        except CudaError as error:
            # A device that failed fails every call from then on: its memory goes with the process.
            logger.warning("the memory of a device was not given back", extra={"reason": str(error)})

    def _give_back(self) -> None:
        self.wait()
        for address in self._addresses:
            self._call("cudaFree", _at(address))
        for address in self._host:
            self._call("cudaFreeHost", _at(address))
        self._addresses.clear()
        self._host.clear()

    def _begin_thread(self) -> None:
        """Which device is meant, each thread says for itself. And where another thread captures a run, as the engine of
        another model in this process may, a call that takes memory would fail by default, and the capture with it.
        """
        self._call("cudaSetDevice", ctypes.c_int(self.index))
        mode = ctypes.c_int(_CAPTURES_OF_OWN_THREAD)
        self._call("cudaThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def _attribute(self, number: int) -> int:
        found = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(found), ctypes.c_int(number), ctypes.c_int(self.index))
        return found.value

    def _copy(self, target: int, source: int, size_bytes: int, kind: int) -> None:
        size = ctypes.c_size_t(size_bytes)
        self._call("cudaMemcpyAsync", _at(target), _at(source), size, ctypes.c_int(kind), _at(self.stream))

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the runtime; OutOfMemory if it has none, else CudaError."""
        if not getattr(self._threads, "is_known", False):
            self._threads.is_known = True
            self._begin_thread()
        status = getattr(self._library, name)(*arguments)
        if status == 0:
            return
        meaning_of = self._library.cudaGetErrorString
        meaning_of.restype = ctypes.c_char_p
        meaning = (meaning_of(ctypes.c_int(status)) or b"unknown").decode()
        if status == _OUT_OF_MEMORY:
            self._library.cudaGetLastError()  # or the next call, of whomever, fails for it
            raise OutOfMemory(f"{name}: {meaning}")
        raise CudaError(name, status, meaning)


def _at(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)
