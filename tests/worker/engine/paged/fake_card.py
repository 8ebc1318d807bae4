"""A card in this machine's memory on which nothing happens before somebody waits for it, and then no more than he waits
for. What is read on the host too early, or sent from memory that is written too early, is wrong.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from tests.worker.engine.device.host_memory import HostMemory
from worker.engine.device.cuda_memory import CudaError
from worker.engine.device.memory import Placed
from worker.engine.device.sampler import DeviceSampler
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.engine.paged.occupancy import Room
from worker.engine.paged.opening import run_limits
from worker.engine.paged.ort_session import OrtPagedSession, PageLayout
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.settings import EngineSettings

Array = npt.NDArray[Any]
Run = Callable[[dict[str, "Bound"], dict[str, "Bound"]], None]

_POISON = 0xA5


class Card:
    """The methods are those of `DeviceMemory`. `fails_at` is the number of the first run of a model that fails."""

    device = "card"
    index = 0

    def __init__(self, fails_at: int | None = None) -> None:
        self.models_begun = self.models_ended = 0
        self.ahead_max = 0
        """Of the models' runs the most that had begun, but not ended, at one time."""
        self.is_closed = False
        self._fails_at = fails_at
        self._memory = HostMemory()
        self._begun: list[Callable[[], None]] = []
        self._ended = 0

    def allocate(self, size_bytes: int) -> int:
        return self._memory.allocate(size_bytes)

    def host_array(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        return np.full(size_bytes, _POISON, np.uint8)

    def begin(self, action: Callable[[], None]) -> None:
        self._begun.append(action)

    def begin_model(self, action: Callable[[], None]) -> None:
        def run() -> None:
            if self.models_ended == self._fails_at:
                raise CudaError("cudaEventSynchronize", 700, "an illegal memory access was encountered")
            action()
            self.models_ended += 1

        self.models_begun += 1
        self.ahead_max = max(self.ahead_max, self.models_begun - self.models_ended)
        self.begin(run)

    def upload(self, address: int, array: Array) -> None:
        self.begin(lambda: self._memory.upload(address, array))

    def download(self, array: Array, address: int) -> None:
        ctypes.memset(array.ctypes.data, _POISON, array.nbytes)
        self.begin(lambda: self._memory.download(array, address))

    def copy_planes(self, target: int, source: int, size_bytes: int, stride_bytes: int, planes: int) -> None:
        self.begin(lambda: self._memory.copy_planes(target, source, size_bytes, stride_bytes, planes))

    def mark(self) -> Callable[[], None]:
        end = len(self._begun)
        return lambda: self._run_to(end)

    def wait(self) -> None:
        self._run_to(len(self._begun))

    def close(self) -> None:
        with suppress(CudaError):
            self.wait()
        self._memory.close()
        self.is_closed = True

    def _run_to(self, end: int) -> None:
        while self._ended < end:
            self._begun[self._ended]()
            self._begun[self._ended] = _nothing
            self._ended += 1


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Bound:
    """One binding; what lies on the host is as it was when the run began."""

    device: str
    element: Any
    shape: tuple[int, ...]
    address: int

    def array(self) -> Array:
        kind = helper.tensor_dtype_to_np_dtype(self.element) if isinstance(self.element, int) else self.element
        dtype = np.dtype(kind)
        size = int(np.prod(self.shape)) * dtype.itemsize
        content = (ctypes.c_uint8 * size).from_address(self.address)
        return np.frombuffer(content, dtype, int(np.prod(self.shape))).reshape(self.shape)


@dataclass
class Binding:
    """As ONNX Runtime's, as far as it is used."""

    inputs: dict[str, Bound] = field(default_factory=dict)
    outputs: dict[str, Bound] = field(default_factory=dict)

    def bind_input(self, name: str, device: str, index: int, element: Any, shape: Sequence[int], address: int) -> None:
        self.inputs[name] = Bound(device, element, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int, element: Any, shape: Sequence[int], address: int) -> None:
        self.outputs[name] = Bound(device, element, tuple(shape), address)


class CardSession:
    """A session on a card: `run` does what it is to do, once its turn has come."""

    def __init__(self, card: Card, run: Run, arguments: Any, *, is_model: bool) -> None:
        self._begin = card.begin_model if is_model else card.begin
        self._run = run
        self.get_inputs, self.get_outputs = arguments.get_inputs, arguments.get_outputs

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        kept = {name: one.array().copy() for name, one in binding.inputs.items() if one.device == "cpu"}
        inputs = {
            name: replace(one, address=kept[name].ctypes.data) if name in kept else one
            for name, one in binding.inputs.items()
        }
        outputs = dict(binding.outputs)

        def run() -> None:
            self._run(inputs, outputs)
            kept.clear()

        self._begin(run)


@cache
def _opened(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def ort_session(card: Card, content: bytes, *, is_model: bool = False) -> CardSession:
    """A graph that ONNX Runtime runs on the CPU."""
    session = _opened(content)

    def run(inputs: dict[str, Bound], outputs: dict[str, Bound]) -> None:
        binding = session.io_binding()
        for name, one in inputs.items():
            binding.bind_input(name, "cpu", 0, one.element, one.shape, one.address)
        for name, one in outputs.items():
            binding.bind_output(name, "cpu", 0, one.element, one.shape, one.address)
        session.run_with_iobinding(binding)

    return CardSession(card, run, session, is_model=is_model)


@dataclass(frozen=True)
class _Argument:
    name: str
    type: str
    shape: list[Any]


class _Arguments:
    """Of a graph that ONNX Runtime cannot open here."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self._inputs, self._outputs = ([_argument(value) for value in side] for side in (graph.input, graph.output))

    def get_inputs(self) -> list[_Argument]:
        return self._inputs

    def get_outputs(self) -> list[_Argument]:
        return self._outputs


def _argument(value: onnx.ValueInfoProto) -> _Argument:
    tensor = value.type.tensor_type
    names = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.INT32: "int32", onnx.TensorProto.INT64: "int64"}
    shape = [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]
    return _Argument(value.name, f"tensor({names[tensor.elem_type]})", shape)


def paged_session(card: Card, path: Path, room: Room) -> CardSession:
    """A graph of PagedAttention in float32: attention in numpy, over the cache in the card's memory."""
    model = CpuPagedSession(path, room.pages, room.page_tokens)
    is_placed = False

    def place(inputs: dict[str, Bound]) -> None:
        for layer, node in enumerate(model._attentions):
            key, value = (inputs[f"past_key_values.{layer}.{part}"].array() for part in ("key", "value"))
            model._steps[model._steps.index(node)] = replace(
                node, key=replace(node.key, array=key), value=replace(node.value, array=value)
            )

    def run(inputs: dict[str, Bound], outputs: dict[str, Bound]) -> None:
        nonlocal is_placed
        if not is_placed:
            place(inputs)
            is_placed = True
        values = {name: one.array().copy() for name, one in inputs.items() if not name.startswith("past_key_values")}
        for step in model._steps:
            step.run(values)
        outputs["logits"].array()[:] = values["logits"]

    return CardSession(card, run, _Arguments(path), is_model=True)


def runner_on(
    card: Card, session: CardSession, layout: PageLayout, room: Room, knobs: EngineSettings, *, captures: bool = True
) -> PagedRunner:
    """A runner that leaves logits where they are and draws there."""
    limits = run_limits(room, knobs)
    paged = OrtPagedSession(session, card, layout, room.pages, limits, captures=captures)  # type: ignore[arg-type]
    return PagedRunner(paged, room, sampler_on(card, paged.logits.place))


def sampler_on(card: Card, logits: Placed) -> DeviceSampler:
    return DeviceSampler(card, lambda content: ort_session(card, content), logits)  # type: ignore[arg-type,return-value]
