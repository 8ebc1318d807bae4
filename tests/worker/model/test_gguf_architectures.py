"""GGUF files of each architecture give the logits of transformers: their weights in llama.cpp's names and order."""

import math
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_model import CHATML, CONTROL
from tests.worker.model import test_architectures as proofs
from tests.worker.model.drawn_weights import draw
from tests.worker.model.graph_loop import GraphLoop
from worker.model import Precision, byte_level, folder, gguf

Array = NDArray[np.float32]

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
# Not in this format: which layers of Qwen see only a window. Mistral is a llama there, and those have none.
NAMES = sorted(proofs.recorded().keys() - {"qwen2-window", "mistral-window"})


def write(path: Path, name: str) -> Path:
    told = proofs.recorded()[name]
    config = told["config"]
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = library.GGUFWriter(path, architecture)
    add_sizes(writer, config)
    add_rope(writer, config)
    add_tokens(writer, config["vocab_size"])
    (kind,) = [kind for kind, known in library.MODEL_ARCH_NAMES.items() if known == architecture]
    names = library.get_tensor_name_map(kind, config["num_hidden_layers"])
    for tensor, shape in told["tensors"].items():
        array = as_converted(tensor, draw(tensor, tuple(shape)), architecture, config)
        writer.add_tensor(names.get_name(tensor, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def add_sizes(writer: library.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    optional = {
        "sliding_window": writer.add_sliding_window,
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "attention_multiplier": writer.add_attention_scale,
        "logits_scaling": writer.add_logit_scale,
    }
    for key, add in optional.items():
        if config.get(key):
            add(config[key])


def add_rope(writer: library.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    size = int(head_size(config) * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(size)
    match rope["rope_type"]:
        case "linear" | "yarn" as way:
            writer.add_rope_scaling_type(library.RopeScalingType(way))
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", 0))
        case "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(rope, size))
        case "longrope":
            trained = rope["original_max_position_embeddings"]
            stretch = config["max_position_embeddings"] / trained
            writer.add_rope_scaling_orig_ctx_len(trained)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(trained)))
            for kind in ("short", "long"):
                writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def llama3_factors(rope: dict[str, Any], size: int) -> Array:
    """By what each frequency is divided, one by one as the format's converter does it."""
    trained, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for place in range(0, size, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (place / size)
        smooth = min(1.0, max(0.0, (trained / wave - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def add_tokens(writer: library.GGUFWriter, count: int) -> None:
    tokens = [*CONTROL, "!!", *byte_level.BYTE_OF_SIGN][:count]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)


def as_converted(tensor: str, array: Array, architecture: str, config: dict[str, Any]) -> Array:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    projection = tensor.split(".")[-2]
    if architecture.startswith("gemma") and tensor.endswith("norm.weight"):
        array = array + 1
    if architecture in ("llama", "smollm3", "granite") and projection in heads:
        array = pairs_together(array, heads[projection])
    if "query_pre_attn_scalar" in config and projection == ("q_norm" if architecture == "gemma3" else "q_proj"):
        # The format takes the size of a head for it.
        array = array * np.float32((head_size(config) / config["query_pre_attn_scalar"]) ** 0.5)
    return array


def pairs_together(rows: Array, heads: int) -> Array:
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


@pytest.mark.parametrize("name", NAMES)
def test_a_gguf_file_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = gguf.read(write(tmp_path / "tiny.gguf", name))
    target = tmp_path / "target"
    target.mkdir()
    model = folder.write(target, checkpoint, name=name, source="", reference="", precision=Precision.FP32)
    prompt = proofs.recorded()[name]["prompt"]
    logits = GraphLoop(model, slots=1, room=32).run(0, [prompt], range(len(prompt)))
    proofs.assert_same(logits, proofs.truth(name)[: len(prompt)])
