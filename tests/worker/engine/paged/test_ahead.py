"""Steps that begin before the tokens of the one before are read: nothing in the answers tells of it."""

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.paged import counting_graph, opened
from tests.worker.engine.paged.counting_graph import VOCABULARY, following
from tests.worker.engine.paged.fake_card import Card, ort_session, paged_session, runner_on
from tests.worker.engine.test_forced import prompt_of
from worker.engine import Completion, Engine, EngineFailed, EngineSettings, EngineStopped, Prompt, Sampling, lengths
from worker.engine.errors import OutOfMemory
from worker.engine.paged.occupancy import Room
from worker.engine.paged.ort_session import PageLayout
from worker.engine.paged.packing import PackedRun
from worker.engine.paged.paged_runner import PagedRunner
from worker.engine.paged.session import Fill
from worker.engine.runner import Span
from worker.engine.sampling import Mask
from worker.engine.softmax import Ids

PAGE, CONTEXT, SLOTS = 4, 40, 6
KNOBS = EngineSettings(context_tokens_max=CONTEXT, slots_max=SLOTS, chunk_tokens=32)
LAYOUT = PageLayout(layers=1, kv_heads=1, head_size=1, tokens=PAGE, element_bytes=4)
GREEDY = Sampling(seed=0, temperature=0)
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return counting_graph.write(tmp_path_factory.mktemp("ahead") / "model.onnx", page_tokens=PAGE).read_bytes()


def counting(graph: bytes, card: Card, *, pages: int = 0, stages: int = 3) -> PagedRunner:
    """The model that shows one misplaced token, on a card."""
    room = Room(pages or 1 + (stages + SLOTS) * 10, PAGE, stages, SLOTS, CONTEXT)
    return runner_on(card, ort_session(card, graph, is_model=True), LAYOUT, room, KNOBS)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine expects answers to be so short that it lets too many rows in."""
    monkeypatch.setattr(lengths, "_FIRST_GUESS", 1.0)


def short_of_memory(runner: PagedRunner, tokens_max: int) -> PagedRunner:
    """A runner whose steps of more rows find no memory, nor those of eight times as many tokens of prompts."""
    run = runner._session.run

    def short(packed: PackedRun, fill: Fill | None = None) -> Ids:
        if len(packed.input_ids) > (tokens_max if packed.is_captured else 8 * tokens_max):
            raise OutOfMemory("scripted")
        return run(packed, fill)

    runner._session.run = short  # type: ignore[method-assign]
    return runner


def answers(runner: PagedRunner, prompts: Sequence[Prompt], knobs: EngineSettings = KNOBS) -> list[list[Completion]]:
    with Engine(runner, knobs) as engine:
        futures = [engine.submit(prompt) for prompt in prompts]
        found = [future.result(PATIENCE_SECONDS) for future in futures]
        assert engine.submit(Prompt([1], GREEDY, 3)).result(PATIENCE_SECONDS), "something was left behind"
    return found


class Watching:
    """Allows what is below a limit that moves with each token, or all; ends with a token, or never."""

    def __init__(self, limit: int | None, last: int | None) -> None:
        self._limit, self._last = limit, last
        self._seen = 0

    def mask(self) -> Mask | None:
        if self._limit is None:
            return None
        allowed = np.zeros(64, np.uint8)
        allowed[: 1 + (self._limit + 7 * self._seen) % VOCABULARY] = 1
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def accept(self, token_id: int) -> bool:
        self._seen += 1
        return token_id != self._last

    def forced(self) -> Sequence[int]:
        return ()

    def finish(self) -> None:
        pass


def expected(prompt: Prompt) -> list[tuple[int, ...]]:
    """What the model writes, said plainly: each choice, without an engine."""
    found = []
    for choice in range(prompt.choices):
        watcher = prompt.watch(choice) if prompt.watch else None
        text, written = [int(token) for token in prompt.token_ids], []
        while len(written) < (prompt.tokens_max or 0) and len(text) < CONTEXT:
            logits = np.zeros(VOCABULARY)
            logits[following(text)] = 1
            for token, bias in prompt.sampling.logit_bias:
                logits[token] += bias
            if len(written) < prompt.tokens_min:
                logits[list(prompt.stop_token_ids)] = -np.inf
            for token in set(written):
                logits[token] -= written.count(token) * prompt.sampling.frequency_penalty
            mask = watcher.mask() if watcher else None
            if mask is not None:
                bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCABULARY]
                logits[bits == 0] = -np.inf
            token = int(logits.argmax())
            if token in prompt.stop_token_ids:
                break
            text.append(token)
            written.append(token)
            if watcher and not watcher.accept(token):
                break
        found.append(tuple(written))
    return found


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    tokens = st.integers(0, VOCABULARY - 1)
    sampling = Sampling(
        seed=0,
        temperature=0,
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.75])),
        logit_bias=tuple(draw(st.dictionaries(tokens, st.sampled_from([-2.0, 0.5, 1.25]), max_size=3)).items()),
    )
    limit, last = draw(st.none() | tokens), draw(st.none() | tokens)
    return Prompt(
        draw(st.lists(tokens, min_size=1, max_size=30)),
        sampling,
        tokens_max=draw(st.integers(1, 25)),
        tokens_min=draw(st.sampled_from([0, 0, 4])),
        choices=draw(st.integers(1, 3)),
        stop_token_ids=frozenset(draw(st.sets(tokens, max_size=4))),
        top_logprobs=draw(st.sampled_from([None, None, 0, 3, 30])),
        watch=draw(st.sampled_from([None, lambda _: Watching(limit, last)])),
    )


@settings(max_examples=15)
@given(
    st.lists(prompts(), min_size=1, max_size=10),
    st.sampled_from([0, 1 + 4 * 10 + 2]),
    st.integers(1, 12),
    st.sampled_from([100, 100, 2]),
)
def test_every_choice_reads_as_if_it_were_written_alone_and_step_by_step(
    graph: bytes, asked: list[Prompt], pages: int, chunk_tokens: int, tokens_max: int
) -> None:
    """With rows that end in all ways at all times, changed logits, masks, rows that have to leave, and steps that find
    no memory.
    """
    runner = short_of_memory(counting(graph, Card(), pages=pages), tokens_max)
    found = answers(runner, asked, replace(KNOBS, chunk_tokens=chunk_tokens))
    assert [[choice.token_ids for choice in choices] for choices in found] == [expected(prompt) for prompt in asked]
    for prompt, choices in zip(asked, found, strict=True):
        for choice in choices:
            assert (choice.logprobs is None) == (prompt.top_logprobs is None)
            assert all(one.logprob < 0 for one in choice.logprobs or ())


def test_a_step_begins_before_the_one_before_has_ended_and_who_ends_by_length_is_in_no_step_too_many(
    graph: bytes,
) -> None:
    card = Card()
    with Engine(counting(graph, card), KNOBS) as engine:
        [choice] = engine.submit(Prompt([1, 2, 3], GREEDY, 12)).result(PATIENCE_SECONDS)
        steps = engine.progress.steps
    assert len(choice.token_ids) == 12
    assert card.ahead_max == 2
    assert steps == card.models_begun == 12


def test_who_ends_otherwise_is_in_one_step_too_many_whose_pages_serve_others(graph: bytes) -> None:
    text = [1, 2, 3]
    for _ in range(6):
        text.append(following(text))
    stop = text[-1]
    assert stop not in text[3:-1]
    card = Card()
    with Engine(counting(graph, card, pages=1 + 4 * 10 + 2), KNOBS) as engine:
        asked = [Prompt([1, 2, 3], GREEDY, 30, stop_token_ids=frozenset({stop})) for _ in range(20)]
        for future in [engine.submit(prompt) for prompt in asked]:
            [choice] = future.result(PATIENCE_SECONDS)
            assert list(choice.token_ids) == text[3:-1]
            assert choice.output_tokens == 6
        assert engine.progress.output_tokens == 20 * 6
    assert engine.progress.running == 0


def test_a_choice_that_has_ended_stays_as_it_is_while_another_of_its_prompt_goes_on(graph: bytes) -> None:
    text = expected(Prompt([7], GREEDY, 20))[0]
    assert len({*text[:4]}) == 4
    lasts = [text[1], None, text[3]]
    asked = Prompt([7], GREEDY, 20, choices=3, watch=lambda choice: Watching(None, lasts[choice]))
    [choices] = answers(counting(graph, Card()), [asked])
    assert [choice.token_ids for choice in choices] == [text[:2], text, text[:4]]


def test_tokens_that_can_only_follow_go_into_a_step_that_did_not_know_of_them(tmp_path: Path) -> None:
    model = opened.write(tmp_path)
    form = [None, *range(10, 35), None, None, *range(30, 34), *[None] * 8]
    found = []
    for tells in (False, True):
        asked = [prompt_of(form, tells=tells, seed=seed, sampling=GREEDY) for seed in range(5)]
        found.append(
            [[one.token_ids for one in choices] for choices in answers(tiny(model, Card()), asked, TINY_KNOBS)]
        )
    assert found[0] == found[1]


TINY_KNOBS = EngineSettings(threads=1, context_tokens_max=opened.CONTEXT, slots_max=8, chunk_tokens=64)
TINY_LAYOUT = PageLayout(layers=2, kv_heads=2, head_size=16, tokens=opened.PAGE, element_bytes=4)


def tiny(model: Path, card: Card, pages: int = 0) -> PagedRunner:
    """A whole little model on a card."""
    room = opened.room(stages=3, pages=pages)
    return runner_on(card, paged_session(card, model, room), TINY_LAYOUT, room, TINY_KNOBS)


@pytest.mark.parametrize("pages", [0, 1 + 4 * 6 + 2])
def test_a_model_writes_what_it_writes_where_each_token_is_waited_for(tmp_path: Path, pages: int) -> None:
    """Drawn in all ways, also in one of which the card is mostly not sure: its tokens are drawn here, from logits that
    others have replaced by then, and go into the next step instead of what the card had.
    """
    model = opened.write(tmp_path)
    random = np.random.default_rng(5)
    ways = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 30.0, "top_p": 0.999},
        {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.3},
        {"temperature": 0.9, "top_k": 258, "logit_bias": ((4, 2.0), (9, -3.0))},
        {"temperature": 1.0, "min_p": 0.01},
    ]
    asked = [
        Prompt(
            random.integers(0, 250, random.integers(1, 60)),
            Sampling(seed=number, **ways[number % len(ways)]),  # type: ignore[arg-type]
            14,
            choices=1 + number % 2,
            top_logprobs=[None, 2, 25][number % 3],
        )
        for number in range(18)
    ]
    card = Card()
    runner = tiny(model, card, pages)
    rewound: list[int] = []
    rewind = runner.rewind
    runner.rewind = lambda row: (rewound.append(row), rewind(row))[1]  # type: ignore[method-assign]
    ahead = answers(runner, asked, TINY_KNOBS)
    plain = answers(opened.opened(model, opened.room(stages=3)).runner, asked, TINY_KNOBS)
    for mine, theirs in zip(ahead, plain, strict=True):
        assert [one.token_ids for one in mine] == [one.token_ids for one in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert [token.logprob for token in one.logprobs or ()] == pytest.approx(
                [token.logprob for token in other.logprobs or ()], abs=1e-3
            )
    assert card.ahead_max == 2
    assert len(rewound) > 10


class Gated(Card):
    """Begins the runs of models only while its gate is open."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(fails_at)
        self.gate, self.reached = Event(), Event()
        self.closed_from = 10**9

    def begin_model(self, action: Callable[[], None]) -> None:
        if self.models_begun == self.closed_from:
            self.reached.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        super().begin_model(action)


def test_who_is_cancelled_while_a_token_is_drawn_leaves_and_others_go_on(graph: bytes) -> None:
    card = Gated()
    card.closed_from = 9
    with Engine(counting(graph, card), KNOBS) as engine:
        gone = [engine.submit(Prompt([number], GREEDY, 30, choices=2)) for number in (1, 2)]
        stays = engine.submit(Prompt([3, 4], GREEDY, 30))
        assert card.reached.wait(PATIENCE_SECONDS)
        assert all(future.cancel() for future in gone)
        late = engine.submit(Prompt([5, 6], GREEDY, 20))
        card.gate.set()
        for future, prompt, tokens in ((stays, [3, 4], 30), (late, [5, 6], 20)):
            assert future.result(PATIENCE_SECONDS)[0].token_ids == expected(Prompt(prompt, GREEDY, tokens))[0]
        assert engine.is_alive
        assert engine.progress.running == 0


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_a_card_that_fails_in_a_step_that_has_begun_fails_all_who_are_in_flight(graph: bytes, fails_at: int) -> None:
    card = Card(fails_at)
    runner = counting(graph, card)
    with Engine(runner, KNOBS) as engine:
        futures = [engine.submit(Prompt([number], GREEDY, 30)) for number in range(9)]
        wait(futures, PATIENCE_SECONDS)
        assert not engine.is_alive
    for future in futures:
        with pytest.raises(EngineFailed, match="illegal memory access"):
            future.result(0)


def test_an_engine_that_is_stopped_with_a_step_in_flight_lets_it_end_and_hangs_nobody(graph: bytes) -> None:
    card = Gated()
    card.closed_from = 8
    engine = Engine(counting(graph, card), KNOBS)
    engine.start()
    futures = [engine.submit(Prompt([number], GREEDY, 39)) for number in range(4)]
    assert card.reached.wait(PATIENCE_SECONDS)
    card.gate.set()
    engine.stop()
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(0)
    assert card.is_closed
    assert card.models_ended == card.models_begun


def test_who_ends_with_a_token_that_is_drawn_while_rows_have_to_leave_does_not_come_back(graph: bytes) -> None:
    """For want of memory, and for want of pages; whichever token it is."""
    for last in range(8):
        asked = [Prompt([number, 1], GREEDY, 20) for number in range(6)]
        ends = [frozenset(expected(prompt)[0][last : last + 1]) for prompt in asked]
        asked = [replace(prompt, stop_token_ids=stop) for prompt, stop in zip(asked, ends, strict=True)]
        for runner in (short_of_memory(counting(graph, Card()), 2), counting(graph, Card(), pages=1 + 4 * 10)):
            found = answers(runner, asked)
            assert [[one.token_ids for one in choices] for choices in found] == [expected(prompt) for prompt in asked]


def test_what_is_sent_from_the_host_is_not_overwritten_before_it_has_arrived(graph: bytes) -> None:
    """Many runs without anybody who waits for one."""
    card = Card()
    runner = counting(graph, card)
    text = np.arange(1, 31)
    for start in range(0, 30, 2):
        runner.step([Span(0, start, text[start : start + 2], ends_prompt=start == 28)], [])
    rows = runner.step([Span(0, 29, text[29:], ends_prompt=True)], [])
    assert card.ahead_max <= 3
    assert rows.fetch([0]).argmax() == following(text.tolist())  # type: ignore[union-attr]
