"""Folders of models that are ONNX graphs already: see benchmarks/reference_graphs.py for where the graphs are from."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from tests import tiny_model
from tests.worker.model import tiny_folder

_PARTS = {"q_proj": slice(64), "k_proj": slice(64, 96), "v_proj": slice(96, 128)}

RECORDED = Path(__file__).with_name("ready_graphs")

Change = Callable[[ModelProto], None]


def _leave(_: ModelProto) -> None:
    pass


def genai(folder: Path, name: str, change: Change = _leave) -> Path:
    """As onnxruntime-genai's builder leaves it."""
    folder.mkdir(parents=True)
    _write_graph(folder / "model.onnx", name, "model.onnx.data", change)
    (folder / "genai_config.json").write_text((RECORDED / f"{name}.json").read_text("utf-8"), "utf-8")
    _write_words(folder)
    return folder


def transformers_js(folder: Path, name: str, variant: str = "model", change: Change = _leave) -> Path:
    """As onnx-community publishes it: the graph one folder down, its weights beside it under a name of their own."""
    (folder / "onnx").mkdir(parents=True)
    _write_graph(folder / "onnx" / f"{variant}.onnx", name, f"{variant}.onnx_data", change)
    said = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))["model"]
    decoder = said["decoder"]
    settings = {
        "model_type": said["type"],
        "hidden_size": decoder["hidden_size"],
        "num_attention_heads": decoder["num_attention_heads"],
        "num_key_value_heads": decoder["num_key_value_heads"],
        "head_dim": decoder["head_size"],
        "vocab_size": said["vocab_size"],
        "max_position_embeddings": said["context_length"],
        "eos_token_id": said["eos_token_id"],
        "transformers.js_config": {"use_external_data_format": True},
    }
    tiny_folder.write_json(folder / "config.json", settings)
    _write_words(folder)
    return folder


def as_made(path: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits behind a text, [vocabulary], from the graph as its makers run it: all at once and without a cache."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            kind = np.float16 if value.type == "tensor(float16)" else np.float32
            given[value.name] = np.zeros((1, value.shape[1], 0, 16), kind)
    length = len(ids)
    given["input_ids"] = np.array([ids], np.int64)
    given["attention_mask"] = np.ones((1, length), np.int64)
    more = {"position_ids": np.arange(length)[None], "num_logits_to_keep": np.array(1, np.int64)}
    given |= {name: more[name] for name in more if name in {value.name for value in session.get_inputs()}}
    logits: NDArray[np.float32] = session.run(["logits"], given)[0][0, -1].astype(np.float32)
    return logits


def _write_words(folder: Path) -> None:
    tiny_folder.write_json(folder / "tokenizer_config.json", tiny_folder.TOKENS)
    (folder / "tokenizer.json").write_text(tiny_model.checkpoint().tokenizer.to_str(), "utf-8")


def _write_graph(path: Path, name: str, weights_name: str, change: Change) -> None:
    model = onnx.load(RECORDED / f"{name}.onnx", load_external_data=False)
    content = bytearray()
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        drawn = _draw(tensor).tobytes()
        content += b"\0" * (-len(content) % 64)
        del tensor.external_data[:]
        for key, value in (("location", weights_name), ("offset", len(content)), ("length", len(drawn))):
            tensor.external_data.add(key=key, value=str(value))
        content += drawn
    change(model)
    path.write_bytes(model.SerializeToString())
    path.with_name(weights_name).write_bytes(content)


def _draw(tensor: TensorProto) -> NDArray[Any]:
    """By its name; queries, keys and values apart are the same as in one tensor."""
    for part, columns in _PARTS.items():
        if tensor.name.endswith(f"attn.{part}.MatMul.weight"):
            fused = TensorProto(name=tensor.name.replace(part, "qkv_proj"), data_type=tensor.data_type, dims=(64, 128))
            return np.ascontiguousarray(_draw(fused)[:, columns])
    kind, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    if kind == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if tensor.name in ("cos_cache", "sin_cache"):
        angles = np.outer(np.arange(shape[0]), 10_000.0 ** -np.linspace(0, 1, shape[1]))
        return {"cos_cache": np.cos, "sin_cache": np.sin}[tensor.name](angles).astype(kind)
    noise = random.standard_normal(shape, np.float32)
    if "norm" in tensor.name:
        noise = 1 + noise / 5
    elif "scales" in tensor.name:
        noise = 0.02 + noise / 500
    elif "embed" not in tensor.name:
        noise /= np.float32(np.sqrt(shape[0]))
    return noise.astype(kind)
