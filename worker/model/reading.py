"""Understands a config.json by the table of architectures, and finds the tensors that it speaks of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from worker.model import folding, rope
from worker.model.architectures import ARCHITECTURES, Architecture
from worker.model.config import Config
from worker.model.errors import UnsupportedModel
from worker.model.spec import Activation, ModelSpec
from worker.model.tensors import Tensors
from worker.model.weights import LayerWeights, Linear, StoredTensor, Tensor, Weights

_CONTEXT_MAX: Final = 1 << 20
_KINDS: Final = ("full_attention", "sliding_attention")
_LINEAR: Final = ("query", "key", "value", "output", "gate", "up", "down", "query_key_value", "gate_up")
_ACTIVATIONS: Final = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


@dataclass(frozen=True, slots=True)
class Names:
    """How a format of files calls tensors."""

    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    lm_head: str = "lm_head.weight"
    layer: str = "model.layers.{index}.{part}"
    parts: Mapping[str, str] | None = None  # by our name; None: as the architecture says


@dataclass(frozen=True, slots=True)
class Described:
    """What config.json says, understood."""

    architecture: Architecture
    config: Config
    spec: ModelSpec


def describe(config: Config, *, tied_embeddings: bool, eos_token_ids: tuple[int, ...]) -> Described:
    """Understand a config.json. `tied_embeddings` is what to believe where it does not say.

    Raises UnsupportedModel for what cannot be run, UnreadableWeights for what is not as it should be.
    """
    name = config.text("model_type")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{config.origin} is of the architecture '{name}', which is not supported; supported: "
            + ", ".join(ARCHITECTURES)
        )
    architecture = ARCHITECTURES[name]
    config = config.over(architecture.defaults)
    layers = config.whole("num_hidden_layers")
    heads, kv_heads, head_size = _heads(config)
    windows = tuple(_window(architecture, config, index) for index in range(min(layers, 10_000)))
    spec = ModelSpec(
        architecture=name,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        hidden=config.whole("hidden_size"),
        intermediate=config.whole("intermediate_size"),
        vocabulary=config.whole("vocab_size"),
        context_length=min(rope.context_length(config), _CONTEXT_MAX),
        norm_epsilon=config.number("rms_norm_eps"),
        tied_embeddings=config.flag("tie_word_embeddings") if config.has("tie_word_embeddings") else tied_embeddings,
        eos_token_ids=eos_token_ids,
        bos_token_id=next(iter(config.ids("bos_token_id")), None),
        pad_token_id=next(iter(config.ids("pad_token_id")), None),
        activation=_activation(config),
        windows=windows if any(windows) else (),
        attention_softcap=config.number("attn_logit_softcapping", 0.0),
        logits_softcap=config.number("final_logit_softcapping", 0.0),
    )
    return Described(architecture, config, spec)


def _heads(config: Config) -> tuple[int, int, int]:
    """How many for queries, how many for keys and values, and the numbers in one."""
    heads = config.whole("num_attention_heads")
    kv_heads = config.whole("num_key_value_heads", heads)
    head_size = config.whole("head_dim", max(1, config.whole("hidden_size") // heads))
    if head_size % 2 or heads % kv_heads:
        raise UnsupportedModel(
            f"{config.origin} has {heads} heads of {head_size} numbers and {kv_heads} for keys and values, which do "
            "not go together"
        )
    return heads, kv_heads, head_size


def weights(described: Described, tensors: Tensors, names: Names | None = None) -> Weights:
    """The weights of a model, every name and shape checked now, and each part read when it is asked for."""
    spec, names = described.spec, names or Names()
    reader = _Reader(described, tensors, names)
    layers = [reader.layer(index) for index in range(spec.layers)]
    embedding = tensors.take(names.embedding, (spec.vocabulary, spec.hidden))
    head = embedding if spec.tied_embeddings else tensors.take(names.lm_head, (spec.vocabulary, spec.hidden))
    whole = Weights(
        embedding=embedding,
        layer=lambda index: layers[index](),
        final_norm=reader.norm(names.final_norm, (spec.hidden,)),
        lm_head=head,
    )
    multipliers = described.architecture.multipliers(described.config, spec.head_size)
    return folding.fold_whole(whole, multipliers, tied=spec.tied_embeddings)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds the tensors of layers."""

    described: Described
    tensors: Tensors
    names: Names

    def layer(self, index: int) -> Callable[[], LayerWeights]:
        architecture, config, spec = self.described.architecture, self.described.config, self.described.spec
        norms = {part: self._norm(index, part) for part in architecture.names if part not in _LINEAR}
        linear = {part: self._linear(index, part) for part in architecture.names if part in _LINEAR}
        biased = _biased(architecture, config)
        biases = {part: self._bias(index, part) for part in linear if part in biased}
        multipliers = architecture.multipliers(config, spec.head_size)
        kind = _KINDS[_slides(architecture, config, index)]
        turning = rope.read(config, spec.head_size, kind) if architecture.turns(config, index) else None

        def read() -> LayerWeights:
            whole = {
                name: layer
                for part, stored in linear.items()
                for name, layer in _split(part, stored, biases[part].read() if part in biases else None, spec).items()
            }
            layer = _assembled(whole, {part: take() for part, take in norms.items()})
            return folding.fold_layer(layer, multipliers, turning, spec.head_size)

        return read

    def norm(self, name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        read, offset = self.tensors.take(name, shape).read, self.described.architecture.norm_offset
        return (lambda: read() + offset) if offset else read

    def _norm(self, index: int, part: str) -> Callable[[], Tensor]:
        return self.norm(f"{self._name(index, part)}.weight", self._shape(part))

    def _linear(self, index: int, part: str) -> StoredTensor:
        return self.tensors.take(f"{self._name(index, part)}.weight", self._shape(part))

    def _bias(self, index: int, part: str) -> StoredTensor:
        return self.tensors.take(f"{self._name(index, part)}.bias", self._shape(part)[:1])

    def _name(self, index: int, part: str) -> str:
        parts = self.names.parts or self.described.architecture.names
        return self.names.layer.format(index=index, part=parts[part])

    def _shape(self, part: str) -> tuple[int, ...]:
        spec = self.described.spec
        hidden, wide, head = spec.hidden, spec.intermediate, spec.head_size
        queries, keys = spec.heads * head, spec.kv_heads * head
        is_whole = self.described.architecture.norms_whole_width
        shapes = {
            "query": (queries, hidden),
            "key": (keys, hidden),
            "value": (keys, hidden),
            "query_key_value": (queries + 2 * keys, hidden),
            "output": (hidden, queries),
            "gate": (wide, hidden),
            "up": (wide, hidden),
            "gate_up": (2 * wide, hidden),
            "down": (hidden, wide),
            "query_norm": (queries if is_whole else head,),
            "key_norm": (keys if is_whole else head,),
        }
        return shapes.get(part, (hidden,))


def _assembled(linear: Mapping[str, Linear], norms: Mapping[str, Tensor]) -> LayerWeights:
    return LayerWeights(
        attention_norm=norms.get("attention_norm"),
        query=linear["query"],
        key=linear["key"],
        value=linear["value"],
        output=linear["output"],
        feed_forward_norm=norms.get("feed_forward_norm"),
        gate=linear["gate"],
        up=linear["up"],
        down=linear["down"],
        rotary=None,
        query_norm=norms.get("query_norm"),
        key_norm=norms.get("key_norm"),
        attention_post_norm=norms.get("attention_post_norm"),
        feed_forward_post_norm=norms.get("feed_forward_post_norm"),
    )


def _split(part: str, stored: StoredTensor, bias: Tensor | None, spec: ModelSpec) -> dict[str, Linear]:
    """The layers by name in a tensor that may hold several."""
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    fused = {
        "query_key_value": {"query": queries, "key": keys, "value": keys},
        "gate_up": {"gate": spec.intermediate, "up": spec.intermediate},
    }
    layers, first = {}, 0
    for name, size in fused.get(part, {part: stored.shape[0]}).items():
        end = first + size
        place = stored.place_of(first, end)
        layers[name] = Linear(partial(stored.rows, first, end), None if bias is None else bias[first:end], place)
        first = end
    return layers


def _biased(architecture: Architecture, config: Config) -> set[str]:
    attention = ("query", "key", "value", "output") if config.flag("attention_bias") else ()
    feed_forward = ("gate", "up", "down") if config.flag("mlp_bias") else ()
    return {*architecture.biases, *attention, *feed_forward}


def _slides(architecture: Architecture, config: Config, layer: int) -> bool:
    kinds = config.each("layer_types")
    if layer >= len(kinds):
        return architecture.slides(config, layer)
    if kinds[layer] not in _KINDS:
        raise UnsupportedModel(
            f"{config.origin} has a layer of the kind '{kinds[layer]}', which is not supported; supported: "
            + ", ".join(_KINDS)
        )
    return bool(kinds[layer] == _KINDS[True])


def _window(architecture: Architecture, config: Config, layer: int) -> int:
    """How many tokens a token of this layer sees; 0: all. A window as long as any text is none."""
    if not config.has("sliding_window") or not _slides(architecture, config, layer):
        return 0
    window = config.whole("sliding_window")
    return window if window < rope.context_length(config) else 0


def _activation(config: Config) -> Activation:
    name = config.text("hidden_activation", config.text("hidden_act", "silu"))
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"{config.origin} has the activation '{name}', which is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]
