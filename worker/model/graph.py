"""A model's weights become an ONNX graph of ONNX Runtime's fused operators.

What the graph takes and gives (B rows, S new tokens each, L tokens of room in a slot, R rows of logits):

    input_ids                    int64 [B, S]     right-padded
    seqlens_k                    int32 [B]        each row's length after this run, minus 1
    total_sequence_length        int32 []         the longest row's length after this run
    logits_indices               int64 [R]        which of the B * S positions want logits; may be empty
    past_key_values.{i}.key      [B, kv_heads, L, head_size], and .value: float32 or float16
    logits                       float32 [R, vocabulary]
    present.{i}.key              as past_key_values.{i}.key, and .value

Bind each `present` to the memory of its `past`: GroupQueryAttention then writes the new tokens in place, and
otherwise copies the whole cache at every run. S > 1 is for first prompts (total_sequence_length == S, the
past is ignored) or for a single row (B == 1): rules of that operator.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from worker.model.onnx_file import MICROSOFT, OnnxFile
from worker.model.precision import Precision
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Tensor, Weights


def write(spec: ModelSpec, weights: Weights, precision: Precision, folder: Path) -> None:
    """Write model.onnx and model.onnx.data into the folder, one layer in memory at a time."""
    with OnnxFile(folder) as file:
        _Decoder(file, spec, precision).write(weights)
        file.save(_inputs(spec, precision), _outputs(spec, precision))


@dataclass(frozen=True, slots=True)
class _Stream:
    """The residual stream between two norms: what has been summed, and what is to be added next."""

    sum: str
    delta: str | None


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Writes the nodes of one model; the names of values are `{place}.{what}`."""

    file: OnnxFile
    spec: ModelSpec
    precision: Precision

    def write(self, weights: Weights) -> None:
        embedding = self._weight("embedding.weight", weights.embedding())
        self._rotary_tables()
        stream = _Stream(self.file.node("Gather", [embedding, "input_ids"], "embedding.output"), delta=None)
        for index in range(self.spec.layers):
            stream = self._layer(index, weights.layer(index), stream)
        hidden, _ = self._norm("final_norm", weights.final_norm(), stream)
        if self.spec.tied_embeddings:
            self._logits(hidden, embedding)
        else:
            self._logits(hidden, self._weight("lm_head.weight", weights.lm_head()))

    def _layer(self, index: int, layer: LayerWeights, stream: _Stream) -> _Stream:
        place = f"layers.{index}"
        hidden, total = self._norm(f"{place}.attention_norm", layer.attention_norm, stream)
        attended = self._attention(index, hidden, layer)
        if index == self.spec.layers - 1:
            # From here on each position stands alone, so go on with those that want logits.
            total, attended = self._rows("rows.sum", total), self._rows("rows.attended", attended)
        stream = _Stream(total, attended)
        hidden, total = self._norm(f"{place}.feed_forward_norm", layer.feed_forward_norm, stream)
        return _Stream(total, self._feed_forward(f"{place}.feed_forward", hidden, layer))

    def _attention(self, index: int, hidden: str, layer: LayerWeights) -> str:
        place = f"layers.{index}.attention"
        packed = np.concatenate([layer.query, layer.key, layer.value])
        qkv = self._linear(f"{place}.qkv", hidden, packed)
        past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        self.file.nodes(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "rotary.cos", "rotary.sin"],
            [f"{place}.mixed", *present],
            MICROSOFT,
            num_heads=self.spec.heads,
            kv_num_heads=self.spec.kv_heads,
            do_rotary=1,
        )
        return self._linear(f"{place}.output", f"{place}.mixed", layer.output)

    def _feed_forward(self, place: str, hidden: str, layer: LayerWeights) -> str:
        both = self._linear(f"{place}.gate_up", hidden, np.concatenate([layer.gate, layer.up]))
        gate, up = f"{place}.gate", f"{place}.up"
        self.file.nodes("Split", [both], [gate, up], axis=-1, num_outputs=2)
        # x * sigmoid(x), which ONNX Runtime has under this name.
        activated = self.file.node("QuickGelu", [gate], f"{place}.activated", MICROSOFT, alpha=1.0)
        gated = self.file.node("Mul", [activated, up], f"{place}.gated")
        return self._linear(f"{place}.down", gated, layer.down)

    def _rows(self, place: str, value: str) -> str:
        """The rows of logits_indices, [R, hidden], out of [B, S, hidden]."""
        shape = self.file.constant(f"{place}.shape", [-1, self.spec.hidden])
        flat = self.file.node("Reshape", [value, shape], f"{place}.flat")
        return self.file.node("Gather", [flat, "logits_indices"], place, axis=0)

    def _norm(self, place: str, gain: Tensor, stream: _Stream) -> tuple[str, str]:
        """The normalized stream and the stream itself, its delta added."""
        weight = self._weight(f"{place}.weight", gain)
        epsilon = self.spec.norm_epsilon
        if stream.delta is None:
            output = self.file.node(
                "SimplifiedLayerNormalization", [stream.sum, weight], place, axis=-1, epsilon=epsilon
            )
            return output, stream.sum
        total = f"{place}.sum"
        self.file.nodes(
            "SkipSimplifiedLayerNormalization",
            [stream.delta, stream.sum, weight],
            [place, "", "", total],
            MICROSOFT,
            epsilon=epsilon,
        )
        return place, total

    def _linear(self, place: str, value: str, weight: Tensor) -> str:
        """The one place that decides how a linear layer is computed."""
        return self.file.node("MatMul", [value, self._weight(f"{place}.weight", weight.T)], place)

    def _logits(self, hidden: str, lm_head: str) -> None:
        if self.precision is Precision.FP32:
            self.file.node("Gemm", [hidden, lm_head], "logits", transB=1)
            return
        narrow = self.file.node("Gemm", [hidden, lm_head], "logits.narrow", transB=1)
        self.file.node("Cast", [narrow], "logits", to=TensorProto.FLOAT)

    def _rotary_tables(self) -> None:
        """cos and sin of every position, [context_length, head_size / 2] (RoFormer, arXiv 2104.09864)."""
        exponents = np.arange(0, self.spec.head_size, 2, dtype=np.float32) / np.float32(self.spec.head_size)
        frequencies = np.float32(1) / np.float32(self.spec.rope_theta) ** exponents
        angles = np.outer(np.arange(self.spec.context_length, dtype=np.float32), frequencies)
        self._weight("rotary.cos", np.cos(angles))
        self._weight("rotary.sin", np.sin(angles))

    def _weight(self, name: str, array: Tensor) -> str:
        return self.file.weight(name, array.astype(self.precision.dtype, copy=False))


def _inputs(spec: ModelSpec, precision: Precision) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        helper.make_tensor_value_info("logits_indices", TensorProto.INT64, ["rows"]),
        *_cache("past_key_values", spec, precision),
    ]


def _outputs(spec: ModelSpec, precision: Precision) -> list[ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", spec.vocabulary])
    return [logits, *_cache("present", spec, precision)]


def _cache(prefix: str, spec: ModelSpec, precision: Precision) -> list[ValueInfoProto]:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(precision.dtype))
    shape: list[str | int | None] = ["batch", spec.kv_heads, "room", spec.head_size]
    return [
        helper.make_tensor_value_info(f"{prefix}.{index}.{part}", element, shape)
        for index in range(spec.layers)
        for part in ("key", "value")
    ]
