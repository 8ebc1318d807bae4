"""Draws from a softmax without computing its exponentials, and exactly all the same.

`exp` over a vocabulary costs more than everything else that a draw needs. But a float32 whose bits are the
integer 2**23 * (127 + y) is 2**y wherever y is whole, and lies on the straight line between those points
elsewhere (Schraudolph, "A fast, compact approximation of the exponential function", 1999), which is above the
curve, for it is convex: by 6.15 % at most. So a token is drawn from these heights and accepted with the
probability weight / height, or else another is drawn. By von Neumann's rejection ("Various techniques used in
connection with random digits", 1951), what comes out has exactly the distribution of the weights; 96 of 100
draws are accepted at once.
"""

import math
from collections.abc import Iterator

import numpy as np

from worker.engine.softmax import BLOCK, Softmax, Weights, block_sums, invert, padded

Pairs = Iterator[tuple[float, float]]
"""Numbers in [0, 1), two for each try, without end."""

HEIGHT_MAX = 1.0616
"""No height is more times its weight: (1 + f) / 2**f has its maximum, 1.06148, at f = 1 / ln 2 - 1."""

_ROUNDING = 1.0001  # heights are computed in float32: within 2e-5 of the line
UNIT = 2.0**23 / math.log(2)
_ONE = np.float32(127 << 23)  # the bits of 1.0


class Envelope:
    """The heights over the softmax it was last fitted to. One serves many rows, for its memory is reused."""

    def __init__(self, vocabulary: int) -> None:
        self._line = np.empty(vocabulary, np.float32)
        self._bits = np.zeros(padded(vocabulary), np.int32)
        self._heights = self._bits.view(np.float32)
        self._ends: Weights = np.zeros(1)
        self._softmax = Softmax(self._line, 0.0)

    def fit(self, softmax: Softmax) -> None:
        """Take on another softmax of the same vocabulary. Weights below 2**-126 count as none."""
        self._softmax = softmax
        softmax.scale(UNIT, self._line)
        np.add(self._line, _ONE, out=self._line)
        if self._line.min() < 0:  # a pass that most rows can do without
            np.maximum(self._line, np.float32(0), out=self._line)
        self._bits[: len(self._line)] = self._line
        self._ends = block_sums(self._heights).cumsum(dtype=np.float64)

    @property
    def total_min(self) -> float:
        """The sum of all weights is this at least."""
        return float(self._ends[-1]) / (HEIGHT_MAX * _ROUNDING)

    def draw(self, pairs: Pairs) -> int:
        """A token, each with its probability in the softmax."""
        while True:
            place, chance = next(pairs)
            token = self._token_at(place)
            if chance * float(self._heights[token]) * _ROUNDING < self._softmax.weight(token):
                return token

    def _token_at(self, place: float) -> int:
        """Inverts the cumulative heights: first over blocks, then inside of one."""
        target = place * self._ends[-1]
        block = min(int(self._ends.searchsorted(target, side="right")), len(self._ends) - 1)
        start = self._ends[block - 1] if block else 0.0
        return block * BLOCK + invert(self._heights[block * BLOCK : (block + 1) * BLOCK], target - start)
