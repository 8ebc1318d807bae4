"""One choice being written: what it has so far and when it ends. Knows nothing of slots or of threads."""

from worker.engine.prompt import Completion, FinishReason, Watcher
from worker.engine.sampling import Draw, Sampling


class Sequence:
    """The tokens written after a prompt, and the three ways to an end: stop token, watcher, length."""

    def __init__(
        self,
        *,
        choice: int,
        prompt_tokens: int,
        tokens_max: int,
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        watcher: Watcher | None,
    ) -> None:
        self.choice = choice
        self.prompt_tokens = prompt_tokens
        self.tokens_max = tokens_max
        self.sampling = sampling
        self.stop_token_ids = stop_token_ids
        self.watcher = watcher
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._draws = 0

    @property
    def cached_length(self) -> int:
        """Positions in the KV cache once the prompt is: all but the newest token's, which is not read yet."""
        return self.prompt_tokens + max(0, len(self.token_ids) - 1)

    @property
    def next_draw(self) -> Draw:
        """The share of the noise of the token to come."""
        return Draw(self.sampling, self.choice, self.prompt_tokens + len(self.token_ids))

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn, and notice the end. A watcher may raise: its prompt fails."""
        self._draws += 1
        if token_id in self.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
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
            output_tokens=self._draws,
        )
