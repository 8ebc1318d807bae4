"""Folds what some architectures do beside the usual into their weights, so that graphs need not know of it.

Multipliers go into the layer before or the norm after them. A head of which only a part is turned gets its
elements in another order, and zeros among its frequencies: scores are sums over a head, in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from worker.model.rope import Rope
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Numbers by which an architecture multiplies on the way."""

    embedding: float = 1.0
    residual: float = 1.0  # what each half of a layer adds to the stream
    logits: float = 1.0
    scores: float | None = None  # of attention; None: head_size ** -0.5, as usual


def fold_whole(weights: Weights, multipliers: Multipliers, *, tied: bool) -> Weights:
    """A model of which the embedding and the logits need no multiplying."""
    embedding, logits = np.float32(multipliers.embedding), multipliers.logits
    if tied:
        logits /= multipliers.embedding  # for the lm_head is multiplied with it
    return replace(
        weights,
        embedding=_times(weights.embedding, embedding),
        lm_head=_times(weights.lm_head, embedding) if tied else weights.lm_head,
        final_norm=lambda: weights.final_norm() * np.float32(logits),
    )


def fold_layer(layer: LayerWeights, multipliers: Multipliers, rope: Rope | None, head_size: int) -> LayerWeights:
    """A layer that multiplies by nothing but head_size ** -0.5, and turns whole heads if any."""
    if multipliers.residual != 1.0:
        layer = _with_residual_times(layer, np.float32(multipliers.residual))
    if multipliers.scores is not None and not np.isclose(multipliers.scores, head_size**-0.5, rtol=1e-12):
        layer = layer.with_queries_times(multipliers.scores * head_size**0.5)
    return layer if rope is None else _turning(layer, rope, head_size)


def _times(table: StoredTensor, factor: np.float32) -> StoredTensor:
    return table if factor == 1 else table.each(lambda rows: rows * factor)


def _with_residual_times(layer: LayerWeights, factor: np.float32) -> LayerWeights:
    """Where a norm stands between, what comes before it needs no factor: its gain has it."""

    def scaled(last: Linear, norm: Tensor | None) -> tuple[Linear, Tensor | None]:
        return (last.each(lambda rows: rows * factor), None) if norm is None else (last, norm * factor)

    output, attention_post_norm = scaled(layer.output, layer.attention_post_norm)
    down, feed_forward_post_norm = scaled(layer.down, layer.feed_forward_post_norm)
    return replace(
        layer,
        output=output,
        attention_post_norm=attention_post_norm,
        down=down,
        feed_forward_post_norm=feed_forward_post_norm,
    )


def _turning(layer: LayerWeights, rope: Rope, head_size: int) -> LayerWeights:
    turned = len(rope.frequencies)
    layer = replace(layer, rotary=np.pad(rope.frequencies, (0, head_size // 2 - turned)))
    if 2 * turned < head_size:
        layer = _each_head(layer, head_size, lambda heads: heads[:, _halves(turned, head_size)])
    if rope.magnitude != 1.0:
        scale = np.ones(head_size, np.float32)
        scale[:turned] = scale[head_size // 2 : head_size // 2 + turned] = rope.magnitude
        layer = _scaled_heads(layer, head_size, scale)
    return layer


def _halves(turned: int, head_size: int) -> list[int]:
    """An order in which element i turns with i + head_size / 2, if it was i with i + turned before."""
    rest = range(2 * turned, head_size)
    middle = len(rest) // 2
    return [*range(turned), *rest[:middle], *range(turned, 2 * turned), *rest[middle:]]


def _scaled_heads(layer: LayerWeights, head_size: int, scale: Tensor) -> LayerWeights:
    """Queries and keys with each element of a head multiplied, after their norm if they have one."""

    def scaled(heads: Tensor) -> Tensor:
        return heads * (scale if heads.ndim == 2 else scale[:, None])

    if layer.query_norm is None or layer.key_norm is None:
        return _each_head(layer, head_size, scaled)
    return replace(
        layer,
        query_norm=_by_head(layer.query_norm, head_size, scaled),
        key_norm=_by_head(layer.key_norm, head_size, scaled),
    )


def _each_head(layer: LayerWeights, head_size: int, change: Callable[[Tensor], Tensor]) -> LayerWeights:
    """Change queries, keys and their norms, each seen as [heads, head_size, ...]."""

    def changed(rows: Tensor) -> Tensor:
        return _by_head(rows, head_size, change)

    return replace(
        layer,
        query=layer.query.each(changed),
        key=layer.key.each(changed),
        query_norm=None if layer.query_norm is None else changed(layer.query_norm),
        key_norm=None if layer.key_norm is None else changed(layer.key_norm),
    )


def _by_head(rows: Tensor, head_size: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(rows.reshape(-1, head_size, *rows.shape[1:])).reshape(rows.shape)
