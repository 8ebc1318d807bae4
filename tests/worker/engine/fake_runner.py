"""A runner without a model. Its KV cache is a list of token ids a row, so a wrong row shows in the text."""

import zlib
from collections.abc import Callable, Collection, Sequence
from threading import Event

import numpy as np

from worker.engine.errors import OutOfMemory
from worker.engine.runner import Span
from worker.engine.softmax import Logits

VOCABULARY = 50
Script = Callable[[tuple[int, ...]], int]


def scramble(text: tuple[int, ...]) -> int:
    """The token that follows a text: any, but always the same, and another one after any other text."""
    return zlib.crc32(np.array(text, np.int64).tobytes()) % VOCABULARY


def reference(prompt: Sequence[int], tokens_max: int, script: Script = scramble) -> tuple[int, ...]:
    """What the fake model writes after a prompt, computed without an engine."""
    text = tuple(prompt)
    for _ in range(tokens_max):
        text += (script(text),)
    return text[len(prompt) :]


class FakeRunner:
    """Greedy answers follow the script. `gate` holds steps back until it is set; step `crash_at` raises.

    With `pages` it holds so many pages of `page_tokens`; without, as many as its slots can need. A step of more
    than `step_tokens` tokens finds no memory. With `feeds_from`, rows are fed that many tokens and more ahead.
    """

    vocabulary = VOCABULARY

    def __init__(
        self,
        slots: int = 4,
        context_tokens: int = 64,
        script: Script = scramble,
        crash_at: int | None = None,
        *,
        stages: int = 2,
        spans_max: int = 2,
        mixes: bool = True,
        page_tokens: int = 4,
        pages: int | None = None,
        step_tokens: int = 10**9,
        feeds_from: int | None = None,
        is_exact: bool = False,
    ) -> None:
        self.slots = slots
        self.stages = stages
        self.spans_max = spans_max
        self.mixes = mixes
        self.is_exact = is_exact
        self.fed: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        """Of what was fed ahead, the text before and the tokens."""
        self.context_tokens = context_tokens
        self.page_tokens = page_tokens
        self.gate = Event()
        self.gate.set()
        self.began = Event()
        self.steps: list[tuple[int, int]] = []
        """Of each step the tokens of prompts and the rows."""
        self.read = 0
        """Rows of logits that were handed out."""
        self.fullest = 0
        self.is_closed = False
        self._script = script
        self._crash_at = crash_at
        self.step_tokens = step_tokens
        self._feeds_from = feeds_from
        self._pages = pages or slots * -(-context_tokens // page_tokens)
        self._staged: list[list[int]] = [[] for _ in range(stages)]
        self._rows: list[list[int]] = []

    @property
    def free_tokens(self) -> int:
        return (self._pages - sum(map(self._pages_of, self._rows))) * self.page_tokens

    def step(self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()) -> Logits:
        self.began.set()
        assert self.gate.wait(timeout=30), "the test forgot to open the gate"
        if len(self.steps) == self._crash_at:
            raise MemoryError("scripted crash")
        assert spans or token_ids, "a step of nothing"
        assert not spans or self.mixes or not token_ids, "a step that mixes"
        assert len(token_ids) in {0, len(self._rows)}, "rows left out"
        assert len({span.stage for span in spans}) == len(spans) <= self.spans_max, "a stage used twice"
        prompt_tokens = sum(len(span.token_ids) for span in spans)
        if prompt_tokens + len(token_ids) > self.step_tokens:
            raise OutOfMemory("scripted")
        self.steps.append((prompt_tokens, len(token_ids)))
        texts = []
        for span in spans:
            staged = self._staged[span.stage]
            assert len(span.token_ids) > 0
            assert span.start + len(span.token_ids) <= self.context_tokens
            assert span.start <= len(staged), "positions before the first were never computed"
            staged[span.start :] = span.token_ids.tolist()
            if span.ends_prompt:
                texts.append(staged)
        for number, (row, token_id) in enumerate(zip(self._rows, token_ids, strict=False)):
            row.append(token_id)
            assert len(row) <= self.context_tokens
            if number not in unread:
                texts.append(row)
        assert self.free_tokens >= 0, "more pages taken than there are"
        self.read += len(texts)
        return self._logits(texts)

    def feeds(self, tokens: int, length: int) -> bool:
        assert length in map(len, self._rows)
        return self._feeds_from is not None and tokens >= self._feeds_from

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        assert self.feeds(len(token_ids), len(self._rows[row]))
        if len(token_ids) > self.step_tokens:
            raise OutOfMemory("scripted")
        self.fed.add((tuple(self._rows[row]), tuple(token_ids)))
        self._rows[row] += token_ids
        assert self.free_tokens >= 0, "more pages taken than there are"

    def copy(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert length <= len(self._staged[source])
        self._staged[target] = self._staged[source][:length]

    def place(self, stage: int, length: int) -> int:
        assert length <= len(self._staged[stage])
        self._rows.append(self._staged[stage][:length])
        assert len(self._rows) <= self.slots
        assert self.free_tokens >= 0, "more pages taken than there are"
        self.fullest = max(self.fullest, len(self._rows))
        return len(self._rows) - 1

    def remove(self, row: int) -> None:
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last

    def close(self) -> None:
        self.is_closed = True

    def _pages_of(self, row: Sequence[int]) -> int:
        return -(-len(row) // self.page_tokens)

    def _logits(self, texts: Sequence[Sequence[int]]) -> Logits:
        logits = np.full((len(texts), VOCABULARY), -10.0, np.float32)
        for row, text in enumerate(texts):
            logits[row, self._script(tuple(text))] = 10.0
        return logits
