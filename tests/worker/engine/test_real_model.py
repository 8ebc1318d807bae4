"""The engine over a real graph: whatever else is in flight, a prompt is written as if it were computed alone.

The reference computes the whole text anew for every token, one sequence and one run at a time. Sums in
float32 change in their last bits with the shape of a run, so tokens are compared as long as the reference
prefers its own by a margin that no rounding reaches; the tests make sure that this hides next to nothing.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests import tiny_model
from worker.engine import Completion, EngineSettings, EngineStopped, FinishReason, Prompt, Sampling, load
from worker.engine.loading import open_runner
from worker.engine.runner import Runner, Span
from worker.model.folder import ModelFolder

GREEDY = Sampling(seed=0, temperature=0)
MARGIN = 1e-3
KNOBS = EngineSettings(threads=1, context_tokens_max=96, slots_max=8, chunk_tokens=24)
PATIENCE_SECONDS = 60

Tokens = tuple[int, ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def alone(model: ModelFolder) -> Iterator[Runner]:
    runner = open_runner(model, KNOBS)
    yield runner
    runner.close()


def test_200_prompts_of_any_length_are_each_written_as_alone(model: ModelFolder, alone: Runner) -> None:
    random = np.random.default_rng(7)
    prompts = _prompts(random, 200, longest=80, vocabulary=model.spec.vocabulary)
    limits = random.integers(1, 30, len(prompts)).tolist()
    compared = 0
    for prompt, limit, [completion] in zip(prompts, limits, _answers(model, prompts, limits), strict=True):
        compared += _compare(alone, prompt, limit, completion)
    assert compared > 0.9 * sum(min(limit, 96 - len(p)) for p, limit in zip(prompts, limits, strict=True))


def test_a_prompt_is_written_the_same_alone_and_among_31(model: ModelFolder, alone: Runner) -> None:
    prompts = _prompts(np.random.default_rng(8), 32, longest=60, vocabulary=model.spec.vocabulary)
    crowd = replace(KNOBS, slots_max=32)
    for prompt, [completion] in zip(prompts, _answers(model, prompts, [20] * 32, crowd), strict=True):
        [[single]] = _answers(model, [prompt], [20])
        sure = _compare(alone, prompt, 20, completion)
        assert single.token_ids[:sure] == completion.token_ids[:sure]
        assert sure > 5


def test_sampled_choices_are_the_same_alone_and_among_others(model: ModelFolder) -> None:
    prompts = _prompts(np.random.default_rng(9), 6, longest=40, vocabulary=model.spec.vocabulary)
    wanted = Sampling(seed=11, temperature=0.8, top_p=0.9)
    with load(model, KNOBS) as engine:
        single = engine.submit(Prompt(prompts[0], wanted, 12, choices=5)).result(PATIENCE_SECONDS)
        futures = [engine.submit(Prompt(prompt, wanted, 12, choices=5)) for prompt in prompts]
        crowded = [future.result(PATIENCE_SECONDS) for future in futures]
    assert [choice.token_ids for choice in crowded[0]] == [choice.token_ids for choice in single]
    assert len({choice.token_ids for choice in single}) == 5


def test_choices_of_one_prompt_read_on_from_one_prefill(model: ModelFolder, alone: Runner) -> None:
    [prompt] = _prompts(np.random.default_rng(10), 1, longest=60, vocabulary=model.spec.vocabulary)
    with load(model, KNOBS) as engine:
        choices = engine.submit(Prompt(prompt, GREEDY, 10, choices=4)).result(PATIENCE_SECONDS)
        assert engine.progress.prompt_tokens == len(prompt)
    for choice in choices:
        assert _compare(alone, prompt, 10, choice) > 5


@pytest.mark.parametrize("pieces", [[1, 49], [20, 13, 17], [49, 1], [5] * 10])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(alone: Runner, pieces: list[int]) -> None:
    prompt = np.random.default_rng(11).integers(0, alone.vocabulary, 50)
    whole = alone.step([Span(0, 0, prompt, ends_prompt=True)], []).copy()
    start = 0
    for length in pieces:
        span = Span(1, start, prompt[start : start + length], ends_prompt=start + length == 50)
        logits = alone.step([span], [])
        start += length
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_an_engine_that_has_ended_refuses_prompts(model: ModelFolder) -> None:
    with load(model, KNOBS) as engine:
        pass
    with pytest.raises(EngineStopped):
        engine.submit(Prompt((1, 2), GREEDY))


def test_a_cancelled_prompt_leaves_the_others_as_they_are(model: ModelFolder, alone: Runner) -> None:
    prompts = _prompts(np.random.default_rng(13), 12, longest=40, vocabulary=model.spec.vocabulary)
    with load(model, KNOBS) as engine:
        futures = [engine.submit(Prompt(prompt, GREEDY, 25)) for prompt in prompts]
        for future in futures[::3]:
            future.cancel()
        for index, (prompt, future) in enumerate(zip(prompts, futures, strict=True)):
            if index % 3:
                _compare(alone, prompt, 25, future.result(PATIENCE_SECONDS)[0])


def _prompts(random: np.random.Generator, count: int, *, longest: int, vocabulary: int) -> list[Tokens]:
    return [tuple(random.integers(0, vocabulary, random.integers(1, longest)).tolist()) for _ in range(count)]


def _answers(
    model: ModelFolder, prompts: list[Tokens], limits: list[int], knobs: EngineSettings = KNOBS
) -> list[list[Completion]]:
    with load(model, knobs) as engine:
        futures = [engine.submit(Prompt(p, GREEDY, limit)) for p, limit in zip(prompts, limits, strict=True)]
        return [future.result(PATIENCE_SECONDS) for future in futures]


def _compare(alone: Runner, prompt: Tokens, limit: int, completion: Completion) -> int:
    """Hold a completion against the reference; how many of its tokens were sure enough to be compared."""
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.token_ids) == min(limit, alone.context_tokens - len(prompt))
    text = list(prompt)
    for compared, token in enumerate(completion.token_ids):
        [logits] = alone.step([Span(0, 0, np.array(text), ends_prompt=True)], [])
        second, best = np.partition(logits, -2)[-2:]
        if best - second < MARGIN:
            return compared
        assert token == logits.argmax(), f"token {compared} after {len(prompt)} of prompt"
        text.append(token)
    return len(completion.token_ids)
