"""A model in 8 bits for the CPU, as an ONNX graph that decodes many rows and prefills prompts in one run.

A run has N tokens: first one token for each of R rows that are being written (R >= 1), then those of prompts.
The linear layers see them all at once. The rows attend to keys and values in blocks of `BLOCK` tokens in 8
bits, each prompt to its stage: keys and values of one sequence in float32. There are `STAGES` of them.

    input_ids                    int64 [N]
    position_ids                 int64 [1, N]
    attention_tokens             int64 [A]          which tokens attend: the R rows, then those of each stage in
                                                    turn; some of them twice
    attention_sizes              int64 [1 + STAGES] how many for the rows (R) and for each stage (2 at least)
    attended                     int64 [N]          where in those A each of the N tokens finds its own
    stage_lengths                int32 [STAGES]     the tokens of each stage after this run
    logits_indices               int64 [W]          which of the N tokens want logits, W >= 1
    block_rows                   int64 [B]          whose the blocks are
    block_lengths                int64 [B, 1, 1, 1] how many tokens each holds; 0 in block 0, which is nobody's
    row_blocks                   int64 [R, C]       each row's blocks in the order of the text, padded with 0
    stages.{s}.{i}.key           float32 [1, kv_heads, L, head_size], and .value
    blocks.{i}.key               uint8 [B, kv_heads, head_size, BLOCK]
    blocks.{i}.value             uint8 [B, kv_heads, BLOCK, head_size]
    blocks.{i}.key_scale         float32 [B, kv_heads, 1, BLOCK], and .value_scale
    logits                       float32 [W, vocabulary]
    present.{s}.{i}.key          as stages.{s}.{i}.key, and .value: bind each to the same memory
    new                          uint8 [layers * N, heads + 2 * kv_heads, head_size]: behind the queries, the keys
                                 and values that go into blocks
    new_scale                    float32 [layers * N, heads + 2 * kv_heads]

Numbers in 8 bits are unsigned with the zero at 128. Weights have one scale an output channel, activations one
a token: the tokens before the gate and the lm_head, whose norm has just made them alike, a fixed one. The weights
of these layers, more than half of all, have a sign: where a processor has no instruction for products of 8 bits,
that is a quarter faster, but two neighbouring products are then added in 16 bits, which must hold them.

Each token's result depends on its own sequence alone, bit for bit: integer products are exact, and the float
sums run over a token's own channels or, block after block, over its own text. Two conditions: `C` is 1 more than
a multiple of 4, because the reduction adds in fours, and so adds only zeros at the end; and the tokens of each
stage are even in number, because GroupQueryAttention takes another path for the last token of an odd number. It
takes no fewer than one, so a stage that has nothing to do is given a token of others, which leaves its keys and
values behind those that the stage holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from worker.model.onnx_file import MICROSOFT, OnnxFile
from worker.model.rotation import can_turn, hadamard, rotated, turned_inside
from worker.model.spec import Activation, ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights, stacked

BLOCK: Final = 64
"""Tokens in a block."""
STAGES: Final = 4
"""Prompts in one run."""

_NORMED_MAX: Final = 4.25
"""Standard deviations of a normed and turned token that its 8 bits cover; what lies beyond is cut."""
_TURN_INSIDE: Final = 64
"""Channels that are turned together before the last linear layer of a feed-forward."""
_NOTHING: Final = -1e30
"""The score of a token that is not there."""
_VECTOR: Final = 16
"""Numbers that a processor adds at once, at most. What fills no vector would be added in another order."""
_TINY: Final = 1e-20
_ZERO: Final = 128
"""What stands for zero among numbers without a sign."""


def obstacle(spec: ModelSpec, weights: Weights) -> str | None:
    """What keeps a model from being written in 8 bits, to follow "because"; None if nothing does."""
    layer = weights.layer(0)
    if not can_turn(layer):
        return "it has norms behind attention and feed-forward, so its activations cannot be made alike"
    if layer.query_norm is not None and len(layer.query_norm) != spec.head_size:
        return "it norms its queries over all heads together"
    if spec.windows:
        return "some of its layers see only a part of the text"
    if spec.attention_softcap or spec.logits_softcap:
        return "it bends its scores by a tanh"
    if spec.activation is not Activation.SILU:
        return f"its activation is {spec.activation}"
    return None


def write(spec: ModelSpec, weights: Weights, folder: Path) -> None:
    """Write model.onnx and model.onnx.data into the folder, one linear layer in memory at a time."""
    spec, weights = rotated(spec, weights)
    with OnnxFile(folder) as file:
        _Decoder(file, spec).write(weights)
        file.save(_inputs(spec), _outputs(spec))


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
    return _quantized(weight, np.dtype(np.uint8), _ZERO, _largest)


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
    usual = np.float32(_ZERO) * np.abs(pairs.sum(axis=2))
    largest = np.float32(127) * np.sqrt((pairs**2).sum(axis=2))
    in_16_bits = (usual + largest).max(axis=1) / np.float32(2**15 - 1)
    in_8_bits = np.abs(weight).max(axis=1) / np.float32(127)
    scale: Tensor = np.maximum(np.maximum(in_8_bits, in_16_bits), _TINY)
    return scale


def _held(layer: Linear) -> StoredTensor:
    """The weight of a layer, read once."""
    return StoredTensor.of(layer.read())


@dataclass(frozen=True, slots=True)
class _Eighths:
    """A tensor in 8 bits: value, and the scale by which to multiply it."""

    value: str
    scale: str


@dataclass(frozen=True, slots=True)
class _BlocksAttention:
    """Of each block and head: the highest score [B, heads], the sum of exponentials relative to it [B, heads],
    and the values mixed by them, in integers [B * heads, head_size], with their scale [B, heads].
    """

    peak: str
    total: str
    mixed: str
    scale: str


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Writes the nodes of one model; the names of values are `{place}.{what}`."""

    file: OnnxFile
    spec: ModelSpec
    rotary_tables: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """The names of cos and sin by the frequencies they are made of."""

    def write(self, weights: Weights) -> None:
        self._constants()
        self._mask()
        self._stage_lengths()
        table = weights.embedding
        embedding = self.file.stretches("embedding.weight", table.shape, np.dtype(np.float32), table.stretches())
        total = self.file.node("Gather", [embedding, "input_ids"], "embedding.output")
        delta = ""
        for index in range(self.spec.layers):
            total, delta = self._layer(index, weights.layer(index), total, delta)
        normed, _ = self._norm("final_norm", total, delta)
        self._linear("logits", self._normed_eighths("lm_head.input", normed), signed(weights.lm_head), None)
        for name in ("new", "new_scale"):
            layers = [f"layers.{index}.{name}" for index in range(self.spec.layers)]
            self.file.node("Concat", layers, name, axis=0)

    def _layer(self, index: int, layer: LayerWeights, total: str, delta: str) -> tuple[str, str]:
        place = f"layers.{index}"
        normed, total = self._norm(f"{place}.attention_norm", total, delta)
        attended = self._attention(index, normed, layer)
        if index == self.spec.layers - 1:
            # From here on each token stands alone, so go on with those that want logits.
            total = self.file.node("Gather", [total, "logits_indices"], "rows.total")
            attended = self.file.node("Gather", [attended, "logits_indices"], "rows.attended")
        normed, total = self._norm(f"{place}.feed_forward_norm", total, attended)
        return total, self._feed_forward(f"{place}.feed_forward", normed, layer)

    def _attention(self, index: int, normed: str, layer: LayerWeights) -> str:
        place, node = f"layers.{index}", self.file.node
        # Attention's own factor goes into the queries; it is a power of 2 for the usual sizes of heads.
        layer = layer.with_queries_times(self.spec.head_size**-0.5)
        qkv = self._scaled_linear(f"{place}.qkv", normed, stacked(layer.query, layer.key, layer.value))
        turning, value = f"{place}.query_key", f"{place}.value"
        self.file.nodes("Split", [qkv, "turning_sizes"], [turning, value], axis=1)
        turning = self._rotary(self._heads_norm(f"{place}.heads_norm", turning, layer), layer.rotary)
        turned = node("Concat", [turning, value], f"{place}.turned", axis=1)
        heads = node("Reshape", [turned, "shape_vectors"], f"{place}.heads")
        eighths = self._eighths(f"{place}.heads", heads)
        by_token = node("Reshape", [eighths.value, "shape_tokens"], f"{place}.new")
        scales = node("Reshape", [eighths.scale, "shape_token_scales"], f"{place}.new_scale")

        of_rows = f"{place}.turned.rows"
        of_stages = [f"{place}.turned.stages.{stage}" for stage in range(STAGES)]
        attending = node("Gather", [turned, "attention_tokens"], f"{place}.turned.attending")
        self.file.nodes("Split", [attending, "attention_sizes"], [of_rows, *of_stages], axis=0)
        parts = [self._rows_attention(index, of_rows, _Eighths(by_token, scales))]
        parts += [self._stage_attention(index, stage, part) for stage, part in enumerate(of_stages)]
        mixed = node("Gather", [node("Concat", parts, f"{place}.parts", axis=0), "attended"], f"{place}.mixed")
        return self._scaled_linear(f"{place}.output", mixed, layer.output)

    def _stage_attention(self, index: int, stage: int, turned: str) -> str:
        """[tokens, heads * head_size] over what a stage holds and the tokens themselves, in float32."""
        place, cache = f"layers.{index}.stages.{stage}", f"{stage}.{index}"
        batch = self.file.node("Unsqueeze", [turned, "axis_0"], f"{place}.turned")
        lengths = [f"stage_lengths.{stage}.less_1", f"stage_lengths.{stage}.scalar"]
        self.file.nodes(
            "GroupQueryAttention",
            [batch, "", "", f"stages.{cache}.key", f"stages.{cache}.value", *lengths],
            [f"{place}.batch", f"present.{cache}.key", f"present.{cache}.value"],
            MICROSOFT,
            num_heads=self.spec.heads,
            kv_num_heads=self.spec.kv_heads,
            scale=1.0,
        )
        return self.file.node("Squeeze", [f"{place}.batch", "axis_0"], place)

    def _rows_attention(self, index: int, turned: str, eighths: _Eighths) -> str:
        """[R, heads * head_size] over the rows' blocks and their new tokens.

        Each block has a softmax of its own; `weight` brings them to a common maximum, and the new token is
        one more block, in float32.
        """
        place, node = f"layers.{index}.rows", self.file.node
        blocks = self._blocks_attention(index, eighths)
        self_score, self_value = self._self_attention(place, turned)
        peaks = node("Gather", [blocks.peak, "row_blocks"], f"{place}.peaks")
        summit = node("ReduceMax", [peaks, "axis_1"], f"{place}.blocks_summit", keepdims=0)
        summit = node("Max", [summit, self_score], f"{place}.summit")
        summits = node("Gather", [summit, "block_rows"], f"{place}.summits")
        weight = node("Exp", [node("Sub", [blocks.peak, summits], f"{place}.distance")], f"{place}.weight")
        self_weight = node("Exp", [node("Sub", [self_score, summit], f"{place}.self_distance")], f"{place}.self_weight")

        totals = node("Mul", [blocks.total, weight], f"{place}.totals")
        padded = node("Pad", [totals, "head_padding"], f"{place}.totals.padded")
        sums = self._row_sums(f"{place}.sums", padded)
        sums = node("Slice", [sums, "start_0", "heads", "axis_1"], f"{place}.sums.heads")
        denominator = node("Add", [sums, self_weight], f"{place}.denominator")
        scales = node("Mul", [blocks.scale, weight], f"{place}.scales")
        scales = node("Reshape", [scales, "shape_flat"], f"{place}.scales_flat")
        floats = node("DequantizeLinear", [blocks.mixed, scales], f"{place}.floats", axis=0)
        by_head = node("Reshape", [floats, "shape_heads"], f"{place}.by_head")
        self_column = node("Unsqueeze", [self_weight, "axis_2"], f"{place}.self_column")
        self_part = node("Mul", [self_value, self_column], f"{place}.self")
        numerator = node("Add", [self._row_sums(f"{place}.mixes", by_head), self_part], f"{place}.numerator")
        column = node("Unsqueeze", [denominator, "axis_2"], f"{place}.denominator_column")
        divided = node("Div", [numerator, column], f"{place}.divided")
        return node("Reshape", [divided, "shape_mixed"], f"{place}.mixed")

    def _row_sums(self, place: str, of_blocks: str) -> str:
        """Add what belongs to the blocks [B, ...] of each row, which fills whole vectors of the processor."""
        gathered = self.file.node("Gather", [of_blocks, "row_blocks"], f"{place}.gathered")
        return self.file.node("ReduceSum", [gathered, "axis_1"], place, keepdims=0)

    def _blocks_attention(self, index: int, eighths: _Eighths) -> _BlocksAttention:
        place, node = f"layers.{index}.blocks", self.file.node
        blocks = f"blocks.{index}"
        queries = self._of_blocks(f"{place}.queries", eighths.value, "shape_groups")
        scales = self._of_blocks(f"{place}.query_scales", eighths.scale, "shape_flat")
        products = node("MatMulInteger", [queries, f"{blocks}.key", "zero_point", "zero_point"], f"{place}.products")
        lines = node("Reshape", [products, "shape_lines"], f"{place}.products.lines")
        scaled = node("DequantizeLinear", [lines, scales], f"{place}.scaled", axis=0)
        scaled = node("Reshape", [scaled, "shape_scores"], f"{place}.scaled.by_group")
        scores = node("Mul", [scaled, f"{blocks}.key_scale"], f"{place}.unmasked")
        scores = node("Add", [scores, "mask"], f"{place}.scores")
        peak = node("ReduceMax", [scores, "axis_last"], f"{place}.peak.kept", keepdims=1)
        weights = node("Exp", [node("Sub", [scores, peak], f"{place}.distance")], f"{place}.weights")
        total = node("ReduceSum", [weights, "axis_last"], f"{place}.total.kept", keepdims=1)

        # The values' scales go into the weights, relative to the block's largest so that 8 bits stay in use.
        largest = node("ReduceMax", [f"{blocks}.value_scale", "axis_last"], f"{place}.largest", keepdims=1)
        relative = node("Div", [f"{blocks}.value_scale", largest], f"{place}.relative")
        weighted = node("Mul", [weights, relative], f"{place}.weighted")
        weights8 = node("QuantizeLinear", [weighted, "weight_scale", "no_zero_point"], f"{place}.weights8")
        mixed = node("MatMulInteger", [weights8, f"{blocks}.value", "no_zero_point", "zero_point"], f"{place}.mixed")
        return _BlocksAttention(
            peak=node("Reshape", [peak, "shape_by_head"], f"{place}.peak"),
            total=node("Reshape", [total, "shape_by_head"], f"{place}.total"),
            mixed=node("Reshape", [mixed, "shape_vectors"], f"{place}.mixed.vectors"),
            scale=node(
                "Reshape",
                [node("Mul", [largest, "weight_scales"], f"{place}.scale.kept"), "shape_by_head"],
                f"{place}.scale",
            ),
        )

    def _of_blocks(self, place: str, of_tokens: str, shape: str) -> str:
        """The part of the queries' heads, for each block that of its row."""
        gathered = self.file.node("Gather", [of_tokens, "block_rows"], f"{place}.gathered")
        queries = self.file.node("Slice", [gathered, "start_0", "heads", "axis_1"], f"{place}.sliced")
        return self.file.node("Reshape", [queries, shape], place)

    def _self_attention(self, place: str, turned: str) -> tuple[str, str]:
        """Of each row's new token: its score [R, heads] and its value for each head [R, heads, head_size]."""
        node = self.file.node
        query, key, value = f"{place}.query", f"{place}.key", f"{place}.value"
        self.file.nodes("Split", [turned, "qkv_sizes"], [query, key, value], axis=1)
        groups = node("Reshape", [query, "shape_groups"], f"{place}.query.groups")
        keys = node("Reshape", [key, "shape_kv_column"], f"{place}.key.column")
        products = node("Mul", [groups, keys], f"{place}.self_products")
        score = node("ReduceSum", [products, "axis_last"], f"{place}.self_sum", keepdims=0)
        score = node("Reshape", [score, "shape_by_head"], f"{place}.self_score")
        column = node("Reshape", [value, "shape_kv_column"], f"{place}.value.column")
        wide = node("Tile", [column, "group_repeats"], f"{place}.value.wide")
        return score, node("Reshape", [wide, "shape_heads"], f"{place}.self_value")

    def _feed_forward(self, place: str, normed: str, layer: LayerWeights) -> str:
        node = self.file.node
        eighths = self._normed_eighths(f"{place}.input", normed)
        gate = self._linear(f"{place}.gate", eighths, signed(_held(layer.gate)), layer.gate.bias)
        up = self._linear(f"{place}.up", eighths, signed(_held(layer.up)), layer.up.bias)
        # x * sigmoid(x), which ONNX Runtime has under this name.
        activated = node("QuickGelu", [gate], f"{place}.activated", MICROSOFT, alpha=1.0)
        gated = node("Mul", [activated, up], f"{place}.gated")
        turn = hadamard(min(_TURN_INSIDE, self.spec.intermediate & -self.spec.intermediate))
        stretches = node("Reshape", [gated, "shape_stretches"], f"{place}.stretches")
        turned = node("MatMul", [stretches, "turn"], f"{place}.turned")
        turned = node("Reshape", [turned, "shape_intermediate"], f"{place}.turned.flat")
        return self._scaled_linear(f"{place}.down", turned, turned_inside(layer.down, turn))

    def _norm(self, place: str, total: str, delta: str) -> tuple[str, str]:
        """The normalized stream and the stream itself, its delta added."""
        epsilon = self.spec.norm_epsilon
        if not delta:
            normed = self.file.node("SimplifiedLayerNormalization", [total, "ones"], place, axis=-1, epsilon=epsilon)
            return normed, total
        added = f"{place}.total"
        self.file.nodes(
            "SkipSimplifiedLayerNormalization",
            [delta, total, "ones"],
            [place, "", "", added],
            MICROSOFT,
            epsilon=epsilon,
        )
        return place, added

    def _heads_norm(self, place: str, tensor: str, layer: LayerWeights) -> str:
        """Queries and keys [N, (heads + kv_heads) * head_size], each head normed, where the model does that."""
        if layer.query_norm is None or layer.key_norm is None:
            return tensor
        ones = self.file.tensor(f"{place}.ones", np.ones(self.spec.head_size, np.float32))
        gains = np.repeat([layer.query_norm, layer.key_norm], [self.spec.heads, self.spec.kv_heads], axis=0)
        count = self.spec.heads + self.spec.kv_heads
        each = self.file.constant(f"{place}.each", [-1, count, self.spec.head_size])
        heads = self.file.node("Reshape", [tensor, each], f"{place}.heads")
        normed = self.file.node(
            "SimplifiedLayerNormalization", [heads, ones], place, axis=-1, epsilon=self.spec.norm_epsilon
        )
        scaled = self.file.node("Mul", [normed, self.file.tensor(f"{place}.gains", gains)], f"{place}.scaled")
        together = self.file.constant(f"{place}.together", [-1, count * self.spec.head_size])
        return self.file.node("Reshape", [scaled, together], f"{place}.output")

    def _rotary(self, tensor: str, frequencies: Tensor | None) -> str:
        """Rotary embedding (RoFormer, arXiv 2104.09864) of [N, any heads * head_size]."""
        if frequencies is None:
            return tensor
        batch = self.file.node("Unsqueeze", [tensor, "axis_0"], f"{tensor}.batch")
        inputs = [batch, "position_ids", *self._rotary_table(frequencies)]
        turned = self.file.node("RotaryEmbedding", inputs, f"{tensor}.turned", MICROSOFT)
        return self.file.node("Squeeze", [turned, "axis_0"], f"{tensor}.rotary")

    def _rotary_table(self, frequencies: Tensor) -> tuple[str, str]:
        """cos and sin of every position, [context_length, head_size / 2]."""
        key = frequencies.tobytes()
        if key not in self.rotary_tables:
            angles = np.outer(np.arange(self.spec.context_length, dtype=np.float32), frequencies)
            place = f"rotary.{len(self.rotary_tables)}"
            cos, sin = (
                self.file.weight(f"{place}.cos", np.cos(angles)),
                self.file.weight(f"{place}.sin", np.sin(angles)),
            )
            self.rotary_tables[key] = cos, sin
        return self.rotary_tables[key]

    def _normed_eighths(self, place: str, normed: str) -> _Eighths:
        """8 bits for tokens that come out of a norm: one scale for all."""
        return _Eighths(
            self.file.node("QuantizeLinear", [normed, "normed_scale", "zero_point"], f"{place}.eighths"), "normed_scale"
        )

    def _eighths(self, place: str, tensor: str) -> _Eighths:
        """8 bits for lines of a tensor [lines, any] with a scale each, [lines, 1].

        A line of zeros has the scale 0, which makes zeros of whatever the division by it gives.
        """
        node = self.file.node
        largest = node("ReduceMax", [node("Abs", [tensor], f"{place}.abs"), "axis_last"], f"{place}.max", keepdims=1)
        step = node("Mul", [largest, "inverse_127"], f"{place}.step")
        steps = node("Div", [tensor, step], f"{place}.steps")
        return _Eighths(node("QuantizeLinear", [steps, "one", "zero_point"], f"{place}.eighths"), step)

    def _scaled_linear(self, place: str, tensor: str, layer: Linear) -> str:
        """A linear layer of tokens with a scale each."""
        eighths = self._eighths(place, tensor)
        unscaled = self._linear(f"{place}.unscaled", replace(eighths, scale="one"), unsigned(_held(layer)), None)
        if layer.bias is None:
            return self.file.node("Mul", [unscaled, eighths.scale], place)
        scaled = self.file.node("Mul", [unscaled, eighths.scale], f"{place}.scaled")
        return self.file.node("Add", [scaled, self.file.weight(f"{place}.bias", layer.bias)], place)

    def _linear(self, place: str, eighths: _Eighths, weight: Quantized, bias: Tensor | None) -> str:
        """A linear layer of tokens with one scale; this operator writes floats at once."""
        inputs = [
            eighths.value,
            self.file.weight(f"{place}.weight", weight.values),
            eighths.scale,
            self.file.weight(f"{place}.weight_scale", weight.scale),
            "zero_point",
            weight.zero_point,
        ]
        if bias is not None:
            inputs.append(self.file.weight(f"{place}.bias", bias))
        return self.file.node("MatMulIntegerToFloat", inputs, place, MICROSOFT)

    def _mask(self) -> None:
        """[B, 1, 1, BLOCK]: 0 where a block has a token, _NOTHING where it has none."""
        node = self.file.node
        is_there = node("Less", ["places", "block_lengths"], "mask.is_there")
        node("Where", [is_there, "zero", "nothing"], "mask")

    def _stage_lengths(self) -> None:
        """As the operator wants them: less 1 as a vector of one, and as they are as a scalar."""
        names = [f"stage_lengths.{stage}" for stage in range(STAGES)]
        self.file.nodes("Split", ["stage_lengths"], names, axis=0, num_outputs=STAGES)
        for name in names:
            self.file.node("Sub", [name, "one_int32"], f"{name}.less_1")
            self.file.node("Squeeze", [name, "axis_0"], f"{name}.scalar")

    def _constants(self) -> None:
        spec, file = self.spec, self.file
        group = spec.heads // spec.kv_heads
        stretch = min(_TURN_INSIDE, spec.intermediate & -spec.intermediate)
        floats = {
            "one": 1.0,
            "zero": 0.0,
            "nothing": _NOTHING,
            "inverse_127": 1 / 127,
            "normed_scale": _NORMED_MAX / 127,
            "weight_scale": 1 / 255,
            "weight_scales": np.full((1, 1, group, 1), 1 / 255),
            "ones": np.ones(spec.hidden),
            "turn": hadamard(stretch),
        }
        for name, value in floats.items():
            file.tensor(name, np.asarray(value, np.float32))
        file.tensor("one_int32", np.array(1, np.int32))
        file.tensor("zero_point", np.array(_ZERO, np.uint8))
        file.tensor("no_zero_point_signed", np.array(0, np.int8))
        file.tensor("no_zero_point", np.array(0, np.uint8))
        vectors = {
            "start_0": [0],
            "head_padding": [0, 0, 0, -spec.heads % _VECTOR],
            "heads": [spec.heads],
            "axis_0": [0],
            "axis_1": [1],
            "axis_2": [2],
            "axis_last": [-1],
            "places": list(range(BLOCK)),
            "group_repeats": [1, 1, group, 1],
            "qkv_sizes": [spec.heads * spec.head_size, *[spec.kv_heads * spec.head_size] * 2],
            "turning_sizes": [(spec.heads + spec.kv_heads) * spec.head_size, spec.kv_heads * spec.head_size],
            "shape_flat": [-1],
            "shape_vectors": [-1, spec.head_size],
            "shape_groups": [-1, spec.kv_heads, group, spec.head_size],
            "shape_kv_column": [-1, spec.kv_heads, 1, spec.head_size],
            "shape_by_head": [-1, spec.heads],
            "shape_heads": [-1, spec.heads, spec.head_size],
            "shape_mixed": [-1, spec.heads * spec.head_size],
            "shape_lines": [-1, BLOCK],
            "shape_scores": [-1, spec.kv_heads, group, BLOCK],
            "shape_tokens": [-1, spec.heads + 2 * spec.kv_heads, spec.head_size],
            "shape_token_scales": [-1, spec.heads + 2 * spec.kv_heads],
            "shape_stretches": [-1, stretch],
            "shape_intermediate": [-1, spec.intermediate],
        }
        for name, values in vectors.items():
            file.constant(name, values)


def _inputs(spec: ModelSpec) -> list[ValueInfoProto]:
    return [
        _value("input_ids", TensorProto.INT64, ["tokens"]),
        _value("position_ids", TensorProto.INT64, [1, "tokens"]),
        _value("attention_tokens", TensorProto.INT64, ["attending"]),
        _value("attention_sizes", TensorProto.INT64, [1 + STAGES]),
        _value("attended", TensorProto.INT64, ["tokens"]),
        _value("stage_lengths", TensorProto.INT32, [STAGES]),
        _value("logits_indices", TensorProto.INT64, ["wanted"]),
        _value("block_rows", TensorProto.INT64, ["blocks"]),
        _value("block_lengths", TensorProto.INT64, ["blocks", 1, 1, 1]),
        _value("row_blocks", TensorProto.INT64, ["rows", "row_blocks_max"]),
        *_stages("stages", spec),
        *(value for index in range(spec.layers) for value in _blocks(f"blocks.{index}", spec)),
    ]


def _outputs(spec: ModelSpec) -> list[ValueInfoProto]:
    heads = spec.heads + 2 * spec.kv_heads
    return [
        _value("logits", TensorProto.FLOAT, ["wanted", spec.vocabulary]),
        *_stages("present", spec),
        _value("new", TensorProto.UINT8, ["layers_tokens", heads, spec.head_size]),
        _value("new_scale", TensorProto.FLOAT, ["layers_tokens", heads]),
    ]


def _stages(prefix: str, spec: ModelSpec) -> list[ValueInfoProto]:
    shape: list[str | int | None] = [1, spec.kv_heads, "room", spec.head_size]
    return [
        _value(f"{prefix}.{stage}.{index}.{part}", TensorProto.FLOAT, shape)
        for stage in range(STAGES)
        for index in range(spec.layers)
        for part in ("key", "value")
    ]


def _blocks(place: str, spec: ModelSpec) -> list[ValueInfoProto]:
    heads = spec.kv_heads
    return [
        _value(f"{place}.key", TensorProto.UINT8, ["blocks", heads, spec.head_size, BLOCK]),
        _value(f"{place}.value", TensorProto.UINT8, ["blocks", heads, BLOCK, spec.head_size]),
        _value(f"{place}.key_scale", TensorProto.FLOAT, ["blocks", heads, 1, BLOCK]),
        _value(f"{place}.value_scale", TensorProto.FLOAT, ["blocks", heads, 1, BLOCK]),
    ]


def _value(name: str, element: int, shape: Sequence[str | int | None]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, list(shape))
