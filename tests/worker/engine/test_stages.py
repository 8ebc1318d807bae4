import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.stages import AHEAD, Stages, shared

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_two_texts_share_what_comes_before_their_first_difference(one: list[int], other: list[int]) -> None:
    count = shared(np.array(one, np.int64), np.array(other, np.int64))
    assert one[:count] == other[:count]
    assert count == min(len(one), len(other)) or one[count] != other[count]


def test_a_stage_forgets_what_it_held_before() -> None:
    stages = Stages(2)
    stages.hold(1, np.array([1, 2, 3]))
    assert stages.hits(np.array([1, 2, 9])) == (0, 2)
    stages.hold(1, np.array([1, 9]))
    assert stages.hits(np.array([1, 2, 9])) == (0, 1)


def test_only_the_next_of_a_long_line_are_looked_at() -> None:
    line = (np.array([number]) for number in range(10**6))
    assert len(Stages(1).hits_ahead(line)) == AHEAD
    assert next(line)[0] <= AHEAD + 1
