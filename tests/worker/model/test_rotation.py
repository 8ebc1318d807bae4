import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests import tiny_model
from worker.model.eighths import signed
from worker.model.rotation import hadamard, orthogonal, rotated, turn_inside
from worker.model.weights import StoredTensor


@pytest.mark.parametrize("size", [1, 2, 3, 12, 64, 576])
def test_a_turn_can_be_undone(size: int) -> None:
    turn = orthogonal(size, seed=5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-5)


def test_hadamard_is_its_own_inverse_and_spreads_one_channel_over_all() -> None:
    matrix = hadamard(64)
    np.testing.assert_allclose(matrix @ matrix, np.eye(64), atol=1e-6)
    assert np.allclose(np.abs(matrix), 1 / 8)


def test_a_turn_inside_leaves_other_stretches_alone() -> None:
    rows = np.zeros((3, 8), np.float32)
    rows[1, 5] = 1
    turned = turn_inside(rows, hadamard(4))
    assert turned[1, 4:].all()
    assert not turned[:, :4].any()


def test_a_turned_model_computes_the_same_layer() -> None:
    """One layer by hand: norm, gate and down, with gains that differ, before and after the turn."""
    checkpoint = tiny_model.checkpoint()
    spec, turned = rotated(checkpoint.spec, checkpoint.weights)
    assert not spec.tied_embeddings
    before, after = checkpoint.weights, turned
    embedding, embedded = before.embedding.rows(0, 9), after.embedding.rows(0, 9)
    np.testing.assert_allclose(_feed_forward(embedding, before), _feed_forward(embedded, after), atol=1e-4)


def peak_bytes(work: Callable[[], object]) -> int:
    """What it takes at most, beside what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_embedding_is_turned_and_quantized_in_stretches() -> None:
    """It can be the largest of all tensors."""
    spec, size_bytes = replace(tiny_model.SPEC, vocabulary=100_000), 100_000 * tiny_model.SPEC.hidden * 4
    rows = np.random.default_rng(1).standard_normal((spec.vocabulary, spec.hidden), np.float32)
    table = StoredTensor.of(rows)
    turned = rotated(spec, replace(tiny_model.checkpoint(spec).weights, embedding=table, lm_head=table))[1]
    assert peak_bytes(lambda: [len(stretch) for stretch in turned.embedding.stretches()]) < 0.3 * size_bytes
    assert peak_bytes(lambda: signed(turned.lm_head)) < 0.6 * size_bytes


def _feed_forward(stream, weights):  # type: ignore[no-untyped-def]
    layer = weights.layer(0)
    normed = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True)) * layer.feed_forward_norm
    stream = stream + np.tanh(normed @ layer.gate.read().T) * (normed @ layer.up.read().T) @ layer.down.read().T
    stream = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True)) * weights.final_norm()
    return stream @ weights.lm_head.read().T
