"""One choice being written: what it has so far and when it ends. Knows nothing of slots or of threads."""

from itertools import takewhile

from worker.engine.adjustment import Adjustment
from worker.engine.logprobs import TokenLogprob
from worker.engine.prompt import Completion, FinishReason, Prompt
from worker.engine.sampling import Draw
from worker.engine.softmax import Ids


class Sequence:
    """The tokens written after a prompt, and the three ways to an end: stop token, watcher, length."""

    def __init__(self, prompt: Prompt, choice: int, *, prompt_ids: Ids, tokens_max: int) -> None:
        self.choice = choice
        self.prompt_tokens = len(prompt_ids)
        self.tokens_max = tokens_max
        self.sampling = prompt.sampling
        self.stop_token_ids = prompt.stop_token_ids
        self.top_logprobs = prompt.top_logprobs
        self.watcher = prompt.watch(choice) if prompt.watch else None
        self.adjustment = _adjustment(prompt, prompt_ids)
        self.token_ids: list[int] = []
        self.stretches: list[int] = []
        """Where those end that came together: what must come first; each that was drawn, with what had to follow it."""
        self.finish_reason: FinishReason | None = None
        self.output_tokens = 0
        """Those that were drawn or forced, a stop token included."""
        self._logprobs: list[TokenLogprob] = []

    @property
    def next_draw(self) -> Draw:
        """The share of the noise of the token to come."""
        return Draw(self.sampling, self.choice, self.prompt_tokens + len(self.token_ids))

    def open(self) -> None:
        """Take what must come before anything is drawn, and notice the end; called once, before the prompt is computed.
        A watcher may raise: its prompt fails.
        """
        self._take_forced()

    def accept(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the token that was drawn with all that must follow it, and notice the end. A watcher may raise: its
        prompt fails.
        """
        self._take(token_id, logprob)
        self._take_forced()

    def _take_forced(self) -> None:
        while forced := self._forced():
            for token in forced:
                if self.finish_reason is None:
                    self._take(token, None)
        self.stretches.append(len(self.token_ids))

    def _forced(self) -> list[int]:
        """What the model need not be asked for. Where what it thinks of each token is to be told, it must be; and a
        token that ends the choice is drawn like any other, for it may have to be held back.
        """
        if self.finish_reason is not None or self.watcher is None or self.top_logprobs is not None:
            return []
        return list(takewhile(lambda token: token not in self.stop_token_ids, self.watcher.forced()))

    def _take(self, token_id: int, logprob: TokenLogprob | None) -> None:
        self.output_tokens += 1
        if token_id in self.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self.adjustment is not None:
            self.adjustment.note(token_id)
        if self.watcher is not None and not self.watcher.accept(token_id):
            self.finish_reason = FinishReason.STOP
        elif len(self.token_ids) >= self.tokens_max:
            self.finish_reason = FinishReason.LENGTH

    def close(self) -> None:
        """Tell the watcher that it is over, once."""
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.finish()

    def completion(self, cached_tokens: int) -> Completion:
        """What goes back to the caller; only of a sequence that has ended."""
        if self.finish_reason is None:
            raise RuntimeError("this choice is still being written")
        return Completion(
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=self.output_tokens,
            logprobs=None if self.top_logprobs is None else tuple(self._logprobs),
        )


def _adjustment(prompt: Prompt, prompt_ids: Ids) -> Adjustment | None:
    """None for a prompt whose logits are drawn from as they come."""
    sampling = prompt.sampling
    holds_back = prompt.tokens_min > 0 and bool(prompt.stop_token_ids)
    if not (sampling.is_penalised or sampling.logit_bias or holds_back):
        return None
    return Adjustment(sampling, prompt_ids, prompt.stop_token_ids, prompt.tokens_min)
