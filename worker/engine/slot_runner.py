"""Runs an ONNX graph of GroupQueryAttention on slots, on the CPU or on CUDA: the same code, other memory.

The operator sets the rules. Rows of one token each may have any pasts (decode). Several rows of more than one
token only as first prompts, padded on the right, in neighbouring slots. A piece with a past goes alone. Past
and present must be the same memory, or the whole cache is copied in every run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine.runner import Span
from worker.engine.sampling import Logits
from worker.engine.slots import CudaSlots, Slots

RUN_TOKENS = 16
"""A run reads all weights once; on a CPU that takes about as long as computing this many tokens."""

_BINDINGS_MAX = 256
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The inputs of one run over the slots first_slot to first_slot + rows - 1."""

    first_slot: int
    input_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    """Of each row, after the run."""
    logits_indices: npt.NDArray[np.int64]


class SlotRunner:
    """A session, its KV cache, and bindings that stay from run to run. The methods are those of `Runner`."""

    def __init__(self, session: ort.InferenceSession, slots: Slots, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.slots = slots.count
        self.context_tokens = slots.layout.length
        self._session = session
        self._slots = slots
        self._device = "cuda" if isinstance(slots, CudaSlots) else "cpu"
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._logits = np.empty((slots.count, vocabulary), np.float32)

    def prefill(self, spans: Sequence[Span]) -> Logits:
        done = 0
        for group in runs(spans):
            rows = _prompt_rows(group)
            self._run(rows, self._logits[done : done + len(rows.logits_indices)])
            done += len(rows.logits_indices)
        return self._logits[:done]

    def decode(self, token_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Logits:
        count = len(token_ids)
        rows = _Rows(0, token_ids.reshape(count, 1), lengths + np.int32(1), np.arange(count, dtype=np.int64))
        self._run(rows, self._logits[:count])
        return self._logits[:count]

    def copy(self, source: int, target: int, length: int) -> None:
        self._slots.copy(source, target, length)

    def close(self) -> None:
        self._bindings.clear()
        del self._session, self._slots

    def _run(self, rows: _Rows, logits: Logits) -> None:
        """One run of the graph; ONNX Runtime lets go of the interpreter's lock meanwhile."""
        binding = self._binding(rows.first_slot, len(rows.lengths))
        inputs = {
            "input_ids": rows.input_ids,
            "seqlens_k": rows.lengths - np.int32(1),
            "total_sequence_length": np.array(rows.lengths.max(), np.int32),
            "logits_indices": rows.logits_indices,
        }
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _binding(self, first_slot: int, count: int) -> ort.IOBinding:
        """Past and present bound to `count` slots from the first; made once, as it takes most of a ms."""
        if (binding := self._bindings.get((first_slot, count))) is not None:
            return binding
        if len(self._bindings) == _BINDINGS_MAX:
            self._bindings.clear()
        binding = self._session.io_binding()
        layout = self._slots.layout
        for index, address in enumerate(self._slots.addresses):
            layer, kind = index // 2, ("key", "value")[index % 2]
            place = (
                layout.element.type,
                layout.shape(count),
                address + first_slot * layout.slot_bytes_per_array,
            )
            binding.bind_input(f"past_key_values.{layer}.{kind}", self._device, 0, *place)
            binding.bind_output(f"present.{layer}.{kind}", self._device, 0, *place)
        self._bindings[first_slot, count] = binding
        return binding


def runs(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut spans, in the order of slots, into runs that the operator allows and that pay.

    First prompts in neighbouring slots share a run as long as the padding stays below what a run costs.
    """
    groups: list[list[Span]] = []
    for span in spans:
        if groups and _can_join(groups[-1], span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _can_join(group: list[Span], span: Span) -> bool:
    if span.start or group[0].start or span.slot != group[-1].slot + 1:
        return False
    width = max(len(member.token_ids) for member in group)
    wider = max(width, len(span.token_ids))
    return (len(group) + 1) * wider - len(group) * width - len(span.token_ids) <= RUN_TOKENS


def _prompt_rows(group: list[Span]) -> _Rows:
    """Pad on the right, and want the logits after the last token of those that end their prompt."""
    widths = np.array([len(span.token_ids) for span in group], dtype=np.int32)
    input_ids = np.zeros((len(group), widths.max()), np.int64)
    for row, span in enumerate(group):
        input_ids[row, : widths[row]] = span.token_ids
    ends = [row * input_ids.shape[1] + widths[row] - 1 for row, span in enumerate(group) if span.ends_prompt]
    return _Rows(group[0].slot, input_ids, group[0].start + widths, np.array(ends, dtype=np.int64))


def cache_element(session: ort.InferenceSession) -> np.dtype[np.generic]:
    """The type of the keys and values that the graph wants."""
    kinds = {argument.name: argument.type for argument in session.get_inputs()}
    return np.dtype(_ELEMENTS[kinds["past_key_values.0.key"]])


def has_cuda() -> bool:
    """ONNX Runtime was built with CUDA here; whether a device answers is seen when a session opens."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


def open_session(path: Path, *, threads: int, use_cuda: bool) -> ort.InferenceSession:
    """Load the graph at `path`; with `use_cuda`, an error rather than the CPU where no device answers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not use_cuda:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ort.preload_dlls()
    cuda = ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    session = ort.InferenceSession(str(path), options, providers=[cuda, "CPUExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("CUDA was asked for, but ONNX Runtime could not open a CUDA device")
    return session
