"""What the graph of `block_graph` takes and gives, and the constants and small values that all its layers share."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from worker.model.eighths import ZERO
from worker.model.onnx_file import OnnxFile
from worker.model.rotation import hadamard
from worker.model.spec import ModelSpec

BLOCK: Final = 64
"""Tokens in a block."""
STAGES: Final = 4
"""Prompts in one run."""

_NORMED_MAX: Final = 4.25
"""Standard deviations of a normed and turned token that its 8 bits cover; what lies beyond is cut."""
_TURN_INSIDE: Final = 64
"""Channels that are turned together before the last linear layer of a feed-forward, at most."""
_NOTHING: Final = -1e30
"""The score of a token that is not there."""
_VECTOR: Final = 16
"""Numbers that a processor adds at once, at most. What fills no vector would be added in another order."""


def stretch(spec: ModelSpec) -> int:
    """Channels that are turned together before the last linear layer of a feed-forward."""
    return min(_TURN_INSIDE, spec.intermediate & -spec.intermediate)


def write_shared(file: OnnxFile, spec: ModelSpec) -> None:
    """Declare what layers refer to by name: constants, the mask of blocks, the lengths of stages."""
    _constants(file, spec)
    _mask(file)
    _stage_lengths(file)


def inputs(spec: ModelSpec) -> list[ValueInfoProto]:
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


def outputs(spec: ModelSpec) -> list[ValueInfoProto]:
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


def _constants(file: OnnxFile, spec: ModelSpec) -> None:
    group = spec.heads // spec.kv_heads
    turned = stretch(spec)
    floats = {
        "one": 1.0,
        "zero": 0.0,
        "nothing": _NOTHING,
        "inverse_127": 1 / 127,
        "normed_scale": _NORMED_MAX / 127,
        "weight_scale": 1 / 255,
        "weight_scales": np.full((1, 1, group, 1), 1 / 255),
        "ones": np.ones(spec.hidden),
        "turn": hadamard(turned),
    }
    for name, value in floats.items():
        file.tensor(name, np.asarray(value, np.float32))
    file.tensor("one_int32", np.array(1, np.int32))
    file.tensor("zero_point", np.array(ZERO, np.uint8))
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
        "shape_stretches": [-1, turned],
        "shape_intermediate": [-1, spec.intermediate],
    }
    for name, values in vectors.items():
        file.constant(name, values)


def _mask(file: OnnxFile) -> None:
    """[B, 1, 1, BLOCK]: 0 where a block has a token, _NOTHING where it has none."""
    node = file.node
    is_there = node("Less", ["places", "block_lengths"], "mask.is_there")
    node("Where", [is_there, "zero", "nothing"], "mask")


def _stage_lengths(file: OnnxFile) -> None:
    """As the operator wants them: less 1 as a vector of one, and as they are as a scalar."""
    names = [f"stage_lengths.{stage}" for stage in range(STAGES)]
    file.nodes("Split", ["stage_lengths"], names, axis=0, num_outputs=STAGES)
    for name in names:
        file.node("Sub", [name, "one_int32"], f"{name}.less_1")
        file.node("Squeeze", [name, "axis_0"], f"{name}.scalar")
