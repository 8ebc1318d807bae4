"""Attention of rows, one new token each, over keys and values in blocks of 8 bits. A part of the graph of
`block_graph`, which names the shapes; constants are in `block_ports`.
"""

from dataclasses import dataclass

from worker.model.onnx_file import OnnxFile


@dataclass(frozen=True, slots=True)
class Eighths:
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
class RowsAttention:
    """Writes the nodes of each layer."""

    file: OnnxFile

    def write(self, index: int, turned: str, eighths: Eighths) -> str:
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

    def _blocks_attention(self, index: int, eighths: Eighths) -> _BlocksAttention:
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
