"""Measures how large keys and values become, so that 8 bits without an exponent can hold them.

One layer after the other runs in ONNX Runtime on the CPU, in float32, over some English: in memory is one layer at a
time, as when a model is written.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnxruntime as ort
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper

from worker.model import english
from worker.model.graph import Decoder, Stream
from worker.model.onnx_file import OnnxGraph
from worker.model.precision import Precision
from worker.model.spec import ModelSpec
from worker.model.weights import LayerWeights, StoredTensor, Tensor, Weights

_TEXTS: Final = 4
_TOKENS: Final = 256
"""Of each text."""
_LARGEST: Final = 127
_SHARE_MIN: Final = 0.02
"""Of the largest channel's scale: what was that small here need not be so in every text, and hardly matters."""


@dataclass(frozen=True, slots=True, eq=False)
class CacheScales:
    """Of one layer: what is stored is the number divided by its scale. [1], or [kv_heads, 1, head_size]: one a channel,
    for in some models a few channels of the keys are a hundred times as large as the rest.
    """

    key: Tensor
    value: Tensor


def calibration(tokenizer: tokenizers.Tokenizer, spec: ModelSpec) -> NDArray[np.int64]:
    """Token ids [texts, tokens] of English; each text begins as a prompt does, if the model has a token for that."""
    begins = [] if spec.bos_token_id is None else [spec.bos_token_id]
    own = min(_TOKENS, spec.context_length) - len(begins)
    ids = tokenizer.encode("\n\n".join(english.paragraphs()), add_special_tokens=False).ids
    lines = np.resize(np.array(ids, np.int64), (_TEXTS, own))
    return np.hstack([np.tile(np.array(begins, np.int64), (_TEXTS, 1)), lines])


def measure(spec: ModelSpec, weights: Weights, token_ids: NDArray[np.int64]) -> tuple[CacheScales, ...]:
    """The scales of each layer by which all of this text [texts, tokens] fits into int8, whatever its positions."""
    found = []
    stream = _embedded(weights.embedding, token_ids)
    for index in range(spec.layers):
        layer = weights.layer(index)
        stream, keys, values = _run(spec, index, layer, stream)
        found.append(CacheScales(_scales(_turned(keys) if layer.rotary is not None else np.abs(keys)), _scales(values)))
    return tuple(found)


def of_tensors(scales: CacheScales) -> CacheScales:
    """One scale for all channels."""
    return CacheScales(scales.key.max(keepdims=True).reshape(1), scales.value.max(keepdims=True).reshape(1))


def _embedded(table: StoredTensor, token_ids: NDArray[np.int64]) -> Tensor:
    known, places = np.unique(token_ids, return_inverse=True)
    rows = np.concatenate([table.rows(one, one + 1) for one in known.tolist()])
    return rows[places.reshape(token_ids.shape)]


def _run(spec: ModelSpec, index: int, layer: LayerWeights, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer makes of [texts, tokens, hidden]; its keys and values, [texts, kv_heads, tokens, head_size]."""
    graph = OnnxGraph()
    texts, tokens, _ = stream.shape
    # As if another layer followed, and for texts of this length.
    inner = replace(spec, layers=spec.layers + 1, context_length=tokens)
    after = Decoder(graph, inner, Precision.FP32).layer(index, layer, Stream("stream", delta=None))
    assert after.delta is not None, "the feed-forward adds to the stream"
    graph.node("Add", [after.sum, after.delta], "next")
    past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
    present = [f"present.{index}.{part}" for part in ("key", "value")]
    lengths = {"seqlens_k": np.full(texts, tokens - 1, np.int32), "total_sequence_length": np.array(tokens, np.int32)}
    empty = np.zeros((texts, spec.kv_heads, tokens, spec.head_size), np.float32)
    given = {"stream": stream, **dict.fromkeys(past, empty), **lengths}
    graph.save(
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("next", *present)],
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")  # which copies the weights
    graph.give_weights(options)
    session = ort.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"])
    following, keys, values = session.run(["next", *present], given)
    return following, keys, values


def _turned(keys: Tensor) -> Tensor:
    """The largest that each number can become at another position, where it is turned together with another."""
    both = np.hypot(*np.split(keys, 2, axis=-1))
    return np.concatenate([both, both], axis=-1)


def _scales(numbers: Tensor) -> Tensor:
    """One a channel, [kv_heads, 1, head_size], of numbers [texts, kv_heads, tokens, head_size]."""
    largest = np.abs(numbers).max(axis=(0, 2), keepdims=True)[0]
    scales: Tensor = np.maximum(largest, max(_SHARE_MIN * largest.max(), 1e-6)) / np.float32(_LARGEST)
    return scales
