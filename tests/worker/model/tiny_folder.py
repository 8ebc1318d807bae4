"""A folder as Hugging Face publishes models in, small enough to write in every test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import tiny_model
from tests.worker.model.drawn_weights import draw

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 261,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}
TOKENS: dict[str, Any] = {
    "bos_token": None,
    "eos_token": {"content": "<|im_end|>", "special": True},
    "chat_template": tiny_model.CHATML,
}
_KINDS = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}

Arrays = Mapping[str, NDArray[Any]]


def tensors(config: Mapping[str, Any] = CONFIG) -> dict[str, NDArray[np.float32]]:
    """Those of a Llama of this config."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {name: draw(name, shape) for name, shape in shapes.items()}


def write(folder: Path, *, config: Mapping[str, Any] = CONFIG, arrays: Arrays | None = None) -> Path:
    """Write all files; a test changes or removes what it is about."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", TOKENS)
    (folder / "tokenizer.json").write_text(tiny_model.checkpoint().tokenizer.to_str(), "utf-8")
    write_safetensors(folder / "model.safetensors", tensors(config) if arrays is None else arrays)
    return folder


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), "utf-8")


def write_safetensors(path: Path, arrays: Arrays, *, shift: int = 0) -> None:
    """uint16 stands for the bits of bfloat16, which numpy does not know. Tensors begin `shift` bytes behind a multiple
    of 8, where others align them.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _KINDS[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + shift)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))


def bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 towards zero."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)
