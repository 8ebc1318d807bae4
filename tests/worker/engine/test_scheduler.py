"""The scheduler's decisions, one at a time; that they suffice is shown through the engine, over a fake runner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduler import Begun, Budget, Room, Step, Waiting, admit, choose_stage, plan

BUDGET = Budget(slots=4, chunk_tokens=8, mixes=True)
PLENTY = Room(free_tokens=1000, promised_tokens=0)

hits = st.lists(st.integers(0, 50), min_size=3, max_size=3).map(tuple)


@pytest.mark.parametrize(("slots", "chunk_tokens"), [(0, 8), (4, 0)])
def test_a_budget_for_nothing_is_refused(slots: int, chunk_tokens: int) -> None:
    with pytest.raises(ValueError, match="expected slots > 0"):
        Budget(slots, chunk_tokens, mixes=True)


def test_choices_beyond_the_free_rows_wait() -> None:
    begun = admit(Waiting(10, 9, (0,)), [], 1, 20, PLENTY, BUDGET)
    assert begun == Begun(stage=0, computed=0, prompt_tokens=10, choices=3)
    assert admit(Waiting(10, 1, (0,)), [], 4, 20, PLENTY, BUDGET) is None


def test_a_prompt_waits_for_room_unless_nothing_else_would_make_any() -> None:
    tight = Room(free_tokens=100, promised_tokens=90)
    assert admit(Waiting(10, 1, (0,)), [], 1, 20, tight, BUDGET) is None
    assert admit(Waiting(10, 2, (0,)), [], 0, 200, tight, BUDGET) == Begun(0, 0, 10, 1)


@given(st.integers(1, 60), hits, st.lists(hits, max_size=5))
def test_what_is_there_is_not_computed_again_but_for_the_last_token(
    tokens: int, first: tuple[int, ...], others: list[tuple[int, ...]]
) -> None:
    first = tuple(min(hit, tokens) for hit in first)
    begun = admit(Waiting(tokens, 1, first), others, 0, tokens + 1, PLENTY, BUDGET)
    assert begun is not None
    assert begun.computed == min(first[begun.stage], tokens - 1)


def test_the_stage_with_the_longest_hit_is_taken() -> None:
    assert choose_stage((3, 9, 0), []) == 1


def test_a_stage_that_others_need_is_left_alone() -> None:
    assert choose_stage((3, 0, 0), [(40, 0, 0)]) == 2
    assert choose_stage((40, 0, 0), [(40, 0, 0)]) == 0


@given(st.integers(0, 99), st.integers(1, 100), st.integers(0, 4), st.booleans())
def test_pieces_are_as_long_as_allowed_and_rows_ride_along_where_steps_mix(
    computed: int, left: int, rows: int, mixes: bool
) -> None:
    begun = Begun(0, computed, computed + left, 1)
    step = plan(begun, rows, Budget(4, 8, mixes))
    assert step == Step(begun, computed, computed + min(left, 8), writes=mixes and rows > 0)


def test_without_a_prompt_all_rows_are_written_and_without_rows_nothing() -> None:
    assert plan(None, 3, BUDGET) == Step(None, 0, 0, writes=True)
    assert plan(None, 0, BUDGET) is None
