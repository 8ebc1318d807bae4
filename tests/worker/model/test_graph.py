"""The graph, on random weights, against the same arithmetic written out in numpy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests import tiny_model
from tests.worker.model.graph_loop import GraphLoop
from worker.model import ModelSpec, Precision
from worker.model.weights import Weights

PROMPT = [5, 81, 200, 17, 3, 99, 42]


def written_out(spec: ModelSpec, weights: Weights, ids: list[int]) -> NDArray[np.float64]:
    """Logits at every position, [tokens, vocabulary]: no cache, no fused operator, float64."""
    stream = weights.embedding.read()[ids].astype(np.float64)
    for index in range(spec.layers):
        layer = weights.layer(index)
        hidden = _norm(stream, layer.attention_norm, spec)
        query = _rotate(_heads(hidden @ layer.query.read().T, spec.heads), layer.rotary)
        key = _rotate(_heads(hidden @ layer.key.read().T, spec.kv_heads), layer.rotary)
        value = _heads(hidden @ layer.value.read().T, spec.kv_heads)
        stream = stream + _attend(query, key, value) @ layer.output.read().T
        hidden = _norm(stream, layer.feed_forward_norm, spec)
        gate = hidden @ layer.gate.read().T
        stream = stream + (gate / (1 + np.exp(-gate)) * (hidden @ layer.up.read().T)) @ layer.down.read().T
    head = weights.embedding.read() if spec.tied_embeddings else weights.lm_head.read()
    logits: NDArray[np.float64] = _norm(stream, weights.final_norm(), spec) @ head.T
    return logits


def _norm(x: NDArray[np.float64], gain: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float64]:
    normalized: NDArray[np.float64] = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.norm_epsilon)
    return normalized * gain


def _heads(x: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _rotate(x: NDArray[np.float64], frequencies: NDArray[np.float32]) -> NDArray[np.float64]:
    half = x.shape[-1] // 2
    turn = np.arange(x.shape[1])[:, None] * frequencies.astype(np.float64)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate(
        [left * np.cos(turn) - right * np.sin(turn), right * np.cos(turn) + left * np.sin(turn)], axis=-1
    )


def _attend(query: NDArray[np.float64], key: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    shared = len(query) // len(key)
    key, value = key.repeat(shared, axis=0), value.repeat(shared, axis=0)
    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: NDArray[np.float64] = (odds / odds.sum(axis=-1, keepdims=True)) @ value
    return mixed.swapaxes(0, 1).reshape(mixed.shape[1], -1)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return replace(tiny_model.SPEC, tied_embeddings=request.param)


@pytest.fixture
def loop(tmp_path: Path, spec: ModelSpec) -> GraphLoop:
    return GraphLoop(tiny_model.write(tmp_path / "tiny", spec=spec), slots=3, room=32)


@pytest.fixture
def truth(spec: ModelSpec) -> NDArray[np.float64]:
    return written_out(spec, tiny_model.checkpoint(spec).weights, PROMPT)


def test_logits_are_those_of_the_arithmetic_written_out(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    logits = loop.run(1, [PROMPT], range(len(PROMPT)))
    np.testing.assert_allclose(logits, truth, rtol=1e-4, atol=1e-4)


def test_only_the_wanted_positions_give_logits(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(loop.run(0, [PROMPT], [6, 2]), truth[[6, 2]], rtol=1e-4, atol=1e-4)


def test_a_run_may_want_no_logits_at_all(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    assert loop.run(0, [PROMPT[:3]], []).shape == (0, tiny_model.SPEC.vocabulary)
    np.testing.assert_allclose(loop.run(0, [PROMPT[3:]], [3]), truth[[6]], rtol=1e-4, atol=1e-4)


def test_a_prompt_cut_anywhere_gives_the_same_logits(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    for row, cut in enumerate((1, 4, 6)):
        loop.run(row, [PROMPT[:cut]], [])
        logits = loop.run(row, [PROMPT[cut:]], [len(PROMPT) - cut - 1])
        np.testing.assert_allclose(logits, truth[[-1]], rtol=1e-4, atol=1e-4)


def test_first_prompts_of_several_lengths_share_a_run(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    """Right-padded: the run counts 7 tokens for every row, then each row's own length is set."""
    short = PROMPT[:4]
    loop.lengths[:] = [0, -3, 0]
    logits = loop.run(0, [PROMPT, [*short, 0, 0, 0], PROMPT], [6, 7 + 3, 14 + 6])
    np.testing.assert_allclose(logits, truth[[6, 3, 6]], rtol=1e-4, atol=1e-4)


def test_rows_of_several_lengths_are_decoded_together(loop: GraphLoop, truth: NDArray[np.float64]) -> None:
    for row, length in enumerate((6, 2, 4)):
        loop.run(row, [PROMPT[:length]], [])
    logits = loop.run(0, [[PROMPT[6]], [PROMPT[2]], [PROMPT[4]]], [0, 1, 2])
    np.testing.assert_allclose(logits, truth[[6, 2, 4]], rtol=1e-4, atol=1e-4)


def test_in_fp16_all_but_the_logits_is_16_bits_wide(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    graph = onnx.load(model.graph_path, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    caches = {types[name] for name in types if name.startswith(("past_key_values.", "present."))}
    assert caches == {onnx.TensorProto.FLOAT16}
    assert types["logits"] == onnx.TensorProto.FLOAT
    assert {tensor.data_type for tensor in graph.initializer} == {
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT64,
    }


def test_fp16_gives_nearly_the_same_logits(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path / "tiny", precision=Precision.FP16)
    logits = GraphLoop(model, slots=1, room=32).run(0, [PROMPT], range(len(PROMPT)))
    truth = written_out(tiny_model.SPEC, tiny_model.checkpoint().weights, PROMPT)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, truth, atol=0.01 * np.abs(truth).max())


def test_the_same_weights_give_the_same_files(tmp_path: Path) -> None:
    first, second = (tiny_model.write(tmp_path / name) for name in ("first", "second"))
    other = tiny_model.write(tmp_path / "other", seed=1)
    assert first.fingerprint == second.fingerprint != other.fingerprint
