"""The scheduler against a model of the loop that knows only slots, lengths and who waits."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduler import (
    Budget,
    Decode,
    Move,
    Partial,
    Piece,
    Prefill,
    Waiting,
    compaction,
    plan,
)


@dataclass
class Prompt:
    tokens: int
    outputs: list[int]
    """Tokens to write of each choice."""
    entered: int = 0


@dataclass
class World:
    """Carries plans out and holds them against what they promise."""

    budget: Budget
    waiting: list[Prompt]
    seats: dict[int, list[int]] = field(default_factory=dict)
    """slot -> [tokens still to write]"""
    partials: dict[int, tuple[Partial, tuple[int, ...]]] = field(default_factory=dict)
    admitted: list[Prompt] = field(default_factory=list)
    steps: int = 0

    def step(self) -> bool:
        waiting = [Waiting(prompt.tokens, len(prompt.outputs) - prompt.entered) for prompt in self.waiting]
        partials = [partial for partial, _ in self.partials.values()]
        step = plan(iter(waiting), partials, frozenset(self.seats), self.budget)
        if step is None:
            return False
        self.steps += 1
        if isinstance(step, Prefill):
            self._prefill(step)
        else:
            self._decode(step)
        return True

    def _prefill(self, step: Prefill) -> None:
        assert step.pieces
        assert sum(piece.tokens for piece in step.pieces) <= self.budget.step_tokens
        assert all(0 < piece.tokens <= self.budget.chunk_tokens for piece in step.pieces)
        slots = [piece.slot for piece in step.pieces]
        assert slots == sorted(set(slots))
        for admission in step.admissions:
            prompt = self.waiting[0]
            for slot in admission.slots:
                assert slot not in self.seats
                assert 0 <= slot < self.budget.slots
                self.seats[slot] = [prompt.outputs[prompt.entered]]
                prompt.entered += 1
            self.partials[admission.slots[0]] = (
                Partial(admission.slots[0], 0, prompt.tokens),
                admission.slots,
            )
            if prompt.entered == len(prompt.outputs):
                self.admitted.append(self.waiting.pop(0))
        for piece in step.pieces:
            self._advance(piece)

    def _advance(self, piece: Piece) -> None:
        partial, slots = self.partials.pop(piece.slot)
        assert piece.start == partial.computed
        if piece.stop < partial.prompt_tokens:
            self.partials[piece.slot] = (Partial(piece.slot, piece.stop, partial.prompt_tokens), slots)
            return
        for slot in slots:
            self._write(slot)

    def _decode(self, step: Decode) -> None:
        assert not self.partials
        for move in step.moves:
            assert move.target not in self.seats
            self.seats[move.target] = self.seats.pop(move.source)
        assert sorted(self.seats) == list(range(step.rows))
        for slot in range(step.rows):
            self._write(slot)

    def _write(self, slot: int) -> None:
        self.seats[slot][0] -= 1
        if not self.seats[slot][0]:
            del self.seats[slot]


prompts = st.builds(Prompt, tokens=st.integers(1, 40), outputs=st.lists(st.integers(1, 9), min_size=1, max_size=6))
budgets = st.builds(
    lambda slots, chunk, more: Budget(slots=slots, step_tokens=chunk + more, chunk_tokens=chunk),
    slots=st.integers(1, 5),
    chunk=st.integers(1, 16),
    more=st.integers(0, 30),
)


@given(budgets, st.lists(prompts, max_size=12))
def test_every_prompt_is_admitted_in_order_and_ends_within_budget_and_slots(
    budget: Budget, arriving: list[Prompt]
) -> None:
    """No slot is given twice, no budget passed, nothing overtakes, and the number of steps is bounded."""
    world = World(budget, list(arriving))
    while world.step():
        pieces = sum(-(-prompt.tokens // budget.chunk_tokens) * len(prompt.outputs) for prompt in arriving)
        assert world.steps <= pieces + sum(sum(prompt.outputs) for prompt in arriving)
    assert world.admitted == arriving
    assert not world.seats
    assert not world.partials


@given(budgets, st.lists(prompts, min_size=1, max_size=12))
def test_a_decode_step_leaves_no_slot_empty_while_prompts_wait(budget: Budget, arriving: list[Prompt]) -> None:
    world = World(budget, arriving)
    while True:
        waiting = [Waiting(prompt.tokens, len(prompt.outputs) - prompt.entered) for prompt in world.waiting]
        partials = [partial for partial, _ in world.partials.values()]
        step = plan(waiting, partials, frozenset(world.seats), budget)
        if isinstance(step, Decode) and waiting:
            assert step.rows == budget.slots
        if not world.step():
            break


@given(st.sets(st.integers(0, 40)))
def test_compaction_closes_every_hole_with_the_fewest_moves(taken: set[int]) -> None:
    moves = compaction(taken)
    after = set(taken)
    for move in moves:
        after.remove(move.source)
        assert move.target not in taken
        after.add(move.target)
    assert after == set(range(len(taken)))
    assert len(moves) == sum(slot >= len(taken) for slot in taken)


def test_prompts_take_neighbouring_slots_in_the_order_of_length_and_copies_come_after() -> None:
    budget = Budget(slots=8, step_tokens=100, chunk_tokens=50)
    waiting = [Waiting(30, 2), Waiting(10, 1), Waiting(20, 2)]
    step = plan(waiting, [], {1}, budget)
    assert isinstance(step, Prefill)
    assert [admission.slots for admission in step.admissions] == [(3, 4), (0,), (2, 5)]
    assert step.pieces == (Piece(0, 0, 10), Piece(2, 0, 20), Piece(3, 0, 30))


def test_choices_beyond_the_free_slots_wait_for_the_next_wave() -> None:
    step = plan([Waiting(3, 9), Waiting(3, 1)], [], set(), Budget(slots=4, step_tokens=50, chunk_tokens=50))
    assert isinstance(step, Prefill)
    assert [admission.slots for admission in step.admissions] == [(0, 1, 2, 3)]


def test_a_prompt_that_does_not_fit_the_budget_waits_whole_instead_of_being_cut() -> None:
    budget = Budget(slots=4, step_tokens=60, chunk_tokens=50)
    step = plan([Waiting(40, 1), Waiting(30, 1), Waiting(5, 1)], [], set(), budget)
    assert isinstance(step, Prefill)
    assert step.pieces == (Piece(0, 0, 40),)


def test_a_begun_prompt_goes_on_before_others_enter() -> None:
    budget = Budget(slots=4, step_tokens=60, chunk_tokens=50)
    step = plan([Waiting(5, 1), Waiting(9, 1)], [Partial(2, 50, 105)], {2}, budget)
    assert isinstance(step, Prefill)
    assert step.pieces == (Piece(0, 0, 5), Piece(2, 50, 100))


def test_holes_are_closed_before_a_decode_and_by_no_more_than_it_takes() -> None:
    step = plan([], [], {0, 3, 5, 6}, Budget(slots=8, step_tokens=60, chunk_tokens=50))
    assert step == Decode((Move(5, 1), Move(6, 2)), 4)


@pytest.mark.parametrize(("slots", "step_tokens", "chunk_tokens"), [(0, 5, 5), (1, 5, 6), (1, 5, 0)])
def test_a_budget_that_cannot_move_is_refused(slots: int, step_tokens: int, chunk_tokens: int) -> None:
    with pytest.raises(ValueError, match="expected slots"):
        Budget(slots, step_tokens, chunk_tokens)
