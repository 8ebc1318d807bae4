"""Finds the highest of many values without sorting them all. Of equals, the first counts as higher."""

import numpy as np

from worker.engine.softmax import Ids, Logits, Weights

_LINES = 64


def likeliest(logits: Logits, count: int) -> Ids:
    """The ids, lowest first, of the `count` highest logits [vocabulary], or of all; no logit may be NaN."""
    if count >= len(logits):
        return np.arange(len(logits))
    ids = np.flatnonzero(logits >= _floor(logits, count))
    found = logits[ids]
    kept: Ids = ids[highest(found, np.partition(found, -count)[-count], count)]
    return kept


def highest(values: Logits | Weights, lowest: np.floating, count: int) -> Ids:
    """The places, lowest first, of the `count` highest values, of which the lowest is known."""
    is_kept = values > lowest
    ties = np.flatnonzero(values == lowest)
    is_kept[ties[: count - np.count_nonzero(is_kept)]] = True
    return np.flatnonzero(is_kept)


def _floor(logits: Logits, count: int) -> np.float32:
    """A value that at least `count` logits reach, and mostly few more.

    If the highest of each of `count` groups reach a value, then so do `count` logits. A group is a column of
    the row folded into lines, for numpy finds the maxima of columns faster than those of lines.
    """
    groups = len(logits) // _LINES
    if count <= groups:
        logits = logits[: groups * _LINES].reshape(_LINES, groups).max(axis=0)
    floor: np.float32 = np.partition(logits, -count)[-count]
    return floor
