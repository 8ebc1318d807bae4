"""What is read from GGUF files, and what is refused."""

import contextlib
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_model
from tests.worker.model import tiny_gguf
from worker.model import UnreadableWeights, UnsupportedModel, gguf, gguf_file


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
    np.testing.assert_array_equal(checkpoint.weights.layer(1).key.read(), stored[order])


def test_quantized_tensors_are_read_as_float(path: Path) -> None:
    exact = tiny_gguf.tensors()["blk.0.ffn_up.weight"]
    kind = library.GGMLQuantizationType.Q8_0
    packed = {"blk.0.ffn_up.weight": library.quantize(exact, kind)}
    tiny_gguf.write(path, arrays=packed, types={"blk.0.ffn_up.weight": kind})
    read = gguf.read(path).weights.layer(0).up.read()
    np.testing.assert_allclose(read, exact, atol=np.abs(exact).max() / 127)
    assert read.dtype == np.float32


def test_a_separate_lm_head_is_used(path: Path) -> None:
    head = np.ones((261, 64), np.float32)
    checkpoint = gguf.read(tiny_gguf.write(path, arrays={"output.weight": head}))
    assert not checkpoint.spec.tied_embeddings
    np.testing.assert_array_equal(checkpoint.weights.lm_head.read(), head)


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
    with pytest.raises(UnreadableWeights, match=r"no 'tokenizer\.ggml\.merges'"):
        gguf.read(tiny_gguf.write(path, {"tokenizer.ggml.merges": None}))


def test_a_template_for_tools_is_taken_too_unless_another_is_given(path: Path) -> None:
    tiny_gguf.write(path, {"tokenizer.chat_template.tool_use": "with tools"})
    assert gguf.read(path).tool_template == "with tools"
    assert gguf.read(path, "asked so").tool_template is None


def test_a_file_without_a_template_can_be_given_one(path: Path) -> None:
    tiny_gguf.write(path, {"tokenizer.chat_template": None})
    with pytest.raises(UnsupportedModel, match=r"no chat template.*--chat-template FILE"):
        gguf.read(path)
    assert gguf.read(path, "asked so").chat_template == "asked so"


KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", [library.GGMLQuantizationType[name] for name in KINDS], ids=KINDS)
def test_every_block_of_a_quantized_tensor_is_where_the_format_says(
    path: Path, kind: library.GGMLQuantizationType
) -> None:
    """Three lines of blocks of random bytes, read through the file and by the library from the bytes themselves."""
    block, block_bytes = library.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(kind).integers(0, 256, (3, 512 // block * block_bytes), np.uint8)
    tiny_gguf.write(path, arrays={"extra": packed}, types={"extra": kind})
    with np.errstate(all="ignore"):  # some of these scales are infinite
        read = gguf_file.read(path).tensors["extra"].read()
        expected = library.dequantize(packed, kind)
    assert read.shape == (3, 512)
    np.testing.assert_array_equal(read, expected)


def test_integers_are_no_weights(path: Path) -> None:
    tiny_gguf.write(path, arrays={"extra": np.ones((1, 32), np.int8)})
    with pytest.raises(UnsupportedModel, match=r"'extra' is stored in the type I8; supported: F32, F16"):
        gguf.read(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_header_does_worse_than_to_be_refused(path: Path, data: st.DataObject) -> None:
    """Bytes of the frame are overwritten: lengths, types, names and values."""
    if not path.exists():
        tiny_gguf.write(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 9000))
        written = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(written)] = written
    changed = path.with_name("changed.gguf")
    changed.write_bytes(content)
    with contextlib.suppress(UnreadableWeights, UnsupportedModel):
        gguf.read(changed)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.attention.head_count": "4"},
        {"llama.attention.head_count": [4, 4]},
        {"llama.attention.head_count_kv": [2, 2]},
        {"llama.rope.dimension_count": "8"},
        {"tokenizer.ggml.tokens": "abc"},
        {"tokenizer.ggml.tokens": 7},
        {"tokenizer.ggml.token_type": "abc"},
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.eos_token_id": "x"},
        {"tokenizer.ggml.eos_token_id": [1]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.merges": 5},
        {"tokenizer.chat_template": 5},
        {"general.architecture": "llama", "llama.expert_count": "x"},
    ],
)
def test_metadata_of_another_type_is_refused(path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises((UnreadableWeights, UnsupportedModel)):
        gguf.read(tiny_gguf.write(path, metadata))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused_in_one_sentence(path: Path, share: float) -> None:
    whole = tiny_gguf.write(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableWeights, match=r"tiny\.gguf is not a GGUF file, or not all of one"):
        gguf.read(path)


def test_a_pointer_of_git_in_place_of_the_file_is_told_apart(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 253113024\n")
    with pytest.raises(UnreadableWeights, match=r"tiny\.gguf only points to the file itself.*git lfs pull"):
        gguf.read(path)


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(5000))
    with pytest.raises(UnreadableWeights, match="not a GGUF file"):
        gguf.read(path)
