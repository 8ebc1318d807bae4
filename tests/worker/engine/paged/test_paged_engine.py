"""The whole engine on pages: the same tokens as on slots, with sharing, preemption and steps that find no memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_model
from tests.worker.engine.paged.opened import CONTEXT, opened, room, write
from tests.worker.engine.test_forced import prompt_of
from worker.engine import Completion, Engine, EngineSettings, Prompt, Sampling
from worker.engine.loading import load
from worker.model.folder import ModelFolder

KNOBS = EngineSettings(threads=1, context_tokens_max=CONTEXT, slots_max=8, chunk_tokens=64)
PATIENCE_SECONDS = 60
SAMPLING = (Sampling(seed=3, temperature=0), Sampling(seed=4, temperature=0.8, top_p=0.95))


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("slots") / "tiny")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("paged"))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Of all lengths, some with a common beginning, some with several choices."""
    random = np.random.default_rng(21)
    system = random.integers(0, 250, 37)
    made = []
    for number in range(40):
        own = random.integers(0, 250, random.integers(1, 50))
        ids = np.concatenate([system, own]) if number % 2 else own
        made.append(Prompt(ids[: CONTEXT - 2], SAMPLING[number % 2], 25, choices=1 + number % 3))
    return made


@pytest.fixture(scope="module")
def expected(slots: ModelFolder, prompts: list[Prompt]) -> list[list[Completion]]:
    with load(slots, KNOBS) as engine:
        return answers(engine, prompts)


def answers(engine: Engine, prompts: list[Prompt]) -> list[list[Completion]]:
    return [future.result(PATIENCE_SECONDS) for future in [engine.submit(prompt) for prompt in prompts]]


def tokens(completions: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[choice.token_ids for choice in choices] for choices in completions]


def test_answers_are_those_of_the_engine_on_slots(
    graph: Path, prompts: list[Prompt], expected: list[list[Completion]]
) -> None:
    opening = opened(graph, room(stages=4))
    with Engine(opening.runner, KNOBS) as engine:
        found = answers(engine, prompts)
        computed = engine.progress.prompt_tokens
    assert tokens(found) == tokens(expected)
    assert computed < sum(len(prompt.token_ids) for prompt in prompts) - 10 * 37, "beginnings were not shared"


def test_answers_are_the_same_where_pages_run_out_and_rows_have_to_leave(
    graph: Path, prompts: list[Prompt], expected: list[list[Completion]]
) -> None:
    opening = opened(graph, room(stages=2, pages=1 + 3 * 6 + 1))
    with Engine(opening.runner, KNOBS) as engine:
        assert tokens(answers(engine, prompts)) == tokens(expected)


def test_answers_are_the_same_where_large_steps_find_no_memory(
    graph: Path, prompts: list[Prompt], expected: list[list[Completion]]
) -> None:
    opening = opened(graph, room(stages=4))
    opening.session.tokens_max = 5
    with Engine(opening.runner, replace(KNOBS, chunk_tokens=96)) as engine:
        assert tokens(answers(engine, prompts[:12])) == tokens(expected[:12])
    assert max(len(run.input_ids) for run in opening.session.runs) <= 5


@pytest.mark.parametrize("pages", [0, 1 + 4 * 6 + 2])
def test_tokens_that_can_only_follow_change_nothing_but_the_steps(graph: Path, pages: int) -> None:
    """Fed in runs of their own, across the borders of pages, also where rows have to leave."""
    form = [None, *range(10, 35), None, None, *range(30, 34), *[None] * 8]
    found, steps = [], []
    for tells in (False, True):
        opening = opened(graph, room(stages=3, pages=pages))
        with Engine(opening.runner, KNOBS) as engine:
            asked = [prompt_of(form, tells=tells, seed=seed, sampling=SAMPLING[0]) for seed in range(5)]
            found.append(tokens(answers(engine, asked)))
            steps.append(engine.progress.steps)
    assert found[0] == found[1]
    assert steps[1] < steps[0] - 20
