"""The graphs that draw on a device, run on the CPU: the tokens of the sampler in numpy, one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.worker.engine.device.host_memory import HostMemory
from worker.engine import sampling
from worker.engine.device import sampler as device_sampler
from worker.engine.device.graphs import DeviceGraphs
from worker.engine.device.memory import Placed
from worker.engine.device.sampler import DeviceSampler
from worker.engine.device.sampler_graphs import CANDIDATES
from worker.engine.rows import UNSURE, Wish
from worker.engine.sampling import NO_TOKEN, Draw, Sampling
from worker.engine.softmax import Logits

ROWS, VOCABULARY = 96, 3000

KINDS = {
    "greedy": {"temperature": 0.0},
    "greedy by top_p": {"top_p": 0.0},
    "plain": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 40},
    "top_k and top_p": {"top_k": 50, "top_p": 0.8},
    "top_k of many": {"top_k": CANDIDATES},
    "more than candidates": {"top_k": CANDIDATES + 50, "temperature": 3.0},
    "top_p": {"top_p": 0.9},
    "small top_p": {"top_p": 0.2, "temperature": 1.3},
    "wide top_p": {"top_p": 0.999, "temperature": 4.0},
    "min_p": {"min_p": 0.05},
    "min_p and top_p": {"min_p": 0.02, "top_p": 0.7, "temperature": 1.5},
    "min_p and top_k": {"min_p": 0.1, "top_k": 20},
    "min_p of many": {"min_p": 0.0001, "temperature": 5.0},
}


class Fetching:
    """A sampler over logits in host memory; counts the rows that it could not draw itself."""

    def __init__(self, logits: npt.NDArray[np.floating], element: int = TensorProto.FLOAT) -> None:
        self.logits = logits
        self.fetched = 0
        memory = HostMemory()
        address = memory.allocate(logits.nbytes)
        memory.upload(address, logits)
        self.sampler = DeviceSampler(memory, self._open, Placed(address, element, logits.shape))

    @staticmethod
    def _open(content: bytes) -> ort.InferenceSession:
        return ort.InferenceSession(content, providers=["CPUExecutionProvider"])

    def _fetch(self, rows: npt.NDArray[np.int64]) -> Logits:
        self.fetched += len(rows)
        return self.logits[rows].astype(np.float32)

    def draw(self, rows: npt.NDArray[np.int64], draws: list[Draw]) -> npt.NDArray[np.int64]:
        drawing = self.sampler.draw(rows, [Wish(draw) for draw in draws], self._fetch)
        drawing.wait()
        unsure = np.flatnonzero(drawing.tokens == UNSURE)
        if len(unsure):
            assert drawing.may_ask
            logits = drawing.fetch(unsure.tolist())
            drawing.tokens[unsure] = sampling.sample(logits, [draws[row] for row in unsure.tolist()])
        return drawing.tokens


@pytest.fixture(scope="module")
def logits() -> Logits:
    """As a model's: a few tokens far above the others, ties, and tokens that are ruled out."""
    random = np.random.default_rng(17)
    made = (random.standard_normal((ROWS, VOCABULARY)) * 2).astype(np.float32)
    made[:, random.integers(0, VOCABULARY, 30)] += 5
    made[::3] = np.round(made[::3] * 2) / 2
    made[1::4, 100:200] = -np.inf
    made[5] = -np.inf
    made[5, 77] = 1
    return made


@pytest.fixture(scope="module")
def device(logits: Logits) -> Iterator[Fetching]:
    fetching = Fetching(logits)
    yield fetching
    fetching.sampler.close()


def draws_of(kind: str, rows: int = ROWS) -> list[Draw]:
    return [Draw(Sampling(seed=row * 7, **KINDS[kind]), row % 3, 10 + row) for row in range(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_gets_the_token_of_the_sampler_on_the_host(
    kind: str, device: Fetching, logits: Logits
) -> None:
    expected = sampling.sample(logits.copy(), draws_of(kind))
    assert device.draw(np.arange(ROWS), draws_of(kind)).tolist() == expected.tolist()


def test_kinds_may_be_mixed_and_rows_lie_in_any_order(device: Fetching, logits: Logits) -> None:
    random = np.random.default_rng(4)
    rows = random.integers(0, ROWS, ROWS)
    names = list(KINDS)
    draws = [draws_of(names[random.integers(len(names))])[row] for row in rows.tolist()]
    expected = sampling.sample(logits[rows], draws)
    assert device.draw(rows, draws).tolist() == expected.tolist()


def test_candidates_are_found_for_a_few_rows_at_a_time(logits: Logits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large vocabulary, whose candidates a card finds the slow way for many rows at once."""
    monkeypatch.setattr(device_sampler, "_CANDIDATE_LOGITS", 20 * VOCABULARY + 1)
    fetching, run, at_once = Fetching(logits), DeviceGraphs.run, []

    def watch(graphs: DeviceGraphs, graph: Any, element: int, given: Any, *others: Any) -> None:
        at_once.append((graph.__name__, len(given["rows"])))
        run(graphs, graph, element, given, *others)

    monkeypatch.setattr(DeviceGraphs, "run", watch)
    names = ["top_k", "top_p", "greedy", "plain"]
    draws = [draws_of(names[row * 7 // ROWS % 4])[row] for row in range(ROWS)]
    assert fetching.draw(np.arange(ROWS), draws).tolist() == sampling.sample(logits.copy(), draws).tolist()
    assert max(rows for name, rows in at_once if name in ("few", "nucleus")) == 20
    assert {name for name, rows in at_once if rows > 20} == {"greedy"}


@pytest.mark.parametrize("kind", ["greedy", "plain", "cold", "top_k", "top_k of many", "small top_p", "min_p"])
def test_next_to_no_row_comes_to_the_host(kind: str, logits: Logits) -> None:
    fetching = Fetching(logits)
    fetching.draw(np.arange(ROWS), draws_of(kind))
    assert fetching.fetched <= 1


def test_what_the_candidates_do_not_hold_is_drawn_on_the_host(logits: Logits) -> None:
    fetching = Fetching(logits)
    fetching.draw(np.arange(ROWS), draws_of("more than candidates"))
    assert fetching.fetched == ROWS


def test_rows_without_a_token_that_can_follow_have_none(logits: Logits) -> None:
    broken = logits[:4].copy()
    broken[1], broken[2] = -np.inf, np.nan
    for kind in ("greedy", "plain", "top_k", "top_p"):
        tokens = Fetching(broken).draw(np.arange(4), draws_of(kind, 4))
        assert tokens[1] == tokens[2] == NO_TOKEN, kind
        assert tokens[0] != NO_TOKEN != tokens[3], kind


@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 1000])
def test_vocabularies_of_any_size(vocabulary: int) -> None:
    made = np.random.default_rng(vocabulary).standard_normal((8, vocabulary)).astype(np.float32)
    fetching = Fetching(made)
    for kind in ("greedy", "plain", "top_k", "top_p", "min_p"):
        expected = sampling.sample(made.copy(), draws_of(kind, 8))
        assert fetching.draw(np.arange(8), draws_of(kind, 8)).tolist() == expected.tolist(), kind


def test_logits_in_half_precision_are_drawn_from_as_they_are(logits: Logits) -> None:
    halves = logits.astype(np.float16)
    fetching = Fetching(halves, TensorProto.FLOAT16)
    expected = sampling.sample(halves.astype(np.float32), draws_of("top_p"))
    assert fetching.draw(np.arange(ROWS), draws_of("top_p")).tolist() == expected.tolist()
