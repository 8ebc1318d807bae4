"""What is read from a folder of Hugging Face, and what is refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_model
from tests.worker.model import tiny_folder
from worker import model
from worker.model import UnreadableWeights, UnsupportedModel, hugging_face

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_folder.write(tmp_path / "Tiny Llama")


def change(path: Path, **values: Any) -> None:
    """Set values of a JSON file; None takes one out."""
    told = json.loads(path.read_text("utf-8")) | values
    tiny_folder.write_json(path, {key: value for key, value in told.items() if value is not None})


def test_shape_tokens_and_template_come_from_the_json_files(path: Path) -> None:
    checkpoint = hugging_face.read(path)
    spec = checkpoint.spec
    assert (spec.architecture, spec.layers, spec.heads, spec.kv_heads, spec.head_size) == ("llama", 2, 4, 2, 16)
    assert (spec.hidden, spec.intermediate, spec.vocabulary, spec.context_length) == (64, 96, 261, 128)
    assert spec.tied_embeddings
    assert (checkpoint.chat_template, checkpoint.tool_template) == (tiny_model.CHATML, None)
    assert (checkpoint.bos_token, checkpoint.eos_token) == ("", "<|im_end|>")


def test_every_id_that_any_file_names_ends_an_answer(path: Path) -> None:
    tiny_folder.write_json(path / "generation_config.json", {"eos_token_id": [5, 1]})
    assert hugging_face.read(path).spec.eos_token_ids == (0, 1, 2, 5)


@pytest.mark.parametrize(
    ("narrow", "tolerance"),
    [(lambda array: array, 0), (lambda array: array.astype(np.float16), 2**-11), (tiny_folder.bfloat16, 2**-7)],
    ids=["float32", "float16", "bfloat16"],
)
def test_weights_are_read_in_the_usual_formats(path: Path, narrow: Any, tolerance: float) -> None:
    exact = tiny_folder.tensors()
    tiny_folder.write_safetensors(path / "model.safetensors", {name: narrow(array) for name, array in exact.items()})
    read = hugging_face.read(path).weights.layer(1).query.read()
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, exact[QUERY], rtol=tolerance, atol=1e-6 if tolerance else 0)


def test_weights_may_lie_in_several_files(path: Path) -> None:
    arrays = list(tiny_folder.tensors().items())
    (path / "model.safetensors").unlink()
    parts = {"model-1-of-2.safetensors": dict(arrays[:5]), "model-2-of-2.safetensors": dict(arrays[5:])}
    for name, part in parts.items():
        tiny_folder.write_safetensors(path / name, part)
    index = {tensor: name for name, part in parts.items() for tensor in part}
    tiny_folder.write_json(path / "model.safetensors.index.json", {"weight_map": index})
    np.testing.assert_array_equal(hugging_face.read(path).weights.layer(1).query.read(), dict(arrays)[QUERY])
    (path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UnreadableWeights, match=r"model-2-of-2\.safetensors cannot be read: No such file"):
        hugging_face.read(path)


def test_an_index_that_points_out_of_its_folder_is_refused(path: Path) -> None:
    tiny_folder.write_json(path / "model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}})
    with pytest.raises(UnreadableWeights, match=r"points to \.\./secret"):
        hugging_face.read(path)


def test_a_separate_lm_head_is_used(path: Path) -> None:
    change(path / "config.json", tie_word_embeddings=None)
    head = np.ones((261, 64), np.float32)
    tiny_folder.write_safetensors(path / "model.safetensors", tiny_folder.tensors() | {"lm_head.weight": head})
    checkpoint = hugging_face.read(path)
    assert not checkpoint.spec.tied_embeddings
    np.testing.assert_array_equal(checkpoint.weights.lm_head.read(), head)


def test_a_second_copy_of_a_tied_embedding_is_left_out(path: Path) -> None:
    arrays = tiny_folder.tensors()
    copy = {"lm_head.weight": arrays["model.embed_tokens.weight"]}
    tiny_folder.write_safetensors(path / "model.safetensors", arrays | copy)
    assert hugging_face.read(path).spec.tied_embeddings


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_half_of_a_model_that_sees_is_read(tmp_path: Path, prefix: str) -> None:
    told = {"model_type": "gemma3", "text_config": tiny_folder.CONFIG | {"model_type": "llama"}}
    arrays = {name.replace("model.", prefix, 1): array for name, array in tiny_folder.tensors().items()}
    seeing = {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    path = tiny_folder.write(tmp_path / "seeing", arrays=arrays | seeing)
    tiny_folder.write_json(path / "config.json", told)
    np.testing.assert_array_equal(hugging_face.read(path).weights.layer(1).query.read(), tiny_folder.tensors()[QUERY])


def test_a_template_is_found_wherever_it_was_kept(path: Path) -> None:
    change(path / "tokenizer_config.json", chat_template=[{"name": "default", "template": "a"}])
    assert hugging_face.read(path).chat_template == "a"
    tiny_folder.write_json(path / "chat_template.json", {"chat_template": "b"})
    assert hugging_face.read(path).chat_template == "b"
    (path / "chat_template.jinja").write_text("c", "utf-8")
    assert hugging_face.read(path).chat_template == "c"


def test_a_template_for_tools_is_kept_beside_the_other(path: Path, tmp_path: Path) -> None:
    listed = [{"name": "tool_use", "template": "with tools"}, {"name": "default", "template": "without"}]
    change(path / "tokenizer_config.json", chat_template=listed)
    added = model.add(str(path), tmp_path / "models")
    assert (added.chat_template(), added.tool_template()) == ("without", "with tools")
    assert model.verify(added.path) == added
    (added.path / "tool_template.jinja").unlink()
    with pytest.raises(model.DamagedModel, match=r"tool_template\.jinja is missing"):
        model.open_model(added.path)


def test_a_folder_becomes_a_model_named_after_it(path: Path, tmp_path: Path) -> None:
    added = model.add(str(path), tmp_path / "models")
    assert added.name == "tiny-llama"
    assert added.tool_template() is None
    assert model.add(added.manifest.reference, tmp_path / "models") == added


def test_a_folder_that_changed_is_another_model(path: Path, tmp_path: Path) -> None:
    model.add(str(path), tmp_path / "models")
    tiny_folder.write_json(path / "generation_config.json", {"eos_token_id": 5})
    with pytest.raises(model.ModelError, match="there already"):
        model.add(str(path), tmp_path / "models")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba'.*supported: llama"),
        ({"hidden_act": "relu"}, "activation 'relu'.*supported: silu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "way named 'dynamic'.*supported: default"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"use_bidirectional_attention": True}, "reads both ways"),
        ({"num_key_value_heads": 3}, "4 heads of 16 numbers and 3 for keys and values"),
        ({"head_dim": 15}, "4 heads of 15 numbers"),
        ({"sliding_window": 8, "layer_types": ["full_attention", "chunked_attention"]}, "kind 'chunked_attention'"),
    ],
)
def test_what_we_cannot_run_is_refused_by_name(path: Path, values: dict[str, Any], message: str) -> None:
    change(path / "config.json", **values)
    with pytest.raises(UnsupportedModel, match=message):
        hugging_face.read(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": None}, "does not say 'hidden_size'"),
        ({"hidden_size": "64"}, "hidden_size = 64, where a whole number"),
        ({"num_hidden_layers": 10**9}, r"no tensor 'model\.layers\.2\.input_layernorm\.weight'"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"intermediate_size": 95}, r"shape \(96, 64\), where \(95, 64\)"),
        ({"rope_scaling": {"type": "linear"}}, "does not say 'factor'"),
        ({"rope_scaling": 8}, "rope_scaling = 8, where an object"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 10*, where a number above zero"),
        (
            {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            "numbers for rotary embedding that cannot be",
        ),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 2.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "numbers for rotary embedding that cannot be",
        ),
        ({"eos_token_id": "</s>"}, "eos_token_id = </s>, where a token id"),
        ({"attention_bias": True}, r"no tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'"),
    ],
)
def test_settings_that_cannot_be_are_named(path: Path, values: dict[str, Any], message: str) -> None:
    change(path / "config.json", **values)
    with pytest.raises(UnreadableWeights, match=message):
        hugging_face.read(path)


def test_a_tensor_that_would_be_left_out_is_refused(path: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    tiny_folder.write_safetensors(path / "model.safetensors", tiny_folder.tensors() | bias)
    with pytest.raises(UnsupportedModel, match=r"1 tensors.*q_proj\.bias"):
        hugging_face.read(path)


def test_a_model_without_a_template_can_be_given_one(path: Path, tmp_path: Path) -> None:
    change(path / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UnsupportedModel, match=r"no chat template.*--chat-template FILE"):
        model.add(str(path), tmp_path / "models")
    added = model.add(str(path), tmp_path / "models", chat_template="asked so")
    assert added.chat_template() == "asked so"
    assert model.add(str(path), tmp_path / "models", chat_template="asked so") == added
    with pytest.raises(model.ModelError, match="there already"):
        model.add(str(path), tmp_path / "models", chat_template="asked otherwise")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"[" * 100_000, b"\xff" * 7 + b"\x00" * 9])
def test_a_broken_file_is_named_in_one_sentence(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)
    with pytest.raises((UnreadableWeights, UnsupportedModel), match=name) as caught:
        hugging_face.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(UnreadableWeights, match=name):
        hugging_face.read(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_weights_cut_short_are_refused(path: Path, share: float) -> None:
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadableWeights, match=r"model\.safetensors is not a safetensors file, or not all of one"):
        hugging_face.read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [0], "data_offsets": [-8, -8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        7,
    ],
)
def test_a_tensor_outside_its_file_is_refused(path: Path, entry: Any) -> None:
    header = json.dumps({"model.norm.weight": entry}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UnreadableWeights, match=r"model\.safetensors is not a safetensors file"):
        hugging_face.read(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_header_does_worse_than_to_be_refused(path: Path, data: st.DataObject) -> None:
    weights = path / "model.safetensors"
    tiny_folder.write_safetensors(weights, tiny_folder.tensors())
    content = bytearray(weights.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 2500))
        written = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"[", b"]", b"9", b"-1", b'"', b"{}"]))
        content[place : place + len(written)] = written
    weights.write_bytes(content)
    with contextlib.suppress(UnreadableWeights, UnsupportedModel):
        hugging_face.read(path)


def test_integers_are_no_weights(path: Path) -> None:
    tiny_folder.write_safetensors(path / "model.safetensors", {"model.norm.weight": np.ones(64, np.int64)})
    with pytest.raises(UnsupportedModel, match=r"stored as I64; supported: F32, F16, BF16"):
        hugging_face.read(path)


def test_a_pointer_of_git_in_place_of_weights_is_told_apart(path: Path) -> None:
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UnreadableWeights, match=r"model\.safetensors only points to the file itself.*git lfs pull"):
        hugging_face.read(path)


def test_a_tokenizer_of_the_older_kind_is_told_how_to_be_turned_into_one(path: Path) -> None:
    (path / "tokenizer.json").rename(path / "tokenizer.model")
    with pytest.raises(UnreadableWeights, match=r"has tokenizer\.model but no tokenizer\.json; make one of it with"):
        hugging_face.read(path)
