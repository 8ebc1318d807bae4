"""Who is inside the engine: the choices that are written in rows, and the prompts that are computed."""

from bisect import bisect_right
from dataclasses import dataclass

from worker.engine.rows import DeviceRows
from worker.engine.scheduler import Begun
from worker.engine.sequence import Sequence as Choice
from worker.engine.softmax import Ids, Logits
from worker.engine.ticket import Ticket
from worker.engine.waiting import Entry


@dataclass(slots=True, eq=False)
class Row:
    """Who is written in a row, and how many of its tokens are in the cache. A choice that had to leave its row is
    written again, token for token, before it goes on: so it reads as if it had stayed, to the last bit.
    """

    ticket: Ticket
    choice: Choice
    beginning: Ids
    """What was computed at once: the prompt and what the choice must begin with."""
    fed: int
    drawn_at: int | None = None
    """Where on the device its next token is, until that is read. It may be in the cache before."""

    @property
    def length(self) -> int:
        """Positions in the KV cache."""
        return self.choice.prompt_tokens + self.fed

    @property
    def is_going_on(self) -> bool:
        """It has not ended, and somebody wants it."""
        return self.choice.finish_reason is None and not self.ticket.is_settled

    @property
    def awaits_token(self) -> bool:
        """All that it has is in the cache."""
        return self.fed == len(self.choice.token_ids)

    @property
    def unfed(self) -> list[int]:
        """The tokens that go into the cache next: one as a rule; more where some were forced or are written again."""
        return self.choice.token_ids[self.fed :]

    @property
    def stretch(self) -> int:
        """How many of them were drawn and forced together."""
        stretches = self.choice.stretches
        return stretches[bisect_right(stretches, self.fed)] - self.fed

    @property
    def next_id(self) -> int:
        """The first of them, or of one that is still being drawn what `Runner.step` takes in its place."""
        return self.choice.token_ids[self.fed] if self.drawn_at is None else -1 - self.drawn_at

    @property
    def ends_with_next(self) -> bool:
        """The token that is being drawn is the last that it may have."""
        return self.drawn_at is not None and len(self.choice.token_ids) + 1 == self.choice.tokens_max


@dataclass(slots=True, eq=False)
class Work:
    """A prompt that is being computed, for choices that have left the line."""

    entry: Entry
    begun: Begun
    expected_tokens: int
    """What each choice is likely to take until it ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a step gave: the logits of some rows."""

    logits: Logits | DeviceRows
    rows: list[Row]
    prompt_tokens: int
