"""Answers that can be nothing but a JSON object: which tokens may come next."""

from typing import Final

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from worker.engine import NothingToSample
from worker.engine.sampling import Mask
from worker.model import Tokenizer

# A model may otherwise write blanks up to the end of its context.
_WHITESPACE: Final = r"[\x20\x0A\x0D\x09]{0,8}"


class JsonObjects:
    """The grammar of JSON objects over one model's tokens; build it once, for that takes a while."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = LLTokenizer(
            tokenizer.as_json(), n_vocab=tokenizer.vocabulary, eos_token=list(tokenizer.eos_token_ids)
        )
        self._grammar = LLMatcher.grammar_from_json_schema(
            {"type": "object"}, overrides={"whitespace_pattern": _WHITESPACE}
        )

    def watcher(self) -> "GrammarWatcher":
        """The watcher of one choice."""
        return GrammarWatcher(LLMatcher(self._tokenizer, self._grammar, log_level=0))


class GrammarWatcher:
    """Keeps one choice within a grammar and ends it when the grammar is complete."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self) -> Mask:
        """One bit a token, packed as the engine wants it. NothingToSample if the grammar is too deep to go on."""
        packed = self._matcher.compute_bitmask()
        self._refuse_if_lost()
        return np.frombuffer(packed, np.uint32)

    def accept(self, token_id: int) -> bool:
        """False when the object is closed."""
        self._matcher.consume_token(token_id)
        self._refuse_if_lost()
        return not self._matcher.is_stopped()

    def finish(self) -> None:
        """The matcher goes with its watcher."""

    def _refuse_if_lost(self) -> None:
        """A matcher in error would allow the end of the answer, in the middle of an object."""
        if self._matcher.is_error():
            raise NothingToSample(f"the grammar cannot go on: {self._matcher.get_error().splitlines()[0]}")
