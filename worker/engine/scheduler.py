"""Decides what the next step computes: values in, values out, with no clock, thread, token or device.

A step takes the prompts in work a piece further, each in a stage of its own, and writes one token more in every
row. Writing costs about the same however many rows there are, so prompts enter as fast as rows and room allow; a
runner that cannot mix the two does the prompts first. How a prompt is cut into pieces changes nothing in what is
computed. Nothing overtakes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

WORTH_WAITING_TOKENS: Final = 32
"""A prompt waits for one that is in work and begins alike if that saves more than so many tokens."""

_SLOTS_FOR_ONE_URGENT: Final = 32
_SLOTS_FOR_ONE_OF_A_BURST: Final = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine may use: sequences written at once, prompts and tokens of prompts in one step, and whether
    steps mix prompts and rows.
    """

    slots: int
    spans_max: int
    chunk_tokens: int
    mixes: bool

    def __post_init__(self) -> None:
        if min(self.slots, self.spans_max, self.chunk_tokens) < 1:
            raise ValueError(f"expected slots, spans_max and chunk_tokens > 0, found {self}")

    @property
    def kept_free(self) -> int:
        """Slots that only urgent prompts may take: lines of a batch, written at once, end at once, and whoever came
        in between would wait for that.
        """
        return self.slots // _SLOTS_FOR_ONE_URGENT

    @property
    def burst(self) -> int:
        """Rows that must be free before prompts enter beside others. Where rows wait while prompts are computed, and
        many prompts cost hardly more than one, they enter together.
        """
        return 0 if self.mixes or self.spans_max == 1 else self.slots // _SLOTS_FOR_ONE_OF_A_BURST


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first prompt of the line: its length, its choices without a row, for each stage how many of its first
    tokens are there, and how many will be once the prompts in work are computed, at most. Urgent is what somebody
    waits for now.
    """

    prompt_tokens: int
    choices: int
    hits: tuple[int, ...]
    coming: int = 0
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """A prompt in work: in its stage up to `computed`, with rows kept free for `choices`."""

    stage: int
    computed: int
    prompt_tokens: int
    choices: int


@dataclass(frozen=True, slots=True)
class Entrance:
    """A prompt begins. If `source` is not its stage, what is computed of it must be copied from there first."""

    begun: Begun
    source: int


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens for which the cache has room, and those that the choices inside are expected to need until they end."""

    free_tokens: int
    promised_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, stop) of a prompt in work."""

    begun: Begun
    start: int
    stop: int

    @property
    def ends_prompt(self) -> bool:
        return self.stop == self.begun.prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """At most one piece of each prompt in work; `writes` if all rows get a token."""

    pieces: tuple[Piece, ...]
    writes: bool


def admit(
    first: Waiting,
    others: Sequence[Sequence[int]],
    inside: Sequence[Begun],
    rows: int,
    expected_tokens: int,
    room: Room,
    budget: Budget,
) -> Entrance | None:
    """Let the first prompt of the line begin, or None while there is no stage, no row or no room for it, or while
    another in work computes what it needs.

    `others` holds the hits of those behind it, as far as one cares to look; `inside`, the prompts in work.
    `expected_tokens` is what one choice takes until it ends, prompt included. With nothing inside, the prompt
    enters in any case: it would wait for ever.
    """
    taken = rows + sum(begun.choices for begun in inside)
    choices = min(first.choices, budget.slots - taken - (0 if first.is_urgent else budget.kept_free))
    if choices < 1 or len(inside) == min(budget.spans_max, len(first.hits)):
        return None
    if inside and first.coming > max(first.hits) + WORTH_WAITING_TOKENS:
        return None
    if rows and not inside and not first.is_urgent and budget.slots - rows < budget.burst:
        return None
    fitting = (room.free_tokens - room.promised_tokens) // expected_tokens
    choices = min(choices, fitting if taken else max(1, fitting))
    if choices < 1:
        return None
    stage, source = choose_stages(first.hits, others, {begun.stage for begun in inside})
    # The last token is computed even where it is there: its logits are wanted.
    computed = min(first.hits[source], first.prompt_tokens - 1)
    return Entrance(Begun(stage, computed, first.prompt_tokens, choices), source)


def choose_stages(hits: Sequence[int], others: Sequence[Sequence[int]], busy: Collection[int]) -> tuple[int, int]:
    """Where a prompt is computed, which is no busy stage, and which stage it takes its first tokens from.

    Whatever its stage holds beyond the hit is overwritten, and must be computed again for the first who needs it
    and finds it in no other stage: the stage is the one where that is least. Of equals, the one with the longest
    hit, so that little is copied; of equals, the last.
    """

    def loss(stage: int) -> int:
        return max((_lost(other, stage, hits[stage]) for other in others), default=0)

    free = [stage for stage in range(len(hits)) if stage not in busy]
    target = min(free, key=lambda stage: (loss(stage), -hits[stage], -stage))
    longest = max(hits)
    return target, target if hits[target] == longest else hits.index(longest)


def _lost(other: Sequence[int], stage: int, kept: int) -> int:
    """What a prompt with the hits `other` loses if a stage keeps only its first `kept` tokens."""
    elsewhere = max((hit for place, hit in enumerate(other) if place != stage), default=0)
    return max(0, other[stage] - max(kept, elsewhere))


def plan(inside: Sequence[Begun], rows: int, budget: Budget) -> Step | None:
    """The next step, or None when there is nothing to do. Prompts share the tokens of a step in their order."""
    pieces, left = [], budget.chunk_tokens
    for begun in inside:
        stop = min(begun.prompt_tokens, begun.computed + left)
        if stop > begun.computed:
            pieces.append(Piece(begun, begun.computed, stop))
        left -= stop - begun.computed
    writes = rows > 0 and (budget.mixes or not pieces)
    return Step(tuple(pieces), writes) if pieces or writes else None
