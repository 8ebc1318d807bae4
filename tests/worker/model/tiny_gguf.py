"""A GGUF file of a model with random weights, small enough to write in every test."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_model import CHATML, CONTROL
from worker.model import byte_level

LAYERS, HEADS, KV_HEADS, HIDDEN, WIDE = 2, 4, 2, 64, 96
MERGES = ["h e", "l l"]
TOKENS = [*CONTROL, *byte_level.BYTE_OF_SIGN, "he", "ll"]

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": WIDE,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in TOKENS],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": CONTROL.index("<|im_end|>"),
    "tokenizer.chat_template": CHATML,
}


def tensors(seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    random = np.random.default_rng(seed)
    keys = HIDDEN * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for index in range(LAYERS):
        layer = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (keys, HIDDEN),
            "attn_v": (keys, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (WIDE, HIDDEN),
            "ffn_up": (WIDE, HIDDEN),
            "ffn_down": (HIDDEN, WIDE),
        }
        shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(
    path: Path,
    metadata: dict[str, Any] | None = None,
    arrays: dict[str, Any] | None = None,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write the file; `metadata` and `arrays` replace, add to or (None) take from what it usually holds.

    `types` says how the arrays of bytes among them are quantized.
    """
    values = METADATA | (metadata or {})
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    for key, value in values.items():
        _add(writer, key, value)
    for name, array in (tensors() | (arrays or {})).items():
        if array is not None:
            writer.add_tensor(name, array, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case str():
            writer.add_string(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case list():
            writer.add_array(key, value)
