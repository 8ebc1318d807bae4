"""How much a faster precision changes a model: perplexity and divergence from a reference, on the same English.

Both runners write the same text side by side, token for token, so that all is measured that answers go
through, the KV cache's precision included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.engine.loading import open_runner
from worker.engine.rows import DeviceRows
from worker.engine.runner import Runner, Span
from worker.engine.settings import EngineSettings
from worker.engine.softmax import Logits
from worker.model import english
from worker.model.folder import ModelFolder

_BEGINNING = 64
"""Tokens of each stretch that are given, not predicted."""
_STRETCHES = 64
_STRETCH_TOKENS = 380  # 64 x 315 predicted tokens: 20,160
_SETTINGS = EngineSettings(context_tokens_max=512, slots_max=_STRETCHES)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over all predicted tokens."""

    tokens: int
    perplexity: float
    reference_perplexity: float
    divergence: float
    """Mean Kullback-Leibler divergence from the reference, in nats."""
    same_top: float
    """Share of tokens at which both have the same most likely one."""

    @property
    def perplexity_change(self) -> float:
        return self.perplexity / self.reference_perplexity - 1


def measure(model: ModelFolder, reference: ModelFolder, progress: Callable[[int, int], None]) -> Quality:
    """Hold a model against the same one in another precision, on 20,000 tokens of English.

    `progress` hears of steps done and in all. Both must use the same tokens.
    """
    text = "\n\n".join(english.paragraphs())
    token_ids = np.array(model.tokenizer().encode_template(text), np.int64)
    needed = _STRETCHES * _STRETCH_TOKENS
    if len(token_ids) < needed:
        token_ids = np.resize(token_ids, needed)
    runners = [open_runner(folder, _SETTINGS) for folder in (model, reference)]
    try:
        return compare(runners[0], runners[1], token_ids[:needed], stretches=_STRETCHES, progress=progress)
    finally:
        for runner in runners:
            runner.close()


def compare(
    subject: Runner,
    reference: Runner,
    token_ids: npt.NDArray[np.int64],
    *,
    stretches: int,
    progress: Callable[[int, int], None],
) -> Quality:
    """Cut token_ids into as many stretches, one a row, and predict each but for its beginning.

    `progress` hears of steps done and in all. Both runners need `stretches` slots and the room.
    """
    lines = token_ids[: len(token_ids) // stretches * stretches].reshape(stretches, -1)
    for runner in (subject, reference):
        for line in lines:
            runner.step([Span(0, 0, line[:_BEGINNING], ends_prompt=True)], [])
            runner.place(0, _BEGINNING)
    sums = np.zeros(4)
    steps = lines.shape[1] - _BEGINNING - 1
    for step in range(steps):
        place = _BEGINNING + step
        given, wanted = lines[:, place].tolist(), lines[:, place + 1]
        ours, theirs = (_log_probabilities(_on_host(runner.step([], given))) for runner in (subject, reference))
        rows = np.arange(stretches)
        sums += (
            -ours[rows, wanted].sum(),
            -theirs[rows, wanted].sum(),
            (np.exp(theirs) * (theirs - ours)).sum(),
            (ours.argmax(axis=1) == theirs.argmax(axis=1)).sum(),
        )
        progress(step + 1, steps)
    means = sums / (steps * stretches)
    return Quality(steps * stretches, math.exp(means[0]), math.exp(means[1]), float(means[2]), float(means[3]))


def _on_host(logits: Logits | DeviceRows) -> Logits:
    return logits if isinstance(logits, np.ndarray) else logits.fetch(range(len(logits)))


def _log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    logarithms: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms
