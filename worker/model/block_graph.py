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

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worker.model import block_ports
from worker.model.block_attention import Eighths, RowsAttention
from worker.model.block_ports import STAGES
from worker.model.eighths import Quantized, signed, unsigned
from worker.model.onnx_file import MICROSOFT, OnnxFile
from worker.model.rotation import can_turn, hadamard, rotated, turned_inside
from worker.model.spec import Activation, ModelSpec
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights, stacked


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
        file.save(block_ports.inputs(spec), block_ports.outputs(spec))


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Writes the nodes of one model; the names of values are `{place}.{what}`."""

    file: OnnxFile
    spec: ModelSpec
    rotary_tables: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """The names of cos and sin by the frequencies they are made of."""

    def write(self, weights: Weights) -> None:
        block_ports.write_shared(self.file, self.spec)
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
        parts = [RowsAttention(self.file).write(index, of_rows, Eighths(by_token, scales))]
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

    def _feed_forward(self, place: str, normed: str, layer: LayerWeights) -> str:
        node = self.file.node
        eighths = self._normed_eighths(f"{place}.input", normed)
        gate = self._linear(f"{place}.gate", eighths, signed(_held(layer.gate)), layer.gate.bias)
        up = self._linear(f"{place}.up", eighths, signed(_held(layer.up)), layer.up.bias)
        # x * sigmoid(x), which ONNX Runtime has under this name.
        activated = node("QuickGelu", [gate], f"{place}.activated", MICROSOFT, alpha=1.0)
        gated = node("Mul", [activated, up], f"{place}.gated")
        turn = hadamard(block_ports.stretch(self.spec))
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

    def _normed_eighths(self, place: str, normed: str) -> Eighths:
        """8 bits for tokens that come out of a norm: one scale for all."""
        return Eighths(
            self.file.node("QuantizeLinear", [normed, "normed_scale", "zero_point"], f"{place}.eighths"), "normed_scale"
        )

    def _eighths(self, place: str, tensor: str) -> Eighths:
        """8 bits for lines of a tensor [lines, any] with a scale each, [lines, 1].

        A line of zeros has the scale 0, which makes zeros of whatever the division by it gives.
        """
        node = self.file.node
        largest = node("ReduceMax", [node("Abs", [tensor], f"{place}.abs"), "axis_last"], f"{place}.max", keepdims=1)
        step = node("Mul", [largest, "inverse_127"], f"{place}.step")
        steps = node("Div", [tensor, step], f"{place}.steps")
        return Eighths(node("QuantizeLinear", [steps, "one", "zero_point"], f"{place}.eighths"), step)

    def _scaled_linear(self, place: str, tensor: str, layer: Linear) -> str:
        """A linear layer of tokens with a scale each."""
        eighths = self._eighths(place, tensor)
        unscaled = self._linear(f"{place}.unscaled", replace(eighths, scale="one"), unsigned(_held(layer)), None)
        if layer.bias is None:
            return self.file.node("Mul", [unscaled, eighths.scale], place)
        scaled = self.file.node("Mul", [unscaled, eighths.scale], f"{place}.scaled")
        return self.file.node("Add", [scaled, self.file.weight(f"{place}.bias", layer.bias)], place)

    def _linear(self, place: str, eighths: Eighths, weight: Quantized, bias: Tensor | None) -> str:
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


def _held(layer: Linear) -> StoredTensor:
    """The weight of a layer, read once."""
    return StoredTensor.of(layer.read())
