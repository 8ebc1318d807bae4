"""Changes the nodes of an ONNX graph that others made; `ready_graph` says to what end. Knows nothing of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from worker.model.onnx_file import MICROSOFT

ATTENTION: Final = "GroupQueryAttention"
PAST: Final = slice(3, 5)
_SEQLENS, _TOTAL = 5, 6
INPUTS_MIN: Final = 1 + _TOTAL
"""Of attention; and behind what was attended, its outputs are keys and values."""
_ROTARY: Final = {ATTENTION: 7, "PagedAttention": 8, "RotaryEmbedding": 2}
"""Which input has the cosines of all positions."""

_LINEAR: Final = ("MatMul", "MatMulNBits", "Gemm", "FusedMatMul")
_EACH_NUMBER: Final = ("Cast", "Mul", "Div", "Tanh", "Add", "Sub")
_CHOOSING: Final = ("Slice", "Gather", "Unsqueeze", "Squeeze", "Reshape")
"""What an exporter may do to keep the last token only."""


class Unfit(Exception):
    """Why a graph cannot be run, to follow its name."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a graph calls those of its inputs and outputs that are not the cache."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    kept_logits: str = "num_logits_to_keep"
    logits_indices: str = "logits_indices"
    logits: str = "logits"


def name_inputs(graph: GraphProto, attention: Sequence[NodeProto]) -> None:
    """Give attention our lengths and our names for caches; layers are counted in the order of the graph."""
    name_caches(graph, attention)
    for node in attention:
        node.input[_SEQLENS], node.input[_TOTAL] = "seqlens_k", "total_sequence_length"


def name_caches(graph: GraphProto, attention: Sequence[NodeProto]) -> None:
    """Give our names to the keys and values of each layer."""
    names: dict[str, str] = {}
    for layer, node in enumerate(attention):
        for kind, past, present in zip(("key", "value"), node.input[PAST], node.output[1:3], strict=True):
            names |= {past: f"past_key_values.{layer}.{kind}", present: f"present.{layer}.{kind}"}
    rename(graph, names)


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Call values otherwise, wherever they are made or taken."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.input:
        value.name = names.get(value.name, value.name)


def without_branches(graph: GraphProto) -> int | None:
    """Take the table of rotary embedding for shorter texts, where there is another for longer ones; gives their length.

    LongRoPE turns all of a text otherwise once it is longer than that, and so what is in the cache already.
    """
    shorter: int | None = None
    for node in [node for node in graph.node if node.op_type in ("If", "Loop", "Scan")]:
        limit = _limit(graph, node)
        if limit is None:
            raise Unfit(f"has {node.op_type} {node.name}, whose meaning is not known here")
        branch = get(node, "else_branch")
        if any(inner.op_type != "Constant" for inner in branch.node):
            raise Unfit(f"has {node.name}, which does more than to choose a table")
        tables = {inner.output[0]: inner for inner in branch.node}
        for output, chosen in zip(node.output, branch.output, strict=True):
            table = tables[chosen.name]
            table.output[0] = output
            graph.node.insert(0, table)
        graph.node.remove(node)
        shorter = min(limit, shorter or limit)
    return shorter


def _limit(graph: GraphProto, node: NodeProto) -> int | None:
    """The number above which the length of a text makes an If true."""
    condition = _makers(graph).get(node.input[0]) if node.op_type == "If" else None
    if condition is None or condition.op_type != "Greater":
        return None
    value = _constant(graph, condition.input[1])
    return None if value is None else int(value)


def gather_rows(graph: GraphProto, logits: str, axes: int) -> None:
    """Compute logits only where they are wanted, [R, vocabulary], in float32. Tokens lie along so many axes."""
    makers, constants = _makers(graph), _constants(graph)
    last = makers.get(logits)
    while last is not None and last.op_type in _EACH_NUMBER:
        last = makers.get(next((name for name in last.input if name not in constants), ""))
    if last is None or last.op_type not in _LINEAR:
        what = f"'{logits}' of {last.op_type}" if last is not None else f"no '{logits}'"
        raise Unfit(f"has {what}, where a linear layer was expected")
    hidden = last.input[0]
    while (maker := makers.get(hidden)) is not None and maker.op_type in _CHOOSING:
        hidden = maker.input[0]
    place = next(index for index, node in enumerate(graph.node) if node.output == last.output)
    last.input[0] = "rows.wanted"
    flat = helper.make_node("Flatten", [hidden], ["rows.flat"], name="rows/Flatten", axis=axes)
    wanted = helper.make_node("Gather", ["rows.flat", "logits_indices"], ["rows.wanted"], name="rows/Gather", axis=0)
    graph.node.insert(place, wanted)
    graph.node.insert(place, flat)
    widen_logits(graph, logits)


def widen_logits(graph: GraphProto, logits: str) -> None:
    """Give them in float32, under our name."""
    rename(graph, {logits: "logits.as_made"})
    graph.node.append(
        helper.make_node("Cast", ["logits.as_made"], ["logits"], name="logits/Cast", to=TensorProto.FLOAT)
    )


def compute_inputs(graph: GraphProto, ports: Ports) -> None:
    """What the graph was given before comes from lengths now. Rows begin at the left, and new tokens are the last."""

    def number(name: str, value: int | Sequence[int]) -> NodeProto:
        dims = [] if isinstance(value, int) else [len(value)]
        values = [value] if isinstance(value, int) else value
        tensor = helper.make_tensor(name, TensorProto.INT64, dims, values)
        return helper.make_node("Constant", [], [name], name=f"{name}/Constant", value=tensor)

    def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes)

    wide = TensorProto.INT64
    added = [
        number("lengths.zero", 0),
        number("lengths.one", 1),
        number("lengths.axis", [1]),
        node("Cast", ["seqlens_k"], "lengths.last", to=wide),
        node("Unsqueeze", ["lengths.last", "lengths.axis"], "lengths.last_column"),
        node("Cast", ["total_sequence_length"], "lengths.total", to=wide),
        node("Range", ["lengths.zero", "lengths.total", "lengths.one"], "lengths.places"),
        node("LessOrEqual", ["lengths.places", "lengths.last_column"], "lengths.is_there"),
        node("Cast", ["lengths.is_there"], ports.attention_mask, to=wide),
        node("Shape", ["input_ids"], "lengths.shape"),
        node("Gather", ["lengths.shape", "lengths.one"], "lengths.new"),
        node("Range", ["lengths.zero", "lengths.new", "lengths.one"], "lengths.new_places"),
        node("Sub", ["lengths.last_column", "lengths.new"], "lengths.before_first"),
        node("Add", ["lengths.before_first", "lengths.one"], "lengths.first_or_less"),
        node("Max", ["lengths.first_or_less", "lengths.zero"], "lengths.first"),  # less in a row that is padded
        node("Add", ["lengths.first", "lengths.new_places"], ports.position_ids),
        number(ports.kept_logits, 0),
    ]
    for at, made in enumerate(added):
        graph.node.insert(at, made)
    rename(graph, {ports.input_ids: "input_ids"})


def drop_what_is_idle(graph: GraphProto) -> None:
    needed = {"logits", *(name for node in graph.node for name in node.output if name.startswith("present."))}
    for index in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[index].output):
            del graph.node[index]
        else:
            needed |= set(graph.node[index].input)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    del graph.value_info[:]


def declare(graph: GraphProto, layers: int, kv_heads: int, head_size: int, element: int) -> None:
    """The inputs and outputs that `graph` describes."""

    def value(name: str, kind: int, shape: Sequence[str | int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    def caches(prefix: str) -> Iterable[ValueInfoProto]:
        names = [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
        return (value(name, element, ["batch", kv_heads, "room", head_size]) for name in names)

    del graph.input[:], graph.output[:]
    graph.input.extend(
        [
            value("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            value("seqlens_k", TensorProto.INT32, ["batch"]),
            value("total_sequence_length", TensorProto.INT32, []),
            value("logits_indices", TensorProto.INT64, ["rows"]),
            *caches("past_key_values"),
        ]
    )
    graph.output.extend([value("logits", TensorProto.FLOAT, ["rows", "vocabulary"]), *caches("present")])


def table_lengths(graph: GraphProto) -> list[int]:
    """How many positions each table of rotary embedding has."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: get(node, "value") for node in graph.node if node.op_type == "Constant"}
    named = [node.input[_ROTARY[node.op_type]] for node in graph.node if _has_table(node)]
    return [tensors[name].dims[0] for name in named if name in tensors and tensors[name].dims]


def _has_table(node: NodeProto) -> bool:
    return node.op_type in _ROTARY and node.domain == MICROSOFT and len(node.input) > _ROTARY[node.op_type]


def _makers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _constants(graph: GraphProto) -> set[str]:
    """The values that depend on weights alone."""
    constants = {"", *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
    return constants


def _constant(graph: GraphProto, name: str) -> Any:
    """A single number inside the graph; None if it is none."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: get(node, "value") for node in graph.node if node.op_type == "Constant"}
    tensor = tensors.get(name)
    if tensor is None or tensor.external_data:
        return None
    values = onnx.numpy_helper.to_array(tensor)
    return values.item() if values.size == 1 else None


def get(node: NodeProto, name: str) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), AttributeProto())
    return helper.get_attribute_value(found) if found.name else None


def put(node: NodeProto, name: str, value: Any) -> None:
    """Give an attribute another value; None takes it away."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])
