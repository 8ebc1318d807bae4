"""Brings a paged graph that onnxruntime-genai's builder made to the inputs and outputs of `paged_graph`.

It has them already, but for what its makers left to choose: names, whether bounds of lengths are told, and whether
logits are computed of all tokens or of those that want them.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from worker.model import paged_graph, ready_edits
from worker.model.precision import Precision
from worker.model.ready_edits import PAST, Ports, Unfit

ATTENTION: Final = "PagedAttention"

_LENGTHS: Final = {5: "cumulative_sequence_lengths", 6: "past_sequence_lengths", 7: "block_table"}
"""Which input of attention is what."""
_SLOTS, _METADATA = 10, 16
_NARROW: Final[Mapping[int, Precision]] = {
    TensorProto.INT8: Precision.BF16_INT8,
    TensorProto.FLOAT8E4M3FN: Precision.BF16_FP8,
}
_CACHES: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


def adapt(graph: GraphProto, attention: Sequence[NodeProto], ports: Ports, kv_heads: int, head_size: int) -> Precision:
    """Change the graph; gives what it computes in. Unfit says why it cannot be run."""
    element = _refuse(graph, attention, ports)
    vocabulary = _vocabulary(graph, ports)
    _name_inputs(graph, attention)
    for node in attention:
        if not ready_edits.get(node, "scale"):
            ready_edits.put(node, "scale", paged_graph.attention_scale(head_size))
    if any(value.name == ports.logits_indices for value in graph.input):
        ready_edits.rename(graph, {ports.logits_indices: "logits_indices"})
        ready_edits.widen_logits(graph, ports.logits)
    else:
        ready_edits.gather_rows(graph, ports.logits, axes=1)
    ready_edits.rename(graph, {ports.input_ids: "input_ids"})
    ready_edits.drop_what_is_idle(graph)
    _declare(graph, len(attention), [kv_heads, head_size], element, vocabulary)
    return _precision(graph, element)


def _refuse(graph: GraphProto, attention: Sequence[NodeProto], ports: Ports) -> int:
    """Gives the type of keys and values."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name for value in graph.output}
    for node in attention:
        if len(node.input) <= max(_LENGTHS) or len(node.output) < 3:  # what was attended, keys, values
            raise Unfit(f"has {node.name or ATTENTION} without keys and values of its own")
        if len(node.input) > _METADATA + 1 or node.input[_SLOTS : _SLOTS + 1] not in ([], [""]):
            raise Unfit(f"has {node.name or ATTENTION} with inputs that are not known here")
        if not (set(node.input[PAST]) <= inputs.keys() and set(node.output[1:3]) <= outputs):
            raise Unfit(f"changes keys and values outside of {ATTENTION}, so they cannot be kept in place")
    lengths = {name for node in attention for name in _lengths(node)}
    if len(lengths) > len(_LENGTHS) + 1:
        raise Unfit("has layers with lengths or pages of their own, which is not supported")
    if ports.input_ids not in inputs:
        raise Unfit(f"has no input '{ports.input_ids}', so it is not a whole language model")
    caches = {name for node in attention for name in node.input[PAST]}
    weights = {tensor.name for tensor in graph.initializer}
    known = {*lengths, *caches, *weights, ports.input_ids, ports.logits_indices}
    if unknown := sorted(inputs.keys() - known):
        raise Unfit(f"wants the input '{unknown[0]}', which is not known here")
    elements = {inputs[name] for name in caches}
    if len(elements) != 1 or (element := elements.pop()) not in _CACHES:
        raise Unfit("keeps keys and values in a type that is not supported; supported: fp16, bf16, int8, fp8")
    return int(element)


def _lengths(node: NodeProto) -> list[str]:
    return [node.input[place] for place in _LENGTHS] + [name for name in node.input[_METADATA:] if name]


def _vocabulary(graph: GraphProto, ports: Ports) -> int:
    for value in graph.output:
        if value.name == ports.logits and (size := value.type.tensor_type.shape.dim[-1].dim_value):
            return int(size)
    raise Unfit(f"does not say how many '{ports.logits}' there are")


def _name_inputs(graph: GraphProto, attention: Sequence[NodeProto]) -> None:
    """Layers are counted in the order of the graph; each is told the bounds of lengths, or attention would wait for the
    card to tell them.
    """
    ready_edits.name_caches(graph, attention)
    ready_edits.rename(graph, {attention[0].input[place]: name for place, name in _LENGTHS.items()})
    for node in attention:
        node.input.extend([""] * (_METADATA + 1 - len(node.input)))
        node.input[_METADATA] = "attention_metadata"


def _declare(graph: GraphProto, layers: int, head: Sequence[int], element: int, vocabulary: int) -> None:
    """The inputs and outputs that `paged_graph` describes."""

    def caches(prefix: str) -> list[ValueInfoProto]:
        names = [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        return [helper.make_tensor_value_info(name, element, ["pages", "page_tokens", *head]) for name in names]

    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    shapes: dict[str, Sequence[str | int]] = {
        "input_ids": ["tokens"],
        "cumulative_sequence_lengths": ["sequences_and_1"],
        "past_sequence_lengths": ["sequences"],
        "block_table": ["sequences", "pages_each"],
        "attention_metadata": [3],
        "logits_indices": ["rows"],
    }
    del graph.input[:], graph.output[:]
    for name, shape in shapes.items():
        graph.input.append(helper.make_tensor_value_info(name, kinds.get(name, TensorProto.INT32), shape))
    graph.input.extend(caches("past_key_values"))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", vocabulary]))
    graph.output.extend(caches("present"))


def _precision(graph: GraphProto, element: int) -> Precision:
    if TensorProto.BFLOAT16 not in {element, *(tensor.data_type for tensor in graph.initializer)}:
        return Precision.FP16
    return _NARROW.get(element, Precision.BF16)
