"""A model without any preference: it draws each of its tokens from those that are allowed, all as likely."""

from random import Random

import numpy as np
import numpy.typing as npt

from worker.engine import Watcher
from worker.model import Tokenizer

CLOSING_SHARE = 0.4


def allowed(watcher: Watcher) -> npt.NDArray[np.int64]:
    """The ids, in order."""
    mask = watcher.mask()
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def walk(watcher: Watcher, tokenizer: Tokenizer, random: Random, *, tokens_max: int) -> str | None:
    """The text of a walk that came to its end; None for one that did not. Signs that close something are taken more
    often than their share, for all others make a text longer.
    """
    closing = [index for sign in '"]}' for index in tokenizer.encode_plain(sign)]
    ids: list[int] = []
    for _ in range(tokens_max):
        found = allowed(watcher)
        if forced := watcher.forced():
            assert found.tolist() == [forced[0]], "what is told to be forced is not the only way on"
        closers = [index for index in closing if index in found]
        index = int(random.choice(closers if len(closers) and random.random() < CLOSING_SHARE else found))
        if index in tokenizer.eos_token_ids:
            break
        ids.append(index)
        if not watcher.accept(index):
            break
    else:
        return None
    return tokenizer.decode(ids)
