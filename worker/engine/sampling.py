"""Chooses the next token of each row from its logits: knows nothing of sequences, of text or of the model.

In this order, as vLLM and SGLang do it: mask -> temperature -> top_k -> top_p -> min_p -> draw.

- *temperature* T: p_i is proportional to exp(logit_i / T). Below `TEMPERATURE_MIN`, the most likely token.
- *top_k*: the k most likely tokens stay. 0 turns it off.
- *top_p* (Holtzman et al. 2020, "The curious case of neural text degeneration"): of what top_k left,
  renormalised, the fewest most likely tokens whose probabilities reach top_p. One token always stays: top_p =
  0 is greedy.
- *min_p* (Nguyen et al. 2024): tokens of at least min_p times the highest probability stay.
- *draw*: by the inverse of the cumulative distribution, at one uniform number for each (seed, choice,
  position).

Equal probabilities count the lower token id as the likelier. Exponentials are float32, their sums float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.engine import noise

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint32]

TEMPERATURE_MIN = 1e-5
"""Below it float32 cannot tell the distribution from its most likely token (vLLM draws the same line)."""

NO_TOKEN = -1
"""Stands where nothing can be drawn: all logits are -inf, or one is NaN."""

_BLOCK = 256
_SORTED_MAX = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one prompt's tokens are drawn. The seed is always given: whoever has none derives one."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected a finite number from 0")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected 0 to 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}, expected 0 to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 or more")

    @property
    def is_greedy(self) -> bool:
        """The most likely token is the only one that can come out."""
        return self.temperature < TEMPERATURE_MIN or self.top_p == 0 or self.top_k == 1

    @property
    def is_truncated(self) -> bool:
        """Some tokens cannot come out although their probability is above 0."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's share of the noise: `position` is the place in the text of the token to be drawn."""

    sampling: Sampling
    choice: int
    position: int


def allow_only(logits: Logits, mask: Mask) -> None:
    """Set the logits [vocabulary] of one row to -inf, in place, where the packed mask has a 0. Token i is bit
    i % 32 of word i // 32 (the layout of llguidance); tokens past the mask's end are not allowed.
    """
    allowed = np.unpackbits(mask.astype("<u4", copy=False).view(np.uint8), bitorder="little")
    known = min(len(allowed), len(logits))
    logits[:known][allowed[:known] == 0] = -np.inf
    logits[known:] = -np.inf


def sample(logits: Logits, draws: Sequence[Draw]) -> npt.NDArray[np.int64]:
    """The next token [rows] of each row of logits [rows, vocabulary]; `NO_TOKEN` where none is left.

    A row's token depends on its own logits and draw alone. Greedy rows cost one argmax over all of them.
    """
    tokens: npt.NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64)
    peaks = logits[np.arange(len(tokens)), tokens]
    tokens[~np.isfinite(peaks)] = NO_TOKEN
    drawn = [row for row, draw in enumerate(draws) if not draw.sampling.is_greedy and tokens[row] != NO_TOKEN]
    if drawn:
        _draw_rows(logits, draws, drawn, peaks, tokens)
    return tokens


def _draw_rows(
    logits: Logits, draws: Sequence[Draw], rows: list[int], peaks: Logits, tokens: npt.NDArray[np.int64]
) -> None:
    """Replace the tokens of `rows`. One row at a time, so that its weights stay in the processor's cache."""
    vocabulary = logits.shape[1]
    scratch = np.zeros(-(-vocabulary // _BLOCK) * _BLOCK, dtype=np.float32)
    chosen = [draws[row] for row in rows]
    uniforms = noise.uniforms(
        [draw.sampling.seed for draw in chosen],
        [draw.choice for draw in chosen],
        [draw.position for draw in chosen],
    )
    for row, draw, uniform in zip(rows, chosen, uniforms, strict=True):
        weights = scratch[:vocabulary]
        np.subtract(logits[row], peaks[row], out=weights)
        np.divide(weights, np.float32(draw.sampling.temperature), out=weights)
        np.exp(weights, out=weights)
        if draw.sampling.is_truncated:
            tokens[row] = _draw_truncated(weights, draw.sampling, uniform)
        else:
            tokens[row] = _draw_in_blocks(scratch, uniform)


def _draw_in_blocks(weights: Logits, uniform: float) -> int:
    """Inverse CDF, over blocks and then inside one; `weights` is padded with zeros to whole blocks."""
    blocks = weights.reshape(-1, _BLOCK)
    ends = blocks.sum(axis=1).cumsum(dtype=np.float64)
    target = uniform * ends[-1]
    block = min(int(ends.searchsorted(target, side="right")), len(ends) - 1)
    start = ends[block - 1] if block else 0.0
    return block * _BLOCK + _invert(blocks[block], target - start)


def _draw_truncated(weights: Logits, sampling: Sampling, uniform: float) -> int:
    """Draw from the tokens that top_k, top_p and min_p leave, in the order of their ids."""
    ids, mass = _candidates(weights, sampling)
    kept = weights[ids]
    if sampling.top_p < 1:
        chosen = _most_likely(kept, *_nucleus(kept, mass))
        ids, kept = ids[chosen], kept[chosen]
    is_likely = kept >= np.float32(sampling.min_p)  # the highest weight is 1
    ids, kept = ids[is_likely], kept[is_likely]
    return int(ids[_invert(kept, uniform * float(kept.sum(dtype=np.float64)))])


def _candidates(weights: Logits, sampling: Sampling) -> tuple[npt.NDArray[np.int64], float]:
    """The ids that top_k leaves, or else those that the others may leave, and the mass top_p wants of them.

    Tokens below (1 - top_p) / vocabulary of the total have less than 1 - top_p in all: none is needed.
    """
    if 0 < sampling.top_k < len(weights):
        ids = _most_likely(weights, np.partition(weights, -sampling.top_k)[-sampling.top_k], sampling.top_k)
        return ids, sampling.top_p * float(weights[ids].sum(dtype=np.float64))
    total = float(weights.sum(dtype=np.float64))
    mass = sampling.top_p * total
    floor = (total - mass) / len(weights) * (1 - 1e-6)
    return np.flatnonzero(weights >= np.float32(max(floor, sampling.min_p))), mass


def _most_likely(weights: Logits, cutoff: np.float32, count: int) -> npt.NDArray[np.int64]:
    """The places of the `count` highest weights, the lowest of which is `cutoff`; of equals, the first."""
    is_kept = weights > cutoff
    ties = np.flatnonzero(weights == cutoff)
    is_kept[ties[: count - np.count_nonzero(is_kept)]] = True
    return np.flatnonzero(is_kept)


def _nucleus(weights: Logits, mass: float) -> tuple[np.float32, int]:
    """The lowest weight and the number of the fewest highest weights that add up to `mass`.

    A quickselect by mass instead of a sort: the weights from a pivot on either hold the end of the nucleus or
    belong to it entirely.
    """
    inside = 0
    while len(weights) > _SORTED_MAX:
        pivot = weights.mean()
        is_high = weights >= pivot
        high = weights[is_high]
        high_mass = float(high.sum(dtype=np.float64))
        if not 0 < len(high) < len(weights):
            break  # all alike
        if high_mass >= mass:
            weights = high
        else:
            weights, inside, mass = weights[~is_high], inside + len(high), mass - high_mass
    weights = np.sort(weights)[::-1]
    last = min(int(weights.cumsum(dtype=np.float64).searchsorted(mass)), len(weights) - 1)
    return weights[last], inside + last + 1


def _invert(weights: npt.NDArray[np.floating], target: float) -> int:
    """The first index whose cumulative weight passes `target`; a weight of 0 is never chosen."""
    ends = weights.cumsum(dtype=np.float64)
    index = int(ends.searchsorted(target, side="right"))
    return index if index < len(ends) else int(np.flatnonzero(weights)[-1])
