"""Linear layers in 8 bits: one scale an output channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.model.weights import StoredTensor, Tensor

ZERO: Final = 128
"""What stands for zero among numbers without a sign."""

_TINY: Final = 1e-20


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A linear layer in 8 bits, [inputs, outputs], and the scale [outputs] of each output."""

    values: NDArray[np.uint8] | NDArray[np.int8]
    scale: Tensor

    @property
    def zero_point(self) -> str:
        """The name of the number that stands for zero."""
        return "zero_point" if self.values.dtype == np.uint8 else "no_zero_point_signed"


def unsigned(weight: StoredTensor) -> Quantized:
    """As finely as 8 bits allow, of weights [outputs, inputs]."""
    return _quantized(weight, np.dtype(np.uint8), ZERO, _largest)


def signed(weight: StoredTensor) -> Quantized:
    """Coarser by some 10 %, so that neighbouring products of weights [outputs, inputs] with activations, added,
    leave 16 bits only where both activations are about the largest, and then by little.
    """
    return _quantized(weight, np.dtype(np.int8), 0, _signed_scale)


def _quantized(
    weight: StoredTensor, element: np.dtype[Any], zero: int, scale_of: Callable[[Tensor], Tensor]
) -> Quantized:
    """Some outputs at a time: the weight may be the largest of all tensors."""
    values, scale = np.empty(weight.shape[::-1], element), np.empty(weight.shape[0], np.float32)
    first = 0
    for rows in weight.stretches():
        end = first + len(rows)
        scale[first:end] = scale_of(rows)
        values[:, first:end] = np.rint(rows.T / scale[first:end]) + zero
        first = end
    return Quantized(values, scale)


def _largest(weight: Tensor) -> Tensor:
    scale: Tensor = np.maximum(np.abs(weight).max(axis=1), _TINY) / np.float32(127)
    return scale


def _signed_scale(weight: Tensor) -> Tensor:
    pairs = weight.reshape(len(weight), -1, 2)
    usual = np.float32(ZERO) * np.abs(pairs.sum(axis=2))
    largest = np.float32(127) * np.sqrt((pairs**2).sum(axis=2))
    in_16_bits = (usual + largest).max(axis=1) / np.float32(2**15 - 1)
    in_8_bits = np.abs(weight).max(axis=1) / np.float32(127)
    scale: Tensor = np.maximum(np.maximum(in_8_bits, in_16_bits), _TINY)
    return scale
