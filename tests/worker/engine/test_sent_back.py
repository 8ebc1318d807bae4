"""A choice that had to give its row up goes on as if nothing had happened, whatever is asked of its tokens."""

import pytest

from tests.worker.engine.fake_runner import FakeRunner
from worker.engine import Completion, Engine, EngineSettings, Prompt, Sampling

PATIENCE_SECONDS = 30
TOKENS = 38
PARAMETERS = [
    Sampling(seed=1, temperature=9.0),
    Sampling(seed=2, temperature=9.0, frequency_penalty=2.0),
    Sampling(seed=3, temperature=9.0, presence_penalty=-2.0, top_p=0.9),
    Sampling(seed=4, temperature=9.0, repetition_penalty=1.4, logit_bias=((3, 4.0),)),
]


def asked(number: int) -> Prompt:
    """Two choices of two tokens, whose stop tokens are held back to the end."""
    return Prompt(
        token_ids=(number, number),
        sampling=PARAMETERS[number],
        tokens_max=TOKENS,
        tokens_min=TOKENS,
        choices=2,
        stop_token_ids=frozenset(range(0, 50, 5)),
        top_logprobs=2,
    )


def answers(runner: FakeRunner, numbers: list[int]) -> list[list[Completion]]:
    """After many short answers, so that the engine expects more of the same and lets too many rows in."""
    with Engine(runner, EngineSettings(chunk_tokens=100)) as engine:
        short = [engine.submit(Prompt((1,), PARAMETERS[0], tokens_max=1)) for _ in range(80)]
        for future in short:
            future.result(PATIENCE_SECONDS)
        futures = [engine.submit(asked(number)) for number in numbers]
        return [future.result(PATIENCE_SECONDS) for future in futures]


@pytest.fixture(scope="module")
def alone() -> list[list[Completion]]:
    return [answers(FakeRunner(slots=2), [number])[0] for number in range(len(PARAMETERS))]


def test_tokens_penalties_and_log_probabilities_outlive_the_loss_of_a_row(alone: list[list[Completion]]) -> None:
    runner = FakeRunner(slots=8, pages=25)  # eight rows of 40 tokens need 80
    crowded = answers(runner, list(range(len(PARAMETERS))))
    written = sum(rows for _, rows in runner.steps)
    assert written > 2 * len(PARAMETERS) * TOKENS, "no row was sent back, so nothing was shown"
    for mine, theirs in zip(crowded, alone, strict=True):
        assert [(one.token_ids, one.logprobs, one.finish_reason) for one in mine] == [
            (one.token_ids, one.logprobs, one.finish_reason) for one in theirs
        ]


def test_what_is_asked_shows_in_the_answers(alone: list[list[Completion]]) -> None:
    for choices in alone:
        for one in choices:
            assert len(one.token_ids) == TOKENS == len(one.logprobs or ())
            assert not {token_id for token_id in one.token_ids if token_id % 5 == 0}
    assert len({one.token_ids for choices in alone for one in choices}) == 2 * len(PARAMETERS)
