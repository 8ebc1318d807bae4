"""Runs a paged graph in ONNX Runtime on memory that is ours: pages, inputs and logits keep their addresses.

So a run over rows can be captured as a CUDA graph and replayed, which takes a tenth of the time that it takes to
start a thousand kernels one by one. ONNX Runtime captures at the first run of a graph id, and never reads the
binding again; that it belongs to a run of another shape it does not notice. What a captured run reads from host
memory it has read once: `packing` makes that the same for all runs of a shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine import session as sessions
from worker.engine.device.graphs import unsynchronized
from worker.engine.device.logits import DeviceLogits
from worker.engine.device.memory import DeviceMemory, Placed, aligned
from worker.engine.device.staging import Staging
from worker.engine.paged.packing import PackedRun, bucket
from worker.engine.paged.session import Fill
from worker.engine.softmax import Ids, Logits

Array = npt.NDArray[Any]

_ELEMENTS: Final[dict[str, tuple[int, Any]]] = {
    "tensor(float)": (1, np.dtype(np.float32)),
    "tensor(float16)": (10, np.dtype(np.float16)),
    "tensor(bfloat16)": (16, np.dtype(ml_dtypes.bfloat16)),
    "tensor(int8)": (3, np.dtype(np.int8)),
    "tensor(float8e4m3fn)": (17, np.dtype(ml_dtypes.float8_e4m3fn)),
    "tensor(int32)": (6, np.dtype(np.int32)),
    "tensor(int64)": (7, np.dtype(np.int64)),
}
"""ONNX's number of a type, and numpy's name for it."""

_IDS: Final = "input_ids"
_METADATA: Final = "attention_metadata"
_EAGER: Final = -1


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Sizes of the cache: for each layer keys and values, [pages, tokens, kv_heads, head_size] of some element."""

    layers: int
    kv_heads: int
    head_size: int
    tokens: int
    element_bytes: int

    @property
    def plane_bytes(self) -> int:
        """What one page takes of the keys, or of the values, of one layer."""
        return self.tokens * self.kv_heads * self.head_size * self.element_bytes

    @property
    def page_bytes(self) -> int:
        """What one page takes in all."""
        return 2 * self.layers * self.plane_bytes


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The most that one run is given."""

    tokens: int
    sequences: int
    pages_each: int

    @property
    def input_bytes(self) -> int:
        """Of all inputs together."""
        table = self.sequences * self.pages_each * 4
        return aligned([self.tokens * 8, (self.sequences + 1) * 4, self.sequences * 4, table, self.sequences * 8])[-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """What a shape of runs has for itself."""

    binding: ort.IOBinding
    options: ort.RunOptions
    metadata: Array
    """Read by ONNX Runtime at the first run."""


class OrtPagedSession:
    """The methods are those of `PagedSession`. With `captures`, runs over rows are replayed from CUDA graphs."""

    def __init__(
        self,
        session: ort.InferenceSession,
        memory: DeviceMemory,
        layout: PageLayout,
        pages: int,
        limits: RunLimits,
        *,
        captures: bool,
    ) -> None:
        self._session = session
        self._memory = memory
        self._layout = layout
        self._pages = pages
        self._captures = captures
        self._types = {argument.name: argument.type for argument in (*session.get_inputs(), *session.get_outputs())}
        shapes = {argument.name: argument.shape for argument in session.get_outputs()}
        self.vocabulary = int(shapes["logits"][-1])
        self._cache = memory.allocate(layout.page_bytes * pages)
        self._staging = Staging(memory, limits.input_bytes)
        element, _ = _ELEMENTS[self._types["logits"]]
        self.logits = DeviceLogits(memory, bucket(limits.sequences), self.vocabulary, element)
        self._binding = self._bound_to_cache()
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._graph_ids = count(1)

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        size = self._layout.plane_bytes
        for source, target in copies:
            addresses = (self._cache + target * size, self._cache + source * size)
            self._memory.copy_planes(*addresses, size, size * self._pages, 2 * self._layout.layers)

    def run(self, run: PackedRun, fill: Fill | None = None) -> Ids:
        inputs = {name: self._cast(name, array) for name, array in run.inputs().items() if name in self._types}
        self._staging.turn()
        if run.is_captured and self._captures:
            self._replay(run.shape, inputs, fill)
        else:
            self._bind_inputs(self._binding, inputs, self._rows_of(run), inputs[_METADATA], fill)
            sessions.run(self._session, self._binding, self._options(_EAGER))
        return self._places(run)

    def logits_at(self, rows: Ids) -> Logits:
        return self.logits.logits_at(rows)

    def keep(self) -> None:
        self.logits.keep()

    def kept_at(self, rows: Ids) -> Logits:
        return self.logits.kept_at(rows)

    def wait(self) -> None:
        self._memory.wait()

    def close(self) -> None:
        self._memory.close()
        self._captured.clear()
        del self._binding, self._session

    def _replay(self, shape: tuple[int, int], inputs: dict[str, Array], fill: Fill | None) -> None:
        if captured := self._captured.get(shape):
            self._upload(inputs, fill)
            sessions.run(self._session, captured.binding, captured.options)
            return
        metadata = inputs[_METADATA].copy()
        binding = self._bound_to_cache()
        self._bind_inputs(binding, inputs, shape[0], metadata, fill)
        captured = _Captured(binding, self._options(next(self._graph_ids)), metadata)
        sessions.run(self._session, binding, captured.options)
        # Not before: what a run has captured that found no memory is not the whole of it.
        self._captured[shape] = captured

    def _bind_inputs(
        self, binding: ort.IOBinding, inputs: dict[str, Array], rows: int, metadata: Array, fill: Fill | None
    ) -> None:
        """Upload the inputs and bind where they lie; those in host memory must outlive the run."""
        for (name, array), address in zip(self._on_device(inputs), self._upload(inputs, fill), strict=True):
            self._bind(binding.bind_input, name, array.shape, address)
        binding.bind_input(_METADATA, "cpu", 0, np.int32, metadata.shape, metadata.ctypes.data)
        self._bind(binding.bind_output, "logits", (rows, self.vocabulary), self.logits.place.address)

    def _upload(self, inputs: dict[str, Array], fill: Fill | None) -> list[int]:
        """All inputs in one copy; where each lies, which its shape and those of the ones before decide."""
        addresses = self._staging.send([array for _, array in self._on_device(inputs)])
        ids = inputs[_IDS]
        if fill is not None and (ids < 0).any():
            place = [name for name, _ in self._on_device(inputs)].index(_IDS)
            fill(Placed(addresses[place], _ELEMENTS[self._types[_IDS]][0], ids.shape))
        return addresses

    @staticmethod
    def _on_device(inputs: dict[str, Array]) -> list[tuple[str, Array]]:
        return [(name, array) for name, array in inputs.items() if name != _METADATA]

    def _cast(self, name: str, array: Array) -> Array:
        """In the type that this graph wants, for others are built otherwise."""
        cast: Array = array.astype(_ELEMENTS[self._types[name]][1], copy=False)
        return cast

    def _rows_of(self, run: PackedRun) -> int:
        """Rows of logits that the graph gives: those wanted, or where it does not ask, one a sequence."""
        return run.rows if "logits_indices" in self._types else run.shape[0]

    def _places(self, run: PackedRun) -> Ids:
        if "logits_indices" in self._types:
            return np.arange(run.rows)
        ends = run.cumulative_sequence_lengths[1:] - 1
        return np.searchsorted(ends, run.logits_indices).astype(np.int64)

    def _bound_to_cache(self) -> ort.IOBinding:
        """Past and present of all layers bound to the same memory; takes most of a ms."""
        binding = self._session.io_binding()
        layout = self._layout
        shape = (self._pages, layout.tokens, layout.kv_heads, layout.head_size)
        for layer in range(layout.layers):
            for place, part in enumerate(("key", "value")):
                address = self._cache + (2 * layer + place) * self._pages * layout.plane_bytes
                self._bind(binding.bind_input, f"past_key_values.{layer}.{part}", shape, address)
                self._bind(binding.bind_output, f"present.{layer}.{part}", shape, address)
        return binding

    def _bind(self, bind: Any, name: str, shape: Sequence[int], address: int) -> None:
        bind(name, self._memory.device, self._memory.index, _ELEMENTS[self._types[name]][0], list(shape), address)

    def _options(self, graph_id: int) -> ort.RunOptions:
        options = unsynchronized()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return options


def element_bytes(session: ort.InferenceSession) -> int:
    """Of one number in the cache that a graph wants."""
    kinds = {argument.name: argument.type for argument in session.get_inputs()}
    return int(_ELEMENTS[kinds["past_key_values.0.key"]][1].itemsize)
