"""What a prompt asks of its tokens, on logits that the test makes up: against the definitions, one by one."""

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine import NothingToSample, Prompt, PromptRefused, Sampling, TokenLogprob, next_token
from worker.engine.sampling import Mask
from worker.engine.sequence import Sequence
from worker.engine.softmax import Logits
from worker.engine.ticket import open_ticket

VOCABULARY = 300
GREEDY = Sampling(seed=1, temperature=0)
STOP = 7

Distribution = npt.NDArray[np.float64]


def choice_of(sampling: Sampling = GREEDY, prompt: tuple[int, ...] = (1, 2, 3), **more: object) -> Sequence:
    asked = Prompt(prompt, sampling, **more)  # type: ignore[arg-type]
    return open_ticket(asked, context_tokens=1000, vocabulary=VOCABULARY).sequences[0]


def logits_of(seed: int, rows: int = 1) -> Logits:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 4).astype(np.float32)


def preferring(*token_ids: int) -> Logits:
    """The first is the most likely, the second the next, all others are far behind."""
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, list(token_ids)] = np.arange(20, 20 - len(token_ids), -1)
    return logits


def write(choice: Sequence, logits: Logits, steps: int = 1) -> list[int]:
    for _ in range(steps):
        assert next_token.advance(logits.copy(), [choice]) == [None]
    return choice.token_ids


def log_softmax(logits: Logits) -> Distribution:
    exact = logits.astype(np.float64)
    shifted: Distribution = exact - exact.max()
    return shifted - math.log(np.exp(shifted).sum())


# ---- bias and penalties ----


def adjusted(logits: Logits, sampling: Sampling, prompt: tuple[int, ...], written: list[int]) -> Distribution:
    """The definitions, token by token."""
    expected = logits.astype(np.float64)
    for token_id, bias in sampling.logit_bias:
        expected[token_id] += bias
    for token_id in {*prompt, *written}:
        factor = sampling.repetition_penalty
        expected[token_id] = expected[token_id] / factor if expected[token_id] > 0 else expected[token_id] * factor
    for token_id, times in Counter(written).items():
        expected[token_id] -= times * sampling.frequency_penalty + sampling.presence_penalty
    return expected


token_ids = st.integers(0, 20)
samplings = st.builds(
    Sampling,
    seed=st.just(1),
    temperature=st.just(0.0),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 2.0]),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.3]),
    logit_bias=st.dictionaries(token_ids, st.floats(-100, 100, width=16), max_size=4).map(lambda d: tuple(d.items())),
)


@given(samplings, st.lists(token_ids, min_size=1, max_size=30).map(tuple), st.lists(token_ids, max_size=150))
def test_bias_and_penalties_change_the_logits_as_they_are_defined(
    sampling: Sampling, prompt: tuple[int, ...], written: list[int]
) -> None:
    choice = choice_of(sampling, prompt)
    for token_id in written:
        choice.accept(token_id)
    logits = logits_of(len(written))[0]
    expected = adjusted(logits, sampling, prompt, written)
    if choice.adjustment is not None:
        choice.adjustment.apply(logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


def test_the_counts_keep_up_with_a_text_of_many_different_tokens() -> None:
    sampling = Sampling(seed=1, temperature=0, frequency_penalty=0.5, repetition_penalty=1.1)
    choice = choice_of(sampling, tuple(range(100)))
    written = [step * 7 % VOCABULARY for step in range(600)]
    for token_id in written:
        choice.accept(token_id)
    logits = logits_of(3)[0]
    expected = adjusted(logits, sampling, tuple(range(100)), written)
    assert choice.adjustment is not None
    choice.adjustment.apply(logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("damage", [-np.inf, np.nan])
def test_penalties_and_bias_on_logits_that_are_no_numbers_warn_of_nothing(damage: float) -> None:
    sampling = Sampling(seed=1, presence_penalty=1, repetition_penalty=1.5, logit_bias=((3, 100.0),))
    [outcome] = next_token.advance(np.full((1, VOCABULARY), damage, np.float32), [choice_of(sampling)])
    assert isinstance(outcome, NothingToSample)


def test_a_penalty_makes_a_greedy_text_vary() -> None:
    assert write(choice_of(), preferring(30, 31, 32), 4) == [30, 30, 30, 30]
    penalised = choice_of(Sampling(seed=1, temperature=0, frequency_penalty=0.6))
    assert write(penalised, preferring(30, 31, 32), 7) == [30, 30, 31, 30, 31, 30, 32]


def test_the_prompt_counts_for_repetition_and_not_for_presence() -> None:
    logits = preferring(2, 40)  # 2 stands in the prompt
    assert write(choice_of(Sampling(seed=1, temperature=0, presence_penalty=2)), logits) == [2]
    assert write(choice_of(Sampling(seed=1, temperature=0, repetition_penalty=1.5)), logits) == [40]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_all_tokens_but_one_can_be_banned(temperature: float) -> None:
    bias = tuple((token_id, -10_000.0) for token_id in range(VOCABULARY) if token_id != 250)
    choice = choice_of(Sampling(seed=1, temperature=temperature, logit_bias=bias))
    assert write(choice, logits_of(5), 20) == [250] * 20


# ---- the end ----


def test_stop_tokens_are_held_back_until_the_least_number_of_tokens_is_written() -> None:
    choice = choice_of(stop_token_ids=frozenset({STOP, 8}), tokens_min=3)
    write(choice, preferring(STOP, 8, 50), 3)
    assert (choice.token_ids, choice.finish_reason) == ([50] * 3, None)
    write(choice, preferring(STOP, 8, 50))
    assert (choice.token_ids, choice.finish_reason) == ([50] * 3, "stop")


def test_every_stop_token_ends_a_choice_and_other_tokens_do_not() -> None:
    for last in (STOP, 8):
        choice = choice_of(stop_token_ids=frozenset({STOP, 8}))
        write(choice, preferring(50))
        assert choice.finish_reason is None
        write(choice, preferring(last))
        assert (choice.token_ids, choice.finish_reason) == ([50], "stop")


# ---- log-probabilities ----


def one_logprob(choice: Sequence, logits: Logits) -> TokenLogprob:
    write(choice, logits)
    choice.accept(STOP)
    logprobs = choice.completion(0).logprobs
    assert logprobs is not None
    assert len(logprobs) == len(choice.token_ids) == 1
    return logprobs[0]


@pytest.mark.parametrize("top", [1, 3, 20, VOCABULARY, 10 * VOCABULARY])
def test_the_likeliest_tokens_come_in_order_with_their_log_probabilities(top: int) -> None:
    logits = logits_of(2).round(1)  # some are equal
    found = one_logprob(choice_of(top_logprobs=top, stop_token_ids=frozenset({STOP})), logits).top
    expected = log_softmax(logits[0])
    likeliest = np.argsort(-logits[0], kind="stable")[:top]
    assert [token_id for token_id, _ in found] == likeliest.tolist()
    np.testing.assert_allclose([logprob for _, logprob in found], expected[likeliest], atol=2e-6)
    if top >= VOCABULARY:
        assert math.fsum(math.exp(logprob) for _, logprob in found) == pytest.approx(1, abs=1e-5)


def test_without_top_logprobs_only_the_drawn_token_is_told() -> None:
    choice = choice_of(Sampling(seed=4), top_logprobs=0, stop_token_ids=frozenset({STOP}))
    logits = logits_of(6)
    told = one_logprob(choice, logits)
    assert told.top == ()
    assert told.logprob == pytest.approx(log_softmax(logits[0])[choice.token_ids[0]], abs=2e-6)


def test_log_probabilities_are_the_models_own_whatever_is_asked_of_the_draw() -> None:
    logits = preferring(30, 31, 32)
    bent = Sampling(
        seed=9, temperature=0.1, presence_penalty=2, repetition_penalty=2, logit_bias=((30, -100.0), (31, 50.0))
    )
    told = one_logprob(choice_of(bent, (31,), top_logprobs=2, stop_token_ids=frozenset({STOP})), logits)
    expected = log_softmax(logits[0])
    assert told.logprob == pytest.approx(expected[31], abs=2e-6)
    assert [token_id for token_id, _ in told.top] == [30, 31]
    assert told.top[0][1] == pytest.approx(expected[30], abs=2e-6)


def test_who_asks_for_no_log_probabilities_gets_none() -> None:
    choice = choice_of(stop_token_ids=frozenset({STOP}))
    write(choice, preferring(STOP))
    assert choice.completion(0).logprobs is None


class OnlyThirty:
    """A watcher that allows one token."""

    def mask(self) -> Mask:
        return np.array([1 << 30], np.uint32)

    def accept(self, token_id: int) -> bool:
        return token_id == 30

    def forced(self) -> tuple[int, ...]:
        """Its token too, but of no other test's concern."""
        return ()

    def finish(self) -> None:
        """Nothing is held."""


def test_log_probabilities_do_not_know_of_a_mask() -> None:
    logits = preferring(20, 30, 40)
    told = one_logprob(
        choice_of(watch=lambda _: OnlyThirty(), top_logprobs=1, stop_token_ids=frozenset({STOP})), logits
    )
    assert told.logprob == pytest.approx(log_softmax(logits[0])[30], abs=2e-6)
    assert [token_id for token_id, _ in told.top] == [20]


def test_a_row_has_no_log_probabilities_where_the_model_gave_no_number_for_a_masked_token() -> None:
    logits = preferring(20, 30, 40)
    logits[0, 5] = np.nan
    plain, asked = choice_of(watch=lambda _: OnlyThirty()), choice_of(watch=lambda _: OnlyThirty(), top_logprobs=1)
    outcomes = next_token.advance(np.repeat(logits, 2, axis=0), [plain, asked])
    assert (plain.token_ids, outcomes[0]) == ([30], None)
    assert isinstance(outcomes[1], NothingToSample)


# ---- masks of one token ----


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=2), Sampling(seed=3, top_k=5)])
def test_the_only_token_that_is_allowed_is_not_searched_for(sampling: Sampling) -> None:
    """The row's other logits are left as they are; a neighbour draws as if it were alone."""
    forced, free, alone = choice_of(sampling, watch=lambda _: OnlyThirty()), choice_of(sampling), choice_of(sampling)
    logits, untouched = logits_of(8, rows=2), logits_of(8, rows=2)
    assert next_token.advance(logits, [forced, free]) == [None, None]
    assert forced.token_ids == [30]
    np.testing.assert_array_equal(logits[0], untouched[0])
    assert write(alone, untouched[1:]) == free.token_ids


@pytest.mark.parametrize("logit", [-np.inf, np.nan])
def test_the_only_token_that_is_allowed_is_not_written_where_it_cannot_be_drawn(logit: float) -> None:
    logits = preferring(20)
    logits[0, 30] = logit
    [outcome] = next_token.advance(logits, [choice_of(watch=lambda _: OnlyThirty())])
    assert isinstance(outcome, NothingToSample)


# ---- neighbours ----

PARAMETERS: list[tuple[Sampling, dict[str, object]]] = [
    (GREEDY, {}),
    (GREEDY, {"top_logprobs": 5}),
    (Sampling(seed=2), {"top_logprobs": 0}),
    (Sampling(seed=3, top_p=0.8, frequency_penalty=1.5), {"top_logprobs": 20}),
    (Sampling(seed=4, top_k=9, repetition_penalty=1.3), {"tokens_min": 5, "stop_token_ids": frozenset({STOP})}),
    (Sampling(seed=5, min_p=0.1, logit_bias=((9, 8.0),)), {}),
    (Sampling(seed=6, temperature=2, presence_penalty=-1), {"top_logprobs": 2}),
]


def test_a_row_is_written_bit_for_bit_alike_alone_and_among_others_in_any_order() -> None:
    rows, steps = len(PARAMETERS), 40
    given_logits = [logits_of(step, rows) for step in range(steps)]

    def written(order: list[int]) -> dict[int, tuple[list[int], list[TokenLogprob]]]:
        choices = [choice_of(*PARAMETERS[row][:1], (row, 2), **PARAMETERS[row][1]) for row in order]
        for logits in given_logits:
            assert not any(next_token.advance(logits[order], choices))
        return {row: (one.token_ids, one._logprobs) for row, one in zip(order, choices, strict=True)}

    together = written(list(range(rows)))
    assert written(list(range(rows))[::-1]) == together
    for row in range(rows):
        assert written([row])[row] == together[row]


def test_a_row_that_cannot_be_drawn_leaves_the_others_as_they_are() -> None:
    logits = logits_of(1, 3)
    alone = [write(choice_of(Sampling(seed=row)), logits[row : row + 1])[0] for row in range(3)]
    logits[1] = np.nan
    choices = [choice_of(Sampling(seed=row)) for row in range(3)]
    outcomes = next_token.advance(logits, choices)
    assert [isinstance(outcome, NothingToSample) for outcome in outcomes] == [False, True, False]
    assert [choice.token_ids for choice in choices] == [[alone[0]], [], [alone[2]]]


# ---- refusals ----


@pytest.mark.parametrize(
    "more",
    [
        {"sampling": Sampling(seed=1, logit_bias=((VOCABULARY, 1.0),))},
        {"sampling": Sampling(seed=1, logit_bias=((-1, 1.0),))},
        {"stop_token_ids": frozenset({VOCABULARY})},
        {"tokens_min": -1},
        {"top_logprobs": -1},
    ],
)
def test_what_names_a_token_that_is_not_there_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(PromptRefused, match="expected 0"):
        choice_of(**more)  # type: ignore[arg-type]
