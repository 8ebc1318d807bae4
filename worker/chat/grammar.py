"""Answers that can be nothing but what a grammar allows: which tokens may come next."""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from jobs.contract.limits import GRAMMAR_CHARACTERS_MAX
from worker.chat.grammar_text import Place
from worker.engine import NothingToSample
from worker.engine.sampling import Mask
from worker.model import Tokenizer

KEPT: Final = 64
REASON_CHARACTERS_MAX: Final = 300

_UNKNOWN_KEYWORDS: Final = re.compile(r"Unimplemented keys: \[(.*)\]")


class Grammars:
    """The grammars of one model, each compiled once and kept while it is used; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = LLTokenizer(
            tokenizer.as_json(), n_vocab=tokenizer.vocabulary, eos_token=list(tokenizer.eos_token_ids)
        )
        self._limits = _limits()
        self._writable = {token[0] for token in tokenizer.token_bytes if len(token) == 1}
        """The bytes that the vocabulary has; to some, those are missing that only begin signs nobody uses."""
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="masks")
        self._lock = Lock()
        self._kept: OrderedDict[str, Grammar | str] = OrderedDict()

    def compile(self, text: str, place: Place) -> "Grammar":
        """Of a text of `grammar_text`, or Lark. BadRequest, in the words of `place`, for one that cannot be served.

        One at a time, so that many big ones leave the engine its processors; what was refused is remembered too.
        """
        if len(text) > GRAMMAR_CHARACTERS_MAX:
            raise place.refusal(
                f"too large. Expected at most {GRAMMAR_CHARACTERS_MAX} characters, but got {len(text)}."
            )
        with self._lock:
            found = self._kept.get(text) or self._compile(text)
            self._kept[text] = found
            self._kept.move_to_end(text)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if isinstance(found, str):
            raise place.refusal(found)
        return found

    def _compile(self, text: str) -> "Grammar | str":
        """Why not, if it is text."""
        if not self._writable.issuperset(text.encode()):
            return "it has characters that this model has no tokens for."
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            return _reason(matcher.get_error())
        try:
            return Grammar(matcher, self._pool)
        except NothingToSample:
            return "no text satisfies it."


class Grammar:
    """One grammar over one model's tokens, with what may come first."""

    def __init__(self, matcher: LLMatcher, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._pool = pool
        self._first = _allowed(matcher)

    def watcher(self) -> "GrammarWatcher":
        """The watcher of one choice."""
        return GrammarWatcher(self._matcher.deep_copy(), self._first, self._pool)


class GrammarWatcher:
    """Keeps one choice within a grammar and ends it when the grammar is complete.

    What may follow a token is found out in the pool, while the engine runs its step. Where only one text can follow,
    its tokens are those of the model's own tokenizer; they are known at once, and each is the only one allowed.
    """

    def __init__(self, matcher: LLMatcher, first: Mask, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._pool = pool
        self._next: Callable[[], Mask] = lambda: first
        self._forced: list[int] = []
        """The next is the last."""

    def mask(self) -> Mask:
        """One bit a token, packed as the engine wants it. NothingToSample if the grammar is too deep to go on."""
        return self._next()

    def accept(self, token_id: int) -> bool:
        """False when nothing can follow."""
        if not self._forced:
            self._next()  # until it is there, the matcher is the pool's
        self._matcher.consume_token(token_id)
        _refuse_if_lost(self._matcher)
        if self._matcher.is_stopped():
            return False
        self._look_ahead(token_id)
        return True

    def forced(self) -> Sequence[int]:
        """All that the grammar leaves no choice of."""
        return self._forced[::-1]

    def _look_ahead(self, token_id: int) -> None:
        """A token that was not drawn may spell what is forced in another way than the model's own tokenizer."""
        if not self._forced or self._forced.pop() != token_id:
            self._forced = []
        if not self._forced:
            self._forced = self._matcher.compute_ff_tokens()[::-1]
        if self._forced:
            self._next = partial(_allowed, self._matcher)
        else:
            self._next = self._pool.submit(_allowed, self._matcher).result

    def finish(self) -> None:
        """The matcher goes with its watcher."""


def _limits() -> LLParserLimits:
    """With `schema_bounds`, the largest grammars take about half a second; a state of the lexer takes 1 to 2 kB."""
    return LLParserLimits(
        max_grammar_size=50_000,
        max_items_in_row=10_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        verbose_errors=False,
    )


def _allowed(matcher: LLMatcher) -> Mask:
    packed = matcher.compute_bitmask()
    _refuse_if_lost(matcher)
    return np.frombuffer(packed, np.uint32)


def _refuse_if_lost(matcher: LLMatcher) -> None:
    """A matcher in error would allow the end of the answer, in the middle of it."""
    if matcher.is_error():
        raise NothingToSample(f"the grammar cannot go on: {_reason(matcher.get_error())}")


def _reason(problem: str) -> str:
    """What llguidance says, in a line."""
    if (unknown := _UNKNOWN_KEYWORDS.match(problem)) is not None:
        return f"not permitted: {unknown[1].replace(chr(34), chr(39))}."
    lines = problem.splitlines()
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    return f"{told.removeprefix('error: ')[:REASON_CHARACTERS_MAX].rstrip('.')}."
