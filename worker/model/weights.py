"""The tensors of a model in one neutral layout, whatever file they came from.

A linear layer is [outputs, inputs]. Rotary embedding turns element i of a head together with element
i + head_size / 2. Multipliers are folded in already: see `folding`. Tensors are read and dequantized when asked for:
linear layers whole, one at a time, and tables of embeddings, the largest of all, a stretch of rows at a time.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]

STRETCH: Final = 1024
"""Rows of a table that are read, changed and written at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Numbers that lie in a file one behind the other, as a processor has them."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    element: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.element.itemsize

    def rows(self, first: int, end: int) -> "Place | None":
        """Where some of the rows lie. None if that is no place for such numbers."""
        offset = self.offset + first * math.prod(self.shape[1:]) * self.element.itemsize
        is_aligned = offset % self.element.itemsize == 0
        return replace(self, offset=offset, shape=(end - first, *self.shape[1:])) if is_aligned else None


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that is where it is, in a file as a rule, until it is read."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]
    """From a row on, up to before another: in float32, and the reader's own."""
    place: Place | None = None
    """Where it lies, if nothing about it is changed when it is read but its type."""

    @classmethod
    def of(cls, array: Tensor) -> Self:
        """One that is in memory."""
        return cls(array.shape, lambda first, end: array[first:end])

    def read(self) -> Tensor:
        """All of it."""
        return self.rows(0, self.shape[0])

    def place_of(self, first: int, end: int) -> Place | None:
        """Where some of the rows lie, if they may be taken from there."""
        return None if self.place is None else self.place.rows(first, end)

    def stretches(self) -> Iterator[Tensor]:
        """All of it, some rows at a time."""
        for first in range(0, self.shape[0], STRETCH):
            yield self.rows(first, min(first + STRETCH, self.shape[0]))

    def each(self, change: Callable[[Tensor], Tensor]) -> "StoredTensor":
        """The tensor with its rows changed, each as if it were alone."""
        return StoredTensor(self.shape, lambda first, end: change(self.rows(first, end)))


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer."""

    read: Callable[[], Tensor]
    """Its weight, [outputs, inputs]."""
    bias: Tensor | None = None  # [outputs]
    place: Place | None = None
    """Where its weight lies, if it may be taken from there."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Linear":
        """The layer whose outputs are changed so: the rows of its weight, and its bias."""
        return Linear(lambda: change(self.read()), None if self.bias is None else change(self.bias))


def stacked(*layers: Linear) -> Linear:
    """One layer with the outputs of all, in turn. Either all have a bias or none."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), "an architecture names biases by the half of a layer"
    return Linear(
        lambda: np.concatenate([layer.read() for layer in layers]), np.concatenate(biases) if biases else None
    )


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

    embedding: StoredTensor  # [vocabulary, hidden]
    layer: Callable[[int], LayerWeights]
    final_norm: Callable[[], Tensor]  # [hidden]
    lm_head: StoredTensor  # [vocabulary, hidden]; the embedding, where they are tied
