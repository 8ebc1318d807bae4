"""Models of real shapes with random weights, made in memory: nothing is fetched, and only speed is asked of them."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from worker.model import rope
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Weights

_NOISE: Final = 1 << 22
_CONTEXT: Final = 8192


def _llama(**sizes: int) -> ModelSpec:
    tied = bool(sizes.pop("tied", 0))
    return ModelSpec(
        architecture="llama",
        context_length=_CONTEXT,
        norm_epsilon=1e-5,
        tied_embeddings=tied,
        eos_token_ids=(),
        bos_token_id=None,
        pad_token_id=None,
        **sizes,
    )


SHAPES: Final[Mapping[str, ModelSpec]] = {
    "tiny": _llama(layers=2, heads=4, kv_heads=2, head_size=16, hidden=64, intermediate=128, vocabulary=512, tied=1),
    # Qwen2.5-0.5B and 1.5B without their biases; Llama-3.1-8B.
    "0.5b": _llama(
        layers=24, heads=14, kv_heads=2, head_size=64, hidden=896, intermediate=4864, vocabulary=151936, tied=1
    ),
    "1.5b": _llama(
        layers=28, heads=12, kv_heads=2, head_size=128, hidden=1536, intermediate=8960, vocabulary=151936, tied=1
    ),
    "8b": _llama(layers=32, heads=32, kv_heads=8, head_size=128, hidden=4096, intermediate=14336, vocabulary=128256),
}


@cache
def _noise(fan_in: int) -> NDArray[Any]:
    values = np.random.default_rng(fan_in).standard_normal(_NOISE, np.float32) / np.float32(np.sqrt(fan_in))
    return values.astype(ml_dtypes.bfloat16)


def _draw(*shape: int, part: int) -> NDArray[Any]:
    """The same numbers over and over, from another place on for each part: there are too many to draw them all."""
    noise = _noise(shape[-1])
    flat = np.empty(int(np.prod(shape)), noise.dtype)
    begin = part * 7919 % _NOISE
    filled = 0
    while filled < len(flat):
        piece = noise[begin : begin + len(flat) - filled]
        flat[filled : filled + len(piece)] = piece
        filled, begin = filled + len(piece), 0
    return flat.reshape(shape)


def weights(spec: ModelSpec) -> Weights:
    """Random ones, in bfloat16."""

    def linear(*shape: int, part: int) -> Linear:
        return Linear(lambda: _draw(*shape, part=part))

    def table(part: int) -> StoredTensor:
        shape = spec.vocabulary, spec.hidden
        drawn = cache(lambda: _draw(*shape, part=part))
        return StoredTensor(shape, lambda first, end: drawn()[first:end])

    def layer(index: int) -> LayerWeights:
        queries, keys, part = spec.heads * spec.head_size, spec.kv_heads * spec.head_size, 10 * (index + 1)
        return LayerWeights(
            attention_norm=np.ones(spec.hidden, np.float32),
            query=linear(queries, spec.hidden, part=part),
            key=linear(keys, spec.hidden, part=part + 1),
            value=linear(keys, spec.hidden, part=part + 2),
            output=linear(spec.hidden, queries, part=part + 3),
            feed_forward_norm=np.ones(spec.hidden, np.float32),
            gate=linear(spec.intermediate, spec.hidden, part=part + 4),
            up=linear(spec.intermediate, spec.hidden, part=part + 5),
            down=linear(spec.hidden, spec.intermediate, part=part + 6),
            rotary=rope.plain(spec.head_size, 500_000.0),
        )

    return Weights(
        embedding=table(0),
        layer=layer,
        final_norm=lambda: np.ones(spec.hidden, np.float32),
        lm_head=table(1),
    )
