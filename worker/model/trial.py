"""Runs a graph that others made, as the engine will, before it is trusted: what it says must not depend on how."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from worker.model.errors import UnsupportedModel
from worker.model.precision import Precision
from worker.model.spec import ModelSpec

_TOKENS: Final = 12
_INSERTED: Final = "InsertedPrecisionFreeCast_"
"""In the names of what ONNX Runtime puts around nodes in 16 bits on a CPU, which attention over pages cannot bear."""
_DIFFERENCE_MAX: Final = 0.05
"""Of the largest logit. Sums in another order differ by less, also of 16 bits; another position or text by more."""


def check(path: Path, spec: ModelSpec, precision: Precision) -> None:
    """Hold one piece against several, and rows alone against rows together. UnsupportedModel says what is wrong."""
    try:
        trial = _Trial(path, spec, precision)
        ids = np.arange(1, _TOKENS + 1, dtype=np.int64) * 7919 % spec.vocabulary
        whole = trial.run(0, ids[None], [_TOKENS], range(_TOKENS))
        trial.run(1, ids[None, :3], [3], [])
        pieces = trial.run(1, ids[None, 3:], [_TOKENS], range(_TOKENS - 3))
        together = trial.run(0, ids[[8, 5]][:, None], [9, 6], range(2))
    except Exception as error:  # the library has a dozen kinds, which share nothing narrower
        reason = str(error).strip().splitlines()[-1]
        raise UnsupportedModel(f"{path.name} cannot be run by ONNX Runtime {ort.__version__}: {reason}") from error
    if whole.shape != (_TOKENS, spec.vocabulary) or not np.isfinite(whole).all():
        raise UnsupportedModel(
            f"{path.name} gave logits {list(whole.shape)}, where finite ones {[_TOKENS, spec.vocabulary]} were expected"
        )
    limit = _DIFFERENCE_MAX * np.abs(whole).max()
    for found, expected, how in ((pieces, whole[3:], "in pieces"), (together, whole[[8, 5]], "beside another")):
        if np.abs(found - expected).max() > limit:
            raise UnsupportedModel(
                f"{path.name} computes a text otherwise {how} than alone and in one, so it cannot be run"
            )


def check_types(path: Path) -> None:
    """Hold a graph for cards against the operators' descriptions. UnsupportedModel if it is not one.

    ONNX Runtime looks for code for this machine, and inserts what that needs, only after it has found all types and
    shapes to be right.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return
    except Exception as error:  # as above
        if _INSERTED in str(error):
            return
        reason = str(error).strip().splitlines()[-1]
        raise UnsupportedModel(f"{path.name} cannot be run by ONNX Runtime {ort.__version__}: {reason}") from error


class _Trial:
    """A session with room for two texts."""

    def __init__(self, path: Path, spec: ModelSpec, precision: Precision) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")  # which copies the weights
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        room = (2, spec.kv_heads, _TOKENS, spec.head_size)
        self._caches: dict[str, NDArray[Any]] = {
            f"{layer}.{kind}": np.zeros(room, precision.dtype)
            for layer in range(spec.layers)
            for kind in ("key", "value")
        }

    def run(self, first: int, ids: NDArray[np.int64], lengths: list[int], wanted: Any) -> NDArray[np.float32]:
        """Logits of the wanted tokens; ids [rows, new], in the rows from `first` on, which then have these lengths."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("seqlens_k", np.array(lengths, np.int32) - np.int32(1))
        binding.bind_cpu_input("total_sequence_length", np.array(max(lengths), np.int32))
        binding.bind_cpu_input("logits_indices", np.array(wanted, np.int64))
        binding.bind_output("logits")
        for name, array in self._caches.items():
            rows = array[first : first + len(ids)]
            place = ("cpu", 0, rows.dtype.type, rows.shape, rows.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        self._session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return logits
