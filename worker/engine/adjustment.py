"""What is changed in one choice's logits before its token is drawn. Knows nothing of masks or of drawing.

In vLLM's order: bias -> stop tokens held back -> repetition -> frequency and presence.

- *logit_bias* (OpenAI): is added to the logit of its token.
- *tokens_min* (vLLM's `min_tokens`): until that many tokens are written, the logits of the stop tokens are
  -inf.
- *repetition_penalty* r (Keskar et al. 2019, "CTRL"; transformers and vLLM): the logit of each token that
  stands in the prompt or was written is divided by r where it is positive and multiplied by r where it is
  negative. 1 turns it off.
- *frequency_penalty* f and *presence_penalty* p (OpenAI): from the logit of a token that was written c times,
  c > 0, c * f + p is subtracted. The prompt does not count.
"""

import numpy as np
import numpy.typing as npt

from worker.engine.sampling import Sampling
from worker.engine.softmax import Ids, Logits

_ROOM_MIN = 64


class Adjustment:
    """The bias and the penalties of one choice, and the counts that they need."""

    def __init__(self, sampling: Sampling, prompt_ids: Ids, stop_token_ids: frozenset[int], tokens_min: int) -> None:
        self._sampling = sampling
        self._bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._stop_ids = np.array(sorted(stop_token_ids), np.int64)
        self._held_back = tokens_min
        self._repeats = Repeats(prompt_ids if sampling.repetition_penalty != 1 else prompt_ids[:0])

    @property
    def biases(self) -> tuple[Ids, Logits]:
        """The ids of tokens, each once, and what is added to the logit of each: -inf to those held back."""
        if self._held_back <= 0:
            return self._bias_ids, self._biases
        is_kept = ~np.isin(self._bias_ids, self._stop_ids)
        held = np.full(len(self._stop_ids), -np.inf, np.float32)
        return np.concatenate([self._bias_ids[is_kept], self._stop_ids]), np.append(self._biases[is_kept], held)

    @property
    def repeats(self) -> "Repeats | None":
        """What the penalties are for, if there are any."""
        return self._repeats if self._sampling.is_penalised else None

    def apply(self, logits: Logits) -> None:
        """Change the logits [vocabulary] in place."""
        if len(self._bias_ids):
            logits[self._bias_ids] += self._biases
        if self._held_back > 0:
            logits[self._stop_ids] = -np.inf
        if self._sampling.is_penalised:
            self._penalise(logits)

    def note(self, token_id: int) -> None:
        """A token was written."""
        self._held_back -= 1
        if self._sampling.is_penalised:
            self._repeats.note(token_id)

    def _penalise(self, logits: Logits) -> None:
        ids, counts = self._repeats.ids, self._repeats.counts
        found = logits[ids]
        repetition = np.float32(self._sampling.repetition_penalty)
        found = np.where(found > 0, found / repetition, found * repetition)
        found -= counts * np.float32(self._sampling.frequency_penalty)
        found -= (counts > 0) * np.float32(self._sampling.presence_penalty)
        logits[ids] = found


class Repeats:
    """The tokens seen so far, each once, and how often each was written: in arrays that grow, so that a step
    costs no Python per token.
    """

    def __init__(self, prompt_ids: Ids) -> None:
        seen = np.unique(prompt_ids)
        self._places = {token_id: place for place, token_id in enumerate(seen.tolist())}
        self._ids = np.zeros(len(seen) + _ROOM_MIN, np.int64)
        self._ids[: len(seen)] = seen
        self._counts = np.zeros(len(self._ids), np.float32)

    @property
    def ids(self) -> Ids:
        """Every token of the prompt, and every token written."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """How often each of `ids` was written: 0 for those that stand in the prompt only."""
        return self._counts[: len(self._places)]

    def note(self, token_id: int) -> None:
        """A token was written."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        self._counts[place] += 1
