"""Runs bound to fixed addresses, on a graph that shows one misplaced token: the CPU's memory stands for a card's."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.worker.engine.device.host_memory import HostMemory
from tests.worker.engine.paged import counting_graph
from tests.worker.engine.paged.counting_graph import following
from worker.engine import Engine, EngineSettings, Prompt, Sampling
from worker.engine.device import gpu
from worker.engine.device.gpu import GpuUnusable
from worker.engine.device.memory import aligned
from worker.engine.device.sampler import DeviceSampler
from worker.engine.errors import OutOfMemory
from worker.engine.paged.occupancy import Room
from worker.engine.paged.opening import run_limits
from worker.engine.paged.ort_session import OrtPagedSession, PageLayout, element_bytes
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.runner import Span
from worker.engine.sampling import Mask

PAGE, CONTEXT = 4, 40
KNOBS = EngineSettings(context_tokens_max=CONTEXT, slots_max=6, chunk_tokens=32)
LAYOUT = PageLayout(layers=1, kv_heads=1, head_size=1, tokens=PAGE, element_bytes=4)
GREEDY = Sampling(seed=0, temperature=0)

KINDS: dict[str, dict[str, Any]] = {
    "ours": {},
    "one row a sequence": {"asks_for_rows": False},
    "float16": {"logits": TensorProto.FLOAT16},
}


@pytest.fixture(params=KINDS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return counting_graph.write(tmp_path / "model.onnx", page_tokens=PAGE, **KINDS[request.param])


def opened(
    graph: Path, *, pages: int = 0, captures: bool = True, stages: int = 3, draws_there: bool = False
) -> PagedRunner:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert element_bytes(session) == 4
    return over(session, pages=pages, captures=captures, stages=stages, draws_there=draws_there)


def over(
    session: Any, *, pages: int = 0, captures: bool = True, stages: int = 3, draws_there: bool = False
) -> PagedRunner:
    room = Room(pages or 1 + (stages + 6) * 10, PAGE, stages, 6, CONTEXT)
    memory = HostMemory()
    paged = OrtPagedSession(session, memory, LAYOUT, room.pages, run_limits(room, KNOBS), captures=captures)
    sampler = DeviceSampler(memory, ort.InferenceSession, paged.logits.place)
    return PagedRunner(paged, room, sampler if draws_there else None)


def prompts(count: int) -> list[list[int]]:
    """Every second one begins as the others of its kind."""
    random = np.random.default_rng(3)
    common = random.integers(0, 50, 9).tolist()
    own = [random.integers(0, 50, random.integers(1, 20)).tolist() for _ in range(count)]
    return [[*common, *ids] if number % 2 else ids for number, ids in enumerate(own)]


def written(prompt: list[int], tokens: int) -> tuple[int, ...]:
    text = list(prompt)
    for _ in range(min(tokens, CONTEXT - len(prompt))):
        text.append(following(text))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize(
    ("pages", "captures", "draws_there"), [(0, True, True), (0, False, False), (1 + 4 * 10 + 2, True, True)]
)
def test_every_token_of_every_text_lies_where_it_should(
    graph: Path, pages: int, captures: bool, draws_there: bool
) -> None:
    asked = prompts(30)
    with Engine(opened(graph, pages=pages, captures=captures, draws_there=draws_there), KNOBS) as engine:
        futures = [engine.submit(Prompt(ids, GREEDY, 25, choices=1 + number % 3)) for number, ids in enumerate(asked)]
        for ids, future in zip(asked, futures, strict=True):
            for choice in future.result(60):
                assert choice.token_ids == written(ids, 25)


def test_pieces_that_want_no_logits_lie_beside_those_that_do(graph: Path) -> None:
    runner = opened(graph)
    texts = [np.array(ids) for ids in prompts(3)]
    spans = [Span(stage, 0, ids, ends_prompt=stage != 1) for stage, ids in enumerate(texts)]
    logits = runner.step(spans, [])
    assert logits.argmax(axis=1).tolist() == [following(texts[0].tolist()), following(texts[2].tolist())]
    assert logits.dtype == np.float32
    assert runner.step([Span(1, len(texts[1]), np.array([7]), ends_prompt=False)], []).shape == (0, 50)
    [row] = runner.step([Span(1, len(texts[1]) + 1, np.array([8]), ends_prompt=True)], [])
    assert row.argmax() == following([*texts[1].tolist(), 7, 8])


def test_a_shape_that_was_bound_before_reads_what_is_uploaded_now(tmp_path: Path) -> None:
    """As a captured run does: its binding is never made again."""
    graph = counting_graph.write(tmp_path / "model.onnx", page_tokens=PAGE)
    runner = opened(graph)
    texts = [[1, 2, 3], [4, 5]]
    for stage, ids in enumerate(texts):
        runner.step([Span(stage, 0, np.array(ids), ends_prompt=True)], [])
        runner.place(stage, len(ids))
    for token in range(12):
        tokens = [token, 2 * token]
        texts = [[*ids, own] for ids, own in zip(texts, tokens, strict=True)]
        assert runner.step([], tokens).argmax(axis=1).tolist() == [following(ids) for ids in texts]
        runner.step([Span(2, 0, np.array([9] * 30), ends_prompt=True)], [])  # another run, over the same inputs
    runner.close()


class Full:
    """A session whose runs find no memory, where they are told so."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.io_binding = session.io_binding
        self.is_full = False
        self.graph_ids: list[str] = []

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        if self.is_full:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        self._session.run_with_iobinding(binding, options)


def test_what_a_run_without_memory_may_have_captured_is_never_replayed(tmp_path: Path) -> None:
    graph = counting_graph.write(tmp_path / "model.onnx", page_tokens=PAGE)
    session = Full(ort.InferenceSession(graph, providers=["CPUExecutionProvider"]))
    runner = over(session)
    runner.step([Span(0, 0, np.array([1]), ends_prompt=True)], [])
    runner.place(0, 1)
    session.is_full = True
    with pytest.raises(OutOfMemory):
        runner.step([], [4])
    session.is_full = False
    for token, answer in ((4, following([1, 4])), (5, following([1, 4, 5]))):
        [row] = runner.step([], [token])
        assert row.argmax() == answer
    eager, failed, first, again = session.graph_ids
    assert eager == "-1"
    assert failed != first == again


def test_tokens_are_drawn_on_the_host_where_the_card_is_too_full_for_more_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_graph(content: bytes, *_: Any, **__: Any) -> ort.InferenceSession:
        return ort.InferenceSession(content, providers=["CPUExecutionProvider"])

    def refuse(*_: Any, **__: Any) -> None:
        raise GpuUnusable("its memory is taken") from RuntimeError("CUDA failure 2: out of memory")

    graph = counting_graph.write(tmp_path / "model.onnx", page_tokens=PAGE)
    runner = opened(graph)
    monkeypatch.setattr("worker.engine.device.gpu.open_session", open_graph)
    runner._sampler = gpu.open_sampler(HostMemory(), runner._session.logits.place)  # type: ignore[arg-type]
    monkeypatch.setattr("worker.engine.device.gpu.open_session", refuse)
    asked = prompts(4)
    with Engine(runner, KNOBS) as engine:
        for ids, future in [(ids, engine.submit(Prompt(ids, GREEDY, 6))) for ids in asked]:
            assert future.result(60)[0].token_ids == written(ids, 6)


def test_rows_whose_logits_are_changed_or_told_come_to_the_host_and_no_others(tmp_path: Path) -> None:
    """A bias, the likeliest tokens, a mask, and plain rows of every kind in one step: all as on the host."""
    graph = counting_graph.write(tmp_path / "model.onnx", page_tokens=PAGE)
    asked = [
        Prompt([1, 2, 3], Sampling(seed=1, temperature=0, logit_bias=((7, 100.0),)), 4),
        Prompt([4, 5], Sampling(seed=2, temperature=0.7), 4, top_logprobs=3),
        Prompt([6], Sampling(seed=3, temperature=0.7), 4, watch=lambda _: Allowing([11, 12])),
        Prompt([6, 7], Sampling(seed=4, temperature=5.0, top_p=0.9), 4, choices=3),
        Prompt([8], Sampling(seed=5, temperature=5.0, top_k=5), 4),
        Prompt([9], GREEDY, 4, watch=lambda _: Allowing([])),
    ]
    answers = []
    for draws_there in (True, False):
        with Engine(opened(graph, draws_there=draws_there), KNOBS) as engine:
            futures = [engine.submit(prompt) for prompt in asked]
            answers.append([future.result(60) for future in futures])
    assert answers[0] == answers[1]
    assert answers[0][0][0].token_ids == (7,) * 4
    assert set(answers[0][2][0].token_ids) <= {11, 12}


class Allowing:
    """A watcher that allows some tokens, or with none of them any."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def mask(self) -> Mask | None:
        if not self._token_ids:
            return None
        words = np.zeros(2, np.uint32)
        for token in self._token_ids:
            words[token // 32] |= np.uint32(1 << token % 32)
        return words

    def forced(self) -> list[int]:
        return []

    def accept(self, token_id: int) -> bool:
        return True

    def finish(self) -> None:
        pass


def test_things_lie_apart_and_aligned() -> None:
    assert aligned([1, 256, 257, 0]) == [0, 256, 512, 1024, 1024]
