"""What is read from GGUF files, and what is refused."""

from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest

from tests import tiny_model
from tests.worker.model import tiny_gguf
from worker.model import UnreadableWeights, UnsupportedModel, gguf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def test_shape_tokens_and_template_come_from_the_metadata(path: Path) -> None:
    checkpoint = gguf.read(tiny_gguf.write(path))
    spec = checkpoint.spec
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_size) == (2, 4, 2, 16)
    assert (spec.hidden, spec.intermediate, spec.vocabulary, spec.context_length) == (64, 96, 261, 128)
    assert spec.tied_embeddings
    assert checkpoint.chat_template == tiny_model.CHATML
    assert (checkpoint.bos_token, checkpoint.eos_token) == ("", "<|im_end|>")
    assert spec.eos_token_ids == (0, 2)


def test_query_and_key_rows_are_put_back_in_order(path: Path) -> None:
    checkpoint = gguf.read(tiny_gguf.write(path))
    stored = tiny_gguf.tensors()["blk.1.attn_k.weight"]
    rows = [*range(0, 16, 2), *range(1, 16, 2)]
    order = [*rows, *(16 + row for row in rows)]
    np.testing.assert_array_equal(checkpoint.weights.layer(1).key.weight, stored[order])


def test_quantized_tensors_are_read_as_float(path: Path) -> None:
    exact = tiny_gguf.tensors()["blk.0.ffn_up.weight"]
    kind = library.GGMLQuantizationType.Q8_0
    packed = {"blk.0.ffn_up.weight": library.quantize(exact, kind)}
    tiny_gguf.write(path, arrays=packed, types={"blk.0.ffn_up.weight": kind})
    read = gguf.read(path).weights.layer(0).up.weight
    np.testing.assert_allclose(read, exact, atol=np.abs(exact).max() / 127)
    assert read.dtype == np.float32


def test_a_separate_lm_head_is_used(path: Path) -> None:
    head = np.ones((261, 64), np.float32)
    checkpoint = gguf.read(tiny_gguf.write(path, arrays={"output.weight": head}))
    assert not checkpoint.spec.tied_embeddings
    np.testing.assert_array_equal(checkpoint.weights.lm_head(), head)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'.*supported: llama"),
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'.*supported: gpt2, llama"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'.*supported: gpt-2"),
        ({"llama.rope.scaling.type": "ntk"}, "way named 'ntk'.*supported: default, linear"),
        ({"llama.expert_count": 4}, "expert_count = 4"),
    ],
)
def test_what_we_cannot_run_is_refused_by_name(path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        gguf.read(tiny_gguf.write(path, metadata))


def test_a_tensor_that_would_be_left_out_is_refused(path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    with pytest.raises(UnsupportedModel, match=r"1 tensors.*blk\.0\.attn_q\.bias"):
        gguf.read(tiny_gguf.write(path, arrays=bias))


def test_a_missing_tensor_is_named(path: Path) -> None:
    with pytest.raises(UnreadableWeights, match=r"no tensor 'blk\.1\.ffn_up\.weight'"):
        gguf.read(tiny_gguf.write(path, arrays={"blk.1.ffn_up.weight": None}))


def test_a_tensor_of_the_wrong_shape_is_named(path: Path) -> None:
    with pytest.raises(UnreadableWeights, match=r"'output_norm\.weight'.*\(63,\).*\(64,\)"):
        gguf.read(tiny_gguf.write(path, arrays={"output_norm.weight": np.ones(63, np.float32)}))


def test_merges_of_another_vocabulary_are_refused(path: Path) -> None:
    with pytest.raises(UnreadableWeights, match="vocabulary and merges do not fit"):
        gguf.read(tiny_gguf.write(path, {"tokenizer.ggml.merges": ["x y"]}))


def test_missing_metadata_is_named(path: Path) -> None:
    with pytest.raises(UnreadableWeights, match=r"no 'tokenizer\.chat_template'"):
        gguf.read(tiny_gguf.write(path, {"tokenizer.chat_template": None}))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused_in_one_sentence(path: Path, share: float) -> None:
    whole = tiny_gguf.write(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableWeights, match=r"tiny\.gguf is not a GGUF file, or not all of one"):
        gguf.read(path)


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(UnreadableWeights, match="not a GGUF file"):
        gguf.read(path)
