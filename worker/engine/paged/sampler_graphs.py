"""Small ONNX graphs that draw tokens where the logits are, so that ids are all that leaves the device.

Each does what `worker.engine.sampling` does, step for step, for many rows at once: what it says in float64 is float64
here, heights are the same to the last bit, and only sums over the whole vocabulary are added in another order. Where a
graph cannot be sure, it says so, and the row is drawn on the host.

All take `logits` [N, vocabulary] and `rows` int64 [R], those of the N that are meant. They use no operator that ONNX
Runtime lacks on CUDA (it has no bits), nor one that it gives to cuDNN there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from worker.engine.softmax import BLOCK, padded

CANDIDATES: Final = 256
"""Tokens among which rows are drawn that leave few."""
ATTEMPTS: Final = 3
"""Draws from the envelope in one run; one row in 16,000 needs more."""

_FLOAT, _DOUBLE, _INT64, _BOOL = (
    int(kind) for kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL)
)
_OPSET: Final = 17
"""Of which ONNX Runtime has all of these operators on CUDA; of newer ones some fall back to the CPU."""
_LINE_UNIT: Final = 2.0**23
_ONE: Final = float(127 << 23)
_ROUNDING: Final = 1.0001
"""As `worker.engine.envelope` has them."""


@dataclass(slots=True)
class _Graph:
    """Nodes in the making. Values are named by who makes them."""

    vocabulary: int
    logits: int
    """ONNX's number of the type of the logits."""
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        self.constants[name] = np.array(value, dtype)
        return name

    def cast(self, value: str, kind: int) -> str:
        return self.node("Cast", [value], f"{value}.{kind}", to=kind)

    def top(self, value: str, count: int, place: str, *, largest: bool = True) -> tuple[str, str]:
        """Values and indices of the largest, or least, in their order; of equals, the first."""
        k = self.constant(f"{place}.count", [count], np.int64)
        names = [f"{place}.values", f"{place}.indices"]
        self.nodes.append(helper.make_node("TopK", [value, k], names, axis=-1, largest=int(largest), sorted=1))
        return names[0], names[1]

    def sum(self, value: str, output: str, axis: int = -1, *, keepdims: bool = True) -> str:
        axes = self.constant(f"{output}.axes", [axis], np.int64)
        return self.node("ReduceSum", [value, axes], output, keepdims=int(keepdims))

    def running_sum(self, value: str, output: str, axis: int = -1, *, is_exclusive: bool = False) -> str:
        axes = self.constant(f"{output}.axis", axis, np.int64)
        return self.node("CumSum", [value, axes], output, exclusive=int(is_exclusive))

    def count(self, is_counted: str, output: str, axis: int = -1) -> str:
        """How many are true along an axis, which is kept, as int64."""
        return self.cast(self.sum(self.cast(is_counted, _FLOAT), output, axis), _INT64)

    def rows(self) -> tuple[str, str]:
        """The logits meant, float32 [R, vocabulary], and the highest of each, [R, 1]."""
        meant = self.node("Gather", ["logits", "rows"], "rows.logits", axis=0)
        logits = meant if self.logits == _FLOAT else self.cast(meant, _FLOAT)
        peak, token = self.top(logits, 1, "top")
        self.node("Identity", [peak], "peak")
        self.node("Identity", [token], "peak_token")
        return logits, peak

    def weight(self, logits: str, peak: str, place: str) -> str:
        """exp((logits - peak) / temperature) in float64."""
        distance = self.node("Sub", [self.cast(logits, _DOUBLE), f"{peak}.{_DOUBLE}"], f"{place}.distance")
        return self.node("Exp", [self.node("Div", [distance, "temperature"], f"{place}.scaled")], place)

    def total(self, logits: str, peak: str) -> tuple[str, str]:
        """The weights of all tokens in float32, and their sum."""
        distance = self.node("Sub", [logits, peak], "all.distance")
        weights = self.node("Exp", [self.node("Mul", [distance, "inverse_temperature"], "all.scaled")], "all.weights")
        return weights, self.sum(weights, "all.total")

    def save(self, inputs: dict[str, tuple[int, Sequence[Any]]], outputs: dict[str, int]) -> bytes:
        """The graph with these inputs beside `logits` and `rows`, serialized."""
        given: dict[str, tuple[int, Sequence[Any]]] = {
            "logits": (self.logits, ["n", self.vocabulary]),
            "rows": (_INT64, ["r"]),
            **inputs,
        }
        graph = helper.make_graph(
            self.nodes,
            "sampler",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        content: bytes = model.SerializeToString()
        return content


def greedy(vocabulary: int, logits: int = _FLOAT) -> bytes:
    """-> peak float32 [R, 1], peak_token int64 [R, 1]."""
    graph = _Graph(vocabulary, logits)
    graph.rows()
    return graph.save({}, {"peak": _FLOAT, "peak_token": _INT64})


def few(vocabulary: int, logits: int = _FLOAT) -> bytes:
    """Draws from what top_k, top_p and min_p leave, if that is among the CANDIDATES likeliest.

    temperature, top_k, top_p, min_p and place are float64 [R, 1], inverse_temperature float32. A top_k that is off is
    CANDIDATES, a top_p that is off is above 1. `counts_all` is 1 where top_p is a share of all tokens, and 0 where of
    those that top_k leaves.

    -> token int64 [R, 1], and float64 [R, 1]: covered, what the candidates weigh; mass, what they must; least, what
    the last of them weighs.
    """
    graph = _Graph(vocabulary, logits)
    node = graph.node
    every, peak = graph.rows()
    graph.cast(peak, _DOUBLE)
    count = min(CANDIDATES, vocabulary)
    values, ids = graph.top(every, count, "candidates")
    weights = graph.weight(values, peak, "weights")
    ranks = graph.constant("ranks", np.arange(count), np.float64)
    ranked = node("Mul", [weights, graph.cast(node("Less", [ranks, "top_k"], "is_in_k"), _DOUBLE)], "ranked")
    covered = graph.sum(ranked, "covered")
    _, total = graph.total(every, peak)
    of_all = node("Mul", [graph.cast(total, _DOUBLE), "counts_all"], "total.of_all")
    one = graph.constant("one", 1.0, np.float64)
    of_few = node("Mul", [covered, node("Sub", [one, "counts_all"], "counts_few")], "total.of_few")
    mass = node("Mul", ["top_p", node("Add", [of_all, of_few], "total")], "mass")
    before = graph.running_sum(ranked, "before", is_exclusive=True)
    inside = graph.cast(node("Less", [before, mass], "is_inside"), _DOUBLE)
    likely = graph.cast(node("GreaterOrEqual", [weights, "min_p"], "is_likely"), _DOUBLE)
    kept = node("Mul", [node("Mul", [ranked, inside], "kept.inside"), likely], "kept")
    _, order = graph.top(graph.cast(ids, _FLOAT), count, "by_id", largest=False)
    kept = node("GatherElements", [kept, order], "kept.by_id", axis=1)
    ids = node("GatherElements", [ids, order], "ids.by_id", axis=1)
    ends = graph.running_sum(kept, "ends")
    last = [
        graph.constant(f"last.{name}", [value], np.int64) for name, value in (("from", -1), ("to", 2**31), ("axis", 1))
    ]
    whole = node("Slice", [ends, *last], "whole")
    place = _place(graph, ends, node("Mul", ["place", whole], "target"), whole, "chosen")
    node("GatherElements", [ids, place], "token", axis=1)
    node("Slice", [weights, *last], "least")
    names = ("temperature", "top_k", "top_p", "min_p", "place", "counts_all")
    inputs = {name: (_DOUBLE, ["r", 1]) for name in names}
    outputs = {"token": _INT64, "covered": _DOUBLE, "mass": _DOUBLE, "least": _DOUBLE, "peak": _FLOAT}
    return graph.save({**inputs, "inverse_temperature": (_FLOAT, ["r", 1])}, outputs)


def full(vocabulary: int, logits: int = _FLOAT, *, with_mass: bool) -> bytes:
    """Draws from all tokens: ATTEMPTS draws from the envelope over the softmax.

    line_unit and inverse_temperature are float32 [R, 1], temperature float64; places and chances float64 [R, ATTEMPTS].

    -> token int64 [R, 1], attempt int64 [R, 1], is_accepted bool [R, 1]; `with_mass` also float32 [R, 1]: mass, what
    the tokens likelier than it weigh, and total, what all do.
    """
    graph = _Graph(vocabulary, logits)
    every, peak = graph.rows()
    graph.cast(peak, _DOUBLE)
    tokens, heights = _drawn(graph, _heights(graph, every, peak))
    values = graph.node("GatherElements", [every, tokens], "drawn.logits", axis=1)
    weights = graph.weight(values, peak, "drawn.weights")
    rounding = graph.constant("rounding", _ROUNDING, np.float64)
    bar = graph.node("Mul", ["chances", graph.cast(heights, _DOUBLE)], "bar.exact")
    bar = graph.node("Mul", [bar, rounding], "bar")
    accepted = graph.cast(graph.node("Less", [bar, weights], "accepted"), _FLOAT)
    value, attempt = graph.top(accepted, 1, "first")
    graph.node("Identity", [attempt], "attempt")
    graph.node("Cast", [value], "is_accepted", to=_BOOL)
    token = graph.node("GatherElements", [tokens, attempt], "token", axis=1)
    outputs = {"token": _INT64, "attempt": _INT64, "is_accepted": _BOOL, "peak": _FLOAT}
    if with_mass:
        _mass_of_likelier(graph, every, peak, token)
        outputs |= {"mass": _FLOAT, "total": _FLOAT}
    inputs: dict[str, tuple[int, Sequence[Any]]] = {"line_unit": (_FLOAT, ["r", 1]), "temperature": (_DOUBLE, ["r", 1])}
    inputs |= {name: (_DOUBLE, ["r", ATTEMPTS]) for name in ("places", "chances")}
    return graph.save(inputs | ({"inverse_temperature": (_FLOAT, ["r", 1])} if with_mass else {}), outputs)


def _heights(graph: _Graph, every: str, peak: str) -> str:
    """The envelope in blocks, [R, blocks, BLOCK]: a float32 that is put together of its exponent and its fraction."""
    node = graph.node
    line = node("Mul", [node("Sub", [every, peak], "line.distance"), "line_unit"], "line.scaled")
    line = node("Add", [line, graph.constant("line.one", _ONE, np.float32)], "line.raised")
    zero = graph.constant("line.zero", 0, np.float32)
    # Not the greater of both, which would be NaN where one is, and no place in a table.
    line = node("Where", [node("Greater", [line, zero], "line.is_above"), line, zero], "line")
    parts = node("Mul", [line, graph.constant("line.inverse", 1 / _LINE_UNIT, np.float32)], "line.parts")
    exponent = node("Floor", [parts], "exponent")
    fraction = node("Sub", [parts, exponent], "fraction")
    powers = [0.0, *(2.0 ** (power - 127) for power in range(1, 128))]
    power = node("Gather", [graph.constant("powers", powers, np.float32), graph.cast(exponent, _INT64)], "power")
    mantissa = node("Add", [fraction, graph.constant("mantissa.one", 1, np.float32)], "mantissa")
    heights = node("Mul", [power, mantissa], "heights")
    missing = padded(graph.vocabulary) - graph.vocabulary
    if missing:
        pads = graph.constant("pads", [0, 0, 0, missing], np.int64)
        heights = node("Pad", [heights, pads], "heights.padded")
    shape = graph.constant("blocks.shape", [0, -1, BLOCK], np.int64)
    return node("Reshape", [heights, shape], "blocks")


def _drawn(graph: _Graph, blocks: str) -> tuple[str, str]:
    """Tokens and their heights, [R, ATTEMPTS]: the inverse of the running sum, first over blocks, then in one."""
    node = graph.node
    sums = graph.cast(graph.sum(blocks, "sums", keepdims=False), _DOUBLE)
    ends, starts = graph.running_sum(sums, "sums.ends"), graph.running_sum(sums, "sums.starts", is_exclusive=True)
    axis_1, axis_2 = graph.constant("axis_1", [1], np.int64), graph.constant("axis_2", [2], np.int64)
    whole = graph.sum(sums, "sums.whole")
    target = node("Mul", ["places", whole], "target")
    row_ends = node("Unsqueeze", [ends, axis_1], "sums.ends.row")
    target_column = node("Unsqueeze", [target, axis_2], "target.column")
    passed = graph.count(node("LessOrEqual", [row_ends, target_column], "is_passed"), "passed")
    most = graph.constant("blocks.last", padded(graph.vocabulary) // BLOCK - 1, np.int64)
    block_column = node("Min", [passed, most], "block.column")
    block = node("Squeeze", [block_column, axis_2], "block")
    start = node("GatherElements", [starts, block], "block.start", axis=1)
    inside = node("GatherND", [blocks, block_column], "block.heights", batch_dims=1)
    inside_ends = graph.running_sum(graph.cast(inside, _DOUBLE), "block.ends")
    rest = node("Unsqueeze", [node("Sub", [target, start], "block.rest"), axis_2], "block.rest.column")
    last = [
        graph.constant(f"end.{name}", [value], np.int64) for name, value in (("from", -1), ("to", 2**31), ("axis", 2))
    ]
    offset = _place(graph, inside_ends, rest, node("Slice", [inside_ends, *last], "block.whole"), "offset")
    heights = node("Squeeze", [node("GatherElements", [inside, offset], "height", axis=2), axis_2], "heights.drawn")
    size = graph.constant("block.size", BLOCK, np.int64)
    first = node("Mul", [block, size], "block.first")
    return node("Add", [first, node("Squeeze", [offset, axis_2], "offset.flat")], "tokens"), heights


def _place(graph: _Graph, ends: str, target: str, whole: str, output: str) -> str:
    """The first place whose running sum passes the target, or else the last one that weighs anything."""
    passed = graph.count(graph.node("LessOrEqual", [ends, target], f"{output}.is_passed"), f"{output}.passed")
    last = graph.count(graph.node("Less", [ends, whole], f"{output}.is_before_last"), f"{output}.last")
    return graph.node("Min", [passed, last], output)


def _mass_of_likelier(graph: _Graph, every: str, peak: str, token: str) -> None:
    """Those of a higher logit, and of those of the same one the lower ids."""
    node = graph.node
    weights, total = graph.total(every, peak)
    own = node("GatherElements", [every, token], "own", axis=1)
    ids = graph.constant("ids", np.arange(graph.vocabulary), np.float32)
    is_before = node("Less", [ids, graph.cast(token, _FLOAT)], "is_before")
    is_equal = node("And", [node("Equal", [every, own], "is_equal"), is_before], "is_equal_before")
    is_likelier = node("Or", [node("Greater", [every, own], "is_higher"), is_equal], "is_likelier")
    graph.sum(node("Mul", [weights, graph.cast(is_likelier, _FLOAT)], "likelier"), "mass")
    node("Identity", [total], "total")
