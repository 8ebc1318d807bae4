"""The number formats in which a model's weights can be stored and computed."""

from enum import StrEnum
from typing import Self, assert_never

import numpy as np
from numpy.typing import DTypeLike

from worker.model.errors import UnsupportedModel


class Precision(StrEnum):
    """How a model computes. The KV cache has the same format."""

    FP32 = "fp32"  # the CPU: its fp16 attention converts to fp32 at every call
    FP16 = "fp16"  # CUDA: its GroupQueryAttention has no fp32

    @property
    def dtype(self) -> DTypeLike:
        """The format of weights, activations and KV cache; logits are always float32."""
        match self:
            case Precision.FP32:
                return np.float32
            case Precision.FP16:
                return np.float16
            case _:
                assert_never(self)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises UnsupportedModel for a name that is not a precision."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(cls)
            raise UnsupportedModel(f"precision '{name}' is not supported; choose one of: {known}") from None
