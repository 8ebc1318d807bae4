"""Random numbers from a counter: the same question has the same answer, whoever asks and in whatever order.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), over
numpy columns. There is no state to keep, so a sequence's noise cannot depend on its neighbours, on the step
it happened to run in, or on how often it was started.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""Of 32 bits each, in twice the room: so their products need no conversion."""

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def pairs(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], attempts: range
) -> npt.NDArray[np.float64]:
    """Two numbers in [0, 1), of 53 random bits each, for each attempt of each (seed, choice, position).

    They come as [N, attempts, 2]. Seeds count modulo 2**64, so negative ones are fine; choices, positions and
    attempts are below 2**32.
    """
    rows, each = len(seeds), len(attempts)
    words_of_seed = [[seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF] for seed in seeds]
    key = np.array(words_of_seed, dtype=np.uint64).reshape(rows, 2).T
    counter = np.zeros((4, rows, each), dtype=np.uint64)
    counter[0] = np.array(positions, dtype=np.uint64)[:, None]
    counter[1] = np.array(choices, dtype=np.uint64)[:, None]
    counter[2] = np.array(attempts, dtype=np.uint64)
    words = philox(counter.reshape(4, -1), key.repeat(each, axis=1))
    high, low = words[0::2] >> np.uint64(5), words[1::2] >> np.uint64(6)
    mantissas: npt.NDArray[np.float64] = high * 67108864.0 + low
    return mantissas.T.reshape(rows, each, 2) / 9007199254740992.0


def philox(counter: Words, key: Words) -> Words:
    """Four random words [4, N] for each column of counter [4, N] and key [2, N]."""
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = (even * _MULTIPLIERS)[::-1]
        even, odd = (product >> _HALF) ^ odd ^ key, product & _LOW_WORD
        key = (key + _KEY_STEPS) & _LOW_WORD
    return np.stack([even[0], odd[0], even[1], odd[1]])
