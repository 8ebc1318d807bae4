"""Tells whether the GPU can be used, and if not, why, in one sentence with the cure; opens sessions on it."""

import ctypes
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from worker.engine.device.cuda_memory import LIBRARY, CudaError, CudaMemory
from worker.engine.device.memory import Placed
from worker.engine.device.sampler import DeviceSampler
from worker.engine.errors import EngineError, OutOfMemory
from worker.engine.session import has_cuda, is_out_of_memory

logger = logging.getLogger(__name__)

_DRIVER: Final = "libcuda.so.1"
_LIBRARIES: Final = (LIBRARY, "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10")
"""What ONNX Runtime's CUDA part is linked against."""
_CUDNN: Final = "libcudnn.so.9"
"""It finds this one by itself, if it can."""
_INSTALL: Final = "pip install 'gristmill[gpu]'"
_DRIVER_MIN: Final = 580

CAPABILITY_MIN: Final = (8, 0)
"""Of cards that compute in bf16 and have kernels for attention over pages."""

_CURES: Final = {
    2: "its memory is taken; end what else runs on it (nvidia-smi shows it), or choose a smaller model",
    35: f"its driver is too old for CUDA 13; install version {_DRIVER_MIN} or newer (nvidia-smi shows yours)",
    46: "another process has it for itself; end it (nvidia-smi shows it), or set the card's compute mode to default",
    100: "the driver finds no NVIDIA GPU; is there one, and is it given to this container (docker run --gpus all)?",
    101: "there is no GPU of this number; choose one with CUDA_VISIBLE_DEVICES",
    209: "ONNX Runtime has no code for a card of its kind; use one of compute capability 8.0 or newer",
    222: f"its driver is too old for code that was compiled for CUDA 13; install version {_DRIVER_MIN} or newer",
    802: "its driver is not ready yet; start nvidia-fabricmanager, or wait until it is up",
    803: "the driver and its kernel module are of different versions; reboot after an update of the driver",
    804: f"its driver is too old for CUDA 13 on this card; install version {_DRIVER_MIN} or newer",
    999: "the driver failed for an unknown reason; nvidia-smi or a reboot may tell more",
}
"""By the error numbers of the CUDA runtime."""


class GpuUnusable(EngineError):
    """There is no GPU that can be used; the message says why and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the GPU cannot be used: {reason}")


def open_memory(load: Callable[[str], Any] = ctypes.CDLL, *, index: int = 0, needs_bf16: bool = True) -> CudaMemory:
    """The memory of the GPU, once all is found to be in place. GpuUnusable if it is not."""
    _check_libraries(load)
    try:
        memory = CudaMemory(index, load(LIBRARY))
        facts = memory.facts
    except (CudaError, OutOfMemory) as error:
        raise GpuUnusable(cure_of(error)) from error
    if needs_bf16 and facts.capability < CAPABILITY_MIN:
        found, wanted = (".".join(map(str, capability)) for capability in (facts.capability, CAPABILITY_MIN))
        raise GpuUnusable(
            f"it has the compute capability {found}, and bf16 needs {wanted}; add the model with --precision fp16"
        )
    return memory


def require() -> None:
    """GpuUnusable unless there is a GPU that can be used, if not for bf16."""
    open_memory(needs_bf16=False).close()


def open_capturing(
    graph: Path | bytes, memory: CudaMemory, make_options: Callable[[], ort.SessionOptions]
) -> tuple[ort.InferenceSession, bool]:
    """A session whose runs can be captured, and whether they can: ONNX Runtime refuses graphs with a node for the CPU,
    as some that others built have.
    """
    try:
        return open_session(graph, memory, make_options(), captures=True), True
    except GpuUnusable as error:
        if "graph capture" not in str(error.__cause__):
            raise
        logger.warning("runs cannot be captured", extra={"reason": str(error.__cause__)})
        return open_session(graph, memory, make_options(), captures=False), False


def open_session(
    graph: Path | bytes, memory: CudaMemory, options: ort.SessionOptions, *, captures: bool
) -> ort.InferenceSession:
    """A session on the GPU whose runs follow the copies of `memory`. GpuUnusable where it cannot be opened."""
    options.log_severity_level = 3
    # Runs of many shapes would each keep a plan of memory of their own.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    chosen = {
        "device_id": str(memory.index),
        "arena_extend_strategy": "kSameAsRequested",
        "user_compute_stream": str(memory.stream),
        "enable_cuda_graph": str(int(captures)),
    }
    content = graph if isinstance(graph, bytes) else str(graph)
    # The CPU stands behind for what the whole cannot be without: ONNX Runtime refuses to capture if it is used.
    providers = [("CUDAExecutionProvider", chosen), "CPUExecutionProvider"]
    try:
        # Without enable_fallback=0 it would try again without the GPU, and tell what comes of that.
        session = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise GpuUnusable(cure_of(error)) from error
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise GpuUnusable(f"ONNX Runtime opened the model without CUDA; install it anew with: {_INSTALL}")
    return session


def open_sampler(memory: CudaMemory, logits: Placed) -> DeviceSampler:
    """Draws where some logits are."""

    def open_graph(graph: bytes) -> ort.InferenceSession:
        try:
            return open_session(graph, memory, ort.SessionOptions(), captures=False)
        except GpuUnusable as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                raise OutOfMemory(str(error)) from error  # the host can draw too
            raise

    return DeviceSampler(memory, open_graph, logits)


def _check_libraries(load: Callable[[str], Any]) -> None:
    if not has_cuda():
        raise GpuUnusable(f"this ONNX Runtime is for CPUs only; replace it with: {_INSTALL}")
    try:
        load(_DRIVER)
    except OSError as error:
        raise GpuUnusable(
            f"there is no NVIDIA driver ({_DRIVER}); install version {_DRIVER_MIN} or newer, or give this container "
            "the GPU (docker run --gpus all)"
        ) from error
    if load is ctypes.CDLL:
        _load_from_packages()
    for library in _LIBRARIES:
        try:
            load(library)
        except OSError as error:
            raise GpuUnusable(f"the CUDA library {library} is missing; install it with: {_INSTALL}") from error


def _load_from_packages() -> None:
    """The CUDA libraries that were installed with pip, wherever packages are looked for: ONNX Runtime's own search
    sees only those beside itself. What is not there may yet be found by the system.
    """
    ort.preload_dlls()
    for library in (*_LIBRARIES, _CUDNN):
        for path in [found for place in sys.path for found in Path(place).glob(f"nvidia/*/lib/{library}")][:1]:
            with suppress(OSError):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def cure_of(error: Exception) -> str:
    """What is wrong and what to do, to follow a colon, of an error of the CUDA runtime or of ONNX Runtime."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return _CURES[2]
    text = str(error)
    for status, cure in _CURES.items():
        if f"CUDA failure {status}:" in text or f"CUDA error {status})" in text:
            return cure
    if "cudaErrorNoKernelImageForDevice" in text:
        return _CURES[209]
    return text.splitlines()[0][:300]
