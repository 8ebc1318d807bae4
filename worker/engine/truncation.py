"""Draws from what top_k, top_p and min_p leave of a softmax. `sampling` defines the three."""

import math

import numpy as np

from worker.engine.envelope import Envelope, Pairs
from worker.engine.likeliest import highest, likeliest
from worker.engine.softmax import Ids, Softmax, Weights, invert


def draw_of_few(softmax: Softmax, pairs: Pairs, *, top_k: int, top_p: float, min_p: float) -> int:
    """Draw where top_k or min_p, one of which is above 0, leaves few tokens to look at."""
    ids = likeliest(softmax.logits, top_k) if top_k else _at_least(softmax, min_p)
    weights = softmax.weights(ids)
    if top_p < 1:
        total = float(weights.sum()) if top_k else softmax.total()
        inside = _nucleus(weights, top_p * total)
        ids, weights = ids[inside], weights[inside]
    is_likely = weights >= min_p  # the highest is 1
    return _draw(ids[is_likely], weights[is_likely], pairs)


def draw_of_nucleus(softmax: Softmax, envelope: Envelope, top_p: float, pairs: Pairs) -> int:
    """Draw of the tokens that top_p leaves.

    Mostly without finding out which they are: of all tokens one is drawn, and it is one of them if those
    likelier than it have less than top_p together. If it is none, all of them are among the likelier, from
    which is then drawn: so every token of the nucleus has its share of the first draw, and the same share of
    the second.
    """
    envelope.fit(softmax)
    token = envelope.draw(pairs)
    likelier = softmax.likelier(token)
    weights = softmax.weights(likelier)
    mass = float(weights.sum())
    if mass < top_p * envelope.total_min:
        return token
    total = softmax.total()
    if mass < top_p * total:
        return token
    inside = _nucleus(weights, top_p * total)
    return _draw(likelier[inside], weights[inside], pairs)


def _at_least(softmax: Softmax, min_p: float) -> Ids:
    """The ids of all tokens with a weight of min_p, and of those for which a float32 cannot tell."""
    floor = np.float32(softmax.peak + softmax.temperature * math.log(min_p))
    return np.flatnonzero(softmax.logits >= np.nextafter(floor, np.float32(-np.inf)))


def _nucleus(weights: Weights, mass: float) -> Ids:
    """The places of the fewest highest weights that reach `mass` together; all, if they have less."""
    ranked = np.sort(weights)[::-1]
    last = min(int(ranked.cumsum().searchsorted(mass)), len(ranked) - 1)
    return highest(weights, ranked[last], last + 1)


def _draw(ids: Ids, weights: Weights, pairs: Pairs) -> int:
    place, _ = next(pairs)
    return int(ids[invert(weights, place * float(weights.sum()))])
