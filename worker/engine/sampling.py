"""Chooses the next token of each row from its logits: knows nothing of sequences, of text or of the model.

The logits it gets have their biases, penalties and masks already (`adjustment`, `next_token`). What follows has
the order of transformers' warpers: temperature -> top_k -> top_p -> min_p -> draw.

- *temperature* T: p_i is proportional to exp(logit_i / T). Below `TEMPERATURE_MIN`, the most likely token.
- *top_k* (Fan et al. 2018, "Hierarchical neural story generation"): the k most likely tokens stay. 0 turns it
  off.
- *top_p* (Holtzman et al. 2020, "The curious case of neural text degeneration"): of what top_k left,
  renormalised, the fewest most likely tokens whose probabilities reach top_p. One token always stays: top_p =
  0 is greedy.
- *min_p* (Nguyen et al. 2024, "Turning up the heat: min-p sampling"): tokens of at least min_p times the
  highest probability stay.
- *draw*: from numbers that (seed, choice, position) alone decide (`noise`).

Equal probabilities count the lower token id as the likelier. Probabilities of single tokens are float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from worker.engine import noise, truncation
from worker.engine.envelope import Envelope, Pairs
from worker.engine.softmax import Ids, Logits, Softmax

Mask = npt.NDArray[np.uint32]

TEMPERATURE_MIN = 1e-5
"""Below it float32 cannot tell the distribution from its most likely token (vLLM draws the same line)."""

TEMPERATURE_MAX = 1e4
"""Above it float32 cannot tell the distribution from one in which all tokens are equally likely."""

ADDED_MAX = 1e4
"""More than any model's logits differ by."""

NO_TOKEN = -1
"""Stands where nothing can be drawn: all logits are -inf, or one is NaN."""

FEW = 512
"""So many tokens are better taken out of a row than all others masked, or masked than all others kept."""

_ATTEMPTS = 3

_MOST = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1, bitorder="little"),
    np.float32(np.inf),
    np.float32(-np.inf),
)
"""For each byte of a mask, the most that its eight tokens' logits may be."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one prompt's tokens are drawn. The seed is always given: whoever has none derives one.

    `adjustment` defines the penalties and `logit_bias`, pairs of a token id and what is added to its logit.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= TEMPERATURE_MAX:
            raise ValueError(f"temperature is {self.temperature}, expected 0 to {TEMPERATURE_MAX:.0f}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected 0 to 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}, expected 0 to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 0 or more")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}, expected 0.01 to 100")
        for added in (self.presence_penalty, self.frequency_penalty, *(bias for _, bias in self.logit_bias)):
            if not abs(added) <= ADDED_MAX:
                raise ValueError(f"a penalty or a bias is {added}, expected -{ADDED_MAX:.0f} to {ADDED_MAX:.0f}")
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise ValueError("logit_bias names a token twice, expected each once")

    @property
    def is_greedy(self) -> bool:
        """The most likely token is the only one that can come out."""
        return self.temperature < TEMPERATURE_MIN or self.top_p == 0 or self.top_k == 1

    @property
    def is_penalised(self) -> bool:
        """What is written depends on what was."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's share of the noise: `position` is the place in the text of the token to be drawn."""

    sampling: Sampling
    choice: int
    position: int


def allow(logits: Logits, mask: Mask) -> Ids | None:
    """Leave of the logits [vocabulary] of one row what the packed mask allows: token i is bit i % 32 of word i // 32
    (the layout of llguidance), and tokens past the mask's end are not allowed.

    Where it allows few, these are given, lowest first, and the row is left as it is. Else all others are set to -inf,
    in place; an allowed NaN stays, or becomes inf, and neither can be drawn.
    """
    allowed = int(np.bitwise_count(mask).sum())
    if allowed <= FEW:
        return _set_bits(mask, below=len(logits))
    known = min(32 * len(mask), len(logits))
    logits[known:] = -np.inf
    if 32 * len(mask) - allowed <= FEW:
        logits[_set_bits(~mask, below=known)] = -np.inf
    else:
        most = _MOST.take(mask.astype("<u4", copy=False).view(np.uint8), axis=0).reshape(-1)
        np.fmin(logits[:known], most[:known], out=logits[:known])
    return None


def _set_bits(mask: Mask, *, below: int) -> Ids:
    words = np.flatnonzero(mask)
    bits = np.flatnonzero(np.unpackbits(mask[words].astype("<u4", copy=False).view(np.uint8), bitorder="little"))
    ids: Ids = words[bits >> 5] * 32 + (bits & 31)
    return ids[: ids.searchsorted(below)]


def sample(
    logits: Logits, draws: Sequence[Draw | None], among: Mapping[int, Ids] = MappingProxyType({})
) -> npt.NDArray[np.int64]:
    """The next token [rows] of each row of logits [rows, vocabulary]; `NO_TOKEN` where none is left. Of the rows
    `among`, one of few tokens, whose ids are given.

    A row's token depends on its own logits and draw alone. Greedy rows cost one argmax over all of them, and so do
    those without a draw, whose token nobody asks for.
    """
    tokens: npt.NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64)
    peaks = logits[np.arange(len(tokens)), tokens]
    few = {row: logits[row, ids] for row, ids in among.items()}
    for row, ids in among.items():
        likeliest = few[row].argmax() if len(ids) else 0
        peaks[row], tokens[row] = (few[row][likeliest], ids[likeliest]) if len(ids) else (-np.inf, NO_TOKEN)
    tokens[~np.isfinite(peaks)] = NO_TOKEN
    drawn = {
        row: draw
        for row, draw in enumerate(draws)
        if draw is not None and not draw.sampling.is_greedy and tokens[row] != NO_TOKEN
    }
    if drawn:
        envelope = Envelope(logits.shape[1])
        for (row, draw), pairs in zip(drawn.items(), _noise(list(drawn.values())), strict=True):
            softmax = Softmax(few.get(row, logits[row]), float(peaks[row]), draw.sampling.temperature)
            if row in among:
                tokens[row] = among[row][_draw(softmax, Envelope(len(few[row])), draw.sampling, pairs)]
            else:
                tokens[row] = _draw(softmax, envelope, draw.sampling, pairs)
    return tokens


def _noise(draws: Sequence[Draw]) -> list[Pairs]:
    """Each draw's numbers: those of the first attempts are computed for all rows at once."""
    firsts = noise.pairs(
        [draw.sampling.seed for draw in draws],
        [draw.choice for draw in draws],
        [draw.position for draw in draws],
        range(_ATTEMPTS),
    )
    return [_pairs(draw, first) for draw, first in zip(draws, firsts.tolist(), strict=True)]


def _pairs(draw: Draw, firsts: list[tuple[float, float]]) -> Pairs:
    """The numbers of one draw; those beyond the first attempts, which few need, when they are asked for."""
    yield from firsts
    for start in count(len(firsts), _ATTEMPTS):
        attempts = range(start, start + _ATTEMPTS)
        yield from noise.pairs([draw.sampling.seed], [draw.choice], [draw.position], attempts)[0].tolist()


def _draw(softmax: Softmax, envelope: Envelope, sampling: Sampling, pairs: Pairs) -> int:
    """Draw from one row, in the way that costs least for what is asked."""
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    if top_k or min_p:
        return truncation.draw_of_few(softmax, pairs, top_k=top_k, top_p=top_p, min_p=min_p)
    if top_p < 1:
        return truncation.draw_of_nucleus(softmax, envelope, top_p, pairs)
    envelope.fit(softmax)
    return envelope.draw(pairs)
