"""Scales for a cache in int8 are those of the numbers that the model really keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import tiny_model
from tests.worker.model.test_architectures import assert_same, recorded, source, token_ids, truth
from tests.worker.model.test_paged_graph import compute
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.model import Precision, cache_scales, paged_graph
from worker.model.paged_graph import CacheFormat, PagedCache
from worker.model.weights import LayerWeights


@pytest.mark.parametrize("name", recorded())
def test_every_architecture_keeps_its_numbers_within_them(name: str, tmp_path: Path) -> None:
    """Of the same text at later positions too, and close: the logits stay what they are, but for 8 bits."""
    loaded = source(tmp_path / "source", name, recorded()[name]["config"])
    ids = token_ids(name)
    scales = cache_scales.measure(loaded.spec, loaded.weights, np.array([ids]))
    paged_graph.write(loaded.spec, loaded.weights, Precision.FP32, tmp_path, PagedCache(CacheFormat.INT8, scales))
    session = CpuPagedSession(tmp_path / "model.onnx", pages=12, page_tokens=4)
    logits = compute(session, [(ids, 0, [3, 7, 1, 2, 4, 9, 5, 6, 8, 10, 11])])
    whole = truth(name)
    assert np.abs(logits - whole).max() < 0.04 * np.abs(whole).max()
    with pytest.raises(AssertionError):
        assert_same(logits, whole)
    first = session._attentions[0]  # what comes behind is moved by the rounding before it
    for cache in (first.key, first.value):
        assert 100 <= np.abs(cache.array.astype(np.int32)).max() <= 127


def test_a_channel_that_is_larger_than_others_has_a_scale_of_its_own() -> None:
    checkpoint = tiny_model.checkpoint()
    grown = np.ones((32, 1), np.float32)
    grown[5] = 100

    def layer(index: int) -> LayerWeights:
        usual = checkpoint.weights.layer(index)
        return replace(usual, value=usual.value.each(lambda rows: rows * grown))

    weights = replace(checkpoint.weights, layer=layer)
    text = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)
    before = cache_scales.measure(checkpoint.spec, checkpoint.weights, text)[0].value
    after = cache_scales.measure(checkpoint.spec, weights, text)[0].value
    assert after.shape == (2, 1, 16)
    assert after[0, 0, 5] == pytest.approx(100 * before[0, 0, 5], rel=1e-4)
    assert after[1, 0, 5] == pytest.approx(max(before[1, 0, 5], 0.02 * after[0, 0, 5]), rel=1e-4)


def test_scales_of_keys_are_those_of_any_position() -> None:
    """In the first layer, which has seen no other token, the order of a text changes nothing but positions."""
    checkpoint = tiny_model.checkpoint()
    text = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)
    found, again = (cache_scales.measure(checkpoint.spec, checkpoint.weights, ids)[0] for ids in (text, text[:, ::-1]))
    np.testing.assert_allclose(found.key, again.key, rtol=1e-4)
    np.testing.assert_allclose(found.value, again.value, rtol=1e-4)


def test_a_model_is_stored_with_them(tmp_path: Path) -> None:
    added = tiny_model.write(tmp_path / "tiny", precision=Precision.BF16_INT8)
    graph = onnx.load(added.graph_path, load_external_data=False).graph
    kinds = {value.type.tensor_type.elem_type for value in graph.input if value.name.startswith("past_key_values.")}
    assert kinds == {onnx.TensorProto.INT8}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    checkpoint = tiny_model.checkpoint()
    text = cache_scales.calibration(checkpoint.tokenizer, checkpoint.spec)
    for index, scales in enumerate(cache_scales.measure(checkpoint.spec, checkpoint.weights, text)):
        key = numpy_helper.to_array(stored[f"layers.{index}.attention.key_scale"])
        np.testing.assert_allclose(key, scales.key, rtol=1e-5)


def test_a_text_begins_as_prompts_do() -> None:
    checkpoint = tiny_model.checkpoint()
    text = cache_scales.calibration(checkpoint.tokenizer, replace(checkpoint.spec, bos_token_id=2))
    assert text.shape == (4, 256)
    assert (text[:, 0] == 2).all()
    assert cache_scales.calibration(checkpoint.tokenizer, replace(checkpoint.spec, context_length=64)).shape == (4, 64)
