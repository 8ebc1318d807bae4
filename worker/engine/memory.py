"""Memory that is taken page by page, where it is used: most of a KV cache is room that short texts never touch."""

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros. As NumPy's own, but never in pages of 2 MB, which it asks for where arrays are large.

    A few positions of each head and layer would take all of a cache with those: a second to fill it with zeros,
    at the first prompts of a worker.
    """
    element = np.dtype(dtype)
    size = math.prod(shape) * element.itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), element, count=math.prod(shape)).reshape(shape)
