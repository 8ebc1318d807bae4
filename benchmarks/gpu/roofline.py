"""What a card could do at best: its measured rates, and the least time of a step by them.

The bound is additive: the linear layers, then attention, each limited by arithmetic or by memory, whichever takes
longer; one after the other, as kernels in one stream run.
"""

from dataclasses import dataclass

from worker.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations a second in the model's precision (a multiplication and an addition are two), bytes a second."""

    operations: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Work:
    """One step: tokens computed, rows of logits, positions that its sequences have in the cache, and pairs of a token
    and a position that it attends to.
    """

    tokens: int
    logits: int
    positions: int
    pairs: int


def decode(rows: int, context: int) -> Work:
    """One token for each of some rows of as many positions each."""
    return Work(rows, rows, rows * context, rows * context)


def prefill(prompts: int, tokens: int) -> Work:
    """Prompts of as many tokens each, from their start."""
    return Work(prompts * tokens, prompts, prompts * tokens, prompts * tokens * (tokens + 1) // 2)


def seconds(spec: ModelSpec, work: Work, rates: Rates, *, weight_bytes: int, cache_bytes: int) -> float:
    """The least a step takes; `weight_bytes` and `cache_bytes` are of one number."""
    body, head = body_weights(spec), spec.hidden * spec.vocabulary
    linear = 2 * (body * work.tokens + head * work.logits) / rates.operations
    reading = (body + head) * weight_bytes / rates.bytes
    attention = 4 * spec.layers * spec.heads * spec.head_size * work.pairs / rates.operations
    cache = spec.kv_bytes_per_token(cache_bytes) * work.positions / rates.bytes
    return max(linear, reading) + max(attention, cache)


def body_weights(spec: ModelSpec) -> int:
    """Of all linear layers but the lm_head."""
    attention = spec.hidden * spec.head_size * (2 * spec.heads + 2 * spec.kv_heads)
    return spec.layers * (attention + 3 * spec.hidden * spec.intermediate)
