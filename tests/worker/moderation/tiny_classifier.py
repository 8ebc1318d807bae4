"""A text classifier in three files, written in milliseconds: it finds one pair of words that stand side by side."""

from pathlib import Path

import numpy as np
import orjson
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "make", "bomb", "bath", "the", "a"]
PAIR = ("make", "bomb")
SURE, UNSURE = 8.0, -8.0


def write(
    path: Path, *, labels: tuple[str, ...] = ("danger", "calm"), problem_type: str | None, positions: int = 18
) -> Path:
    """Write the classifier into `path`, which is made: logits are `SURE` for the first label where the pair stands,
    else for the second, and `UNSURE` for the other. It takes `positions` - 2 tokens at once.
    """
    path.mkdir(parents=True)
    config = {
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "problem_type": problem_type,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
    }
    (path / "config.json").write_bytes(orjson.dumps(config))
    tokenizer().save(str(path / "tokenizer.json"))
    (path / "model.onnx").write_bytes(graph())
    return path


def tokenizer() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def graph() -> bytes:
    """found = max over i of (ids[i] is the first word) * (ids[i + 1] is the second), or of mask[i] * (ids[i] is [PAD]):
    a mask that shows what rows were filled up with is seen.
    """
    first, second, filling = (np.array([float(word == one) for word in WORDS], np.float32) for one in (*PAIR, "[PAD]"))
    tensors = {
        "first": first,
        "second": second,
        "filling": filling,
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "end": np.array([2**31], np.int64),
        "slope": np.array([[SURE - UNSURE, UNSURE - SURE]], np.float32),
        "base": np.array([[UNSURE, SURE]], np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["first", "input_ids"], ["is_first"]),
        helper.make_node("Gather", ["second", "input_ids"], ["is_second"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["is_first", "zero", "last", "one"], ["before"]),
        helper.make_node("Slice", ["is_second", "one", "end", "one"], ["after"]),
        helper.make_node("Mul", ["before", "after"], ["pairs"]),
        helper.make_node("ReduceMax", ["pairs", "one"], ["pair"], keepdims=1),
        helper.make_node("Gather", ["filling", "input_ids"], ["is_filling"]),
        helper.make_node("Mul", ["is_filling", "mask"], ["shown"]),
        helper.make_node("ReduceMax", ["shown", "one"], ["fault"], keepdims=1),
        helper.make_node("Max", ["pair", "fault"], ["found"]),
        helper.make_node("Mul", ["found", "slope"], ["rise"]),
        helper.make_node("Add", ["rise", "base"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    made = helper.make_graph(
        nodes, "pair", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()
