"""Small ONNX graphs for what is done to logits where they lie beside drawing from them: as `worker.engine.adjustment`,
`worker.engine.sampling.allow` and `worker.engine.logprobs` do it on the host, operation for operation.

Those that edit take `logits` [N, vocabulary] and `rows` int64 [R], and give these rows as `edited`, float32
[R, vocabulary]. What is particular to a token comes in lists: its place in `edited`, row * vocabulary + id, and a
value.
"""

from typing import Final

import numpy as np

from worker.engine.device.sampler_graph import DOUBLE, FLOAT, INT32, INT64, UINT8, SamplerGraph
from worker.engine.softmax import BLOCK, padded

LIKELIEST: Final = 20
"""Of so many tokens the log-probabilities are told beside the drawn one's: the most that OpenAI's API takes."""

_BITS: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1, bitorder="little").astype(bool)


def biased(vocabulary: int, logits: int = FLOAT) -> bytes:
    """places int32 [E], biases float32 [E]: each is added, but -inf is put in place of whatever is there."""
    graph = SamplerGraph(vocabulary, logits)
    node = graph.node
    flat, found = _found(graph, graph.rows())
    ruled_out = graph.constant("ruled_out", -np.inf, np.float32)
    is_held_back = node("Equal", ["biases", ruled_out], "is_held_back")
    changed = node("Where", [is_held_back, ruled_out, node("Add", [found, "biases"], "added")], "changed")
    _put_back(graph, flat, changed)
    return graph.save({**graph.shapes, "places": (INT32, ["e"]), "biases": (FLOAT, ["e"])}, {"edited": FLOAT})


def penalised(vocabulary: int, logits: int = FLOAT) -> bytes:
    """places int32 [E], counts float32 [E]: how often a token was written; 0 where it stands in the prompt only.
    repetition, frequency and presence float32 [R] are the rows' penalties.
    """
    graph = SamplerGraph(vocabulary, logits)
    node = graph.node
    flat, found = _found(graph, graph.rows())
    row = node("Div", ["places", graph.constant("vocabulary", vocabulary, np.int32)], "row")
    repetition, frequency, presence = (
        node("Gather", [name, row], f"{name}.of_token") for name in ("repetition", "frequency", "presence")
    )
    none = graph.constant("none", 0, np.float32)
    divided, multiplied = node("Div", [found, repetition], "divided"), node("Mul", [found, repetition], "multiplied")
    repeated = node("Where", [node("Greater", [found, none], "is_positive"), divided, multiplied], "repeated")
    counted = node("Sub", [repeated, node("Mul", ["counts", frequency], "of_count")], "counted")
    is_written = graph.cast(node("Greater", ["counts", none], "is_written"), FLOAT)
    _put_back(graph, flat, node("Sub", [counted, node("Mul", [is_written, presence], "of_presence")], "changed"))
    lists = {"places": (INT32, ["e"]), "counts": (FLOAT, ["e"])}
    lists |= {name: (FLOAT, ["r"]) for name in ("repetition", "frequency", "presence")}
    return graph.save({**graph.shapes, **lists}, {"edited": FLOAT})


def masked(vocabulary: int, logits: int = FLOAT) -> bytes:
    """masks uint8 [R, B]: the bytes of llguidance's int32 words. A bit says whether a token is allowed, the low one of
    the first byte the first; a table unpacks them.
    """
    graph = SamplerGraph(vocabulary, logits)
    node = graph.node
    bits = node("Gather", [graph.constant("bits", _BITS, bool), graph.cast("masks", INT32)], "bits.unpacked")
    allowed = node("Reshape", [bits, graph.constant("row", [0, -1], np.int64)], "bits.in_rows")
    bounds = {"from": 0, "to": vocabulary, "axis": 1}
    names = [graph.constant(f"known.{name}", [bound], np.int64) for name, bound in bounds.items()]
    is_allowed = node("Slice", [allowed, *names], "is_allowed")
    node("Where", [is_allowed, graph.rows(), graph.constant("ruled_out", -np.inf, np.float32)], "edited")
    return graph.save({**graph.shapes, "masks": (UINT8, ["r", mask_bytes(vocabulary)])}, {"edited": FLOAT})


def told(vocabulary: int, logits: int = FLOAT) -> bytes:
    """The log-probabilities of tokens and of the LIKELIEST: those at `places` int64 [R] of `drawn` int64 [D].

    -> logprob float64 [R, 1], likeliest int64 [R, LIKELIEST] with their logprobs float64, the likeliest first and of
    equals the lower id; peak float32 [R, 1], without which being finite none of it means anything.
    """
    graph = SamplerGraph(vocabulary, logits)
    node = graph.node
    every = graph.rows()
    values, ids = graph.top(every, min(LIKELIEST, vocabulary), "likeliest.found")
    node("Identity", [ids], "likeliest")
    peak, _ = graph.top(every, 1, "top")
    node("Identity", [peak], "peak")
    log_total = _log_total(graph, every, peak)
    token = _clamped(graph, node("Gather", ["drawn", "places"], "token.drawn"))
    column = node("Unsqueeze", [token, graph.constant("axis_1", [1], np.int64)], "token.column")
    own = node("GatherElements", [every, column], "own", axis=1)
    node("Sub", [graph.cast(own, DOUBLE), log_total], "logprob")
    node("Sub", [graph.cast(values, DOUBLE), log_total], "logprobs")
    outputs = {"logprob": DOUBLE, "likeliest": INT64, "logprobs": DOUBLE, "peak": FLOAT}
    return graph.save({**graph.shapes, "drawn": (INT64, ["d"]), "places": (INT64, ["r"])}, outputs)


def filled(vocabulary: int, ids: int = INT64) -> bytes:
    """What a run is given: `given` [B], in which -1 - place stands for the token at that place of `drawn` int64 [D].
    One that is no token, because there is none or not yet, becomes one.
    """
    graph = SamplerGraph(vocabulary)
    node = graph.node
    given = "given" if ids == INT64 else graph.cast("given", INT64)
    zero = graph.constant("zero", 0, np.int64)
    place = node("Max", [node("Sub", [graph.constant("first", -1, np.int64), given], "place.told"), zero], "place")
    token = _clamped(graph, node("Gather", ["drawn", place], "token.drawn"))
    found = node("Where", [node("Less", [given, zero], "is_drawn"), token, given], "found")
    node("Cast", [found], "ids", to=ids)
    return graph.save({"given": (ids, ["b"]), "drawn": (INT64, ["d"])}, {"ids": ids})


def mask_bytes(vocabulary: int) -> int:
    """Of whole words of 32 bits."""
    return -(-vocabulary // 32) * 4


def _found(graph: SamplerGraph, every: str) -> tuple[str, str]:
    """All rows in one, and the values at `places`."""
    flat = graph.node("Reshape", [every, graph.constant("flat", [-1], np.int64)], "rows.flat")
    return flat, graph.node("GatherElements", [flat, "places"], "found", axis=0)


def _put_back(graph: SamplerGraph, flat: str, changed: str) -> None:
    whole = graph.node("ScatterElements", [flat, "places", changed], "edited.flat", axis=0)
    graph.node("Reshape", [whole, graph.constant("in_rows", [-1, graph.vocabulary], np.int64)], "edited")


def _clamped(graph: SamplerGraph, token: str) -> str:
    least, most = graph.constant("least", 0, np.int64), graph.constant("most", graph.vocabulary - 1, np.int64)
    return graph.node("Min", [graph.node("Max", [token, least], "token.not_negative"), most], "token.known")


def _log_total(graph: SamplerGraph, every: str, peak: str) -> str:
    """The logarithm of the sum of all exponentials, float64 [R, 1]: they are float32, their sum over blocks too."""
    node = graph.node
    weights = node("Exp", [node("Sub", [every, peak], "distance")], "weights")
    missing = padded(graph.vocabulary) - graph.vocabulary
    if missing:
        weights = node("Pad", [weights, graph.constant("pads", [0, 0, 0, missing], np.int64)], "weights.padded")
    blocks = node("Reshape", [weights, graph.constant("blocks.shape", [0, -1, BLOCK], np.int64)], "blocks")
    total = graph.sum(graph.cast(graph.sum(blocks, "sums", keepdims=False), DOUBLE), "total")
    return node("Add", [graph.cast(peak, DOUBLE), node("Log", [total], "total.log")], "log_total")
