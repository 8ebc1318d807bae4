"""Turns a model so that its activations have no outliers, without changing what it computes.

A root-mean-square norm gives the same result before and after an orthogonal matrix, so the whole residual
stream can be turned: what writes to it is multiplied by the matrix, what reads from it by its transpose, once
the gains of the norms are folded into the layers that follow them. Values are turned inside each head, and
the output projection back. Turned channels are all alike, which is what 8 bits need (QuaRot, Ashkboos et al.
2024, arXiv 2404.00456).
"""

from dataclasses import replace

import numpy as np

from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Linear, Tensor, Weights

_SEED = 20_240_330


def rotated(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """The same model, turned. Its norms have no gain left and its lm_head is no longer the embedding."""
    stream = orthogonal(spec.hidden, _SEED)
    head = orthogonal(spec.head_size, _SEED + 1)
    gain = weights.final_norm()
    turned = Weights(
        embedding=weights.embedding.each(lambda rows: _product(rows, stream)),
        layer=lambda index: _layer(weights.layer(index), stream, head),
        final_norm=lambda: np.ones(spec.hidden, np.float32),
        lm_head=weights.lm_head.each(lambda rows: _product(rows * gain, stream)),
    )
    return replace(spec, tied_embeddings=False), turned


def can_turn(layer: LayerWeights) -> bool:
    """A norm must stand before each half of a layer, and none behind: its gain would lie across the turn."""
    has_both = layer.attention_norm is not None and layer.feed_forward_norm is not None
    return has_both and layer.attention_post_norm is None and layer.feed_forward_post_norm is None


def orthogonal(size: int, seed: int) -> Tensor:
    """An orthogonal matrix [size, size] that spreads each input over all outputs.

    The Kronecker product of a random rotation (of the odd factor of `size`) and a Hadamard matrix, with
    random signs.
    """
    power = size & -size
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.standard_normal((size // power, size // power)))
    signs = random.choice([-1.0, 1.0], size)
    return np.ascontiguousarray((np.kron(rotation, hadamard(power)) * signs[:, None]).astype(np.float32))


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix [size, size] of a power of two, scaled so that it is its own inverse."""
    matrix: Tensor = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def turned_inside(layer: Linear, turn: Tensor) -> Linear:
    """A layer whose inputs come turned by `turn` in stretches: see `turn_inside`."""
    return Linear(lambda: turn_inside(layer.read(), turn), layer.bias)


def turn_inside(rows: Tensor, turn: Tensor) -> Tensor:
    """Multiply each stretch of len(turn) columns of `rows` [any, columns] by `turn`."""
    size = len(turn)
    turned: Tensor = _product(rows.reshape(-1, size), turn).reshape(rows.shape)
    return turned


def _product(one: Tensor, other: Tensor) -> Tensor:
    product: Tensor = one @ other
    return product


def _layer(layer: LayerWeights, stream: Tensor, head: Tensor) -> LayerWeights:
    gain, next_gain = layer.attention_norm, layer.feed_forward_norm
    assert gain is not None, "see can_turn"
    assert next_gain is not None, "see can_turn"
    return replace(
        layer,
        attention_norm=np.ones_like(gain),
        query=_reading(layer.query, gain, stream),
        key=_reading(layer.key, gain, stream),
        value=_reading(layer.value, gain, stream).each(lambda rows: turn_inside(np.ascontiguousarray(rows.T), head).T),
        output=_writing(turned_inside(layer.output, head), stream),
        feed_forward_norm=np.ones_like(next_gain),
        gate=_reading(layer.gate, next_gain, stream),
        up=_reading(layer.up, next_gain, stream),
        down=_writing(layer.down, stream),
    )


def _reading(layer: Linear, gain: Tensor, stream: Tensor) -> Linear:
    """What takes the normed stream."""
    return Linear(lambda: _product(layer.read() * gain, stream), layer.bias)


def _writing(layer: Linear, stream: Tensor) -> Linear:
    """What adds to the stream."""
    return layer.each(lambda rows: _product(stream.T, rows))
