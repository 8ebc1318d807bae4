"""Record what an independent implementation computes, for `tests/worker/model/test_architectures.py`.

For each architecture, Hugging Face transformers makes a tiny model from its own config class, gets weights that
are drawn from their names (so that the test can draw them again), reads a prompt and writes 16 tokens, greedily in
fp32. Nothing of Gristmill is imported but the function that draws. It needs an environment of its own:

    python3 -m venv reference
    reference/bin/pip install torch==2.13.0 transformers==5.23.0
    reference/bin/python -m benchmarks.reference_logits
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.worker.model.drawn_weights import draw

FOLDER = Path(__file__).parent.parent / "tests" / "worker" / "model"
GAP_MIN = 1e-3
PROMPT_TOKENS, ANSWER_TOKENS, VOCABULARY = 24, 16, 80

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
THETA = {"rope_theta": 10_000.0}
LLAMA_3_ROPE = THETA | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = THETA | {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 3.0, 4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": 128,
    "partial_rotary_factor": 0.75,
}
GEMMA_3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("llama", {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default"} | THETA}),
    "llama-3.2": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA_3_ROPE}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": (
        "llama",
        {"tie_word_embeddings": True, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "mistral-wide-heads": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2.5-yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "rope_parameters": GEMMA_3_ROPES,
        },
    ),
    "phi-3": ("phi3", {"sliding_window": 8}),
    "phi-4-mini": (
        "phi3",
        {"tie_word_embeddings": True, "original_max_position_embeddings": 128, "rope_parameters": LONGROPE},
    ),
    "granite-3": (
        "granite",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.11,
            "logits_scaling": 3.0,
        },
    ),
    "olmo2": ("olmo2", {}),
}


@torch.inference_mode()
def record(kind: str, settings: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    config = transformers.AutoConfig.for_model(kind, **SHAPE | settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    tensors = with_drawn_weights(model)
    prompt = np.random.default_rng(14).integers(3, VOCABULARY, PROMPT_TOKENS).tolist()
    step = model(torch.tensor([prompt]), use_cache=True)
    rows, answer = [step.logits[0]], []
    for _ in range(ANSWER_TOKENS):
        answer.append(int(rows[-1][-1].argmax()))
        step = model(torch.tensor([answer[-1:]]), past_key_values=step.past_key_values, use_cache=True)
        rows.append(step.logits[0])
    logits = torch.cat(rows).numpy()
    told = {"config": published(config, kind), "tensors": tensors, "prompt": prompt, "answer": answer}
    return told, logits


def with_drawn_weights(model: torch.nn.Module) -> dict[str, list[int]]:
    """Draw every weight of a model; gives the shapes of those that a file of it holds."""
    tied = model.config.tie_word_embeddings
    shapes = {}
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(draw(name, tuple(parameter.shape))))
        shapes[name] = list(parameter.shape)
    assert tied == ("lm_head.weight" not in shapes)
    return shapes


def published(config: PretrainedConfig, kind: str) -> dict[str, Any]:
    """What save_pretrained would write."""
    told: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return told | {"model_type": kind}


def main() -> None:
    models, logits = {}, {}
    for name, (kind, settings) in MODELS.items():
        models[name], logits[name] = record(kind, settings)
        ordered = np.sort(logits[name], axis=1)
        gap = (ordered[:, -1] - ordered[:, -2]).min()
        assert gap > GAP_MIN, "another prompt is needed: two tokens are as likely"
        print(f"{name}: logits up to {np.abs(logits[name]).max():.1f}, smallest gap {gap:.4f}")
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, fp32, eager"
    text = json.dumps({"made_by": made_by, "models": models}, separators=(",", ":"))
    (FOLDER / "expected_logits.json").write_text(text.replace('},"', '},\n"') + "\n")
    np.savez_compressed(FOLDER / "expected_logits.npz", **logits)


if __name__ == "__main__":
    main()
