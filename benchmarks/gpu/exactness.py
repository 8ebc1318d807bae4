"""Part `logits`: the card's logits against the same weights in float32 on the CPU, and against torch where it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import shapes
from benchmarks.gpu.given import Given
from benchmarks.gpu.opened import open_shape
from worker.engine import EngineSettings
from worker.engine.runner import Span
from worker.engine.softmax import Logits
from worker.model.spec import ModelSpec

_LENGTHS = (1, 17, 255, 256, 257, 300)
"""Of prompts: at the borders of pages."""
_WRITTEN = 4


def measure(given: Given) -> dict[str, Any]:
    """Divergence of the next token's distribution, at the ends of prompts of several lengths and after some tokens."""
    settings = EngineSettings(context_tokens_max=320, slots_max=len(_LENGTHS), chunk_tokens=2048)
    texts = [
        np.random.default_rng(length).integers(0, shapes.SHAPES[given.shape].vocabulary, length) for length in _LENGTHS
    ]
    ours = _logits(given.shape, given.device, settings, texts)
    references: dict[str, Callable[[], Logits]] = {
        "float32 on the CPU": lambda: _logits(given.shape, "cpu", settings, texts),
        "torch in bfloat16": lambda: _torch(given, texts),
    }
    found: dict[str, Any] = {}
    for name, compute in references.items():
        try:
            found[name] = compare(ours, compute())
        except Exception as error:  # noqa: BLE001  each reference for itself: torch need not be here
            found[name] = {"failure": f"{type(error).__name__}: {error}"[:300]}
        print(f"  against {name}: {found[name]}", flush=True)
        given.tell(found)
    return found


def compare(ours: Logits, theirs: Logits) -> dict[str, float]:
    """Of rows of logits."""
    mine, other = _log_softmax(ours), _log_softmax(theirs)
    return {
        "difference_max": float(np.abs(ours - theirs).max()),
        "deviation": float(theirs.std()),
        "divergence_max": float((np.exp(other) * (other - mine)).sum(axis=1).max()),
        "same_top": float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
    }


def _logits(shape: str, device: str, settings: EngineSettings, texts: list[NDArray[np.int64]]) -> Logits:
    """The logits after each text, and after each token that is then written, [texts * (1 + _WRITTEN), vocabulary]."""
    opened = open_shape(shape, device, settings)
    runner = opened.runner()
    found = []
    for text in texts:
        [row] = _here(runner.step([Span(0, 0, text, ends_prompt=True)], []))
        found.append(row.copy())
        runner.place(0, len(text))
    for token in range(_WRITTEN):
        found += list(_here(runner.step([], [token + row for row in range(len(texts))])).copy())
    runner.close()
    return np.array(found)


def _here(logits: Any) -> Logits:
    return logits if isinstance(logits, np.ndarray) else logits.fetch(range(len(logits)))


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _torch(given: Given, texts: list[NDArray[np.int64]]) -> Logits:
    """As `_logits`, by transformers."""
    import torch

    spec = shapes.SHAPES[given.shape]
    model = torch_model(spec, given.device, filled=True)
    found: list[list[Any]] = [[] for _ in range(1 + _WRITTEN)]
    with torch.no_grad():
        for row, text in enumerate(texts):
            whole = np.concatenate([text, np.arange(row, row + _WRITTEN)])
            logits = model(torch.tensor(whole[None], device=given.device)).logits[0].float().cpu().numpy()
            for place in range(1 + _WRITTEN):
                found[place].append(logits[len(text) - 1 + place])
    return np.array([row for place in found for row in place])


def torch_model(spec: ModelSpec, device: str, *, filled: bool) -> Any:
    """The same shape in transformers, in bfloat16; `filled` with the same weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_size,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=spec.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=spec.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    if filled:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(_named(spec, name).astype(np.float32)))
    return model


def _named(spec: ModelSpec, name: str) -> NDArray[Any]:
    """Our weight by transformers' name for it."""
    weights = shapes.weights(spec)
    match name.split("."):
        case ["model", "embed_tokens", "weight"]:
            return weights.embedding.read()
        case ["lm_head", "weight"]:
            return weights.lm_head.read()
        case ["model", "layers", index, "self_attn" | "mlp", part, "weight"]:
            parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
            layer = getattr(weights.layer(int(index)), parts.get(part, part.removesuffix("_proj")))
            return layer.read()
        case _:
            return np.ones(spec.hidden, np.float32)  # the norms
