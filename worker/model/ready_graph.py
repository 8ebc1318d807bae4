"""Brings an ONNX graph that others made to the inputs and outputs of `graph`, so that the same runners take it.

The exporters of onnxruntime-genai and of Hugging Face (onnx-community, optimum) agree on most of it: `input_ids`, an
`attention_mask` of all tokens, perhaps `position_ids`, and `past_key_values.{i}.key` beside `present.{i}.key`. Where
attention is ONNX Runtime's GroupQueryAttention, rows of any lengths can be decoded together, and that is all we need:
its two inputs of lengths become inputs of the graph, what is still asked of mask and positions is computed from
them, the lm_head sees only the rows that want logits, and all that nothing needs any more is dropped. Weights and
arithmetic stay as they are. Graphs of PagedAttention are another kind: see `ready_paged`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from worker.model import ready_edits, ready_paged
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.onnx_file import MICROSOFT
from worker.model.precision import Precision
from worker.model.ready_edits import ATTENTION, INPUTS_MIN, PAST, Ports, Unfit

_OPSET_MIN: Final = 13
_GRAPH_BYTES_MAX: Final = 2**31

_NOT_ALONE: Final = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
"""Operators whose scale comes from all tokens of a run."""

_CACHES: Final[Mapping[int, Precision]] = {TensorProto.FLOAT: Precision.FP32, TensorProto.FLOAT16: Precision.FP16}


@dataclass(frozen=True, slots=True, eq=False)
class ReadyGraph:
    """A graph that runs as those of `graph` do, or of `paged_graph`; its weights lie where they lay. See
    `ready_weights`.
    """

    path: Path
    model: ModelProto
    layers: int
    heads: int
    kv_heads: int
    precision: Precision
    """That of the cache; of what is computed, where the cache has fewer bits."""
    positions: int | None
    """How many positions its tables of rotary embedding have, all of the same kind; None if it does not say."""
    is_paged: bool = False


def read(path: Path, ports: Ports, *, head_size: int) -> ReadyGraph:
    """Read a graph and adapt it. UnreadableWeights if it is none, UnsupportedModel says why it cannot be run."""
    model = load(path)
    try:
        return _adapted(path, model, ports, head_size)
    except Unfit as unfit:
        raise UnsupportedModel(f"{path.name} {unfit}") from unfit
    except (LookupError, ValueError, TypeError, StopIteration) as error:
        raise UnreadableWeights(f"{path.name} is not a graph as such models have them ({error})") from error


def load(path: Path) -> ModelProto:
    """The graph as it is, without the weights that lie beside it. UnreadableWeights if it is none."""
    try:
        if path.stat().st_size >= _GRAPH_BYTES_MAX:
            raise UnreadableWeights(f"{path.name} is larger than an ONNX graph can be")
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UnreadableWeights(f"{path.name} is not an ONNX graph, or not all of one") from error


def _adapted(path: Path, model: ModelProto, ports: Ports, head_size: int) -> ReadyGraph:
    _refuse(model)
    graph = model.graph
    if paged := [node for node in graph.node if node.op_type == ready_paged.ATTENTION and node.domain == MICROSOFT]:
        return _adapted_paged(path, model, paged, ports, head_size)
    attention = [node for node in graph.node if node.op_type == ATTENTION and node.domain == MICROSOFT]
    if not attention:
        raise Unfit(f"has no {ATTENTION}, without which rows of several lengths cannot share a run")
    element = _cache_element(graph, attention)
    _refuse_inputs(graph, attention, ports)
    heads, kv_heads = _heads(attention)
    ready_edits.name_inputs(graph, attention)
    shorter = ready_edits.without_branches(graph)
    ready_edits.gather_rows(graph, ports.logits, axes=2)
    ready_edits.compute_inputs(graph, ports)
    ready_edits.drop_what_is_idle(graph)
    ready_edits.declare(graph, len(attention), kv_heads, head_size, element)
    positions = _positions(graph, shorter)
    return ReadyGraph(path, model, len(attention), heads, kv_heads, _CACHES[element], positions)


def _adapted_paged(
    path: Path, model: ModelProto, attention: Sequence[NodeProto], ports: Ports, head_size: int
) -> ReadyGraph:
    heads, kv_heads = _heads(attention)
    shorter = ready_edits.without_branches(model.graph)
    precision = ready_paged.adapt(model.graph, attention, ports, kv_heads, head_size)
    positions = _positions(model.graph, shorter)
    return ReadyGraph(path, model, len(attention), heads, kv_heads, precision, positions, is_paged=True)


def _positions(graph: GraphProto, shorter: int | None) -> int | None:
    return min([*ready_edits.table_lengths(graph), *([shorter] if shorter else [])], default=None)


def _refuse(model: ModelProto) -> None:
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)
    if version < _OPSET_MIN:
        raise Unfit(f"is written for version {version} of ONNX's operators; {_OPSET_MIN} is needed")
    if model.functions:
        raise Unfit(f"is made of functions such as '{model.functions[0].name}', not of plain operators")
    if shared := next((node.op_type for node in model.graph.node if node.op_type in _NOT_ALONE), None):
        raise Unfit(
            f"has {shared}, which looks at all tokens of a run, so that answers would depend on their neighbours"
        )
    _refuse_disorder(model.graph)


def _refuse_disorder(graph: GraphProto) -> None:
    """A node comes behind those that make what it takes, and so none is behind itself."""
    made = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if not made.issuperset(node.input):
            raise ValueError(f"{node.name or node.op_type} takes what nothing makes")
        made.update(node.output)


def _cache_element(graph: GraphProto, attention: Sequence[NodeProto]) -> int:
    """The type of keys and values, which must go from inputs to attention and from there to outputs."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name for value in graph.output}
    for node in attention:
        if len(node.input) < INPUTS_MIN or len(node.output) < 3:  # what was attended, keys, values
            raise Unfit(f"has {node.name or ATTENTION} without keys and values of its own")
        if not (set(node.input[PAST]) <= inputs.keys() and set(node.output[1:3]) <= outputs):
            raise Unfit(f"changes keys and values outside of {ATTENTION}, so they cannot be kept in place")
        ready_edits.put(node, "sliding_window_cache", None)  # ours holds the whole text
    elements = {inputs[name] for node in attention for name in node.input[PAST]}
    if len(elements) != 1 or (element := elements.pop()) not in _CACHES:
        raise Unfit("keeps keys and values in a type that is not supported; supported: float32, float16")
    return int(element)


def _refuse_inputs(graph: GraphProto, attention: Sequence[NodeProto], ports: Ports) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    caches = {name for node in attention for name in node.input[PAST]}
    known = {ports.input_ids, ports.attention_mask, ports.position_ids, ports.kept_logits}
    found = {value.name for value in graph.input} - weights - caches
    if ports.input_ids not in found:
        raise Unfit(f"has no input '{ports.input_ids}', so it is not a whole language model")
    if unknown := sorted(found - known):
        raise Unfit(f"wants the input '{unknown[0]}', which is not known here")


def _heads(attention: Sequence[NodeProto]) -> tuple[int, int]:
    """How many for queries, how many for keys and values."""
    found = {(ready_edits.get(node, "num_heads"), ready_edits.get(node, "kv_num_heads")) for node in attention}
    if len(found) != 1:
        raise Unfit("has layers with several numbers of heads")
    heads, kv_heads = found.pop()
    return int(heads), int(kv_heads)
