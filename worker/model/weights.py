"""The tensors of a model in one neutral layout, whatever file they came from.

A linear layer is [outputs, inputs]. Rotary embedding turns element i of a head together with element
i + head_size / 2. Multipliers are folded in already: see `folding`. Arrays are read and dequantized when asked for,
so that one layer at a time is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None = None  # [outputs]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Linear":
        """The layer whose outputs are changed so: the rows of its weight, and its bias."""
        return Linear(change(self.weight), None if self.bias is None else change(self.bias))


def stacked(*layers: Linear) -> Linear:
    """One layer with the outputs of all, in turn."""
    weight = np.concatenate([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return Linear(weight)
    biases = [np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias for layer in layers]
    return Linear(weight, np.concatenate(biases))


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One decoder layer: attention, then a gated feed-forward. A norm that is None is left out."""

    attention_norm: Tensor | None  # [hidden], of what goes into attention
    query: Linear  # [heads * head_size, hidden]
    key: Linear  # [kv_heads * head_size, hidden]
    value: Linear  # [kv_heads * head_size, hidden]
    output: Linear  # [hidden, heads * head_size]
    feed_forward_norm: Tensor | None  # [hidden], of what goes into the feed-forward
    gate: Linear  # [intermediate, hidden]
    up: Linear  # [intermediate, hidden]
    down: Linear  # [hidden, intermediate]
    rotary: Tensor | None  # [head_size / 2], radians a token; None: queries and keys are not turned
    query_norm: Tensor | None = None  # [head_size], of each head; or [heads * head_size], of all together
    key_norm: Tensor | None = None  # [head_size] or [kv_heads * head_size]
    attention_post_norm: Tensor | None = None  # [hidden], of what attention adds to the stream
    feed_forward_post_norm: Tensor | None = None  # [hidden], of what the feed-forward adds

    def with_queries_times(self, factor: float) -> "LayerWeights":
        """The layer whose queries, and so the scores of its attention, are `factor` times as large."""
        scale = np.float32(factor)
        if self.query_norm is not None:
            return replace(self, query_norm=self.query_norm * scale)
        return replace(self, query=self.query.each(lambda rows: rows * scale))


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model, as functions that read a part when called."""

    embedding: Callable[[], Tensor]  # [vocabulary, hidden]
    layer: Callable[[int], LayerWeights]
    final_norm: Callable[[], Tensor]  # [hidden]
    lm_head: Callable[[], Tensor]  # [vocabulary, hidden]; the embedding, where they are tied
