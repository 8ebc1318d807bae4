"""Small ONNX graphs that draw tokens where the logits are, so that ids are all that leaves the device.

Each does what `worker.engine.sampling` does, step for step, for many rows at once: what it says in float64 is float64
here, heights are the same to the last bit, and only sums over the whole vocabulary are added in another order.

All take `logits` [N, vocabulary] and `rows` int64 [R], those of the N that are meant, and give `token` int64 [R, 1]:
NO_TOKEN where none can follow, and UNSURE where the graph cannot tell; such a row is drawn on the host.
"""

from typing import Final

import numpy as np

from worker.engine.device.sampler_graph import DOUBLE, FLOAT, INT64, SamplerGraph, Shapes
from worker.engine.rows import UNSURE
from worker.engine.sampling import NO_TOKEN
from worker.engine.softmax import BLOCK, padded

CANDIDATES: Final = 256
"""Tokens among which rows are drawn that leave few."""
ATTEMPTS: Final = 3
"""Draws from the envelope in one run; one row in 16,000 needs more."""

_LINE_UNIT: Final = 2.0**23
_ONE: Final = float(127 << 23)
_ROUNDING: Final = 1.0001
"""As `worker.engine.envelope` has them."""


def greedy(vocabulary: int, logits: int = FLOAT) -> bytes:
    """The likeliest."""
    graph = SamplerGraph(vocabulary, logits)
    peak, token = graph.top(graph.rows(), 1, "top")
    _give(graph, token, peak)
    return graph.save(graph.shapes, {"token": INT64})


def few(vocabulary: int, logits: int = FLOAT) -> bytes:
    """Draws from what top_k, top_p and min_p leave, if that is among the CANDIDATES likeliest.

    temperature, top_k, top_p, min_p and place are float64 [R, 1], inverse_temperature float32. A top_k that is off is
    CANDIDATES, a top_p that is off is above 1. `counts_all` is 1 where top_p is a share of all tokens, and 0 where of
    those that top_k leaves, of which `is_k` is 1 where they are no more than CANDIDATES.
    """
    graph = SamplerGraph(vocabulary, logits)
    softmax = _Softmax(graph, graph.rows())
    names = ("temperature", "top_k", "top_p", "min_p", "place", "counts_all", "is_k")
    token, has_all = _of_few(softmax, {name: name for name in names})
    half = graph.constant("half", 0.5, np.float64)
    is_sure = graph.node("Or", [has_all, graph.node("Less", [half, "is_k"], "is_of_k")], "is_sure")
    _give(graph, token, softmax.peak, is_sure)
    inputs: Shapes = {name: (DOUBLE, ["r", 1]) for name in names}
    return graph.save({**graph.shapes, **inputs, "inverse_temperature": (FLOAT, ["r", 1])}, {"token": INT64})


def full(vocabulary: int, logits: int = FLOAT) -> bytes:
    """Draws from all tokens: ATTEMPTS draws from the envelope over the softmax.

    line_unit is float32 [R, 1], temperature float64; places and chances float64 [R, ATTEMPTS].
    """
    graph = SamplerGraph(vocabulary, logits)
    softmax = _Softmax(graph, graph.rows())
    token, _, is_accepted = _of_all(softmax)
    _give(graph, token, softmax.peak, is_accepted)
    return graph.save({**graph.shapes, **_inputs_of_all()}, {"token": INT64})


def nucleus(vocabulary: int, logits: int = FLOAT) -> bytes:
    """Draws from what top_p leaves: one of all tokens, and where that is none of the nucleus, one of the nucleus with
    the number that follows those that were used, if it is among the CANDIDATES.

    Beside the inputs of `full`, top_p is float64 [R, 1], inverse_temperature float32, and places_after, float64
    [R, ATTEMPTS], has the number that follows each attempt.
    """
    graph = SamplerGraph(vocabulary, logits)
    node = graph.node
    every = graph.rows()
    softmax = _Softmax(graph, every)
    token, attempt, is_accepted = _of_all(softmax)
    node("GatherElements", ["places_after", attempt], "place", axis=1)
    off = {"top_k": CANDIDATES, "min_p": 0.0, "counts_all": 1.0}
    names = {name: graph.constant(name, [[value]], np.float64) for name, value in off.items()}
    other, has_all = _of_few(softmax, {**names, "top_p": "top_p", "place": "place"})
    share = node("Mul", ["top_p", graph.cast(softmax.total, DOUBLE)], "share")
    is_inside = node("Less", [graph.cast(_mass_of_likelier(softmax, token), DOUBLE), share], "is_in_nucleus")
    is_sure = node("And", [is_accepted, node("Or", [is_inside, has_all], "is_held")], "is_sure")
    _give(graph, node("Where", [is_inside, token, other], "either"), softmax.peak, is_sure)
    inputs: Shapes = {"top_p": (DOUBLE, ["r", 1]), "places_after": (DOUBLE, ["r", ATTEMPTS])}
    inputs |= {"inverse_temperature": (FLOAT, ["r", 1])}
    return graph.save({**graph.shapes, **_inputs_of_all(), **inputs}, {"token": INT64})


class _Softmax:
    """Of the rows `every`, at the inputs `temperature` and, where the total is asked for, `inverse_temperature`."""

    def __init__(self, graph: SamplerGraph, every: str) -> None:
        self.graph = graph
        self.every = every
        self.peak, _ = graph.top(every, 1, "top")
        self._all: tuple[str, str] | None = None

    def weights(self, logits: str, place: str) -> str:
        """exp((logits - peak) / temperature) in float64."""
        cast, node = self.graph.cast, self.graph.node
        distance = node("Sub", [cast(logits, DOUBLE), cast(self.peak, DOUBLE)], f"{place}.distance")
        return node("Exp", [node("Div", [distance, "temperature"], f"{place}.scaled")], place)

    @property
    def all_weights(self) -> str:
        """Of all tokens, in float32."""
        return self._of_all_tokens()[0]

    @property
    def total(self) -> str:
        """The sum of all weights, float32 [R, 1]."""
        return self._of_all_tokens()[1]

    def _of_all_tokens(self) -> tuple[str, str]:
        if self._all is None:
            node = self.graph.node
            distance = node("Sub", [self.every, self.peak], "all.distance")
            weights = node("Exp", [node("Mul", [distance, "inverse_temperature"], "all.scaled")], "all.weights")
            self._all = weights, self.graph.sum(weights, "all.total")
        return self._all


def _give(graph: SamplerGraph, token: str, peak: str, is_sure: str | None = None) -> None:
    if is_sure is not None:
        unsure = graph.constant("unsure", [[UNSURE]], np.int64)
        token = graph.node("Where", [is_sure, token, unsure], "token.sure")
    none = graph.constant("no_token", [[NO_TOKEN]], np.int64)
    graph.node("Where", [graph.is_finite(peak, "peak.is_finite"), token, none], "token")


def _of_few(softmax: _Softmax, given: dict[str, str]) -> tuple[str, str]:
    """A token, and whether the candidates hold all that it is to be drawn from."""
    graph = softmax.graph
    node = graph.node
    count = min(CANDIDATES, graph.vocabulary)
    values, ids = graph.top(softmax.every, count, "candidates")
    weights = softmax.weights(values, "weights")
    ranks = graph.constant("ranks", np.arange(count), np.float64)
    ranked = node("Mul", [weights, graph.cast(node("Less", [ranks, given["top_k"]], "is_in_k"), DOUBLE)], "ranked")
    covered = graph.sum(ranked, "covered")
    of_all = node("Mul", [graph.cast(softmax.total, DOUBLE), given["counts_all"]], "total.of_all")
    one = graph.constant("one", 1.0, np.float64)
    of_few = node("Mul", [covered, node("Sub", [one, given["counts_all"]], "counts_few")], "total.of_few")
    mass = node("Mul", [given["top_p"], node("Add", [of_all, of_few], "total")], "mass")
    before = graph.running_sum(ranked, "before", is_exclusive=True)
    inside = graph.cast(node("Less", [before, mass], "is_inside"), DOUBLE)
    likely = graph.cast(node("GreaterOrEqual", [weights, given["min_p"]], "is_likely"), DOUBLE)
    kept = node("Mul", [node("Mul", [ranked, inside], "kept.inside"), likely], "kept")
    _, order = graph.top(graph.cast(ids, FLOAT), count, "by_id", largest=False)
    kept = node("GatherElements", [kept, order], "kept.by_id", axis=1)
    ids = node("GatherElements", [ids, order], "ids.by_id", axis=1)
    ends = graph.running_sum(kept, "ends")
    whole = graph.last(ends, "whole", axis=1)
    place = _place(graph, ends, node("Mul", [given["place"], whole], "few.target"), whole, "chosen")
    least = graph.last(weights, "least", axis=1)
    is_whole = node("GreaterOrEqual", [covered, mass], "is_covered")
    has_all = node("Or", [is_whole, node("Less", [least, given["min_p"]], "is_rest_unlikely")], "has_all")
    return node("GatherElements", [ids, place], "token.of_few", axis=1), has_all


def _inputs_of_all() -> Shapes:
    inputs: Shapes = {"line_unit": (FLOAT, ["r", 1]), "temperature": (DOUBLE, ["r", 1])}
    return inputs | {name: (DOUBLE, ["r", ATTEMPTS]) for name in ("places", "chances")}


def _of_all(softmax: _Softmax) -> tuple[str, str, str]:
    """A token, the attempt in which it was drawn, and whether it was accepted, [R, 1]."""
    graph = softmax.graph
    tokens, heights = _drawn(graph, _heights(graph, softmax.every, softmax.peak))
    values = graph.node("GatherElements", [softmax.every, tokens], "drawn.logits", axis=1)
    weights = softmax.weights(values, "drawn.weights")
    rounding = graph.constant("rounding", _ROUNDING, np.float64)
    bar = graph.node("Mul", ["chances", graph.cast(heights, DOUBLE)], "bar.exact")
    bar = graph.node("Mul", [bar, rounding], "bar")
    accepted = graph.cast(graph.node("Less", [bar, weights], "accepted"), FLOAT)
    value, attempt = graph.top(accepted, 1, "first")
    token = graph.node("GatherElements", [tokens, attempt], "token.of_all", axis=1)
    none = graph.constant("not_accepted", 0, np.float32)
    return token, attempt, graph.node("Less", [none, value], "is_accepted")


def _heights(graph: SamplerGraph, every: str, peak: str) -> str:
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
    power = node("Gather", [graph.constant("powers", powers, np.float32), graph.cast(exponent, INT64)], "power")
    mantissa = node("Add", [fraction, graph.constant("mantissa.one", 1, np.float32)], "mantissa")
    heights = node("Mul", [power, mantissa], "heights")
    missing = padded(graph.vocabulary) - graph.vocabulary
    if missing:
        pads = graph.constant("pads", [0, 0, 0, missing], np.int64)
        heights = node("Pad", [heights, pads], "heights.padded")
    shape = graph.constant("blocks.shape", [0, -1, BLOCK], np.int64)
    return node("Reshape", [heights, shape], "blocks")


def _drawn(graph: SamplerGraph, blocks: str) -> tuple[str, str]:
    """Tokens and their heights, [R, ATTEMPTS]: the inverse of the running sum, first over blocks, then in one."""
    node = graph.node
    sums = graph.cast(graph.sum(blocks, "sums", keepdims=False), DOUBLE)
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
    inside_ends = graph.running_sum(graph.cast(inside, DOUBLE), "block.ends")
    rest = node("Unsqueeze", [node("Sub", [target, start], "block.rest"), axis_2], "block.rest.column")
    offset = _place(graph, inside_ends, rest, graph.last(inside_ends, "block.whole", axis=2), "offset")
    heights = node("Squeeze", [node("GatherElements", [inside, offset], "height", axis=2), axis_2], "heights.drawn")
    size = graph.constant("block.size", BLOCK, np.int64)
    first = node("Mul", [block, size], "block.first")
    return node("Add", [first, node("Squeeze", [offset, axis_2], "offset.flat")], "tokens"), heights


def _place(graph: SamplerGraph, ends: str, target: str, whole: str, output: str) -> str:
    """The first place whose running sum passes the target, or else the last one that weighs anything."""
    passed = graph.count(graph.node("LessOrEqual", [ends, target], f"{output}.is_passed"), f"{output}.passed")
    last = graph.count(graph.node("Less", [ends, whole], f"{output}.is_before_last"), f"{output}.last")
    return graph.node("Min", [passed, last], output)


def _mass_of_likelier(softmax: _Softmax, token: str) -> str:
    """What the tokens weigh that are likelier: those of a higher logit, and of the same one the lower ids."""
    graph, node = softmax.graph, softmax.graph.node
    own = node("GatherElements", [softmax.every, token], "own", axis=1)
    ids = graph.constant("ids", np.arange(graph.vocabulary), np.float32)
    is_before = node("Less", [ids, graph.cast(token, FLOAT)], "is_before")
    is_equal = node("And", [node("Equal", [softmax.every, own], "is_equal"), is_before], "is_equal_before")
    is_likelier = node("Or", [node("Greater", [softmax.every, own], "is_higher"), is_equal], "is_likelier")
    weights = node("Mul", [softmax.all_weights, graph.cast(is_likelier, FLOAT)], "likelier")
    return graph.sum(weights, "likelier.mass")
