from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.engine import sampling
from worker.engine.envelope import _ROUNDING, HEIGHT_MAX, Envelope
from worker.engine.sampling import NO_TOKEN, Draw, Sampling
from worker.engine.softmax import Logits, Softmax

Distribution = npt.NDArray[np.float64]
VOCABULARY = 600  # not a whole number of blocks
CASES = {
    "temperature 1": Sampling(seed=1),
    "temperature 2": Sampling(seed=2, temperature=2.0),
    "temperature 0.3": Sampling(seed=3, temperature=0.3),
    "top_p 0.9": Sampling(seed=4, top_p=0.9),
    "top_p 0.5, temperature 1.5": Sampling(seed=5, top_p=0.5, temperature=1.5),
    "top_k 7": Sampling(seed=6, top_k=7),
    "top_k over the vocabulary": Sampling(seed=7, top_k=10_000),
    "min_p 0.1": Sampling(seed=8, min_p=0.1),
    "all at once": Sampling(seed=9, temperature=1.3, top_p=0.8, top_k=40, min_p=0.05),
    "top_p and min_p": Sampling(seed=11, top_p=0.95, min_p=0.02),
    "top_k before min_p": Sampling(seed=10, top_p=0.9, top_k=5, min_p=0.3),
}


def _logits(rows: int = 1, seed: int = 0) -> Logits:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 3).astype(np.float32)


def _reference(logits: Logits, wanted: Sampling) -> Distribution:
    """The definition, by a full sort, in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / wanted.temperature)
    order = np.argsort(-weights, kind="stable")
    if wanted.top_k:
        order = order[: wanted.top_k]
    shares = weights[order] / weights[order].sum()
    before = np.concatenate([[0.0], shares.cumsum()[:-1]])
    keep = (before < wanted.top_p) if wanted.top_p < 1 else np.ones(len(order), bool)
    keep &= shares >= wanted.min_p * shares[0]
    keep[0] = True
    distribution = np.zeros(len(logits))
    distribution[order[keep]] = shares[keep] / shares[keep].sum()
    return distribution


def _draw_many(logits: Logits, wanted: Sampling, count: int) -> npt.NDArray[np.int64]:
    rows = 1000
    repeated = np.repeat(logits, rows, axis=0)
    return np.concatenate(
        [
            sampling.sample(repeated, [Draw(wanted, 0, position) for position in range(start, start + rows)])
            for start in range(0, count, rows)
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_definition(name: str) -> None:
    """100,000 of the plain distribution and of the one with everything at once, 20,000 of the others."""
    logits = _logits()
    count = 100_000 if name in ("temperature 1", "all at once") else 20_000
    expected = _reference(logits[0], CASES[name]) * count
    counts = np.bincount(_draw_many(logits, CASES[name], count), minlength=VOCABULARY)
    assert not counts[expected == 0].any()
    rare = expected < 10
    seen = np.append(counts[~rare], counts[rare].sum()).astype(float)
    due = np.append(expected[~rare], expected[rare].sum())
    seen, due = seen[due > 0], due[due > 0]
    freedom = len(due) - 1
    chi_square = ((seen - due) ** 2 / due).sum()
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 8


@pytest.mark.parametrize(
    ("halvings", "wanted"),
    [(0.5, Sampling(seed=13)), (1.5, Sampling(seed=13)), (0.5, Sampling(seed=14, top_p=0.99))],
)
def test_two_tokens_have_their_shares_to_a_percent(halvings: float, wanted: Sampling) -> None:
    """Between whole powers of 2, where the height of a token is furthest above its weight: with the shares of the
    heights, this fails.
    """
    logits = np.array([[0.0, -halvings * np.log(2)]], np.float32)
    share = 1 / (1 + 2.0**-halvings)
    drawn = _draw_many(logits, wanted, 60_000)
    assert np.count_nonzero(drawn == 0) / len(drawn) == pytest.approx(share, abs=0.008)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("wanted", [Sampling(seed=12, top_p=top_p) for top_p in (0.1, 0.5, 0.9, 0.999)])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_sort(spread: float, wanted: Sampling) -> None:
    """Rounded, so that many tokens are equal: of those, the lower ids belong to it."""
    logits = (np.random.default_rng(3).normal(size=(1, 6000)) * spread).round(1).astype(np.float32)
    likely = np.argsort(-logits[0], kind="stable")
    size = np.count_nonzero(_reference(logits[0], wanted))
    drawn = _draw_many(logits, wanted, 1000)
    assert np.isin(drawn, likely[: size + 1]).all()  # float32 and float64 may disagree on the last token
    assert len(np.unique(drawn)) > min(size, 1000) / 20


@pytest.mark.parametrize(
    "wanted", [Sampling(seed=1, top_k=3), Sampling(seed=1, top_p=0.004), Sampling(seed=1, top_k=9)]
)
def test_of_equal_tokens_the_lower_ids_stay(wanted: Sampling) -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    expected = np.flatnonzero(_reference(logits[0], wanted))
    assert np.unique(_draw_many(logits, wanted, 3000)).tolist() == expected.tolist() == list(range(len(expected)))


@given(
    hnp.arrays(np.float32, st.integers(1, 600), elements=st.floats(-300, 300, width=32) | st.just(-np.inf)),
    st.floats(1e-5, 1e4),
)
def test_no_weight_is_above_its_height_and_no_height_far_above_its_weight(logits: Logits, temperature: float) -> None:
    if not np.isfinite(logits.max()):
        return
    envelope = Envelope(len(logits))
    envelope.fit(Softmax(logits, float(logits.max()), temperature))
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    heights = envelope._heights[: len(logits)].astype(np.float64)
    counted = weights > 2.0**-126
    assert (heights[counted] * _ROUNDING >= weights[counted]).all()
    assert (heights[counted] <= weights[counted] * HEIGHT_MAX * _ROUNDING).all()
    assert not envelope._heights[len(logits) :].any()
    assert envelope.total_min <= weights.sum() * (1 + 1e-6)


@pytest.mark.parametrize(
    "wanted",
    [
        Sampling(seed=1, temperature=0),
        Sampling(seed=1, temperature=1e-9),
        Sampling(seed=1, top_p=0),
        Sampling(seed=1, temperature=2, top_p=1e-9),
        Sampling(seed=1, top_k=1),
    ],
)
def test_a_greedy_row_takes_the_most_likely_token_whatever_the_noise(wanted: Sampling) -> None:
    logits = _logits(rows=50)
    tokens = sampling.sample(logits, [Draw(wanted, 0, position) for position in range(50)])
    assert tokens.tolist() == logits.argmax(axis=1).tolist()


def _mask_of(token_ids: Collection[int], words: int = -(-VOCABULARY // 32)) -> sampling.Mask:
    bits = np.zeros(32 * words, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("token_ids", [[577], [3, 31, 32, 577, VOCABULARY - 1], range(0, VOCABULARY, 2)])
def test_only_allowed_tokens_are_drawn_as_if_there_were_no_others(
    wanted: Sampling, token_ids: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "FEW", 100)
    logits, count = _logits(), 4_000
    masked = np.full(VOCABULARY, -np.inf, np.float32)
    masked[list(token_ids)] = logits[0, list(token_ids)]
    expected = _reference(masked, wanted) * count
    ids = sampling.allow(logits[0], _mask_of(token_ids))
    assert (ids is None) == (len(token_ids) > 100)
    draws = [Draw(wanted, 0, position) for position in range(count)]
    repeated = np.repeat(logits, count, axis=0)
    found = sampling.sample(repeated, draws, {} if ids is None else dict.fromkeys(range(count), ids))
    counts = np.bincount(found, minlength=VOCABULARY)
    assert not counts[expected == 0].any()
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected + 1)).all()


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0.0, 0.001, 0.3, 0.5, 0.999, 1.0]))
def test_of_a_row_is_left_what_its_mask_allows(words: int, seed: int, share: float) -> None:
    """Masks are shorter and longer than the vocabulary."""
    random = np.random.default_rng(seed)
    bits = random.random(32 * words) < share
    [logits] = _logits()
    before = logits.copy()
    is_allowed = np.zeros(VOCABULARY, bool)
    is_allowed[: min(VOCABULARY, len(bits))] = bits[:VOCABULARY]
    ids = sampling.allow(logits, _mask_of(np.flatnonzero(bits).tolist(), words))
    if ids is None:
        np.testing.assert_array_equal(logits, np.where(is_allowed, before, -np.inf))
    else:
        np.testing.assert_array_equal(ids, np.flatnonzero(is_allowed))
        np.testing.assert_array_equal(logits, before)


def test_of_equally_likely_tokens_that_are_allowed_the_lowest_is_taken() -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    ids = sampling.allow(logits[0], _mask_of([500, 7, 40]))
    assert ids is not None
    assert sampling.sample(logits, [Draw(Sampling(seed=1, temperature=0), 0, 0)], {0: ids}).tolist() == [7]


@pytest.mark.parametrize("damage", [-np.inf, np.nan])
def test_where_no_allowed_token_can_be_drawn_none_is(damage: float) -> None:
    logits = _logits(rows=2)
    logits[:, :10] = damage
    few = sampling.allow(logits[0], _mask_of(range(10)))
    nothing = sampling.allow(logits[1], _mask_of([]))
    assert few is not None
    assert nothing is not None
    draws = [Draw(Sampling(seed=1), 0, position) for position in range(2)]
    assert sampling.sample(logits, draws, {0: few, 1: nothing}).tolist() == [NO_TOKEN, NO_TOKEN]


@pytest.mark.parametrize("wanted", [Sampling(seed=1), Sampling(seed=1, temperature=0)])
@pytest.mark.parametrize("damage", [-np.inf, np.nan])
def test_a_row_without_a_likely_token_draws_none_and_the_others_draw_theirs(wanted: Sampling, damage: float) -> None:
    logits = _logits(rows=3)
    draws = [Draw(wanted, 0, position) for position in range(3)]
    whole = sampling.sample(logits.copy(), draws).tolist()
    logits[1] = damage
    assert sampling.sample(logits, draws).tolist() == [whole[0], NO_TOKEN, whole[2]]


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits = _logits(rows=len(CASES))
    draws = [Draw(wanted, choice, 40) for choice, wanted in enumerate(CASES.values())]
    together = sampling.sample(logits.copy(), draws)
    for row, draw in enumerate(draws):
        assert sampling.sample(logits[row : row + 1].copy(), [draw]) == together[row]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sampling(seed=1, temperature=-0.1),
        lambda: Sampling(seed=1, temperature=float("nan")),
        lambda: Sampling(seed=1, temperature=float("inf")),
        lambda: Sampling(seed=1, top_p=1.1),
        lambda: Sampling(seed=1, top_k=-1),
        lambda: Sampling(seed=1, min_p=2),
        lambda: Sampling(seed=1, repetition_penalty=0),
        lambda: Sampling(seed=1, repetition_penalty=float("nan")),
        lambda: Sampling(seed=1, presence_penalty=float("inf")),
        lambda: Sampling(seed=1, frequency_penalty=float("nan")),
        lambda: Sampling(seed=1, logit_bias=((3, float("nan")),)),
        lambda: Sampling(seed=1, logit_bias=((3, 1.0), (3, 2.0))),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Sampling]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()
