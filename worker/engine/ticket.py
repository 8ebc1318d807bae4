"""One prompt on its way through the engine: the choices it still owes, and the future that awaits them."""

from collections.abc import Callable, Collection
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from worker.engine.errors import PromptRefused, PromptTooLong
from worker.engine.prompt import Completion, Prompt
from worker.engine.sequence import Sequence


class Ticket:
    """Made in the caller's thread, then the engine's thread alone touches it; both may touch the future."""

    def __init__(self, prompt: Prompt, token_ids: npt.NDArray[np.int64], sequences: list[Sequence]) -> None:
        self.token_ids = token_ids
        self.priority = prompt.priority
        self.future: Future[list[Completion]] = Future()
        self.sequences = sequences
        self.cached_tokens = 0
        """Tokens of the prompt that did not have to be computed for it."""
        self.is_settled = False
        """Its future has what it gets."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids)

    def resolve_if_complete(self) -> None:
        """Hand the completions over once every choice has ended."""
        if all(sequence.finish_reason for sequence in self.sequences):
            completions = [sequence.completion(self.cached_tokens) for sequence in self.sequences]
            self._settle(lambda future: future.set_result(completions))

    def fail(self, error: BaseException) -> None:
        """Hand the error over, unless the future was cancelled or has its answer."""
        self._settle(lambda future: future.set_exception(error))

    def _settle(self, answer: Callable[[Future[list[Completion]]], None]) -> None:
        """The future is pending until now, so that it can be cancelled; those who wait learn if it was."""
        if self.is_settled:
            return
        self.is_settled = True
        if self.future.set_running_or_notify_cancel():
            answer(self.future)


def open_ticket(prompt: Prompt, *, context_tokens: int, vocabulary: int) -> Ticket:
    """Check a prompt against the model, make its sequences and watchers; PromptRefused if it does not fit."""
    token_ids = np.array(prompt.token_ids, dtype=np.int64)
    if token_ids.ndim != 1 or not len(token_ids):
        raise PromptRefused("a prompt is one row of at least one token id")
    _check_ids("token ids", (int(token_ids.min()), int(token_ids.max())), vocabulary)
    _check_ids("stop_token_ids", prompt.stop_token_ids, vocabulary)
    _check_ids("logit_bias", [token_id for token_id, _ in prompt.sampling.logit_bias], vocabulary)
    if len(token_ids) >= context_tokens:
        raise PromptTooLong(len(token_ids), context_tokens)
    if prompt.choices < 1 or (prompt.tokens_max is not None and prompt.tokens_max < 1):
        raise PromptRefused(f"choices is {prompt.choices} and tokens_max {prompt.tokens_max}, expected 1 or more")
    if prompt.tokens_min < 0 or (prompt.top_logprobs or 0) < 0:
        raise PromptRefused(
            f"tokens_min is {prompt.tokens_min} and top_logprobs {prompt.top_logprobs}, expected 0 or more"
        )
    room = context_tokens - len(token_ids)
    tokens_max = room if prompt.tokens_max is None else min(prompt.tokens_max, room)
    sequences = [
        Sequence(prompt, choice, prompt_ids=token_ids, tokens_max=tokens_max) for choice in range(prompt.choices)
    ]
    return Ticket(prompt, token_ids, sequences)


def _check_ids(what: str, token_ids: Collection[int], vocabulary: int) -> None:
    low, high = min(token_ids, default=0), max(token_ids, default=0)
    if low < 0 or high >= vocabulary:
        raise PromptRefused(f"{what} run from {low} to {high}, expected 0 to {vocabulary - 1}")
