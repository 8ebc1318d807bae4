"""What must be known about a model to write its graph and to run it; no weights and no text in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder of the Llama family, and the ids of its tokens with a meaning of their own."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    intermediate: int
    vocabulary: int
    context_length: int  # tokens, prompt and answer together
    rope_theta: float
    norm_epsilon: float
    tied_embeddings: bool  # lm_head is the embedding
    eos_token_ids: tuple[int, ...]  # each of them ends an answer
    bos_token_id: int | None
    pad_token_id: int | None

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """What one token of context takes in the KV cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises KeyError for a missing field and ignores what it does not know."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**known | {"eos_token_ids": tuple(values["eos_token_ids"])})
