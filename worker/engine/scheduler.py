"""Decides what the next step computes: values in, values out, with no clock, thread, token or device.

A step takes one prompt a piece further, in a stage, and writes one token more in every row. A runner that
cannot mix the two does the prompts first: writing costs about the same however many rows there are, so the
rows should be full. What a prompt is cut into depends on its own length and on what its stage holds already,
never on its neighbours. Nothing overtakes.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine may use: sequences written at once, the longest piece of a prompt, whether steps mix."""

    slots: int
    chunk_tokens: int
    mixes: bool

    def __post_init__(self) -> None:
        if not (self.slots > 0 and self.chunk_tokens > 0):
            raise ValueError(f"expected slots > 0 and chunk_tokens > 0, found {self}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first prompt of the line: its length, its choices without a row, and for each stage how many of its
    first tokens are there.
    """

    prompt_tokens: int
    choices: int
    hits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt in work: in its stage up to `computed`, with rows kept free for `choices`."""

    stage: int
    computed: int
    prompt_tokens: int
    choices: int


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens for which the cache has room, and those that the rows are expected to need until they end."""

    free_tokens: int
    promised_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """Positions [start, stop) of the prompt in work, or none; `writes` if all rows get a token."""

    begun: Begun | None
    start: int
    stop: int
    writes: bool


def admit(
    first: Waiting, others: Sequence[Sequence[int]], rows: int, expected_tokens: int, room: Room, budget: Budget
) -> Begun | None:
    """Let the first prompt of the line begin, or None while there is no row or no room for it.

    `others` holds the hits of those behind it, as far as one cares to look. `expected_tokens` is what one
    choice takes until it ends, prompt included. With nothing in the rows, the prompt enters in any case: it
    would wait for ever.
    """
    choices = min(first.choices, budget.slots - rows)
    if choices < 1:
        return None
    fitting = (room.free_tokens - room.promised_tokens) // expected_tokens
    choices = min(choices, fitting if rows else max(1, fitting))
    if choices < 1:
        return None
    stage = choose_stage(first.hits, others)
    # The last token is computed even where it is there: its logits are wanted.
    computed = min(first.hits[stage], first.prompt_tokens - 1)
    return Begun(stage, computed, first.prompt_tokens, choices)


def choose_stage(hits: Sequence[int], others: Sequence[Sequence[int]]) -> int:
    """The stage with the most to give, less what those behind would lose: all that lies beyond the hit is
    overwritten, and must be computed again for the first who needs it. Of equals, the last.
    """

    def gain(stage: int) -> tuple[int, int]:
        needed = max((other[stage] for other in others), default=0)
        return hits[stage] - max(0, needed - hits[stage]), stage

    return max(range(len(hits)), key=gain)


def plan(begun: Begun | None, rows: int, budget: Budget) -> Step | None:
    """The next step, or None when there is nothing to do."""
    if begun is None:
        return Step(None, 0, 0, writes=True) if rows else None
    stop = min(begun.prompt_tokens, begun.computed + budget.chunk_tokens)
    return Step(begun, begun.computed, stop, writes=budget.mixes and rows > 0)
