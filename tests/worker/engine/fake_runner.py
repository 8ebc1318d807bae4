"""A runner without a model. Its KV cache is a list of token ids a slot, so a wrong slot shows in the text."""

import zlib
from collections.abc import Callable, Sequence
from threading import Event

import numpy as np
import numpy.typing as npt

from worker.engine.runner import Span
from worker.engine.sampling import Logits

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
    """Greedy answers follow the script. `gate` holds runs back until it is set; run `crash_at` raises."""

    vocabulary = VOCABULARY

    def __init__(
        self, slots: int = 4, context_tokens: int = 64, script: Script = scramble, crash_at: int | None = None
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self.gate = Event()
        self.gate.set()
        self.began = Event()
        self.runs: list[tuple[int, ...]] = []
        self.copies: list[tuple[int, int]] = []
        self.is_closed = False
        self._script = script
        self._crash_at = crash_at
        self._cache: list[list[int]] = [[] for _ in range(slots)]

    def prefill(self, spans: Sequence[Span]) -> Logits:
        self._run([span.slot for span in spans])
        assert [span.slot for span in spans] == sorted({span.slot for span in spans})
        for span in spans:
            assert 0 < span.start + len(span.token_ids) <= self.context_tokens
            self._write(span.slot, span.start, span.token_ids.tolist())
        return self._logits([span.slot for span in spans if span.ends_prompt])

    def decode(self, token_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Logits:
        self._run(range(len(token_ids)))
        for slot, (token_id, length) in enumerate(zip(token_ids.tolist(), lengths.tolist(), strict=True)):
            assert length < self.context_tokens
            self._write(slot, length, [token_id])
        return self._logits(range(len(token_ids)))

    def copy(self, source: int, target: int, length: int) -> None:
        self.copies.append((source, target))
        self._cache[target] = self._cache[source][:length]

    def close(self) -> None:
        self.is_closed = True

    def _run(self, slots: Sequence[int]) -> None:
        self.began.set()
        assert self.gate.wait(timeout=30), "the test forgot to open the gate"
        if len(self.runs) == self._crash_at:
            raise MemoryError("scripted crash")
        self.runs.append(tuple(slots))

    def _write(self, slot: int, start: int, token_ids: list[int]) -> None:
        assert start <= len(self._cache[slot]), "positions before the first were never computed"
        self._cache[slot][start:] = token_ids

    def _logits(self, slots: Sequence[int]) -> Logits:
        logits = np.full((len(slots), VOCABULARY), -10.0, np.float32)
        for row, slot in enumerate(slots):
            logits[row, self._script(tuple(self._cache[slot]))] = 10.0
        return logits
