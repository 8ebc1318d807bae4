"""Who is served next: by priority, then by what each project has had for its weight."""

from datetime import UTC, datetime, timedelta
from itertools import cycle, islice

import hypothesis.strategies as st
from hypothesis import given

from jobs.fairness import Candidate, Shares

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINES_MAX = 64


def candidate(batch_id: int, project: str, *, priority: int = 100, weight: int = 1, minutes: int = 0) -> Candidate:
    return Candidate(batch_id, project, priority, NOW + timedelta(minutes=minutes), weight)


def test_priority_then_share_then_deadline_then_age_decides() -> None:
    shares = Shares()
    urgent, late, old, young = (
        candidate(1, "a", priority=0, minutes=9),
        candidate(2, "b", minutes=9),
        candidate(3, "c"),
        candidate(4, "d"),
    )
    assert shares.choose([young, late, urgent, old]) == urgent
    assert shares.choose([young, late, old]) == old
    assert shares.choose([young, late]) == young
    shares.charge(old, 8)
    assert shares.choose([young, late, old]) == young
    assert shares.choose([]) is None


def test_a_project_that_comes_late_has_saved_up_nothing() -> None:
    shares, here, late = Shares(), candidate(1, "here"), candidate(2, "late")
    for _ in range(100):
        shares.charge(here, 64)
    served = []
    for _ in range(10):
        chosen = shares.choose([here, late])
        assert chosen
        shares.charge(chosen, 64)
        served.append(chosen.project_id)
    assert served.count("late") in (5, 6)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=6),
    st.lists(st.integers(1, LINES_MAX), min_size=1),
)
def test_no_project_that_waits_falls_behind_its_weight_by_more_than_a_chunk(
    weights: list[int], chunks: list[int]
) -> None:
    """The bound of Goyal, Vin, Cheng 1996, theorem 1."""
    shares, had = Shares(), [0] * len(weights)
    waiting = [candidate(number, f"p{number}", weight=weight) for number, weight in enumerate(weights)]
    for lines in islice(cycle(chunks), 300):
        chosen = shares.choose(waiting)
        assert chosen
        shares.charge(chosen, lines)
        had[chosen.batch_id] += lines
    times = [lines / weight for lines, weight in zip(had, weights, strict=True)]
    for one, first in zip(times, weights, strict=True):
        for other, second in zip(times, weights, strict=True):
            assert abs(one - other) <= LINES_MAX / first + LINES_MAX / second
