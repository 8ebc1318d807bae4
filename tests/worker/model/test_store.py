"""Adding, listing and removing models: whole or not at all, whoever else does the same."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.model import tiny_gguf
from worker import model
from worker.model import DamagedModel, ModelError, UnknownModel, UnsupportedModel, folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "Tiny Model.gguf")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def entries(models_dir: Path) -> list[str]:
    return sorted(path.name for path in models_dir.iterdir() if not path.name.endswith(".lock"))


def test_a_gguf_file_becomes_a_model_named_after_it(weights: Path, models_dir: Path) -> None:
    said: list[str] = []
    added = model.add(str(weights), models_dir, progress=said.append)
    assert (added.name, added.path) == ("tiny-model", models_dir / "tiny-model")
    assert model.open_named("tiny-model", models_dir) == added
    assert entries(models_dir) == ["tiny-model"]
    assert said[0].startswith("Reading")


def test_a_name_with_a_slash_is_one_folder(weights: Path, models_dir: Path) -> None:
    added = model.add(str(weights), models_dir, name="org/tiny")
    assert entries(models_dir) == ["org--tiny"]
    assert [found.name for found in model.list_models(models_dir)] == ["org/tiny"]
    assert model.open_named("org/tiny", models_dir) == added


def test_adding_again_changes_nothing(weights: Path, models_dir: Path) -> None:
    first = model.add(str(weights), models_dir)
    said: list[str] = []
    assert model.add(str(weights), models_dir, progress=said.append) == first
    assert said == []


def test_a_name_in_use_by_another_model_is_refused(weights: Path, models_dir: Path, tmp_path: Path) -> None:
    model.add(str(weights), models_dir, name="mine")
    other = tiny_gguf.write(tmp_path / "other.gguf", {"llama.context_length": 64})
    with pytest.raises(ModelError, match=r"there already.*gristmill models remove mine"):
        model.add(str(other), models_dir, name="mine")
    with pytest.raises(ModelError, match="there already"):
        model.add(str(weights), models_dir, name="mine", precision="fp16")


def test_adding_mends_a_damaged_model(weights: Path, models_dir: Path) -> None:
    added = model.add(str(weights), models_dir)
    (added.path / "tokenizer.json").unlink()
    with pytest.raises(DamagedModel, match=r"models add '.*/Tiny Model\.gguf' --name tiny-model"):
        model.open_named("tiny-model", models_dir)
    assert model.list_models(models_dir) == []
    mended = model.add(str(weights), models_dir)
    assert mended.fingerprint == added.fingerprint
    assert model.open_named("tiny-model", models_dir) == mended


ADD = """
import sys
from pathlib import Path
from worker import model
added = model.add(sys.argv[1], Path(sys.argv[2]), progress=lambda line: print(line, flush=True))
print(added.manifest.created_at)
"""


def start_adding(weights: Path, models_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ADD, str(weights), str(models_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_add_the_same_model_at_once_all_get_it(weights: Path, models_dir: Path) -> None:
    running = [start_adding(weights, models_dir) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({said.splitlines()[-1] for said, _ in outputs}) == 1
    assert entries(models_dir) == ["tiny-model"]


def test_a_process_waits_for_another_that_adds_the_same_model(weights: Path, models_dir: Path) -> None:
    models_dir.mkdir()
    with (models_dir / ".tiny-model.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start_adding(weights, models_dir)
        assert process.stdout
        assert "waiting" in process.stdout.readline()
        assert entries(models_dir) == []
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert entries(models_dir) == ["tiny-model"]


def test_what_a_crashed_process_left_is_cleared_but_nothing_else(weights: Path, models_dir: Path) -> None:
    mine, other = models_dir / ".writing-tiny~abc", models_dir / ".writing-tiny-model~abc"
    mine.mkdir(parents=True)
    other.mkdir()
    model.add(str(weights), models_dir, name="tiny")
    assert entries(models_dir) == [other.name, "tiny"]


def test_a_full_disk_leaves_nothing_behind(weights: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "_flush", fail)
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        model.add(str(weights), models_dir)
    assert entries(models_dir) == []


def test_a_refused_model_leaves_nothing_behind(models_dir: Path, tmp_path: Path) -> None:
    weights = tiny_gguf.write(tmp_path / "x.gguf", {"tokenizer.ggml.pre": "tekken"})
    with pytest.raises(UnsupportedModel, match="tekken"):
        model.add(str(weights), models_dir)
    assert entries(models_dir) == []


def test_a_removed_model_is_gone(weights: Path, models_dir: Path) -> None:
    added = model.add(str(weights), models_dir)
    (added.path / "model.onnx").unlink()
    model.remove("tiny-model", models_dir)
    assert entries(models_dir) == []
    with pytest.raises(UnknownModel, match="no model 'tiny-model'"):
        model.open_named("tiny-model", models_dir)
    with pytest.raises(UnknownModel, match="no model 'tiny-model'"):
        model.remove("tiny-model", models_dir)


def test_no_models_folder_is_no_models(models_dir: Path) -> None:
    assert model.list_models(models_dir) == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/x", "x/", "a/../b", "a--b", "a//b", "-x", ".x", "a b", "a\n", "ä", "x" * 201],
)
def test_what_cannot_be_a_name_is_refused(name: str, models_dir: Path) -> None:
    with pytest.raises(UnknownModel, match="cannot be the name of a model"):
        model.open_named(name, models_dir)


def test_a_chat_template_larger_than_any_honest_one_is_refused(weights: Path, models_dir: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"a chat template of 1,000,001 characters, where 1,000,000 at most"):
        model.add(str(weights), models_dir, chat_template="x" * 1_000_001)
    assert entries(models_dir) == []


def test_an_unknown_source_is_refused_with_those_that_are_known(models_dir: Path) -> None:
    with pytest.raises(
        UnknownModel, match=r"'gpt-9' is neither a .gguf or .onnx file .* nor a known model.*smollm2-135m"
    ):
        model.add("gpt-9", models_dir)


def test_an_unknown_precision_is_refused_before_anything_is_fetched(models_dir: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"precision 'int3'.*fp32, fp16"):
        model.add("smollm2-135m", models_dir, precision="int3")
    assert not models_dir.exists()
