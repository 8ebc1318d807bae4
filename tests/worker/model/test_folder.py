"""A damaged model folder is found when it is opened, and the message says how to mend it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests import tiny_model
from worker.model import DamagedModel, ModelFolder, UnknownModel, open_model, verify

FILES = ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"]


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    return tiny_model.write(tmp_path / "tiny")


def test_what_was_written_can_be_opened_and_verified(model: ModelFolder) -> None:
    assert open_model(model.path) == verify(model.path) == model


def test_a_folder_can_be_moved(model: ModelFolder, tmp_path: Path) -> None:
    moved = model.path.rename(tmp_path / "elsewhere")
    assert open_model(moved).manifest == model.manifest


def test_no_folder_is_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="gristmill models add"):
        open_model(tmp_path / "none")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_remedy(model: ModelFolder, name: str) -> None:
    (model.path / name).unlink()
    with pytest.raises(DamagedModel, match=f"{name} is missing; mend it with: gristmill models add tiny"):
        open_model(model.path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(model: ModelFolder, name: str) -> None:
    path = model.path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedModel, match=f"{name} has .* bytes instead of"):
        open_model(model.path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_overwritten_in_its_size_is_named(model: ModelFolder, name: str) -> None:
    path = model.path / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedModel, match=f"{name} holds something else"):
        open_model(model.path)


def test_a_large_file_overwritten_in_part_is_found_by_its_sample(tmp_path: Path) -> None:
    """Blocks are read at even distances, so a zeroed hundredth cannot hide between them."""
    spec = replace(tiny_model.SPEC, vocabulary=50_000)
    model = tiny_model.write(tmp_path / "large", spec=spec)
    path = model.path / "model.onnx.data"
    content = bytearray(path.read_bytes())
    start, length = len(content) // 3, len(content) // 100
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    with pytest.raises(DamagedModel, match=r"model\.onnx\.data holds something else"):
        open_model(model.path)


def test_verify_finds_a_single_changed_byte(tmp_path: Path) -> None:
    spec = replace(tiny_model.SPEC, vocabulary=50_000)
    model = tiny_model.write(tmp_path / "large", spec=spec)
    path = model.path / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 5000] ^= 1
    path.write_bytes(content)
    open_model(model.path)
    with pytest.raises(DamagedModel, match=r"model\.onnx\.data holds something else"):
        verify(model.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "name": "x"}', "\xff"])
def test_a_manifest_that_cannot_be_read_is_damage(model: ModelFolder, text: str) -> None:
    (model.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedModel, match=r"manifest\.json (is missing|cannot be read)"):
        open_model(model.path)


def test_the_manifest_says_what_a_reader_wants_to_know(model: ModelFolder) -> None:
    manifest = json.loads((model.path / "manifest.json").read_text("utf-8"))
    assert (manifest["name"], manifest["precision"], manifest["source"]) == ("tiny", "fp32", "seed 0")
    assert manifest["fingerprint"] == model.fingerprint
    assert [file["name"] for file in manifest["files"]] == FILES
    assert manifest["spec"]["layers"] == 2
