"""com.microsoft.PagedAttention in numpy: what the CUDA kernel of ONNX Runtime 1.31 computes, said plainly.

ONNX Runtime has no such kernel for CPUs. This one is what the runner is tested with where there is no card, and what
a card's results are held against. It refuses what the operator leaves undefined: a token without a page to lie in, a
page that another sequence writes in the same run.

The operator's contract is its schema (`onnxruntime.capi`, domain com.microsoft, version 1) and
docs/contrib_ops/cuda/paged_attention.md of ONNX Runtime.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.engine.softmax import Logits

Array = npt.NDArray[Any]
Lengths = npt.NDArray[np.int32]

_INT8_MAX = 127
_FLOAT8_MAX = 448.0


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """Those of one node. A `window` of 0 sees all; a `scale` of 0 means head_size ** -0.5, as in the operator."""

    heads: int
    kv_heads: int
    scale: float = 0.0
    softcap: float = 0.0
    window: int = 0
    norm_epsilon: float = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Which of the packed tokens belong to which of B sequences, and where their keys and values lie."""

    cumulative: Lengths
    """[B + 1]: sequence b has the tokens from cumulative[b] to cumulative[b + 1]."""
    past: Lengths
    """[B]: how many positions each has in its pages before this run."""
    block_table: Lengths
    """[B, W]: each sequence's pages in the order of its text."""

    def sequences(self) -> Iterator[tuple[int, slice, int]]:
        """Each sequence's number, its packed tokens and its past, those without a token left out."""
        for number, past in enumerate(self.past.tolist()):
            tokens = slice(int(self.cumulative[number]), int(self.cumulative[number + 1]))
            if tokens.stop > tokens.start:
                yield number, tokens, past


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """Keys or values of one layer, [pages, page_tokens, kv_heads, head_size], changed in place.

    `scale` belongs to int8 and float8: of one number or [kv_heads, 1, head_size]; what is stored is value / scale.
    """

    array: Array
    scale: Array | None = None

    def write(self, pages: Lengths, offsets: Lengths, values: Logits) -> None:
        """Store values [tokens, kv_heads, head_size], rounded to the type of the cache."""
        self.array[pages, offsets] = self._encoded(values)

    def read(self, pages: Lengths, tokens: int) -> Logits:
        """The first tokens that lie in some pages, [tokens, kv_heads, head_size]."""
        found = self.array[pages].reshape(-1, *self.array.shape[2:])[:tokens].astype(np.float32)
        return found if self.scale is None else found * _per_head(self.scale)

    def _encoded(self, values: Logits) -> Array:
        if self.scale is None:
            return values.astype(self.array.dtype)
        scaled: Logits = values / _per_head(self.scale)
        if self.array.dtype == np.int8:
            scaled = np.clip(np.rint(scaled), -_INT8_MAX - 1, _INT8_MAX)
        else:
            scaled = np.clip(scaled, -_FLOAT8_MAX, _FLOAT8_MAX)
        encoded: Array = scaled.astype(self.array.dtype)
        return encoded


@dataclass(frozen=True, slots=True, eq=False)
class Turning:
    """What happens to queries and keys first: a norm of each head, then rotation by position. Each may be absent."""

    cos: Array | None = None
    """[positions, head_size / 2], and sin."""
    sin: Array | None = None
    query_norm: Array | None = None
    """[head_size], and key_norm."""
    key_norm: Array | None = None


def attend(
    query_key_value: Array, key: Cache, value: Cache, packing: Packing, turning: Turning, attributes: Attributes
) -> Array:
    """Store the new keys and values and mix: [tokens, (heads + 2 * kv_heads) * head_size] -> [tokens, heads *
    head_size], of the same type. Every token sees the text up to itself, or the last `window` tokens of it.
    """
    heads, kv_heads = attributes.heads, attributes.kv_heads
    by_head = query_key_value.astype(np.float32).reshape(len(query_key_value), heads + 2 * kv_heads, -1)
    queries = _normed(by_head[:, :heads], turning.query_norm, attributes.norm_epsilon)
    keys = _normed(by_head[:, heads : heads + kv_heads], turning.key_norm, attributes.norm_epsilon)
    values = by_head[:, heads + kv_heads :]
    _refuse_shared_writes(packing, key.array.shape[1])
    for number, tokens, past in packing.sequences():
        positions = np.arange(past, past + tokens.stop - tokens.start)
        queries[tokens] = _turned(queries[tokens], positions, turning)
        keys[tokens] = _turned(keys[tokens], positions, turning)
        pages, offsets = _places(packing, number, positions, key.array)
        key.write(pages, offsets, keys[tokens])
        value.write(pages, offsets, values[tokens])
    mixed = np.zeros_like(queries)
    for number, tokens, past in packing.sequences():
        length = past + tokens.stop - tokens.start
        pages = packing.block_table[number, : -(-length // key.array.shape[1])]
        mixed[tokens] = _mixed(queries[tokens], key.read(pages, length), value.read(pages, length), attributes)
    return mixed.reshape(len(mixed), -1).astype(query_key_value.dtype)


def _places(packing: Packing, number: int, positions: Array, cache: Array) -> tuple[Lengths, Lengths]:
    """The page and the place in it of each position of a sequence."""
    columns, offsets = positions // cache.shape[1], positions % cache.shape[1]
    table = packing.block_table[number]
    if columns[-1] >= len(table):
        raise ValueError(f"sequence {number} reaches position {positions[-1]}, beyond its {len(table)} pages")
    if (table[: columns[-1] + 1] < 0).any() or (table[: columns[-1] + 1] >= len(cache)).any():
        raise ValueError(f"sequence {number} has no page for a position up to {positions[-1]}")
    return table[columns], offsets


def _refuse_shared_writes(packing: Packing, page_tokens: int) -> None:
    """Two sequences that write one page would each destroy what the other has; page 0 is nobody's and bears it."""
    writers: dict[int, int] = {0: -1}
    for number, tokens, past in packing.sequences():
        first, last = past // page_tokens, (past + tokens.stop - tokens.start - 1) // page_tokens
        for page in packing.block_table[number, first : last + 1].tolist():
            if page and writers.setdefault(page, number) != number:
                raise ValueError(f"sequences {writers[page]} and {number} write page {page} in one run")


def _normed(heads: Logits, gain: Array | None, epsilon: float) -> Logits:
    if gain is None:
        return heads.copy()
    normed: Logits = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    return normed * gain.astype(np.float32)


def _turned(heads: Logits, positions: Array, turning: Turning) -> Logits:
    """Element i of [tokens, heads, head_size] together with i + head_size / 2."""
    if turning.cos is None or turning.sin is None:
        return heads
    cos, sin = (table[positions].astype(np.float32)[:, None] for table in (turning.cos, turning.sin))
    left, right = np.split(heads, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _mixed(queries: Logits, keys: Logits, values: Logits, attributes: Attributes) -> Logits:
    """Attention of one sequence's last tokens [tokens, heads, head_size] over all of it."""
    tokens, heads, head_size = queries.shape
    length, group = len(keys), heads // attributes.kv_heads
    by_group = queries.reshape(tokens, attributes.kv_heads, group, head_size).transpose(1, 2, 0, 3)
    scores = by_group @ keys.transpose(1, 2, 0)[:, None] * np.float32(attributes.scale or head_size**-0.5)
    if attributes.softcap:
        scores = np.tanh(scores / np.float32(attributes.softcap)) * np.float32(attributes.softcap)
    distance = np.arange(length - tokens, length)[:, None] - np.arange(length)
    is_seen = (distance >= 0) & (distance < (attributes.window or length))
    scores = np.where(is_seen, scores, np.float32(-np.inf))
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Logits = (odds / odds.sum(axis=-1, keepdims=True)) @ values.transpose(1, 0, 2)[:, None]
    return mixed.transpose(2, 0, 1, 3).reshape(tokens, heads, head_size)


def _per_head(scale: Array) -> Logits:
    """One number, or [kv_heads, 1, head_size], to go with [tokens, kv_heads, head_size]."""
    factors: Logits = scale.astype(np.float32)
    return factors.reshape(1) if factors.size == 1 else factors.reshape(1, factors.shape[0], factors.shape[-1])
