"""The architectures that can be run, each as how it departs from Llama; docs/models.md shows how to add one.

What config.json says and how tensors are called is Hugging Face's; other formats translate into it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.model.config import Config
from worker.model.folding import Multipliers

_LLAMA: Final = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_QUERY_KEY_NORMS: Final = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_POST_NORMS: Final = {
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
_NORMS: Final = ("attention_norm", "feed_forward_norm")
_FUSED: Final = ("query", "key", "value", "gate", "up")


def _without(names: Mapping[str, str], left_out: tuple[str, ...]) -> dict[str, str]:
    return {part: name for part, name in names.items() if part not in left_out}


def _always(config: Config, layer: int) -> bool:  # noqa: ARG001
    return True


def _never(config: Config, layer: int) -> bool:  # noqa: ARG001
    return False


def _no_multipliers(config: Config, head_size: int) -> Multipliers:  # noqa: ARG001
    return Multipliers()


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models. The functions of a layer are asked where config.json does not tell by itself."""

    names: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    """The parts of a layer, by our name, and what its files call them."""
    biases: tuple[str, ...] = ()
    """The parts that have a bias, whatever config.json says."""
    norms_whole_width: bool = False
    """Queries and keys are normed over all heads together, not each head for itself."""
    norm_offset: float = 0.0
    """What is added to the stored gains of norms."""
    slides: Callable[[Config, int], bool] = _never
    """Does this layer see only the last `sliding_window` tokens?"""
    turns: Callable[[Config, int], bool] = _always
    """Does this layer turn queries and keys by their position?"""
    multipliers: Callable[[Config, int], Multipliers] = _no_multipliers
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What config.json leaves out where it is as usual."""


def _upper_layers(config: Config, layer: int) -> bool:
    return config.flag("use_sliding_window") and layer >= config.whole("max_window_layers", 28)


def _every_other_layer(config: Config, layer: int) -> bool:  # noqa: ARG001
    return layer % 2 == 0


def _all_but_every_sixth(config: Config, layer: int) -> bool:
    return (layer + 1) % config.whole("sliding_window_pattern", 6) != 0


def _but_every_fourth_layer(config: Config, layer: int) -> bool:
    told = config.each("no_rope_layers")  # 1 for a layer that does turn
    return bool(told[layer]) if layer < len(told) else (layer + 1) % config.whole("no_rope_layer_interval", 4) != 0


def _granite(config: Config, head_size: int) -> Multipliers:  # noqa: ARG001
    return Multipliers(
        embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0),
        logits=1 / config.number("logits_scaling", 1.0),
        scores=config.number("attention_multiplier", 1.0),
    )


def _gemma(config: Config, head_size: int) -> Multipliers:
    return Multipliers(
        embedding=math.sqrt(config.whole("hidden_size")),
        scores=config.number("query_pre_attn_scalar", head_size) ** -0.5,
    )


_GEMMA: Final = _LLAMA | _POST_NORMS | {"feed_forward_norm": "pre_feedforward_layernorm"}
_GEMMA_DEFAULTS: Final = {"head_dim": 256, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA_3_DEFAULTS: Final = _GEMMA_DEFAULTS | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 256,
}

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture(),
    "mistral": Architecture(slides=_always),
    "smollm3": Architecture(slides=_upper_layers, turns=_but_every_fourth_layer),
    "qwen2": Architecture(biases=("query", "key", "value"), slides=_upper_layers),
    "qwen3": Architecture(names=_LLAMA | _QUERY_KEY_NORMS, slides=_upper_layers),
    "phi3": Architecture(
        names=_without(_LLAMA, _FUSED) | {"query_key_value": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"},
        slides=_always,
    ),
    "granite": Architecture(multipliers=_granite),
    "olmo2": Architecture(
        names=_without(_LLAMA, _NORMS) | _QUERY_KEY_NORMS | _POST_NORMS,
        norms_whole_width=True,
    ),
    "gemma2": Architecture(
        names=_GEMMA,
        norm_offset=1.0,
        slides=_every_other_layer,
        multipliers=_gemma,
        defaults=_GEMMA_DEFAULTS,
    ),
    "gemma3_text": Architecture(
        names=_GEMMA | _QUERY_KEY_NORMS,
        norm_offset=1.0,
        slides=_all_but_every_sixth,
        multipliers=_gemma,
        defaults=_GEMMA_3_DEFAULTS,
    ),
}
"""By `model_type` of config.json."""
