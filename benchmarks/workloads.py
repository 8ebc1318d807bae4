"""The requests that engines are compared on: real English as token ids, the same at every run, nothing fetched.

The text is that of `worker.model.english`, each paragraph used once in a workload. It is the same for one version
of Python; `Workload.digest` tells two apart. Prompts have the form of SmolLM2's chat template, cut to an exact number
of tokens, and every answer has a fixed length, so that engines that differ in their words still do the same work.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from worker.engine.stages import shared
from worker.model import english

Encode = Callable[[str], list[int]]
"""Text with control tokens in it -> token ids."""

SYSTEM_HEAD: Final = "<|im_start|>system\n"
USER_HEAD: Final = "<|im_start|>user\n"
TAIL: Final = "<|im_end|>\n<|im_start|>assistant\n"
TURN: Final = "<|im_end|>\n"

WARMUP_TOKENS: Final = 40

NAMES: Final = ("shared", "mixed", "classify")


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts as token ids, and for each the exact number of tokens to answer, whatever they are.

    `warmup` is a prompt of other text, for the first token of a fresh engine. `counts_input` says that the rate
    worth telling is of tokens in and out together, because the answers are short.
    """

    name: str
    warmup: list[int]
    prompts: list[list[int]]
    output_tokens: list[int]
    counts_input: bool

    @property
    def tokens_in(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def tokens_out(self) -> int:
        return sum(self.output_tokens)

    @property
    def tokens_in_least(self) -> int:
        """Prompt tokens that must be computed if no beginning is computed twice, and each prompt's last token is."""
        prompts = list(map(np.array, sorted(self.prompts)))
        beyond = (len(own) - shared(before, own) for before, own in itertools.pairwise(prompts))
        return len(prompts[0]) + sum(max(1, tokens) for tokens in beyond)

    @property
    def digest(self) -> str:
        """Equal for equal work."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:12]

    def rate(self, seconds: float) -> float:
        """Tokens a second, of the kind that counts here."""
        return (self.tokens_out + self.counts_input * self.tokens_in) / seconds

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def make(name: str, encode: Encode) -> Workload:
    """One of NAMES, with a model's own tokenizer."""
    match name:
        case "shared":
            return _with_system_prompt(encode, name, requests=128, system=300, own=60, output=64, counts_input=False)
        case "classify":
            return _with_system_prompt(encode, name, requests=256, system=400, own=40, output=4, counts_input=True)
        case "mixed":
            return _mixed(encode, requests=128)
    raise ValueError(f"'{name}' is no workload; there are {', '.join(NAMES)}")


def _with_system_prompt(
    encode: Encode, name: str, *, requests: int, system: int, own: int, output: int, counts_input: bool
) -> Workload:
    """All requests begin with the same `system` tokens and go on with `own` of their own."""
    text = iter(english.paragraphs())
    warmup = _own(encode, text, WARMUP_TOKENS)
    prefix = _cut(encode, SYSTEM_HEAD, _join(encode, text, system), TURN, system)
    prompts: dict[tuple[int, ...], None] = {}
    while len(prompts) < requests:  # paragraphs that differ may begin alike
        prompts[tuple(prefix + _own(encode, text, own))] = None
    return Workload(name, warmup, list(map(list, prompts)), [output] * requests, counts_input)


def _mixed(encode: Encode, *, requests: int) -> Workload:
    """Prompts of 20 to 600 tokens and answers of 16 to 256, log-normal and independent of each other."""
    text, pick = iter(english.paragraphs()), random.Random(5)
    warmup = _own(encode, text, WARMUP_TOKENS)
    prompts = [_own(encode, text, _log_normal(pick, 150, 0.8, 20, 600)) for _ in range(requests)]
    outputs = [_log_normal(pick, 80, 0.65, 16, 256) for _ in range(requests)]
    return Workload("mixed", warmup, prompts, outputs, counts_input=False)


def _own(encode: Encode, text: Iterator[str], tokens: int) -> list[int]:
    return _cut(encode, USER_HEAD, _join(encode, text, tokens), TAIL, tokens)


def _log_normal(pick: random.Random, median: int, sigma: float, lowest: int, highest: int) -> int:
    return min(max(round(pick.lognormvariate(math.log(median), sigma)), lowest), highest)


def _join(encode: Encode, text: Iterator[str], tokens: int) -> str:
    """As many paragraphs as it takes for this many tokens."""
    joined = next(text)
    while len(encode(joined)) < tokens:
        joined += "\n\n" + next(text)
    return joined


def _cut(encode: Encode, head: str, text: str, tail: str, tokens: int) -> list[int]:
    """Head, as much of the text as fits, and tail: `tokens` ids in all."""
    before, after = encode(head), encode(tail)
    between = encode(text)[: tokens - len(before) - len(after)]
    assert len(before) + len(between) + len(after) == tokens, "the text is too short"
    return before + between + after
