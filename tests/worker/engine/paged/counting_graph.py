"""A graph with the inputs of a paged model that the CPU can run: what it answers depends on every token of a text.

The token that follows a text is the sum of its ids, each times its position from 1 on, modulo VOCABULARY, read back
through the pages. One token in a wrong place, or one page of another's, and the answer is another.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

VOCABULARY = 50


def following(text: Sequence[int]) -> int:
    """What the graph finds likeliest after a text."""
    return sum(token * place for place, token in enumerate(text, 1)) % VOCABULARY


def write(path: Path, *, page_tokens: int, asks_for_rows: bool = True, logits: int = TensorProto.FLOAT) -> Path:
    """Without `asks_for_rows`, it gives one row of logits a sequence, as some of onnxruntime-genai's models do."""
    nodes: list[NodeProto] = []
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "first": np.array([1]),
        "end": np.array([2**31]),
        "axis_0": np.array([0]),
        "axis_1": np.array([1]),
        "page_tokens": np.array(page_tokens),
        "of_token": np.array([-1, 1, 1]),
        "each_token": np.array([0, -1]),
        "vocabulary": np.arange(VOCABULARY),
        "modulus": np.array(VOCABULARY),
    }

    def node(operator: str, inputs: str, output: str, **attributes: object) -> None:
        nodes.append(helper.make_node(operator, inputs.split(), [output], **attributes))

    def cast(value: str, output: str, kind: int = TensorProto.INT64) -> None:
        node("Cast", value, output, to=kind)

    cast("cumulative_sequence_lengths", "cumulative")
    cast("past_sequence_lengths", "past")
    cast("block_table", "table")
    node("Size", "input_ids", "tokens")
    node("Range", "zero tokens one", "places")
    node("Slice", "cumulative first end axis_0", "ends")
    node("Unsqueeze", "places axis_1", "places_column")
    node("Unsqueeze", "ends axis_0", "ends_row")
    node("GreaterOrEqual", "places_column ends_row", "is_behind")
    cast("is_behind", "is_behind_1")
    node("ReduceSum", "is_behind_1 axis_1", "sequence", keepdims=0)
    node("Gather", "cumulative sequence", "start")
    node("Gather", "past sequence", "past_of_token")
    node("Sub", "places start", "offset")
    node("Add", "past_of_token offset", "position")
    node("Div", "position page_tokens", "column")
    node("Mod", "position page_tokens", "in_page")
    node("Unsqueeze", "sequence axis_1", "sequence_column")
    node("Unsqueeze", "column axis_1", "column_column")
    node("Concat", "sequence_column column_column", "cell", axis=1)
    node("GatherND", "table cell", "page")
    node("Unsqueeze", "page axis_1", "page_column")
    node("Unsqueeze", "in_page axis_1", "in_page_column")
    node("Concat", "page_column in_page_column", "slot", axis=1)
    node("Add", "position one", "count")
    for value, part in (("input_ids", "key"), ("count", "value")):
        cast(value, f"{part}.flat", TensorProto.FLOAT)
        node("Reshape", f"{part}.flat of_token", f"{part}.new")
        node("ScatterND", f"past_key_values.0.{part} slot {part}.new", f"present.0.{part}")
    node("Gather", "table sequence", "pages")
    for part in ("key", "value"):
        node("Gather", f"present.0.{part} pages", f"{part}.pages")
        node("Reshape", f"{part}.pages each_token", f"{part}.text")
    node("Shape", "key.text", "shape")
    node("Gather", "shape one", "length")
    node("Range", "zero length one", "positions")
    node("Unsqueeze", "position axis_1", "position_column")
    node("LessOrEqual", "positions position_column", "is_written")
    node("Mul", "key.text value.text", "products")
    cast("products", "products_64")
    node("Where", "is_written products_64 zero", "seen")
    node("ReduceSum", "seen axis_1", "sum")
    node("Mod", "sum modulus", "token")
    node("Equal", "token vocabulary", "is_next")
    if not asks_for_rows:
        node("Sub", "ends one", "last")
    node("Gather", f"is_next {'logits_indices' if asks_for_rows else 'last'}", "wanted", axis=0)
    cast("wanted", "logits", logits)

    int32 = TensorProto.INT32
    inputs = {"cumulative_sequence_lengths": ["b1"], "past_sequence_lengths": ["b"], "block_table": ["b", "w"]}
    inputs |= {"attention_metadata": [3]} | ({"logits_indices": ["r"]} if asks_for_rows else {})
    cache, parts = ["pages", page_tokens, 1, 1], ("key", "value")
    graph = helper.make_graph(
        nodes,
        "counting",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["t"]),
            *(helper.make_tensor_value_info(name, int32, shape) for name, shape in inputs.items()),
            *(helper.make_tensor_value_info(f"past_key_values.0.{part}", TensorProto.FLOAT, cache) for part in parts),
        ],
        [
            helper.make_tensor_value_info("logits", logits, ["r", VOCABULARY]),
            *(helper.make_tensor_value_info(f"present.0.{part}", TensorProto.FLOAT, cache) for part in parts),
        ],
        [numpy_helper.from_array(array.astype(np.int64), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save(model, path)
    return path
