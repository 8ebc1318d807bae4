"""Brings an ONNX graph that others made to the inputs and outputs of `graph`, so that the same runners take it.

The exporters of onnxruntime-genai and of Hugging Face (onnx-community, optimum) agree on most of it: `input_ids`, an
`attention_mask` of all tokens, perhaps `position_ids`, and `past_key_values.{i}.key` beside `present.{i}.key`. Where
attention is ONNX Runtime's GroupQueryAttention, rows of any lengths can be decoded together, and that is all we need:
its two inputs of lengths become inputs of the graph, what is still asked of mask and positions is computed from
them, the lm_head sees only the rows that want logits, and all that nothing needs any more is dropped. Weights and
arithmetic stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.onnx_file import MICROSOFT
from worker.model.precision import Precision

_ATTENTION: Final = "GroupQueryAttention"
_PAST, _SEQLENS, _TOTAL = slice(3, 5), 5, 6
_ROTARY: Final = {_ATTENTION: 7, "RotaryEmbedding": 2}
"""Which input has the cosines of all positions."""

_OPSET_MIN: Final = 13
_GRAPH_BYTES_MAX: Final = 2**31

_LINEAR: Final = ("MatMul", "MatMulNBits", "Gemm", "FusedMatMul")
_EACH_NUMBER: Final = ("Cast", "Mul", "Div", "Tanh", "Add", "Sub")
_CHOOSING: Final = ("Slice", "Gather", "Unsqueeze", "Squeeze", "Reshape")
"""What an exporter may do to keep the last token only."""
_NOT_ALONE: Final = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
"""Operators whose scale comes from all tokens of a run."""

_CACHES: Final[Mapping[int, Precision]] = {TensorProto.FLOAT: Precision.FP32, TensorProto.FLOAT16: Precision.FP16}


@dataclass(frozen=True, slots=True)
class Ports:
    """What a graph calls those of its inputs and outputs that are not the cache."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    kept_logits: str = "num_logits_to_keep"
    logits: str = "logits"


@dataclass(frozen=True, slots=True, eq=False)
class ReadyGraph:
    """A graph that runs as those of `graph` do; its weights lie where they lay. See `ready_weights`."""

    path: Path
    model: ModelProto
    layers: int
    heads: int
    kv_heads: int
    precision: Precision
    """That of the cache."""
    positions: int | None
    """How many positions its tables of rotary embedding have, all of the same kind; None if it does not say."""


def read(path: Path, ports: Ports, *, head_size: int) -> ReadyGraph:
    """Read a graph and adapt it. UnreadableWeights if it is none, UnsupportedModel says why it cannot be run."""
    model = load(path)
    _refuse(path, model)
    try:
        return _adapted(path, model, ports, head_size)
    except (LookupError, ValueError, TypeError, StopIteration) as error:
        raise UnreadableWeights(f"{path.name} is not a graph as such models have them ({error})") from error


def _adapted(path: Path, model: ModelProto, ports: Ports, head_size: int) -> ReadyGraph:
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == _ATTENTION and node.domain == MICROSOFT]
    if not attention:
        raise _unsupported(path, f"has no {_ATTENTION}, without which rows of several lengths cannot share a run")
    element = _cache_element(path, graph, attention)
    _refuse_inputs(path, graph, attention, ports)
    heads, kv_heads = _heads(path, attention)
    _name_caches(graph, attention)
    for node in attention:
        node.input[_SEQLENS], node.input[_TOTAL] = "seqlens_k", "total_sequence_length"
    shorter = _without_branches(path, graph)
    _gather_rows(path, graph, ports.logits)
    _compute_inputs(graph, ports)
    _drop_what_is_idle(graph)
    _declare(graph, len(attention), kv_heads, head_size, element)
    positions = min([*_table_lengths(graph), *([shorter] if shorter else [])], default=None)
    return ReadyGraph(path, model, len(attention), heads, kv_heads, _CACHES[element], positions)


def load(path: Path) -> ModelProto:
    try:
        if path.stat().st_size >= _GRAPH_BYTES_MAX:
            raise UnreadableWeights(f"{path.name} is larger than an ONNX graph can be")
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UnreadableWeights(f"{path.name} is not an ONNX graph, or not all of one") from error


def _unsupported(path: Path, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{path.name} {why}")


def _refuse(path: Path, model: ModelProto) -> None:
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)
    if version < _OPSET_MIN:
        raise _unsupported(path, f"is written for version {version} of ONNX's operators; {_OPSET_MIN} is needed")
    if model.functions:
        raise _unsupported(path, f"is made of functions such as '{model.functions[0].name}', not of plain operators")
    if shared := next((node.op_type for node in model.graph.node if node.op_type in _NOT_ALONE), None):
        raise _unsupported(
            path, f"has {shared}, which looks at all tokens of a run, so that answers would depend on their neighbours"
        )
    _refuse_disorder(path, model.graph)


def _refuse_disorder(path: Path, graph: GraphProto) -> None:
    """A node comes behind those that make what it takes, and so none is behind itself."""
    made = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if not made.issuperset(node.input):
            raise UnreadableWeights(f"{path.name} is not a graph: {node.name or node.op_type} takes what nothing makes")
        made.update(node.output)


def _cache_element(path: Path, graph: GraphProto, attention: Sequence[NodeProto]) -> int:
    """The type of keys and values, which must go from inputs to attention and from there to outputs."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name for value in graph.output}
    for node in attention:
        if len(node.input) <= _TOTAL or len(node.output) < 3:  # what was attended, keys, values
            raise _unsupported(path, f"has {node.name or _ATTENTION} without keys and values of its own")
        if not (set(node.input[_PAST]) <= inputs.keys() and set(node.output[1:3]) <= outputs):
            raise _unsupported(
                path, f"changes keys and values outside of {_ATTENTION}, so they cannot be kept in place"
            )
        _set(node, "sliding_window_cache", None)  # ours holds the whole text
    elements = {inputs[name] for node in attention for name in node.input[_PAST]}
    if len(elements) != 1 or (element := elements.pop()) not in _CACHES:
        raise _unsupported(path, "keeps keys and values in a type that is not supported; supported: float32, float16")
    return int(element)


def _refuse_inputs(path: Path, graph: GraphProto, attention: Sequence[NodeProto], ports: Ports) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    caches = {name for node in attention for name in node.input[_PAST]}
    known = {ports.input_ids, ports.attention_mask, ports.position_ids, ports.kept_logits}
    found = {value.name for value in graph.input} - weights - caches
    if ports.input_ids not in found:
        raise _unsupported(path, f"has no input '{ports.input_ids}', so it is not a whole language model")
    if unknown := sorted(found - known):
        raise _unsupported(path, f"wants the input '{unknown[0]}', which is not known here")


def _heads(path: Path, attention: Sequence[NodeProto]) -> tuple[int, int]:
    """How many for queries, how many for keys and values."""
    found = {(_get(node, "num_heads"), _get(node, "kv_num_heads")) for node in attention}
    if len(found) != 1:
        raise _unsupported(path, "has layers with several numbers of heads")
    heads, kv_heads = found.pop()
    return int(heads), int(kv_heads)


def _name_caches(graph: GraphProto, attention: Sequence[NodeProto]) -> None:
    """Layers are counted in the order of the graph."""
    names: dict[str, str] = {}
    for layer, node in enumerate(attention):
        for kind, past, present in zip(("key", "value"), node.input[_PAST], node.output[1:3], strict=True):
            names |= {past: f"past_key_values.{layer}.{kind}", present: f"present.{layer}.{kind}"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _without_branches(path: Path, graph: GraphProto) -> int | None:
    """Take the table of rotary embedding for shorter texts, where there is another for longer ones; gives their length.

    LongRoPE turns all of a text otherwise once it is longer than that, and so what is in the cache already.
    """
    shorter: int | None = None
    for node in [node for node in graph.node if node.op_type in ("If", "Loop", "Scan")]:
        limit = _limit(graph, node)
        if limit is None:
            raise _unsupported(path, f"has {node.op_type} {node.name}, whose meaning is not known here")
        branch = _get(node, "else_branch")
        if any(inner.op_type != "Constant" for inner in branch.node):
            raise _unsupported(path, f"has {node.name}, which does more than to choose a table")
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


def _gather_rows(path: Path, graph: GraphProto, logits: str) -> None:
    """Compute logits only where they are wanted, [R, vocabulary], in float32."""
    makers, constants = _makers(graph), _constants(graph)
    last = makers.get(logits)
    while last is not None and last.op_type in _EACH_NUMBER:
        last = makers.get(next((name for name in last.input if name not in constants), ""))
    if last is None or last.op_type not in _LINEAR:
        what = f"'{logits}' of {last.op_type}" if last is not None else f"no '{logits}'"
        raise _unsupported(path, f"has {what}, where a linear layer was expected")
    hidden = last.input[0]
    while (maker := makers.get(hidden)) is not None and maker.op_type in _CHOOSING:
        hidden = maker.input[0]
    place = next(index for index, node in enumerate(graph.node) if node.output == last.output)
    last.input[0] = "rows.wanted"
    flat = helper.make_node("Flatten", [hidden], ["rows.flat"], name="rows/Flatten", axis=2)
    wanted = helper.make_node("Gather", ["rows.flat", "logits_indices"], ["rows.wanted"], name="rows/Gather", axis=0)
    graph.node.insert(place, wanted)
    graph.node.insert(place, flat)
    for node in graph.node:
        node.output[:] = ["logits.as_made" if name == logits else name for name in node.output]
        node.input[:] = ["logits.as_made" if name == logits else name for name in node.input]
    graph.node.append(
        helper.make_node("Cast", ["logits.as_made"], ["logits"], name="logits/Cast", to=TensorProto.FLOAT)
    )


def _compute_inputs(graph: GraphProto, ports: Ports) -> None:
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
    if ports.input_ids != "input_ids":
        for made in graph.node:
            made.input[:] = ["input_ids" if name == ports.input_ids else name for name in made.input]


def _drop_what_is_idle(graph: GraphProto) -> None:
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


def _declare(graph: GraphProto, layers: int, kv_heads: int, head_size: int, element: int) -> None:
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


def _table_lengths(graph: GraphProto) -> list[int]:
    """How many positions each table of rotary embedding has."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {node.output[0]: _get(node, "value") for node in graph.node if node.op_type == "Constant"}
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
    tensors |= {node.output[0]: _get(node, "value") for node in graph.node if node.op_type == "Constant"}
    tensor = tensors.get(name)
    if tensor is None or tensor.external_data:
        return None
    values = onnx.numpy_helper.to_array(tensor)
    return values.item() if values.size == 1 else None


def _get(node: NodeProto, name: str) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), AttributeProto())
    return helper.get_attribute_value(found) if found.name else None


def _set(node: NodeProto, name: str, value: Any) -> None:
    """Give an attribute another value; None takes it away."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])
