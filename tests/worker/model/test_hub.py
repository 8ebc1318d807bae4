"""Models of the Hugging Face hub, here one on loopback: its library runs in a process of its own, as for a user."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.model import ready_folder, tiny_folder
from tests.worker.model.fake_hub import GATED, FakeHub
from worker import model

Add = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    tiny_folder.write(tmp_path / "shelf" / "acme" / "Tiny-Llama")
    with FakeHub(tmp_path / "shelf") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def add(hub: FakeHub, tmp_path: Path) -> Add:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        mine = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "GRISTMILL_DATA_DIR": str(tmp_path / "data")}
        command = [sys.executable, "-m", "gristmill", "models", "add", *arguments]
        return subprocess.run(
            command, env=kept | mine | environment, capture_output=True, text=True, check=False, timeout=120
        )

    return run


def test_a_model_is_fetched_by_its_id(add: Add, tmp_path: Path) -> None:
    done = add("acme/Tiny-Llama")
    assert (done.returncode, done.stdout) == (0, "acme/tiny-llama\n"), done.stderr
    added = model.open_named("acme/tiny-llama", tmp_path / "data" / "models")
    assert added.manifest.source == "hub:acme/Tiny-Llama"


def test_what_others_keep_beside_the_weights_is_not_fetched(add: Add, hub: FakeHub) -> None:
    folder = hub.shelf / "acme" / "Tiny-Llama"
    (folder / "onnx").mkdir()
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"):
        (folder / name).write_bytes(b"large")
    assert add("acme/Tiny-Llama@v1.0").returncode == 0
    assert any("/revision/v1.0" in asked for asked in hub.asked)
    assert any("/model.safetensors" in asked for asked in hub.asked)
    fetched = [asked for asked in hub.asked if "/resolve/" in asked]
    assert not [asked for asked in fetched if any(name in asked for name in ("pytorch", "consolidated", "onnx"))]


def test_without_a_network_the_cache_is_enough(add: Add, tmp_path: Path) -> None:
    assert add("acme/Tiny-Llama").returncode == 0
    again = add("acme/Tiny-Llama", "--name", "again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_of_a_model_of_onnx_the_one_graph_that_is_used_is_fetched(add: Add, hub: FakeHub, tmp_path: Path) -> None:
    folder = ready_folder.transformers_js(hub.shelf / "acme" / "Tiny-ONNX", "llama-fp32")
    other = ready_folder.transformers_js(tmp_path / "other", "llama-int4", "model_q4")
    for path in (other / "onnx").iterdir():
        path.rename(folder / "onnx" / path.name)
    done = add("acme/Tiny-ONNX")
    assert (done.returncode, done.stdout) == (0, "acme/tiny-onnx\n"), done.stderr
    fetched = {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert {name for name in fetched if "onnx" in name} == {"model.onnx", "model.onnx_data"}
    chosen = add("acme/Tiny-ONNX/onnx/model_q4.onnx", "--name", "q4")
    assert chosen.returncode == 0, chosen.stderr
    again = add("acme/Tiny-ONNX", "--name", "again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_one_of_several_folders_is_chosen_by_its_path(add: Add, hub: FakeHub) -> None:
    for place in ("cpu/int4", "cuda"):
        ready_folder.genai(hub.shelf / "acme" / "Many" / place, "llama-int4")
    assert "name one: acme/Many/FOLDER" in add("acme/Many").stderr
    done = add("acme/Many/cpu/int4@v1.0")
    assert (done.returncode, done.stdout) == (0, "acme/many\n"), done.stderr
    assert not [asked for asked in hub.asked if "/resolve/" in asked and "cuda" in asked]


@pytest.mark.parametrize(
    ("source", "environment", "message"),
    [
        ("acme/none", {}, "there is no such model, or it is private; then: hf auth login"),
        (GATED, {}, "its owner asks for consent"),
        ("acme/Tiny-Llama", {"HF_HUB_OFFLINE": "1"}, "could not be fetched from the Hugging Face hub"),
        ("acme/Tiny-Llama", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be fetched from the Hugging Face hub"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    add: Add, tmp_path: Path, source: str, environment: dict[str, str], message: str
) -> None:
    done = add(source, **environment)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "data" / "models").glob("[!.]*"))
