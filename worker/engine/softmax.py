"""The softmax of one row of logits at a temperature, of which only what is asked for is computed."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

BLOCK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """Logits [vocabulary] whose highest is `peak`, a finite number. A token's weight is
    exp((logit - peak) / temperature), so 1 at most; its probability is its share of the total.
    """

    logits: Logits
    peak: float
    temperature: float = 1.0

    def weight(self, token: int) -> float:
        """The weight of one token."""
        return math.exp((float(self.logits[token]) - self.peak) / self.temperature)

    def weights(self, ids: Ids) -> Weights:
        """The weights of some tokens, in float64."""
        distances: Weights = self.logits[ids].astype(np.float64) - self.peak
        return np.exp(distances / self.temperature)

    def total(self) -> float:
        """The sum of all weights: exponentials in float32, their sum over blocks in float64."""
        weights = np.zeros(padded(len(self.logits)), np.float32)
        known = weights[: len(self.logits)]
        self.scale(1.0, known)
        np.exp(known, out=known)
        return float(block_sums(weights).sum(dtype=np.float64))

    def scale(self, unit: float, out: Logits) -> None:
        """Write (logit - peak) / temperature * unit; what is too far below for a float32 becomes -inf."""
        with np.errstate(over="ignore"):
            np.subtract(self.logits, np.float32(self.peak), out=out)
            np.multiply(out, np.float32(unit / self.temperature), out=out)

    def likelier(self, token: int) -> Ids:
        """The ids of the tokens that are likelier than this one, lowest first; of equals, the lower id is."""
        own = self.logits[token]
        ids = np.flatnonzero(self.logits >= own)
        is_likelier = self.logits[ids] > own
        is_likelier[: ids.searchsorted(token)] = True
        likelier: Ids = ids[is_likelier]
        return likelier


def invert(weights: npt.NDArray[np.floating], target: float) -> int:
    """The first index whose cumulative weight passes `target`; a weight of 0 is never chosen."""
    ends = weights.cumsum(dtype=np.float64)
    index = int(ends.searchsorted(target, side="right"))
    return index if index < len(ends) else int(np.flatnonzero(weights)[-1])


def padded(vocabulary: int) -> int:
    """The length in whole blocks."""
    return -(-vocabulary // BLOCK) * BLOCK


def block_sums(values: Logits) -> Logits:
    """The sum of each block: einsum adds up lines in half of the time that `sum` takes."""
    sums: Logits = np.einsum("ij->i", values.reshape(-1, BLOCK))
    return sums
