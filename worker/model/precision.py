"""The number formats in which a model's weights can be stored and computed."""

from enum import StrEnum
from typing import Final, Self, assert_never

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike

from worker.model.errors import UnsupportedModel

_BFLOAT16: Final[DTypeLike] = np.dtype(ml_dtypes.bfloat16)


class Precision(StrEnum):
    """How a model computes."""

    INT8 = "int8"  # the CPU: weights, activations and KV cache in 8 bits, see block_graph
    FP32 = "fp32"  # the CPU: its fp16 attention converts to fp32 at every call
    FP16 = "fp16"  # CUDA, also cards that know no bf16: keys and values in slots; its GroupQueryAttention has no fp32
    BF16 = "bf16"  # CUDA, compute capability 8.0 and above: keys and values in pages, see paged_graph
    BF16_FP8 = "bf16-fp8"  # the same with keys and values in 8 bits: twice the room, and half to read
    BF16_INT8 = "bf16-int8"  # as that, in int8, by scales that are measured once: see cache_scales

    @property
    def dtype(self) -> DTypeLike:
        """The format of activations that are not quantized, and of a KV cache in slots; logits are float32."""
        match self:
            case Precision.INT8:
                return np.float32
            case Precision.FP32:
                return np.float32
            case Precision.FP16:
                return np.float16
            case Precision.BF16 | Precision.BF16_FP8 | Precision.BF16_INT8:
                return _BFLOAT16
            case _:
                assert_never(self)

    @classmethod
    def preferred(cls) -> Self:
        """The fastest for this machine: bf16 where ONNX Runtime offers CUDA, else int8."""
        return cls(cls.BF16 if "CUDAExecutionProvider" in ort.get_available_providers() else cls.INT8)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises UnsupportedModel for a name that is not a precision."""
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(cls)
            raise UnsupportedModel(f"precision '{name}' is not supported; choose one of: {known}") from None
