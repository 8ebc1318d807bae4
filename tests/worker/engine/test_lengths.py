"""What answers are expected to take of the cache."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.lengths import Lengths


@given(st.lists(st.integers(0, 3000), max_size=200), st.integers(1, 500), st.integers(1, 3000))
def test_no_more_is_expected_than_allowed_and_one_token_at_least(seen: list[int], tokens: int, answer_max: int) -> None:
    lengths = Lengths()
    for length in seen:
        lengths.note(length)
    assert tokens < lengths.expected(tokens, tokens + answer_max) <= tokens + answer_max


def test_expectations_follow_what_is_seen_with_a_margin() -> None:
    lengths = Lengths()
    for _ in range(200):
        lengths.note(10)
    assert 10 <= lengths.expected(0, 10_000) <= 20
    for _ in range(200):
        lengths.note(1000)
    assert 1000 <= lengths.expected(0, 10_000) <= 2000
