"""Part `device`: what is here, and the rates that the other parts are held against."""

import platform
import subprocess
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks import roofline as cpu_roofline
from benchmarks.gpu.given import Given
from worker.engine.device import gpu
from worker.engine.device.cuda_memory import CudaMemory

_SIZE: Final = 8192
_COPY_BYTES: Final = 4 * 2**30
_TRIES: Final = 10


def measure(given: Given) -> dict[str, Any]:
    """Rates in operations and bytes a second; bytes read and written both count."""
    facts = {"python": platform.python_version(), "onnxruntime": ort.__version__, "device": given.device}
    if given.device == "cpu":
        peaks = cpu_roofline.measure(threads=1)
        return facts | {"operations": peaks.fp32, "bytes": peaks.read}
    memory = gpu.open_memory()
    found = memory.facts
    facts |= {
        "capability": list(found.capability),
        "free_bytes": found.free_bytes,
        "total_bytes": found.total_bytes,
        "nvidia_smi": _nvidia_smi(),
        "build": ort.get_build_info(),
    }
    rates = {"bytes": _copy_rate(memory), "operations": _product_rate(memory)}
    return facts | rates


def _nvidia_smi() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"


def _copy_rate(memory: CudaMemory) -> float:
    source, target = memory.allocate(_COPY_BYTES), memory.allocate(_COPY_BYTES)
    best = _best(memory, lambda: memory.copy_planes(target, source, _COPY_BYTES // 1024, _COPY_BYTES // 1024, 1024))
    memory.close()
    return 2 * _COPY_BYTES / best


def _product_rate(memory: CudaMemory) -> float:
    """Of random numbers: a card is faster with zeros."""
    kind = TensorProto.BFLOAT16
    sides = ["left", "right", "product"]
    values = [helper.make_tensor_value_info(name, kind, [_SIZE, _SIZE]) for name in sides]
    graph = helper.make_graph(
        [helper.make_node("Gemm", sides[:2], sides[2:], transB=1)], "peak", values[:2], values[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = gpu.open_session(model.SerializeToString(), memory, ort.SessionOptions(), captures=False)
    binding = session.io_binding()
    noise = np.random.default_rng(1).standard_normal((_SIZE, _SIZE), np.float32).astype(ml_dtypes.bfloat16)
    for name in sides:
        address = memory.allocate(noise.nbytes)
        bind = binding.bind_output if name == "product" else binding.bind_input
        memory.upload(address, noise)
        bind(name, "cuda", memory.index, kind, noise.shape, address)
    memory.wait()
    best = _best(memory, lambda: session.run_with_iobinding(binding))
    memory.close()
    return 2 * _SIZE**3 / best


def _best(memory: CudaMemory, work: Callable[[], object]) -> float:
    times = []
    for _ in range(_TRIES):
        began = perf_counter()
        work()
        memory.wait()
        times.append(perf_counter() - began)
    return min(times)
