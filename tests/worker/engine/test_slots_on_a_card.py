"""Slots on a card in Python on which nothing happens before it is waited for: answers are those of a CPU."""

from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny_model
from tests.worker.engine.paged.fake_card import Binding, Bound, Card, CardSession, ort_session, sampler_on
from tests.worker.engine.paged.test_ahead import (
    CONTEXT,
    GREEDY,
    KNOBS,
    PATIENCE_SECONDS,
    SLOTS,
    Gated,
    Watching,
    answers,
    expected,
    prompts,
)
from tests.worker.engine.test_forced import prompt_of
from worker.engine import Completion, Engine, EngineFailed, EngineSettings, EngineStopped, Prompt, Sampling, lengths
from worker.engine import session as sessions
from worker.engine.device.cuda_memory import DeviceFacts
from worker.engine.device.gpu import GpuUnusable
from worker.engine.device.logits import DeviceLogits
from worker.engine.device.sampler_graph import FLOAT
from worker.engine.errors import OutOfMemory, OutOfSlots
from worker.engine.loading import open_runner
from worker.engine.paged import opening
from worker.engine.runner import Span
from worker.engine.settings import Device
from worker.engine.slot_ports import DevicePorts, HostPorts
from worker.engine.slot_runner import SlotRunner
from worker.engine.slots import DeviceSlots, Layout
from worker.model import ModelFolder, Precision, onnx_file

STAGES = 3
COUNTING = 50
"""The vocabulary of the model that shows one misplaced token: as `counting_graph` has it."""
TOTAL = "total_sequence_length"
TINY_KNOBS = EngineSettings(threads=1, context_tokens_max=96, slots_max=8, stages=STAGES, chunk_tokens=64)


class _Arguments:
    """A session has some, which nobody asks for here."""

    get_inputs = get_outputs = None


def count(inputs: dict[str, Bound], outputs: dict[str, Bound]) -> None:
    """A model in numpy that computes as GroupQueryAttention is used: the token that follows is the sum of all ids, each
    times its position, read back from the slots.
    """
    assert {name for name, one in inputs.items() if one.device == "cpu"} == {TOTAL}
    ids, ends = inputs["input_ids"].array(), inputs["seqlens_k"].array() + 1
    key, value = (inputs[f"past_key_values.0.{part}"].array()[:, 0, :, 0] for part in ("key", "value"))
    assert inputs["past_key_values.0.key"].address == outputs["present.0.key"].address
    assert inputs[TOTAL].array() == ends.max()
    rows, new = ids.shape
    assert rows == 1 or new == 1, "a piece with a past goes alone"
    assert len(inputs["logits_indices"].array()), "a card starts no kernel over nothing"
    for row, end in enumerate(ends.tolist()):
        key[row, end - new : end] = ids[row]
        value[row, end - new : end] = np.arange(end - new, end) + 1
    logits = outputs["logits"].array()
    for line, wanted in zip(logits, inputs["logits_indices"].array().tolist(), strict=True):
        row, place = divmod(wanted, new)
        end = int(ends[row]) - new + place + 1
        line[:] = np.arange(COUNTING) == int(key[row, :end] @ value[row, :end]) % COUNTING


class Short(CardSession):
    """Runs of more rows than `rows_max` find no memory, nor those of eight times as many tokens of a prompt."""

    rows_max = 10**9

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        rows, new = binding.inputs["input_ids"].shape
        if rows > self.rows_max or new > 8 * self.rows_max:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 939524096")
        super().run_with_iobinding(binding, options)


def counting(card: Card, *, rows_max: int = 10**9) -> SlotRunner:
    session = Short(card, count, _Arguments, is_model=True)
    session.rows_max = rows_max
    layout = Layout(layers=1, kv_heads=1, head_size=1, length=CONTEXT, element=np.dtype(np.float32))
    return runner_on(card, session, layout, SLOTS, COUNTING)


def runner_on(card: Card, session: CardSession, layout: Layout, slots: int, vocabulary: int) -> SlotRunner:
    """A runner as it is opened on a card."""
    count = slots + STAGES
    logits = DeviceLogits(card, count, vocabulary, FLOAT)
    ports = DevicePorts(card, logits, sampler_on(card, logits.place), {TOTAL})
    return SlotRunner(session, DeviceSlots(layout, count, card), ports, STAGES, vocabulary)  # type: ignore[arg-type]


def tiny(model: ModelFolder, card: Card) -> SlotRunner:
    """A whole little model on a card."""
    content = onnx_file.load(model.graph_path).SerializeToString()
    element = np.dtype(model.manifest.precision.dtype)
    layout = Layout(layers=2, kv_heads=2, head_size=16, length=TINY_KNOBS.context_tokens_max, element=element)
    session = ort_session(card, content, is_model=True)
    return runner_on(card, session, layout, TINY_KNOBS.slots_max, model.spec.vocabulary)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine expects answers to be so short that it lets too many rows in."""
    monkeypatch.setattr(lengths, "_FIRST_GUESS", 1.0)


@settings(max_examples=15)
@given(
    st.lists(prompts(), min_size=1, max_size=10),
    st.integers(1, 12),
    st.sampled_from([100, 100, 2]),
)
def test_every_choice_reads_as_if_it_were_written_alone_and_step_by_step(
    asked: list[Prompt], chunk_tokens: int, rows_max: int
) -> None:
    """With rows that end in all ways at all times, changed logits, masks, and steps that find no memory."""
    runner = counting(Card(), rows_max=rows_max)
    found = answers(runner, asked, replace(KNOBS, chunk_tokens=chunk_tokens))  # type: ignore[arg-type]
    assert [[choice.token_ids for choice in choices] for choices in found] == [expected(prompt) for prompt in asked]
    for prompt, choices in zip(asked, found, strict=True):
        for choice in choices:
            assert (choice.logprobs is None) == (prompt.top_logprobs is None)
            assert all(one.logprob < 0 for one in choice.logprobs or ())


def test_a_step_begins_before_the_one_before_has_ended_and_who_ends_by_length_is_in_no_step_too_many() -> None:
    card = Card()
    with Engine(counting(card), KNOBS) as engine:
        [choice] = engine.submit(Prompt([1, 2, 3], GREEDY, 12)).result(PATIENCE_SECONDS)
        steps = engine.progress.steps
    assert len(choice.token_ids) == 12
    assert card.ahead_max == 2
    assert steps == card.models_begun == 12


WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 30.0, "top_p": 0.999},
    {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.3},
    {"temperature": 0.9, "top_k": 258, "logit_bias": ((4, 2.0), (9, -3.0))},
    {"temperature": 1.0, "min_p": 0.01},
]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_model_writes_what_it_writes_where_each_token_is_waited_for(tmp_path: Path, precision: Precision) -> None:
    """Drawn in all ways, also in one of which the card is mostly not sure: its tokens are drawn here, from logits that
    others have replaced by then, and go into the next step instead of what the card had.
    """
    model = tiny_model.write(tmp_path / "tiny", precision=precision)
    random = np.random.default_rng(5)
    asked = [
        Prompt(
            random.integers(0, 250, random.integers(1, 60)),
            Sampling(seed=number, **WAYS[number % len(WAYS)]),
            14,
            choices=1 + number % 2,
            top_logprobs=[None, 2, 25][number % 3],
            watch=[None, lambda _: Watching(30, 11)][number // 2 % 2],
        )
        for number in range(24)
    ]
    card = Card()
    runner = tiny(model, card)
    rewound: list[int] = []
    rewind = runner.rewind
    runner.rewind = lambda row: (rewound.append(row), rewind(row))[1]  # type: ignore[method-assign]
    ahead, plain = written(runner, asked), written(on_host(model), asked)
    for mine, theirs in zip(ahead, plain, strict=True):
        assert [one.token_ids for one in mine] == [one.token_ids for one in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert [token.logprob for token in one.logprobs or ()] == pytest.approx(
                [token.logprob for token in other.logprobs or ()], abs=1e-3
            )
    assert card.ahead_max == 2
    assert len(rewound) > 10


def on_host(model: ModelFolder) -> SlotRunner:
    runner = open_runner(model, replace(TINY_KNOBS, device=Device.CPU))
    assert isinstance(runner, SlotRunner)
    return runner


def written(runner: SlotRunner, asked: Sequence[Prompt]) -> list[list[Completion]]:
    return answers(runner, asked, TINY_KNOBS)  # type: ignore[arg-type]


def test_tokens_that_can_only_follow_go_into_a_step_that_did_not_know_of_them(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path / "tiny")
    form = [None, *range(10, 35), None, None, *range(30, 34), *[None] * 8]
    asked = [prompt_of(form, tells=True, seed=seed, sampling=GREEDY) for seed in range(5)]
    again = [prompt_of(form, tells=True, seed=seed, sampling=GREEDY) for seed in range(5)]
    found, plain = written(tiny(model, Card()), asked), written(on_host(model), again)
    assert [[one.token_ids for one in choices] for choices in found] == [
        [one.token_ids for one in choices] for choices in plain
    ]


def test_only_ids_and_what_was_asked_for_come_back_from_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and masked rows, with and without log-probabilities."""
    monkeypatch.setattr(DeviceLogits, "_fetched", lambda *_: pytest.fail("logits came to the host"))
    asked = [Prompt([number, 7], GREEDY, 20, top_logprobs=[None, 5][number % 2]) for number in range(6)]
    asked.append(Prompt([9], GREEDY, 20, watch=lambda _: Watching(5, None)))
    found = answers(counting(Card()), asked)  # type: ignore[arg-type]
    assert [[choice.token_ids for choice in choices] for choices in found] == [expected(prompt) for prompt in asked]


def test_who_is_cancelled_while_a_token_is_drawn_leaves_and_others_go_on() -> None:
    card = Gated()
    card.closed_from = 9
    with Engine(counting(card), KNOBS) as engine:
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


@pytest.mark.parametrize("fails_at", [0, 1, 5, 12])
def test_a_card_that_fails_in_a_step_that_has_begun_fails_all_who_are_in_flight(fails_at: int) -> None:
    card = Card(fails_at)
    with Engine(counting(card), KNOBS) as engine:
        futures = [engine.submit(Prompt([number], GREEDY, 30)) for number in range(9)]
        wait(futures, PATIENCE_SECONDS)
        assert not engine.is_alive
    for future in futures:
        with pytest.raises(EngineFailed, match="illegal memory access"):
            future.result(0)
    assert card.is_closed


def test_an_engine_that_is_stopped_with_a_step_in_flight_lets_it_end_and_hangs_nobody() -> None:
    card = Gated()
    card.closed_from = 8
    engine = Engine(counting(card), KNOBS)
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


def test_a_prompt_and_rows_in_one_step_have_logits_of_their_own() -> None:
    runner = counting(Card())
    for row in range(2):
        runner.step([Span(0, 0, np.array([row, 5]), ends_prompt=True)], [])
        runner.place(0, 2)
    rows = runner.step([Span(1, 0, np.array([4]), ends_prompt=True)], [9, 8])
    expected_ids = [4, (5 * 2 + 9 * 3) % COUNTING, (1 + 5 * 2 + 8 * 3) % COUNTING]
    assert rows.fetch([0, 1, 2]).argmax(axis=1).tolist() == expected_ids  # type: ignore[union-attr]


def test_a_step_without_memory_leaves_the_rows_as_they_were() -> None:
    card = Card()
    runner = counting(card, rows_max=2)
    for row in range(3):
        runner.step([Span(0, 0, np.array([row, 5]), ends_prompt=True)], [])
        assert runner.place(0, 2) == row
    with pytest.raises(OutOfMemory):
        runner.step([], [7, 8, 9])
    runner.remove(0)
    logits = runner.step([], [9, 8]).fetch([0, 1])  # type: ignore[union-attr]
    assert logits.argmax(axis=1).tolist() == [(2 + 5 * 2 + 9 * 3) % COUNTING, (1 + 5 * 2 + 8 * 3) % COUNTING]


def test_where_a_card_has_no_memory_to_draw_tokens_are_drawn_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    runner = counting(Card())

    def refuse(*_: object) -> None:
        raise OutOfMemory("scripted")

    runner._ports._sampler._graphs.begin = lambda: None  # type: ignore[attr-defined]
    runner._ports._sampler._draw = refuse  # type: ignore[attr-defined]
    asked = [Prompt([number], GREEDY, 9, top_logprobs=[None, 3][number % 2]) for number in range(8)]
    found = answers(runner, asked)  # type: ignore[arg-type]
    assert [[choice.token_ids for choice in choices] for choices in found] == [expected(prompt) for prompt in asked]
    assert "tokens are drawn on the host" in caplog.text


def test_what_is_sent_from_the_host_is_not_overwritten_before_it_has_arrived() -> None:
    """Many runs without anybody who waits for one."""
    card = Card()
    runner = counting(card)
    text = np.arange(1, 31)
    for start in range(0, 30, 2):
        runner.step([Span(0, start, text[start : start + 2], ends_prompt=start == 28)], [])
    rows = runner.step([Span(0, 29, text[29:], ends_prompt=True)], [])
    assert card.ahead_max <= 3
    whole = sum(token * place for place, token in enumerate(text.tolist(), 1))
    assert rows.fetch([0]).argmax() == whole % COUNTING  # type: ignore[union-attr]


@dataclass(frozen=True)
class Place:
    """As ONNX Runtime's `OrtMemoryInfo`, as far as it is read."""

    name: str


class FreeCard(Card):
    """The driver tells how much is free."""

    facts = DeviceFacts((7, 5), 2**28, 2**30)


def open_on(card: Card, monkeypatch: pytest.MonkeyPatch, *on_host: str) -> None:
    """Let sessions be opened on a card; they read these inputs on the host."""

    def open_session(graph: Path | bytes, *_: object, captures: bool) -> CardSession:
        assert not captures
        is_model = isinstance(graph, Path)
        content = onnx_file.load(graph).SerializeToString() if isinstance(graph, Path) else graph
        session = ort_session(card, content, is_model=is_model)
        names = [argument.name for argument in session.get_inputs()]
        places = [Place("Cpu" if name in on_host else "Cuda") for name in names]
        session.get_input_memory_infos = lambda: places  # type: ignore[attr-defined]
        return session

    monkeypatch.setattr("worker.engine.device.gpu.open_memory", lambda **_: card)
    monkeypatch.setattr("worker.engine.device.gpu.open_session", open_session)


ON_CUDA = replace(TINY_KNOBS, device=Device.CUDA)


def test_a_model_in_fp16_is_opened_on_the_card_with_all_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = FreeCard()
    open_on(card, monkeypatch, TOTAL)
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    asked = [Prompt([number, 3, 5], Sampling(seed=number, **WAYS[number % 2]), 10) for number in range(10)]
    runner = open_runner(model, ON_CUDA)
    assert isinstance(runner, SlotRunner)
    assert (runner.slots, runner.stages) == (TINY_KNOBS.slots_max, STAGES)
    assert written(runner, asked) == written(on_host(model), asked)
    assert card.ahead_max == 2
    assert card.is_closed


def test_a_graph_that_wants_its_ids_on_the_host_has_its_logits_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on(FreeCard(), monkeypatch, TOTAL, "input_ids")
    runner = open_runner(tiny_model.write(tmp_path / "tiny", precision=Precision.FP16), ON_CUDA)
    assert isinstance(runner, SlotRunner)
    assert isinstance(runner._ports, HostPorts)


def test_slots_are_as_many_as_fit_into_what_a_card_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    taken = int(2**30 * 0.06) + opening.run_bytes(model.spec, ON_CUDA)
    slot_bytes = 2 * 2 * 2 * 16 * TINY_KNOBS.context_tokens_max * 2
    card = FreeCard()
    card.facts = DeviceFacts((7, 5), taken + 7 * slot_bytes, 2**30)
    open_on(card, monkeypatch, TOTAL)
    assert open_runner(model, ON_CUDA).slots == 7 - STAGES
    card.facts = DeviceFacts((7, 5), taken + slot_bytes - 1, 2**30)
    with pytest.raises(GpuUnusable, match=r"it has 24,575 bytes left.*texts of 96 tokens.*nvidia-smi"):
        open_runner(model, ON_CUDA)
    with pytest.raises(OutOfSlots):
        open_runner(model, replace(ON_CUDA, kv_bytes_max=1))


@pytest.mark.parametrize("free_bytes", [0, 275_000])
def test_a_card_without_room_for_slots_or_logits_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    class Full(FreeCard):
        free_bytes = 0

        def allocate(self, size_bytes: int) -> int:
            self.free_bytes -= size_bytes
            if self.free_bytes < 0:
                raise OutOfMemory("scripted")
            return super().allocate(size_bytes)

    card = Full()
    card.free_bytes = free_bytes
    open_on(card, monkeypatch, TOTAL)
    with pytest.raises(GpuUnusable, match="its memory is taken"):
        open_runner(tiny_model.write(tmp_path / "tiny", precision=Precision.FP16), ON_CUDA)


def test_a_session_tells_which_inputs_it_reads_on_the_host(tmp_path: Path) -> None:
    """On a CPU all of them: there, nothing is sent anywhere."""
    model = tiny_model.write(tmp_path / "tiny")
    session = sessions.open_session(model.graph_path, threads=1)
    assert sessions.inputs_on_host(session) == {argument.name for argument in session.get_inputs()}
