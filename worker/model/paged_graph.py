"""A model's weights become an ONNX graph for CUDA that takes tokens without padding and keeps its cache in pages.

What the graph takes and gives (T new tokens of B sequences, W pages a sequence at most, R rows of logits). The names
are those of onnxruntime-genai's paged models, those of sizes too, so that one runner serves both:

    input_ids                    int64 [T]        the sequences' new tokens, one after the other
    cumulative_sequence_lengths  int32 [B + 1]    sequence b has the tokens from [b] to [b + 1]
    past_sequence_lengths        int32 [B]        how many tokens of each are in its pages
    block_table                  int32 [B, W]     each sequence's pages in the order of its text
    attention_metadata           int32 [3]        in host memory: no sequence has more new tokens, and none more tokens
                                                  with them, than the first two say; the longest has at least the third
    logits_indices               int32 [R]        which of the T tokens want logits
    past_key_values.{i}.key      [pages, page_tokens, kv_heads, head_size], and .value
    logits                       float32 [R, vocabulary]
    present.{i}.key              as past_key_values.{i}.key, and .value: must be the same memory

Every node runs on the device and no shape is computed, so that a run can be captured as a CUDA graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, ValueInfoProto, helper

from worker.model.cache_scales import CacheScales
from worker.model.graph import CudaDecoder
from worker.model.onnx_file import MICROSOFT, OnnxFile, OnnxGraph
from worker.model.precision import Precision
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Linear, Tensor, Weights, stacked

_FLOAT8: Final[DTypeLike] = np.dtype(ml_dtypes.float8_e4m3fn)


class CacheFormat(StrEnum):
    """How keys and values are kept."""

    FULL = "full"  # as the model computes
    INT8 = "int8"  # with scales that must be measured: see `cache_scales`
    FP8 = "fp8"  # 4 bits of exponent, 3 of mantissa: it reaches to 448, which is far enough without a scale


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The cache of a graph. `scales` are of each layer; none: all are 1."""

    format: CacheFormat = CacheFormat.FULL
    scales: tuple[CacheScales, ...] = ()

    def element(self, precision: Precision) -> DTypeLike:
        """The type of a number in it."""
        match self.format:
            case CacheFormat.INT8:
                return np.int8
            case CacheFormat.FP8:
                return _FLOAT8
            case CacheFormat.FULL:
                return precision.dtype

    def of_layer(self, layer: int) -> CacheScales:
        one = np.ones(1, np.float32)
        return self.scales[layer] if self.scales else CacheScales(one, one)


def write(
    spec: ModelSpec, weights: Weights, precision: Precision, folder: Path, cache: PagedCache | None = None
) -> None:
    """Write model.onnx and model.onnx.data into the folder, one linear layer in memory at a time."""
    with OnnxFile(folder) as file:
        build(file, spec, weights, precision, cache or PagedCache())


def build(file: OnnxGraph, spec: ModelSpec, weights: Weights, precision: Precision, cache: PagedCache) -> None:
    """Put all nodes and weights into a graph, and save it."""
    _PagedDecoder(file, spec, precision, cache=cache).write(weights)
    caches = [_cache(prefix, spec, cache.element(precision)) for prefix in ("past_key_values", "present")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["num_logits", spec.vocabulary])
    file.save([*_inputs(), *caches[0]], [logits, *caches[1]])


def is_paged(path: Path) -> bool:
    """Is the graph at `path` of this kind?"""
    graph = onnx.load(path, load_external_data=False).graph
    return any(value.name == "block_table" for value in graph.input)


def attention_scale(head_size: int) -> float:
    """What the operator takes by itself, but said: ONNX Runtime 1.31 computes it in two places, and where these differ
    in the last bit, cuDNN's plan is not found again while a run is captured (microsoft/onnxruntime#32624).
    """
    return float(head_size**-0.5)


@dataclass(frozen=True, slots=True)
class _PagedDecoder(CudaDecoder):
    """All but attention, and that tokens lie in one row, is as on slots."""

    cache: PagedCache = PagedCache()

    def attention(self, index: int, hidden: str, layer: LayerWeights) -> str:
        place = f"layers.{index}.attention"
        caches = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        cos, sin = self.rotary(layer.rotary)
        inputs = [*self._heads(place, hidden, layer), *caches]
        inputs += ["cumulative_sequence_lengths", "past_sequence_lengths", "block_table", cos, sin, "", ""]
        self.file.nodes(
            "PagedAttention",
            [*inputs, *self._head_norms(place, layer), *self._scales(place, index), "attention_metadata"],
            [f"{place}.mixed", f"present.{index}.key", f"present.{index}.value"],
            MICROSOFT,
            num_heads=self.spec.heads,
            kv_num_heads=self.spec.kv_heads,
            do_rotary=int(layer.rotary is not None),
            qk_norm_epsilon=self.spec.norm_epsilon,
            scale=attention_scale(self.spec.head_size),
            **self.attention_options(index),
            **self._cache_options(index),
        )
        return self.linear(f"{place}.output", f"{place}.mixed", layer.output)

    def linear(self, place: str, value: str, layer: Linear) -> str:
        inputs = [value, self.as_it_lies(f"{place}.weight", layer)]
        if layer.bias is not None:
            inputs.append(self.weight(f"{place}.bias", layer.bias))
        return self.file.node("Gemm", inputs, place, transB=1)

    def rows(self, place: str, value: str) -> str:
        return self.file.node("Gather", [value, "logits_indices"], place, axis=0)

    def _heads(self, place: str, hidden: str, layer: LayerWeights) -> Sequence[str]:
        """In one tensor; in three where queries and keys are normed over all heads together, which attention cannot."""
        packed = self.linear(f"{place}.qkv", hidden, stacked(layer.query, layer.key, layer.value))
        if layer.query_norm is None or layer.key_norm is None or len(layer.query_norm) == self.spec.head_size:
            return packed, "", ""
        query, key, value = (f"{place}.{part}" for part in ("query", "key", "value"))
        self.file.nodes("Split", [packed, self.sizes(place)], [query, key, value], axis=-1)
        query = self.plain_norm(f"{place}.query_norm", layer.query_norm, query)
        return query, self.plain_norm(f"{place}.key_norm", layer.key_norm, key), value

    def _head_norms(self, place: str, layer: LayerWeights) -> tuple[str, str]:
        """What the operator is to norm each head by."""
        if layer.query_norm is None or layer.key_norm is None or len(layer.query_norm) != self.spec.head_size:
            return "", ""
        query = self.weight(f"{place}.query_norm.weight", layer.query_norm)
        return query, self.weight(f"{place}.key_norm.weight", layer.key_norm)

    def _scales(self, place: str, index: int) -> tuple[str, str]:
        if self.cache.format is CacheFormat.FULL:
            return "", ""
        scales = self.cache.of_layer(index)
        return (
            self.file.tensor(f"{place}.key_scale", scales.key),
            self.file.tensor(f"{place}.value_scale", scales.value),
        )

    def _cache_options(self, index: int) -> dict[str, Any]:
        if self.cache.format is CacheFormat.FULL:
            return {}
        scales = self.cache.of_layer(index)
        return {"k_quant_type": _kind(scales.key), "v_quant_type": _kind(scales.value)}


def _kind(scale: Tensor) -> str:
    return "PER_TENSOR" if scale.size == 1 else "PER_CHANNEL"


def _inputs() -> list[ValueInfoProto]:
    int32 = TensorProto.INT32
    return [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["num_tokens"]),
        helper.make_tensor_value_info("cumulative_sequence_lengths", int32, ["batch_size + 1"]),
        helper.make_tensor_value_info("past_sequence_lengths", int32, ["batch_size"]),
        helper.make_tensor_value_info("block_table", int32, ["batch_size", "max_num_blocks"]),
        helper.make_tensor_value_info("attention_metadata", int32, [3]),
        helper.make_tensor_value_info("logits_indices", int32, ["num_logits"]),
    ]


def _cache(prefix: str, spec: ModelSpec, element: DTypeLike) -> list[ValueInfoProto]:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(element))
    shape: list[str | int | None] = ["num_blocks", "block_size", spec.kv_heads, spec.head_size]
    return [
        helper.make_tensor_value_info(f"{prefix}.{index}.{part}", kind, shape)
        for index in range(spec.layers)
        for part in ("key", "value")
    ]
