"""An ONNX model being written: nodes are kept; weights go to one file beside it, or stay where they are: in memory, or
in the files of a checkpoint.

ONNX Runtime maps those files into memory, so the processes of one machine share their pages.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from worker.model import taken
from worker.model.weights import Place

GRAPH_NAME: Final = "model.onnx"
WEIGHTS_NAME: Final = "model.onnx.data"

MICROSOFT: Final = "com.microsoft"
_OPSETS: Final = {"": 21, MICROSOFT: 1}
_IR_VERSION: Final = 10
_ALIGNMENT_BYTES: Final = 4096  # a page, so that a mapped tensor starts on one
_WRITTEN_BYTES: Final = 1 << 24  # at once


class OnnxGraph:
    """Collects a graph. Every value is named by its caller; nodes must come in the order in which they run.

    Its weights stay where they are: `initializers` gives them to a session that is opened of `content`.
    """

    def __init__(self) -> None:
        self.content = b""
        """The graph, once it is saved."""
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._arrays: dict[str, NDArray[Any]] = {}

    def node(self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; gives the name of that output."""
        self.nodes(operator, inputs, [output], domain, **attributes)
        return output

    def nodes(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Add a node with several outputs; an output named "" is not wanted."""
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}/{operator}", domain=domain, **attributes)
        )

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Keep a tensor outside the graph and declare it; gives its name."""
        return self.stretches(name, array.shape, array.dtype, [array])

    def stretches(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], rows: Iterable[NDArray[Any]]) -> str:
        """As `weight`, of a tensor whose rows come a stretch at a time."""
        tensor = self._declared(name, shape, dtype)
        _point(tensor, WEIGHTS_NAME, self.keep(name, rows), math.prod(shape) * dtype.itemsize)
        return name

    def placed(self, name: str, place: Place, read: Callable[[], Iterable[NDArray[Any]]]) -> str:
        """As `stretches`, of a tensor that lies in a file just so."""
        return self.stretches(name, place.shape, place.element, read())

    def _declared(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TensorProto:
        tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
        self._initializers.append(tensor)
        return tensor

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Declare a small int64 vector inside the graph; gives its name."""
        self._initializers.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        """Declare a small tensor inside the graph; gives its name."""
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def save(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> None:
        """The graph is whole."""
        graph = helper.make_graph(self._nodes, "gristmill", inputs, outputs, self._initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model: ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="gristmill"
        )
        self.content = model.SerializeToString(deterministic=True)

    def keep(self, name: str, rows: Iterable[NDArray[Any]]) -> int:
        """Take a weight, in stretches; gives its place among them."""
        first, *more = rows
        self._arrays[name] = np.concatenate([first, *more]) if more else np.ascontiguousarray(first)
        return len(self._arrays)

    def give_weights(self, options: ort.SessionOptions) -> None:
        """Let a session of `content` find the weights; they must stay until it is open."""
        options.add_external_initializers(list(self._arrays), [_value(array) for array in self._arrays.values()])


class OnnxFile(OnnxGraph):
    """Writes the graph and its weights into a folder. Use as a context manager: it holds the weights file open."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._weights = (folder / WEIGHTS_NAME).open("wb")
        self._placed: list[tuple[TensorProto, Place, Callable[[], Iterable[NDArray[Any]]]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()

    def placed(self, name: str, place: Place, read: Callable[[], Iterable[NDArray[Any]]]) -> str:
        """Declare a tensor that lies in a file; whether it stays there or is copied is known when all are."""
        self._placed.append((self._declared(name, place.shape, place.element), place, read))
        return name

    def keep(self, name: str, rows: Iterable[NDArray[Any]]) -> int:  # noqa: ARG002
        """Append a weight to the file; gives where it begins."""
        self._weights.write(b"\0" * (-self._weights.tell() % _ALIGNMENT_BYTES))
        offset = self._weights.tell()
        for stretch in rows:
            self._write(stretch)
        return offset

    def _write(self, array: NDArray[Any]) -> None:
        """Some rows at a time, for they may have to be brought together: a turned matrix lies in another order."""
        step = max(1, _WRITTEN_BYTES * len(array) // max(1, array.nbytes))
        for first in range(0, len(array), step):
            rows = np.ascontiguousarray(array[first : first + step])
            self._weights.write(rows.reshape(-1).view(np.uint8).data)

    def save(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> None:
        """Write the graph beside its weights, and beside the files that have most of them already."""
        names = taken.take([place for _, place, _ in self._placed], self._folder)
        for tensor, place, read in self._placed:
            if place.path in names:
                _point(tensor, names[place.path], place.offset, place.size_bytes)
            else:
                _point(tensor, WEIGHTS_NAME, self.keep(tensor.name, read()), place.size_bytes)
        super().save(inputs, outputs)
        (self._folder / GRAPH_NAME).write_bytes(self.content)


def load(path: Path) -> ModelProto:
    """A graph that `OnnxFile` wrote, with its weights: the library's own function takes no file with a second name."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in tensor.external_data}
            offset, size_bytes = int(said["offset"]), int(said["length"])
            tensor.raw_data = np.fromfile(path.parent / said["location"], np.uint8, size_bytes, offset=offset).tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
    return model


def _point(tensor: TensorProto, name: str, offset: int, size_bytes: int) -> None:
    """Say that a tensor lies in a file beside its graph."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", size_bytes)):
        tensor.external_data.add(key=key, value=str(value))


def _value(array: NDArray[Any]) -> ort.OrtValue:
    """What ONNX Runtime takes, of types too that numpy has not by itself."""
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    if element == TensorProto.BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), element)
    return ort.OrtValue.ortvalue_from_numpy(array)
