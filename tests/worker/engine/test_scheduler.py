"""The scheduler's decisions, and what follows from them over a whole run; the engine shows the rest."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduler import (
    WORTH_WAITING_TOKENS,
    Begun,
    Budget,
    Entrance,
    Piece,
    Room,
    Step,
    Waiting,
    admit,
    choose_stages,
    plan,
)

BUDGET = Budget(slots=4, spans_max=2, chunk_tokens=8, mixes=True)
PLENTY = Room(free_tokens=1000, promised_tokens=0)

hits = st.lists(st.integers(0, 50), min_size=3, max_size=3).map(tuple)


@pytest.mark.parametrize("nothing", ["slots", "spans_max", "chunk_tokens"])
def test_a_budget_for_nothing_is_refused(nothing: str) -> None:
    with pytest.raises(ValueError, match="expected slots, spans_max and chunk_tokens > 0"):
        replace(BUDGET, **{nothing: 0})


def test_choices_beyond_the_free_rows_wait() -> None:
    entrance = admit(Waiting(10, 9, (0,)), [], [], 1, 20, PLENTY, BUDGET)
    assert entrance == Entrance(Begun(stage=0, computed=0, prompt_tokens=10, choices=3), source=0)
    assert admit(Waiting(10, 1, (0,)), [], [], 4, 20, PLENTY, BUDGET) is None
    assert admit(Waiting(10, 1, (0, 0)), [], [Begun(0, 0, 10, 2)], 2, 20, PLENTY, BUDGET) is None


def test_a_few_rows_are_kept_free_for_what_is_urgent() -> None:
    budget = Budget(slots=64, spans_max=2, chunk_tokens=8, mixes=True)
    assert admit(Waiting(10, 1, (0,)), [], [], 61, 20, PLENTY, budget) is not None
    assert admit(Waiting(10, 1, (0,)), [], [], 62, 20, PLENTY, budget) is None
    assert admit(Waiting(10, 1, (0,), is_urgent=True), [], [], 63, 20, PLENTY, budget) is not None
    assert admit(Waiting(10, 1, (0,), is_urgent=True), [], [], 64, 20, PLENTY, budget) is None


def test_where_rows_wait_for_prompts_these_enter_in_bursts() -> None:
    budget = Budget(slots=64, spans_max=16, chunk_tokens=8192, mixes=False)
    assert budget.burst == 4
    first = Waiting(10, 1, (0, 0))
    assert admit(first, [], [], 61, 20, PLENTY, budget) is None
    assert admit(first, [], [], 60, 20, PLENTY, budget) is not None
    assert admit(first, [], [Begun(0, 0, 10, 1)], 60, 20, PLENTY, budget) is not None
    assert admit(replace(first, is_urgent=True), [], [], 61, 20, PLENTY, budget) is not None
    assert replace(budget, mixes=True).burst == replace(budget, spans_max=1).burst == 0


def test_no_more_prompts_are_in_work_than_a_step_takes_or_stages_hold() -> None:
    inside = [Begun(0, 0, 10, 1), Begun(1, 0, 10, 1)]
    assert admit(Waiting(10, 1, (0, 0, 0)), [], inside, 0, 20, PLENTY, BUDGET) is None
    assert admit(Waiting(10, 1, (0,)), [], inside[:1], 0, 20, PLENTY, BUDGET) is None


def test_a_prompt_waits_for_room_unless_nothing_else_would_make_any() -> None:
    tight = Room(free_tokens=100, promised_tokens=90)
    assert admit(Waiting(10, 1, (0,)), [], [], 1, 20, tight, BUDGET) is None
    assert admit(Waiting(10, 1, (0, 0)), [], [Begun(0, 0, 10, 1)], 0, 20, tight, BUDGET) is None
    entrance = admit(Waiting(10, 2, (0,)), [], [], 0, 200, tight, BUDGET)
    assert entrance == Entrance(Begun(0, 0, 10, 1), source=0)


def test_a_prompt_waits_for_one_in_work_that_begins_alike_if_that_saves_enough() -> None:
    inside = [Begun(0, 0, 100, 1)]
    enough = WORTH_WAITING_TOKENS + 6
    assert admit(Waiting(100, 1, (5, 5), enough), [], inside, 0, 120, PLENTY, BUDGET) is None
    assert admit(Waiting(100, 1, (5, 5), enough - 1), [], inside, 0, 120, PLENTY, BUDGET) is not None


@given(st.integers(1, 60), hits, st.lists(hits, max_size=5), st.sets(st.integers(0, 2), max_size=2))
def test_what_is_there_is_not_computed_again_but_for_the_last_token(
    tokens: int, first: tuple[int, ...], others: list[tuple[int, ...]], busy: set[int]
) -> None:
    first = tuple(min(hit, tokens) for hit in first)
    inside = [Begun(stage, 0, 60, 1) for stage in busy]
    budget = Budget(slots=9, spans_max=3, chunk_tokens=8, mixes=True)
    entrance = admit(Waiting(tokens, 1, first), others, inside, 0, tokens + 1, PLENTY, budget)
    assert entrance is not None
    assert entrance.begun.stage not in busy
    assert entrance.begun.computed == min(max(first), tokens - 1)
    assert first[entrance.source] == max(first)


def test_the_stage_with_the_longest_hit_is_taken() -> None:
    assert choose_stages((3, 9, 0), [], busy=()) == (1, 1)


def test_a_stage_that_others_need_is_left_alone_unless_they_find_the_same_elsewhere() -> None:
    assert choose_stages((3, 0, 0), [(40, 0, 0)], busy=()) == (2, 0)
    assert choose_stages((40, 0, 0), [(40, 0, 0)], busy=()) == (0, 0)
    assert choose_stages((3, 0, 0), [(40, 40, 40)], busy=()) == (0, 0)


def test_a_busy_stage_gives_what_it_has_to_another() -> None:
    assert choose_stages((0, 9, 0), [], busy={1}) == (2, 1)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=3), st.integers(0, 4), st.booleans())
def test_prompts_share_a_steps_tokens_in_their_order_and_rows_ride_along_where_steps_mix(
    prompts: list[tuple[int, int]], rows: int, mixes: bool
) -> None:
    inside = [Begun(stage, done, done + left, 1) for stage, (done, left) in enumerate(prompts)]
    step = plan(inside, rows, Budget(4, 3, 8, mixes))
    if step is None:
        assert not inside
        assert not rows
        return
    assert sum(piece.stop - piece.start for piece in step.pieces) == min(8, sum(left for _, left in prompts))
    assert [piece.begun for piece in step.pieces] == inside[: len(step.pieces)]
    for piece in step.pieces[:-1]:
        assert piece.ends_prompt
    assert step.writes == (rows > 0 and (mixes or not inside))


def test_without_a_prompt_all_rows_are_written_and_without_rows_nothing() -> None:
    assert plan([], 3, BUDGET) == Step((), writes=True)
    assert plan([], 0, BUDGET) is None
    assert plan([Begun(0, 2, 20, 1)], 3, BUDGET) == Step((Piece(Begun(0, 2, 20, 1), 2, 10),), writes=True)


@dataclass
class Job:
    """One prompt of a simulated run."""

    prompt_tokens: int
    choices: int
    answer_tokens: int


jobs = st.lists(st.builds(Job, st.integers(1, 40), st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=20)


@given(jobs, st.integers(1, 6), st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(60, 400))
def test_every_prompt_enters_in_its_turn_and_ends_within_budget_and_room(
    line: list[Job], slots: int, stages: int, chunk: int, mixes: bool, room: int
) -> None:
    """A run with exact expectations and without shared beginnings: rows are told by what they still write."""
    budget = Budget(slots, stages, chunk, mixes)
    waiting = [replace(job) for job in line]
    inside: list[tuple[Begun, Job]] = []
    rows: list[tuple[int, int]] = []  # tokens to write, room taken
    ended = 0
    bound = sum(-(-job.prompt_tokens // chunk) * job.choices + job.answer_tokens * job.choices for job in line)
    for _ in range(2 * bound + 2):
        while waiting:
            job = waiting[0]
            expected = job.prompt_tokens + job.answer_tokens
            promised = sum(
                begun.choices * (begun.prompt_tokens + other.answer_tokens) for begun, other in inside
            ) + sum(taken for _, taken in rows)
            begun_now = [begun for begun, _ in inside]
            first = Waiting(job.prompt_tokens, job.choices, (0,) * stages)
            entrance = admit(first, [], begun_now, len(rows), expected, Room(room, promised), budget)
            if entrance is None:
                break
            assert entrance.begun.stage not in {begun.stage for begun in begun_now}
            assert promised + entrance.begun.choices * expected <= room
            inside.append((entrance.begun, job))
            job.choices -= entrance.begun.choices
            if not job.choices:
                waiting.pop(0)
        assert len(rows) + sum(begun.choices for begun, _ in inside) <= slots
        step = plan([begun for begun, _ in inside], len(rows), budget)
        if step is None:
            break
        assert sum(piece.stop - piece.start for piece in step.pieces) <= chunk
        if step.writes:
            rows = [(left - 1, taken) for left, taken in rows]
        done = {piece.begun.stage: piece for piece in step.pieces}
        still = []
        for begun, job in inside:
            piece = done.get(begun.stage)
            if piece is not None and piece.ends_prompt:
                rows += [(job.answer_tokens - 1, job.prompt_tokens + job.answer_tokens)] * begun.choices
            else:
                still.append((replace(begun, computed=piece.stop) if piece else begun, job))
        inside = still
        ended += sum(not left for left, _ in rows)
        rows = [(left, taken) for left, taken in rows if left]
    assert not waiting
    assert not inside
    assert not rows
    assert ended == sum(job.choices for job in line)
