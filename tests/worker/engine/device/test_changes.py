"""What is changed in rows on a device, and told of them: on the CPU, tokens and figures are those of the host."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.worker.engine.device.host_memory import HostMemory
from worker.engine import NothingToSample, Prompt, Sampling, next_token
from worker.engine.device import edit_graphs, sampler_graphs
from worker.engine.device.edit_graphs import LIKELIEST
from worker.engine.device.memory import Placed
from worker.engine.device.sampler import DeviceSampler
from worker.engine.device.sampler_graph import ON_CUDA
from worker.engine.errors import OutOfMemory
from worker.engine.rows import Wish
from worker.engine.sampling import Mask
from worker.engine.sequence import Sequence as Choice
from worker.engine.softmax import Ids, Logits
from worker.engine.ticket import open_ticket

VOCABULARY, STEPS = 700, 6
SAMPLERS = [sampler_graphs.greedy, sampler_graphs.few, sampler_graphs.full, sampler_graphs.nucleus]
SAMPLERS += [edit_graphs.biased, edit_graphs.penalised, edit_graphs.masked, edit_graphs.told]
"""Over logits of any type."""
PROMPT = [5, 6, 7, 300, 301, 699]
STOPS = frozenset({3, 50, 51})

DRAWS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.5},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.02},
}

CHANGES = {
    "nothing": {},
    "bias": {"logit_bias": ((7, 4.0), (699, -3.5), (50, 9.0), (0, 2.25))},
    "frequency": {"frequency_penalty": 1.3},
    "presence": {"presence_penalty": -1.1},
    "repetition": {"repetition_penalty": 1.7},
    "encouraged": {"repetition_penalty": 0.6, "frequency_penalty": -0.4},
    "all": {
        "logit_bias": ((5, 6.0), (12, 5.0)),
        "frequency_penalty": 0.7,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.2,
    },
}


class Allowing:
    """A watcher that allows what a function says of the tokens so far."""

    def __init__(self, allowed: Callable[[list[int]], Sequence[int]], words: int) -> None:
        self._allowed, self._words = allowed, words
        self._seen: list[int] = []

    def mask(self) -> Mask | None:
        mask = np.zeros(self._words, np.uint32)
        for token in self._allowed(self._seen):
            mask[token // 32] |= np.uint32(1 << token % 32)
        return mask

    def accept(self, token_id: int) -> bool:
        self._seen.append(token_id)
        return True

    def forced(self) -> Sequence[int]:
        return ()

    def finish(self) -> None:
        pass


WORDS = -(-VOCABULARY // 32)
MASKS: dict[str, Callable[[list[int]], Sequence[int]]] = {
    "few": lambda seen: range(len(seen), VOCABULARY, 101),
    "one": lambda seen: [31 + len(seen)],
    "most": lambda seen: [token for token in range(VOCABULARY) if token % 7 != len(seen)],
    "last": lambda _: [VOCABULARY - 1, VOCABULARY - 2],
}


def choices(**more: object) -> list[Choice]:
    """Of every kind of draw with every kind of change, some with a mask, some that hold stop tokens back."""
    made = []
    for number, (draw, change) in enumerate((draw, change) for draw in DRAWS for change in CHANGES):
        asked = Prompt(
            PROMPT,
            Sampling(seed=number, **(DRAWS[draw] | CHANGES[change])),
            tokens_min=number % 3 * 2,
            stop_token_ids=STOPS,
            top_logprobs=[None, 0, 5, LIKELIEST, LIKELIEST + 1][number % 5],
        )
        if number % 2:
            allowed = list(MASKS.values())[number // 2 % len(MASKS)]
            asked = replace(
                asked, watch=lambda _, allowed=allowed, words=WORDS - number % 3 // 2: Allowing(allowed, words)
            )
        made += open_ticket(replace(asked, **more), context_tokens=100, vocabulary=VOCABULARY).sequences
    return made


class Rows:
    """All rows of some logits in host memory; the methods are those of `DeviceRows` that drawing needs."""

    def __init__(self, rows: int, element: type = np.float32) -> None:
        self.memory = HostMemory()
        self.logits = np.zeros((rows, VOCABULARY), element)
        self.address = self.memory.allocate(self.logits.nbytes)
        self.fetched = 0
        kind = TensorProto.FLOAT if element == np.float32 else TensorProto.FLOAT16
        self.sampler = DeviceSampler(self.memory, ort.InferenceSession, Placed(self.address, kind, (rows, VOCABULARY)))

    def put(self, logits: Logits) -> None:
        self.logits[:] = logits
        self.memory.upload(self.address, self.logits)

    def draw(self, wishes: Sequence[Wish]) -> object:
        return self.sampler.draw(np.arange(len(wishes)), wishes, self._fetch)

    def _fetch(self, rows: Ids) -> Logits:
        self.fetched += len(rows)
        return self.logits[rows].astype(np.float32)


def logits_of(step: int, rows: int) -> Logits:
    """Much the same in each step, so that what was written is wanted again."""
    made = np.random.default_rng(1).standard_normal((rows, VOCABULARY)).astype(np.float32) * 2
    random = np.random.default_rng(step)
    made += random.standard_normal((rows, VOCABULARY)).astype(np.float32) / 4
    made[:, np.arange(20) * 31] += 4
    made[::3] = np.round(made[::3] * 2) / 2
    made[1::4, 100:120] = -np.inf
    return made


def advanced(rows: Rows, here: list[Choice], there: list[Choice], step: int) -> None:
    logits = logits_of(step, len(here)).astype(rows.logits.dtype).astype(np.float32)
    rows.put(logits)
    expected = next_token.advance(logits.copy(), here)
    found = next_token.accept(next_token.begin(rows, there), there)  # type: ignore[arg-type]
    assert [type(error) for error in found] == [type(error) for error in expected]


@pytest.mark.parametrize(("element", "at_once"), [(np.float32, 128), (np.float16, 8)])
def test_every_change_of_every_kind_of_row_gives_the_tokens_and_log_probabilities_of_the_host(
    element: type, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.device.sampler.ROWS_AT_ONCE", at_once)
    here, there = choices(), choices()
    rows = Rows(len(here), element)
    for step in range(STEPS):
        advanced(rows, here, there, step)
    assert [one.token_ids for one in there] == [one.token_ids for one in here]
    assert len({tuple(one.token_ids) for one in here}) > len(here) / 2
    for mine, theirs in zip(there, here, strict=True):
        for one, other in zip(mine._logprobs, theirs._logprobs, strict=True):
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-5)


def test_only_rows_that_want_more_than_a_device_tells_come_to_the_host() -> None:
    there = choices()
    rows = Rows(len(there))
    rows.put(logits_of(1, len(there)))
    drawing = next_token.begin(rows, there).drawing  # type: ignore[arg-type]
    drawing.wait()
    next_token.accept(next_token.begin(rows, there), there)  # type: ignore[arg-type]
    beyond = sum((one.top_logprobs or 0) > LIKELIEST for one in there)
    assert beyond <= rows.fetched <= beyond + 1


def test_stop_tokens_are_held_back_even_where_they_are_wanted_most() -> None:
    wanted = Sampling(seed=1, temperature=0, logit_bias=((50, 1e4), (9, 100.0)))
    [choice] = open_ticket(
        Prompt(PROMPT, wanted, tokens_min=1, stop_token_ids=STOPS), context_tokens=100, vocabulary=VOCABULARY
    ).sequences
    assert choice.adjustment is not None
    ids, _ = choice.adjustment.biases
    assert len(set(ids.tolist())) == len(ids), "a token twice: a device may take either value"
    rows = Rows(1)
    rows.put(logits_of(2, 1))
    for _ in range(2):
        next_token.accept(next_token.begin(rows, [choice]), [choice])  # type: ignore[arg-type]
    assert (choice.token_ids, choice.finish_reason) == ([9], "stop")


def test_a_row_of_nothing_but_nan_or_without_an_allowed_token_has_none_and_spoils_no_other() -> None:
    here, there = (choices(top_logprobs=1, watch=None) for _ in range(2))
    here[3] = there[3] = open_ticket(
        Prompt(PROMPT, Sampling(seed=1), watch=lambda _: Allowing(lambda _: [], WORDS)),
        context_tokens=100,
        vocabulary=VOCABULARY,
    ).sequences[0]
    logits = logits_of(3, len(here))
    logits[::5] = np.nan
    rows = Rows(len(here))
    rows.put(logits)
    expected = next_token.advance(logits.copy(), here)
    found = next_token.accept(next_token.begin(rows, there), there)  # type: ignore[arg-type]
    assert [isinstance(error, NothingToSample) for error in found] == [error is not None for error in expected]
    assert found[3] is not None
    assert found[0] is not None
    assert found[1] is None
    assert [one.token_ids for one in there] == [one.token_ids for one in here]


def test_where_a_device_has_no_memory_for_it_tokens_are_drawn_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    here, there = choices(), choices()
    rows = Rows(len(here))

    def allocate(size_bytes: int) -> int:
        raise OutOfMemory("scripted")

    rows.memory.allocate = allocate  # type: ignore[method-assign]
    advanced(rows, here, there, 1)
    assert [one.token_ids for one in there] == [one.token_ids for one in here]
    assert rows.fetched == len(here)
    assert "drawn on the host" in caplog.text


@pytest.mark.parametrize("graph", [*SAMPLERS, edit_graphs.filled], ids=lambda graph: graph.__name__)
def test_no_graph_has_an_operator_that_a_card_leaves_to_the_cpu(graph: Callable[[int, int], bytes]) -> None:
    nodes = onnx.load_from_string(graph(VOCABULARY, TensorProto.FLOAT)).graph.node
    assert {node.op_type for node in nodes} <= ON_CUDA


_REAL = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})
_NUMBERS = _REAL | {TensorProto.INT32, TensorProto.INT64}
_ALL = _NUMBERS | {TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.UINT8}
TYPES = {
    **dict.fromkeys(("And", "Or"), frozenset({TensorProto.BOOL})),
    **dict.fromkeys(("Floor", "Log"), _REAL),
    **dict.fromkeys(("CumSum", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"), _NUMBERS),
    **dict.fromkeys(("Abs", "Add", "Div", "Max", "Min", "Mul", "ReduceSum", "Sub"), _NUMBERS | {TensorProto.BFLOAT16}),
    **dict.fromkeys(("Cast", "Gather", "GatherElements", "Identity", "Reshape", "ScatterElements"), _ALL),
    **dict.fromkeys(("Slice", "Squeeze", "Unsqueeze"), _ALL),
    "Equal": _NUMBERS | {TensorProto.BOOL},
    "Exp": _REAL | {TensorProto.BFLOAT16},
    "GatherND": _REAL | {TensorProto.BFLOAT16, TensorProto.INT64},
    "Pad": _REAL | {TensorProto.BOOL},
    "Where": _NUMBERS | {TensorProto.BFLOAT16, TensorProto.UINT8},
}
"""Of what is computed, with kernels for CUDA in ONNX Runtime 1.31: docs/OperatorKernels.md, and the classes that the
library names. Where there is none, the CPU computes it, and copies to it and back are made, without a word.
"""


@pytest.mark.parametrize("logits", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("graph", [*SAMPLERS, edit_graphs.filled], ids=lambda graph: graph.__name__)
def test_every_operator_is_used_with_types_that_a_card_computes(
    graph: Callable[[int, int], bytes], logits: int
) -> None:
    kind = TensorProto.INT64 if graph is edit_graphs.filled else logits
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph(VOCABULARY, kind)), strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in inferred.node:
        computed = node.input[1] if node.op_type == "Where" else node.input[0]
        assert types[computed] in TYPES[node.op_type], f"{node.op_type} of {computed}"
