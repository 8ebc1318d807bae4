"""Reads a model in GGUF, the one-file format of llama.cpp: shape, tokenizer and template are metadata.

Names and meanings: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Metadata is put into the words of
config.json, so that `reading` serves both. Tensors stay in the file, quantized, until they are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import gguf
import tokenizers

from worker.model import byte_level, gguf_file, reading, rope, sentence_piece
from worker.model.checkpoint import Checkpoint
from worker.model.config import Config
from worker.model.errors import NoChatTemplate, UnreadableWeights, UnsupportedModel
from worker.model.reading import Names
from worker.model.tensors import Tensors
from worker.model.weights import StoredTensor, Tensor

_MODEL_TYPES: Final = {
    "llama": "llama",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "olmo2",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""The `model_type` of config.json by `general.architecture`."""

_KEYS: Final = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
"""What config.json calls a value, and what GGUF does, behind the name of the architecture."""

_PARTS: Final = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_key_value": "attn_qkv",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "output": "attn_output",
    "attention_post_norm": "post_attention_norm",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "feed_forward_post_norm": "post_ffw_norm",
}
_NAMES: Final = Names("token_embd.weight", "output_norm.weight", "output.weight", "blk.{index}.{part}", _PARTS)
_ROPE_FACTORS: Final = ("rope_freqs.weight", "rope_factors_short.weight")
_NEEDLESS: Final = ("rope_factors_long.weight",)

_LARGEST_GEMMAS: Final = (("gemma2", 46), ("gemma3", 62))

_PAIRED: Final = frozenset({"llama", "smollm3", "granite"})
"""Architectures whose queries and keys lie in llama.cpp's order."""

# Tokens that end an answer by their name, where a file names only one of them as its end.
_ENDS: Final = frozenset(
    {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"}
)

_Value = TypeVar("_Value")


def read(path: Path, chat_template: str | None = None) -> Checkpoint:
    """Open a GGUF file; it must stay in place until the checkpoint's weights have been read.

    A `chat_template` is taken instead of the file's. Raises UnreadableWeights if it is not a whole GGUF file,
    UnsupportedModel if we cannot run what it holds.
    """
    file = gguf_file.read(path)
    source = _Source(path, file.values)
    architecture = _architecture(source)
    tensors = Tensors(path.name, _in_our_order(file.tensors, source, architecture))
    described = reading.describe(
        _config(source, architecture, tensors),
        tied_embeddings=_NAMES.lm_head not in tensors.stored,
        eos_token_ids=_ends(source),
    )
    # The gains of norms are stored whole.
    described = replace(described, architecture=replace(described.architecture, norm_offset=0.0))
    weights = reading.weights(described, tensors, _NAMES)
    tensors.ignore(lambda name: name in _NEEDLESS)
    tensors.refuse_unused()
    return Checkpoint(
        spec=described.spec,
        weights=weights,
        tokenizer=_tokenizer(source),
        chat_template=chat_template or _template(source),
        tool_template=None if chat_template else source.value_or("tokenizer.chat_template.tool_use", "") or None,
        bos_token=_token_text(source, "bos"),
        eos_token=_token_text(source, "eos"),
        named_context=rope.unused_context(described.config),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """The metadata of one file, with errors that name the file."""

    path: Path
    values: Mapping[str, Any]

    def value(self, key: str, kind: type[_Value]) -> _Value:
        found = self.values.get(key)
        if found is None:
            raise UnreadableWeights(f"{self.path.name} has no '{key}' in its metadata")
        if not isinstance(found, kind):
            raise UnreadableWeights(f"{self.path.name} has {key} = {str(found)[:80]}, which is no {kind.__name__}")
        return found

    def value_or(self, key: str, default: _Value) -> _Value:
        return self.value(key, type(default)) if key in self.values else default

    def each(self, key: str, kind: type[_Value]) -> list[_Value]:
        found = self.value(key, list)
        if set(map(type, found)) - {kind}:
            raise UnreadableWeights(f"{self.path.name} has something in {key} that is no {kind.__name__}")
        return found

    def token_id(self, name: str) -> int | None:
        """One of the tokens with a meaning, where the file names it."""
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in self.values:
            return None
        index = self.value(key, int)
        if index >= len(self.tokens()):
            raise UnreadableWeights(f"{self.path.name} has {key} = {index}, and {len(self.tokens())} tokens")
        return index

    def tokens(self) -> list[str]:
        return self.each("tokenizer.ggml.tokens", str)

    def tokens_of(self, kind: gguf.TokenType) -> list[int]:
        """The ids of all tokens of a kind."""
        kinds = self.each("tokenizer.ggml.token_type", int)
        if len(kinds) != len(self.tokens()):
            raise UnreadableWeights(f"{self.path.name} has {len(self.tokens())} tokens, and kinds for {len(kinds)}")
        return [index for index, found in enumerate(kinds) if found == kind]


def _architecture(source: _Source) -> str:
    architecture = source.value("general.architecture", str)
    if architecture not in _MODEL_TYPES:
        raise UnsupportedModel(
            f"{source.path.name} is of the architecture '{architecture}', which is not supported; supported: "
            + ", ".join(_MODEL_TYPES)
        )
    if experts := source.value_or(f"{architecture}.expert_count", 0):
        raise UnsupportedModel(f"{source.path.name} has expert_count = {experts}; only 0 is supported so far")
    return architecture


def _config(source: _Source, architecture: str, tensors: Tensors) -> Config:
    """The metadata in the words of config.json."""
    values = {key: source.values.get(f"{architecture}.{name}") for key, name in _KEYS.items()}
    values["model_type"] = _MODEL_TYPES[architecture]
    values["vocab_size"] = len(source.tokens())
    values["attention_bias"] = "blk.0.attn_output.bias" in tensors.stored
    values["mlp_bias"] = "blk.0.ffn_up.bias" in tensors.stored
    values["query_pre_attn_scalar"] = _scores_scalar(source, architecture)
    values["bos_token_id"], values["pad_token_id"] = source.token_id("bos"), source.token_id("padding")
    config = Config(source.path.name, values)
    head_size = config.whole("head_dim", max(1, config.whole("hidden_size") // config.whole("num_attention_heads")))
    turned = source.value_or(f"{architecture}.rope.dimension_count", head_size)
    more = {
        "partial_rotary_factor": turned / head_size,
        "rope_scaling": _scaling(source, architecture, tensors, turned),
    }
    return config.over(more)


def _scores_scalar(source: _Source, architecture: str) -> int:
    """What the scores of Gemma are divided by the root of: not in the file, but known of its largest."""
    layers = source.value(f"{architecture}.block_count", int)
    if (architecture, layers) not in _LARGEST_GEMMAS:
        return source.value_or(f"{architecture}.attention.key_length", 256)
    hidden, heads = (source.value(f"{architecture}.{key}", int) for key in ("embedding_length", "attention.head_count"))
    return hidden // max(1, heads)


def _scaling(source: _Source, architecture: str, tensors: Tensors, turned: int) -> dict[str, Any]:
    """How rotary embedding is stretched: by a table of factors, where the file has one, or in a way that it names."""

    def told(name: str) -> Any:
        return source.values.get(f"{architecture}.rope.scaling.{name}")

    trained = told("original_context_length")
    for table in _ROPE_FACTORS:
        if table in tensors.stored:
            return {
                "rope_type": "longrope",
                "short_factor": tensors.take(table, (turned // 2,)).read().tolist(),
                "attention_factor": told("attn_factor") or 1.0,
                "original_max_position_embeddings": trained or source.value(f"{architecture}.context_length", int),
            }
    way = told("type") or "none"
    return {
        "rope_type": "default" if way == "none" else way,
        "factor": told("factor"),
        "original_max_position_embeddings": trained,
    }


def _in_our_order(
    tensors: Mapping[str, StoredTensor], source: _Source, architecture: str
) -> Mapping[str, StoredTensor]:
    if architecture not in _PAIRED:
        return tensors
    heads = source.value(f"{architecture}.attention.head_count", int)
    kv_heads = source.value_or(f"{architecture}.attention.head_count_kv", heads)
    ordered = dict(tensors)
    for part, count in (("query", heads), ("key", kv_heads)):
        for name in [name for name in tensors if f".{_PARTS[part]}." in name]:
            ordered[name] = _in_order(tensors[name], count)
    return ordered


def _in_order(tensor: StoredTensor, heads: int) -> StoredTensor:
    return StoredTensor(tensor.shape, lambda first, end: halves_together(tensor.read(), heads)[first:end])


def halves_together(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows.

    Rotary embedding turns pairs of elements of a head. GGUF files of some architectures keep a pair side by
    side: (0, 1), (2, 3), ...; our layout keeps it half a head apart: all first elements, then all second.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _template(source: _Source) -> str:
    if "tokenizer.chat_template" not in source.values:
        raise NoChatTemplate(source.path.name)
    return source.value("tokenizer.chat_template", str)


def _tokenizer(source: _Source) -> tokenizers.Tokenizer:
    kind = source.value("tokenizer.ggml.model", str)
    if kind not in _TOKENIZERS:
        raise UnsupportedModel(
            f"{source.path.name} has a tokenizer of the kind '{kind}', which is not supported; supported: "
            + ", ".join(_TOKENIZERS)
        )
    return _TOKENIZERS[kind](source)


def _byte_level(source: _Source) -> tokenizers.Tokenizer:
    return byte_level.build(
        source.tokens(),
        source.each("tokenizer.ggml.merges", str),
        source.value("tokenizer.ggml.pre", str),
        control=source.tokens_of(gguf.TokenType.CONTROL),
        whole=source.tokens_of(gguf.TokenType.USER_DEFINED),
    )


def _sentence_piece(source: _Source) -> tokenizers.Tokenizer:
    tokens = source.tokens()
    return sentence_piece.build(
        tokens,
        source.each("tokenizer.ggml.scores", float),
        unknown=next((tokens[index] for index in source.tokens_of(gguf.TokenType.UNKNOWN)), None),
        control=source.tokens_of(gguf.TokenType.CONTROL),
        whole=source.tokens_of(gguf.TokenType.USER_DEFINED),
        begins_with_space=source.value_or("tokenizer.ggml.add_space_prefix", True),
    )


_TOKENIZERS: Final[Mapping[str, Callable[[_Source], tokenizers.Tokenizer]]] = {
    "gpt2": _byte_level,
    "llama": _sentence_piece,
}
"""By `tokenizer.ggml.model`."""


def _ends(source: _Source) -> tuple[int, ...]:
    """All ids that end an answer: those that the file says, and control tokens known for it."""
    said = {source.token_id(kind) for kind in ("eos", "eot", "eom")}
    tokens = source.tokens()
    known = {index for index in source.tokens_of(gguf.TokenType.CONTROL) if tokens[index] in _ENDS}
    return tuple(sorted(index for index in said | known if index is not None))


def _token_text(source: _Source, kind: str) -> str:
    index = source.token_id(kind)
    return "" if index is None else source.tokens()[index]
