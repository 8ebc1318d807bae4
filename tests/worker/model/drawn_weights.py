"""Weights drawn from their names: equal here and where the expected logits were recorded, without keeping them."""

import zlib

import numpy as np
from numpy.typing import NDArray


def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Gains of norms about 1, biases about 0, and linear layers that keep the size of what they are given."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        return np.float32(1) + noise * np.float32(0.2)
    if name.endswith(".bias"):
        return noise * np.float32(0.5)
    if name.endswith("embed_tokens.weight"):
        return noise * np.float32(0.5)
    return noise / np.float32(np.sqrt(shape[-1]))
