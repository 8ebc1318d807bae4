"""The sets of prompts that are answered end to end: random token ids, every answer of its full length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np


@dataclass(frozen=True, slots=True)
class PromptSet:
    """`shared` tokens that all prompts begin with, then `own` tokens of each, then an answer of `answer` tokens."""

    requests: int
    shared: int
    own: int
    answer: int

    def prompts(self, vocabulary: int, seed: int = 0) -> list[list[int]]:
        random = np.random.default_rng(seed)
        common = random.integers(0, vocabulary, self.shared).tolist()
        return [common + random.integers(0, vocabulary, self.own).tolist() for _ in range(self.requests)]

    @property
    def tokens_in(self) -> int:
        return self.requests * (self.shared + self.own)

    @property
    def tokens_out(self) -> int:
        return self.requests * self.answer

    @property
    def context(self) -> int:
        """Of the longest text."""
        return self.shared + self.own + self.answer


SETS: Final[Mapping[str, PromptSet]] = {
    "1000 in, 1000 out": PromptSet(512, 0, 1000, 1000),
    "2048 in, 128 out": PromptSet(512, 0, 2048, 128),
    "shared 1500, own 200, 150 out": PromptSet(1024, 1500, 200, 150),
    "the same, nothing shared": PromptSet(512, 0, 1700, 150),
}
TINY: Final[Mapping[str, PromptSet]] = {
    "20 in, 6 out": PromptSet(6, 0, 20, 6),
    "shared 32, own 5, 4 out": PromptSet(6, 32, 5, 4),
    "the same, nothing shared": PromptSet(6, 0, 37, 4),
}
