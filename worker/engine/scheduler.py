"""Decides what the next step computes: values in, values out, with no clock, thread, token or device.

A step is either a prefill or a decode. Past some rows a decode step is bound by computing, so mixing the two
saves little, and neither GroupQueryAttention nor the CUDA decode kernels are at their best in a mixed run.
Prompts go first: a decode step costs about the same however many rows it has, so the slots should be full
when it runs.

What a prompt is cut into depends on its own length alone, never on its neighbours or on what is left of the
budget.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine may use: slots in all, prompt tokens in one step, the longest piece of one prompt."""

    slots: int
    step_tokens: int
    chunk_tokens: int

    def __post_init__(self) -> None:
        if not (self.slots > 0 and 0 < self.chunk_tokens <= self.step_tokens):
            raise ValueError(f"expected slots > 0 and 0 < chunk_tokens <= step_tokens, found {self}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt with choices that hold no slot yet."""

    prompt_tokens: int
    choices: int


@dataclass(frozen=True, slots=True)
class Partial:
    """A prompt in a slot, computed up to `computed` positions of it."""

    slot: int
    computed: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Slots for the next waiting prompt, one a choice: it is computed in the first, copied to the rest.

    Choices that found no free slot stay waiting, at the head.
    """

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, stop) of the prompt that the slot holds."""

    slot: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Prefill:
    """Admissions in the order of waiting, and the pieces of prompts to compute, in the order of slots."""

    admissions: tuple[Admission, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A sequence changes its slot, to close a hole."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Decode:
    """One token for each of the slots 0 to rows - 1, which hold all sequences once the moves are made."""

    moves: tuple[Move, ...]
    rows: int


def plan(
    waiting: Iterable[Waiting], partials: Sequence[Partial], taken: Collection[int], budget: Budget
) -> Prefill | Decode | None:
    """The next step, or None when there is nothing to do. `waiting` is in the order of admission and is read
    only as far as it is admitted; nothing overtakes. `taken` holds every slot in use, those of the partials
    and of choices that wait for their prompt included.
    """
    pieces = _continue(partials, budget)
    admitted = _admit(waiting, budget, budget.step_tokens - sum(piece.tokens for piece in pieces), taken)
    if pieces or admitted:
        admissions, first_pieces = _place(admitted, taken, budget)
        return Prefill(admissions, tuple(sorted([*pieces, *first_pieces], key=lambda piece: piece.slot)))
    return Decode(compaction(taken), len(taken)) if taken else None


def compaction(taken: Collection[int]) -> tuple[Move, ...]:
    """The fewest moves after which the sequences in `taken` sit in the slots 0 to len(taken) - 1."""
    rows = len(taken)
    holes = sorted(set(range(rows)).difference(taken))
    movers = sorted(slot for slot in taken if slot >= rows)
    return tuple(Move(source, target) for source, target in zip(movers, holes, strict=True))


def _continue(partials: Sequence[Partial], budget: Budget) -> list[Piece]:
    """The next pieces of prompts already begun, the furthest advanced first, as far as the budget goes."""
    pieces: list[Piece] = []
    left = budget.step_tokens
    for partial in sorted(partials, key=lambda partial: (-partial.computed, partial.slot)):
        stop = min(partial.prompt_tokens, partial.computed + budget.chunk_tokens)
        piece = Piece(partial.slot, partial.computed, stop)
        if piece.tokens > left:
            break
        pieces.append(piece)
        left -= piece.tokens
    return pieces


def _admit(waiting: Iterable[Waiting], budget: Budget, tokens_left: int, taken: Collection[int]) -> list[Waiting]:
    """The head of the line that finds slots and budget; `choices` of each are those that get a slot."""
    admitted: list[Waiting] = []
    slots_left = budget.slots - len(taken)
    for prompt in waiting if slots_left else ():
        first_tokens = min(prompt.prompt_tokens, budget.chunk_tokens)
        if first_tokens > tokens_left:
            break
        admitted.append(Waiting(prompt.prompt_tokens, min(prompt.choices, slots_left)))
        tokens_left -= first_tokens
        slots_left -= admitted[-1].choices
        if not slots_left:
            break
    return admitted


def _place(
    admitted: Sequence[Waiting], taken: Collection[int], budget: Budget
) -> tuple[tuple[Admission, ...], list[Piece]]:
    """Slots for the admitted: prompts in the order of length, so that alike neighbours can share a run.

    The choices that are copied later take the slots after them.
    """
    free = iter(sorted(set(range(budget.slots)).difference(taken)))
    firsts = {index: next(free) for index in sorted(range(len(admitted)), key=lambda i: admitted[i].prompt_tokens)}
    admissions = tuple(
        Admission((firsts[index], *(next(free) for _ in range(prompt.choices - 1))))
        for index, prompt in enumerate(admitted)
    )
    pieces = [
        Piece(firsts[index], 0, min(prompt.prompt_tokens, budget.chunk_tokens)) for index, prompt in enumerate(admitted)
    ]
    return admissions, pieces
