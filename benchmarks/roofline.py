"""What this machine could do at best: matrix multiplication through ONNX Runtime, and reading memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from worker.model import ModelSpec

ROWS, INNER, COLUMNS = 512, 2048, 2048
READ_BYTES = 512 * 2**20
"""Far more than any cache holds."""
TRIES = 7


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations a second (a multiplication and an addition are two) and bytes a second; the best of TRIES."""

    fp32: float
    int8: float
    read: float

    def __str__(self) -> str:
        return (
            f"fp32 matrix multiply {self.fp32 / 1e9:.0f} Gop/s, uint8 x int8 {self.int8 / 1e9:.0f} Gop/s, "
            f"memory read {self.read / 1e9:.1f} GB/s"
        )


def measure(threads: int) -> Peaks:
    """Takes a few seconds."""
    random = np.random.default_rng(1)
    left, right = random.random((ROWS, INNER), np.float32), random.random((INNER, COLUMNS), np.float32)
    small = random.integers(0, 127, (ROWS, INNER), np.uint8), random.integers(-63, 63, (INNER, COLUMNS), np.int8)
    work = 2 * ROWS * INNER * COLUMNS
    fp32 = _product("MatMul", TensorProto.FLOAT, right, threads)
    int8 = _product("MatMulInteger", TensorProto.INT32, small[1], threads)
    return Peaks(
        fp32=work / _best(lambda: fp32.run(None, {"left": left})),
        int8=work / _best(lambda: int8.run(None, {"left": small[0]})),
        read=_read_rate(threads),
    )


def linear_operations(spec: ModelSpec, computed_tokens: float, output_tokens: int) -> float:
    """The operations of the linear layers alone: of every token computed, and of the lm_head of every answer's."""
    attention = spec.hidden * spec.head_size * (2 * spec.heads + 2 * spec.kv_heads)
    layer = attention + 3 * spec.hidden * spec.intermediate
    return 2 * (spec.layers * layer * computed_tokens + spec.hidden * spec.vocabulary * output_tokens)


def _product(operator: str, result: int, right: np.ndarray[Any, Any], threads: int) -> onnxruntime.InferenceSession:
    """A graph of one product with a constant, as a model's linear layers are."""
    left = TensorProto.FLOAT if operator == "MatMul" else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("left", left, [ROWS, INNER])],
        [helper.make_tensor_value_info("product", result, [ROWS, COLUMNS])],
        [helper.make_tensor("right", helper.np_dtype_to_tensor_dtype(right.dtype), right.shape, right.tobytes(), True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _read_rate(threads: int) -> float:
    """Each thread looks for the largest number of a part of its own; numpy lets go of the GIL meanwhile."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / _best(lambda: list(pool.map(np.max, parts)))


def _best(work: Callable[[], object]) -> float:
    """The least seconds, after one run that does not count."""
    work()
    times = []
    for _ in range(TRIES):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return min(times)
