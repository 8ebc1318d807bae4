"""A paged graph on the CPU, where ONNX Runtime has no PagedAttention: for tests, and for looking at a graph at leisure.

The graph is cut at its attention nodes. What lies between them runs in ONNX Runtime, attention in numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from worker.engine.paged import attention
from worker.engine.paged.attention import Attributes, Cache, Packing, Turning
from worker.engine.paged.packing import PackedRun
from worker.engine.paged.session import Fill
from worker.engine.softmax import Ids, Logits
from worker.model import onnx_file

Array = npt.NDArray[Any]
Values = dict[str, Array]

_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Nodes between two attention nodes, as a session of their own."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: Values) -> None:
        given = {name: values[name] for name in self.inputs}
        values.update(zip(self.outputs, self.session.run(list(self.outputs), given), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Attention:
    """One PagedAttention node, and the keys and values of its layer."""

    queries_keys_values: tuple[str, ...]
    """In one value or in three."""
    output: str
    key: Cache
    value: Cache
    turning: Turning
    attributes: Attributes

    def run(self, values: Values) -> None:
        packing = Packing(values["cumulative_sequence_lengths"], values["past_sequence_lengths"], values["block_table"])
        packed = np.concatenate([values[name] for name in self.queries_keys_values], axis=1)
        values[self.output] = attention.attend(packed, self.key, self.value, packing, self.turning, self.attributes)


class CpuPagedSession:
    """The methods are those of `PagedSession`. Only for graphs in float32 or float16."""

    def __init__(self, path: Path, pages: int, page_tokens: int, threads: int = 1) -> None:
        model = onnx_file.load(path)
        self._attentions: list[_Attention] = []
        self._steps = list(self._cut(model, pages, page_tokens, threads))
        self._logits: Logits = np.zeros((0, 0), np.float32)
        self._kept = self._logits
        shapes = {value.name: value.type.tensor_type.shape for value in model.graph.output}
        self.vocabulary = int(shapes["logits"].dim[1].dim_value)

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            for node in self._attentions:
                for cache in (node.key, node.value):
                    cache.array[target] = cache.array[source]

    def run(self, run: PackedRun, fill: Fill | None = None) -> Ids:
        if fill is not None and (run.input_ids < 0).any():
            raise ValueError("tokens that are being drawn elsewhere cannot be had here")
        values: Values = dict(run.inputs())
        for step in self._steps:
            step.run(values)
        self._logits = values["logits"]
        return np.arange(run.rows)

    def logits_at(self, rows: Ids) -> Logits:
        return self._logits[rows]

    def keep(self) -> None:
        self._kept = self._logits

    def kept_at(self, rows: Ids) -> Logits:
        return self._kept[rows]

    def wait(self) -> None:
        """A run has ended when it returns."""

    def close(self) -> None:
        self._steps.clear()
        self._attentions.clear()

    def _cut(self, model: ModelProto, pages: int, page_tokens: int, threads: int) -> Iterator[_Part | _Attention]:
        graph = model.graph
        _name_constants(graph)
        weights = {tensor.name: tensor for tensor in graph.initializer}
        wanted_later = _wanted_later(graph)
        nodes: list[NodeProto] = []
        for place, node in enumerate(graph.node):
            if node.op_type != "PagedAttention":
                nodes.append(node)
                continue
            yield _part(model, nodes, weights, wanted_later[place], threads)
            nodes = []
            self._attentions.append(_attention(graph, node, weights, pages, page_tokens))
            yield self._attentions[-1]
        yield _part(model, nodes, weights, {"logits"}, threads)


def _name_constants(graph: GraphProto) -> None:
    """What is constant is a weight, whose type is known wherever the graph is cut."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _wanted_later(graph: GraphProto) -> list[set[str]]:
    """For each node, the values that it and those after it read."""
    wanted: set[str] = {"logits"}
    found = []
    for node in reversed(graph.node):
        wanted = wanted | set(node.input)
        found.append(wanted)
    return found[::-1]


def _part(
    model: ModelProto, nodes: Sequence[NodeProto], weights: Mapping[str, TensorProto], later: set[str], threads: int
) -> _Part:
    made = [name for node in nodes for name in node.output if name]
    read = {name for node in nodes for name in node.input if name} - set(made)
    inputs = tuple(sorted(read - weights.keys()))
    outputs = tuple(name for name in made if name in later)
    graph = helper.make_graph(
        list(nodes),
        "part",
        [_input(model.graph, name) for name in inputs],
        [ValueInfoProto(name=name) for name in outputs],
        [weights[name] for name in sorted(read & weights.keys())],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _Part(session, inputs, outputs)


def _input(graph: GraphProto, name: str) -> ValueInfoProto:
    """What a part takes: an input of the whole, or something of another part, which has the type of the weights."""
    inputs: dict[str, ValueInfoProto] = {value.name: value for value in graph.input}
    element = next(tensor.data_type for tensor in graph.initializer if tensor.data_type in _FLOATS)
    return inputs.get(name) or helper.make_tensor_value_info(name, element, None)


def _attention(
    graph: GraphProto, node: NodeProto, weights: Mapping[str, TensorProto], pages: int, page_tokens: int
) -> _Attention:
    inputs = [*node.input, *[""] * 17][:17]
    if inputs[10] or inputs[11]:
        raise ValueError(f"{node.name} takes slots or sinks, which are not written here")
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    cos, sin, query_norm, key_norm, key_scale, value_scale = (
        numpy_helper.to_array(weights[name]) if name else None for name in (*inputs[8:10], *inputs[12:16])
    )
    turns = bool(told.get("do_rotary", 0))
    return _Attention(
        queries_keys_values=tuple(name for name in inputs[:3] if name),
        output=node.output[0],
        key=Cache(_zeros(graph, inputs[3], pages, page_tokens), key_scale),
        value=Cache(_zeros(graph, inputs[4], pages, page_tokens), value_scale),
        turning=Turning(cos if turns else None, sin if turns else None, query_norm, key_norm),
        attributes=Attributes(
            heads=told["num_heads"],
            kv_heads=told["kv_num_heads"],
            scale=told.get("scale", 0.0),
            softcap=told.get("softcap", 0.0),
            window=max(0, told.get("local_window_size", -1)),
            norm_epsilon=told.get("qk_norm_epsilon", 1e-6),
        ),
    )


def _zeros(graph: GraphProto, name: str, pages: int, page_tokens: int) -> Array:
    kind = next(value.type.tensor_type for value in graph.input if value.name == name)
    kv_heads, head_size = (dim.dim_value for dim in kind.shape.dim[2:])
    return np.zeros((pages, page_tokens, kv_heads, head_size), helper.tensor_dtype_to_np_dtype(kind.elem_type))
