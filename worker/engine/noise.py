"""Random numbers from a counter: the same question has the same answer, whoever asks and in whatever order.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), over
numpy columns. There is no state to keep, so a sequence's noise cannot depend on its neighbours, on the step
it happened to run in, or on how often it was started.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint32)
_LOW_WORD = np.uint64(0xFFFFFFFF)


def uniforms(seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1), of 53 random bits, for each (seed, choice, position).

    Seeds count modulo 2**64, so negative ones are fine; choices and positions are below 2**32.
    """
    key = np.array([[seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF] for seed in seeds], dtype=np.uint32)
    counter = np.zeros((4, len(seeds)), dtype=np.uint32)
    counter[0] = positions
    counter[1] = choices
    words = philox(counter, key.reshape(-1, 2).T)
    high, low = words[0] >> np.uint32(5), words[1] >> np.uint32(6)
    mantissa: npt.NDArray[np.float64] = high * 67108864.0 + low
    return mantissa / 9007199254740992.0


def philox(counter: Words, key: Words) -> Words:
    """Four random words [4, N] for each column of counter [4, N] and key [2, N]."""
    for _ in range(_ROUNDS):
        product = counter[0::2] * _MULTIPLIERS
        high = (product >> np.uint64(32)).astype(np.uint32)
        low = (product & _LOW_WORD).astype(np.uint32)
        counter = np.stack([high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]])
        key = key + _KEY_STEPS
    return counter
