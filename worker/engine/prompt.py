"""What goes into the engine and what comes out: a prompt in token ids, a completion in token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from worker.engine.logprobs import TokenLogprob
from worker.engine.sampling import Mask, Sampling

URGENT: Final = 0
"""Prompts of this priority may take the rows that are kept free for them."""


class FinishReason(StrEnum):
    """Why a choice ended. Cancelled and failed prompts have no completion, so no reason either."""

    STOP = "stop"
    """A stop token, or a watcher that wanted no more."""
    LENGTH = "length"
    """`tokens_max` is reached, or the context is full."""


class Watcher(Protocol):
    """A feature of the text that one choice owns: stop strings, a grammar. Called on the engine's thread."""

    def mask(self) -> Mask | None:
        """The tokens allowed next, one bit each, packed low bit first; None allows all."""
        ...

    def accept(self, token_id: int) -> bool:
        """Take a token that was drawn or forced; False ends the choice with it. Stop tokens are not shown."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that can only follow now, one after the other, as far as that is known; mostly none. The mask
        allows the first of them alone.
        """
        ...

    def finish(self) -> None:
        """The choice has ended, in whatever way: called once."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt and all that is wanted of it.

    `tokens_max` counts each choice's output; None means up to the context. `stop_token_ids` holds every token
    that ends a choice, the model's own among them: the engine knows none by itself. Before `tokens_min` tokens
    none of them is drawn, while a watcher may end a choice at any time. A lower `priority` enters first.
    `watch` makes the watcher of a choice, given its index; `submit` calls it, in the caller's thread.
    `top_logprobs` asks for the log-probability of each token and of so many of the likeliest; None for neither.
    """

    token_ids: Sequence[int] | npt.NDArray[np.int64]
    sampling: Sampling
    tokens_max: int | None = None
    tokens_min: int = 0
    choices: int = 1
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    top_logprobs: int | None = None
    watch: Callable[[int], Watcher] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice, ended.

    `token_ids` leaves the stop token out. `output_tokens` counts every token that was drawn, the stop token
    included, as vLLM's `completion_tokens` does. A usage adds up `output_tokens` over the choices, but has
    `prompt_tokens` and `cached_tokens` (those of the prompt that were not computed for it) once. `logprobs` has
    one entry for each of `token_ids`, if they were asked for.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
