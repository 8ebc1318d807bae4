"""Every architecture against what transformers computed: see benchmarks/reference_logits.py."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.worker.model import tiny_folder
from tests.worker.model.drawn_weights import draw
from tests.worker.model.graph_loop import GraphLoop
from worker.model import ModelFolder, Precision, folder, hugging_face
from worker.model.architectures import ARCHITECTURES
from worker.model.checkpoint import Checkpoint

DIFFERENCE_MAX = 2e-4


@cache
def recorded() -> Any:
    return json.loads(Path(__file__).with_name("expected_logits.json").read_text("utf-8"))["models"]


def truth(name: str) -> NDArray[np.float32]:
    """Logits at every position of the prompt and of the answer, [tokens, vocabulary]."""
    with np.load(Path(__file__).with_name("expected_logits.npz")) as arrays:
        logits: NDArray[np.float32] = arrays[name]
        return logits


def token_ids(name: str) -> list[int]:
    ids: list[int] = recorded()[name]["prompt"] + recorded()[name]["answer"]
    return ids


def before_version_5(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 4 and hub folders spell it."""
    newer = ("rope_parameters", "layer_types", "no_rope_layers")
    spelled = {key: value for key, value in config.items() if key not in newer}
    ropes = config.get("rope_parameters") or {}
    local, whole = ropes.get("sliding_attention", {}), ropes.get("full_attention", ropes)
    if local:
        spelled["rope_local_base_freq"] = local["rope_theta"]
    if "rope_theta" in whole:
        spelled["rope_theta"] = whole["rope_theta"]
    if "partial_rotary_factor" in whole:
        spelled["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if whole.get("rope_type", "default") != "default":
        above = ("rope_type", "rope_theta", "partial_rotary_factor")
        kept = {key: value for key, value in whole.items() if key not in above}
        spelled["rope_scaling"] = kept | {"type": whole["rope_type"]}
    return spelled


def source(path: Path, name: str, config: dict[str, Any]) -> Checkpoint:
    """The folder that transformers computed the logits of, written to `path` and read."""
    shapes = recorded()[name]["tensors"]
    arrays = {tensor: draw(tensor, tuple(shape)) for tensor, shape in shapes.items()}
    return hugging_face.read(tiny_folder.write(path, config=config, arrays=arrays))


def write(path: Path, name: str, config: dict[str, Any], precision: Precision = Precision.FP32) -> ModelFolder:
    checkpoint = source(path / "source", name, config)
    target = path / "target"
    target.mkdir()
    return folder.write(target, checkpoint, name=name, source="", reference="", precision=precision)


@pytest.fixture(params=recorded())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loop(name: str, tmp_path: Path) -> GraphLoop:
    return GraphLoop(write(tmp_path, name, recorded()[name]["config"]), slots=4, room=48)


def assert_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert np.abs(found - expected).max() <= DIFFERENCE_MAX
    np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))


def test_every_architecture_has_a_proof() -> None:
    assert {model["config"]["model_type"] for model in recorded().values()} == ARCHITECTURES.keys()


def test_the_windows_and_stretched_ropes_are_in_reach_of_the_proof() -> None:
    """A window wider than the texts here would prove nothing."""
    windows = {name: model["config"].get("sliding_window") for name, model in recorded().items()}
    slides = {"mistral-window", "qwen2-window", "gemma2", "gemma3", "phi-3"}
    assert {name for name, window in windows.items() if window == 8} == slides


def test_a_prompt_in_one_piece_gives_the_logits_of_transformers(loop: GraphLoop, name: str) -> None:
    prompt = recorded()[name]["prompt"]
    assert_same(loop.run(1, [prompt], range(len(prompt))), truth(name)[: len(prompt)])


def test_a_prompt_in_pieces_and_an_answer_alone_give_the_logits_of_transformers(loop: GraphLoop, name: str) -> None:
    ids, prompt_tokens = token_ids(name), len(recorded()[name]["prompt"])
    for start, end in ((0, 1), (1, 10), (10, prompt_tokens)):
        logits = [loop.run(2, [ids[start:end]], range(end - start))]
        assert_same(logits[0], truth(name)[start:end])
    decoded = [loop.run(2, [[token]], [0]) for token in ids[prompt_tokens:]]
    assert_same(np.concatenate(decoded), truth(name)[prompt_tokens:])


def test_answers_written_together_have_the_logits_of_transformers(loop: GraphLoop, name: str) -> None:
    """Three rows, each at another place of the same text."""
    ids, starts = token_ids(name), (24, 9, 3)
    for row, start in enumerate(starts):
        loop.run(row, [ids[:start]], [])
    for step in range(16):
        places = [start + step for start in starts]
        assert_same(loop.run(0, [[ids[place]] for place in places], range(3)), truth(name)[places])


def test_in_fp16_the_logits_are_nearly_the_same(name: str, tmp_path: Path) -> None:
    loop = GraphLoop(write(tmp_path, name, recorded()[name]["config"], Precision.FP16), slots=1, room=48)
    prompt = recorded()[name]["prompt"]
    expected = truth(name)[: len(prompt)]
    assert np.abs(loop.run(0, [prompt], range(len(prompt))) - expected).max() <= 0.01 * np.abs(expected).max()


def test_an_older_spelling_of_the_settings_means_the_same(name: str, tmp_path: Path) -> None:
    config = recorded()[name]["config"]
    loop = GraphLoop(write(tmp_path, name, before_version_5(config)), slots=1, room=48)
    prompt = recorded()[name]["prompt"]
    assert_same(loop.run(0, [prompt], range(len(prompt))), truth(name)[: len(prompt)])
