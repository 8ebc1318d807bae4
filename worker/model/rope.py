"""Rotary embedding (RoFormer, arXiv 2104.09864): how far each pair of a head's elements turns a token.

The ways of stretching it over longer texts are those of transformers' modeling_rope_utils.py, whose names
config.json uses.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from worker.model.config import Config
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.weights import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """The first 2 * len(frequencies) elements of a head are turned, i together with i + len(frequencies)."""

    frequencies: Tensor  # radians a token
    magnitude: float = 1.0  # by which the turned elements are multiplied


def plain(size: int, theta: float) -> Tensor:
    """The frequencies [size / 2] as they were first described."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies: Tensor = np.float32(1) / np.float32(theta) ** exponents
    return frequencies


def read(config: Config, head_size: int, kind: str) -> Rope:
    """The rope of the layers that config.json calls `kind`, "full_attention" or "sliding_attention".

    Raises UnsupportedModel for a way of stretching that is not known, UnreadableWeights for numbers that cannot be.
    """
    scaling = _scaling(config, kind)
    share = config.over(scaling.values).number("partial_rotary_factor", 1.0)
    turned = min(head_size, int(head_size * share))
    frequencies = plain(turned, scaling.number("rope_theta", 10_000.0))
    name = scaling.text("rope_type", scaling.text("type", "default"))
    if name not in _WAYS:
        raise UnsupportedModel(
            f"{config.origin} stretches its rotary embedding in the way named '{name}', which is not supported; "
            f"supported: {', '.join(_WAYS)}"
        )
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            return _WAYS[name](frequencies, scaling)
    except (ArithmeticError, ValueError) as error:
        raise UnreadableWeights(f"{config.origin} has numbers for rotary embedding that cannot be ({error})") from error


def context_length(config: Config) -> int:
    """Tokens up to which the rope of `read` is right."""
    scaling = _scaling(config, "full_attention")
    said = config.whole("max_position_embeddings")
    match scaling.text("rope_type", scaling.text("type", "default")):
        case "longrope" | "su":
            return min(said, scaling.whole("original_max_position_embeddings"))
        case "yarn" if scaling.has("original_max_position_embeddings"):
            stretched = scaling.whole("original_max_position_embeddings") * scaling.number("factor")
            return max(said, int(stretched))
        case _:
            return said


def unused_context(config: Config) -> int:
    """The context that config.json names, where that is more than `context_length`; else 0."""
    said = config.whole("max_position_embeddings")
    return said if said > context_length(config) else 0


def _scaling(config: Config, kind: str) -> Config:
    """What config.json says of one rope, in one place, whether transformers 4 or 5 wrote it."""
    is_local = kind == "sliding_attention" and config.has("rope_local_base_freq")
    told = config.part("rope_parameters")
    told = told.part(kind) if told.has(kind) else told
    scaling = Config(config.origin, {}) if is_local else config.part("rope_scaling")
    theta = config.values.get("rope_local_base_freq" if is_local else "rope_theta")
    lengths = ("max_position_embeddings", "original_max_position_embeddings")
    above = {"rope_theta": theta} | {key: config.values.get(key) for key in lengths}
    return told.over(scaling.over(above).values)


def _unchanged(frequencies: Tensor, _: Config) -> Rope:
    return Rope(frequencies)


def _linear(frequencies: Tensor, scaling: Config) -> Rope:
    """All positions closer together."""
    return Rope(frequencies / np.float32(scaling.number("factor")))


def _llama3(frequencies: Tensor, scaling: Config) -> Rope:
    """Waves that are long against the trained length are stretched, short ones not, and between them in part."""
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    turns = scaling.whole("original_max_position_embeddings") * frequencies / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return Rope((frequencies * (kept + (1 - kept) / factor)).astype(np.float32))


def _yarn(frequencies: Tensor, scaling: Config) -> Rope:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): as _llama3, by place in the head instead of by wave length."""
    factor, size = scaling.number("factor"), 2 * len(frequencies)
    trained = scaling.whole("original_max_position_embeddings", scaling.whole("max_position_embeddings"))

    def place(turns: float) -> float:
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(scaling.number("rope_theta")))

    first = max(math.floor(place(scaling.number("beta_fast", 32.0))), 0)
    last = min(math.ceil(place(scaling.number("beta_slow", 1.0))), size - 1)
    stretched = np.clip((np.arange(size // 2) - first) / max(last - first, 0.001), 0, 1)
    magnitude = scaling.number("attention_factor", 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return Rope((frequencies * (1 - stretched + stretched / factor)).astype(np.float32), magnitude)


def _longrope(frequencies: Tensor, scaling: Config) -> Rope:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753), its factors for texts of the trained length.

    Its makers change the factors once a text grows longer, which would turn what is in the cache already.
    """
    factors = np.array(scaling.numbers("short_factor"), np.float32)
    if factors.shape != frequencies.shape or not (factors > 0).all():
        raise UnreadableWeights(
            f"{scaling.origin} has {len(factors)} numbers in short_factor, where {len(frequencies)} above zero "
            "were expected"
        )
    trained = scaling.whole("original_max_position_embeddings")
    stretch = scaling.whole("max_position_embeddings") / trained
    usual = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    return Rope(frequencies / factors, scaling.number("attention_factor", usual))


_WAYS: Final[Mapping[str, Callable[[Tensor, Config], Rope]]] = {
    "default": _unchanged,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its first name
}
