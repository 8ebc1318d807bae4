"""The rounding of linear layers to 8 bits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.model import eighths
from worker.model.weights import StoredTensor, Tensor


def weights(seed: int, heavy: bool) -> Tensor:
    """[12, 64], some outputs with a few weights far larger than the rest."""
    random = np.random.default_rng(seed)
    drawn = random.standard_t(2, (12, 64)) if heavy else random.normal(size=(12, 64))
    return (drawn * random.uniform(1e-4, 10, (12, 1))).astype(np.float32)


@given(st.integers(0, 999), st.booleans())
def test_a_rounded_weight_is_off_by_half_a_step_at_most(seed: int, heavy: bool) -> None:
    weight = weights(seed, heavy)
    stored = StoredTensor.of(weight)
    for quantized, zero in ((eighths.unsigned(stored), 128), (eighths.signed(stored), 0)):
        restored = (quantized.values.astype(np.float32) - zero).T * quantized.scale[:, None]
        assert (np.abs(restored - weight).max(axis=1) <= quantized.scale * 0.5005).all()


@given(st.integers(0, 999), st.booleans())
def test_two_signed_products_of_usual_activations_fit_in_16_bits(seed: int, heavy: bool) -> None:
    """Usual: together no further from zero than the largest of one activation."""
    values = eighths.signed(StoredTensor.of(weights(seed, heavy))).values.astype(np.int64)
    pairs = values.reshape(-1, 2, values.shape[1])
    angles = np.linspace(0, 2 * np.pi, 64)
    for first, second in zip(np.cos(angles), np.sin(angles), strict=True):
        sums = (128 + 127 * first) * pairs[:, 0] + (128 + 127 * second) * pairs[:, 1]
        assert np.abs(sums).max() <= 32767 + 256  # half a step of rounding for each of the two


def test_signed_weights_are_little_coarser_than_unsigned_ones() -> None:
    weight = StoredTensor.of(np.random.default_rng(0).normal(size=(64, 576)).astype(np.float32))
    assert np.median(eighths.signed(weight).scale / eighths.unsigned(weight).scale) < 1.25
