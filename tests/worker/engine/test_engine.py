"""The engine's promises at `submit`, over a runner that writes from a script."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.fake_runner import VOCABULARY, FakeRunner, reference, scramble
from worker.engine import (
    Completion,
    Engine,
    EngineFailed,
    EngineSettings,
    EngineStopped,
    FinishReason,
    NothingToSample,
    Prompt,
    PromptRefused,
    PromptTooLong,
    Sampling,
    allowance,
)
from worker.engine.sampling import Mask

GREEDY = Sampling(seed=0, temperature=0)
PATIENCE_SECONDS = 30
SMALL_PIECES = EngineSettings(chunk_tokens=8)

Ask = Callable[..., Prompt]


def greedy(token_ids: Sequence[int], tokens_max: int | None = 5, **rest: object) -> Prompt:
    return Prompt(token_ids=token_ids, sampling=GREEDY, tokens_max=tokens_max, **rest)  # type: ignore[arg-type]


def answer(future: Future[list[Completion]]) -> list[Completion]:
    return future.result(timeout=PATIENCE_SECONDS)


@contextmanager
def running(runner: FakeRunner, knobs: EngineSettings = SMALL_PIECES) -> Iterator[Engine]:
    with Engine(runner, knobs) as engine:
        yield engine
    assert runner.is_closed


class Watching:
    """A watcher that notes what it is asked, wants no more after `tokens`, and raises where it is told to."""

    def __init__(self, tokens: int = 99, allowed: Sequence[int] | None = None, raise_in: str | None = None) -> None:
        self.seen: list[int] = []
        self.finishes = 0
        self._tokens = tokens
        self._allowed = allowed
        self._raise_in = raise_in

    def mask(self) -> Mask | None:
        self._maybe_raise("mask")
        if self._allowed is None:
            return None
        bits = np.zeros(64, np.uint8)
        bits[list(self._allowed)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token_id: int) -> bool:
        self.seen.append(token_id)
        self._maybe_raise("accept")
        return len(self.seen) < self._tokens

    def forced(self) -> Sequence[int]:
        return ()

    def finish(self) -> None:
        self.finishes += 1
        self._maybe_raise("finish")

    def _maybe_raise(self, where: str) -> None:
        if where == self._raise_in:
            raise LookupError(f"scripted failure in {where}")


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[tuple[int, ...], int, int]]:
    prompt = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple)
    return draw(st.lists(st.tuples(prompt, st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=15))


@settings(deadline=None, max_examples=60)
@given(workloads(), st.data())
def test_every_choice_of_every_prompt_reads_as_if_it_were_written_alone(
    workload: list[tuple[tuple[int, ...], int, int]], data: st.DataObject
) -> None:
    """Also where the cache is so small that rows must go back to the line."""
    runner = FakeRunner(
        slots=data.draw(st.integers(1, 5), "slots"),
        stages=data.draw(st.integers(1, 4), "stages"),
        spans_max=data.draw(st.integers(1, 4), "spans_max"),
        mixes=data.draw(st.booleans(), "mixes"),
        pages=data.draw(st.integers(13, 30), "pages"),
    )
    with running(runner, EngineSettings(chunk_tokens=data.draw(st.integers(1, 12), "chunk"))) as engine:
        futures = [
            engine.submit(greedy(token_ids, tokens_max, choices=choices)) for token_ids, tokens_max, choices in workload
        ]
        for (token_ids, tokens_max, choices), future in zip(workload, futures, strict=True):
            expected = reference(token_ids, tokens_max)
            assert [choice.token_ids for choice in answer(future)] == [expected] * choices


@settings(deadline=None, max_examples=30)
@given(workloads(), st.integers(2, 8))
def test_steps_that_find_no_memory_are_made_smaller_and_no_answer_suffers(
    workload: list[tuple[tuple[int, ...], int, int]], step_tokens: int
) -> None:
    runner = FakeRunner(slots=8, spans_max=3, stages=3, step_tokens=step_tokens)
    with running(runner, EngineSettings(chunk_tokens=20)) as engine:
        futures = [engine.submit(greedy(ids, tokens_max, choices=choices)) for ids, tokens_max, choices in workload]
        for (token_ids, tokens_max, choices), future in zip(workload, futures, strict=True):
            assert [choice.token_ids for choice in answer(future)] == [reference(token_ids, tokens_max)] * choices


def test_who_is_waited_for_enters_while_a_batch_fills_the_engine() -> None:
    runner = FakeRunner(slots=64)
    runner.gate.clear()
    with running(runner) as engine:
        batch = [engine.submit(greedy((1, number % 50), 30, priority=100)) for number in range(200)]
        urgent = engine.submit(greedy((2, 3), 2, priority=0))
        runner.gate.set()
        answer(urgent)
        assert not any(future.done() for future in batch[60:])
        for future in batch:
            answer(future)
    assert runner.fullest <= 63


def test_an_engine_takes_its_full_load_again_after_it_ran_out_of_memory_and_of_work() -> None:
    runner = FakeRunner(slots=6, step_tokens=5)
    with running(runner, EngineSettings(chunk_tokens=4)) as engine:
        for _ in range(2):
            runner.fullest = 0
            answer(engine.submit(greedy((1, 2, 3), 9, choices=6)))
            assert runner.fullest == 6


def test_an_engine_that_never_rests_takes_its_full_load_again_some_time_after_it_ran_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allowance, "STEPS_BEFORE_MORE", 3)
    fullest_before = []

    def find_memory(text: Sequence[int]) -> int:
        if len(runner.steps) > 10 and runner.step_tokens == 3:
            fullest_before.append(runner.fullest)
            runner.step_tokens = 10**9
        return scramble(text)

    runner = FakeRunner(slots=8, step_tokens=3, script=find_memory)
    with running(runner, EngineSettings(chunk_tokens=4)) as engine:
        for future in [engine.submit(greedy((1, number), 20)) for number in range(40)]:
            answer(future)
    assert fullest_before[0] < runner.fullest == 8


def test_an_engine_that_finds_no_memory_for_a_single_token_fails() -> None:
    with running(FakeRunner(step_tokens=0)) as engine, pytest.raises(EngineFailed, match="scripted"):
        answer(engine.submit(greedy((1, 2, 3), 9)))


def test_a_completion_tells_how_it_ended_and_what_it_cost() -> None:
    text = reference((1, 2, 3), 9)
    stop = text[4]
    assert stop not in text[:4]
    with running(FakeRunner()) as engine:
        [stopped] = answer(engine.submit(greedy((1, 2, 3), 9, stop_token_ids=frozenset({stop}))))
        [cut] = answer(engine.submit(greedy((1, 2, 3), 4, stop_token_ids=frozenset({stop}))))
    assert stopped == Completion(text[:4], FinishReason.STOP, 3, cached_tokens=0, output_tokens=5)
    assert cut == Completion(text[:4], FinishReason.LENGTH, 3, cached_tokens=2, output_tokens=4)


def test_without_a_limit_a_choice_is_written_until_the_context_is_full() -> None:
    with running(FakeRunner(context_tokens=40)) as engine:
        [unlimited] = answer(engine.submit(greedy((1, 2, 3), None)))
        [over] = answer(engine.submit(greedy((1, 2, 3), 1000)))
    assert unlimited.token_ids == over.token_ids == reference((1, 2, 3), 37)
    assert unlimited.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("tokens", [64, 65, 1000])
def test_a_prompt_that_leaves_no_room_is_refused_with_numbers(tokens: int) -> None:
    with running(FakeRunner(context_tokens=64)) as engine:
        with pytest.raises(PromptTooLong) as refusal:
            engine.submit(greedy([1] * tokens))
        assert answer(engine.submit(greedy([1] * 63)))[0].output_tokens == 1
    assert (refusal.value.prompt_tokens, refusal.value.context_tokens) == (tokens, 64)


@pytest.mark.parametrize(
    "prompt",
    [greedy([]), greedy([-1]), greedy([VOCABULARY]), greedy([1], 0), greedy([1], choices=0)],
    ids=["empty", "negative id", "unknown id", "no tokens wanted", "no choices"],
)
def test_a_prompt_that_would_break_the_model_is_refused_at_once(prompt: Prompt) -> None:
    with running(FakeRunner()) as engine, pytest.raises(PromptRefused):
        engine.submit(prompt)


def test_sampled_choices_differ_from_each_other_and_repeat_themselves() -> None:
    prompt = Prompt((5, 6), Sampling(seed=3, temperature=8.0), tokens_max=12, choices=6)
    with running(FakeRunner(slots=3)) as engine:
        alone = answer(engine.submit(prompt))
        others = [engine.submit(greedy([n, n + 1], 7)) for n in range(9)]
        crowded = answer(engine.submit(prompt))
        wait(others, timeout=PATIENCE_SECONDS)
    assert [choice.token_ids for choice in crowded] == [choice.token_ids for choice in alone]
    assert len({choice.token_ids for choice in alone}) == 6


def test_choices_that_share_a_wave_share_one_prefill() -> None:
    runner = FakeRunner(slots=8)
    with running(runner) as engine:
        answer(engine.submit(greedy((1, 2, 3), 4, choices=5)))
    assert runner.steps == [(3, 0), (0, 5), (0, 5), (0, 5)]
    assert engine.progress.prompt_tokens == 3


def test_a_prompt_that_begins_like_another_is_computed_from_where_they_differ() -> None:
    runner = FakeRunner(slots=1, stages=1)
    shared = tuple(range(20))
    with running(runner, EngineSettings(chunk_tokens=100)) as engine:
        answers = [answer(engine.submit(greedy((*shared, 30 + n, 7), 4)))[0] for n in range(3)]
    assert [one.cached_tokens for one in answers] == [0, 20, 20]
    assert [one.token_ids for one in answers] == [reference((*shared, 30 + n, 7), 4) for n in range(3)]
    assert [tokens for tokens, _ in runner.steps if tokens] == [22, 2, 2]


def test_two_groups_that_take_turns_keep_a_stage_each() -> None:
    runner = FakeRunner(slots=2, stages=2)
    groups = (tuple(range(20)), tuple(range(20, 40)))
    engine = Engine(runner, EngineSettings(chunk_tokens=100))
    futures = [engine.submit(greedy((*groups[n % 2], n), 3)) for n in range(12)]
    engine.start()
    engine.stop(drain_seconds=PATIENCE_SECONDS)
    assert sum(answer(future)[0].cached_tokens for future in futures) == 10 * 20


def test_rows_for_which_there_is_no_page_go_back_to_the_line_and_lose_nothing() -> None:
    runner = FakeRunner(slots=4, pages=13)  # four rows of 40 tokens need 40
    with running(runner, EngineSettings(chunk_tokens=100)) as engine:
        wait([engine.submit(greedy((1,), 1)) for _ in range(80)])  # answers are expected to be short from here on
        futures = [engine.submit(greedy((n, n), 38)) for n in range(4)]
        assert [answer(future)[0].token_ids for future in futures] == [reference((n, n), 38) for n in range(4)]
    assert runner.fullest > 1


def test_a_step_that_mixes_writes_rows_while_a_prompt_is_computed() -> None:
    runner = FakeRunner(slots=2, stages=1)
    with running(runner, EngineSettings(chunk_tokens=4)) as engine:
        runner.gate.clear()
        futures = [engine.submit(greedy((1, 2), 9)), engine.submit(greedy([3] * 20, 1))]
        runner.gate.set()
        wait(futures, timeout=PATIENCE_SECONDS)
    assert runner.steps[1:6] == [(4, 1)] * 5


def test_a_lower_priority_number_enters_first_and_equals_keep_their_order() -> None:
    runner = FakeRunner(slots=1)
    order: list[str] = []
    engine = Engine(runner, SMALL_PIECES)
    for name, priority in [("a", 5), ("b", 5), ("c", 1), ("d", 5), ("e", 1)]:
        future = engine.submit(greedy((1, 2), 3, priority=priority))
        future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    engine.start()
    engine.stop(drain_seconds=PATIENCE_SECONDS)
    assert order == ["c", "e", "a", "b", "d"]


def test_a_watcher_masks_sees_every_token_but_the_stop_token_and_is_told_once_of_the_end() -> None:
    watcher = Watching(allowed=[7])
    ended = Watching(tokens=3)
    text = reference((1, 2, 3), 9)
    stopped = Watching()
    with running(FakeRunner()) as engine:
        [masked] = answer(engine.submit(greedy((1, 2, 3), 4, watch=lambda _: watcher)))
        [wanted] = answer(engine.submit(greedy((1, 2, 3), 9, watch=lambda _: ended)))
        answer(engine.submit(greedy((1, 2, 3), 9, watch=lambda _: stopped, stop_token_ids=frozenset(text[4:5]))))
    assert masked.token_ids == (7, 7, 7, 7)
    assert (wanted.token_ids, wanted.finish_reason) == (text[:3], FinishReason.STOP)
    assert stopped.seen == list(text[:4])
    assert [watcher.finishes, ended.finishes, stopped.finishes] == [1, 1, 1]


def test_each_choice_has_the_watcher_made_for_it() -> None:
    watchers = [Watching(tokens=1), Watching(tokens=3), Watching(tokens=2)]
    with running(FakeRunner()) as engine:
        choices = answer(engine.submit(greedy((4,), 9, choices=3, watch=watchers.__getitem__)))
    assert [len(choice.token_ids) for choice in choices] == [1, 3, 2]


@pytest.mark.parametrize("place", ["mask", "accept", "finish"])
def test_a_watcher_that_raises_fails_its_own_prompt_and_no_other(place: str) -> None:
    broken = Watching(raise_in=place)
    sibling = Watching()
    with running(FakeRunner(slots=3)) as engine:
        failing = engine.submit(greedy((9,), 3, choices=2, watch=[broken, sibling].__getitem__))
        fine = [engine.submit(greedy((n, n), 8)) for n in range(5)]
        with pytest.raises(LookupError, match=place):
            answer(failing)
        assert [answer(future)[0].token_ids for future in fine] == [reference((n, n), 8) for n in range(5)]
        assert engine.is_alive
    assert (broken.finishes, sibling.finishes) == (1, 1)


def test_a_mask_that_allows_nothing_fails_its_own_prompt_and_no_other() -> None:
    with running(FakeRunner()) as engine:
        failing = engine.submit(greedy((9,), 3, watch=lambda _: Watching(allowed=[])))
        fine = engine.submit(greedy((1,), 3))
        with pytest.raises(NothingToSample):
            answer(failing)
        assert answer(fine)[0].token_ids == reference((1,), 3)


def test_a_cancelled_prompt_leaves_and_its_slots_serve_others() -> None:
    runner = FakeRunner(slots=2, context_tokens=10_000)
    watcher = Watching()
    runner.gate.clear()
    with running(runner) as engine:
        running_one = engine.submit(greedy((1,), None, choices=3, watch=lambda _: watcher))
        waiting_one = engine.submit(greedy((2,), None))
        after = engine.submit(greedy((3,), 4))
        assert runner.began.wait(PATIENCE_SECONDS)
        assert running_one.cancel()
        assert waiting_one.cancel()
        runner.gate.set()
        assert answer(after)[0].token_ids == reference((3,), 4)
        done, _ = wait([running_one, waiting_one], timeout=PATIENCE_SECONDS)
    assert done == {running_one, waiting_one}
    with pytest.raises(CancelledError):
        running_one.result()
    assert watcher.finishes == 3
    assert len(runner.steps) < 20


def test_a_cancel_after_the_answer_changes_nothing() -> None:
    with running(FakeRunner()) as engine:
        future = engine.submit(greedy((1,), 3))
        answer(future)
        assert not future.cancel()
        assert answer(engine.submit(greedy((1,), 3))) == answer(future)


@pytest.mark.parametrize("crash_at", [0, 1, 3])
def test_a_crash_of_the_runner_fails_all_in_flight_and_ends_the_engine(crash_at: int) -> None:
    runner = FakeRunner(slots=2, crash_at=crash_at)
    watchers = [Watching() for _ in range(5)]
    with running(runner) as engine:
        runner.gate.clear()
        futures = [engine.submit(greedy((n,), 9, watch=lambda _, n=n: watchers[n])) for n in range(5)]  # type: ignore[misc]
        runner.gate.set()
        for future in futures:
            with pytest.raises(EngineFailed, match="scripted crash"):
                answer(future)
        assert not engine.is_alive
        with pytest.raises(EngineFailed):
            engine.submit(greedy((1,)))
    assert [watcher.finishes for watcher in watchers] == [1] * 5


def test_stopping_with_time_to_drain_answers_what_is_in_flight() -> None:
    engine = Engine(FakeRunner(slots=2), SMALL_PIECES)
    futures = [engine.submit(greedy((n,), 6)) for n in range(9)]
    engine.start()
    engine.stop(drain_seconds=PATIENCE_SECONDS)
    assert [future.result(timeout=0)[0].token_ids for future in futures] == [reference((n,), 6) for n in range(9)]
    assert not engine.is_alive
    with pytest.raises(EngineStopped):
        engine.submit(greedy((1,)))


def test_stopping_without_time_fails_what_is_in_flight_and_hangs_nobody() -> None:
    runner = FakeRunner(slots=2, context_tokens=10**6)
    with running(runner) as engine:
        futures = [engine.submit(greedy((n,), None)) for n in range(4)]
        assert runner.began.wait(PATIENCE_SECONDS)
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(timeout=0)


def test_an_engine_stopped_before_it_started_fails_what_was_submitted() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    future = engine.submit(greedy((1,)))
    engine.stop()
    with pytest.raises(EngineStopped):
        future.result(timeout=0)
    assert runner.is_closed


def test_progress_counts_what_was_read_and_written() -> None:
    runner = FakeRunner(slots=2)
    with running(runner) as engine:
        before = engine.progress
        wait([engine.submit(greedy((n,) * 10, 6)) for n in range(5)], timeout=PATIENCE_SECONDS)
        engine.stop(drain_seconds=PATIENCE_SECONDS)
        progress = engine.progress
    assert (progress.prompt_tokens, progress.output_tokens) == (50, 30)
    assert progress.steps == len(runner.steps)
    assert 0 < progress.runner_seconds < progress.busy_seconds
    assert progress.beat_at > before.beat_at
    assert (progress.waiting, progress.running) == (0, 0)


def test_the_reference_of_these_tests_never_repeats_by_chance() -> None:
    """The script must tell texts apart, or a wrong slot would go unnoticed."""
    assert len({scramble((n,)) for n in range(VOCABULARY)}) > VOCABULARY // 2
