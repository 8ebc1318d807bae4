"""What must be known about a model to write its graph and to run it; no weights and no text in it."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self


class Activation(StrEnum):
    """What a feed-forward does to its gate."""

    SILU = "silu"  # x * sigmoid(x)
    GELU_TANH = "gelu_tanh"  # GELU, approximated by a tanh (Hendrycks & Gimpel 2016, arXiv 1606.08415)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder, and the ids of its tokens with a meaning of their own."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    intermediate: int
    vocabulary: int
    context_length: int  # tokens, prompt and answer together
    norm_epsilon: float
    tied_embeddings: bool  # lm_head is the embedding
    eos_token_ids: tuple[int, ...]  # each of them ends an answer
    bos_token_id: int | None
    pad_token_id: int | None
    activation: Activation = Activation.SILU
    windows: tuple[
        int, ...
    ] = ()  # how many tokens, itself included, a token of each layer sees; 0: all. (): all see all
    attention_softcap: float = 0.0  # scores become softcap * tanh(score / softcap); 0: they do not
    logits_softcap: float = 0.0  # the same for logits

    def window(self, layer: int) -> int:
        """How many tokens, itself included, a token of this layer sees; 0: all."""
        return self.windows[layer] if self.windows else 0

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """What one token of context takes in the KV cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises KeyError for a missing field that has no default, and ignores what it does not know."""
        known = {field.name: values[field.name] for field in fields(cls) if _is_told(field.name, values, field.default)}
        for name in ("eos_token_ids", "windows"):
            if name in known:
                known[name] = tuple(known[name])
        if "activation" in known:
            known["activation"] = Activation(known["activation"])
        return cls(**known)


def _is_told(name: str, values: Mapping[str, Any], default: object) -> bool:
    return name in values or default is MISSING
