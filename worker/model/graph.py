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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from worker.model.onnx_file import MICROSOFT, OnnxFile, OnnxGraph
from worker.model.precision import Precision
from worker.model.spec import Activation, ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights, stacked


def write(spec: ModelSpec, weights: Weights, precision: Precision, folder: Path) -> None:
    """Write model.onnx and model.onnx.data into the folder, one linear layer in memory at a time."""
    kind = Decoder if precision is Precision.FP32 else CudaDecoder
    with OnnxFile(folder) as file:
        kind(file, spec, precision).write(weights)
        file.save(_inputs(spec, precision), _outputs(spec, precision))


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between two norms: what has been summed, and what is to be added next."""

    sum: str
    delta: str | None


@dataclass(frozen=True, slots=True)
class Decoder:
    """Writes the nodes of one model; the names of values are `{place}.{what}`. `paged_graph` has another attention."""

    file: OnnxGraph
    spec: ModelSpec
    precision: Precision

    rotary_tables: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """The names of cos and sin by the frequencies they are made of."""

    def write(self, weights: Weights) -> None:
        embedding = self.table("embedding.weight", weights.embedding)
        stream = Stream(self.file.node("Gather", [embedding, "input_ids"], "embedding.output"), delta=None)
        for index in range(self.spec.layers):
            stream = self.layer(index, weights.layer(index), stream)
        hidden, _ = self._norm("final_norm", weights.final_norm(), stream)
        if self.spec.tied_embeddings:
            self._logits(hidden, embedding)
        else:
            self._logits(hidden, self.table("lm_head.weight", weights.lm_head))

    def layer(self, index: int, layer: LayerWeights, stream: Stream) -> Stream:
        """One layer; from the last one on, only the rows that want logits."""
        place = f"layers.{index}"
        hidden, total = self._norm(f"{place}.attention_norm", layer.attention_norm, stream)
        attended = self.attention(index, hidden, layer)
        if index == self.spec.layers - 1:
            # From here on each position stands alone, so go on with those that want logits.
            total, attended = self.rows("rows.sum", total), self.rows("rows.attended", attended)
        attended = self._post_norm(f"{place}.attention_post_norm", layer.attention_post_norm, attended)
        stream = Stream(total, attended)
        hidden, total = self._norm(f"{place}.feed_forward_norm", layer.feed_forward_norm, stream)
        added = self.feed_forward(f"{place}.feed_forward", hidden, layer)
        return Stream(total, self._post_norm(f"{place}.feed_forward_post_norm", layer.feed_forward_post_norm, added))

    def attention(self, index: int, hidden: str, layer: LayerWeights) -> str:
        place = f"layers.{index}.attention"
        past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        cos, sin = self.rotary(layer.rotary)
        self.file.nodes(
            "GroupQueryAttention",
            [*self._query_key_value(place, hidden, layer), *past, "seqlens_k", "total_sequence_length", cos, sin],
            [f"{place}.mixed", *present],
            MICROSOFT,
            num_heads=self.spec.heads,
            kv_num_heads=self.spec.kv_heads,
            do_rotary=int(layer.rotary is not None),
            **self.attention_options(index),
        )
        return self.linear(f"{place}.output", f"{place}.mixed", layer.output)

    def attention_options(self, index: int) -> Mapping[str, Any]:
        options: dict[str, Any] = {}
        if window := self.spec.window(index):
            options["local_window_size"] = window
        if self.spec.attention_softcap:
            options["softcap"] = self.spec.attention_softcap
        return options

    def _query_key_value(self, place: str, hidden: str, layer: LayerWeights) -> list[str]:
        """In one tensor, as the operator also takes them; in three where queries and keys have a norm."""
        packed = self.linear(f"{place}.qkv", hidden, stacked(layer.query, layer.key, layer.value))
        if layer.query_norm is None or layer.key_norm is None:
            return [packed, "", ""]
        query, key, value = (f"{place}.{part}" for part in ("query", "key", "value"))
        self.file.nodes("Split", [packed, self.sizes(place)], [query, key, value], axis=-1)
        query = self._heads_norm(f"{place}.query_norm", layer.query_norm, query)
        return [query, self._heads_norm(f"{place}.key_norm", layer.key_norm, key), value]

    def sizes(self, place: str) -> str:
        """How many outputs are queries, keys and values."""
        queries, keys = self.spec.heads * self.spec.head_size, self.spec.kv_heads * self.spec.head_size
        return self.file.constant(f"{place}.sizes", [queries, keys, keys])

    def _heads_norm(self, place: str, gain: Tensor, heads: str) -> str:
        """The norm of [B, S, any heads * head_size], each head for itself if the gain is as long as one."""
        if len(gain) != self.spec.head_size:
            return self.plain_norm(place, gain, heads)
        each = self.file.constant(f"{place}.each", [0, 0, -1, self.spec.head_size])
        normed = self.plain_norm(place, gain, self.file.node("Reshape", [heads, each], f"{place}.heads"))
        together = self.file.constant(f"{place}.together", [0, 0, -1])
        return self.file.node("Reshape", [normed, together], f"{place}.output")

    def feed_forward(self, place: str, hidden: str, layer: LayerWeights) -> str:
        both = self.linear(f"{place}.gate_up", hidden, stacked(layer.gate, layer.up))
        gate, up = f"{place}.gate", f"{place}.up"
        self.file.nodes("Split", [both], [gate, up], axis=-1, num_outputs=2)
        gated = self.file.node("Mul", [self.activation(place, gate), up], f"{place}.gated")
        return self.linear(f"{place}.down", gated, layer.down)

    def activation(self, place: str, gate: str) -> str:
        match self.spec.activation:
            case Activation.SILU:  # which ONNX Runtime has under this name
                return self.file.node("QuickGelu", [gate], f"{place}.activated", MICROSOFT, alpha=1.0)
            case Activation.GELU_TANH:
                return self.file.node("Gelu", [gate], f"{place}.activated", approximate="tanh")
            case _:
                assert_never(self.spec.activation)

    def rows(self, place: str, value: str) -> str:
        """The rows of logits_indices, [R, hidden], out of [B, S, hidden]."""
        shape = self.file.constant(f"{place}.shape", [-1, self.spec.hidden])
        flat = self.file.node("Reshape", [value, shape], f"{place}.flat")
        return self.file.node("Gather", [flat, "logits_indices"], place, axis=0)

    def _norm(self, place: str, gain: Tensor | None, stream: Stream) -> tuple[str, str]:
        """The normalized stream and the stream itself, its delta added."""
        if gain is None:
            total = stream.sum
            if stream.delta is not None:
                total = self.file.node("Add", [stream.delta, stream.sum], f"{place}.sum")
            return total, total
        if stream.delta is None:
            return self.plain_norm(place, gain, stream.sum), stream.sum
        weight = self.weight(f"{place}.weight", gain)
        total = f"{place}.sum"
        self.file.nodes(
            "SkipSimplifiedLayerNormalization",
            [stream.delta, stream.sum, weight],
            [place, "", "", total],
            MICROSOFT,
            epsilon=self.spec.norm_epsilon,
        )
        return place, total

    def _post_norm(self, place: str, gain: Tensor | None, value: str) -> str:
        return value if gain is None else self.plain_norm(place, gain, value)

    def plain_norm(self, place: str, gain: Tensor, value: str) -> str:
        weight = self.weight(f"{place}.weight", gain)
        return self.file.node(
            "SimplifiedLayerNormalization", [value, weight], place, axis=-1, epsilon=self.spec.norm_epsilon
        )

    def linear(self, place: str, value: str, layer: Linear) -> str:
        """The one place that decides how a linear layer is computed."""
        if layer.bias is None:
            return self.product(place, value, layer, place)
        product = self.product(place, value, layer, f"{place}.product")
        return self.file.node("Add", [product, self.weight(f"{place}.bias", layer.bias)], place)

    def product(self, place: str, value: str, layer: Linear, output: str) -> str:
        """A linear layer but for its bias."""
        return self.file.node("MatMul", [value, self.weight(f"{place}.weight", layer.read().T)], output)

    def _logits(self, hidden: str, lm_head: str) -> None:
        if not self.spec.logits_softcap:
            self.wide_product(hidden, lm_head, "logits")
            return
        self.wide_product(hidden, lm_head, "logits.uncut")
        cap = self.file.tensor("logits.softcap", np.array(self.spec.logits_softcap, np.float32))
        parts = self.file.node("Div", ["logits.uncut", cap], "logits.parts")
        self.file.node("Mul", [self.file.node("Tanh", [parts], "logits.bent"), cap], "logits")

    def wide_product(self, hidden: str, lm_head: str, output: str) -> None:
        """The lm_head's outputs in float32."""
        if self.precision is Precision.FP32:
            self.file.node("Gemm", [hidden, lm_head], output, transB=1)
            return
        narrow = self.file.node("Gemm", [hidden, lm_head], f"{output}.narrow", transB=1)
        self.file.node("Cast", [narrow], output, to=TensorProto.FLOAT)

    def rotary(self, frequencies: Tensor | None) -> tuple[str, str]:
        """cos and sin of every position, [context_length, head_size / 2] (RoFormer, arXiv 2104.09864)."""
        if frequencies is None:
            return "", ""
        key = frequencies.tobytes()
        if key not in self.rotary_tables:
            angles = np.outer(np.arange(self.spec.context_length, dtype=np.float32), frequencies)
            place = f"rotary.{len(self.rotary_tables)}"
            cos, sin = self.weight(f"{place}.cos", np.cos(angles)), self.weight(f"{place}.sin", np.sin(angles))
            self.rotary_tables[key] = cos, sin
        return self.rotary_tables[key]

    def weight(self, name: str, array: Tensor) -> str:
        return self.file.weight(name, array.astype(self.precision.dtype, copy=False))

    def table(self, name: str, table: StoredTensor) -> str:
        dtype = np.dtype(self.precision.dtype)

        def rows() -> Iterator[NDArray[Any]]:
            return (some.astype(dtype, copy=False) for some in table.stretches())

        place = table.place_of(0, table.shape[0])
        if place is not None and place.element == dtype:
            return self.file.placed(name, place, rows)
        return self.file.stretches(name, table.shape, dtype, rows())


@dataclass(frozen=True, slots=True)
class CudaDecoder(Decoder):
    """For CUDA: linear layers are [outputs, inputs], as checkpoints have them, and stay where they lie if their type is
    this one. Gate and up are two products, for to take them apart again would cost more than it saves.
    """

    def feed_forward(self, place: str, hidden: str, layer: LayerWeights) -> str:
        activated = self.activation(place, self.linear(f"{place}.gate", hidden, layer.gate))
        gated = self.file.node("Mul", [activated, self.linear(f"{place}.up", hidden, layer.up)], f"{place}.gated")
        return self.linear(f"{place}.down", gated, layer.down)

    def product(self, place: str, value: str, layer: Linear, output: str) -> str:
        weight = self.as_it_lies(f"{place}.weight", layer)
        return self.file.node("FusedMatMul", [value, weight], output, MICROSOFT, transB=1)

    def as_it_lies(self, name: str, layer: Linear) -> str:
        """The weight of a linear layer, [outputs, inputs]."""
        dtype = np.dtype(self.precision.dtype)
        if layer.place is None or layer.place.element != dtype:
            return self.weight(name, layer.read())
        return self.file.placed(name, layer.place, lambda: [layer.read().astype(dtype)])


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
