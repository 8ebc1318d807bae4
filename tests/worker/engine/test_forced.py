"""Tokens that can only follow are taken without asking the model, and nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny_model
from tests.worker.engine.fake_runner import VOCABULARY, FakeRunner
from worker.engine import Completion, Engine, EngineSettings, FinishReason, Prompt, Sampling, load
from worker.engine.sampling import Mask
from worker.model.folder import ModelFolder

PATIENCE_SECONDS = 30
WARM = Sampling(seed=1, temperature=9.0)
STOP = 7


class Form:
    """Allows the tokens of a form, in which None stands for any token but STOP. It ends with the form."""

    def __init__(self, form: Sequence[int | None], *, tells: bool) -> None:
        self._left = list(form)
        self._tells = tells

    def mask(self) -> Mask | None:
        bits = np.zeros(320, np.uint8)
        bits[[token for token in range(VOCABULARY) if token != STOP] if self._left[0] is None else self._left[0]] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token_id: int) -> bool:
        expected = self._left.pop(0)
        assert expected in (None, token_id), f"{token_id} where only {expected} may follow"
        return bool(self._left)

    def forced(self) -> Sequence[int]:
        if not self._tells:
            return ()
        end = self._left.index(None) if None in self._left else len(self._left)
        return [token for token in self._left[:end] if token is not None]

    def finish(self) -> None:
        """Nothing is held."""


def prompt_of(form: Sequence[int | None], *, tells: bool, seed: int = 1, **more: object) -> Prompt:
    asked = Prompt((3, 1, seed), replace(WARM, seed=seed), watch=lambda _: Form(form, tells=tells))
    return replace(asked, **more)  # type: ignore[arg-type]


def answers(runner: FakeRunner, prompts: Sequence[Prompt], chunk_tokens: int = 8) -> list[list[Completion]]:
    with Engine(runner, EngineSettings(chunk_tokens=chunk_tokens)) as engine:
        futures = [engine.submit(prompt) for prompt in prompts]
        found = [future.result(PATIENCE_SECONDS) for future in futures]
    assert engine.progress.output_tokens == sum(one.output_tokens for choices in found for one in choices)
    return found


FORM = [None, 5, 6, 8, 9, None, 4, 4, 4, None, None, 2, 3]
FORMS = st.lists(st.lists(st.none() | st.integers(10, 40), min_size=1, max_size=20), min_size=1, max_size=8)


@pytest.mark.parametrize(("feeds_from", "steps"), [(None, 10), (4, 6), (1, 3)])
def test_a_form_takes_fewer_steps_where_rows_are_fed_ahead(feeds_from: int | None, steps: int) -> None:
    [[plain]] = answers(FakeRunner(), [prompt_of(FORM, tells=False)])
    runner = FakeRunner(feeds_from=feeds_from)
    [[told]] = answers(runner, [prompt_of(FORM, tells=True)])
    assert told == plain
    assert told.output_tokens == len(FORM)
    assert sum(1 for _, rows in runner.steps if rows) == steps


def test_logits_that_nobody_reads_are_not_asked_for() -> None:
    runner = FakeRunner()
    answers(runner, [prompt_of(FORM, tells=True)])
    assert runner.read == FORM.count(None)


@given(FORMS, st.sampled_from([None, 1, 4]), st.integers(6, 40), st.integers(1, 20), st.integers(1, 2))
def test_who_tells_what_is_forced_writes_what_others_write(
    forms: list[list[int | None]], feeds_from: int | None, pages: int, tokens_max: int, choices: int
) -> None:
    """Also where rows have to leave and come back."""
    more = {"tokens_max": tokens_max, "choices": choices}
    plain = [prompt_of(form, tells=False, seed=seed, **more) for seed, form in enumerate(forms)]
    told = [prompt_of(form, tells=True, seed=seed, **more) for seed, form in enumerate(forms)]
    alone = [answers(FakeRunner(context_tokens=24), [prompt])[0] for prompt in plain]
    crowded = answers(FakeRunner(context_tokens=24, pages=pages, feeds_from=feeds_from), told)
    for mine, theirs in zip(crowded, alone, strict=True):
        assert [(one.token_ids, one.finish_reason, one.output_tokens) for one in mine] == [
            (one.token_ids, one.finish_reason, one.output_tokens) for one in theirs
        ]


@pytest.mark.parametrize("chunk_tokens", [3, 100])
@pytest.mark.parametrize("is_exact", [False, True])
def test_a_choice_that_had_to_leave_its_row_is_written_again_as_it_was(is_exact: bool, chunk_tokens: int) -> None:
    """Where the last bit counts, its tokens are taken together as they were the first time."""
    forms = [[*OPENING[:number], *[None] * 6, *range(10, 16), None, None, 1, 2, *[None] * 20] for number in range(5)]
    prompts = [prompt_of(form, tells=True, seed=seed, choices=2) for seed, form in enumerate(forms)]
    short = [prompt_of([None], tells=True)] * 80  # so that answers are expected to be short

    def alone(prompt: Prompt) -> tuple[list[Completion], FakeRunner]:
        runner = FakeRunner(slots=2, feeds_from=3, is_exact=is_exact)
        return answers(runner, [prompt])[0], runner

    crowd = FakeRunner(slots=10, pages=40, feeds_from=3, is_exact=is_exact)  # ten rows of ten pages
    found = answers(crowd, [*short, *prompts], chunk_tokens)[len(short) :]
    expected = [alone(prompt) for prompt in prompts]
    for mine, (theirs, _) in zip(found, expected, strict=True):
        assert [(one.token_ids, one.output_tokens) for one in mine] == [
            (one.token_ids, one.output_tokens) for one in theirs
        ]
    assert len(crowd.fed) > 0
    assert (crowd.fed == {fed for _, runner in expected for fed in runner.fed}) == is_exact


def test_where_no_memory_is_found_for_what_is_fed_ahead_less_is_fed() -> None:
    form = [None, *range(10, 30), None]
    [[plain]] = answers(FakeRunner(), [prompt_of(form, tells=False)])
    [[told]] = answers(FakeRunner(feeds_from=1, step_tokens=3), [prompt_of(form, tells=True)])
    assert told == plain


def test_a_token_that_ends_the_choice_is_not_taken_unasked() -> None:
    """It is drawn, for it may have to be held back."""
    form = [None, 5, STOP, 6]
    [[told]] = answers(FakeRunner(), [prompt_of(form, tells=True, stop_token_ids=frozenset({STOP}))])
    assert (len(told.token_ids), told.finish_reason, told.output_tokens) == (2, FinishReason.STOP, 3)


def test_each_token_has_its_log_probability_where_they_are_asked_for() -> None:
    plain, told = (answers(FakeRunner(), [prompt_of(FORM, tells=tells, top_logprobs=2)]) for tells in (False, True))
    assert plain == told
    assert len(told[0][0].logprobs or ()) == len(FORM)


OPENING = [5, 6, 8, 9, 11]


@pytest.mark.parametrize("choices", [1, 3])
def test_what_must_come_first_is_computed_with_the_prompt(choices: int) -> None:
    asked = {"form": [*OPENING, None, None], "choices": choices}
    [plain] = answers(FakeRunner(), [prompt_of(**asked, tells=False)])
    runner = FakeRunner()
    [told] = answers(runner, [prompt_of(**asked, tells=True)])
    assert told == plain
    assert runner.steps == [(3 + len(OPENING), 0), (0, choices)]
    assert {(one.prompt_tokens, one.cached_tokens, one.output_tokens) for one in told} == {(3, 0, 7)}
    assert runner.read == 1 + choices


def test_what_must_come_first_is_no_part_of_what_was_cached_of_the_prompt() -> None:
    runner = FakeRunner()
    with Engine(runner, EngineSettings()) as engine:
        found = [
            engine.submit(prompt_of([*OPENING, None, None], tells=True)).result(PATIENCE_SECONDS)[0] for _ in range(2)
        ]
    assert [(one.prompt_tokens, one.cached_tokens) for one in found] == [(3, 0), (3, 3)]
    assert [tokens for tokens, rows in runner.steps if not rows] == [3 + len(OPENING), 1]


def test_an_answer_of_which_nothing_is_to_be_drawn_takes_no_step() -> None:
    runner = FakeRunner()
    [[whole], [cut]] = answers(
        runner, [prompt_of(OPENING, tells=True), prompt_of([*OPENING, None], tells=True, tokens_max=4)]
    )
    assert (whole.token_ids, whole.finish_reason) == (tuple(OPENING), FinishReason.STOP)
    assert (cut.token_ids, cut.finish_reason) == (tuple(OPENING[:4]), FinishReason.LENGTH)
    assert (whole.output_tokens, cut.output_tokens) == (5, 4)
    assert runner.steps == []


def test_choices_that_begin_differently_are_computed_each_on_its_own() -> None:
    """The first has no row at all, the last two share their prompt with what they begin with."""
    forms = [[4, 5], [4, None, None], [None, 4], [4, 5, None], [4, 5, None]]

    def asked(*, tells: bool) -> Prompt:
        return prompt_of([], tells=tells, choices=5, watch=lambda choice: Form(forms[choice], tells=tells))

    [plain] = answers(FakeRunner(slots=8), [asked(tells=False)])
    runner = FakeRunner(slots=8, stages=4, spans_max=4)
    [told] = answers(runner, [asked(tells=True)])
    assert [(one.token_ids, one.output_tokens) for one in told] == [(one.token_ids, one.output_tokens) for one in plain]
    assert runner.fullest <= 4


class Raising(Form):
    """Raises at its second token."""

    def accept(self, token_id: int) -> bool:
        if token_id == OPENING[1]:
            raise LookupError("scripted failure")
        return super().accept(token_id)


def test_a_watcher_that_fails_at_what_must_come_first_costs_its_own_prompt_only() -> None:
    with Engine(FakeRunner(), EngineSettings()) as engine:
        other = engine.submit(prompt_of(FORM, tells=True))
        failing = engine.submit(prompt_of([], tells=True, choices=2, watch=lambda _: Raising(OPENING, tells=True)))
        with pytest.raises(LookupError, match="scripted"):
            failing.result(PATIENCE_SECONDS)
        assert len(other.result(PATIENCE_SECONDS)[0].token_ids) == len(FORM)


def test_tokens_that_came_first_count_for_penalties_and_for_the_least_length() -> None:
    """As if they had been drawn: what may not end before five tokens may end after an opening of five."""
    sampling = replace(WARM, frequency_penalty=2.0, presence_penalty=-1.0, repetition_penalty=1.3)
    for tokens_min in (5, 7, 12):
        more = {"tokens_min": tokens_min, "stop_token_ids": frozenset(range(0, 50, 2)), "sampling": sampling}
        form = [1, 3, 5, 3, 1, *[None] * 20]
        found = [answers(FakeRunner(), [prompt_of(form, tells=tells, **more)]) for tells in (False, True)]
        assert found[0] == found[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("forced") / "tiny")


def test_a_graph_writes_the_same_after_tokens_that_were_fed_ahead(tiny: ModelFolder) -> None:
    """Greedily: sums in float32 change in their last bits with the shape of a run."""
    greedy = Sampling(seed=0, temperature=0)
    form = [None, *range(10, 25), None, None, *range(30, 34), *[None] * 8]
    found, steps = [], []
    for tells in (False, True):
        with load(tiny, EngineSettings(threads=1, context_tokens_max=96, slots_max=4)) as engine:
            prompts = [prompt_of(form, tells=tells, seed=seed, sampling=greedy) for seed in range(3)]
            found.append([engine.submit(prompt).result(PATIENCE_SECONDS)[0].token_ids for prompt in prompts])
            steps.append(engine.progress.steps)
    assert found[0] == found[1]
    assert steps[1] < steps[0] - 3 * 15
