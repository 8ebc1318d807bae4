"""Weights that need no change stay in the files they came in, which a model folder takes."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.worker.model import tiny_folder, tiny_gguf
from tests.worker.model.graph_loop import GraphLoop
from tests.worker.model.test_paged_graph import compute
from worker import model
from worker.engine.paged.cpu_session import CpuPagedSession
from worker.model import DamagedModel, ModelFolder, Precision, hugging_face, paged_graph
from worker.model import folder as model_folder
from worker.model.onnx_file import OnnxFile
from worker.model.weights import LayerWeights, Place, Weights

TAKEN = "checkpoint.0"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of Hugging Face in bfloat16."""
    return tiny_folder.write(tmp_path / "Tiny", arrays=_narrow(tiny_folder.tensors()))


def _narrow(arrays: tiny_folder.Arrays) -> tiny_folder.Arrays:
    return {name: tiny_folder.bfloat16(array) for name, array in arrays.items()}


def add(source: Path, precision: str = "bf16") -> ModelFolder:
    return model.add(str(source), source.parent / "models", precision=precision)


def in_checkpoint(added: ModelFolder) -> dict[str, TensorProto]:
    """The tensors of a graph that lie in the taken file, with where they lie."""
    graph = onnx.load(added.graph_path, load_external_data=False).graph
    return {tensor.name: tensor for tensor in graph.initializer if _said(tensor).get("location") == TAKEN}


def _said(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def content(tensor: TensorProto, folder: Path) -> bytes:
    said = _said(tensor)
    return (folder / said["location"]).read_bytes()[int(said["offset"]) :][: int(said["length"])]


KINDS: dict[str, Callable[[Any], Any]] = {"bf16": tiny_folder.bfloat16, "fp16": lambda array: array.astype(np.float16)}

LINEAR = {
    *("embedding.weight", *(f"layers.{index}.attention.output.weight" for index in (0, 1))),
    *(f"layers.{index}.feed_forward.{part}.weight" for index in (0, 1) for part in ("gate", "up", "down")),
}


@pytest.mark.parametrize("precision", KINDS)
def test_what_a_checkpoint_has_in_the_type_of_its_graph_is_not_stored_twice(precision: str, tmp_path: Path) -> None:
    """Pages take bf16, and slots fp16."""
    narrow, exact = KINDS[precision], tiny_folder.tensors()
    source = tiny_folder.write(tmp_path / "Tiny", arrays={name: narrow(array) for name, array in exact.items()})
    added = add(source, precision)
    pointed = in_checkpoint(added)
    assert pointed.keys() == LINEAR
    for name, theirs in {
        "embedding.weight": "model.embed_tokens.weight",
        "layers.1.feed_forward.down.weight": "model.layers.1.mlp.down_proj.weight",
    }.items():
        assert content(pointed[name], added.path) == narrow(exact[theirs]).tobytes()
        assert tuple(pointed[name].dims) == exact[theirs].shape
    assert (added.path / TAKEN).samefile(source / "model.safetensors")
    assert TAKEN in {file.name for file in added.manifest.files}


@pytest.mark.parametrize(("precision", "kind"), [("bf16", "BF16"), ("fp16", "F16")])
def test_a_gguf_file_is_taken_too_but_for_queries_keys_and_values(precision: str, kind: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in tiny_gguf.tensors().items() if array.ndim == 2}
    stored = gguf.GGMLQuantizationType[kind]
    path = tiny_gguf.write(
        tmp_path / "tiny.gguf",
        arrays={name: gguf.quantize(array, stored) for name, array in arrays.items()},
        types=dict.fromkeys(arrays, stored),
    )
    added = add(path, precision)
    assert in_checkpoint(added).keys() == LINEAR
    assert path.samefile(added.path / TAKEN)


def test_the_folder_needs_its_source_no_more_and_may_be_moved(source: Path, tmp_path: Path) -> None:
    added = add(source)
    shutil.rmtree(source)
    moved = added.path.rename(tmp_path / "elsewhere")
    assert model.verify(moved).manifest == added.manifest


def test_on_another_disk_the_file_is_copied(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr("worker.model.taken.os.link", refuse)
    added = add(source)
    assert not (added.path / TAKEN).samefile(source / "model.safetensors")
    assert (added.path / TAKEN).read_bytes() == (source / "model.safetensors").read_bytes()
    assert in_checkpoint(added).keys() == LINEAR


def test_a_source_that_is_changed_in_place_is_damage(source: Path) -> None:
    added = add(source)
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xff\xff")
    with pytest.raises(DamagedModel, match=r"checkpoint\.0 holds something else"):
        model.open_model(added.path)


@pytest.mark.parametrize(
    ("precision", "change"),
    [
        ("bf16", lambda _: None),
        ("fp16", _narrow),
        ("fp32", _narrow),
        ("int8", lambda arrays: arrays),
        ("fp32", lambda _: None),
    ],
    ids=["of another type", "of other 16 bits", "widened", "turned", "transposed but for the embedding"],
)
def test_a_checkpoint_of_which_little_stays_as_it_is_is_not_taken(
    precision: str, change: Callable[[tiny_folder.Arrays], tiny_folder.Arrays | None], tmp_path: Path
) -> None:
    folder = tiny_folder.write(tmp_path / "Tiny", arrays=change(tiny_folder.tensors()))
    added = add(folder, precision)
    assert not (added.path / TAKEN).exists()
    assert not in_checkpoint(added)


def test_tensors_at_odd_places_are_copied(source: Path) -> None:
    """The format promises no alignment, and processors and cards do."""
    tiny_folder.write_safetensors(source / "model.safetensors", _narrow(tiny_folder.tensors()), shift=1)
    added = add(source)
    assert not in_checkpoint(added)
    [gate] = [
        tensor
        for tensor in onnx.load(added.graph_path).graph.initializer
        if tensor.name == "layers.0.feed_forward.gate.weight"
    ]
    exact = tiny_folder.bfloat16(tiny_folder.tensors()["model.layers.0.mlp.gate_proj.weight"])
    assert gate.raw_data == exact.tobytes()


def test_logits_are_those_of_the_same_weights_stored_anew(tmp_path: Path) -> None:
    checkpoint = hugging_face.read(tiny_folder.write(tmp_path / "Tiny"))
    logits = []
    for name, weights in (("straight", checkpoint.weights), ("anew", copied(checkpoint.weights))):
        folder = tmp_path / name
        folder.mkdir()
        paged_graph.write(checkpoint.spec, weights, Precision.FP32, folder)
        session = CpuPagedSession(folder / "model.onnx", pages=5, page_tokens=16)
        logits.append(compute(session, [(list(range(30)), 0, [2, 1])]))
    assert (tmp_path / "straight" / TAKEN).exists()
    assert not (tmp_path / "anew" / TAKEN).exists()
    np.testing.assert_array_equal(logits[0], logits[1])


def test_logits_on_slots_are_those_of_the_same_weights_stored_anew(tmp_path: Path) -> None:
    arrays = {name: KINDS["fp16"](array) for name, array in tiny_folder.tensors().items()}
    checkpoint = hugging_face.read(tiny_folder.write(tmp_path / "Tiny", arrays=arrays))
    logits = []
    for name, weights in (("straight", checkpoint.weights), ("anew", copied(checkpoint.weights))):
        path = tmp_path / name
        path.mkdir()
        meant = {"name": name, "source": "", "reference": "", "precision": Precision.FP16}
        stored = model_folder.write(path, replace(checkpoint, weights=weights), **meant)  # type: ignore[arg-type]
        logits.append(GraphLoop(stored, slots=1, room=32).run(0, [range(30)], [29, 3]))
    assert (tmp_path / "straight" / TAKEN).exists()
    assert not (tmp_path / "anew" / TAKEN).exists()
    np.testing.assert_array_equal(logits[0], logits[1])


def copied(weights: Weights) -> Weights:
    """The same, of which it is not known where it lies."""

    def layer(index: int) -> LayerWeights:
        read = weights.layer(index)
        linear = ("query", "key", "value", "output", "gate", "up", "down")
        return replace(read, **{part: replace(getattr(read, part), place=None) for part in linear})

    tables = {name: replace(getattr(weights, name), place=None) for name in ("embedding", "lm_head")}
    return replace(weights, layer=layer, **tables)


def test_onnx_runtime_finds_weights_between_others_in_a_file(tmp_path: Path) -> None:
    """Not at the beginning of a page, in a type that numpy does not know by itself, in a file with a second name."""
    rows = np.random.default_rng(1).standard_normal((3, 70), np.float32).astype(ml_dtypes.bfloat16)
    path = tmp_path / "some.bin"
    path.write_bytes(b"12345678" + rows.tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    with OnnxFile(folder) as file:
        file.placed("rows", Place(path, 8, rows.shape, rows.dtype), lambda: pytest.fail("it was read"))
        file.node("Cast", ["rows"], "wide", to=TensorProto.FLOAT)
        file.node("Gemm", ["x", "wide"], "y", transB=1)
        shapes = {"x": [1, 70], "y": [1, 3]}
        x, y = (onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
        file.save([x], [y])
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ones = np.ones((1, 70), np.float32)
    [found] = session.run(None, {"x": ones})
    np.testing.assert_allclose(found, ones @ rows.astype(np.float32).T, rtol=1e-5)
    assert (folder / TAKEN).samefile(path)
