"""The thinking that some models write before they answer: where it ends, how long it may be, who sees it.

All features of the text, such as stop strings and grammars, are of the answer: they begin when the thinking is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from worker.engine import Watcher
from worker.engine.sampling import Mask
from worker.model import Tokenizer

_PAIRS: Final = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class Tags:
    """The two tokens around a model's thinking."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How one answer begins."""

    tags: Tags
    is_begun: bool
    """The prompt ends with the first tag: the model goes on from it."""
    may_begin: bool
    """The model may write the first tag itself, as its first token."""
    tokens_max: int | None = None
    """The longest thinking; then its end is forced."""
    keeps_blanks: bool = False
    """Whether blanks before the answer are part of it: a grammar says itself where there may be some."""

    def split(self, token_ids: tuple[int, ...], token_bytes: Sequence[bytes]) -> "Split":
        """What is thinking of an answer's tokens, and what is the answer."""
        first = 0 if self.is_begun else 1
        if not (self.is_begun or (self.may_begin and token_ids[:1] == (self.tags.begin,))):
            return Split((), 0, self._answer_start(token_ids, 0, token_bytes))
        end = token_ids.index(self.tags.end, first) if self.tags.end in token_ids[first:] else len(token_ids)
        thought = min(end + 1, len(token_ids))
        return Split(tuple(token_ids[first:end]), thought, self._answer_start(token_ids, thought, token_bytes))

    def _answer_start(self, token_ids: Sequence[int], start: int, token_bytes: Sequence[bytes]) -> int:
        while not self.keeps_blanks and start < len(token_ids) and token_bytes[token_ids[start]].isspace():
            start += 1
        return start


@dataclass(frozen=True, slots=True)
class Split:
    """An answer's tokens, taken apart."""

    thinking: tuple[int, ...]
    """Without the tags."""
    tokens: int
    """Those of the thinking, the tags counted."""
    start: int
    """Where the answer begins."""


class Thinking:
    """Shows a watcher of the answer what follows the thinking, and one of the thinking what is thought."""

    def __init__(
        self, thoughts: Thoughts, answer: Watcher, tokenizer: Tokenizer, *, holds: bool, thinking: Watcher | None = None
    ) -> None:
        """`holds` says that the model may not end before it has answered."""
        self._thoughts = thoughts
        self._answer = answer
        self._thinking = thinking
        self._tokenizer = tokenizer
        self._holds = holds
        self._is_first = not thoughts.is_begun
        self._is_thinking = thoughts.is_begun
        self._is_between = not thoughts.keeps_blanks
        self._thought = 0
        self._has_thought = False

    def mask(self) -> Mask | None:
        """Free thinking, up to its longest; and it may begin where an answer may."""
        if self._is_thinking:
            return self._thinking_mask()
        mask = self._answer.mask()
        if mask is None or not (self._is_first and self._thoughts.may_begin):
            return mask
        return mask | _only([self._thoughts.tags.begin], self._tokenizer.vocabulary)

    def accept(self, token_id: int) -> bool:
        """What the answer's watcher says of it."""
        is_first, self._is_first = self._is_first, False
        if is_first and self._thoughts.may_begin and token_id == self._thoughts.tags.begin:
            self._is_thinking = True
        elif self._is_thinking:
            self._think(token_id)
        elif not (self._is_between and self._tokenizer.token_bytes[token_id].isspace()):
            self._is_between = False
            return self._answer.accept(token_id)
        return True

    def forced(self) -> Sequence[int]:
        """What is forced of the answer, once it alone may go on."""
        return () if self._is_thinking or (self._is_first and self._thoughts.may_begin) else self._answer.forced()

    def finish(self) -> None:
        """It is over for both."""
        self._answer.finish()
        if self._thinking is not None:
            self._thinking.finish()

    def _think(self, token_id: int) -> None:
        self._thought += 1
        self._is_thinking = token_id != self._thoughts.tags.end
        self._has_thought |= not self._tokenizer.token_bytes[token_id].isspace()
        if self._thinking is not None and self._is_thinking and self._has_thought:
            self._thinking.accept(token_id)

    def _thinking_mask(self) -> Mask | None:
        longest = self._thoughts.tokens_max
        if longest is not None and self._thought >= longest:
            return _only([self._thoughts.tags.end], self._tokenizer.vocabulary)
        return ~_only(self._tokenizer.eos_token_ids, self._tokenizer.vocabulary) if self._holds else None


def tags_of(template: str, tokenizer: Tokenizer) -> Tags | None:
    """The tags that a chat template speaks of, if they are tokens of the model."""
    for begin, end in _PAIRS:
        ids = tokenizer.token_id(begin), tokenizer.token_id(end)
        if (begin in template or end in template) and ids[0] is not None and ids[1] is not None:
            return Tags(ids[0], ids[1])
    return None


def thoughts_of(
    tags: Tags, prompt: Sequence[int], token_bytes: Sequence[bytes], *, tokens_max: int | None, keeps_blanks: bool
) -> Thoughts:
    """A prompt may end with a tag: the template then has begun the thinking, or left none to do."""
    last = next((token_id for token_id in reversed(prompt) if not token_bytes[token_id].isspace()), None)
    return Thoughts(
        tags,
        is_begun=last == tags.begin,
        may_begin=last not in (tags.begin, tags.end),
        tokens_max=tokens_max,
        keeps_blanks=keeps_blanks,
    )


def _only(token_ids: Sequence[int], vocabulary: int) -> Mask:
    """A mask that allows these tokens."""
    mask = np.zeros(-(-vocabulary // 32), np.uint32)
    for token_id in token_ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask
