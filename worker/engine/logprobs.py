"""The log-probabilities of a drawn token and of the likeliest ones.

They are natural logarithms of the model's own distribution: log_softmax of its logits as they come, before
bias, penalties, mask and temperature, as vLLM gives them (`logprobs_mode` `raw_logprobs`, its default). So they
tell what the model thought, and not what it was allowed to say: the drawn token need not be among the likeliest,
and neither a seed nor a grammar changes them.
"""

import math
from dataclasses import dataclass

import numpy as np

from worker.engine.errors import NothingToSample
from worker.engine.likeliest import likeliest
from worker.engine.softmax import Logits, Softmax


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token that was drawn, and the ids and log-probabilities of the likeliest ones,
    the likeliest first; of equals, the lower id first. -inf where the model rules a token out.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def read(logits: Logits, token: int, top: int) -> TokenLogprob:
    """Of one row of logits [vocabulary] the log-probability of `token` and of the `top` likeliest ones.

    NothingToSample where the model's logits are not numbers.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise NothingToSample("the model's logits are not numbers")
    log_total = peak + math.log(Softmax(logits, peak).total())
    ids = likeliest(logits, top) if top else np.empty(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    others = logits[ids].astype(np.float64) - log_total
    return TokenLogprob(float(logits[token]) - log_total, tuple(zip(ids.tolist(), others.tolist(), strict=True)))
