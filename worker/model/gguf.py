"""Reads GGUF, the one-file format of llama.cpp: shape, tokenizer and template are metadata, weights the rest.

Names and meanings: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors stay in the mapped
file, quantized, until a layer is asked for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import tokenizers

from worker.model import byte_level
from worker.model.checkpoint import Checkpoint
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, Tensor, Weights

ARCHITECTURES: Final = ("llama",)

# Tokens that end an answer by their name, where a file names only one of them as its end.
_ENDS: Final = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})


def read(path: Path) -> Checkpoint:
    """Open a GGUF file; it must stay in place until the checkpoint's weights have been read.

    Raises UnreadableWeights if it is not a whole GGUF file, UnsupportedModel if we cannot run what it holds.
    """
    source = _open(path)
    spec = _spec(source)
    weights = _weights(source, spec)
    source.refuse_unused_tensors()
    return Checkpoint(
        spec=spec,
        weights=weights,
        tokenizer=_tokenizer(source),
        chat_template=source.value("tokenizer.chat_template"),
        bos_token=_token_text(source, "bos"),
        eos_token=_token_text(source, "eos"),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """The metadata and tensors of one file, with errors that name the file."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, gguf.ReaderTensor]
    used: set[str] = field(default_factory=set)

    def value(self, key: str) -> Any:
        if key not in self.values:
            raise UnreadableWeights(f"{self.path.name} has no '{key}' in its metadata")
        return self.values[key]

    def tensor(self, name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """A function that reads and dequantizes; name and shape are checked now."""
        if name not in self.tensors:
            raise UnreadableWeights(f"{self.path.name} has no tensor '{name}'")
        stored = self.tensors[name]
        found = tuple(int(size) for size in reversed(stored.shape))  # GGUF counts from the innermost
        if found != shape:
            raise UnreadableWeights(
                f"tensor '{name}' of {self.path.name} has the shape {found}, where {shape} was expected"
            )
        self.used.add(name)
        return lambda: gguf.dequantize(stored.data, stored.tensor_type).astype(np.float32, copy=False)

    def refuse_unused_tensors(self) -> None:
        """A tensor that we do not know would be left out of every answer."""
        if unused := sorted(self.tensors.keys() - self.used):
            raise UnsupportedModel(
                f"{self.path.name} has {len(unused)} tensors that are not understood, such as '{unused[0]}'"
            )


def _open(path: Path) -> _Source:
    try:
        reader = gguf.GGUFReader(path)
        values = {key: stored.contents() for key, stored in reader.fields.items()}
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the reader has no errors of its own: a broken file can raise any
        raise UnreadableWeights(f"{path.name} is not a GGUF file, or not all of one ({error})") from error
    return _Source(path, values, {tensor.name: tensor for tensor in reader.tensors})


def _spec(source: _Source) -> ModelSpec:
    architecture = source.value("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{source.path.name} is of the architecture '{architecture}', which is not supported; supported: "
            + ", ".join(ARCHITECTURES)
        )
    _refuse_variants(source, architecture)

    def value(name: str) -> Any:
        return source.value(f"{architecture}.{name}")

    heads, hidden = value("attention.head_count"), value("embedding_length")
    return ModelSpec(
        architecture=architecture,
        layers=value("block_count"),
        heads=heads,
        kv_heads=source.values.get(f"{architecture}.attention.head_count_kv", heads),
        head_size=source.values.get(f"{architecture}.attention.key_length", hidden // heads),
        hidden=hidden,
        intermediate=value("feed_forward_length"),
        vocabulary=len(source.value("tokenizer.ggml.tokens")),
        context_length=value("context_length"),
        rope_theta=float(source.values.get(f"{architecture}.rope.freq_base", 10_000.0)),
        norm_epsilon=float(value("attention.layer_norm_rms_epsilon")),
        tied_embeddings="output.weight" not in source.tensors,
        eos_token_ids=_ends(source),
        bos_token_id=source.values.get("tokenizer.ggml.bos_token_id"),
        pad_token_id=source.values.get("tokenizer.ggml.padding_token_id"),
    )


def _refuse_variants(source: _Source, architecture: str) -> None:
    """What would change the arithmetic without changing the tensors' names."""
    head_size = source.values.get(f"{architecture}.attention.key_length") or (
        source.value(f"{architecture}.embedding_length") // source.value(f"{architecture}.attention.head_count")
    )
    plain = {"rope.scaling.type": "none", "rope.dimension_count": head_size, "expert_count": 0}
    for name, expected in plain.items():
        found = source.values.get(f"{architecture}.{name}", expected)
        if found != expected:
            raise UnsupportedModel(f"{source.path.name} has {name} = {found}; only {expected} is supported so far")


def _weights(source: _Source, spec: ModelSpec) -> Weights:
    layers = [_layer(source, spec, f"blk.{index}") for index in range(spec.layers)]
    embedding = source.tensor("token_embd.weight", (spec.vocabulary, spec.hidden))
    head = embedding
    if not spec.tied_embeddings:
        head = source.tensor("output.weight", (spec.vocabulary, spec.hidden))
    return Weights(
        embedding=embedding,
        layer=lambda index: layers[index](),
        final_norm=source.tensor("output_norm.weight", (spec.hidden,)),
        lm_head=head,
    )


def _layer(source: _Source, spec: ModelSpec, place: str) -> Callable[[], LayerWeights]:
    hidden, wide = spec.hidden, spec.intermediate
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    attention_norm = source.tensor(f"{place}.attn_norm.weight", (hidden,))
    query = source.tensor(f"{place}.attn_q.weight", (queries, hidden))
    key = source.tensor(f"{place}.attn_k.weight", (keys, hidden))
    value = source.tensor(f"{place}.attn_v.weight", (keys, hidden))
    output = source.tensor(f"{place}.attn_output.weight", (hidden, queries))
    feed_forward_norm = source.tensor(f"{place}.ffn_norm.weight", (hidden,))
    gate = source.tensor(f"{place}.ffn_gate.weight", (wide, hidden))
    up = source.tensor(f"{place}.ffn_up.weight", (wide, hidden))
    down = source.tensor(f"{place}.ffn_down.weight", (hidden, wide))
    return lambda: LayerWeights(
        attention_norm=attention_norm(),
        query=halves_together(query(), spec.heads),
        key=halves_together(key(), spec.kv_heads),
        value=value(),
        output=output(),
        feed_forward_norm=feed_forward_norm(),
        gate=gate(),
        up=up(),
        down=down(),
    )


def halves_together(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows.

    Rotary embedding turns pairs of elements of a head. GGUF files of this architecture keep a pair side by
    side: (0, 1), (2, 3), ...; our layout keeps it half a head apart: all first elements, then all second.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(source: _Source) -> tokenizers.Tokenizer:
    kind = source.value("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModel(
            f"{source.path.name} has a tokenizer of the kind '{kind}', which is not supported; supported: gpt2"
        )
    types = source.value("tokenizer.ggml.token_type")
    return byte_level.build(
        source.value("tokenizer.ggml.tokens"),
        source.value("tokenizer.ggml.merges"),
        source.value("tokenizer.ggml.pre"),
        control=_ids_of(types, gguf.TokenType.CONTROL),
        whole=_ids_of(types, gguf.TokenType.USER_DEFINED),
    )


def _ids_of(types: Iterable[int], wanted: int) -> list[int]:
    return [index for index, kind in enumerate(types) if kind == wanted]


def _ends(source: _Source) -> tuple[int, ...]:
    """All ids that end an answer: those that the file says, and control tokens known for it."""
    said = {source.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")}
    tokens = source.value("tokenizer.ggml.tokens")
    control = _ids_of(source.value("tokenizer.ggml.token_type"), gguf.TokenType.CONTROL)
    known = {index for index in control if tokens[index] in _ENDS}
    return tuple(sorted(index for index in said | known if index is not None))


def _token_text(source: _Source, kind: str) -> str:
    index = source.values.get(f"tokenizer.ggml.{kind}_token_id")
    return "" if index is None else str(source.value("tokenizer.ggml.tokens")[index])
