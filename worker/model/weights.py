"""The tensors of a model in one neutral layout, whatever file they came from.

A linear layer is [outputs, inputs]. Rotary embedding pairs element i of a head with element
i + head_size / 2. Arrays are read and dequantized when asked for, so that one layer at a time is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer: attention, then a gated feed-forward."""

    attention_norm: Tensor  # [hidden]
    query: Tensor  # [heads * head_size, hidden]
    key: Tensor  # [kv_heads * head_size, hidden]
    value: Tensor  # [kv_heads * head_size, hidden]
    output: Tensor  # [hidden, heads * head_size]
    feed_forward_norm: Tensor  # [hidden]
    gate: Tensor  # [intermediate, hidden]
    up: Tensor  # [intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model, as functions that read a part when called."""

    embedding: Callable[[], Tensor]  # [vocabulary, hidden]
    layer: Callable[[int], LayerWeights]
    final_norm: Callable[[], Tensor]  # [hidden]
    lm_head: Callable[[], Tensor]  # [vocabulary, hidden]; the embedding, where they are tied
